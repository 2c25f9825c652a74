"""Has a run's cases made on a Ray cluster: ``--rn-executor ray[:ADDRESS]``. Floor 4 (run); the only module that knows Ray.

The process with pytest submits each case once all that it needs is there, hands on what others need of it, and holds no card. A
machine that fails is no verdict: its case is submitted again, a bounded number of times, each of which stands in the record. Ray
itself repeats nothing, so that no finished measurement is made again behind our back.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.records.base import CaseKind
from rn_harness.records.case import Attempt, CaseRecord
from rn_harness.release.integrity import of_record
from rn_harness.report.progress import Progress
from rn_harness.run.case import Case
from rn_harness.run.executors.acceptance import foreign, strange_control
from rn_harness.run.executors.order import Demand, closed, waits_and_ranks
from rn_harness.run.executors.protocol import RAY
from rn_harness.run.executors.worker import Entry, Order, Outcome, Survey, Tell, make_case, survey, take_in
from rn_harness.run.lineup import CaseTask
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import ExecutorError, RecipeError
from rn_harness.spec.extras import require
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import now
from rn_harness.store.store import write_text

RETRIES = 3
"""How often a case begins again after a machine, a worker or its memory failed."""
LOOK_S = 1.0
"""How long to wait for the end of a case before signs of life are shown."""
KNOCK_S = 10.0
"""How long to wait for a cluster to answer at its address."""
RECORD = "record.json"
Work = Callable[[Any, Sequence[Entry], Tell], Outcome]


@dataclass(frozen=True)
class Job:
    """Something to be done on the cluster.

    Attributes:
        name: of all jobs.
        order: what the work is told.
        demand: what it takes.
        waits: names of the jobs whose entries it needs.
        rank: the highest is submitted first of those that can begin.
    """

    name: str
    order: Any
    demand: Demand
    waits: tuple[str, ...] = ()
    rank: float = 0.0


@dataclass(frozen=True)
class Done:
    """What a job came to.

    Attributes:
        outcome: of the work; of machines that failed too often, their error.
        failed: tries that a machine's failure cut.
    """

    outcome: Outcome
    failed: tuple[Attempt, ...]


class Lines:
    """Signs of life on their way to the process with the terminal; an actor."""

    def __init__(self) -> None:
        self._told: list[Progress] = []

    def tell(self, progress: Progress) -> None:
        """Takes one."""
        self._told.append(progress)

    def taken(self) -> list[Progress]:
        """All that came since the last call."""
        told, self._told = self._told, []
        return told


@dataclass
class Cluster:
    """Submits jobs to Ray, and gathers what they come to.

    Attributes:
        address: of the cluster; empty: the one that this machine is part of, else one is begun here and ends with us.
        work: what a job is, ``make_case`` but in tests and benchmarks.
        say: gets signs of life.
    """

    address: str
    work: Work
    say: Tell
    _jobs: dict[str, Job] = field(default_factory=dict)
    _running: dict[Any, str] = field(default_factory=dict)
    _begun: dict[str, str] = field(default_factory=dict)
    _failed: dict[str, list[Attempt]] = field(default_factory=dict)
    _done: dict[str, Done] = field(default_factory=dict)
    _entries: dict[str, Any] = field(default_factory=dict)
    _ours: bool = False

    def __post_init__(self) -> None:
        """Connects.

        Raises:
            RecipeError: Ray is not installed, or the cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a run is told to anybody
        on_termination = signal.getsignal(signal.SIGTERM)
        require("ray", "--rn-executor ray")
        import ray

        if not ray.is_initialized():
            try:
                _knock(self.address)
                ray.init(address=self.address or None, log_to_driver=False, logging_level="ERROR")
            except (OSError, RuntimeError, ValueError) as error:
                raise RecipeError(
                    f"--rn-executor ray:ADDRESS must be that of a cluster that runs, got {self.address!r}: "
                    f"{type(error).__name__}; ray status shows one, ray start --head begins one"
                ) from None
            self._ours = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_termination)  # Ray puts one in its place that ends this process as it stands
        # From here on this process sees no card: none of its memory is taken from the cases.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    @property
    def has_cards(self) -> bool:
        """Whether any node has one."""
        import ray

        return bool(ray.cluster_resources().get("GPU", 0))

    def ask(self, question: Callable[..., Any], *arguments: Any, demand: Demand) -> Any:
        """The answer of a process on the cluster; not for what takes long.

        Raises:
            ExecutorError: it failed.
        """
        import ray

        try:
            return ray.get(self._remote(question, demand).remote(*arguments))
        except ray.exceptions.RayError as error:
            raise ExecutorError(f"the cluster must answer before a run begins, got {_cause(error)}; look at its logs") from None

    def unfit(self, demands: Mapping[str, Demand]) -> str | None:
        """Which job no node that is up has room for, and why; None where each has one."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for name, demand in demands.items():
            asked = {"CPU": demand.cpus, "GPU": demand.gpus, "memory": demand.memory}
            if not any(all(node.get(what, 0) >= n for what, n in asked.items()) for node in nodes):
                told = ", ".join(
                    f"{what} {max(node.get(what, 0) for node in nodes):g} of {n:g}" for what, n in asked.items() if n
                )
                return f"a node must have room for {name}, got at most {told}"
        return None

    def add(self, jobs: Iterable[Job]) -> None:
        """Takes jobs; those that can begin are submitted."""
        self._jobs |= {job.name: job for job in jobs if job.name not in self._jobs}
        self._submit_ready()

    def __contains__(self, name: str) -> bool:
        return name in self._jobs

    def result(self, name: str) -> Done:
        """What a job came to, as soon as it did; meanwhile others are submitted and gathered."""
        while name not in self._done:
            self._gather()
        return self._done[name]

    def close(self) -> None:
        """Ends what runs, and takes leave."""
        import ray

        if not ray.is_initialized():
            return
        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
        if self._ours:
            ray.shutdown()

    @functools.cached_property
    def _lines(self) -> Any:
        """Beside this process, so that it goes with no other node."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote
        return remote(num_cpus=0, scheduling_strategy=here)(Lines).remote()

    def _remote(self, function: Callable[..., Any], demand: Demand) -> Any:
        """As Ray calls it: never repeated by Ray; with a card, in a process that ends with it and gives all memory back."""
        import ray

        asked = {"num_cpus": demand.cpus, "num_gpus": demand.gpus, "memory": demand.memory or None}
        remote: Any = ray.remote
        return remote(max_calls=1 if demand.gpus else 0, max_retries=0, retry_exceptions=False, **asked)(function)

    def _submit_ready(self) -> None:
        waiting = [j for j in self._jobs.values() if j.name not in self._done and j.name not in self._running.values()]
        for job in sorted(waiting, key=lambda j: -j.rank):
            if not all(name in self._done for name in job.waits):
                continue
            broken = next((name for name in job.waits if self._done[name].outcome.error), None)
            if broken is not None:
                error = f"it needs {broken}, which has no verdict: {self._done[broken].outcome.error}"
                self._done[job.name] = Done(Outcome(error=error), ())
                self._submit_ready()  # what waits for it has none either
                return
            self._submit(job)

    def _submit(self, job: Job) -> None:
        given = [self._entries[name] for name in job.waits if name in self._entries]
        reference = self._remote(_on_worker, job.demand).options(name=job.name).remote(self.work, self._lines, job.order, *given)
        self._running[reference] = job.name
        self._begun[job.name] = now()

    def _gather(self) -> None:
        """Shows signs of life, and takes in what has ended."""
        import ray

        if not self._running:
            raise ExecutorError(
                f"each job waits for others that end, got {sorted(self._jobs.keys() - self._done.keys())}; report this"
            )
        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=LOOK_S, fetch_local=False)
        for progress in ray.get(self._lines.taken.remote()):
            self.say(progress)
        for reference in ended:
            self._settle(reference)
        if ended:
            self._submit_ready()

    def _settle(self, reference: Any) -> None:
        import ray

        name = self._running.pop(reference)
        failed = self._failed.setdefault(name, [])
        try:
            outcome = ray.get(reference)
        except ray.exceptions.RayError as error:
            if not isinstance(error, _machine_failures()):
                outcome = Outcome(error=f"its process on the cluster failed: {_cause(error)}")
            else:
                failed.append(Attempt(started=self._begun[name], ended=now(), outcome="cut"))
                again = len(failed) <= RETRIES
                told = (
                    f"{_cause(error)}; {'it begins again' if again else 'it is given up'}, {len(failed)} of {1 + RETRIES} tries"
                )
                self.say(Progress(name, 0, 0, f"a machine failed: {told}", stays=True))
                if again:
                    return
                outcome = Outcome(error=f"its machine failed {len(failed)} times, at last with {_cause(error)}")
        if outcome.entries:
            # From here each node gets them once, and the node that made them may go.
            self._entries[name] = ray.put(outcome.entries)
        self._done[name] = Done(outcome, tuple(failed))


def _on_worker(work: Work, lines: Any, order: Any, *given: tuple[Entry, ...]) -> Outcome:
    """Does a job in a worker."""

    def tell(progress: Progress) -> None:
        if progress.state is not None:
            lines.tell.remote(progress)

    return work(order, [entry for entries in given for entry in entries], tell)


def _knock(address: str) -> None:
    """Makes sure that somebody listens: Ray ends this whole process where nobody does.

    Raises:
        OSError: nobody does.
        ValueError: it is no address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address not in ("", "auto", "local"):
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def _machine_failures() -> tuple[type[Exception], ...]:
    """What is no result, and may do better on another machine."""
    from ray import exceptions as e

    return (e.WorkerCrashedError, e.NodeDiedError, e.LocalRayletDiedError, e.ObjectLostError, e.OutOfMemoryError)


def _cause(error: Exception) -> str:
    """An error of Ray's by its name alone: its text may quote what a process said."""
    return type(getattr(error, "cause", None) or error).__name__


@dataclass
class OnRay:
    """The executor: each case of a run is a job on the cluster. See ``executors.Executor``."""

    session: RunSession
    cluster: Cluster
    surveyed: Survey
    tasks: Sequence[CaseTask] = ()
    _cases: dict[str, Case] = field(default_factory=dict)

    @classmethod
    def begin(cls, session: RunSession, tasks: Sequence[CaseTask], work: Work = make_case) -> OnRay:
        """Connects, and makes sure before any work that the run can be made there; ``start`` submits it.

        Args:
            session: of the process with pytest.
            tasks: the cases that it will ask for.
            work: what makes a case.

        Raises:
            RecipeError: it cannot.
            ExecutorError: the cluster does not answer.
        """
        cluster = Cluster(session.options.executor.removeprefix(RAY).removeprefix(":"), work, session.say)
        every = closed(tasks, session.defense_recipe)
        alone = Demand(session.candidate.threads, 1.0 if cluster.has_cards else 0.0, 0)
        if told := cluster.unfit({"a look at the machine": alone}):
            raise RecipeError(told)
        surveyed: Survey = cluster.ask(survey, session.options, every, demand=alone)
        errors = [*surveyed.errors, *filter(None, [cluster.unfit(surveyed.demands)])]
        if errors:
            raise RecipeError("\n".join(errors))
        return cls(session, cluster, surveyed, every)

    def case(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None) -> Case:
        """One case; waits for it."""
        task = CaseTask(kind, suite, attack)
        if task.name not in self._cases:
            if task.name not in self.cluster:
                self._add(closed([task], self.session.defense_recipe))
            self._cases[task.name] = self._take(task, self.cluster.result(task.name))
        return self._cases[task.name]

    @property
    def memory(self) -> str:
        """For the header: what was planned where a case would run."""
        return f"of each case: {self.surveyed.memory}"

    def start(self) -> None:
        """Submits what the run will ask for."""
        self._add(self.tasks)

    def close(self) -> None:
        """Ends what runs."""
        self.cluster.close()

    def _add(self, tasks: Sequence[CaseTask]) -> None:
        waits, ranks = waits_and_ranks(tasks, self.session.defense_recipe)
        wanted = {name for of in waits.values() for name in of}
        unknown = Demand(self.session.candidate.threads, 1.0 if self.cluster.has_cards else 0.0, 0)
        session, free = self.session, self.surveyed.free
        self.cluster.add(
            Job(
                t.name,
                Order(session.options, session.run_folder.name, session.run_id, t, free, t.name in wanted),
                self.surveyed.demands.get(t.name, unknown),
                waits[t.name],
                ranks[t.name],
            )
            for t in tasks
        )

    def _take(self, task: CaseTask, done: Done) -> Case:
        outcome = done.outcome
        folder = self._place(outcome)
        if outcome.error is not None or folder is None:
            raise ExecutorError(outcome.error or "no case came of it")
        try:
            record = CaseRecord.model_validate_json(outcome.files[RECORD], strict=True)
        except (KeyError, ValueError) as error:
            raise ExecutorError(f"{task.name}: a record must come back, got {type(error).__name__}; run again") from None
        sentences = [r.sentence for r in of_record(folder / RECORD, record)]
        sentences += foreign(self.session, task, record)
        if task.kind == "attack" and not record.evidence.refused and record.verdict.outcome != "FAIL":
            control = self.case("control", task.suite, task.attack).record
            sentences += ["its control is not the control case of this run"] if strange_control(record, control) else []
        if sentences:
            raise ExecutorError(
                f"the record of {task.name} must be one of this run, got: {'; '.join(sentences)}; have the same files and "
                "packages on each node"
            )
        record = _with_failures(record, done.failed)
        write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
        take_in(self.session.store, (e for e in outcome.entries if e.kind == "defense"))
        return Case(record, task.suite.domain, outcome.stored, folder, self._defended(task, outcome), outcome.weights)

    def _place(self, outcome: Outcome) -> Path | None:
        """Puts a case's files into the run's folder, also those of one that was cut off."""
        for name, raw in outcome.transcripts.items():
            path = self.session.options.path(self.session.options.transcripts or "") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(raw)
        if outcome.folder is None:
            return None
        folder = self.session.folder / "cases" / outcome.folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, raw in outcome.files.items():
            write_text(folder / name, raw.decode("utf-8"))
        return folder

    def _defended(self, task: CaseTask, outcome: Outcome) -> Path | None:
        """Where the defended weights lie here."""
        if outcome.defended is None:
            return None
        if self.session.defense_recipe(task.suite) is None:
            return Path(outcome.defended)
        made = self.cluster.result(CaseTask("defense", task.suite).name).outcome
        keys = [entry.key for entry in made.entries if entry.kind == "defense"]
        take_in(self.session.store, (e for e in made.entries if e.kind == "defense"))
        entry = self.session.store.get("defense", keys[0]) if keys else None
        return entry / outcome.defended if entry else None


def _with_failures(record: CaseRecord, failed: Sequence[Attempt]) -> CaseRecord:
    """The record with the tries that a machine cut; a store that the machines share has noted them already."""
    tried = record.provenance.attempts
    unknown = failed[: max(0, len(failed) - sum(a.outcome == "cut" for a in tried))]
    provenance = record.provenance.model_copy(update={"attempts": (*unknown, *tried)})
    return record.model_copy(update={"provenance": provenance})
