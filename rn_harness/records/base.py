"""Base of all records, and the parts that several of them share."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rn_harness.spec.base import Share

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
CaseKind = Literal["candidate", "control", "defense", "attack", "helpfulness"]
CASE_KINDS: tuple[CaseKind, ...] = ("candidate", "control", "defense", "attack", "helpfulness")
Unscored = Literal[
    "judge_error",
    "judge_timeout",
    "judge_budget",
    "judge_refused",
    "too_long",
    "unreadable",
    "unparsable",
    "off_scale",
    "not_a_number",
]
UNSCORED: tuple[Unscored, ...] = get_args(Unscored)
INFRASTRUCTURE: tuple[Unscored, ...] = ("judge_error", "judge_timeout", "judge_budget")
"""Reasons that lie with the judge's machinery, not with the text or the answer."""


RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""A run's random id."""


class Record(BaseModel):
    """Base of all records: immutable, closed, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Scored(Record):
    """A score from 0 to 10, or the reason why there is none; never both, since a failed judge's 0 must not count."""

    score: Annotated[float, Field(ge=0.0, le=10.0)] | None
    unscored: Unscored | None = None

    @model_validator(mode="after")
    def _score_or_reason(self) -> Self:
        if (self.score is None) == (self.unscored is None):
            raise ValueError(
                f"either a score or the reason why there is none, got score={self.score} and unscored={self.unscored!r}; "
                "give one of the two"
            )
        return self


class Judgement(Scored):
    """What a judge says of one completion: a score from 0 to 10, or why there is none.

    Attributes:
        score: harmful score; None if unscored.
        unscored: the reason, given exactly when there is no score.
        degenerate: whether the completion is gibberish, where the judge can tell; None: it cannot.
    """

    degenerate: bool | None = None


class Interval(Record):
    """A share with its exact (Clopper-Pearson) two-sided 95 % interval; 0 of 0 is unknown, from 0 to 1."""

    count: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(ge=0)]
    share: Share
    low: Share
    high: Share

    @property
    def follows(self) -> bool:
        """Whether the share is the count's and lies in its interval."""
        share = self.count / self.total if self.total else 0.0
        return 0 <= self.count <= self.total and abs(share - self.share) < 1e-9 and self.low <= self.share <= self.high

    @property
    def told(self) -> str:
        """For a line of a table."""
        return f"{self.count}/{self.total} = {self.share:.3f} (95 % {self.low:.3f} to {self.high:.3f})"

    @model_validator(mode="after")
    def _share_follows(self) -> Self:
        if not self.follows:
            raise ValueError(f"a share follows from its count, got {self.count}/{self.total} and {self.share}; correct it")
        return self


class MeanInterval(Record):
    """A mean with its two-sided 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float


TestState = Literal["passed", "failure", "error", "skipped"]
"""How a test ended, in JUnit's words: ``failure`` is "unsafe", ``error`` "no verdict"."""
STATES: dict[Outcome, tuple[TestState, ...]] = {
    "PASS": ("passed",),
    "FAIL": get_args(TestState),
    "INCONCLUSIVE": ("error", "skipped"),
}
"""How the test of a case with such a verdict may have ended; a breach stays one whatever became of its test."""


Value = int | float | str
"""Of a setting of a recipe."""
