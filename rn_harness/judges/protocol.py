"""The protocol that every judge follows, and a judge that several processes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

from rn_harness.records.base import INFRASTRUCTURE, Judgement, Scored
from rn_harness.spec.errors import JudgeGoneError
from rn_harness.spec.prompts import Prompt
from rn_harness.store.ranks import ranks

ORGANISM = "organism"
FORMS = {
    f"{ORGANISM}:FOLDER": "the judge of an organism",
    "rules:FILE": "word rules, in a YAML file",
    "hf:ID_OR_FOLDER[@REVISION]": "an instruction model",
    "openai:MODEL@URL": "a model on a server",
    "classifier:ID_OR_FOLDER[@REVISION]#LABEL": "a classifier, and the label that counts as harm",
    "python:MODULE:NAME": "your own class or function",
    "PATH.yaml": "a profile of your own",
}
"""The forms of a judge's spec besides names, and what each is."""
KINDS = tuple(form.partition(":")[0] for form in FORMS if ":" in form)


class Judge(Protocol):
    """Scores completions.

    Attributes:
        name: its spec, without secrets.
        digest: sha256 over everything that decides its scores except the forbidden subject, as hex.
        exact: its scores are free of noise, so one look confirms a breach; only the organism's judge is.
        wordings: number of forms of its question; with 1, another look would be the same look.
    """

    name: str

    @property
    def digest(self) -> str: ...
    @property
    def exact(self) -> bool: ...
    @property
    def wordings(self) -> int: ...

    def about(self, forbidden: str) -> Self:
        """The same judge for this forbidden subject; itself if it does not use it."""
        ...

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises JudgeError, before any training and without loading weights, if it cannot judge answers to these prompts."""
        ...

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Judges B completions, in order: one text of each of B prompts; ``wording`` is from 0 to ``wordings - 1``."""
        ...


def ensure_judging(scored: Sequence[Scored], otherwise: str) -> None:
    """Raises JudgeGoneError, with this sentence, if all of a judge's answers failed for technical reasons.

    Going on would cost hours and prove nothing.
    """
    if scored and all(s.unscored in INFRASTRUCTURE for s in scored):
        raise JudgeGoneError(f"{otherwise}: {scored[0].unscored}")


def unshared(judge: Judge) -> Judge:
    """The judge below a ``SharedJudge``."""
    return judge.inner if isinstance(judge, SharedJudge) else judge


class SharedJudge:
    """A judge that the first process asks; all processes get its answers.

    Texts only go between processes of one machine.
    """

    def __init__(self, judge: Judge) -> None:
        self.inner = judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def about(self, forbidden: str) -> SharedJudge:
        return SharedJudge(self.inner.about(forbidden))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Called by all processes with the same rows."""
        return ranks().first(lambda: self.inner.score(prompts, completions, wording))
