"""Estimates of a case's demand on a machine, and of a run's memory and time by earlier runs. Nothing is loaded or run."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rn_harness.judges.hf import ROWS_AT_ONCE
from rn_harness.judges.protocol import Judge
from rn_harness.judges.resolve import judge_profile_names, load_profile
from rn_harness.models.memory import GIB, RUNTIME, card_memory, shape_of
from rn_harness.records.run import RUN
from rn_harness.release.integrity import read_evidence
from rn_harness.run.case import CaseTask, all_cases, makespan
from rn_harness.run.case_cost import CardHours, CaseCosts, card_hours, question_tokens, reader_of, setting_of
from rn_harness.run.context import RunContext
from rn_harness.run.cost import BYTES, CARDS, Card, Reader, Role
from rn_harness.run.session import RunSession
from rn_harness.run.training_limits import weights_size
from rn_harness.spec.base import TIERS, TierName
from rn_harness.spec.defense_recipe import GRPORecipe
from rn_harness.spec.errors import CandidateError, RnHarnessError
from rn_harness.spec.model_profiles import ModelProfile
from rn_harness.spec.suite import Suite
from rn_harness.verdict.release_rules import required_cases

CARD_MARGIN = 1.1
"""Card memory that a case is given, as a multiple of its plan."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Resources that a case takes: threads, cards or a share of one, and bytes of the machine's memory; 0 if unknown."""

    cpus: int
    gpus: float
    memory: int

    @property
    def sentence(self) -> str:
        """The demand in words."""
        card = f", {self.gpus:g} of a card" if self.gpus else ""
        memory = f"{self.memory / GIB:.1f} GiB" if self.memory else "memory not known"
        return f"{self.cpus} CPU{card}, {memory}"


def demand_of(context: RunContext, task: CaseTask) -> Demand:
    """Demand of a case on a machine like this one, by ``rn_harness.models.memory``.

    The context is of a process that has a whole card, if the machine has cards.
    """
    recipe: GRPORecipe | None = task.attack or (context.defense_recipe(task.suite) if task.kind == "defense" else None)
    recipe = recipe or next(iter(task.suite.tier_attacks(context.options.tier)), None)
    try:
        planned = context.limits.planned(task.suite, recipe) if recipe else None
    except RnHarnessError:  # reported when the run is checked, or by the case itself
        planned = None
    cpus = context.candidate.threads
    if planned is None:
        return Demand(cpus, 1.0 if context.on == "cuda" else 0.0, 0)
    if planned.work.device == "cpu":
        return Demand(cpus, 0.0, math.ceil(planned.total))
    return Demand(cpus, share_of_card(planned.total, card_memory()), math.ceil(planned.weights + RUNTIME["cpu"]))


def share_of_card(needed: float, card: float) -> float:
    """One divided by the number of cases that need so many bytes and fit on a card of so many, at most 1."""
    return 1.0 / max(1, int(card / (needed * CARD_MARGIN)))


@dataclass(frozen=True, slots=True)
class CaseEstimate:
    """One case that would run. Its time is the median of ``rests_on`` earlier cases; None without earlier runs."""

    domain: str
    case_id: str
    seconds: float | None
    rests_on: int
    demand: Demand


@dataclass(frozen=True, slots=True)
class RunEstimate:
    """The cases of a run with their times and demands.

    The times come from the earlier ``runs``, or are computed for a card, with ``on_card``; ``needs`` has the cases that each
    waits for, by domain and case id.
    """

    cases: tuple[CaseEstimate, ...]
    memory: tuple[str, ...]
    runs: tuple[str, ...]
    needs: Mapping[str, tuple[str, ...]]
    on_card: CardHours | None = None

    @property
    def seconds(self) -> float | None:
        """Time of all cases one after another; None if the time of one is unknown."""
        times = [case.seconds for case in self.cases]
        return None if None in times or not times else sum(t for t in times if t is not None)

    def seconds_on(self, slots: int) -> float | None:
        """Time of all cases with this many at the same time; None if the time of one is unknown."""
        lengths = {f"{case.domain}: {case.case_id}": case.seconds for case in self.cases}
        known = {name: seconds for name, seconds in lengths.items() if seconds is not None}
        return makespan(known, self.needs, slots) if known and len(known) == len(lengths) else None


def hours_by_tier(session: RunSession, suite: Suite, earlier: Path) -> str:
    """The cases of each tier, and the hours that they take one after another, as a sentence.

    By earlier runs of the model. A real model without one has hours that are computed for a card.
    """
    times = _times_of(session.candidate.digest, earlier)
    if not times.runs and not session.candidate.is_organism:
        return _on_a_card(suite, lambda card, tier: costs_of(session, suite, card, tier))
    found = {tier: _estimate(session, [suite], times, tier).seconds for tier in TIERS}
    by_runs = f"by {len(times.runs)} earlier run{'s' if len(times.runs) > 1 else ''} in {earlier}"
    basis = by_runs if times.runs else f"no earlier run of this model in {earlier}: pass --reports, or run tier smoke"
    return _of_tiers(suite, found, basis)


def hours_of_profile(profile: ModelProfile, session: RunSession, suite: Suite, judges: Mapping[Role, str]) -> str:
    """As ``hours_by_tier``, for a model with a profile that is not here, nor its judges: computed from their profiles."""
    shape, length, shipped = shape_of(profile.shape), question_tokens(suite, ROWS_AT_ONCE), judge_profile_names()
    sizes = {role: load_profile(name).parameters_b for role, name in judges.items() if name in shipped}
    readers = {role: Reader(judges[role], 1e9 * size, length) for role, size in sizes.items() if size}

    def costs(card: Card, tier: TierName) -> CaseCosts | None:
        if shape is None:
            return None
        number = BYTES if profile.dtype == "bfloat16" else 4
        return CaseCosts(setting_of(card, shape, number, readers, suite), suite, tier, session.defense_recipe(suite))

    return _on_a_card(suite, costs)


def _on_a_card(suite: Suite, costs: Callable[[Card, TierName], CaseCosts | None]) -> str:
    card = next(iter(CARDS.values()))
    found = {tier: card_hours([of], 1).busy for tier in TIERS if (of := costs(card, tier))}
    basis = f"computed for one {card.name}, not measured" if found else "its shape is not known, from which hours are computed"
    return _of_tiers(suite, found, basis)


def _of_tiers(suite: Suite, seconds: Mapping[TierName, float | None], basis: str) -> str:
    known = {tier: of for tier in TIERS if (of := seconds.get(tier)) is not None}
    hours = {tier: f"{known[tier] / 3600:.1f} h" if tier in known else "time not known" for tier in TIERS}
    return f"{'; '.join(f'{tier} {len(required_cases(suite, tier))} cases, {hours[tier]}' for tier in TIERS)}; {basis}"


def estimate_run(session: RunSession, suites: Sequence[Suite], earlier: Path) -> RunEstimate:
    """Estimates a run.

    A case's time is the median over earlier cases of its kind on the same model that were not taken from the store, scaled by its
    attack's steps. The first case of a defense includes the defense's time. ``earlier`` is the folder of earlier runs.
    """
    digest = session.candidate.digest  # first, so that a model that is missing is reported before other faults
    return _estimate(session, suites, _times_of(digest, earlier), session.options.tier)


def costs_of(session: RunSession, suite: Suite, card: Card, tier: TierName) -> CaseCosts | None:
    """Costs of a suite's cases on a card; None if the configuration lacks the model's numbers."""
    candidate, shape, judges = session.candidate, session.limits.shape, session.judges(suite)
    if shape is None:
        return None
    by_role: dict[Role, Judge | None] = {"judge": judges.evaluation, "reward": judges.reward, "second": judges.second}
    readers = {
        role: reader
        for role, judge in by_role.items()
        if judge and (reader := reader_of(judge, suite, weights_size(judge) / BYTES))
    }
    number = None if candidate.quantised else BYTES if candidate.number in ("bfloat16", "float16") else 4
    setting = dataclasses.replace(setting_of(card, shape, number, readers, suite), vllm=session.sampler.vllm)
    return CaseCosts(setting, suite, tier, session.defense_recipe(suite))


def judge_tokens(session: RunSession, suites: Sequence[Suite], tier: TierName) -> dict[Role, float]:
    """Tokens that language models read as judges in a tier, by role; empty if the judges are none, or the shape is unknown."""
    found: dict[Role, float] = defaultdict(float)
    for suite in suites:
        costs = costs_of(session, suite, next(iter(CARDS.values())), tier)
        for cost in costs.costs.values() if costs else ():
            for role, tokens in cost.read.items():
                found[role] += tokens
    return found


def computed_run(session: RunSession, suites: Sequence[Suite], card: Card, cards: int) -> RunEstimate:
    """A run's time on so many cards, computed from their data sheet. Raises CandidateError if the shape is unknown."""
    tier = session.options.tier
    parts = [costs for suite in suites if (costs := costs_of(session, suite, card, tier))]
    if len(parts) < len(suites):
        raise CandidateError(
            "time on a card is computed from a model's numbers, got a config.json that does not name them; leave out --device"
        )
    made = _estimate(session, suites, _Times({}, ()), tier)
    seconds = {name: cost.seconds for part in parts for name, cost in part.costs.items()}
    cases = [dataclasses.replace(of, seconds=round(seconds[f"{of.domain}: {of.case_id}"], 1)) for of in made.cases]
    return dataclasses.replace(made, cases=tuple(cases), on_card=card_hours(parts, cards))


class _Times(NamedTuple):
    """Seconds for each step, or for a case without steps, by kind of case; and the names of the runs that they are of."""

    rates: dict[str, list[float]]
    runs: tuple[str, ...]


def _times_of(digest: str, earlier: Path) -> _Times:
    """The times of earlier runs of the candidate with this digest, in a folder of runs or in the folder of one."""
    rates: dict[str, list[float]] = {}
    used = []
    for path in (*earlier.resolve().glob(RUN), *sorted(earlier.glob(f"*/{RUN}"))):
        evidence = None if path.parent.is_symlink() else read_evidence(path.parent)[0]
        if evidence is None or evidence.run.candidate.get("digest") != digest:
            continue
        measured = {line.record for line in evidence.run.cases if not line.stored}
        for name, record in evidence.records.items():
            steps = record.evidence.trajectory.steps if record.evidence.trajectory else None
            if name in measured and steps is not None:
                rates.setdefault(record.evidence.kind, []).append(record.wall_s / max(steps, 1))
                used.append(path.parent.name)
    return _Times(rates, tuple(dict.fromkeys(used)))


def _estimate(session: RunSession, suites: Sequence[Suite], known: _Times, tier: TierName) -> RunEstimate:
    cases, waiting = [], {}
    for suite in suites:
        tasks = {task.case_id: task for task in all_cases(suite, suite.tier_attacks(tier))}
        trained = session.defense_recipe(suite) is not None
        for case_id in required_cases(suite, tier):
            task = tasks[case_id]
            times = known.rates.get(task.kind, [])
            seconds = round(statistics.median(times) * (task.trained_steps if task.attack else 1), 1) if times else None
            cases.append(CaseEstimate(suite.domain, case_id, seconds, len(times), demand_of(session, task)))
            waiting[task.name] = tuple(needed.name for needed in task.needs(trained=trained))
    memory = tuple(f"{suite.domain}: {_memory(session, suite)}" for suite in suites)
    return RunEstimate(tuple(cases), memory, known.runs, waiting)


def _memory(session: RunSession, suite: Suite) -> str:
    try:
        planned = session.limits.largest(suite)
    except RnHarnessError as error:
        return f"not known: {error}"
    return planned.sentence if planned else "not known: config.json does not name the model's numbers"
