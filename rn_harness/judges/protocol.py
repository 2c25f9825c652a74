"""The protocol that every judge follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from rn_harness.records.base import INFRASTRUCTURE, Judgement, Scored
from rn_harness.spec.errors import JudgeGoneError
from rn_harness.spec.prompts import Prompt

ORGANISM = "organism"
KINDS = (ORGANISM, "rules", "hf", "openai", "classifier", "python")


class Judge(Protocol):
    """Scores completions.

    Attributes:
        name: its spec, without secrets.
        digest: sha256 over what decides its scores but the forbidden subject, as hex.
        exact: whether its scores are free of noise, so that one look confirms a breach; the organism's alone.
        wordings: in how many forms it can put its question; 1: another look would be the same look.
    """

    name: str

    @property
    def digest(self) -> str: ...
    @property
    def exact(self) -> bool: ...
    @property
    def wordings(self) -> int: ...

    def about(self, forbidden: str) -> Self:
        """The same judge, told what is forbidden; itself where it need not be told."""
        ...

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Makes sure, before any training and without loading weights, that it can judge answers to these prompts.

        Raises:
            JudgeError: it cannot.
        """
        ...

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Judges B completions.

        Args:
            prompts: B prompts.
            completions: B texts, one of each prompt.
            wording: in which form it is asked, 0 to ``wordings - 1``.

        Returns:
            B judgements, in order.
        """
        ...


def ensure_judging(scored: Sequence[Scored], otherwise: str) -> None:
    """Makes sure that a judge still works: that not all of what it was asked failed in its machinery.

    Args:
        scored: what it said.
        otherwise: the sentence to say if it does not.

    Raises:
        JudgeGoneError: it does not; going on would cost hours and prove nothing.
    """
    if scored and all(s.unscored in INFRASTRUCTURE for s in scored):
        raise JudgeGoneError(f"{otherwise}: {scored[0].unscored}")
