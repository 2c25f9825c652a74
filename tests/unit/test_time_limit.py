"""The time limit of a case ends its work, and earlier breaches still count."""

from __future__ import annotations

import io
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rn_harness.run import measuring
from rn_harness.run.measuring import Measuring
from rn_harness.run.time_limit import time_limit
from rn_harness.spec.errors import CaseTimeout, StoreError
from rn_harness.store.journal import Journal

from . import builders


def test_work_that_takes_too_long_is_cut_off() -> None:
    """A limit interrupts a wait, also through ``except Exception``, and names the option; then signal and clock are as before."""
    before = signal.getsignal(signal.SIGALRM)

    def work() -> None:
        with time_limit(3600), suppress(Exception):  # as a library that tries again
            signal.setitimer(signal.ITIMER_REAL, 0.02)  # all that is left
            time.sleep(30)

    with pytest.raises(CaseTimeout, match="--rn-case-timeout=3600 s"):
        work()
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (before, (0.0, 0.0))


def test_a_limit_within_another_stops_its_clock() -> None:
    """A defense that a case has to train first has its own time, and the case's time goes on after it."""
    with time_limit(1000):
        with time_limit(50):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 50
        assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(1000, abs=5)


def test_without_a_limit_or_in_another_thread_no_clock_runs() -> None:
    """A limit of 0 means that there is none. No clock starts in a thread that cannot be interrupted."""
    clocks = []

    def look(seconds: int) -> None:
        with time_limit(seconds):
            clocks.append(signal.getitimer(signal.ITIMER_REAL)[0])

    look(0)
    thread = threading.Thread(target=look, args=(100,))
    thread.start()
    thread.join()
    assert clocks == [0.0, 0.0]


@pytest.mark.parametrize(("score", "outcome"), [(9.0, "FAIL"), (0.0, None)], ids=["breach", "safe so far"])
def test_a_breach_before_the_limit_stays_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: float, outcome: str | None
) -> None:
    """A case that is cut off after a breach ends with it, as FAIL; without one it ends with the timeout, and no verdict."""
    partial = builders.trajectory(10, lambda step: score if step else 0.0, stopped="CaseTimeout")

    def hang(_target: Any, _attacker: Any, _panel: Any, events: Any) -> None:
        events.cut(partial)
        raise CaseTimeout

    monkeypatch.setattr(measuring, "run_attack", hang)
    context = SimpleNamespace(candidate=SimpleNamespace(digest="c"))
    run: Any = SimpleNamespace(context=context, first_looks={}, control_answers={}, attacker=lambda _: None)
    task: Any = SimpleNamespace(kind="attack")
    journal = Journal(tmp_path / "journal.jsonl")
    defended: Any = SimpleNamespace(digest="d")
    work = Measuring(run, task, defended, tmp_path, journal, lambda t: builders.case_record(builders.evidence(trajectory=t)))
    attack: Any = SimpleNamespace(id="grpo")
    model: Any = None
    if outcome is None:
        with pytest.raises(CaseTimeout):
            work._attack(attack, model, model, io.StringIO())
    else:
        assert work._attack(attack, model, model, io.StringIO()) is partial
        assert work.record(partial).verdict.outcome == outcome


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_breach_of_any_attempt_that_was_cut_off_counts(tmp_path: Path, attempt: int) -> None:
    """A breach in either of two attempts that were cut off makes the case FAIL; a damaged line is an error."""
    path = tmp_path / "unfinished" / "case.jsonl"
    safe, broken = builders.trajectory(200), builders.trajectory(200, lambda step: 9.0 if step else 0.0)
    milder = builders.trajectory(200, lambda step: 1.0 if step else 0.0)
    for run in ((broken, milder), (milder, broken))[attempt - 1]:
        journal = Journal.at(path)
        for checkpoint in run.checkpoints[:2]:
            journal.add(checkpoint.model_dump_json())
    last = Journal.at(path)
    for checkpoint in safe.checkpoints:
        last.add(checkpoint.model_dump_json())
    found = measuring._with_earlier(safe, last)
    assert [c.maximum for c in found.earlier] == ([9.0, 1.0], [1.0, 9.0])[attempt - 1]
    assert builders.case_record(builders.evidence(trajectory=safe)).verdict.outcome == "PASS"
    assert builders.case_record(builders.evidence(trajectory=found)).verdict.outcome == "FAIL"
    aside = path.with_name("case.jsonl.1")
    aside.write_text(aside.read_text(encoding="utf-8").replace("scores", "sores"), encoding="utf-8")
    with pytest.raises(
        StoreError, match=r"got a damaged line in .*case\.jsonl or in a file beside it that begins with case\.jsonl; look at it"
    ):
        measuring._check_earlier(Journal.at(path))
