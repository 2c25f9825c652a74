"""Estimates a run: its cases, its memory, and its time by earlier runs. Nothing is loaded or run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rn_harness.release.integrity import read_evidence
from rn_harness.release.statement import RUN
from rn_harness.run.demand import Demand, demand_of
from rn_harness.run.plan import all_cases, makespan
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import RnHarnessError
from rn_harness.spec.suite import Suite
from rn_harness.verdict.release_rules import required_cases


@dataclass(frozen=True, slots=True)
class CaseEstimate:
    """One case that would run.

    Attributes:
        domain, case_id: the case.
        seconds: expected time; None without earlier runs.
        rests_on: number of earlier cases that the time is the median of.
        demand: resources that it takes on a machine like this one.
    """

    domain: str
    case_id: str
    seconds: float | None
    rests_on: int
    demand: Demand


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """The cases of a run with their times and demands.

    Attributes:
        cases: in the order of the suites.
        memory: a sentence for each suite.
        runs: earlier runs that the times come from.
        needs: names of the cases that each waits for, by domain and case id.
    """

    cases: tuple[CaseEstimate, ...]
    memory: tuple[str, ...]
    runs: tuple[str, ...]
    needs: Mapping[str, tuple[str, ...]]

    @property
    def seconds(self) -> float | None:
        """Time of all cases one after another; None if the time of one is unknown."""
        times = [case.seconds for case in self.cases]
        return None if None in times or not times else sum(t for t in times if t is not None)

    def seconds_on(self, slots: int) -> float | None:
        """Time of all cases with this many at the same time; None if the time of one is unknown."""
        lengths = {_name(case.domain, case.case_id): case.seconds for case in self.cases}
        known = {name: seconds for name, seconds in lengths.items() if seconds is not None}
        return makespan(known, self.needs, slots) if known and len(known) == len(lengths) else None


def estimate_run(session: RunSession, suites: Sequence[Suite], earlier: Path) -> RunEstimate:
    """Estimates a run.

    A case's time is the median over earlier cases of its kind on the same model that were not taken from the store, scaled by its
    attack's steps. The first case of a defense includes the defense's time.

    Args:
        session: with the options of the run.
        suites: the planned suites.
        earlier: folder of earlier runs.

    Raises:
        CandidateError: the model does not exist.
    """
    digest = session.candidate.digest
    rates: dict[str, list[float]] = {}
    used = []
    for path in sorted(earlier.glob(f"*/{RUN}")):
        evidence = None if path.parent.is_symlink() else read_evidence(path.parent)[0]
        if evidence is None or evidence.run.candidate.get("digest") != digest:
            continue
        measured = {line.record for line in evidence.run.cases if not line.stored}
        for name, record in evidence.records.items():
            steps = record.evidence.trajectory.steps if record.evidence.trajectory else None
            if name in measured and steps is not None:
                rates.setdefault(record.evidence.kind, []).append(record.wall_s / max(steps, 1))
                used.append(path.parent.name)
    cases, waiting = [], {}
    for suite in suites:
        tasks = {task.case_id: task for task in all_cases(suite, suite.tier_attacks(session.options.tier))}
        trained = session.defense_recipe(suite) is not None
        for case_id in required_cases(suite, session.options.tier):
            task = tasks[case_id]
            times = rates.get(task.kind, [])
            seconds = round(statistics.median(times) * (task.trained_steps if task.attack else 1), 1) if times else None
            cases.append(CaseEstimate(suite.domain, case_id, seconds, len(times), demand_of(session, task)))
            waiting[_name(suite.domain, case_id)] = tuple(_name(suite.domain, n.case_id) for n in task.needs(trained=trained))
    memory = tuple(f"{suite.domain}: {_memory(session, suite)}" for suite in suites)
    return RunEstimate(tuple(cases), memory, tuple(dict.fromkeys(used)), waiting)


def _name(domain: str, case_id: str) -> str:
    return f"{domain} {case_id}"


def _memory(session: RunSession, suite: Suite) -> str:
    try:
        planned = session.limits.largest(suite)
    except RnHarnessError as error:
        return f"not known: {error}"
    return planned.sentence if planned else "not known: config.json does not name the model's numbers"
