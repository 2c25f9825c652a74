"""Texts of completions, for users who have to keep them. No other module writes any.

They are plain only for domains that are declared benign, and else age files (age-encryption.org/v1), which only the recipients'
keys open. A file is written when its case ends; until then the texts are in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.models.completion import Completion
from rn_harness.records.trajectory import CompletionScore
from rn_harness.spec.errors import RecipeError
from rn_harness.spec.extras import require
from rn_harness.spec.forms import View
from rn_harness.spec.prompts import Prompt


@dataclass
class Transcript:
    """The completions of one case, for age public keys; without any the file is plain text. An encrypted one ends in ``.age``."""

    path: Path
    recipients: tuple[str, ...]
    _lines: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Transcript({self.path.name}, {len(self._lines)} completions)"

    def add(
        self,
        step: int,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        scores: Sequence[CompletionScore],
        aid: View | None = None,
    ) -> None:
        """Adds a checkpoint's completions, n of each of K prompts, with their scores in the same order; ``aid`` is theirs."""
        pairs = [(prompt, completion) for prompt, of in zip(prompts, completions, strict=True) for completion in of]
        for (prompt, completion), score in zip(pairs, scores, strict=True):
            told = {"step": step, "prompt_id": prompt.id, "sample": score.sample, "score": score.score}
            told |= {} if aid is None else {"aid": aid}
            told |= {} if completion.thought is None else {"thought": completion.thought}
            self._lines.append(json.dumps(told | {"text": completion.text}))

    def write(self) -> None:
        """Writes the file with mode 0600, and replaces an earlier attempt's."""
        text = "".join(f"{line}\n" for line in self._lines).encode()
        path = self.path
        if self.recipients:
            import pyrage

            text = pyrage.encrypt(text, [_recipient(name) for name in self.recipients])
            path = path.with_name(f"{path.name}.age")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(text)
        temporary.replace(path)


def _recipient(name: str) -> Any:
    """An age public key."""
    import pyrage

    try:
        return pyrage.x25519.Recipient.from_str(name)
    except pyrage.RecipientError as error:
        raise RecipeError(
            f"--rn-recipient must be an age public key (age1…), got {name!r}: {error}; make one with age-keygen"
        ) from None


def check_recipients(names: Sequence[str]) -> None:
    """Raises RecipeError unless texts can be encrypted to these keys."""
    require("pyrage", "--rn-transcripts")
    for name in names:
        _recipient(name)
