"""A model's files: which weights a folder holds, whether they are whole, and whether they can be read.

No torch: headers alone are read. Whatever is wrong with a file is found here, before anything is loaded or trained.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn_harness.spec.errors import CandidateError
from rn_harness.spec.extras import require

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_LAYER = re.compile(r"(.*?\.\d+)\.")
_LORA = re.compile(r"base_model\.model\.(?P<on>.+)\.lora_(?P<side>[AB])\.weight")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a model, by their headers.

    Attributes:
        files: that hold them, sorted by name.
        parameters: how many numbers; None: not known.
        size: bytes on disk.
        pickled: they are pickles, whose headers cannot be read without running them.
    """

    files: tuple[Path, ...]
    parameters: int | None
    size: int
    pickled: bool = False


def read_config(folder: Path) -> dict[str, Any]:
    """The model's configuration.

    Args:
        folder: of the model.

    Raises:
        CandidateError: there is none, or it is not that of a causal language model.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CandidateError(
            f"a model folder must hold config.json and {SAFETENSORS}, got folder={folder}; export it with save_pretrained"
        ) from None
    except (OSError, ValueError) as error:
        raise CandidateError(
            f"config.json must be readable JSON, got {type(error).__name__} for {path}; export it again"
        ) from None
    named = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(named, list) or not any(str(n).endswith(("ForCausalLM", "LMHeadModel")) for n in named):
        raise CandidateError(
            f"config.json must name the architecture of a causal language model (…ForCausalLM), got architectures={named!r} for "
            f"{path}; an encoder, a reward model or a vision model is no candidate: name another"
        )
    return dict(config)


def read_weights(folder: Path, *, allow_pickle: bool = False, ignored: Sequence[str] = ()) -> Weights:
    """Finds a folder's weights and looks at each file's header and length.

    Args:
        folder: of the model.
        allow_pickle: whether pickles do where there are no safetensors.
        ignored: patterns of files that do not count as weights.

    Raises:
        CandidateError: there are none, there are two models, a shard is missing or cut off, or they are pickles.
    """
    one, index = folder / SAFETENSORS, folder / INDEX
    shards = _shards(index) if index.is_file() else []
    if one.is_file() and shards and shards != [one]:
        raise _two_models(folder, one.name, index.name)
    files = shards or ([one] if one.is_file() else [])
    others = sorted(p for p in folder.glob("*.safetensors") if p not in files) + sorted(folder.glob("*.gguf"))
    others = [p for p in others if not any(p.match(pattern) for pattern in ignored)]
    if files and others:
        raise _two_models(folder, index.name if shards else one.name, others[0].name)
    if len(others) > 1 and not files:
        raise _two_models(folder, others[0].name, others[1].name)
    if files:
        shapes = {path.name: _shapes(path) for path in files}
        if shards:
            _check_map(index, shapes)
        numbers = sum(math.prod(of) for held in shapes.values() for of in held.values())
        return Weights(tuple(files), numbers, sum(p.stat().st_size for p in files))
    if others:
        remedy = f"pass the file itself: --model {others[0]}" if others[0].suffix == ".gguf" else f"rename it to {SAFETENSORS}"
        raise CandidateError(f"a model folder must hold {SAFETENSORS} or {INDEX}, got {others[0].name} in {folder}; {remedy}")
    return _pickles(folder, allow_pickle)


def _two_models(folder: Path, one: str, other: str) -> CandidateError:
    return CandidateError(f"a folder must hold one model, got {one} and {other} in {folder}; move one of them to another folder")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of which exist."""
    try:
        named = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CandidateError(
            f"the index of a sharded model must have a weight_map, got {type(error).__name__} for {index}; export the model again"
        ) from None
    if not named or any(Path(name).name != name for name in named):
        raise CandidateError(f"an index must name shards in its own folder, got {named} in {index}; export the model again")
    for name in named:
        if not (index.parent / name).is_file():
            raise CandidateError(
                f"a model must hold all shards that its index names, got no {name} in {index.parent}; fetch or copy it again"
            )
    return [index.parent / name for name in named]


def _check_map(index: Path, held: Mapping[str, Container[str]]) -> None:
    """Each tensor is in the shard that the index names: transformers would draw a missing one by chance."""
    for tensor, shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        if tensor not in held[shard]:
            raise CandidateError(
                f"a shard must hold the tensors that its index names, got no {tensor} in {index.parent / shard}; "
                "fetch or copy the model again"
            )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each of a safetensors file's tensors, by its name; the file's length has to fit its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise CandidateError(
            f"a weights file must be whole, got {path.name} of {path.stat().st_size} bytes in {path.parent}: {error}; "
            "fetch or copy it again"
        ) from None


def misfit(adapter: Path, folder: Path) -> str | None:
    """What of an adapter has no place in a model, by the headers of both; None where nothing shows, or where there are none.

    Names are compared where the model's files call its layers as the adapter does; what they call otherwise is seen when the
    adapter is put on.

    Args:
        adapter: file of a LoRA adapter.
        folder: of the model.

    Raises:
        CandidateError: a file of either is cut off.
    """
    held = {name: of for path in folder.glob("*.safetensors") for name, of in _shapes(path).items()}
    layers = {found[1] for name in held if (found := _LAYER.match(name))}
    parts = {name: (found, of) for name, of in _shapes(adapter).items() if (found := _LORA.fullmatch(name))}
    alike = any((layer := _LAYER.match(found["on"])) and layer[1] in layers for found, _ in parts.values())
    for name, (found, shape) in sorted(parts.items()):
        on = held.get(f"{found['on']}.weight")
        width = shape[1 if found["side"] == "A" else 0]
        if on is not None and width not in on:
            return f"{name} for {width} numbers, where the model has {' x '.join(map(str, on))}"
        if alike and (layer := _LAYER.match(found["on"])) and layer[1] not in layers:
            return f"{name}, where the model has no {layer[1]}"
    return None


def check_adapter_file(folder: Path, *, allow_pickle: bool) -> None:
    """Makes sure that a folder holds an adapter's weights, in safetensors unless pickles are allowed.

    Args:
        folder: of the adapter.
        allow_pickle: whether a pickle does where there are no safetensors.

    Raises:
        CandidateError: there are none, or they are a pickle that is not allowed or cut off.
    """
    path = folder / ADAPTER_PICKLE
    if (folder / ADAPTER).is_file():
        return
    if not path.is_file():
        raise CandidateError(f"an adapter must hold {ADAPTER}, got folder={folder}; save it again with save_pretrained")
    if not allow_pickle:
        raise _pickle(path, "adapter")
    _check_archive(path)


def _pickle(path: Path, what: str) -> CandidateError:
    return CandidateError(
        f"weights must be safetensors, got {path.name} in {path.parent}, a pickle, which can run code when it is read; save "
        f"the {what} with save_pretrained(safe_serialization=True), or pass --rn-allow-pickle (never releasable)"
    )


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise CandidateError(
            f"a weights file must be whole, got {path.name} of {path.stat().st_size} bytes in {path.parent}, which is no archive "
            "as torch writes it; fetch or copy it again"
        )


def _pickles(folder: Path, allow_pickle: bool) -> Weights:
    found = sorted(path for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin")
    if not found:
        raise CandidateError(
            f"a model folder must hold config.json and {SAFETENSORS}, got folder={folder}; export it with save_pretrained"
        )
    if not allow_pickle:
        raise _pickle(found[0], "model")
    index = folder / PICKLE_INDEX
    files = _shards(index) if index.is_file() else [folder / PICKLE]
    if index.is_file() and (folder / PICKLE).is_file() and files != [folder / PICKLE]:
        raise _two_models(folder, PICKLE, index.name)
    for path in files:
        if not path.is_file():
            raise CandidateError(
                f"pickled weights must be {PICKLE} or {PICKLE_INDEX}, got {found[0].name} in {folder}; rename it"
            )
        _check_archive(path)
    return Weights(tuple(files), None, sum(p.stat().st_size for p in files), pickled=True)


# --- GGUF --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What a GGUF file says of itself.

    Attributes:
        architecture: as llama.cpp calls it.
        chat_template: the file's; None: it has none.
        quantisations: names of the kinds of its tensors, sorted.
        parameters: how many numbers.
        config: the numbers that ``rn_harness.models.memory`` needs, under the names of a config.json.
        ends: ids of the tokens that end a turn or a message, beside its tokenizer's end token: it has one place for each.
    """

    architecture: str
    chat_template: str | None
    quantisations: tuple[str, ...]
    parameters: int
    config: dict[str, Any]
    ends: tuple[int, ...]


def read_gguf(path: Path) -> GGUFHeader:
    """Reads a GGUF file's header, and makes sure that transformers can turn each tensor into plain numbers.

    Args:
        path: of the file.

    Raises:
        CandidateError: the package ``gguf`` is missing, the file is none, is cut off or one of several parts, or a tensor is
            quantised in a way that cannot be undone.
    """
    require("gguf", f"the GGUF file {path}")
    import gguf
    from gguf import quants

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, LookupError, OverflowError) as error:
        if "GGMLQuantizationType" in str(error):
            number = re.search(r"\d+(?=\D* is not)", str(error))
            raise _unknown_quantisation(path, f"number {number[0] if number else '?'}", quants) from None
        raise CandidateError(
            f"a GGUF file must be whole, got {path.name} of {path.stat().st_size} bytes: {error}; fetch or copy it again"
        ) from None
    kinds = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    for kind in kinds:
        if kind not in _dequantised(quants):
            raise _unknown_quantisation(path, kind, quants)

    def told(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    architecture = str(told("general.architecture"))
    if int(told("split.count") or 1) > 1:
        raise CandidateError(f"a GGUF model must be one file, got {path.name} of {told('split.count')}; merge with gguf-split")
    vocabulary = told("tokenizer.ggml.tokens")
    config = {
        name: told(f"{architecture}.{key}")
        for name, key in (
            ("hidden_size", "embedding_length"),
            ("num_hidden_layers", "block_count"),
            ("intermediate_size", "feed_forward_length"),
            ("num_attention_heads", "attention.head_count"),
            ("num_key_value_heads", "attention.head_count_kv"),
            ("head_dim", "attention.key_length"),
        )
    }
    config |= {
        "vocab_size": len(vocabulary) if vocabulary else None,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }
    template = told("tokenizer.chat_template")
    parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    further = (told(key) for key in (gguf.Keys.Tokenizer.EOT_ID, gguf.Keys.Tokenizer.EOM_ID))
    ends = tuple(int(end) for end in further if end is not None)
    return GGUFHeader(architecture, template, tuple(kinds), parameters, config, ends)


def _dequantised(quants: Any) -> set[str]:
    """The quantisations that the package turns into plain numbers, by which transformers loads."""
    return {"F32", "F16", *(kind.name for kind in quants._type_traits)}  # noqa: SLF001  (there is no public list)


def _unknown_quantisation(path: Path, kind: str, quants: Any) -> CandidateError:
    return CandidateError(
        f"a GGUF file's quantisation must be known, got quantisation={kind} in {path.name}; convert it to one of: "
        f"{', '.join(sorted(_dequantised(quants)))}"
    )
