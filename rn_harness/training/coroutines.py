"""Coroutines on threads, which run one at a time and wait for each other's requests.

Each has its own thread, since libraries below keep their state by thread. One runs at a time, in an order that does not depend on
the clock, until it asks for something. When all have asked, some of their requests are served together. A result depends on the
requests and on nothing else.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
LOOK_S = 0.1
"""Seconds between two looks of a waiting coroutine whether all have to end."""


@dataclass(eq=False)
class Coroutine:
    """One of several functions that run in turn.

    Attributes:
        number: its place in the order.
        state: kept for it while others run.
        request: that it waits for.
        answer: to its request.
        error: to raise in it instead of an answer.
        ended: it has returned or raised ``result``.
        stopped: the reason why all have to end; None: they go on.
    """

    number: int
    state: Any = None
    request: Any = None
    answer: Any = None
    error: BaseException | None = None
    ended: bool = False
    result: Any = None
    stopped: Callable[[], BaseException | None] = lambda: None
    _thread: int | None = None
    _turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def ask(self, request: Any) -> Any:
        """Waits for the answer to a request, or raises if it could not be served; called by its own function."""
        self.request = request
        self._back.release()
        self._turn.acquire()
        self.request = None
        answer, error = self.answer, self.error
        self.answer = self.error = None
        if error is not None:
            raise error
        return answer

    def elsewhere(self, work: Callable[[], T]) -> T:
        """The result of work that waits for another machine; an interruption does not wait for it if its own function calls."""
        if threading.get_ident() != self._thread:  # in the background, which nobody waits for
            return work()
        future = in_background(work)
        while not wait([future], LOOK_S).done:
            if (error := self.stopped()) is not None:
                raise error
        return future.result()

    def step(self) -> None:
        """Lets it run until it asks or ends."""
        self._turn.release()
        self._back.acquire()

    def run(self, task: Callable[[Coroutine], Any]) -> None:
        """Body of its thread: waits for its first turn, runs the task, and keeps its result or exception."""
        self._thread = threading.get_ident()
        self._turn.acquire()
        try:
            self.result = self.error or task(self)
        except BaseException as error:  # noqa: BLE001 (it is the result)
            traceback.clear_frames(error.__traceback__)  # the exception is kept, and its frames would keep their tensors
            self.result = error
        self.ended = True
        self._back.release()


def in_background(work: Callable[[], T]) -> Future[T]:
    """Does a piece of work in a daemon thread, so that the process can end without it; an executor's thread would block that."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised where the result is asked for)
            future.set_exception(error)

    threading.Thread(target=run, name="scoring", daemon=True).start()
    return future


class CoroutineScheduler:
    """Runs coroutines in turn. The process's state, by ``capture`` and ``restore``, belongs to the running one.

    ``serve`` gets the waiting coroutines in order, answers at least one of them, and returns those. ``stopped`` is the reason why
    all have to end, so that no request need be served any more.
    """

    def __init__(
        self,
        serve: Callable[[Sequence[Coroutine]], Sequence[Coroutine]],
        capture: Callable[[], Any] = lambda: None,
        restore: Callable[[Any], None] = lambda _: None,
    ) -> None:
        self._serve, self._capture, self._restore = serve, capture, restore
        self.stopped: BaseException | None = None

    def run(self, tasks: Sequence[Callable[[Coroutine], T]]) -> list[T | Exception]:
        """The results of the tasks in order; a task that raised an exception, which ends no other, has that as its result.

        An interruption of the caller, or a task's exception that is not an ``Exception``, ends all tasks at their requests and is
        raised.
        """
        coroutines = [Coroutine(i, stopped=lambda: self.stopped) for i in range(len(tasks))]
        for one, task in zip(coroutines, tasks, strict=True):
            threading.Thread(target=one.run, args=(task,), name=f"coroutine-{one.number}", daemon=True).start()
        over = threading.Event()

        def schedule() -> None:
            try:
                self._schedule(coroutines)
            except BaseException as error:  # noqa: BLE001 (raised by the caller)
                self.stopped = error
            over.set()

        # An interruption is raised in the caller's thread. There it could fall between two steps of handing over, so that
        # thread does not schedule.
        threading.Thread(target=schedule, name="coroutine-scheduler", daemon=True).start()
        try:
            over.wait()
        except BaseException as error:
            self.stopped = error
            over.wait()
            raise
        if self.stopped is not None:
            raise self.stopped
        return [one.result for one in coroutines]

    def _schedule(self, coroutines: Sequence[Coroutine]) -> None:
        before = self._capture()
        for one in coroutines:
            one.state = before
        able = list(coroutines)
        while able:
            for one in able:
                self._step(one)
            waiting = [one for one in coroutines if not one.ended]
            try:
                able = list(self._serve(waiting)) if waiting else []
            except Exception as error:  # noqa: BLE001 (raised in each that waits)
                able = waiting
                for one in waiting:
                    one.error = error
        self._restore(before)

    def _step(self, one: Coroutine) -> None:
        """Lets one run until it asks or ends; if all have to end, until it has ended."""
        if self.stopped is not None:
            one.error = self.stopped
        self._restore(one.state)
        one.step()
        one.state = self._capture()
        while self.stopped is not None and not one.ended:
            one.error = self.stopped
            one.step()
        if isinstance(one.result, BaseException) and not isinstance(one.result, Exception):
            self.stopped = self.stopped or one.result
