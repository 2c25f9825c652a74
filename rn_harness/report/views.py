"""Writes the views of a run into its folder: ``report.html`` and ``summary.md``.

Views are written after the records, and can be written again from them at any time, without a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.report.html import render_html
from rn_harness.report.markdown import render_summary
from rn_harness.store.store import write_text


def write_views(folder: Path, run: RunRecord, records: Iterable[CaseRecord]) -> list[Path]:
    """Writes the views, and returns their paths."""
    by_key = {(r.identity.suite["domain"], r.case_id, r.key): r for r in records}
    cases = [(line, by_key.get((line.domain, line.case_id, line.key or ""))) for line in run.cases]
    texts = {"report.html": render_html(run, cases), "summary.md": render_summary(run, cases)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
