"""The executor ``--rn-executor ray[:ADDRESS]``: each case of a run is a job on a Ray cluster.

The process with pytest submits each case when its needs are met, passes on their results, and takes no card.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rn_harness.records.base import read_record
from rn_harness.records.case import Attempt, CaseRecord
from rn_harness.release.integrity import check_record
from rn_harness.run.case import Case, CasePlan, CaseTask, Defended
from rn_harness.run.estimate import Demand
from rn_harness.run.executors.acceptance import control_mismatches, mismatches, received_defense
from rn_harness.run.executors.ray_cluster import Cluster, Job, JobResult, Work
from rn_harness.run.executors.worker import CaseRequest, Survey, WorkerResult, add_entries, make_case, survey
from rn_harness.run.session import RECORD, RunSession
from rn_harness.spec.errors import ExecutorError, RecipeError
from rn_harness.spec.options import RAY
from rn_harness.spec.suite import Suite
from rn_harness.store.store import write_text


@dataclass
class OnRay:
    """Gives a session the cases that a cluster makes; see ``Executor``.

    Attributes:
        session: of the process with pytest.
        cluster: runs the jobs.
        surveyed: the cluster's answer before the run.
        tasks: the cases that the run will ask for.
    """

    session: RunSession
    cluster: Cluster
    surveyed: Survey
    tasks: Sequence[CaseTask] = ()
    _cases: dict[str, Case] = field(default_factory=dict)

    @classmethod
    def begin(cls, session: RunSession, tasks: Iterable[CaseTask], work: Work = make_case) -> OnRay:
        """Connects, and checks that the run can be made there. ``start`` submits the cases.

        Args:
            session: of the process with pytest.
            tasks: the cases that it will ask for.
            work: makes a case.

        Raises:
            RecipeError: the run cannot be made there.
            ExecutorError: the cluster does not answer.
        """
        cluster = Cluster(session.options.executor.removeprefix(RAY).removeprefix(":"), work, session.say)
        planned = CasePlan.of(tasks, session.defense_recipe).tasks
        whole = _whole_card(session, cluster)
        if problem := cluster.too_large({"a look at the machine": whole}):
            raise RecipeError(problem)
        surveyed: Survey = cluster.ask(survey, session.options, planned, demand=whole)
        errors = [*surveyed.errors, *filter(None, [cluster.too_large(surveyed.demands)])]
        if errors:
            raise RecipeError("\n".join(errors))
        return cls(session, cluster, surveyed, planned)

    def start(self) -> None:
        """Submits the cases that the run will ask for."""
        self._submit(self.tasks)

    def close(self) -> None:
        """Cancels running jobs and disconnects."""
        self.cluster.close()

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """Memory that was planned on the cluster."""
        return f"of each case: {self.surveyed.memory}"

    def defended(self, suite: Suite) -> Defended:
        """The candidate with this run's defense."""
        return received_defense(self.session, suite, self.case)

    def case(self, declared: CaseTask) -> Case:
        """A case; waits for it."""
        if declared.name not in self._cases:
            if declared.name not in self.cluster:
                self._submit([declared])
            self._cases[declared.name] = self._accept(declared, self.cluster.result(declared.name))
        return self._cases[declared.name]

    def _submit(self, tasks: Iterable[CaseTask]) -> None:
        """Submits these cases and those that they need."""
        session, plan = self.session, CasePlan.of(tasks, self.session.defense_recipe)
        wanted = {name for needed in plan.needs.values() for name in needed}
        unknown = _whole_card(session, self.cluster)
        self.cluster.add(
            Job(
                name,
                CaseRequest(session.options, session.run_folder.name, session.run_id, task, self.surveyed.free, name in wanted),
                self.surveyed.demands.get(name, unknown),
                plan.needs[name],
                plan.priorities[name],
            )
            for task in plan.tasks
            for name in [task.name]
        )

    def _accept(self, task: CaseTask, job: JobResult) -> Case:
        """Places the files of a case here, and checks that they are those of this run's case."""
        result = job.result
        folder = self._place(result)
        if result.error is not None or folder is None:
            raise ExecutorError(result.error or "no case came of it")
        try:
            record = read_record(result.files[RECORD], CaseRecord)
        except (KeyError, ValueError) as error:
            raise ExecutorError(f"{task.name}: a record must come back, got {type(error).__name__}; run again") from None
        problems = [r.sentence for r in check_record(folder / RECORD, record)]
        problems += mismatches(self.session, task, record)
        problems += control_mismatches(task, record, self.case)
        if problems:
            raise ExecutorError(
                f"the record of {task.name} must be one of this run, got: {'; '.join(problems)}; have the same files and "
                "packages on each node"
            )
        record = _with_failures(record, job.failed)
        write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
        add_entries(self.session.store, (e for e in result.entries if e.kind == "defense"))
        return Case(record, task.suite.domain, result.stored, folder, self._weights(task, result), result.weights)

    def _place(self, result: WorkerResult) -> Path | None:
        """Writes a case's files into the run's folder, also those of a case that was cut off."""
        for name, raw in result.transcripts.items():
            path = self.session.options.path(self.session.options.transcripts or "") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(raw)
        if result.folder is None:
            return None
        folder = self.session.folder / "cases" / result.folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, raw in result.files.items():
            write_text(folder / name, raw.decode("utf-8"))
        return folder

    def _weights(self, task: CaseTask, result: WorkerResult) -> Path | None:
        """Folder of the defended weights on this machine."""
        if result.defended is None:
            return None
        if self.session.defense_recipe(task.suite) is None:
            return Path(result.defended)
        made = self.cluster.result(CaseTask("defense", task.suite).name).result
        entries = [entry for entry in made.entries if entry.kind == "defense"]
        add_entries(self.session.store, entries)
        stored = self.session.store.get("defense", entries[0].key) if entries else None
        return stored / result.defended if stored else None


def _whole_card(session: RunSession, cluster: Cluster) -> Demand:
    """Demand of a case whose memory is unknown: a card, if there are any."""
    return Demand(session.candidate.threads, 1.0 if cluster.has_cards else 0.0, 0)


def _with_failures(record: CaseRecord, failed: Sequence[Attempt]) -> CaseRecord:
    """The record with the tries that a machine's failure ended. A store that the machines share has noted them already."""
    tried = record.provenance.attempts
    unknown = failed[: max(0, len(failed) - sum(a.outcome == "cut" for a in tried))]
    provenance = record.provenance.model_copy(update={"attempts": (*unknown, *tried)})
    return record.model_copy(update={"provenance": provenance})
