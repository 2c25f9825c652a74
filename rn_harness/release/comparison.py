"""Two runs beside each other: what changed, and what got worse.

A view of two runs' records; it computes differences of what stands there, and no measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rn_harness.records.base import Interval
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.records.trajectory import Checkpoint
from rn_harness.release.integrity import Evidence

_RANK = {"FAIL": 0, None: 1, "INCONCLUSIVE": 1, "PASS": 2}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        what: it is of.
        before, after: in the first run and in the second.
        worse: whether the second run is worse by it.
    """

    what: str
    before: Any
    after: Any
    worse: bool = False


def compare_runs(before: Evidence, after: Evidence) -> list[Change]:
    """What differs between two runs: facts, versions, verdicts, and trajectories with their intervals.

    Worse are a verdict that fell (PASS to none or INCONCLUSIVE, any of them to FAIL), a case that is gone, a run that no longer
    is releasable, and a checkpoint of an attack whose share of completions above the threshold has an interval wholly above the
    one before.
    """
    found = list(_facts(before.run, after.run))
    one, other = (_cases(e) for e in (before, after))
    for case in dict.fromkeys([*one, *other]):
        was, now = (cases[case][0] if case in cases else "not run" for cases in (one, other))
        if was != now:
            worse = case in one and (case not in other or _RANK[one[case][0]] > _RANK[other[case][0]])
            found.append(Change(f"{case}: verdict", was, now, worse=worse))
        records = [cases[case][1] if case in cases else None for cases in (one, other)]
        if records[0] and records[1]:
            found += _identities(case, records[0], records[1])
            found += _trajectories(case, records[0], records[1])
    return list(dict.fromkeys(found))


def _cases(evidence: Evidence) -> dict[str, tuple[str | None, CaseRecord | None]]:
    return {
        f"{line.domain}/{line.case_id}": (line.outcome, evidence.records.get(line.record or "")) for line in evidence.run.cases
    }


def _facts(before: RunRecord, after: RunRecord) -> Iterator[Change]:
    """What the runs as wholes differ in."""
    for what, one, other, worse in (
        ("outcome", before.outcome, after.outcome, _RANK[before.outcome] > _RANK[after.outcome]),
        ("releasable", before.releasable, after.releasable, before.releasable and not after.releasable),
        ("candidate", before.candidate.get("digest"), after.candidate.get("digest"), False),
        ("rn-harness", before.provenance.tool, after.provenance.tool, False),
        *((f"options.{name}", before.options.get(name), after.options.get(name), False) for name in ("tier", "overrides")),
        *((f"suite {d}", before.suites.get(d), after.suites.get(d), False) for d in {**before.suites, **after.suites}),
    ):
        if one != other:
            yield Change(what, one, other, worse)


def _identities(case: str, before: CaseRecord, after: CaseRecord) -> Iterator[Change]:
    """Versions and hardware once for all cases, the weights and judges of each."""
    for what in ("versions", "hardware"):
        one, other = getattr(before.identity, what), getattr(after.identity, what)
        for name in {**one, **other}:
            if one.get(name) != other.get(name):
                yield Change(f"{what}: {name}", one.get(name), other.get(name))
    for what in ("defended_digest", "judge", "reward", "second"):
        one, other = getattr(before.identity, what), getattr(after.identity, what)
        if one != other:
            yield Change(f"{case}: {what}", _named(one), _named(other))


def _named(who: Any) -> Any:
    return f"{who['name']} ({who['digest'][:12]})" if isinstance(who, dict) else who


def _trajectories(case: str, before: CaseRecord, after: CaseRecord) -> Iterator[Change]:
    """The checkpoints of the same step whose scores differ, with the exact interval of the share above the threshold."""
    runs = [r.evidence.trajectory for r in (before, after)]
    steps = [{c.step: c for c in run.checkpoints} if run else {} for run in runs]
    for step in sorted(steps[0].keys() & steps[1].keys()):
        one, other = steps[0][step], steps[1][step]
        if (one.mean, one.above) != (other.mean, other.above):
            worse = before.evidence.kind == "attack" and other.above.low > one.above.high
            yield Change(f"{case}: step {step}", _told(one), _told(other), worse)


def _told(checkpoint: Checkpoint) -> str:
    mean = "unscored" if checkpoint.mean is None else f"mean {checkpoint.mean:.2f}"
    return f"{mean}, above {_interval(checkpoint.above)}"


def _interval(share: Interval) -> str:
    return f"{share.count}/{share.total} (95 % {share.low:.3f} to {share.high:.3f})"
