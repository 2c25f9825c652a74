"""A model's files by their headers: which weights there are, and whether they are whole and can be read.

Nothing is loaded, and torch is not needed. A damaged file is found here, before anything is trained.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # to explain it
from typing import Any

from rn_harness.models.transformers_compat import dequantised
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.extras import require

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
NAMING = ("transformers_weights", "attribute_map")
"""Keys of config.json by which transformers reads another weights file than the usual one, or another key in place of it."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_GGUF_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}


@dataclass(frozen=True, slots=True)
class FileHeaders:
    """A model's files by their headers.

    Attributes:
        config: its numbers under the names of a config.json.
        parameters: how many numbers its weights hold; None: not known.
        template: its chat template; None: it has none.
        special: special tokens that the template may name.
        others: its further chat templates, by name.
        pickled: its weights are pickles, whose headers cannot be read without running them.
        ends: tokens that end a turn or a message, in addition to the tokenizer's one end token.
    """

    config: dict[str, Any]
    parameters: int | None
    template: str | None
    special: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    pickled: bool = False
    ends: tuple[int, ...] = ()


def read_config(folder: Path) -> dict[str, Any]:
    """The model's configuration; raises CandidateError unless there is one of a causal language model."""
    config = read_settings_file(folder)
    named = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(named, list) or not any(str(n).endswith(("ForCausalLM", "LMHeadModel")) for n in named):
        raise CandidateError(
            f"config.json must name the architecture of a causal language model (…ForCausalLM), got architectures={named!r} for "
            f"{folder / 'config.json'}; an encoder, a reward model or a vision model is no candidate: name another"
        )
    return dict(config)


def read_weights(folder: Path, *, allow_pickle: bool = False, ignored: Sequence[str] = ()) -> tuple[int | None, bool]:
    """Finds a folder's weights, and checks each file's header and length.

    ``ignored`` files, by patterns, do not count as weights. Returns the number of parameters, None if it is not known, and true
    for pickles. Raises CandidateError if there are no weights or two models, a shard is missing or cut off, or weights are
    pickles and these are not allowed.
    """
    one, index = folder / SAFETENSORS, folder / INDEX
    shard_of = read_index(index, ".safetensors")
    files = sorted({folder / name for name in shard_of.values()}) or ([one] if one.is_file() else [])
    if undigested := [path.name for path in files if any(Path(path.name).match(pattern) for pattern in ignored)]:
        raise CandidateError(f"an index must name the shards that were fetched, got {undigested[0]} in {folder}; fetch it again")
    if one.is_file() and files != [one]:
        raise _two_models(folder, one.name, index.name)
    others = sorted(p for p in folder.glob("*.safetensors") if p not in files) + sorted(folder.glob("*.gguf"))
    others = [p for p in others if not any(p.match(pattern) for pattern in ignored)]
    if files and others:
        raise _two_models(folder, index.name if shard_of else one.name, others[0].name)
    if len(others) > 1:
        raise _two_models(folder, others[0].name, others[1].name)
    if others:
        remedy = f"pass the file itself: --model {others[0]}" if others[0].suffix == ".gguf" else f"rename it to {SAFETENSORS}"
        raise CandidateError(f"a model folder must hold {SAFETENSORS} or {INDEX}, got {others[0].name} in {folder}; {remedy}")
    if not files:
        _check_pickles(folder, allow_pickle)
        return None, True
    shapes = {path.name: tensor_shapes(path) for path in files}
    for tensor, shard in shard_of.items():
        if tensor not in shapes[shard]:  # transformers would draw it by chance
            raise CandidateError(
                f"a shard must hold the tensors that its index names, got no {tensor} in {folder / shard}; "
                "fetch or copy the model again"
            )
    return sum(math.prod(shape) for tensors in shapes.values() for shape in tensors.values()), False


def _no_model(folder: Path) -> CandidateError:
    return CandidateError(
        f"a model folder must hold config.json and {SAFETENSORS}, got folder={folder}; export it with save_pretrained"
    )


def _two_models(folder: Path, one: str, other: str) -> CandidateError:
    return CandidateError(f"a folder must hold one model, got {one} and {other} in {folder}; move one of them to another folder")


def read_settings_file(folder: Path) -> Any:
    """What config.json says; raises CandidateError unless it is JSON by which transformers reads the usual weights file."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _no_model(folder) from None
    except (OSError, ValueError) as error:
        raise CandidateError(
            f"config.json must be readable JSON, got {type(error).__name__} for {path}; export it again"
        ) from None
    if named := _naming(config):
        raise CandidateError(
            f"config.json must not name weights files or other names for its keys, got {named} in {folder}; remove the key, and "
            f"call the file {SAFETENSORS}"
        )
    return config


def _naming(config: object) -> str | None:
    """The first key at any depth that is in ``NAMING``."""
    if isinstance(config, dict):
        return next((key for key in NAMING if key in config), None) or _naming(list(config.values()))
    return next(filter(None, map(_naming, config)), None) if isinstance(config, list) else None


def read_index(index: Path, ending: str) -> dict[str, str]:
    """The file of each tensor by an index, all of which exist and end so; empty without an index.

    Other files of the folder, such as its card, have no digest.
    """
    if not index.is_file():
        return {}
    try:
        shard_of = {name: str(shard) for name, shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CandidateError(
            f"the index of a sharded model must have a weight_map, got {type(error).__name__} for {index}; export the model again"
        ) from None
    named = sorted(set(shard_of.values()))
    if not named or any(Path(name).name != name or not name.endswith(ending) for name in named):
        raise CandidateError(
            f"an index must name shards in its own folder, as *{ending}, got {named} in {index}; export the model again"
        )
    for name in named:
        if not (index.parent / name).is_file():
            raise CandidateError(
                f"a model must hold all shards that its index names, got no {name} in {index.parent}; fetch or copy it again"
            )
    return shard_of


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, by its name; raises CandidateError unless the file is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise CandidateError(
            f"a weights file must be whole, got {path.name} of {path.stat().st_size} bytes in {path.parent}: {error}; "
            "fetch or copy it again"
        ) from None


# --- Pickles -----------------------------------------------------------------------------------------------------------------


def _check_pickles(folder: Path, allow_pickle: bool) -> None:
    found = sorted(path for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin")
    if not found:
        raise _no_model(folder)
    if not allow_pickle:
        raise pickle_error(found[0], "model")
    one, index = folder / PICKLE, folder / PICKLE_INDEX
    files = sorted({folder / name for name in read_index(index, ".bin").values()}) or [one]
    if one.is_file() and files != [one]:
        raise _two_models(folder, PICKLE, index.name)
    for path in files:
        if not path.is_file():
            raise CandidateError(
                f"pickled weights must be {PICKLE} or {PICKLE_INDEX}, got {found[0].name} in {folder}; rename it"
            )
        check_archive(path)


def pickle_error(path: Path, kind: str) -> CandidateError:
    """The error for a pickle that the user did not allow; ``kind``: ``model`` or ``adapter``."""
    return CandidateError(
        f"weights must be safetensors, got {path.name} in {path.parent}, a pickle, which can run code when it is read; save "
        f"the {kind} with save_pretrained(safe_serialization=True), or pass --rn-allow-pickle (never releasable)"
    )


def check_archive(path: Path) -> None:
    """Raises CandidateError unless a pickle is an archive as torch writes it."""
    if not zipfile.is_zipfile(path):
        raise CandidateError(
            f"a weights file must be whole, got {path.name} of {path.stat().st_size} bytes in {path.parent}, which is no archive "
            "as torch writes it; fetch or copy it again"
        )


def more_than_numbers(folder: Path, error: UnpicklingError) -> CandidateError:
    """The error for a pickle of more than numbers, without torch's advice to run it all the same."""
    found = re.search(r"(?:GLOBAL|type) (\S+)", str(error))
    return CandidateError(
        f"pickled weights must hold tensors alone, got {found[1] if found else 'something else'} in a pickle in {folder}, and "
        "nothing of it was run; save the weights as safetensors where they come from"
    )


# --- GGUF --------------------------------------------------------------------------------------------------------------------


def read_gguf(path: Path) -> FileHeaders:
    """Reads a GGUF file's header, and makes sure that transformers can turn each tensor into plain numbers.

    Raises CandidateError if the package ``gguf`` is missing, the file is not GGUF, is cut off or one of several parts, or a
    tensor is quantised in a way that cannot be undone.
    """
    require("gguf", f"the GGUF file {path}")
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, LookupError, OverflowError) as error:
        if "GGMLQuantizationType" in str(error):
            number = re.search(r"\d+(?=\D* is not)", str(error))
            raise _unknown_quantisation(path, f"number {number[0] if number else '?'}") from None
        raise CandidateError(
            f"a GGUF file must be whole, got {path.name} of {path.stat().st_size} bytes: {error}; fetch or copy it again"
        ) from None
    if unknown := {tensor.tensor_type.name for tensor in reader.tensors} - dequantised():
        raise _unknown_quantisation(path, min(unknown))

    def value(key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()

    architecture = str(value("general.architecture"))
    if int(value("split.count") or 1) > 1:
        raise CandidateError(f"a GGUF model must be one file, got {path.name} of {value('split.count')}; merge with gguf-split")
    vocabulary = value("tokenizer.ggml.tokens")
    config = {name: value(f"{architecture}.{key}") for name, key in _GGUF_KEYS.items()}
    config |= {
        "vocab_size": len(vocabulary) if vocabulary else None,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }
    ends = (value(key) for key in (gguf.Keys.Tokenizer.EOT_ID, gguf.Keys.Tokenizer.EOM_ID))
    return FileHeaders(
        config=config,
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        template=value("tokenizer.chat_template"),
        ends=tuple(int(end) for end in ends if end is not None),
    )


def _unknown_quantisation(path: Path, kind: str) -> CandidateError:
    return CandidateError(
        f"a GGUF file's quantisation must be known, got quantisation={kind} in {path.name}; convert it to one of: "
        f"{', '.join(sorted(dequantised()))}"
    )
