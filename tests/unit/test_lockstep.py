"""Functions that run side by side, one at a time."""

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

from rn_harness.training.lockstep import Lockstep, Seat

Task = Callable[[Seat], object]


def least(waiting: Sequence[Seat]) -> list[Seat]:
    """Serves those who ask for the least, and tells each how many they were."""
    served = [seat for seat in waiting if seat.asked == min(other.asked for other in waiting)]
    for seat in served:
        seat.answer((seat.asked, len(served)))
    return served


def asking(questions: Sequence[int]) -> Task:
    return lambda seat: [seat.ask(question) for question in questions]


def test_what_they_ask_is_served_together() -> None:
    """Two that ask for the same are served at once; one that asks for more waits."""
    assert Lockstep(least).run([asking([1, 2]), asking([1, 3]), asking([2])]) == [
        [(1, 2), (2, 2)],
        [(1, 2), (3, 1)],
        [(2, 2)],
    ]


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_one_runs_at_a_time_and_the_clock_changes_nothing(questions: list[list[int]], slow: list[bool]) -> None:
    """However long each takes between its questions, no two run at once, and all are told the same."""
    running = [0]

    def task(of: list[int], waits: bool) -> Task:
        def run(seat: Seat) -> list[object]:
            told = []
            for question in of:
                running[0] += 1
                time.sleep(0.0005 if waits else 0)
                assert running[0] == 1
                running[0] -= 1
                told.append(seat.ask(question))
            return told

        return run

    plain = Lockstep(least).run([asking(of) for of in questions])
    assert Lockstep(least).run([task(of, waits) for of, waits in zip(questions, slow, strict=False)]) == plain


def test_each_finds_what_is_kept_for_it() -> None:
    """A number that is one for the whole process is each one's own, and the caller's when all have ended."""
    number = [7]

    def counting(by: int) -> Task:
        def run(seat: Seat) -> int:
            for _ in range(3):
                number[0] += by
                seat.ask(0)
            return number[0]

        return run

    def restore(kept: int) -> None:
        number[0] = kept

    assert Lockstep(least, lambda: number[0], restore).run([counting(1), counting(10)]) == [10, 37]
    assert number == [7]


def test_an_exception_ends_one_and_no_other() -> None:
    """One that fails is told as its exception; the others go on without it."""
    failing = ValueError("one")

    def fails(seat: Seat) -> None:
        seat.ask(1)
        raise failing

    assert Lockstep(least).run([asking([1, 2]), fails]) == [[(1, 2), (2, 1)], failing]


@pytest.mark.parametrize("where", ["in it", "while it was served"])
def test_an_exception_that_is_kept_holds_nothing_of_what_failed(where: str) -> None:
    """What a task had in hand is freed, whoever keeps the exception: a card's memory would be gone for the rest of a session."""
    held: list[weakref.ref[Any]] = []

    class Big:
        pass

    def hold() -> Big:
        big = Big()
        held.append(weakref.ref(big))
        return big

    def serve(waiting: Sequence[Seat]) -> list[Seat]:
        big = hold()
        raise MemoryError(repr(big))

    def fails(seat: Seat) -> None:
        big = hold()
        if where == "in it":
            raise MemoryError(repr(big))
        seat.ask(1)

    (came_to,) = Lockstep(serve).run([fails])
    gc.collect()
    assert isinstance(came_to, MemoryError)
    assert held
    assert [ref() for ref in held] == [None] * len(held)


def test_what_cannot_be_served_is_told_to_each_that_waits() -> None:
    """An exception while all are served is raised where each of them asked."""
    failing = MemoryError()

    def serve(waiting: Sequence[Seat]) -> list[Seat]:
        raise failing

    def catches(seat: Seat) -> str:
        try:
            seat.ask(1)
        except MemoryError:
            return "caught"
        return "served"

    assert Lockstep(serve).run([asking([1]), catches]) == [failing, "caught"]


@pytest.mark.parametrize("where", ["in the caller", "in one of them"])
def test_an_interruption_is_told_to_all_and_ends_all(where: str) -> None:
    """Ctrl-C comes in the caller, or is raised in one: each that lives sees it where it waits, also one that asks once more."""
    told = []

    def endless(seat: Seat) -> None:
        try:
            while True:
                seat.ask(0)
                time.sleep(0.001)
        except KeyboardInterrupt:
            told.append(seat.number)
            with pytest.raises(KeyboardInterrupt):
                seat.ask(0)
            raise

    def raising(seat: Seat) -> None:
        seat.ask(0)
        seat.ask(0)
        raise KeyboardInterrupt

    if where == "in the caller":
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    tasks: list[Task] = [endless, endless] + ([raising] if where != "in the caller" else [])
    with pytest.raises(KeyboardInterrupt):
        Lockstep(least).run(tasks)
    assert sorted(told) == [0, 1]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("lockstep")] == []
