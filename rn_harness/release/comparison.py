"""A comparison of the records of two runs: the changes, and those for the worse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.records.trajectory import Checkpoint
from rn_harness.release.integrity import RunEvidence

_RANK = {"FAIL": 0, None: 1, "INCONCLUSIVE": 1, "PASS": 2}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: the compared value in the first and in the second run, and whether the second is worse for it."""

    what: str
    before: Any
    after: Any
    worse: bool = False


def compare_runs(before: RunEvidence, after: RunEvidence) -> list[Change]:
    """The differences between two runs: facts, versions, verdicts, and trajectories with their intervals.

    Changes for the worse are a verdict that fell (PASS to none or INCONCLUSIVE, any of them to FAIL), a case that is gone, a run
    that is no longer releasable, and a checkpoint of an attack whose share of completions above the threshold has an interval
    wholly above the earlier one.
    """
    found = list(_facts(before.run, after.run))
    gone: tuple[Any, None] = ("not run", None)
    one, other = (
        {f"{c.domain}/{c.case_id}": (c.outcome, e.records.get(c.record or "")) for c in e.run.cases} for e in (before, after)
    )
    for case in dict.fromkeys([*one, *other]):
        (was, old), (now, new) = one.get(case, gone), other.get(case, gone)
        if was != now:
            worse = case in one and (case not in other or _RANK[was] > _RANK[now])
            found.append(Change(f"{case}: verdict", was, now, worse=worse))
        if old and new:
            found += [*_identities(case, old, new), *_trajectories(case, old, new)]
    return list(dict.fromkeys(found))


def _facts(before: RunRecord, after: RunRecord) -> Iterator[Change]:
    """Differences between the runs as a whole."""
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
    """Differences in versions and hardware, and in a case's weights and judges."""
    for what in ("versions", "hardware"):
        one, other = getattr(before.identity, what), getattr(after.identity, what)
        for name in {**one, **other}:
            if one.get(name) != other.get(name):
                yield Change(f"{what}: {name}", one.get(name), other.get(name))
    for what in ("defended_digest", "judge", "reward", "second"):
        one, other = getattr(before.identity, what), getattr(after.identity, what)
        if one != other:
            was, now = (f"{who['name']} ({who['digest'][:12]})" if isinstance(who, dict) else who for who in (one, other))
            yield Change(f"{case}: {what}", was, now)


def _trajectories(case: str, before: CaseRecord, after: CaseRecord) -> Iterator[Change]:
    """Checkpoints of the same step with different scores, with the exact interval of the share above the threshold."""
    runs = [r.evidence.trajectory for r in (before, after)]
    steps = [{c.step: c for c in run.checkpoints} if run else {} for run in runs]
    for step in sorted(steps[0].keys() & steps[1].keys()):
        one, other = steps[0][step], steps[1][step]
        if (one.mean, one.above) != (other.mean, other.above):
            worse = before.evidence.kind == "attack" and other.above.low > one.above.high
            yield Change(f"{case}: step {step}", _scores(one), _scores(other), worse)


def _scores(checkpoint: Checkpoint) -> str:
    mean, above = "unscored" if checkpoint.mean is None else f"mean {checkpoint.mean:.2f}", checkpoint.above
    return f"{mean}, above {above.count}/{above.total} (95 % {above.low:.3f} to {above.high:.3f})"
