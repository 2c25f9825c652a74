"""Loading of weights and tokenizer from a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # to catch it
from typing import Any

from rn_harness.models.files import more_than_numbers
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.templates import without_date
from rn_harness.models.transformers_compat import (
    check_spread,
    check_whole,
    four_bits,
    keep_gradients,
    known_deprecations,
    quiet_libraries,
    spread_over,
)
from rn_harness.spec.errors import CandidateError


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a model is loaded; the other settings are as in ``Candidate``.

    Attributes:
        dtype: torch's name of the number format; None: as the files say.
        quantised: 4-bit format of the layers' linear maps, ``nf4``, which then compute in ``dtype``; None: plain numbers.
        shards: processes that the weights are spread over (FSDP2), each of which loads the model; 1: each has them whole.
        ends: tokens that end an answer, in addition to those that the settings and the tokenizer name.
    """

    threads: int
    dtype: str | None = None
    quantised: str | None = None
    shards: int = 1
    gguf: str | None = None
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


def load_model(folder: Path, settings: Loading) -> LanguageModel:
    """Loads a model; no code of the folder is run unless the settings allow it.

    Raises CandidateError if the files cannot be read as a causal language model, or its tokenizer has no end token.
    """
    quiet_libraries()
    import torch

    torch.set_num_threads(settings.threads)
    # Each process of a run has its own card.
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    network, tokenizer = _read(folder, settings, device)
    if tokenizer.eos_token_id is None:
        raise CandidateError(f"a tokenizer must have an end token, got none in folder={folder}; set its eos_token")
    templates = settings.chat_template or tokenizer.chat_template
    tokenizer.chat_template = without_date(templates["default"] if isinstance(templates, dict) else templates)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= network.get_input_embeddings().num_embeddings:
        tokenizer.pad_token = tokenizer.eos_token
    _set_generation(network, tokenizer, settings.ends)
    keep_gradients(network)
    # transformers passes the last position as a slice, for which torch would copy the whole layer once for each row.
    network.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    if settings.shards == 1:
        model = LanguageModel(network.eval().to(device), tokenizer)
    else:
        check_spread(network)
        # Frozen before the first pass: weights that are trainable when torch first gathers them stay so.
        model = LanguageModel(network.eval().requires_grad_(requires_grad=False), tokenizer)
        model.engine = {"shards": settings.shards}
    model.templates = templates
    return model


def _read(folder: Path, settings: Loading, device: str) -> tuple[Any, Any]:
    """Network and tokenizer of a folder."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # A GGUF file that does not fit its header raises RuntimeError; a pickle of another shape TypeError or AttributeError.
    unfit = (*((RuntimeError,) if settings.gguf else ()), *((TypeError, AttributeError) if settings.allow_pickle else ()))
    try:
        source: dict[str, Any] = {
            "local_files_only": True,
            "trust_remote_code": settings.trust_remote_code,
            "gguf_file": settings.gguf,
        }
        # By default a GGUF file's weights count as packed, and no trainer takes such a model.
        weights: dict[str, Any] = (
            {"quantization_config": GgufConfig(dequantize=True)}
            if settings.gguf
            else {"use_safetensors": not settings.allow_pickle}
        )
        if settings.quantised:
            weights |= {"quantization_config": four_bits(settings.quantised, settings.dtype), "device_map": {"": device}}
        if settings.shards > 1:
            weights |= {"distributed_config": spread_over(settings.shards)}
        with known_deprecations():
            network, loaded = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a local folder
                folder, dtype=settings.dtype or "auto", output_loading_info=True, **weights, **source
            )
        check_whole(loaded)
        return network, AutoTokenizer.from_pretrained(folder, **source)  # nosec B615 # a local folder
    except UnpicklingError as error:
        raise more_than_numbers(folder, error) from None  # torch would advise to run the refused pickle
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, *unfit) as error:
        raise CandidateError(
            "the files must hold a causal language model that transformers reads, got "
            f"{(folder / (settings.gguf or '')).resolve()}: {type(error).__name__}: {error}; copy them again, or export them "
            "again with save_pretrained"
        ) from error


def _set_generation(network: Any, tokenizer: Any, ends: tuple[int, ...]) -> None:
    """Keeps only the special tokens of the model's generation settings.

    A shipped penalty or top-k would count wherever TRL or we set none.
    """
    from transformers import GenerationConfig

    named = network.generation_config.eos_token_id
    all_ends = sorted({*ends, *(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None})
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=all_ends, pad_token_id=tokenizer.pad_token_id
    )
