"""Checks of an adapter's files, before anything is loaded. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rn_harness.models.candidate import Candidate
from rn_harness.models.files import check_archive, pickle_error, tensor_shapes
from rn_harness.spec.errors import CandidateError

ADAPTER, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
PLAIN_LORA = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True}
"""Configuration of an adapter that is two products for each layer, and no more."""
OF_ANY_LORA = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Other settings of a plain adapter; any setting that peft adds to these counts as more than plain LoRA."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".onnx")
"""Endings of files that some reader may load as weights."""
_LAYER = re.compile(r"(.*?\.\d+)\.")
_LORA = re.compile(r"base_model\.model\.(?P<on>.+)\.lora_(?P<side>[AB])\.weight")


def check_adapter(folder: Path, candidate: Candidate, *, allow_pickle: bool = False) -> None:
    """Makes sure that a folder's adapter was made for the candidate, if its files say for which model it was made.

    Raises:
        CandidateError: it names another model's digest, has parts that the candidate has no place for, cannot be read, is a
            pickle that is not allowed, or is more than plain LoRA for weights that are spread over processes.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base = str(config.get("base_model_name_or_path"))
    except (OSError, ValueError, AttributeError) as error:
        raise CandidateError(
            f"an adapter must hold a readable {ADAPTER_CONFIG}, got {type(error).__name__} for {path}; save it again"
        ) from None
    named = re.search(r"@sha256:([0-9a-f]{64})$", base)
    if named and named[1] != candidate.digest:
        raise CandidateError(
            f"an adapter must be made for the candidate, got one for sha256={named[1]} ({base.partition('@')[0]}) and the "
            f"candidate {candidate.name} with sha256={candidate.digest}; pass the adapter's own base as --model"
        )
    _check_weights(folder, candidate, allow_pickle=allow_pickle)
    if candidate.shards > 1:
        _check_plain(path, config)


def _check_weights(folder: Path, candidate: Candidate, *, allow_pickle: bool) -> None:
    """The folder holds one adapter's weights, in safetensors unless a pickle is allowed, and they fit the candidate."""
    weights, pickle = folder / ADAPTER, folder / ADAPTER_PICKLE
    if not weights.is_file():
        if not pickle.is_file():
            raise CandidateError(f"an adapter must hold {ADAPTER}, got folder={folder}; save it again with save_pretrained")
        if not allow_pickle:
            raise pickle_error(pickle, "adapter")
        check_archive(pickle)
    loaded = weights if weights.is_file() else pickle
    if others := [p for p in sorted(folder.rglob("*")) if p.suffix in WEIGHT_SUFFIXES and p != loaded]:
        raise CandidateError(
            f"an adapter's folder must hold no weights but those that are attacked, got {others[0].relative_to(folder)} next to "
            f"{loaded.name} in {folder}; move it away"
        )
    if not candidate.gguf and weights.is_file() and (found := _misfit(weights, candidate.folder)):
        raise CandidateError(
            f"an adapter must fit the candidate, got {found}, in {weights}; pass the base that it was trained on as --model"
        )


def _check_plain(path: Path, config: dict[str, Any]) -> None:
    """Two products for each layer are all that can be folded into weights that are spread over processes."""
    said = PLAIN_LORA | {key: value for key, value in config.items() if value and key not in OF_ANY_LORA}
    more = [f"{key}={value!r}" for key, value in sorted(said.items()) if value != PLAIN_LORA.get(key)]
    if more:
        raise CandidateError(
            "an adapter that is folded into weights which are spread over processes must be plain LoRA, got "
            f"{', '.join(more)} in {path}; leave out --rn-shard"
        )


def _misfit(adapter: Path, folder: Path) -> str | None:
    """The first part of an adapter without a place in a model, by the headers of both; None if there is none to be seen.

    Names are compared if the model's files name its layers as the adapter does. Other misfits are found when the adapter is
    loaded.
    """
    held = {name: shape for path in folder.glob("*.safetensors") for name, shape in tensor_shapes(path).items()}
    layers = {found[1] for name in held if (found := _LAYER.match(name))}
    parts = {name: (found, shape) for name, shape in tensor_shapes(adapter).items() if (found := _LORA.fullmatch(name))}
    alike = any((layer := _LAYER.match(found["on"])) and layer[1] in layers for found, _ in parts.values())
    for name, (found, shape) in sorted(parts.items()):
        on = held.get(f"{found['on']}.weight")
        width = shape[1 if found["side"] == "A" else 0]
        if on is not None and width not in on:
            return f"{name} for {width} numbers, where the model has {' x '.join(map(str, on))}"
        if alike and (layer := _LAYER.match(found["on"])) and layer[1] not in layers:
            return f"{name}, where the model has no {layer[1]}"
    return None
