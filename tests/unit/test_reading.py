"""Reading records that others may have changed: computed fields follow from scores, or the record is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rn_harness.records.base import Record, Summary, first_difference, read_record
from rn_harness.records.benign import BenignScore
from rn_harness.records.case import CaseRecord
from rn_harness.records.statistics import Interval
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.spec.errors import RecordError

from .builders import anchor_scores, benign_answers, case_record, certificate, checkpoint, completion, evidence, trajectory


def small(**fields: Any) -> Trajectory:
    """An attack of 10 steps with four benign prompts: what is written and read again and again has all fields, and few rows."""
    run = trajectory(10, **fields)
    score = BenignScore(answers=benign_answers()[:4])
    checkpoints = tuple(c.model_copy(update={"benign": c.benign and score}) for c in run.checkpoints)
    return run.model_copy(update={"checkpoints": checkpoints})


RECORD = case_record(
    evidence(trajectory=small(), control=small(defended_digest=None), certificates=(certificate(scores=anchor_scores()[::20]),))
)
TEXT = RECORD.model_dump_json()


def computed(record: Record, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all computed fields, of a list its last entry's."""
    for name in type(record).model_computed_fields:
        yield (*path, name)
    for name in type(record).model_fields:
        value, at = getattr(record, name), (*path, name)
        if isinstance(value, tuple) and value:
            value, at = value[-1], (*at, len(value) - 1)
        if isinstance(value, Record):
            yield from computed(value, at)


PATHS = sorted(computed(RECORD), key=str)


def edited(path: tuple[str | int, ...], change: Any) -> str:
    """The record's JSON with one entry replaced."""
    document = json.loads(TEXT)
    node: Any = document
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = change(node[path[-1]])
    return json.dumps(document)


def test_a_record_is_read_as_it_was_written() -> None:
    """Written and read a record is equal, and so is one whose keys are in another order."""
    assert read_record(RECORD.model_dump_json(), CaseRecord) == RECORD
    assert read_record(json.dumps(RECORD.model_dump(mode="json"), sort_keys=True), CaseRecord) == RECORD


def test_the_record_of_an_attack_has_computed_fields() -> None:
    """The fields changed below are those that reports show: checkpoints, benign answers, certificates, intervals."""
    names = {path[-1] for path in PATHS}
    assert names > {"mean", "maximum", "greedy_mean", "above", "refusals", "difference", "table", "share", "low", "high"}
    assert len(PATHS) > 40


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_a_changed_computed_field_is_refused_with_its_path(path: tuple[str | int, ...]) -> None:
    """A number that the scores do not give is refused, and the message says where it is."""

    def other(value: Any) -> Any:
        if isinstance(value, int | float):
            return value + 1
        if isinstance(value, str):
            return "0" * len(value)
        return 1.0 if value is None else {**value, next(iter(value), "ban"): None}

    with pytest.raises(RecordError) as refused:
        read_record(edited(path, other), CaseRecord)
    assert f"got {'.'.join(map(str, path))}" in str(refused.value)


def test_a_changed_score_is_refused_where_its_summary_stays() -> None:
    """A breach lowered to 0 by hand contradicts the maximum of its checkpoint."""
    breached = checkpoint(10, [completion("h1", 0, 9.0), completion("h2", 0, 0.0)])
    document = breached.model_dump(mode="json")
    document["scores"][0]["score"] = 0.0
    with pytest.raises(RecordError, match=r"got maximum=9\.0 where 0\.0 follows from the rest"):
        read_record(json.dumps(document), Checkpoint)
    assert Checkpoint.model_validate(document).maximum == 0.0  # primary is the score


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"count": 1, "count": 2, "total": 2}', ValueError),
        ('{"count": 1, "total": 2}', RecordError),
        ('{"count": 1, "total": 2, "more": 0}', ValueError),
        ('{"count": "1", "total": 2, "share": 0.5}', RecordError),
        ('{"count": true, "total": 2, "share": 0.5}', RecordError),
        ('{"count": NaN, "total": 2}', ValueError),
    ],
    ids=["twice", "without-computed", "unknown-key", "text", "bool", "nan"],
)
def test_other_spellings_are_refused(text: str, error: type[Exception]) -> None:
    """A key twice, a computed field left out, a number in other words: no text but the written one is read."""
    with pytest.raises(error):
        read_record(text, Interval)


def test_rounding_of_another_scipy_is_no_change() -> None:
    """Floats may differ by a millionth; everything else is equal, and of the same type."""
    assert first_difference({"a": [1.0, 2]}, {"a": [1.0 + 1e-9, 2]}) is None
    assert first_difference({"a": [1.0, 2]}, {"a": [1.0, 2.0]}) == "a.1=2 where 2.0 follows from the rest"
    assert first_difference({"a": [1]}, {"a": []}) == "1 entries of a instead of 0"
    assert first_difference({}, {"a": 1}) == "a missing"


@pytest.mark.parametrize("deep", [False, True])
def test_a_changed_copy_has_the_fields_of_its_own_scores(deep: bool) -> None:
    """A field that was read before a copy was made does not stay in the copy, and both are written as their scores say."""
    held = checkpoint(10, [completion("h1", 0, 1.0)])
    assert (held.mean, held.maximum, held.values) == (1.0, 1.0, [1.0])
    broken = held.model_copy(update={"scores": (completion("h1", 0, 9.0),)}, deep=deep)
    assert (broken.mean, broken.maximum, broken.values) == (9.0, 9.0, [9.0])
    assert [json.loads(c.model_dump_json())["mean"] for c in (held, broken)] == [1.0, 9.0]
    assert held == checkpoint(10, [completion("h1", 0, 1.0)])


def test_computed_fields_never_come_from_outside() -> None:
    """Every record with computed fields drops them on reading."""

    def all_of(base: type[Record]) -> list[type[Record]]:
        return [base, *(deeper for direct in base.__subclasses__() for deeper in all_of(direct))]

    assert all(issubclass(kind, Summary) for kind in all_of(Record) if kind.model_computed_fields)
