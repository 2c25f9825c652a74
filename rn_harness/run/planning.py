"""What a run would do: its cases, its memory, and how long it takes by earlier runs. Floor 4 (run). Nothing is loaded or run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rn_harness.release.integrity import read_evidence
from rn_harness.release.statement import RUN
from rn_harness.run.executors.order import Demand, demand_of, makespan, needs, tasks_of, trained_steps
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import RnHarnessError
from rn_harness.spec.suite import Suite
from rn_harness.verdict.release_rules import required_cases


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """One case that would run.

    Attributes:
        domain, case_id: which.
        seconds: that it may take; None: no earlier run tells.
        rests_on: how many earlier cases that figure is the median of.
        demand: what it takes while it runs, on a machine like this one.
    """

    domain: str
    case_id: str
    seconds: float | None
    rests_on: int
    demand: Demand


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What would run.

    Attributes:
        cases: in the order of the suites.
        memory: a sentence for each suite.
        runs: earlier runs that the times come from.
        waits: for which cases each waits, by domain and case id.
    """

    cases: tuple[PlannedCase, ...]
    memory: tuple[str, ...]
    runs: tuple[str, ...]
    waits: Mapping[str, tuple[str, ...]]

    @property
    def seconds(self) -> float | None:
        """All cases one after another; None where the time of one is not known."""
        times = [case.seconds for case in self.cases]
        return None if None in times or not times else sum(t for t in times if t is not None)

    def seconds_on(self, slots: int) -> float | None:
        """All cases, so many at a time, none before what it waits for; None where the time of one is not known."""
        lengths = {_name(case.domain, case.case_id): case.seconds for case in self.cases}
        known = {name: seconds for name, seconds in lengths.items() if seconds is not None}
        return makespan(known, self.waits, slots) if known and len(known) == len(lengths) else None


def plan_run(session: RunSession, suites: Sequence[Suite], earlier: Path) -> RunPlan:
    """Plans a run.

    A case's time is the median of the same kind of case on the same model and machine that an earlier run did itself, scaled by
    its attack's steps; the defense's own time is in the first of its cases.

    Args:
        session: with the options of the run.
        suites: that would be run.
        earlier: folder with the folders of earlier runs.

    Raises:
        CandidateError: there is no such model.
    """
    digest = session.candidate.digest
    seen: dict[str, list[float]] = {}
    used = []
    for path in sorted(earlier.glob(f"*/{RUN}")):
        evidence = None if path.parent.is_symlink() else read_evidence(path.parent)[0]
        if evidence is None or evidence.run.candidate.get("digest") != digest:
            continue
        measured = {line.record for line in evidence.run.cases if not line.stored}
        for name, record in evidence.records.items():
            steps = record.evidence.trajectory.steps if record.evidence.trajectory else None
            if name in measured and steps is not None:
                seen.setdefault(record.evidence.kind, []).append(record.wall_s / max(steps, 1))
                used.append(path.parent.name)
    cases, waits = [], {}
    for suite in suites:
        tasks = {task.case_id: task for task in tasks_of(suite, suite.tier_attacks(session.options.tier))}
        trained = session.defense_recipe(suite) is not None
        for case_id in required_cases(suite, session.options.tier):
            task = tasks[case_id]
            times = seen.get(task.kind, [])
            seconds = round(statistics.median(times) * (trained_steps(task) if task.attack else 1), 1) if times else None
            cases.append(PlannedCase(suite.domain, case_id, seconds, len(times), demand_of(session, task)))
            waits[_name(suite.domain, case_id)] = tuple(_name(suite.domain, n.case_id) for n in needs(task, trained=trained))
    memory = tuple(f"{suite.domain}: {_memory(session, suite)}" for suite in suites)
    return RunPlan(tuple(cases), memory, tuple(dict.fromkeys(used)), waits)


def _name(domain: str, case_id: str) -> str:
    return f"{domain} {case_id}"


def _memory(session: RunSession, suite: Suite) -> str:
    try:
        planned = session.capacity.largest(suite)
    except RnHarnessError as error:
        return f"not known: {error}"
    return planned.sentence if planned else "not known: config.json does not name the model's numbers"
