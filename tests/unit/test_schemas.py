"""The shipped JSON schemas: current, and sufficient to check a record without this package."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from rn_harness.records.base import Record
from rn_harness.records.schemas import FOLDER, SCHEMAS, schema_of

from .builders import case_record, evidence, trajectory


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_shipped_schema_is_current(name: str) -> None:
    """The shipped schema is valid and matches the records; if not, run ``make schema``."""
    shipped = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert shipped == schema_of(name)
    jsonschema.Draft202012Validator.check_schema(shipped)


def record() -> Any:
    of = evidence(trajectory=trajectory(20), control=trajectory(10, defended_digest=None))
    return json.loads(case_record(of).model_dump_json())


@pytest.fixture(scope="module")
def of_record() -> Any:
    """The validator of case records."""
    return jsonschema.Draft202012Validator(schema_of("record"))


def test_a_record_meets_its_schema(of_record: Any) -> None:
    """A case record and each of its checkpoints are valid under their schemas."""
    made, of_checkpoint = record(), jsonschema.Draft202012Validator(schema_of("checkpoint"))
    of_record.validate(made)
    for checkpoint in made["evidence"]["trajectory"]["checkpoints"]:
        of_checkpoint.validate(checkpoint)


@pytest.mark.parametrize("spoil", ["a field too many", "a field too few", "another version", "a text for a number"])
def test_an_invalid_record_does_not_meet_its_schema(of_record: Any, spoil: str) -> None:
    """The schema is as strict as the code: no extra or missing field, no other version, no wrong type."""
    made = record()
    if spoil == "a field too many":
        made["verdict"]["extra"] = 1
    elif spoil == "a field too few":
        del made["provenance"]
    elif spoil == "another version":
        made["version"] = 1
    else:
        made["wall_s"] = "soon"
    with pytest.raises(jsonschema.ValidationError):
        of_record.validate(made)
    if spoil != "a text for a number":  # which pydantic may convert
        with pytest.raises(ValueError, match="validation error"):
            SCHEMAS["record"].model_validate(made)


def test_every_record_is_closed_and_frozen() -> None:
    """No record accepts an unknown field, a NaN, or a change."""

    def all_of(base: type[Record]) -> list[type[Record]]:
        return [base, *(deeper for direct in base.__subclasses__() for deeper in all_of(direct))]

    for model in all_of(Record):
        settings = model.model_config
        assert (settings["frozen"], settings["extra"], settings["allow_inf_nan"]) == (True, "forbid", False), model
