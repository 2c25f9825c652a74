"""Reads a run's folder and writes its views: ``report.html`` and ``summary.md``.

The records are the truth and stand before any view is made. A view can be made again from them at any time, without a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.report.html import render_html
from rn_harness.report.markdown import render_summary
from rn_harness.spec.errors import RecordError
from rn_harness.store.store import write_text

MAX_RECORD_BYTES = 256_000_000
"""Of a record that comes from elsewhere; the largest of ours has a few million."""
R = TypeVar("R", RunRecord, CaseRecord)


def read_run(folder: Path) -> tuple[RunRecord, list[CaseRecord]]:
    """A run's record, and those of its cases in its order; cases of an earlier run in the same folder are left out.

    Raises:
        RecordError: there is no finished run in the folder, or a record cannot be read.
    """
    run = _read(folder / "run.json", RunRecord)
    found = {
        (record.identity.suite["domain"], record.case_id, record.key): record
        for path in sorted(folder.glob("cases/*/record.json"))
        for record in [_read_if_ours(path, {line.key for line in run.cases})]
        if record
    }
    wanted = [(line.domain, line.case_id, line.key) for line in run.cases if line.key]
    lost = [case_id for domain, case_id, key in wanted if (domain, case_id, key) not in found]
    if lost:
        raise RecordError(f"{folder}: each case of run.json has a record, got none of {', '.join(lost)}; copy the whole folder")
    return run, [found[domain, case_id, key] for domain, case_id, key in wanted]


def _read_if_ours(path: Path, keys: set[str | None]) -> CaseRecord | None:
    """The record in a case's folder, whose name ends with the first digits of its key; None if it is of another run."""
    ends = {key[:12] for key in keys if key}
    return _read(path, CaseRecord) if path.parent.name.rpartition("-")[2] in ends else None


def _read(path: Path, model: type[R]) -> R:
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise RecordError(
                f"{path}: at most {MAX_RECORD_BYTES} bytes, got size={path.stat().st_size}; this is no record of ours"
            )
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: a finished run's record is required, got: {error.strerror}; name a run's folder") from None
    except (ValidationError, UnicodeDecodeError) as error:
        told = str(error).splitlines()
        raise RecordError(
            f"{path}: must be a record of this version, got: {' '.join(told[:3])}; take the version of rn-harness that wrote it"
        ) from None


def write_views(folder: Path, run: RunRecord, records: Iterable[CaseRecord]) -> list[Path]:
    """Writes the views of a run into a folder.

    Returns:
        The files.
    """
    by_key = {(r.identity.suite["domain"], r.case_id, r.key): r for r in records}
    cases = [(line, by_key.get((line.domain, line.case_id, line.key or ""))) for line in run.cases]
    made = {"report.html": render_html(run, cases), "summary.md": render_summary(run, cases)}
    for name, text in made.items():
        write_text(folder / name, text)
    return [folder / name for name in made]
