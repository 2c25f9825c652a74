"""Checks the times of cases, and finds the start of the oldest measurement."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence

from rn_harness.records.case import CaseRecord

CLOCKS_DIFFER = datetime.timedelta(minutes=5)
"""Greatest difference allowed between the clocks of one run's machines."""


def moment(text: str) -> datetime.datetime | None:
    """Parses an ISO 8601 time; None if it is invalid or has no time zone."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def impossible_times(record: CaseRecord, started: str, ended: str) -> list[str]:
    """Impossible times of a case, each a part of a sentence.

    Args:
        record: of the case.
        started, ended: of its run.
    """
    spans = [("it", record.started, record.ended)]
    report = record.evidence.report.measured if record.evidence.report else None
    measured = [(what, of) for what, of in (("its measurement", record.measured), ("its defense's training", report)) if of]
    spans += [(what, of.started, of.ended) for what, of in measured]
    tried = [*record.provenance.attempts, *record.provenance.training]
    spans += [("an attempt", t.started, t.started if t.ended is None else t.ended) for t in tried]
    zoneless = [text for _, *times in [*spans, ("its run", started, ended)] for text in times if moment(text) is None]
    if zoneless:
        return [f"{zoneless[0]!r} is no time with a zone"]
    return list(_out_of_order(record, spans, started, ended))


def _out_of_order(record: CaseRecord, spans: Sequence[tuple[str, str, str]], run_started: str, run_ended: str) -> Iterator[str]:
    first, last = _at(run_started), _at(run_ended)
    for what, started, ended in spans:
        if _at(ended) < _at(started):
            yield f"{what} ended at {ended}, before it started at {started}"
        if _at(ended) > last + CLOCKS_DIFFER:
            yield f"{what} ended at {ended}, after its run, which ended at {run_ended}"
    if _at(record.started) < first - CLOCKS_DIFFER:
        yield f"it started at {record.started}, before its run, which started at {run_started}"
    for what, of in (
        ("it was measured", record.measured),
        ("its defense was trained", record.evidence.report.measured if record.evidence.report else None),
    ):
        if of and of.run_id == record.run_id and _at(of.started) < first - CLOCKS_DIFFER:
            yield f"{what} at {of.started} by this run, which started at {run_started}"
        if of and _at(of.ended) > _at(record.ended) + CLOCKS_DIFFER:
            yield f"{what} until {of.ended}, and its case ended at {record.ended}"


def _at(text: str) -> datetime.datetime:
    found = moment(text)
    assert found is not None
    return found


def oldest(record: CaseRecord) -> str | None:
    """Start of the oldest work that a case's numbers come from; None if nothing was measured.

    A training that was cut off and resumed is as old as its first attempt.
    """
    report = record.evidence.report
    times = [of.started for of in (record.measured, report.measured if report else None) if of]
    times += [t.started for t in record.provenance.training[:1] if report and report.resumed]
    return min((t for t in times if moment(t)), key=_at, default=None)
