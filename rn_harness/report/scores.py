"""A run's scores as a table for one's own analysis: one row for each score, without any text.

Rows come from the records; each trajectory is in the rows of one case, an attack's control in those of the control case.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from rn_harness.records.case import CaseRecord

COLUMNS = (
    "domain", "case", "kind", "standing", "finding", "measured_in", "step", "aid", "prompt_id", "sample", "score", "unscored",
    "threshold", "second_score", "refusal", "degenerate", "truncated", "words",
)  # fmt: skip


def score_rows(records: Iterable[CaseRecord]) -> Iterator[tuple[Any, ...]]:
    """The values of ``COLUMNS`` for each score; ``measured_in`` is the file with the checkpoint, ``aid`` None without one."""
    for record in records:
        evidence = record.evidence
        case = (record.identity.suite["domain"], record.case_id, evidence.kind, evidence.standing, record.verdict.finding)
        for file, run in evidence.journals.items():
            for c in run.checkpoints:
                for aid, scores in ((None, c.scores), *c.aided.items()):
                    for s in scores:
                        second = s.second.score if s.second else None
                        which = (*case, file, c.step, aid, s.prompt_id, s.sample)
                        yield *which, s.score, s.unscored, c.threshold, second, s.refusal, s.degenerate, s.truncated, s.words


def as_csv(records: Iterable[CaseRecord]) -> bytes:
    """The table as CSV with a head, UTF-8; an empty cell is a missing value."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(score_rows(records))
    return text.getvalue().encode()


def as_parquet(records: Iterable[CaseRecord]) -> bytes:
    """The table as a parquet file.

    Raises:
        ImportError: pyarrow is not installed; the extra ``run`` has it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = zip(*score_rows(records), strict=True)
    file = io.BytesIO()
    pq.write_table(pa.table(dict(zip(COLUMNS, map(list, columns), strict=True))), file)
    return file.getvalue()
