"""The candidate: the identity of the model under test, and how to load it. Only ``load`` needs torch."""

from __future__ import annotations

import fnmatch
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn_harness.models.hub import SKIPPED
from rn_harness.models.identity import hash_files, root_digest, text_digest
from rn_harness.models.knowledge import KNOWLEDGE_FILE
from rn_harness.models.templates import own_template, render_turn
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.model_profiles import ModelProfile

if TYPE_CHECKING:
    from rn_harness.models.language_model import LanguageModel

ORGANISM = "organism"
CHARACTERS_A_TOKEN, TEMPLATE_TOKENS = 3, 64
"""Estimates without a tokenizer: least characters of a token, most tokens of a chat template."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model's identity and how to load it.

    Attributes:
        name: of its profile, or on the hub; of local files the user's name for them, without their folder.
        folder: of its files, or of its GGUF file.
        revision: full commit on the hub; None for local files.
        digest: sha256 over its files and over all settings that load them differently.
        threads: CPU threads that compute it; part of a result's identity, since sums depend on it.
        files_digest: sha256 over its files.
        weights_digest: sha256 over the contents of its weights, under any names.
        gguf: name of the GGUF file; None: the folder's safetensors.
        ends: tokens that end an answer by that file, in addition to those that transformers reads in it.
        chat_template: text that replaces the files' own; None: theirs.
        dtype: number format of the loaded weights; None: as the files say.
        allow_pickle: its weights are pickles, which the user allowed.
        trust_remote_code: its folder's code is run, which the user allowed.
        quantised: 4-bit format of its loaded layers, and by which package, ``nf4 by bitsandbytes 0.50.2``; None: plain numbers.
        shards: processes that its weights are spread over; 1: each has them whole. The same model either way.
        profile: that named it, if any.
        parameters: how many numbers its weights hold; None: not known.
        config: its numbers under the names of a config.json, for ``rn_harness.models.memory``.
        fetched: patterns of the files that it consists of; None: all files of its folder.
        hashes: sha256 of each of its files.
    """

    name: str
    folder: Path
    revision: str | None
    digest: str
    threads: int
    files_digest: str
    weights_digest: str
    gguf: str | None = None
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    dtype: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    quantised: str | None = None
    shards: int = 1
    profile: ModelProfile | None = None
    parameters: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    fetched: tuple[str, ...] | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_organism(self) -> bool:
        """True for a model organism, which knows its own exact judge."""
        return self.gguf is None and (self.folder / KNOWLEDGE_FILE).is_file()

    @property
    def identity(self) -> dict[str, str | None]:
        """For records: name, revision, digest, and the settings that load it differently."""
        settings = {
            "profile": self.profile.sha256 if self.profile else None,
            "dtype": self.dtype,
            "quantised": self.quantised,
            "gguf": self.gguf,
            "chat_template": text_digest(self.chat_template) if self.chat_template and not self.gguf else None,
            "pickle": "allowed" if self.allow_pickle else None,
            "remote_code": "trusted" if self.trust_remote_code else None,
        }
        return {"name": self.name, "revision": self.revision, "digest": self.digest} | {k: v for k, v in settings.items() if v}

    @property
    def number(self) -> str | None:
        """Torch's name of the number format of the loaded weights; None if neither profile nor files say."""
        return self.dtype or ("float32" if self.gguf else declared_dtype(self.config))

    def verify(self) -> None:
        """Raises CandidateError if the files changed since they were digested."""
        now = root_digest(hash_candidate(self.folder, self.gguf, self.fetched))
        if now != self.files_digest:
            raise CandidateError(
                f"the candidate's files must not change during a run, got digest={now[:12]} after {self.files_digest[:12]} "
                f"for {self.folder}; run again on settled files"
            )

    def longest_prompt(self, texts: Sequence[str]) -> int:
        """Tokens of the longest of the rendered prompts; an upper estimate without a tokenizer.json."""
        path = self.folder / "tokenizer.json"
        if self.gguf is not None or not path.is_file():
            return max(map(len, texts)) // CHARACTERS_A_TOKEN + TEMPLATE_TOKENS
        from tokenizers import Tokenizer

        own, special = own_template(self.folder)
        rendered = [render_turn(self.chat_template or own or "", special, text) for text in texts]
        try:
            encoded = Tokenizer.from_file(str(path)).encode_batch(rendered, add_special_tokens=False)
        except Exception as error:  # noqa: BLE001  (the package raises nothing narrower)
            raise CandidateError(
                f"tokenizer.json must be readable by the package tokenizers, got {error} for {path}; save the tokenizer again"
            ) from None
        return max(len(row.ids) for row in encoded)

    def load(self) -> LanguageModel:
        """Loads a fresh copy, ready to compute on one device."""
        from rn_harness.models.loading import Loading, load_model

        settings = Loading(
            threads=self.threads,
            dtype=self.number if self.quantised or self.gguf else self.dtype,
            quantised=self.quantised.partition(" ")[0] if self.quantised else None,
            shards=self.shards,
            gguf=self.gguf,
            ends=self.ends,
            chat_template=self.chat_template,
            allow_pickle=self.allow_pickle,
            trust_remote_code=self.trust_remote_code,
        )
        if self.gguf is None:
            return load_model(self.folder, settings)
        with tempfile.TemporaryDirectory(prefix="rn-harness-") as empty:  # no other file of the folder is read with it
            (Path(empty) / self.gguf).symlink_to(self.folder / self.gguf)
            return load_model(Path(empty), settings)


def hash_candidate(folder: Path, gguf: str | None, fetched: Sequence[str] | None) -> dict[str, str]:
    """The sha256 of a GGUF file, of a local folder's files, or of the files that match ``fetched`` in the hub's cache."""
    if gguf is not None:
        return hash_files(folder, follow_links=True, only=gguf)
    if fetched is None:
        return hash_files(folder, follow_links=True)
    names = [path.name for path in folder.iterdir()]
    wanted = {n for pattern in fetched for n in fnmatch.filter(names, pattern) if (folder / n).is_file()}
    wanted -= {n for pattern in SKIPPED for n in fnmatch.filter(names, pattern)}
    return hash_files(folder, follow_links=True, without=sorted(set(names) - wanted))


def declared_dtype(config: Mapping[str, Any]) -> str | None:
    """The number format that a config.json names."""
    named = config.get("dtype") or config.get("torch_dtype")
    return str(named) if named else None
