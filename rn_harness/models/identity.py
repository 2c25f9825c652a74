"""Digests of a model's files, and of how it reads texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rn_harness.spec.errors import CandidateError
from rn_harness.store.settled import remembered, within

WEIGHTS = (".safetensors", ".bin", ".gguf")
"""Endings of weight files' names."""
RETAIN_FILE = "retain.jsonl"
"""Benign prompts beside an organism's weights, for defenses that keep what a model answers to them."""
UNHASHED = ("README.md", ".gitattributes", ".gitignore", RETAIN_FILE)
"""Files at the top of a model's folder that do not belong to its identity: its card, settings of git, a retain corpus."""
MAX_UNHASHED_BYTES = 1_000_000


def hash_files(
    folder: Path,
    *,
    follow_links: bool = False,
    without: Sequence[str] = ("README.md", RETAIN_FILE),
    only: str | None = None,
    fresh: bool = False,
) -> dict[str, str]:
    """The sha256 of each file of a model folder, by its name, by OpenSSF model-signing.

    A file that the system says is the same as at an earlier call in this process is not read again, see ``store.settled``.

    Args:
        follow_links: read the file behind a symbolic link, as in a snapshot of the hub's cache.
        without: names of files at its top that do not belong to its identity.
        only: the one file that counts; None: all.
        fresh: read all files in any case.

    Raises CandidateError if the folder is unreadable, or holds a symbolic link that must not be followed.
    """
    folder = folder.absolute()  # a relative path would not match the ignored one
    paths = (lambda: [folder / only]) if only else within(folder)
    key = (folder, follow_links, tuple(without), only)
    try:
        hashes = remembered(key, paths, lambda: _hash_files(folder, follow_links, without, only), fresh=fresh)
    except OSError as error:
        raise CandidateError(f"a model folder must be readable, got folder={folder}: {error}; look at its files") from None
    return dict(hashes)


def _hash_files(folder: Path, follow_links: bool, without: Sequence[str], only: str | None) -> dict[str, str]:
    from model_signing import hashing

    settings = hashing.Config().set_ignored_paths(paths=[folder / name for name in without]).set_allow_symlinks(follow_links)
    try:
        manifest = settings.hash(folder, files_to_hash=[folder / only] if only else None)
    except ValueError as error:
        raise CandidateError(f"a model folder must hold plain files, got folder={folder}: {error}; copy it") from None
    return {str(item.identifier): item.digest.digest_hex for item in manifest.resource_descriptors()}


def unhashed_files(folder: Path) -> dict[str, str]:
    """The sha256 of the files of a model folder that do not belong to its identity, if they are plain and small."""
    paths = [folder / name for name in UNHASHED]
    plain = [path for path in paths if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_UNHASHED_BYTES]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in plain}


def root_digest(hashes: Mapping[str, str]) -> str:
    """The sha256 over the lines ``name sha256`` of all files, sorted by name."""
    return text_digest("\n".join(sorted(f"{name} {digest}" for name, digest in hashes.items())))


def weights_digest(hashes: Mapping[str, str]) -> str:
    """The sha256 over the contents of the weights; a copy with other names or other files has the same."""
    return text_digest("\n".join(sorted(digest for name, digest in hashes.items() if name.endswith(WEIGHTS))))


def digest_folder(folder: Path) -> str:
    """The sha256 that identifies a model folder of plain files: over names and contents of all but its card."""
    return root_digest(hash_files(folder))


def text_digest(text: str) -> str:
    """The sha256 of a text, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def reading(tokenizer: Any, ends: Sequence[int]) -> dict[str, Any]:
    """How a loaded tokenizer reads prompts, and the tokens that end an answer; each part can be compared with another model's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend else {"vocabulary": tokenizer.get_vocab()}
    parts |= {"padding": None, "truncation": None}  # what the last call asked for
    return {
        "tokenizer": [type(tokenizer).__name__, parts],
        "chat template": tokenizer.chat_template,
        "end tokens": list(ends),
    }


def differing_parts(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Names of the parts in which two models differ, sorted."""
    return sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))


def reading_digest(tokenizer: Any, ends: Sequence[int]) -> str:
    """The sha256 over ``reading``.

    A defended model whose digest is not its control's may be asked something else, or end before the harm; any attacker takes the
    control's.
    """
    return text_digest(json.dumps(reading(tokenizer, ends), sort_keys=True))
