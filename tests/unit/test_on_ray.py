"""Results of Ray workers and how the run takes them in, without a cluster; ``tests/plugin/test_ray.py`` uses real ones."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from rn_harness.records.case import Attempt, CaseRecord
from rn_harness.release.integrity import Refusal
from rn_harness.run.case import Case, CaseTask
from rn_harness.run.executors import on_ray
from rn_harness.run.executors.on_ray import OnRay
from rn_harness.run.executors.worker import CaseRequest, RecordingStore, Survey, WorkerResult, make_case
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import CaseTimeout, ExecutorError, TrainingError
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.shared import add_entries
from rn_harness.store.store import Store

from .builders import RUN_ID, case_record, evidence, write_suite
from .test_session import OPTIONS, a_session

RECORD = case_record(evidence("candidate"))
CUT = Attempt(started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:00:01+00:00", outcome="cut")
DONE = Attempt(started="2026-01-01T00:00:02+00:00", outcome="done")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """A small suite."""
    return load_suite(write_suite(tmp_path / "demo"))


def test_entries_go_from_one_store_to_another(tmp_path: Path) -> None:
    """Entries that were read or added, of the kinds that others need, are copied once and whole; existing ones are kept."""
    here, there = RecordingStore(tmp_path / "here"), Store(tmp_path / "there")
    for kind, key in (("defense", "a"), ("case", "b"), ("partial", "c"), ("defense", "unused")):
        Store(here.root).put(kind, key, lambda into: (into / "weights.bin").write_bytes(b"\0\1") and None)
    for kind, key in (("defense", "a"), ("case", "b"), ("partial", "c"), ("case", "missing")):
        here.get(kind, key)
    entries = here.shared_entries()
    digest = {"weights.bin": hashlib.sha256(b"\0\1").hexdigest()}
    assert [(e.kind, e.key, e.files) for e in entries] == [("defense", "a", digest), ("case", "b", digest)]
    add_entries(there, entries)
    found = there.get("defense", "a")
    assert found is not None
    before = (found / "weights.bin").stat().st_mtime_ns
    add_entries(there, [dataclasses.replace(entries[0], read=lambda *_: b"other")])
    assert ((found / "weights.bin").stat().st_mtime_ns, (found / "weights.bin").read_bytes()) == (before, b"\0\1")


def _order(suite: Suite, folder: Path, **options: Any) -> CaseRequest:
    chosen = dataclasses.replace(OPTIONS, base=folder, executor="ray", **options)
    return CaseRequest(chosen, "the-run", RUN_ID, CaseTask("candidate", suite), 1e9, wanted=True)


def test_a_worker_makes_a_case_as_pytests_process_would(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker makes the case in a local session with the run's name; files come back, and nothing is left behind."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path / "store"))
    seen: list[RunSession] = []

    def case(self: RunSession, *_: Any) -> Case:
        seen.append(self)
        folder = self.folder / "cases" / "demo-candidate-0123456789ab"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text("{}")
        self.options.path(self.options.transcripts or "").mkdir()
        (self.options.path(self.options.transcripts or "") / "demo.jsonl").write_bytes(b"age")
        self.store.put("certificate", "k", lambda into: (into / "certificate.json").write_text("{}") and None)
        self.store.get("certificate", "k")
        return Case(
            RECORD, "demo", stored=True, folder=folder, defended=self.store.root / "defense" / "x" / "adapter", weights={}
        )

    monkeypatch.setattr(RunSession, "case", case)
    outcome = make_case(_order(suite, tmp_path, transcripts="texts", export="out"), (), lambda _: None)
    (session,) = seen
    assert (session.run_folder.name, session.free, session.executor) == ("the-run", 1e9, session.local)
    assert (session.options.executor, session.options.export) == ("local", None)
    assert outcome == WorkerResult(
        error=None,
        folder="demo-candidate-0123456789ab",
        files={"record.json": b"{}"},
        transcripts={"demo.jsonl": b"age"},
        stored=True,
        defended="adapter",
        entries=outcome.entries,
    )
    assert [(of.kind, of.key, b"".join(of.pieces("certificate.json"))) for of in outcome.entries] == [("certificate", "k", b"{}")]
    assert not session.folder.exists()


@pytest.mark.parametrize("kind", [TrainingError, CaseTimeout])
def test_a_workers_error_is_returned_and_not_raised(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """A worker's error is returned with the message of a local run and the files so far, but without entries for others."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path / "store"))

    def case(self: RunSession, *_: Any) -> Case:
        folder = self.folder / "cases" / "demo-candidate-0123456789ab"
        folder.mkdir(parents=True)
        (folder / "checkpoints.jsonl").write_text("")
        self.store.put("certificate", "k", lambda into: (into / "certificate.json").write_text("{}") and None)
        self.store.get("certificate", "k")
        raise kind("the loss must be a number, got nan; lower the rate")

    monkeypatch.setattr(RunSession, "case", case)
    outcome = make_case(_order(suite, tmp_path), (), lambda _: None)
    assert outcome.error
    assert outcome.error.startswith(f"{kind.__name__}: the loss must be a number, got nan; lower the rate")
    assert (list(outcome.files), outcome.entries) == (["checkpoints.jsonl"], ())


@dataclasses.dataclass
class Played:
    """A cluster on which every task is done."""

    done: dict[str, WorkerResult]

    def __contains__(self, name: str) -> bool:
        return True

    def result(self, name: str) -> WorkerResult:
        """The task's result."""
        return self.done[name]


def _taken(tmp_path: Path, suite: Suite, outcome: WorkerResult, *failed: Attempt) -> Case:
    task = CaseTask("candidate", suite)
    played: Any = Played({task.name: dataclasses.replace(outcome, failed=failed)})
    executor = OnRay(a_session(tmp_path), played, Survey((), "", 1e9, {}))
    first = executor.case(task)
    assert executor.case(task) is first
    return first


def _outcome(record: CaseRecord = RECORD, **changes: Any) -> WorkerResult:
    files = {"record.json": record.model_dump_json().encode(), "checkpoints.jsonl": b""}
    return WorkerResult(**({"error": None, "folder": "demo-candidate-0123456789ab", "files": files} | changes))


def test_a_returned_record_is_in_the_runs_folder(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A returned record is in the run's folder, with the attempts that failed on other machines before it."""
    monkeypatch.setattr(on_ray, "check_record", lambda *_: [])
    monkeypatch.setattr(on_ray, "mismatches", lambda *_: [])
    case = _taken(tmp_path, suite, _outcome(stored=True), CUT, CUT)
    stands = CaseRecord.model_validate_json((case.folder / "record.json").read_text(encoding="utf-8"))
    assert (case.folder.parent.parent, case.stored) == (tmp_path / "run", True)
    assert stands == case.record
    assert [a.outcome for a in stands.provenance.attempts] == ["cut", "cut", "done"]


def test_an_attempt_in_a_shared_store_is_not_recorded_twice() -> None:
    """An attempt that a shared store already recorded is not added twice: of two failed ones the missing one is added."""
    provenance = RECORD.provenance.model_copy(update={"attempts": (CUT, DONE)})
    record = on_ray._with_failures(RECORD.model_copy(update={"provenance": provenance}), [CUT, CUT])
    assert record.provenance.attempts == (CUT, CUT, DONE)


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (_outcome(error="its machine failed 4 times"), "its machine failed 4 times"),
        (WorkerResult(error=None), "no case came of it"),
        (_outcome(files={}), "a record must come back, got KeyError"),
        (_outcome(files={"record.json": b"{}"}), "a record must come back, got ValidationError"),
    ],
    ids=["error", "nothing", "no record", "no such record"],
)
def test_a_result_without_a_record_is_an_error(tmp_path: Path, suite: Suite, outcome: WorkerResult, why: str) -> None:
    """A result without a valid record is an error with a reason; its files are in the run's folder."""
    with pytest.raises(ExecutorError, match=why):
        _taken(tmp_path, suite, outcome)
    assert sorted(outcome.files) == sorted(p.name for p in (tmp_path / "run").glob("cases/*/*"))


@pytest.mark.parametrize("check", ["check_record", "mismatches"])
def test_a_record_of_another_run_is_an_error(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    """A returned record must pass the same two checks as a joined part."""
    monkeypatch.setattr(
        on_ray, "check_record", lambda *_: [Refusal("x", "it is check_record")] if check == "check_record" else []
    )
    monkeypatch.setattr(on_ray, "mismatches", lambda *_: ["it is mismatches"] if check == "mismatches" else [])
    with pytest.raises(ExecutorError, match=f"must be one of this run, got: it is {check}; have the same files"):
        _taken(tmp_path, suite, _outcome())
