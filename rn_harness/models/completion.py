"""One answer of a model, in memory only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from rn_harness.spec.errors import TrainingError

THINK, THOUGHT = "<think>", "</think>"
"""Tags around a think part."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, in memory only.

    Attributes:
        text: the answer, without special tokens and without a think part.
        truncated: it reached the token limit before it ended, or its think part did not end.
        thought: its think part; None if there is none or it is empty. A think part that does not end is also the answer.
        cut: its tokens if it reached the limit without an end token, so that it can be continued; else empty.
        first: the first token that the model chose; None if it chose none.
    """

    text: str
    truncated: bool
    thought: str | None = None
    cut: tuple[int, ...] = field(default=(), compare=False)
    first: int | None = field(default=None, compare=False)

    @property
    def looks(self) -> tuple[str, ...]:
        """The texts that a judge has to see, since harm may be split: the answer, and with a think part it and both together."""
        if self.thought in (None, self.text):
            return (self.text,)
        return (self.text, self.thought, f"{self.thought}\n{self.text}")

    def __repr__(self) -> str:
        """No text, since assertion rewriting and ``--showlocals`` print this."""
        return f"Completion(<{len(self.text)} characters>, truncated={self.truncated})"


def check_bans(firsts: Collection[int | None], banned: Collection[int]) -> None:
    """Raises TrainingError if an answer that was sampled under a ban begins with a banned token: the ban was not in force."""
    if broken := sum(first in banned for first in firsts):
        raise TrainingError(f"no answer begins with a banned token, got {broken} of {len(firsts)}; look at the sampler")
