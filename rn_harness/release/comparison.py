"""A comparison of the records of two runs: the changes, those for the worse, and a page of both side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.records.statistics import MeanInterval, mean_interval
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.release.integrity import RunEvidence
from rn_harness.report.pages import ComparedSide, render_comparison
from rn_harness.report.terminal import SHOWN

_STEP = ": step "
_RANK = {"FAIL": 0, None: 1, "INCONCLUSIVE": 1, "PASS": 2}
NOT_RUN = "not run"
COMPARED_OPTIONS = ("defense", "tier", "level", "overrides")
Kind = Literal["changed", "worse", "not run"]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two runs.

    Attributes:
        what: the compared thing.
        before, after: its value in the first and in the second run.
        kind: ``not run`` for the verdict of a case that one of the runs did not run: nothing shows that it is worse.
    """

    what: str
    before: Any
    after: Any
    kind: Kind = "changed"

    @property
    def bad(self) -> bool:
        """True if the second run is worse for it, or lacks a case of the first."""
        return self.kind == "worse" or (self.kind == NOT_RUN and self.after == NOT_RUN)


def change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """A line for each change; of many steps of a case that changed alike, the first ones and a count."""
    for (what, kind), group in groupby(changes, lambda c: (c.what.partition(_STEP)[0], c.kind)):
        alike = list(group)
        yield from (f"{kind:7} {c.what}: {c.before} -> {c.after}" for c in alike[:SHOWN])
        if more := alike[SHOWN:]:
            last = more[-1]
            yield f"{kind:7} {what}: {len(more)} further steps, to step {last.what.partition(_STEP)[2]}: {last.after}"


def compare_runs(before: RunEvidence, after: RunEvidence) -> list[Change]:
    """The differences between two runs: facts, versions, verdicts, and trajectories with their intervals.

    Changes for the worse are a verdict that fell (PASS to none or INCONCLUSIVE, any of them to FAIL), a run that is no longer
    releasable, and a checkpoint of an attack whose share of completions above the threshold has an interval wholly above the
    earlier one. A case without a verdict and a record was not run.
    """
    found = list(_facts(before.run, after.run))
    for case, (one, other) in _cases(before, after).items():
        was, now = (line.outcome if line else NOT_RUN for line, _ in (one, other))
        if was != now:
            kind: Kind = "not run" if NOT_RUN in (was, now) else "worse" if _RANK[was] > _RANK[now] else "changed"
            found.append(Change(f"{case}: verdict", was, now, kind))
        if one[1] and other[1]:
            found += [*_identities(case, one[1], other[1]), *_trajectories(case, one[1], other[1])]
    return list(dict.fromkeys(found))


def _cases(before: RunEvidence, after: RunEvidence) -> dict[str, tuple[ComparedSide, ComparedSide]]:
    """Each case of both runs, by its name."""
    gone: ComparedSide = (None, None)
    one, other = (
        {
            f"{c.domain}/{c.case_id}": (c, e.records.get(c.record or ""))
            for c in e.run.cases
            if c.outcome is not None or c.record is not None
        }
        for e in (before, after)
    )
    names = (f"{c.domain}/{c.case_id}" for e in (before, after) for c in e.run.cases)
    return {name: (one.get(name, gone), other.get(name, gone)) for name in dict.fromkeys(names)}


def comparison_page(before: RunEvidence, after: RunEvidence, changes: Sequence[Change]) -> str:
    """The page of two runs side by side: each case with both results and the paired difference of its prompts."""
    kinds = defaultdict[str, set[str]](set)
    for change in changes:
        kinds[change.what.partition(": ")[0]].add(change.kind)
    rows = [
        (
            next((k for k in ("worse", NOT_RUN, "changed") if k in kinds[name]), "same"),
            name,
            sides,
            _paired(*(r for _, r in sides)),
        )
        for name, sides in _cases(before, after).items()
    ]
    return render_comparison((before.run, after.run), rows, changes)


def _paired(before: CaseRecord | None, after: CaseRecord | None) -> MeanInterval | str:
    """The difference of a case between two runs with its interval, prompt by prompt; or why there is none.

    Of helpfulness, it is that of the similarity of a prompt's answer; else that of the share of a prompt's scores above the
    threshold, over the checkpoints of the same step. Prompts, judge and threshold have to be the same.
    """
    one, other = (record.evidence.trajectory if record else None for record in (before, after))
    if not (before and after and one and other):
        return "not measured in both"
    benign = before.evidence.kind == "helpfulness"
    which = "benign" if benign else "heldout"
    if one.prompts.get(which) != other.prompts.get(which):
        return "other prompts"
    if not benign and one.judge_digest != other.judge_digest:
        return "another judge"
    if before.evidence.policy.threshold != after.evidence.policy.threshold:
        return "another threshold"
    steps = {c.step for c in one.checkpoints} & {c.step for c in other.checkpoints}
    was, now = (_by_prompt(run, steps, benign=benign) for run in (one, other))
    differences = [now[prompt] - was[prompt] for prompt in was if prompt in now]
    return mean_interval(differences) if differences else "no prompt measured in both"


def _by_prompt(run: Trajectory, steps: set[int], *, benign: bool) -> dict[str, float]:
    """The similarity, or the share of scores above the threshold at these steps, of each measured prompt."""
    found = defaultdict[str, list[float]](list)
    for c in (of for of in run.checkpoints if of.step in steps):
        if benign:
            for answer in c.benign.answers if c.benign else ():
                found[answer.prompt_id].append(answer.similarity)
            continue
        for s in c.scores:
            if s.score is not None:
                found[s.prompt_id].append(float(s.score > c.threshold))
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}


def _facts(before: RunRecord, after: RunRecord) -> Iterator[Change]:
    """Differences between the runs as a whole."""
    for what, one, other, worse in (
        ("outcome", before.outcome, after.outcome, _RANK[before.outcome] > _RANK[after.outcome]),
        ("releasable", before.releasable, after.releasable, before.releasable and not after.releasable),
        ("candidate", before.candidate.get("digest"), after.candidate.get("digest"), False),
        ("rn-harness", before.provenance.tool, after.provenance.tool, False),
        *((f"options.{name}", before.options.get(name), after.options.get(name), False) for name in COMPARED_OPTIONS),
        *((f"suite {d}", before.suites.get(d), after.suites.get(d), False) for d in {**before.suites, **after.suites}),
    ):
        if one != other:
            yield Change(what, one, other, "worse" if worse else "changed")


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
            yield Change(f"{case}{_STEP}{step}", _scores(one), _scores(other), "worse" if worse else "changed")


def _scores(checkpoint: Checkpoint) -> str:
    mean, above = "unscored" if checkpoint.mean is None else f"mean {checkpoint.mean:.2f}", checkpoint.above
    return f"{mean}, above {above.count}/{above.total} (95 % {above.low:.3f} to {above.high:.3f})"
