"""The files of a local model that judges. They are hashed, and read without running any code in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rn_harness.models.identity import hash_files
from rn_harness.models.transformers_compat import check_whole, quiet_libraries
from rn_harness.spec.errors import CandidateError, JudgeError


def hash_judge(folder: Path, *without: str) -> dict[str, str]:
    """The sha256 of each of a judge's files by its name, except those in ``without`` and its card."""
    try:
        return hash_files(folder, follow_links=True, without=("README.md", *without))
    except CandidateError as error:
        raise JudgeError(str(error)) from None


def read_pretrained(
    auto: str, folder: Path, required: str, remedy: str = "export it again with save_pretrained", **settings: Any
) -> Any:
    """The network or tokenizer in a folder, by the class of transformers with the name ``auto``.

    Raises JudgeError if it cannot be read; ``required`` and ``remedy`` begin and end the message.
    """
    quiet_libraries()
    import transformers

    source = {"local_files_only": True, "trust_remote_code": False}
    try:
        if auto == "AutoTokenizer":
            return transformers.AutoTokenizer.from_pretrained(folder, **source, **settings)  # nosec B615 # a local folder
        weights = {"use_safetensors": True, "output_loading_info": True}
        network, loaded = getattr(transformers, auto).from_pretrained(folder, **source, **weights, **settings)
        check_whole(loaded)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise JudgeError(f"{required}, got folder={folder}: {type(error).__name__}: {error}; {remedy}") from None
    return network
