"""The shipped JSON schemas of records, for readers that do not import this package.

``make schema`` writes them from ``records``; a test checks that they are current.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rn_harness.records.base import Record
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.records.trajectory import Checkpoint

FOLDER = Path(__file__).parent
SCHEMAS: dict[str, type[Record]] = {"record": CaseRecord, "run": RunRecord, "checkpoint": Checkpoint}
"""The record types of a run folder's files: ``record.json``, ``run.json``, and the lines of ``checkpoints.jsonl``."""


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema of one of ``SCHEMAS``, for records as written: every field is present."""
    schema = SCHEMAS[name].model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_schemas() -> None:
    """Writes all schemas to the folder of this module."""
    for name in SCHEMAS:
        text = json.dumps(schema_of(name), indent=1, sort_keys=True) + "\n"
        (FOLDER / f"{name}.schema.json").write_text(text, encoding="utf-8")
