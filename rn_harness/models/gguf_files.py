"""GGUF files by their headers. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rn_harness.models.files import FileHeaders
from rn_harness.models.transformers_compat import dequantised
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.extras import require

_CONFIG_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}


def read_gguf(path: Path) -> FileHeaders:
    """Reads a GGUF file's header, and makes sure that transformers can turn each tensor into plain numbers.

    Raises:
        CandidateError: the package ``gguf`` is missing, the file is not GGUF, is cut off or one of several parts, or a tensor is
            quantised in a way that cannot be undone.
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
    config = {name: value(f"{architecture}.{key}") for name, key in _CONFIG_KEYS.items()}
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
