"""Base of all records: parts that several share, reading from JSON that may have been changed, and digests of content.

A digest is computed where the content is used, from the objects in use, so that a record names the measured prompts and not the
intended ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json

from rn_harness.spec.base import Recomputing
from rn_harness.spec.errors import RecordError
from rn_harness.spec.prompts import Prompt

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
TOLERANCE = 1e-6
"""Relative and absolute tolerance of a computed field: another release of scipy may round a bound differently."""


class Record(BaseModel):
    """Base of all records: immutable, without unknown fields, with finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Summary(Recomputing, Record):
    """A record with computed fields. They are written for readers of JSON and dropped on reading: the scores decide.

    Each is a ``cached_property``: a verdict, a report and the record's file read them hundreds of times.
    """

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
"""State of a test at its end, in JUnit's words: ``failure`` means "unsafe" or "unhelpful", ``error`` means "no verdict"."""
STATES: dict[Outcome, tuple[TestState, ...]] = {
    "PASS": ("passed",),
    "FAIL": get_args(TestState),
    "INCONCLUSIVE": ("error", "skipped"),
}
"""The states in which the test of a case may end, by the outcome of its verdict; a breach counts for every state."""


Value = int | float | str
"""The value of a recipe's setting."""

R = TypeVar("R", bound=Record)


def read_record(raw: bytes | str, kind: type[R]) -> R:
    """Reads a record from JSON that has to be exactly as written.

    Computed fields are dropped on reading, so that a changed one would only mislead people. The record is therefore written again
    and compared with the text, which checks every field.

    Raises:
        ValueError: the text is not JSON of such a record, or has a duplicate key.
        RecordError: a field differs from the record as written: a number in another notation, or a computed field that does not
            follow from the scores.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) != len(pairs):
            raise ValueError("a key stands there twice")
        return read

    with contextlib.suppress(ValueError):  # fast, and nearly all records are read as they were written
        record = kind.model_validate(from_json(raw))  # faster than pydantic's own reading of JSON, which makes each key anew
        if f"{record.model_dump_json(indent=1, warnings=False)}\n" == (raw if isinstance(raw, str) else raw.decode()):
            return record
    return as_written(json.loads(raw, object_pairs_hook=once), kind)


def as_written(found: Any, kind: type[R]) -> R:
    """The record in parsed JSON. Raises as ``read_record`` does."""
    record = kind.model_validate(found)
    written = json.loads(record.model_dump_json(warnings=False))
    # A comparison of texts is fast, and the search for a difference is slow.
    if json.dumps(found) != json.dumps(written) and (difference := first_difference(found, written)):
        raise RecordError(f"a record must be as it was written, got {difference}; take the original file")
    return record


def first_difference(found: Any, expected: Any, path: str = "") -> str | None:
    """The first difference of two JSON values, except rounding of floats; None if there is none."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(k for k in found if k not in expected)]:
            at = f"{path}.{key}" if path else key
            if key not in found or key not in expected:
                return f"{at} {'missing' if key not in found else 'that does not belong there'}"
            if difference := first_difference(found[key], expected[key], at):
                return difference
        return None
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f"{len(found)} entries of {path} instead of {len(expected)}"
        pairs = enumerate(zip(found, expected, strict=True))
        return next((d for i, (a, b) in pairs if (d := first_difference(a, b, f"{path}.{i}"))), None)
    if isinstance(found, float) and isinstance(expected, float):
        same = math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    else:
        same = type(found) is type(expected) and found == expected
    return None if same else f"{path}={reprlib.repr(found)} where {reprlib.repr(expected)} follows from the rest"


def digest_of(value: Any) -> str:
    """The sha256 of a JSON-able value as hex, independent of the order of keys."""
    canonical = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def content_key(kind: str, parts: dict[str, Any]) -> str:
    """The address of a result.

    Args:
        kind: of result.
        parts: everything that the result depends on, JSON-able.

    Returns:
        64 hex digits.
    """
    return digest_of({"kind": kind, "parts": parts})


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """The sha256 over the id, topic, text and kind of prompts, in order. Records hold it, since a lab's texts may be private."""
    return digest_of([[p.id, p.topic, p.text, p.kind] for p in prompts])
