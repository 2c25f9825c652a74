"""Coroutines on threads, which run one at a time and wait for each other's requests.

Each has its own thread, since libraries below keep their state by thread. One runs at a time, in an order that does not depend on
the clock, until it asks for something. When all have asked, some of their requests are served together. A result depends on the
requests and on nothing else.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")


@dataclass(eq=False)
class Coroutine:
    """One of several functions that run in turn.

    Attributes:
        number: its place in the order.
        state: kept for it while others run.
        request: that it waits for.
        ended: it has returned or raised.
    """

    number: int
    state: Any = None
    request: Any = None
    ended: bool = False
    _answer: Any = None
    _error: BaseException | None = None
    _turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def ask(self, request: Any) -> Any:
        """Waits for the answer to a request, or raises if it could not be served; called by its own function."""
        self.request = request
        self._back.release()
        self._turn.acquire()
        self.request = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        answer, self._answer = self._answer, None
        return answer

    def answer(self, given: Any) -> None:
        """Sets the answer to its request."""
        self._answer = given

    def fail(self, error: BaseException) -> None:
        """Sets an error to raise in it instead of an answer."""
        self._error = error

    def step(self) -> None:
        """Lets it run until it asks or ends."""
        self._turn.release()
        self._back.acquire()

    def run(self, task: Callable[[Coroutine], T], ended: Callable[[T | BaseException], None]) -> None:
        """Body of its thread: waits for its first turn, runs the task, and reports its result or exception."""
        self._turn.acquire()
        try:
            ended(self._error or task(self))
        except BaseException as error:  # noqa: BLE001 (reported)
            traceback.clear_frames(error.__traceback__)  # the exception is kept, and its frames would keep their tensors
            ended(error)
        self.ended = True
        self._back.release()


class CoroutineScheduler:
    """Runs coroutines in turn. The process's state, by ``capture`` and ``restore``, belongs to the running one.

    ``serve`` gets the waiting coroutines in order, answers at least one of them, and returns those.
    """

    def __init__(
        self,
        serve: Callable[[Sequence[Coroutine]], Sequence[Coroutine]],
        capture: Callable[[], Any] = lambda: None,
        restore: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self._serve, self._capture, self._restore = serve, capture, restore
        self._stop: BaseException | None = None

    @property
    def stopped(self) -> bool:
        """True if all have to end, so that no request need be served any more."""
        return self._stop is not None

    def run(self, tasks: Sequence[Callable[[Coroutine], T]]) -> list[T | Exception]:
        """The results of the tasks in order; a task that raised an exception, which ends no other, has that as its result.

        An interruption of the caller, or a task's exception that is not an ``Exception``, ends all tasks at their requests and is
        raised.
        """
        results: list[T | BaseException | None] = [None] * len(tasks)
        coroutines = [Coroutine(i) for i in range(len(tasks))]

        def thread_of(coroutine: Coroutine, task: Callable[[Coroutine], T]) -> threading.Thread:
            def ended(result: T | BaseException) -> None:
                results[coroutine.number] = result
                if isinstance(result, BaseException) and not isinstance(result, Exception):
                    self._stop = self._stop or result

            name = f"coroutine-{coroutine.number}"
            return threading.Thread(target=coroutine.run, args=(task, ended), name=name, daemon=True)

        for thread in [thread_of(coroutine, task) for coroutine, task in zip(coroutines, tasks, strict=True)]:
            thread.start()
        over = threading.Event()

        def schedule() -> None:
            try:
                self._schedule(coroutines)
            except BaseException as error:  # noqa: BLE001 (raised by the caller)
                self._stop = error
            over.set()

        # An interruption is raised in the caller's thread. There it could fall between two steps of handing over, so that
        # thread does not schedule.
        threading.Thread(target=schedule, name="coroutine-scheduler", daemon=True).start()
        try:
            over.wait()
        except BaseException as error:
            self._stop = error
            over.wait()
            raise
        if self._stop is not None:
            raise self._stop
        return cast("list[T | Exception]", results)

    def _schedule(self, coroutines: Sequence[Coroutine]) -> None:
        before = self._capture()
        for coroutine in coroutines:
            coroutine.state = before
        able = list(coroutines)
        while able:
            for coroutine in able:
                self._step(coroutine)
            waiting = [coroutine for coroutine in coroutines if not coroutine.ended]
            able = self._answered(waiting) if waiting else []
        self._restore(before)

    def _answered(self, waiting: Sequence[Coroutine]) -> list[Coroutine]:
        """The waiting coroutines that can continue."""
        try:
            return list(self._serve(waiting))
        except Exception as error:  # noqa: BLE001 (raised in each that waits)
            for coroutine in waiting:
                coroutine.fail(error)
            return list(waiting)

    def _step(self, coroutine: Coroutine) -> None:
        """Lets one run until it asks or ends; if all have to end, until it has ended."""
        if self._stop is not None:
            coroutine.fail(self._stop)
        self._restore(coroutine.state)
        coroutine.step()
        coroutine.state = self._capture()
        while self._stop is not None and not coroutine.ended:
            coroutine.fail(self._stop)
            coroutine.step()
