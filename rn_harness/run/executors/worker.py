"""Makes one case in a process without pytest, for any scheduler.

Results of other cases that it needs arrive as entries of the store, and results that others need leave the same way:
certificates, defended weights, a control's measurement. Attacked weights are never an entry, and never leave this process.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rn_harness.records.case import Attempt
from rn_harness.report.progress import Progress
from rn_harness.run.case import CaseTask
from rn_harness.run.estimate import Demand, demand_of
from rn_harness.run.preflight import check_disks, check_here
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import CaseTimeout, RnHarnessError, safe_report
from rn_harness.spec.options import LOCAL, Options
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import ATTEMPTS
from rn_harness.store.shared import SharedEntry, add_entries
from rn_harness.store.store import Store, default_root

SHARED_KINDS = ("certificate", "defense", "case", "search", ATTEMPTS)
"""Kinds of entries that other cases may need."""
Say = Callable[[Progress], None]


@dataclass(frozen=True)
class CaseRequest:
    """A request to a worker; all may plan with as many ``free`` bytes, and other cases need the results of a ``wanted`` case."""

    options: Options
    run_name: str
    run_id: str
    task: CaseTask
    free: float
    wanted: bool


@dataclass(frozen=True)
class WorkerResult:
    """A worker's answer to a request.

    Attributes:
        error: why the case failed; None if it did not.
        folder: name of the case's folder; None if the worker did not get that far.
        files: contents of that folder by name: the record, the checkpoints.
        transcripts: encrypted transcripts by name.
        stored: whether the measurement was taken from the store.
        defended: folder of the defended weights: its name in their entry, or its path if they were given; None without a defense.
        weights: sha256 of each of their files.
        entries: entries that other cases need.
        failed: tries before this one that a failure of a machine ended.
    """

    error: str | None
    folder: str | None = None
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    transcripts: dict[str, bytes] = field(default_factory=dict, repr=False)
    stored: bool = False
    defended: str | None = None
    weights: dict[str, str] = field(default_factory=dict)
    entries: tuple[SharedEntry, ...] = ()
    failed: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class Survey:
    """A machine's answer before a run begins on it.

    Attributes:
        errors: why the run cannot be made there.
        memory: planned memory, for the header.
        free: bytes that a case may plan with.
        demands: of each case, by name.
    """

    errors: tuple[str, ...]
    memory: str
    free: float
    demands: dict[str, Demand]


class RecordingStore(Store):
    """A store that records which entries were read or added."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.used: dict[tuple[str, str], None] = {}

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of a whole entry, or None."""
        self.used[kind, key] = None
        return super().get(kind, key)

    def shared_entries(self) -> tuple[SharedEntry, ...]:
        """The recorded entries that another case may need."""
        found = ((kind, key, super(RecordingStore, self).get(kind, key)) for kind, key in self.used if kind in SHARED_KINDS)
        return tuple(SharedEntry.of(folder, kind, key) for kind, key, folder in found if folder)


def make_case(request: CaseRequest, given: Sequence[SharedEntry], say: Say) -> WorkerResult:
    """Makes a case as pytest's own process would, with the store's entries that it needs.

    Errors are returned, not raised: the machine did not fail.
    """
    with tempfile.TemporaryDirectory(prefix="rn-harness-") as scratch:
        folder, texts = Path(scratch) / request.run_name, Path(scratch) / "transcripts"
        transcripts = str(texts) if request.options.transcripts else None
        options = dataclasses.replace(request.options, executor=LOCAL, transcripts=transcripts, export=None)
        task, store = request.task, RecordingStore(default_root())
        session = RunSession(options, folder, store, say, request.free, run_id=request.run_id)
        error, stored, defended, weights = None, False, None, {}
        try:
            add_entries(store, given)
            case = session.case(task.kind, task.suite, task.attack)
            stored, weights = case.stored, dict(case.weights)
            if case.defended is not None:
                defended = case.defended.name if case.defended.is_relative_to(store.root) else str(case.defended)
        except (Exception, CaseTimeout) as problem:  # noqa: BLE001  (reported: the case has no verdict)
            error = safe_report(problem)
        prefix = f"{task.suite.domain}-{task.case_id}-"
        of_case = next((p for p in (folder / "cases").glob("*") if p.name.startswith(prefix)), None)
        return WorkerResult(
            error=error,
            folder=of_case.name if of_case else None,
            files=_files(of_case) if of_case else {},
            transcripts=_files(texts) if texts.is_dir() else {},
            stored=stored,
            defended=defended,
            weights=weights,
            entries=store.shared_entries() if request.wanted and error is None else (),
        )


def survey(options: Options, tasks: Sequence[CaseTask]) -> Survey:
    """Checks, on a machine that cases run on, all that pytest's process checks if it makes them itself."""
    session = RunSession(dataclasses.replace(options, executor=LOCAL, export=None), Path(), Store(default_root()), lambda _: None)
    suites: list[Suite] = list({task.suite.digest: task.suite for task in tasks}.values())
    errors: list[str] = []
    checks: list[Callable[[], object]] = [functools.partial(check_here, session, suite) for suite in suites]
    checks.append(functools.partial(check_disks, session, suites))
    for check in checks:
        try:
            check()
        except RnHarnessError as error:
            errors.append(str(error))
    return Survey(
        errors=tuple(errors),
        memory="" if errors else session.limits.memory_line(suites),
        free=session.limits.available,
        demands={} if errors else {task.name: demand_of(session, task) for task in tasks},
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_files(files: Mapping[str, bytes], folder: Path, mode: int = 0o644) -> None:
    """Writes these files, and the folders that they need."""
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f".{path.name}.tmp")  # a kill must not leave half a record
        whole.touch(mode)
        whole.write_bytes(raw)
        whole.replace(path)
