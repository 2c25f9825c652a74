"""Functions that run concurrently, one at a time."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rn_harness.training.coroutines import Coroutine, CoroutineScheduler

Task = Callable[[Coroutine], object]


def least(waiting: Sequence[Coroutine]) -> list[Coroutine]:
    """Serves the tasks that ask for the lowest number, and answers each with their number and count."""
    served = [coroutine for coroutine in waiting if coroutine.request == min(other.request for other in waiting)]
    for coroutine in served:
        coroutine.answer = (coroutine.request, len(served))
    return served


def asking(questions: Sequence[int]) -> Task:
    return lambda coroutine: [coroutine.ask(question) for question in questions]


def test_equal_questions_are_served_together() -> None:
    """Two tasks that ask for the same number are served together; one that asks for more waits."""
    assert CoroutineScheduler(least).run([asking([1, 2]), asking([1, 3]), asking([2])]) == [
        [(1, 2), (2, 2)],
        [(1, 2), (3, 1)],
        [(2, 2)],
    ]


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_one_runs_at_a_time_and_the_clock_changes_nothing(questions: list[list[int]], slow: list[bool]) -> None:
    """No two tasks run at once, and their answers do not depend on how long each takes between questions."""
    running = [0]

    def task(of: list[int], waits: bool) -> Task:
        def run(coroutine: Coroutine) -> list[object]:
            told = []
            for question in of:
                running[0] += 1
                time.sleep(0.0005 if waits else 0)
                assert running[0] == 1
                running[0] -= 1
                told.append(coroutine.ask(question))
            return told

        return run

    plain = CoroutineScheduler(least).run([asking(of) for of in questions])
    assert CoroutineScheduler(least).run([task(of, waits) for of, waits in zip(questions, slow, strict=False)]) == plain


def test_process_wide_state_is_saved_for_each_task() -> None:
    """A process-wide number is saved and restored for each task, and for the caller when all have ended."""
    number = [7]

    def counting(by: int) -> Task:
        def run(coroutine: Coroutine) -> int:
            for _ in range(3):
                number[0] += by
                coroutine.ask(0)
            return number[0]

        return run

    def restore(kept: int) -> None:
        number[0] = kept

    assert CoroutineScheduler(least, lambda: number[0], restore).run([counting(1), counting(10)]) == [10, 37]
    assert number == [7]


def test_an_exception_ends_only_its_task() -> None:
    """A task that fails returns its exception; the others continue without it."""
    failing = ValueError("one")

    def fails(coroutine: Coroutine) -> None:
        coroutine.ask(1)
        raise failing

    assert CoroutineScheduler(least).run([asking([1, 2]), fails]) == [[(1, 2), (2, 1)], failing]


@pytest.mark.parametrize("where", ["in it", "while it was served"])
def test_a_kept_exception_keeps_no_objects_alive(where: str) -> None:
    """A kept exception does not keep a failed task's objects alive; otherwise GPU memory would be lost for the session."""
    held: list[weakref.ref[Any]] = []

    class Big:
        pass

    def hold() -> Big:
        big = Big()
        held.append(weakref.ref(big))
        return big

    def serve(waiting: Sequence[Coroutine]) -> list[Coroutine]:
        big = hold()
        raise MemoryError(repr(big))

    def fails(coroutine: Coroutine) -> None:
        big = hold()
        if where == "in it":
            raise MemoryError(repr(big))
        coroutine.ask(1)

    (came_to,) = CoroutineScheduler(serve).run([fails])
    gc.collect()
    assert isinstance(came_to, MemoryError)
    assert held
    assert [ref() for ref in held] == [None] * len(held)


def test_an_exception_during_serving_is_raised_in_each_waiting_task() -> None:
    """An exception during serving is raised in each waiting task."""
    failing = MemoryError()

    def serve(waiting: Sequence[Coroutine]) -> list[Coroutine]:
        raise failing

    def catches(coroutine: Coroutine) -> str:
        try:
            coroutine.ask(1)
        except MemoryError:
            return "caught"
        return "served"

    assert CoroutineScheduler(serve).run([asking([1]), catches]) == [failing, "caught"]


@pytest.mark.parametrize("where", ["in the caller", "in one of them"])
def test_an_interruption_ends_all_tasks(where: str) -> None:
    """Ctrl-C in the caller or in one task raises KeyboardInterrupt in every other task where it waits, even if it asks again."""
    told = []

    def endless(coroutine: Coroutine) -> None:
        try:
            while True:
                coroutine.ask(0)
                time.sleep(0.001)
        except KeyboardInterrupt:
            told.append(coroutine.number)
            with pytest.raises(KeyboardInterrupt):
                coroutine.ask(0)
            raise

    def raising(coroutine: Coroutine) -> None:
        coroutine.ask(0)
        coroutine.ask(0)
        raise KeyboardInterrupt

    if where == "in the caller":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    tasks: list[Task] = [endless, endless] + ([raising] if where != "in the caller" else [])
    with pytest.raises(KeyboardInterrupt):
        CoroutineScheduler(least).run(tasks)
    assert sorted(told) == [0, 1]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("coroutine")] == []


def test_work_elsewhere_gives_its_result_or_its_error() -> None:
    """A task gets the result of work in another thread; an error of the work, time-outs included, is raised in the task."""

    def fails() -> str:
        raise TimeoutError

    def both(coroutine: Coroutine) -> str:
        with pytest.raises(TimeoutError):
            coroutine.elsewhere(fails)
        return coroutine.elsewhere(lambda: threading.current_thread().name)

    assert CoroutineScheduler(least).run([both]) == ["scoring"]


def test_an_interruption_does_not_wait_for_work_elsewhere() -> None:
    """Ctrl-C ends a task that waits for work of a minute at once, and its companion too."""
    ended = []

    def waits(coroutine: Coroutine) -> None:
        try:
            coroutine.elsewhere(lambda: time.sleep(60))
        finally:
            ended.append(coroutine.number)

    def asks(coroutine: Coroutine) -> None:
        try:
            coroutine.ask(1)
        finally:
            ended.append(coroutine.number)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        CoroutineScheduler(least).run([asks, waits])
    assert time.monotonic() - began < 10
    assert sorted(ended) == [0, 1]
