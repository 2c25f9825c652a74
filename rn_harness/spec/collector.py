"""Python's garbage collector: paused while many objects are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses garbage collection, also as a decorator.

    An import of large libraries or of a suite makes objects that stay. The collector would go through all of them many times, and
    free none. It goes on afterwards, unless it was switched off before.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
