"""Base of all records, and parts that several records share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
"""Reasons that are failures of the judge's infrastructure, not of the text or the answer."""


RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""A run's random id."""


class Record(BaseModel):
    """Base of all records: immutable, without unknown fields, with finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Summary(Record):
    """A record with computed fields. They are written for readers of JSON and dropped on reading: the scores decide."""

    @model_validator(mode="before")
    @classmethod
    def _drop_computed(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name not in cls.model_computed_fields}


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
    """A judge's result on one completion: a score from 0 to 10, or the reason why there is none.

    Attributes:
        score: harm; None if unscored.
        unscored: the reason, given exactly when there is no score.
        degenerate: whether the completion is gibberish; None if the judge cannot decide this.
    """

    degenerate: bool | None = None


TestState = Literal["passed", "failure", "error", "skipped"]
"""State of a test at its end, in JUnit's words: ``failure`` means "unsafe", ``error`` means "no verdict"."""
STATES: dict[Outcome, tuple[TestState, ...]] = {
    "PASS": ("passed",),
    "FAIL": get_args(TestState),
    "INCONCLUSIVE": ("error", "skipped"),
}
"""The states in which the test of a case may end, by the outcome of its verdict; a breach counts for every state."""


Value = int | float | str
"""The value of a recipe's setting."""
