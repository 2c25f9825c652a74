"""Internals and undocumented behaviour of transformers, and of the packages that it loads models with.

No other module relies on any of these (transformers 5.23, bitsandbytes 0.50, gguf). ``tests/unit/test_compat.py`` tries each one
in ``PRIVATE_NAMES`` and fails with a sentence when an upgrade moves it.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from rn_harness.spec.collector import collector_paused
from rn_harness.spec.errors import CandidateError
from rn_harness.store.ranks import ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")
PRIVATE_NAMES = {
    "transformers.distributed.mixin.initialize_distributed_mesh": "connect the processes once, not for each model",
    "PreTrainedModel.is_distributed_loading_by_transformers": "find a network whose weights are spread",
    "missing_keys of from_pretrained": "refuse missing tensors, which it draws by chance",
    "names of settings with drop or jitter in them": "train without noise",
    "DynamicLayer": "select rows of a cache",
    "DynamicSlidingWindowLayer": "select rows of a cache",
    "DynamicCache.batch_select_indices": "select rows of a cache",
    **{f"setting {name}": "find an output layer that does more than multiply" for name in _SCALED_LOGITS},
    "order of generate's filters: temperature, top-k, top-p, min-p": "sample as it does",
    "bitsandbytes.nn.Linear4bit.quant_state": "find 4-bit layers",
    "bitsandbytes.nn.Linear4bit.compute_dtype": "find 4-bit layers",
    "bitsandbytes.nn.Linear4bit.support_avx512bf16_for_cpu": "keep a product that has a gradient",
    "gguf.quants._type_traits": "list the quantisations that can be undone",
}
"""Each private name or undocumented behaviour, with its purpose."""


OTHER_SETTINGS = frozenset({
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "initializer_range", "pad_token_id",
    "torch_dtype", "transformers_version", "use_cache",
})  # fmt: skip
"""Settings in a config.json that say nothing of what a loaded network computes, or are compared elsewhere."""


def quiet_libraries() -> None:
    """Switches off network, telemetry, progress bars and advice of the libraries below us.

    Child processes read the variables; the hub's client in this process read them once, on its first import.
    """
    os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "1")
    # On a CPU it advises a package that fetches code from the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with known_deprecations(), collector_paused():
        import datasets
        import huggingface_hub
        import peft  # noqa: F401  (loads bitsandbytes where it is installed)
        import transformers

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    _freeze_imports()


@cache
def _freeze_imports() -> None:
    """Exempts the libraries' half a million permanent objects from garbage collection, once: frozen cycles are never freed."""
    gc.collect()
    gc.freeze()


@contextmanager
def known_deprecations() -> Iterator[None]:
    """Hides two warnings from users."""
    with warnings.catch_warnings():
        # Of bitsandbytes 0.50, which uses a torch function that will be dropped.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        # Of TRL 1.16, peft 0.21 and accelerate 1.15, which use transformers' old names for checkpointing.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a config.json that change the computation, with the defaults of its kind of model if that is known."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.for_model(**config).to_dict()
    except (TypeError, ValueError, LookupError):
        settings = dict(config)
    return {key: value for key, value in settings.items() if key not in OTHER_SETTINGS and not _is_noise(key)}


def check_whole(loaded: Mapping[str, Any]) -> None:
    """Raises ValueError if a loading report names missing weights, which transformers would draw by chance, each time others."""
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"no {missing[0]}, the first of {len(missing)} missing tensors that the configuration asks for")


def _is_noise(name: str) -> bool:
    """True if a setting of this name drops or shakes activations in training."""
    return "drop" in name or "jitter" in name


def train_without_noise(network: Any) -> None:
    """Switches off dropout and the like, in modules and settings, so that a network computes alike in training and evaluation.

    TRL only knows dropout layers. The settings of a defended model could drown what an attack learns, and any attacker would
    change them.
    """
    import torch

    for of in (network.config, network.config.get_text_config(), *network.modules()):
        if isinstance(of, torch.nn.Dropout):
            of.p = 0.0
        for name, value in list(vars(of).items()):
            if _is_noise(name) and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(of, name, 0.0)


def shares_prompts(network: PreTrainedModel) -> bool:
    """True if rows can share their prompt's pass, and the output layer only multiplies.

    All layers then keep keys and values of attention only, whose rows can be selected.
    """
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=network.config).layers
    if any(type(layer) not in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers):
        return False
    scaled = any(getattr(network.config, name, None) for name in _SCALED_LOGITS)
    return type(network.get_output_embeddings()) is torch.nn.Linear and not scaled


def keeps_all_keys(network: PreTrainedModel) -> bool:
    """True if each layer keeps the keys and values of all tokens, so that padding between tokens displaces none.

    MPT takes no positions and GPT-Neo has local layers of its own: such a network counts padding as tokens.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    told = "position_ids" in inspect.signature(network.forward).parameters and not hasattr(network.config, "attention_types")
    return told and all(type(layer) is DynamicLayer for layer in DynamicCache(config=network.config).layers)


def stretched_positions(network: PreTrainedModel) -> set[str]:
    """The position rules of a network that depend on the longest row of a pass; some networks have one for each kind of layer."""
    given = getattr(network.config.get_text_config(), "rope_parameters", None) or {}
    rules = (rule.get("rope_type") for rule in (given, *given.values()) if isinstance(rule, dict))
    return {rule for rule in rules if rule in ("dynamic", "longrope")}


def sampling_filters(settings: Any) -> list[Any]:
    """The filters of ``generate`` for these settings, in its order; none of them reads the tokens so far."""
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    known: tuple[tuple[float | None, float, Any], ...] = (
        (settings.temperature, 1.0, TemperatureLogitsWarper),
        (settings.top_k, 0, TopKLogitsWarper),
        (settings.top_p, 1.0, TopPLogitsWarper),
        (settings.min_p, 0.0, MinPLogitsWarper),
    )
    return [make(value) for value, neutral, make in known if value not in (None, neutral)]


# --- Weights in 4 bits -----------------------------------------------------------------------------------------------------


def four_bits(kind: str, dtype: str | None) -> Any:
    """Loading settings for linear maps in 4 bits, their constants quantised too (arXiv 2305.14314)."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype or "float32"),
    )


def four_bit_layers(network: Any) -> Iterator[Any]:
    """The linear maps in 4 bits, with or without adapters around them."""
    return (module for module in network.modules() if hasattr(module, "quant_state") and hasattr(module, "compute_dtype"))


def keep_gradients(network: Any) -> None:
    """Keeps bitsandbytes from packing 4-bit weights at the first evaluation on some CPUs: that product has no gradient."""
    for layer in four_bit_layers(network):
        layer.support_avx512bf16_for_cpu = False


def dequantised() -> set[str]:
    """The quantisations of GGUF files that can be turned into plain numbers."""
    from gguf import quants

    return {"F32", "F16", *(kind.name for kind in quants._type_traits)}  # noqa: SLF001  (there is no public list)


# --- Weights spread over processes -------------------------------------------------------------------------------------------


def is_sharded(network: Any) -> bool:
    """True if the weights are spread over processes."""
    return bool(getattr(network, "is_distributed_loading_by_transformers", False))


def spread_over(processes: int) -> Any:
    """Loading settings that spread the weights over all processes, each of which reads its part of the files."""
    from transformers.distributed import DistributedConfig

    ranks().connect()
    _connect_once()
    return DistributedConfig(fsdp_size=processes)


@cache
def _connect_once() -> None:
    """Makes transformers reuse its first connection; each further one would leave 24 open files and 18 threads behind."""
    from transformers.distributed import mixin

    connect, made = mixin.initialize_distributed_mesh, list[Any]()

    def once(config: Any) -> Any:
        if not made:
            made.append(connect(config))
        return made[0]

    mixin.initialize_distributed_mesh = once


def check_spread(network: Any) -> None:
    """Raises CandidateError unless weights are spread layer by layer, for which transformers must know the architecture.

    Else all would be gathered at once, which no memory plan expects.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule

    lists = (module for module in network.modules() if isinstance(module, torch.nn.ModuleList))
    count = network.config.get_text_config().num_hidden_layers
    if not any(len(layers) == count and all(isinstance(layer, FSDPModule) for layer in layers) for layers in lists):
        raise CandidateError(
            f"weights are spread layer by layer, got {type(network).__name__}, of whose {count} layers transformers has no plan; "
            "leave out --rn-shard"
        )
