"""A run in one process: makes its cases here, or takes them from an executor.

A case comes from the store or is measured now; then it is decided, and its record is written.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.models.language_model import LanguageModel
from rn_harness.records.base import CaseKind, content_key
from rn_harness.records.case import CHECKPOINTS, CaseProvenance, CaseRecord, Evidence, RestrainedAttack, restrained_file
from rn_harness.records.trajectory import Measurement, Trajectory
from rn_harness.report.progress import Progress
from rn_harness.run.case import Case, CaseTask, Defended, Executor
from rn_harness.run.context import RunContext
from rn_harness.run.measuring import FleetMember, Measuring, is_telling, with_others
from rn_harness.run.suite_run import SuiteRun
from rn_harness.run.time_limit import time_limit
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import RecipeError, RnHarnessError, UnsuitedError
from rn_harness.spec.restraint import BETAS
from rn_harness.spec.suite import Suite
from rn_harness.store.files import write_text
from rn_harness.store.journal import Journal
from rn_harness.store.provenance import attempt, attempts, now, working_tree
from rn_harness.store.ranks import ranks
from rn_harness.verdict.coherence import UNDEFENDED
from rn_harness.verdict.decide import decide, restrained_due, unfit_judges
from rn_harness.verdict.validity import NO_DEFENSE

RECORD = "record.json"
TRAJECTORY = "trajectory.json"
MEASURED = "measured.json"
"""File of a stored case: when it was measured, and by which run."""
UNSTEADY = ("sessions", "hardware")
"""Inputs that another attempt at the same case may not repeat: how a judge scored the known texts today, and the processor."""
ROUNDING = 1e-4
"""Difference between two tries, absolute or relative, that is only rounding. Cards and fleets sum in varying order."""


@dataclass(frozen=True)
class _Draft:
    """A case before it is measured, with its address in the store. It has no model if it cannot be judged.

    ``keys`` are the addresses of all trajectories that were measured for it so far.
    """

    task: CaseTask
    key: str
    inputs: dict[str, Any]
    folder: Path
    evidence: Evidence
    started: str
    clock: float
    defended: Defended | None = None
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Work:
    """One trajectory of a case to measure, or to take from the store.

    Attributes:
        task: the case itself, or a restrained attack or its control.
        place: the evidence of the case with this trajectory, which may be cut off.
        file: gets the checkpoints.
    """

    task: CaseTask
    inputs: dict[str, Any]
    place: Callable[[Trajectory], Evidence]
    file: str = CHECKPOINTS

    @property
    def key(self) -> str:
        """Address in the store."""
        return content_key("case", self.inputs)


@dataclass
class CaseMaker(Executor):
    """The executor of cases in this process. Each case is made when it is asked for."""

    context: RunContext
    _suites: dict[str, SuiteRun] = field(default_factory=dict)
    _made: dict[tuple[str, str], Case | Exception] = field(default_factory=dict)
    _destroyed: dict[tuple[str, str], _Draft] = field(default_factory=dict)

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """Planned memory, for the run's header."""
        return self.context.limits.memory_line(suites)

    def run_of(self, suite: Suite) -> SuiteRun:
        """State that the cases of this suite share."""
        return self._suites.setdefault(suite.digest, SuiteRun(self.context, suite))

    def defended(self, suite: Suite) -> Defended:
        """The candidate with this run's defense."""
        return self.run_of(suite).defended

    def case(self, declared: CaseTask) -> Case:
        """A case, from this process, from the store, or made now."""
        attack = self.run_of(declared.suite).as_run(declared.attack) if declared.attack else None
        task = dataclasses.replace(declared, attack=attack)
        if task.address not in self._made:
            if self.context.runs_in_fleet(task.suite, attack) and self._is_missing(task):
                self._make_fleet(task)
            else:
                self._made[task.address] = self._make(task)
        made = self._made[task.address]
        if isinstance(made, Exception):
            raise made
        if draft := self._destroyed.get(task.address):
            made = self._made[task.address] = self._restrain(draft, made)
            del self._destroyed[task.address]
        return made

    def _is_missing(self, task: CaseTask) -> bool:
        """True if a case was neither made here nor stored."""
        key = content_key("case", self.run_of(task.suite).case_inputs(task))
        return task.address not in self._made and self.context.store.get("case", key) is None

    def _make_fleet(self, task: CaseTask) -> None:
        """Makes a case together with others of its kind. Each case is kept, or the exception that ended it."""
        from rn_harness.training.fleet import Fleet

        suite, together = task.suite, self._companions(task)
        for other in together if task.kind == "attack" else ():
            with suppress(Exception):  # the attack that needs this control reports it
                self.case(CaseTask("control", suite, other.attack))
        run = self.run_of(suite)
        defended = run.model_under_test(task)
        _ = run.panel, run.certificates, run.second_certificate  # before the members wait for each other
        group = f"{suite.domain}: {len(together)} {task.kind}s together" if len(together) > 1 else None
        if group:
            ids = ", ".join(other.attack.id for other in together if other.attack)
            self.context.say(Progress(group, 0, 0, ids, stays=True))

        def maker(member: CaseTask) -> Callable[[LanguageModel], Case]:
            return lambda model: self._make(member, FleetMember(model, group))

        def halved(most: int) -> None:
            state = f"memory ran out: from here on at most {most} of them pass at a time"
            self.context.say(Progress(str(group), 0, 0, state, stays=True))

        fleet = Fleet(self.context.model(defended), self.context.candidate.threads, halved)
        made = fleet.run([maker(member) for member in together])
        self._made |= {member.address: case for member, case in zip(together, made, strict=True)}

    def _companions(self, task: CaseTask) -> list[CaseTask]:
        """The case and the upcoming cases of its kind that are not made yet, as many as memory holds."""
        context, suite = self.context, task.suite
        wanted = (task.kind, "attack")  # each attack also needs its control
        attacks = [t.attack for t in context.upcoming if t.attack and t.kind in wanted and t.suite.digest == suite.digest]
        upcoming = [CaseTask(task.kind, suite, context.limits.fitted(suite, attack)) for attack in attacks]
        distinct = {t.address: t for t in upcoming if t.address != task.address}  # a case twice would wait for itself
        others = [t for t in distinct.values() if context.runs_in_fleet(suite, t.attack) and self._is_missing(t)]
        found = [task, *others[: context.options.fleet - 1]]
        while len(found) > 1 and not context.limits.fit_together(suite, [t.attack for t in found if t.attack]):
            found.pop()
        return found

    def _make(self, task: CaseTask, member: FleetMember | None = None) -> Case:
        draft = self._draft(task)
        evidence, measured, stored = draft.evidence, None, False
        if draft.defended is not None:
            try:
                work = _Work(task, draft.inputs, lambda run: evidence.model_copy(update={"trajectory": run}))
                trajectory, measured, stored = self._trajectory(draft, work, member)
            except RnHarnessError as error:
                # Several processes must agree, so that only errors that all of them meet are recorded.
                optional = evidence.standing == "out_of_claim" and ranks().size == 1
                if not (isinstance(error, UnsuitedError) or optional):
                    raise
                changes = {"refused": str(error), "control": None, "report": None, "report_due": False}
                changes["within_claim"] = task.suite.standing_of(task.case_id)[1]
                evidence = evidence.model_copy(update=changes)
            else:
                evidence = evidence.model_copy(update={"trajectory": trajectory})
        record = self._write_record(draft, evidence, measured)
        if record.verdict.finding == "degenerate" and restrained_due(evidence):
            self._destroyed[task.address] = draft
        folder, hashes = (draft.defended.folder, draft.defended.hashes) if draft.defended else (None, {})
        return Case(record, task.suite.domain, stored, draft.folder, folder, hashes)

    def _restrain(self, draft: _Draft, case: Case) -> Case:
        """A case whose attack destroyed the model, with the restrained attacks that its verdict needs."""
        context, run, task = self.context, self.run_of(draft.task.suite), draft.task
        evidence, measured, stored = case.record.evidence, case.record.measured, case.stored
        record = case.record
        while (recipe := restrained_due(evidence)) and measured:
            try:
                context.limits.check(recipe)
            except RecipeError:  # 4-bit weights have no KL penalty; the verdict says that a restrained attack is missing
                break
            number = len(evidence.restrained) + 1
            which = f"restrained attack {number} of at most {len(BETAS)}, seed {recipe.seed}, KL penalty {recipe.beta:g}"
            context.say(Progress(task.name, 0, 0, f"the model was destroyed; {which}", stays=True))
            control = self._trajectory(draft, self._work("control", number, recipe, run, functools.partial(_unchanged, evidence)))
            placed = functools.partial(_with_restrained, evidence, control[0])
            attack = self._trajectory(draft, self._work("attack", number, recipe, run, placed))
            evidence, stored = placed(attack[0]), stored or control[2] or attack[2]
            measured = min((measured, control[1], attack[1]), key=lambda of: of.started).model_copy(
                update={"ended": max(of.ended for of in (measured, control[1], attack[1]))}
            )
            record = self._write_record(draft, evidence, measured)
        return dataclasses.replace(case, record=record, stored=stored)

    def _work(
        self, kind: CaseKind, number: int, recipe: AttackRecipe, run: SuiteRun, place: Callable[[Trajectory], Evidence]
    ) -> _Work:
        """A restrained attack or its control."""
        task = CaseTask(kind, run.suite, recipe)
        return _Work(task, run.case_inputs(task), place, restrained_file(number, kind))

    def _draft(self, task: CaseTask) -> _Draft:
        started, clock = now(), time.monotonic()
        kind, suite, attack, run = task.kind, task.suite, task.attack, self.run_of(task.suite)
        evidence = Evidence(
            kind=kind,
            policy=suite.policy,
            trajectory=None,
            standing=attack.standing if attack else "claim",
            within_claim=suite.standing_of(task.case_id)[1],
            subject=NO_DEFENSE if kind in UNDEFENDED else self.context.defense_name,
            exact_judge=run.judges.evaluation.exact,
            certificates=run.certificates,
            second_certificate=run.second_certificate,
            attack_cases=sum(a.claim for a in suite.tier_attacks(self.context.options.tier)) or 1,
        )
        if unfit_judges(evidence):  # hours of training would end without a verdict
            inputs = {"suite": suite.digest, "case": task.case_id}
            key = content_key("case", inputs)
            return _Draft(task, key, inputs, self._case_folder(task, key), evidence, started, clock)
        defended, inputs = run.model_under_test(task), run.case_inputs(task)
        key = content_key("case", inputs)
        folder = self._case_folder(task, key)
        # The control is first: the leak is measured on its answers.
        control = self.case(CaseTask("control", suite, attack)) if kind == "attack" and attack else None
        changes = {
            "control": control.record.evidence.trajectory if control else None,
            "report": defended.report if kind == "defense" else None,
            "report_due": kind == "defense" and self.context.defense_recipe(suite) is not None,
            "subject": defended.subject,
            "within_claim": suite.standing_of(task.case_id, attack)[1],
        }
        return _Draft(task, key, inputs, folder, evidence.model_copy(update=changes), started, clock, defended)

    def _case_folder(self, task: CaseTask, key: str) -> Path:
        folder = self.context.folder / "cases" / f"{task.suite.domain}-{task.case_id}-{key[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _trajectory(self, draft: _Draft, work: _Work, member: FleetMember | None = None) -> tuple[Trajectory, Measurement, bool]:
        """One trajectory of a case, when it was measured, and true if it comes from the store."""
        draft.keys.append(work.key)
        found = self._failed(draft, work)
        if found is None:
            with self.context.entry("case", work.key) as entry:
                trajectory, measured = _read(entry) if entry else self._measure(draft, work, member)
            if work.task.kind not in UNDEFENDED:  # what others have measured, perhaps meanwhile
                trajectory = ranks().first(lambda: with_others(trajectory, self._journal(work)))
            found = self._failed(draft, work) or (trajectory, measured, entry is not None)
        if found[2]:
            write_text(draft.folder / work.file, found[0].lines)
        return found

    def _failed(self, draft: _Draft, work: _Work) -> tuple[Trajectory, Measurement, bool] | None:
        """The stored trajectory of another attempt, under another key, that failed: no case is measured until it passes."""

        def first() -> tuple[str, Trajectory, Measurement] | None:
            entries = ((key, self.context.store.get("case", key)) for key in self._journal(work).other_keys)
            tries = ((key, *_read(entry)) for key, entry in entries if entry)
            return next((of for of in tries if decide(work.place(of[1])).outcome == "FAIL"), None)

        found = ranks().first(first)
        if found is None:
            return None
        draft.keys.append(found[0])
        return (*found[1:], True)

    def _journal(self, work: _Work) -> Journal:
        """The journal of a trajectory's attempts, which reads those of attempts under other keys."""
        rounds = self.context.on == "cuda" or self.context.runs_in_fleet(work.task.suite, work.task.attack)
        same = {name: value for name, value in work.inputs.items() if name not in UNSTEADY}
        return self.context.store.journal(work.key, ROUNDING if rounds else 0.0, content_key("case", same))

    def _measure(self, draft: _Draft, work: _Work, member: FleetMember | None) -> tuple[Trajectory, Measurement]:
        """Measures a trajectory of a case and puts it into the store."""
        context, task, started = self.context, work.task, now()
        run = self.run_of(task.suite)
        defended = run.model_under_test(task)

        def record(trajectory: Trajectory) -> CaseRecord:
            measured = Measurement(run_id=context.run_id, started=draft.started, ended=now())
            return self._write_record(draft, work.place(trajectory), measured)

        context.say_why_new("case", work.inputs, task.name)
        journal = self._journal(work)
        with attempt(context.store, work.key) as trial, time_limit(context.options.case_timeout):
            made = Measuring(run, task, defended, draft.folder, journal, record, member, work.file).measure()
            trial.outcome = "judge_failed" if made.judge_failed else "done"
        trajectory = ranks().first(lambda: made)
        measured = Measurement(run_id=context.run_id, started=started, ended=now())
        context.candidate.verify()
        defended.verify()
        # After a failure of infrastructure the next run tries again. But a breach that was seen stays seen.
        outcome = decide(work.place(trajectory)).outcome
        if outcome == "FAIL" or not trajectory.judge_failed:
            files = {TRAJECTORY: trajectory.model_dump_json(), MEASURED: measured.model_dump_json()}
            context.put("case", work.key, files, work.inputs)
        if not is_telling(task, trajectory, outcome, journal):
            journal.close()
        return trajectory, measured

    def _write_record(self, draft: _Draft, evidence: Evidence, measured: Measurement | None) -> CaseRecord:
        """Decides, and writes the record of the case."""
        task = draft.task
        record = CaseRecord(
            run_id=self.context.run_id,
            measured=measured,
            inputs=draft.inputs,
            known=self.run_of(task.suite).opaque_certificates if draft.defended else {},
            case_id=task.case_id,
            identity=self.context.identity(task.suite, draft.defended),
            provenance=self._provenance(draft),
            evidence=evidence,
            verdict=decide(evidence),
            started=draft.started,
            ended=now(),
            wall_s=round(time.monotonic() - draft.clock, 3),
        )
        write_text(draft.folder / RECORD, record.model_dump_json(indent=1) + "\n")
        return record

    def _provenance(self, draft: _Draft) -> CaseProvenance:
        """Commit, defense and attempts behind a case; asked when it has ended, so that its own attempt is included."""
        context, task = self.context, draft.task
        recipe = None if task.kind in UNDEFENDED else context.defense_recipe(task.suite)
        training: tuple[Any, ...] = ()
        if recipe:
            recipe = context.limits.fitted(task.suite, recipe)
            if task.kind == "defense":
                training = attempts(context.store, content_key("defense", self.run_of(task.suite).defense_inputs(recipe)))
        return CaseProvenance(
            tree=working_tree(task.suite.folder),
            defense=recipe.model_dump(mode="json") if recipe else None,
            attempts=tuple(tried for key in draft.keys for tried in attempts(context.store, key)),
            training=training,
        )


def _read(entry: Path) -> tuple[Trajectory, Measurement]:
    """A stored trajectory, and when it was measured."""
    texts = [(entry / name).read_text(encoding="utf-8") for name in (TRAJECTORY, MEASURED)]
    return Trajectory.model_validate_json(texts[0]), Measurement.model_validate_json(texts[1])


def _unchanged(evidence: Evidence, _: Trajectory) -> Evidence:
    """The evidence without a control that may be cut off."""
    return evidence


def _with_restrained(evidence: Evidence, control: Trajectory, attack: Trajectory) -> Evidence:
    """The evidence with one more restrained attack."""
    return evidence.model_copy(update={"restrained": (*evidence.restrained, RestrainedAttack(attack=attack, control=control))})


@dataclass
class RunSession(RunContext):
    """Gives the cases of a run by its executor: ``local`` unless they are made elsewhere. Each pytest process has one."""

    local: CaseMaker = field(init=False, repr=False)
    executor: Executor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.executor = self.local = CaseMaker(self)

    def case(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None = None) -> Case:
        """A case; ``attack`` is for controls and attacks. An ``ExecutorError`` if it is made elsewhere and does not arrive."""
        return self.executor.case(CaseTask(kind, suite, attack))

    def defended(self, suite: Suite) -> Defended:
        """The candidate with this run's defense; trained once per candidate and recipe."""
        return self.executor.defended(suite)

    def run_of(self, suite: Suite) -> SuiteRun:
        """State that the cases of this suite share in this process."""
        return self.local.run_of(suite)
