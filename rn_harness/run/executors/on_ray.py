"""The executor ``--rn-executor ray[:ADDRESS]``: each case of a run is a job on a Ray cluster.

The process with pytest submits each case when its needs are met, passes on their results, and takes no card. A machine that
fails gives no verdict: its job is submitted again, a bounded number of times. Ray itself repeats nothing, so that no finished
measurement is repeated without a record.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.records.base import read_record
from rn_harness.records.case import Attempt, CaseRecord
from rn_harness.release.integrity import check_record
from rn_harness.report.progress import Progress
from rn_harness.run.case import Case, CasePlan, CaseTask
from rn_harness.run.estimate import Demand
from rn_harness.run.executors import worker
from rn_harness.run.executors.acceptance import ReceivedCases, mismatches
from rn_harness.run.executors.exchange import Exchange, on_node, on_this_node
from rn_harness.run.executors.worker import Say, WorkerResult
from rn_harness.run.session import RECORD, RunSession
from rn_harness.spec.errors import ExecutorError, RecipeError
from rn_harness.spec.extras import require
from rn_harness.spec.options import RAY
from rn_harness.spec.suite import Suite
from rn_harness.store.files import write_text
from rn_harness.store.provenance import now, versions
from rn_harness.store.shared import SharedEntry
from rn_harness.store.store import Store
from rn_harness.verdict.coherence import differing

RETRIES = 3
"""How often a job is repeated after a machine, a worker or its memory failed."""
PROGRESS_S = 1.0
"""Seconds between two looks at the progress of running jobs."""
CONNECT_S = 10.0
"""Seconds to wait for a cluster to answer at its address."""
Work = Callable[[Any, Sequence[SharedEntry], Say], WorkerResult]


@dataclass
class Job:
    """Work for the cluster, and its state.

    Attributes:
        name: unique among the jobs.
        request: argument of the work.
        demand: resources that it takes.
        needs: names of the jobs whose entries it takes.
        priority: of the jobs that can begin, the highest is submitted first.
        started: when it was last submitted.
        failed: tries that a failure of a machine ended.
        result: of the work, or an error if its machines failed too often; None until it has ended.
    """

    name: str
    request: Any
    demand: Demand
    needs: tuple[str, ...] = ()
    priority: float = 0.0
    started: str = ""
    failed: list[Attempt] = field(default_factory=list)
    result: WorkerResult | None = None


@dataclass
class Cluster:
    """Submits jobs to Ray and collects their results.

    Attributes:
        address: of the cluster; empty: the one that this machine belongs to, or one that is started here and ends with us.
        work: does a job: ``make_case``, or a replacement in tests and benchmarks.
        say: gets progress.
        store: of this process; the entries of a job are added to it, and the jobs that need it read them there.
    """

    address: str
    work: Work
    say: Say
    store: Store
    _jobs: dict[str, Job] = field(default_factory=dict)
    _running: dict[Any, Job] = field(default_factory=dict)
    _connected_here: bool = False

    def __post_init__(self) -> None:
        """Connects. Raises RecipeError if Ray is not installed, or if the cluster cannot be reached."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run reports nothing to third parties
        on_termination = signal.getsignal(signal.SIGTERM)
        require("ray", "--rn-executor ray")
        import ray

        if not ray.is_initialized():
            try:
                host, _, port = self.address.removeprefix("ray://").rpartition(":")
                if self.address not in ("", "auto", "local"):  # Ray would end this whole process if no process listens there
                    socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
                ray.init(address=self.address or None, log_to_driver=False, logging_level="ERROR")
            except (OSError, RuntimeError, ValueError) as error:
                raise RecipeError(
                    f"--rn-executor ray:ADDRESS must be that of a cluster that runs, got {self.address!r}: "
                    f"{type(error).__name__}; ray status shows one, ray start --head begins one"
                ) from None
            self._connected_here = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_termination)  # Ray's handler would end this process at once
        # This process sees no card from here on, so that it takes no memory from the cases.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def whole_card(self, threads: int) -> Demand:
        """Demand of work whose memory is unknown: a card, if a node has one."""
        import ray

        return Demand(threads, 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0, 0)

    def ask(self, question: Callable[..., Any], *arguments: Any, demand: Demand) -> Any:
        """The answer of a process on the cluster; for short work. Raises ExecutorError if it fails."""
        import ray

        try:
            return ray.get(self._remote(question, demand).remote(*arguments))
        except ray.exceptions.RayError as error:
            raise ExecutorError(f"the cluster must answer before a run begins, got {_cause(error)}; look at its logs") from None

    def too_large(self, demands: Mapping[str, Demand]) -> str | None:
        """The first demand that no living node has room for, as a sentence; None if each fits."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for name, demand in demands.items():
            asked = {"CPU": demand.cpus, "GPU": demand.gpus, "memory": demand.memory}
            if not any(all(node.get(resource, 0) >= n for resource, n in asked.items()) for node in nodes):
                most = ", ".join(
                    f"{resource} {max(node.get(resource, 0) for node in nodes):g} of {n:g}" for resource, n in asked.items() if n
                )
                return f"a node must have room for {name}, got at most {most}"
        return None

    def strange_node(self) -> str | None:
        """The first node whose packages are not those of this process, as a sentence; None if there is none.

        A case that is made there would be refused after its hours. Raises ExecutorError if a node does not answer.
        """
        import ray

        ask, here = self._remote(_versions, Demand(0, 0.0, 0)), versions()
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        answers = [ask.options(scheduling_strategy=on_node(node["NodeID"])).remote() for node in nodes]
        for node, answer in zip(nodes, answers, strict=True):
            try:
                there = ray.get(answer)
            except ray.exceptions.RayError as error:
                raise ExecutorError(
                    f"each node must answer, got {_cause(error)} of {node['NodeName']}; look at its logs"
                ) from None
            if others := [f"{name} {there.get(name)}, here {here.get(name)}" for name in differing(there, here)]:
                got = f"{'; '.join(others)} on {node['NodeName']}"
                return f"each node must have the packages that are here, got {got}; install them"
        return None

    def add(self, jobs: Iterable[Job]) -> None:
        """Adds jobs; those that can begin are submitted."""
        self._jobs |= {job.name: job for job in jobs if job.name not in self._jobs}
        self._submit_ready()

    def __contains__(self, name: str) -> bool:
        return name in self._jobs

    def result(self, name: str) -> WorkerResult:
        """Waits for the result of a job; meanwhile submits and collects others."""
        while (result := self._jobs[name].result) is None:
            self._collect()
        return result

    def close(self) -> None:
        """Cancels running jobs, and disconnects."""
        import ray

        if not ray.is_initialized():
            return
        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
        if self._connected_here:
            ray.shutdown()

    @functools.cached_property
    def _progress(self) -> Any:
        """The queue of progress."""
        from ray.util.queue import Queue

        return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": on_this_node()})

    @functools.cached_property
    def _exchange(self) -> Exchange:
        """The store of this process, for workers."""
        return Exchange.begin(self.store)

    def _remote(self, function: Callable[..., Any], demand: Demand) -> Any:
        """A function for Ray that it never repeats. With a card, its process ends with it and frees the card's memory."""
        import ray

        asked = {"num_cpus": demand.cpus, "num_gpus": demand.gpus, "memory": demand.memory or None}
        remote: Any = ray.remote
        return remote(max_calls=1 if demand.gpus else 0, max_retries=0, retry_exceptions=False, **asked)(function)

    def _submit_ready(self) -> None:
        """Submits the jobs whose needs are met. A job that needs a failed one fails, and so do those that need it."""
        running = {job.name for job in self._running.values()}
        waiting = [job for job in self._jobs.values() if job.result is None and job.name not in running]
        for job in sorted(waiting, key=lambda j: -j.priority):
            needed = {name: self._jobs[name].result for name in job.needs}
            broken = next(((name, of.error) for name, of in needed.items() if of and of.error), None)
            if None in needed.values():
                continue
            if broken is not None:
                job.result = WorkerResult(error=f"it needs {broken[0]}, which has no verdict: {broken[1]}")
                self._submit_ready()
                return
            given = [entry for result in needed.values() if result for entry in result.entries]
            function = self._remote(_on_worker, job.demand).options(name=job.name)
            self._running[function.remote(self.work, self._progress, self._exchange, job.request, given)] = job
            job.started = now()

    def _collect(self) -> None:
        """Shows progress, and collects the jobs that have ended."""
        import ray

        if not self._running:
            unended = sorted(job.name for job in self._jobs.values() if job.result is None)
            raise ExecutorError(f"each job waits for others that end, got {unended}; report this")
        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=PROGRESS_S, fetch_local=False)
        for progress in self._progress.get_nowait_batch(self._progress.qsize()):
            self.say(progress)
        for reference in ended:
            self._settle(self._running.pop(reference), reference)
        if ended:
            self._submit_ready()

    def _settle(self, job: Job, reference: Any) -> None:
        """Keeps the result of a job that has ended, or leaves it to be submitted again."""
        import ray
        from ray import exceptions as e

        # After one of these errors, another machine may succeed.
        of_machine = (e.WorkerCrashedError, e.NodeDiedError, e.LocalRayletDiedError, e.ObjectLostError, e.OutOfMemoryError)
        try:
            result = ray.get(reference)
        except of_machine as error:
            job.failed.append(Attempt(started=job.started, ended=now(), outcome="cut"))
            failures = len(job.failed)
            next_step = f"{'it begins again' if failures <= RETRIES else 'it is given up'}, {failures} of {1 + RETRIES} tries"
            self.say(Progress(job.name, 0, 0, f"a machine failed: {_cause(error)}; {next_step}", stays=True))
            if failures <= RETRIES:
                return
            result = WorkerResult(error=f"its machine failed {failures} times, at last with {_cause(error)}")
        except e.RayError as error:
            result = WorkerResult(error=f"its process on the cluster failed: {_cause(error)}")
        job.result = dataclasses.replace(result, failed=tuple(job.failed))


def _on_worker(work: Work, queue: Any, exchange: Exchange, request: Any, given: Sequence[SharedEntry]) -> WorkerResult:
    """Does a job in a worker."""

    def say(progress: Progress) -> None:
        if progress.state is not None:
            queue.actor.put_nowait.remote(progress)

    result = work(request, given, say)
    return dataclasses.replace(result, entries=tuple(map(exchange.send, result.entries)))


def _versions() -> dict[str, str]:
    """Versions of the packages of a worker's node."""
    return versions()


def _cause(error: Exception) -> str:
    """The name of Ray's error; its text may quote a completion."""
    return type(getattr(error, "cause", None) or error).__name__


@dataclass
class OnRay(ReceivedCases):
    """Gives a session the cases that a cluster makes: after it was surveyed, those in ``tasks``, and later any other."""

    cluster: Cluster
    surveyed: worker.Survey
    tasks: Sequence[CaseTask] = ()

    @classmethod
    def begin(cls, session: RunSession, tasks: Iterable[CaseTask]) -> OnRay:
        """Connects, and checks that the cases that pytest's process will ask for can be made there.

        Raises RecipeError if they cannot, and ExecutorError if the cluster does not answer.
        """
        cluster = Cluster(
            session.options.executor.removeprefix(RAY).removeprefix(":"), worker.make_case, session.say, session.store
        )
        planned = CasePlan.of(tasks, session.defense_recipe).tasks
        whole = cluster.whole_card(session.candidate.threads)
        if problem := cluster.too_large({"a look at the machine": whole}) or cluster.strange_node():
            raise RecipeError(problem)
        surveyed: worker.Survey = cluster.ask(worker.survey, session.options, planned, demand=whole)
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

    def _submit(self, tasks: Iterable[CaseTask]) -> None:
        """Submits these cases and those that they need."""
        session, free, plan = self.session, self.surveyed.free, CasePlan.of(tasks, self.session.defense_recipe)
        wanted = {name for needed in plan.needs.values() for name in needed}
        unknown = self.cluster.whole_card(session.candidate.threads)
        self.cluster.add(
            Job(
                task.name,
                worker.CaseRequest(session.options, session.run_folder.name, session.run_id, task, free, task.name in wanted),
                self.surveyed.demands.get(task.name, unknown),
                plan.needs[task.name],
                plan.priorities[task.name],
            )
            for task in plan.tasks
        )

    def _accept(self, task: CaseTask) -> Case:
        """Places the files of a case here, and checks that they are those of this run's case."""
        if task.name not in self.cluster:
            self._submit([task])
        result = self.cluster.result(task.name)
        folder = self._place(result)
        if result.error is not None or folder is None:
            raise ExecutorError(result.error or "no case came of it")
        try:
            record = read_record(result.files[RECORD], CaseRecord)
        except (KeyError, ValueError) as error:
            raise ExecutorError(f"{task.name}: a record must come back, got {type(error).__name__}; run again") from None
        problems = [r.sentence for r in check_record(folder / RECORD, record)]
        problems += [*mismatches(self.session, task, record), *self.control_mismatches(task, record)]
        if problems:
            raise ExecutorError(
                f"the record of {task.name} must be one of this run, got: {'; '.join(problems)}; have the same files and "
                "packages on each node"
            )
        record = _with_failures(record, result.failed)
        write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
        return Case(record, task.suite.domain, result.stored, folder, self._weights(task, result), result.weights)

    def _place(self, result: WorkerResult) -> Path | None:
        """Writes a case's files into the run's folder, also those of a case that was cut off."""
        options = self.session.options
        worker.write_files(result.transcripts, options.path(options.transcripts or ""), 0o600)
        if result.folder is None:
            return None
        folder = self.session.folder / "cases" / result.folder
        worker.write_files(result.files, folder)
        return folder

    def _weights(self, task: CaseTask, result: WorkerResult) -> Path | None:
        """Folder of the defended weights on this machine."""
        if result.defended is None:
            return None
        if self.session.defense_recipe(task.suite) is None:
            return Path(result.defended)
        made = self.cluster.result(CaseTask("defense", task.suite).name)
        keys = [entry.key for entry in made.entries if entry.kind == "defense"]
        stored = self.session.store.get("defense", keys[0]) if keys else None
        return stored / result.defended if stored else None


def _with_failures(record: CaseRecord, failed: Sequence[Attempt]) -> CaseRecord:
    """The record with the tries that a machine's failure ended. A store that the machines share has noted them already."""
    tried = record.provenance.attempts
    unknown = failed[: max(0, len(failed) - sum(a.outcome == "cut" for a in tried))]
    provenance = record.provenance.model_copy(update={"attempts": (*unknown, *tried)})
    return record.model_copy(update={"provenance": provenance})
