"""Reads records from JSON that may have been changed.

Computed fields are dropped on reading, so that a changed one would only mislead people. The record is therefore written again
and compared with the text, which checks every field.
"""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any, TypeVar

from rn_harness.records.base import Record
from rn_harness.spec.errors import RecordError

R = TypeVar("R", bound=Record)
TOLERANCE = 1e-6
"""Relative and absolute tolerance: another release of scipy may round a bound differently."""


def read_record(raw: bytes | str, kind: type[R]) -> R:
    """Reads a record from JSON that has to be exactly as written.

    Raises:
        ValueError: the text is not JSON of such a record, or has a duplicate key.
        RecordError: a field differs from the record as written: a number in another notation, or a computed field that does not
            follow from the scores.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands there twice")
        return dict(pairs)

    found = json.loads(raw, object_pairs_hook=once)
    record = kind.model_validate(found)
    if difference := first_difference(found, record.model_dump(mode="json", warnings=False)):
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
