"""The candidate: the model under test, found, identified and loaded. Floor 2 (adapters).

Resolving and digesting need no torch; ``load`` does. Knows the package's ``fixtures/`` and local folders; hub ids are not
supported yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rn_harness.errors import CandidateError
from rn_harness.organism.knowledge import KNOWLEDGE_FILE

if TYPE_CHECKING:
    from rn_harness.model import LanguageModel

ORGANISM = "organism"
ADAPTER_CONFIG = "adapter_config.json"


def fixtures_folder() -> Path:
    """The shipped fixtures: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "fixtures"
    return inside if inside.is_dir() else package.parent / "fixtures"


def digest_folder(folder: Path, *, follow_links: bool = False, without: Sequence[str] = ("README.md",)) -> str:
    """The sha256 that identifies a model folder: over file names and contents, by OpenSSF model-signing.

    Args:
        folder: of the model.
        follow_links: whether a symbolic link stands for what it points to, as in a snapshot of the hub's cache.
        without: names of files at its top that do not belong to its identity: its card.

    Returns:
        64 hex digits: sha256 over the lines ``name sha256`` of all files, sorted by name.

    Raises:
        CandidateError: the folder is unreadable, or holds a symbolic link that is not to be followed.
    """
    from model_signing import hashing

    folder = folder.absolute()  # a relative path would not match the ignored one
    settings = hashing.Config().set_ignored_paths(paths=[folder / name for name in without]).set_allow_symlinks(follow_links)
    try:
        manifest = settings.hash(folder)
    except ValueError as error:
        raise CandidateError(f"a model folder must hold plain files, got folder={folder}: {error}; copy it") from None
    lines = sorted(f"{item.identifier} {item.digest.digest_hex}" for item in manifest.resource_descriptors())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest_weights(folder: Path) -> str:
    """The sha256 over the contents of a folder's weights alone: a copy under other names, or beside other files, has the same."""
    found = sorted(_sha256(path) for path in folder.glob("*.safetensors"))
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model's identity and the way to load it.

    Attributes:
        name: how the user called it.
        folder: where its files lie.
        revision: of the hub; None for local files.
        digest: sha256 over its files, before loading.
        threads: CPU threads that compute it; part of a result's identity, since sums depend on it.
    """

    name: str
    folder: Path
    revision: str | None
    digest: str
    threads: int

    @property
    def is_organism(self) -> bool:
        """Whether it is a model organism, which knows its own exact judge."""
        return (self.folder / KNOWLEDGE_FILE).is_file()

    def verify(self) -> None:
        """Checks that the files still are what was digested.

        Raises:
            CandidateError: they changed while the run used them.
        """
        now = digest_folder(self.folder)
        if now != self.digest:
            raise CandidateError(
                f"the candidate's files must not change during a run, got digest={now[:12]} after {self.digest[:12]} "
                f"for {self.folder}; run again on settled files"
            )

    def load(self) -> LanguageModel:
        """Loads a fresh copy, ready to compute on one device."""
        from rn_harness.model import LanguageModel

        return LanguageModel.load(self.folder, threads=self.threads)


def resolve_candidate(spec: str, base: Path) -> Candidate:
    """Finds the model that ``--model`` names.

    Args:
        spec: ``organism`` or a local folder.
        base: folder that relative paths start from.

    Raises:
        CandidateError: no such model, or a folder that holds none.
    """
    folder = fixtures_folder() / ORGANISM if spec == ORGANISM else (base / Path(spec).expanduser()).resolve()
    if not folder.is_dir():
        raise CandidateError(f"--model must be organism or a local model folder, got {spec!r}; give the folder's path")
    if (folder / ADAPTER_CONFIG).is_file():
        raise CandidateError(f"--model must be a whole model, got an adapter at {folder}; pass it with --rn-defense")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise CandidateError(
            f"a model folder must hold config.json and *.safetensors, got folder={folder}; export it with save_pretrained"
        )
    tokenizer = folder / "tokenizer_config.json"
    try:
        declared = json.loads(tokenizer.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CandidateError(
            f"a model folder must hold a readable tokenizer_config.json, got {type(error).__name__} for {tokenizer}; "
            "save the tokenizer with save_pretrained"
        ) from None
    if not (folder / "chat_template.jinja").is_file() and "chat_template" not in declared:
        raise CandidateError(f"a chat template is required, {folder} has none; save the tokenizer with its template")
    return Candidate(name=spec, folder=folder, revision=None, digest=digest_folder(folder), threads=1)
