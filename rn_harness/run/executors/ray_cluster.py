"""Runs jobs on a Ray cluster and collects their results; the only module that knows Ray.

A machine that fails gives no verdict: its job is submitted again, a bounded number of times. Ray itself repeats nothing, so that
no finished measurement is repeated without a record.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rn_harness.records.case import Attempt
from rn_harness.report.progress import Progress
from rn_harness.run.estimate import Demand
from rn_harness.run.executors.worker import Say, SharedEntry, WorkerResult
from rn_harness.spec.errors import ExecutorError, RecipeError
from rn_harness.spec.extras import require
from rn_harness.store.provenance import now

RETRIES = 3
"""How often a job is repeated after a machine, a worker or its memory failed."""
PROGRESS_S = 1.0
"""Seconds between two looks at the progress of running jobs."""
CONNECT_S = 10.0
"""Seconds to wait for a cluster to answer at its address."""
Work = Callable[[Any, Sequence[SharedEntry], Say], WorkerResult]


@dataclass(frozen=True)
class Job:
    """Work for the cluster.

    Attributes:
        name: unique among the jobs.
        request: argument of the work.
        demand: resources that it takes.
        needs: names of the jobs whose entries it takes.
        priority: of the jobs that can begin, the highest is submitted first.
    """

    name: str
    request: Any
    demand: Demand
    needs: tuple[str, ...] = ()
    priority: float = 0.0


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        result: of the work, or an error if its machines failed too often.
        failed: tries that a failure of a machine ended.
    """

    result: WorkerResult
    failed: tuple[Attempt, ...]


class ProgressQueue:
    """Progress on its way to the process with the terminal; an actor."""

    def __init__(self) -> None:
        self._waiting: list[Progress] = []

    def add(self, progress: Progress) -> None:
        """Takes one."""
        self._waiting.append(progress)

    def take(self) -> list[Progress]:
        """All that arrived since the last call."""
        taken, self._waiting = self._waiting, []
        return taken


@dataclass
class Cluster:
    """Submits jobs to Ray and collects their results.

    Attributes:
        address: of the cluster; empty: the one that this machine belongs to, or one that is started here and ends with us.
        work: does a job: ``make_case``, or a replacement in tests and benchmarks.
        say: gets progress.
    """

    address: str
    work: Work
    say: Say
    _jobs: dict[str, Job] = field(default_factory=dict)
    _running: dict[Any, str] = field(default_factory=dict)
    _started: dict[str, str] = field(default_factory=dict)
    _failed: dict[str, list[Attempt]] = field(default_factory=dict)
    _results: dict[str, JobResult] = field(default_factory=dict)
    _entries: dict[str, Any] = field(default_factory=dict)
    _connected_here: bool = False

    def __post_init__(self) -> None:
        """Connects.

        Raises:
            RecipeError: Ray is not installed, or the cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run reports nothing to third parties
        on_termination = signal.getsignal(signal.SIGTERM)
        require("ray", "--rn-executor ray")
        import ray

        if not ray.is_initialized():
            try:
                _check_address(self.address)
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

    @property
    def has_cards(self) -> bool:
        """True if a node has a card."""
        import ray

        return bool(ray.cluster_resources().get("GPU", 0))

    def ask(self, question: Callable[..., Any], *arguments: Any, demand: Demand) -> Any:
        """The answer of a process on the cluster; for short work.

        Raises:
            ExecutorError: it failed.
        """
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

    def add(self, jobs: Iterable[Job]) -> None:
        """Adds jobs; those that can begin are submitted."""
        self._jobs |= {job.name: job for job in jobs if job.name not in self._jobs}
        self._submit_ready()

    def __contains__(self, name: str) -> bool:
        return name in self._jobs

    def result(self, name: str) -> JobResult:
        """Waits for the result of a job; meanwhile submits and collects others."""
        while name not in self._results:
            self._collect()
        return self._results[name]

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
        """The queue of progress, on this node, so that it survives the loss of any other."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        remote: Any = ray.remote
        return remote(num_cpus=0, scheduling_strategy=here)(ProgressQueue).remote()

    def _remote(self, function: Callable[..., Any], demand: Demand) -> Any:
        """A function for Ray that it never repeats. With a card, its process ends with it and frees the card's memory."""
        import ray

        asked = {"num_cpus": demand.cpus, "num_gpus": demand.gpus, "memory": demand.memory or None}
        remote: Any = ray.remote
        return remote(max_calls=1 if demand.gpus else 0, max_retries=0, retry_exceptions=False, **asked)(function)

    def _submit_ready(self) -> None:
        waiting = [j for j in self._jobs.values() if j.name not in self._results and j.name not in self._running.values()]
        for job in sorted(waiting, key=lambda j: -j.priority):
            if not all(name in self._results for name in job.needs):
                continue
            broken = next((name for name in job.needs if self._results[name].result.error), None)
            if broken is not None:
                error = f"it needs {broken}, which has no verdict: {self._results[broken].result.error}"
                self._results[job.name] = JobResult(WorkerResult(error=error), ())
                self._submit_ready()  # the jobs that need this one have no result either
                return
            self._submit(job)

    def _submit(self, job: Job) -> None:
        given = [self._entries[name] for name in job.needs if name in self._entries]
        function = self._remote(_on_worker, job.demand).options(name=job.name)
        self._running[function.remote(self.work, self._progress, job.request, *given)] = job.name
        self._started[job.name] = now()

    def _collect(self) -> None:
        """Shows progress, and collects the jobs that have ended."""
        import ray

        if not self._running:
            raise ExecutorError(
                f"each job waits for others that end, got {sorted(self._jobs.keys() - self._results.keys())}; report this"
            )
        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=PROGRESS_S, fetch_local=False)
        for progress in ray.get(self._progress.take.remote()):
            self.say(progress)
        for reference in ended:
            self._settle(reference)
        if ended:
            self._submit_ready()

    def _settle(self, reference: Any) -> None:
        """Keeps the result of a job that has ended, or leaves it to be submitted again."""
        import ray

        name = self._running.pop(reference)
        failed = self._failed.setdefault(name, [])
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            if not isinstance(error, _machine_failures()):
                result = WorkerResult(error=f"its process on the cluster failed: {_cause(error)}")
            else:
                failed.append(Attempt(started=self._started[name], ended=now(), outcome="cut"))
                again = len(failed) <= RETRIES
                next_step = f"{'it begins again' if again else 'it is given up'}, {len(failed)} of {1 + RETRIES} tries"
                self.say(Progress(name, 0, 0, f"a machine failed: {_cause(error)}; {next_step}", stays=True))
                if again:
                    return
                result = WorkerResult(error=f"its machine failed {len(failed)} times, at last with {_cause(error)}")
        if result.entries:
            # Each node gets them once from here, and the node that made them may leave.
            self._entries[name] = ray.put(result.entries)
        self._results[name] = JobResult(result, tuple(failed))


def _on_worker(work: Work, queue: Any, request: Any, *given: tuple[SharedEntry, ...]) -> WorkerResult:
    """Does a job in a worker."""

    def say(progress: Progress) -> None:
        if progress.state is not None:
            queue.add.remote(progress)

    return work(request, [entry for entries in given for entry in entries], say)


def _check_address(address: str) -> None:
    """Checks that a process listens there: otherwise Ray would end this whole process.

    Raises:
        OSError: none does.
        ValueError: it is not an address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address not in ("", "auto", "local"):
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _machine_failures() -> tuple[type[Exception], ...]:
    """Ray's errors after which another machine may succeed."""
    from ray import exceptions as e

    return (e.WorkerCrashedError, e.NodeDiedError, e.LocalRayletDiedError, e.ObjectLostError, e.OutOfMemoryError)


def _cause(error: Exception) -> str:
    """The name of Ray's error; its text may quote a completion."""
    return type(getattr(error, "cause", None) or error).__name__
