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
from rn_harness.spec.errors import CaseTimeout

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
    """0 is no limit, and a thread that cannot be interrupted starts no clock for the main one."""
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
    journal: Any = SimpleNamespace(differs_at=None)
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
