"""The time limit of a case's work, ``--rn-case-timeout``: a signal that ends the work where it is, as SIGTERM does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rn_harness.spec.errors import CaseTimeout

AGAIN_S = 60.0
"""Seconds until the signal is repeated, since Python swallows exceptions in some places. Records are written within them."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises CaseTimeout in the body after so many seconds; 0: never. An outer limit does not run meanwhile.

    Only the main thread can be interrupted. Elsewhere there is no limit.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise CaseTimeout(
            f"a training or measurement must end within --rn-case-timeout={seconds} s, got none that ended; look where it was, "
            "or raise the limit"
        )

    handler, timer = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
