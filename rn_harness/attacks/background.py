"""Work that waits for somebody else, done while ours goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def later(work: Callable[[], T]) -> Future[T]:
    """Does a piece of work in a thread of its own, for which no process stays alive: an executor's would hold up its end.

    Returns:
        Where its result comes, or what it raised.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised by who asks for the result)
            future.set_exception(error)

    threading.Thread(target=run, name="later", daemon=True).start()
    return future
