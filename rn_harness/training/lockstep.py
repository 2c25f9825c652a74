"""Functions that run side by side, one at a time, and wait for each other where their work can be done at once.

Each has a thread of its own, since libraries below keep what they are in the middle of by thread; but one runs at a time, in
an order that does not depend on the clock, and goes on until it asks for something. When all that live have asked, what some of
them ask is served at once. So a result depends on what was asked, and on nothing else.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")


@dataclass(eq=False)
class Seat:
    """Where one of them waits.

    Attributes:
        number: its place in the order.
        state: what is kept for it while others run.
        asked: what it waits for.
        ended: whether it has come to an end.
    """

    number: int
    state: Any = None
    asked: Any = None
    ended: bool = False
    _answer: Any = None
    _error: BaseException | None = None
    _turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def ask(self, request: Any) -> Any:
        """Hands over, and goes on with the answer.

        Raises:
            BaseException: it could not be served, or all are to end.
        """
        self.asked = request
        self._back.release()
        self._turn.acquire()
        self.asked = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        answer, self._answer = self._answer, None
        return answer

    def answer(self, given: Any) -> None:
        """What it goes on with."""
        self._answer = given

    def fail(self, error: BaseException) -> None:
        """It goes on with this being raised."""
        self._error = error

    def let(self) -> None:
        """Lets it run until it asks or ends."""
        self._turn.release()
        self._back.acquire()

    def run(self, task: Callable[[Seat], T], ended: Callable[[T | BaseException], None]) -> None:
        """Its thread: waits for its first turn, and tells what the task came to."""
        self._turn.acquire()
        try:
            ended(self._error or task(self))
        except BaseException as error:  # noqa: BLE001 (told)
            traceback.clear_frames(error.__traceback__)  # who keeps the exception would keep what its frames held
            ended(error)
        self.ended = True
        self._back.release()


class Lockstep:
    """Runs them.

    Args:
        serve: gets the seats that wait, in their order, and answers some of them, at least one; returns those.
        keep: what has to be as it was when one of them goes on.
        restore: makes it so.
    """

    def __init__(
        self,
        serve: Callable[[Sequence[Seat]], Sequence[Seat]],
        keep: Callable[[], Any] = lambda: None,
        restore: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self._serve, self._keep, self._restore = serve, keep, restore
        self._stop: BaseException | None = None

    @property
    def stopped(self) -> bool:
        """Whether all are to end, so that nothing need be served any more."""
        return self._stop is not None

    def run(self, tasks: Sequence[Callable[[Seat], T]]) -> list[T | Exception]:
        """What each came to, in their order: its result, or the exception that ended it, which ends no other.

        An interruption of the caller, or what is no Exception in one of them, ends all: each that lives is told where it waits.

        Raises:
            BaseException: that one.
        """
        ended: list[T | BaseException | None] = [None] * len(tasks)
        seats = [Seat(i) for i in range(len(tasks))]

        def begin(seat: Seat, task: Callable[[Seat], T]) -> threading.Thread:
            def told(of: T | BaseException) -> None:
                ended[seat.number] = of
                if isinstance(of, BaseException) and not isinstance(of, Exception):
                    self._stop = self._stop or of

            return threading.Thread(target=seat.run, args=(task, told), name=f"lockstep-{seat.number}", daemon=True)

        threads = [begin(seat, task) for seat, task in zip(seats, tasks, strict=True)]
        over = threading.Event()

        def lead() -> None:
            try:
                self._lead(seats)
            except BaseException as error:  # noqa: BLE001 (raised by the caller)
                self._stop = error
            over.set()

        for thread in threads:
            thread.start()
        # Not by the caller's thread: an interruption, which is raised there, would come between any two steps of the hand-over.
        leader = threading.Thread(target=lead, name="lockstep", daemon=True)
        leader.start()
        try:
            over.wait()
        except BaseException as error:
            self._stop = error
            over.wait()
            raise
        if self._stop is not None:
            raise self._stop
        return cast("list[T | Exception]", ended)

    def _lead(self, seats: Sequence[Seat]) -> None:
        before = self._keep()
        for seat in seats:
            seat.state = before
        able = list(seats)
        while able:
            for seat in able:
                self._let(seat)
            waiting = [seat for seat in seats if not seat.ended]
            able = self._answered(waiting) if waiting else []
        self._restore(before)

    def _answered(self, waiting: Sequence[Seat]) -> list[Seat]:
        """Those of them that can go on."""
        try:
            return list(self._serve(waiting))
        except Exception as error:  # noqa: BLE001 (each that waits is told)
            for seat in waiting:
                seat.fail(error)
            return list(waiting)

    def _let(self, seat: Seat) -> None:
        """Lets one run until it asks or ends; where all are to end, until it has."""
        if self._stop is not None:
            seat.fail(self._stop)
        self._restore(seat.state)
        seat.let()
        seat.state = self._keep()
        while self._stop is not None and not seat.ended:
            seat.fail(self._stop)
            seat.let()
