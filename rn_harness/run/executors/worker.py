"""Makes one case in a process that is not pytest's, for whoever schedules it. Floor 4 (run). It knows of no scheduler.

What it needs of other cases comes as entries of the store, and what others need of it goes the same way: certificates, defended
weights, a control's measurement. Attacked weights are no entry of any store, and leave this process by no way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import resource
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rn_harness.report.progress import Progress
from rn_harness.run.executors.order import Demand, demand_of
from rn_harness.run.executors.protocol import LOCAL
from rn_harness.run.lineup import CaseTask
from rn_harness.run.preflight import check_disks, check_here
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import RnHarnessError, safe_report
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import ATTEMPTS
from rn_harness.store.store import MANIFEST, Store, default_root

SHARED_KINDS = ("certificate", "defense", "case", "search", ATTEMPTS)
"""Kinds of entries that other cases may need."""
Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Entry:
    """An entry of a store on its way to another.

    Attributes:
        kind, key: its address.
        files: by their path in it.
    """

    kind: str
    key: str
    files: dict[str, bytes]

    def __repr__(self) -> str:
        """No contents: they may be weights."""
        return f"Entry({self.kind} {self.key[:12]})"


@dataclass(frozen=True)
class Order:
    """What a worker is asked for.

    Attributes:
        options: of the run.
        run_name: name of its folder.
        run_id: of the run.
        task: the case.
        free: bytes that it may plan with, the same in all workers.
        wanted: whether other cases need what it comes to.
    """

    options: Options
    run_name: str
    run_id: str
    task: CaseTask
    free: float
    wanted: bool


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        error: why there is no case; None where there is one.
        folder: name of the case's folder; None where none was begun.
        files: of that folder, by name: the record, the checkpoints.
        transcripts: encrypted ones, by name.
        stored: whether the measurement was taken from the store.
        defended: name of the folder of the defended weights in their entry, or its path where they were given; None without.
        weights: sha256 of each of their files.
        entries: that other cases need.
    """

    error: str | None
    folder: str | None = None
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    transcripts: dict[str, bytes] = dataclasses.field(default_factory=dict)
    stored: bool = False
    defended: str | None = None
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    entries: tuple[Entry, ...] = ()

    def __repr__(self) -> str:
        """No contents."""
        return f"Outcome({self.folder or self.error})"


@dataclass(frozen=True)
class Survey:
    """What a machine that cases run on says of a run before it begins.

    Attributes:
        errors: why it cannot be run there.
        memory: for the header.
        free: bytes that a case may plan with.
        demands: what each case takes, by name.
    """

    errors: tuple[str, ...]
    memory: str
    free: float
    demands: dict[str, Demand]


class Remembering(Store):
    """A store that knows which entries were read from it or added."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.used: dict[tuple[str, str], None] = {}

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of a whole entry, or None."""
        self.used[kind, key] = None
        return super().get(kind, key)

    def entries_for_others(self) -> tuple[Entry, ...]:
        """What was read or added, as far as another case may need it."""
        found = ((kind, key, super(Remembering, self).get(kind, key)) for kind, key in self.used if kind in SHARED_KINDS)
        return tuple(
            Entry(kind, key, {n: raw for n, raw in _files(folder).items() if n != MANIFEST})
            for kind, key, folder in found
            if folder
        )


def take_in(store: Store, entries: Iterable[Entry]) -> None:
    """Adds entries that come from another store, where they are not there."""
    for entry in entries:
        with store.locked(entry.kind, entry.key):
            if store.get(entry.kind, entry.key) is None:
                store.put(entry.kind, entry.key, functools.partial(_write, entry.files))


def make_case(order: Order, given: Sequence[Entry], tell: Tell) -> Outcome:
    """Makes a case as pytest's own process would. What goes wrong is told, and never raised: it is no failure of the machine.

    Args:
        order: what is asked for.
        given: entries of the store that the case needs.
        tell: gets signs of life.
    """
    _no_core_dump()
    with tempfile.TemporaryDirectory(prefix="rn-harness-") as scratch:
        folder, texts = Path(scratch) / order.run_name, Path(scratch) / "transcripts"
        transcripts = str(texts) if order.options.transcripts else None
        options = dataclasses.replace(order.options, executor=LOCAL, transcripts=transcripts, export=None)
        task, store = order.task, Remembering(default_root())
        session = RunSession(options, folder, store, tell, order.free, run_id=order.run_id)
        error, stored, defended, weights = None, False, None, {}
        try:
            take_in(store, given)
            case = session.case(task.kind, task.suite, task.attack)
            stored, weights = case.stored, dict(case.weights)
            if case.defended is not None:
                defended = case.defended.name if case.defended.is_relative_to(store.root) else str(case.defended)
        except Exception as problem:  # noqa: BLE001  (told, and its case has no verdict)
            error = safe_report(problem)
        of_case = next(
            (p for p in (folder / "cases").glob("*") if p.name.startswith(f"{task.suite.domain}-{task.case_id}-")), None
        )
        return Outcome(
            error=error,
            folder=of_case.name if of_case else None,
            files=_files(of_case) if of_case else {},
            transcripts=_files(texts) if texts.is_dir() else {},
            stored=stored,
            defended=defended,
            weights=weights,
            entries=store.entries_for_others() if order.wanted and error is None else (),
        )


def survey(options: Options, tasks: Sequence[CaseTask]) -> Survey:
    """Checks, on a machine that cases run on, what pytest's own process checks where it makes them itself.

    Args:
        options: of the run.
        tasks: all that may be asked for.
    """
    _no_core_dump()
    session = RunSession(dataclasses.replace(options, executor=LOCAL, export=None), Path(), Store(default_root()), lambda _: None)
    suites: list[Suite] = list({task.suite.digest: task.suite for task in tasks}.values())
    errors: list[str] = []
    for suite in suites:
        with _noting(errors):
            check_here(session, suite)
    with _noting(errors):
        check_disks(session, suites)
    return Survey(
        errors=tuple(errors),
        memory="" if errors else session.capacity.memory_line(suites),
        free=session.capacity.available,
        demands={} if errors else {task.name: demand_of(session, task) for task in tasks},
    )


@contextlib.contextmanager
def _noting(errors: list[str]) -> Iterator[None]:
    try:
        yield
    except RnHarnessError as error:
        errors.append(str(error))


def _no_core_dump() -> None:
    """It would hold attacked weights."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, raw in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
