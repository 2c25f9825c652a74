"""Canaries: each private name of a foreign library is where the compat module that lists it expects it."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rn_harness.models import peft_compat, transformers_compat
from rn_harness.spec.errors import CandidateError
from rn_harness.training import trl_compat
from rn_harness.training.trainer_settings import NOT_OF_RLOO

from .canary import Probe, moved
from .lazy import LazyModule

peft: Any = LazyModule("peft")
torch: Any = LazyModule("torch")
transformers: Any = LazyModule("transformers")
trl: Any = LazyModule("trl")
safetensors_torch: Any = LazyModule("safetensors.torch")

PARAMETERS = {
    "_get_per_token_logps_and_entropies": [
        "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
    ],
    "_tokenize_prompts": ["prompts"],
    "_generate_single_turn": [],
    "_generate_and_score_completions": ["inputs"],
    "_compute_loss": ["model", "inputs"],
}  # fmt: skip
"""The first parameters of the methods that the trainer overrides; the others are passed on."""
SCALED = {
    "final_logit_softcapping": "Gemma2Config",
    "logit_scale": "CohereConfig",
    "logits_scaling": "GraniteConfig",
    "output_multiplier": "MuseSparkTextConfig",
    "lm_head_multiplier": "FalconH1Config",
}
"""A configuration that has each setting."""


def tiny_network() -> Any:
    """A Llama of one layer."""
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=16
    )
    return transformers.LlamaForCausalLM(config)


def trainers() -> tuple[Any, Any]:
    """The classes that the trainer extends."""
    return trl.GRPOTrainer, trl.RLOOTrainer


def source(of: Any) -> str:
    return inspect.getsource(of)


def _keeps_arguments(name: str) -> bool:
    first = PARAMETERS[name]
    return all([*inspect.signature(getattr(kind, name)).parameters][1:][: len(first)] == first for kind in trainers())


def _has_batch_key(key: str) -> bool:
    of = trainers() if key in trl_compat.BATCH_KEYS[:-2] else trainers()[:1]
    return all(f'"{key}"' in source(kind._generate_and_score_completions) for kind in of)


def _logs(metric: str) -> bool:
    return all(f'["{metric}"].append(' in source(kind) for kind in trainers())


def _computes_log_probabilities() -> bool:
    hidden, output = torch.randn(3, 4), torch.nn.Linear(4, 7)
    targets = torch.tensor([1, 6, 0])
    with torch.no_grad():
        given, entropies = trl_compat.SavingTrainer._score_tokens(SimpleNamespace(temperature=0.5), hidden, output, targets)
        logps = (output(hidden) / 0.5).log_softmax(-1)
    expected = logps.gather(-1, targets[:, None])[:, 0]
    return torch.allclose(given, expected, atol=1e-4) and torch.allclose(entropies, -(logps.exp() * logps).sum(-1), atol=1e-4)


def _is_silenced() -> bool:
    """True if a warning of a trainer's module comes through, and does not while the trainer is silent."""
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append
    for name, kind in (("grpo", trl.GRPOTrainer), ("rloo", trl.RLOOTrainer)):
        module = importlib.import_module(kind.__module__)
        logger = getattr(module.logger, "logger", module.logger)  # accelerate wraps it
        logger.addHandler(handler)
        try:
            with trl_compat.silent_trainer(name):
                logger.warning("a completion")
            logger.warning("a word")
        finally:
            logger.removeHandler(handler)
    return [record.getMessage() for record in seen] == ["a word", "a word"]


def _shares_gradient_state() -> bool:
    from accelerate.state import GradientState

    state = GradientState()
    before = trl_compat.process_state()
    state._set_sync_gradients(not state.sync_gradients)
    changed = GradientState().sync_gradients
    trl_compat.set_process_state(before)
    return GradientState().sync_gradients is not changed


def trl_probes() -> dict[str, Probe]:
    """A check for each entry in the list of private names, in its order."""
    rounds = "param.data = param.data.to(torch.bfloat16)"
    checks: list[Probe] = [
        *(functools.partial(_keeps_arguments, name) for name in trl_compat.OVERRIDDEN),
        *(functools.partial(_has_batch_key, key) for key in trl_compat.BATCH_KEYS),
        _computes_log_probabilities,
        lambda: all(
            name in inspect.signature(trl.GRPOConfig).parameters and name not in inspect.signature(trl.RLOOConfig).parameters
            for name in NOT_OF_RLOO
        ),
        *(functools.partial(_logs, key) for key in trl_compat.METRICS),
        lambda: "self.accelerator.backward(loss" in source(transformers.Trainer.training_step),
        _is_silenced,
        lambda: all("generation_config=self.generation_config" in source(kind._generate_single_turn) for kind in trainers()),
        lambda: all(rounds in source(kind.__init__) for kind in trainers()),
        _shares_gradient_state,
    ]
    return dict(zip(trl_compat.PRIVATE_NAMES, checks, strict=True))


def test_trl_has_the_internals_that_the_trainer_uses() -> None:
    """After an upgrade of TRL or accelerate this names each internal that moved, and the module to correct."""
    assert moved(f"TRL {trl.__version__}", trl_compat, trl_probes()) == []


def _names_missing_tensors(folder: Path) -> bool:
    """True if ``check_whole`` refuses a model without one of its tensors, and no whole model."""
    tiny_network().save_pretrained(folder)
    kind, tensors = transformers.LlamaForCausalLM, safetensors_torch.load_file(folder / "model.safetensors")
    _, whole = kind.from_pretrained(folder, output_loading_info=True)
    transformers_compat.check_whole(whole)
    del tensors["model.norm.weight"]
    safetensors_torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _, part = kind.from_pretrained(folder, output_loading_info=True)
    try:
        transformers_compat.check_whole(part)
    except ValueError as error:
        return "no model.norm.weight" in str(error)
    return False


def _trains_without_noise() -> bool:
    """True if a network's own dropout acts in training before ``train_without_noise``, and no longer after it."""
    network, ids = tiny_network(), torch.tensor([[1, 2, 3, 4]])
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.9
    known = network.eval()(ids).logits
    noisy = torch.equal(network.train()(ids).logits, known)
    transformers_compat.train_without_noise(network)
    return not noisy and torch.equal(network(ids).logits, known)


def _has_layer(name: str, window: int | None) -> bool:
    """True if the cache of attention with this window has layers of this class."""
    shape = tiny_network().config.to_dict() | {"model_type": "mistral", "sliding_window": window}
    (layer,) = transformers.DynamicCache(config=transformers.MistralConfig(**shape)).layers
    return type(layer) is getattr(importlib.import_module("transformers.cache_utils"), name)


def _selects_rows() -> bool:
    network = tiny_network()
    cache = transformers.DynamicCache(config=network.config)
    network(torch.tensor([[1, 2], [3, 4]]), past_key_values=cache)
    cache.batch_select_indices(torch.tensor([1, 1, 0]))
    return transformers_compat.shares_prompts(network) and len(cache.layers[0].keys) == 3


def _has_setting(name: str) -> bool:
    return hasattr(getattr(transformers, SCALED[name])(), name)


def _filters_alike() -> bool:
    settings = SimpleNamespace(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1)
    generation = transformers.GenerationConfig(do_sample=True, **vars(settings), eos_token_id=[0])
    theirs = tiny_network()._get_logits_processor(generation, input_ids_seq_length=1)
    return [type(one) for one in transformers_compat.sampling_filters(settings)] == [type(one) for one in theirs]


def _has_four_bits(name: str) -> bool:
    extra = importlib.util.find_spec("bitsandbytes")
    return extra is None or hasattr(importlib.import_module("bitsandbytes").nn.Linear4bit(4, 4), name)


def transformers_probes(folder: Path) -> dict[str, Probe]:
    """A check for each entry in the list of private names, in its order."""
    mixin = importlib.import_module("transformers.distributed.mixin")
    checks: list[Probe] = [
        lambda: (
            callable(mixin.initialize_distributed_mesh)
            and "= initialize_distributed_mesh(distributed_config)" in source(mixin.DistributedMixin)
        ),
        lambda: tiny_network().is_distributed_loading_by_transformers is False,
        lambda: _names_missing_tensors(folder),
        _trains_without_noise,
        lambda: _has_layer("DynamicLayer", None),
        lambda: _has_layer("DynamicSlidingWindowLayer", 8),
        _selects_rows,
        *(functools.partial(_has_setting, name) for name in transformers_compat._SCALED_LOGITS),
        _filters_alike,
        *(functools.partial(_has_four_bits, name) for name in ("quant_state", "compute_dtype", "support_avx512bf16_for_cpu")),
        lambda: importlib.util.find_spec("gguf") is None or "Q8_0" in transformers_compat.dequantised(),
    ]
    return dict(zip(transformers_compat.PRIVATE_NAMES, checks, strict=True))


def test_transformers_has_the_internals_that_the_models_use(tmp_path: Path) -> None:
    """After an upgrade of transformers, bitsandbytes or gguf this names each internal that moved, and the module to correct."""
    probes = transformers_probes(tmp_path)
    assert moved(f"transformers {transformers.__version__}", transformers_compat, probes) == []


def adapted(*names: str) -> Any:
    """A tiny network with an adapter of each name; the first has a change."""
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    network = peft.get_peft_model(tiny_network(), config, names[0])
    for name in names[1:]:
        network.add_adapter(name, config)
    with torch.no_grad():
        for layer in peft_compat.lora_layers(network):
            layer.lora_B[names[0]].weight.fill_(1.0)
    return network


def _has_layer_name(name: str) -> bool:
    return all(hasattr(layer, name) for layer in peft_compat.lora_layers(adapted(peft_compat.TRAINED)))


def _replaces_forward() -> bool:
    layer, x = peft_compat.lora_layers(adapted(peft_compat.TRAINED))[0], torch.ones(1, 3)
    layer.forward = lambda x: x
    return torch.equal(layer(x), x)


def _merges() -> bool:
    layer = peft_compat.lora_layers(adapted(peft_compat.TRAINED))[0]
    x = torch.ones(1, layer.in_features)
    with torch.no_grad():
        before, without = layer(x), layer.get_base_layer()(x)
        layer.merge()
        return torch.allclose(layer(x), before, atol=1e-5) and not torch.allclose(before, without, atol=1e-5)


def _sets_several() -> bool:
    network = adapted(peft_compat.DEFENSE, peft_compat.TRAINED)
    both = [peft_compat.DEFENSE, peft_compat.TRAINED]
    network.base_model.set_adapter(both)
    return all([*layer.active_adapters] == both for layer in peft_compat.lora_layers(network))


def _uncovers() -> bool:
    network, ids = adapted(peft_compat.TRAINED), torch.tensor([[1, 2]])
    with torch.no_grad():
        with network.disable_adapter():
            bare = network(ids).logits
        return not torch.allclose(network(ids).logits, bare, atol=1e-5)


def _folds_in() -> bool:
    network, ids = adapted(peft_compat.TRAINED), torch.tensor([[1, 2]])
    with torch.no_grad():
        on, folded = network(ids).logits, network.merge_and_unload()
        return torch.allclose(folded(ids).logits, on, atol=1e-5) and not peft_compat.lora_layers(folded)


def _loses_parts(folder: Path) -> bool:
    """True if an adapter without one of its parts is loaded, and ``merge_from`` names that part."""
    adapted(peft_compat.TRAINED).save_pretrained(folder)
    parts = safetensors_torch.load_file(folder / "adapter_model.safetensors")
    lost = next(iter(parts))
    safetensors_torch.save_file({name: of for name, of in parts.items() if name != lost}, folder / "adapter_model.safetensors")
    try:
        peft_compat.AdapterModel(tiny_network()).merge_from(folder)
    except CandidateError as error:
        return f"1 parts are in one of the two alone, the first is {lost}" in str(error)
    return False


def peft_probes(folder: Path) -> dict[str, Probe]:
    """A check for each entry in the list of private names, in its order."""
    checks: list[Probe] = [
        *(functools.partial(_has_layer_name, name) for name in peft_compat.LAYER_NAMES),
        _replaces_forward,
        _merges,
        lambda: any(peft_compat.is_trained(name) for name, _ in adapted(peft_compat.TRAINED).named_parameters()),
        _sets_several,
        _uncovers,
        lambda: not peft_compat.lora_layers(adapted(peft_compat.TRAINED).unload()),
        _folds_in,
        lambda: [*adapted(peft_compat.TRAINED).peft_config] == [peft_compat.TRAINED],
        lambda: type(adapted(peft_compat.TRAINED).get_base_model()) is transformers.LlamaForCausalLM,
        lambda: _loses_parts(folder),
    ]
    return dict(zip(peft_compat.PRIVATE_NAMES, checks, strict=True))


def test_peft_has_the_internals_that_the_adapters_use(tmp_path: Path) -> None:
    """After an upgrade of peft this names each internal that moved, and the module to correct."""
    assert moved(f"peft {peft.__version__}", peft_compat, peft_probes(tmp_path)) == []
