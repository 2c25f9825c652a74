"""Digests of large files, remembered in this process as long as the file system says that the files are the same.

A run asks for the digests of its weights after every case. The system's device, inode, size and times of modification and change
of each file are compared then, and contents are read again only if one of them differs. An ordinary write changes both times, and
nothing that is not privileged sets the time of change. Writes to the raw disk, into mapped memory, on another machine of a
network file system, or under a clock that is set back, can go unseen until contents are read again. A releasable run reads the
candidate's files once more at its end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Stamp = tuple[int, ...]

SETTLED_NS = 2_000_000_000
"""Age of a file's last change from which on another change has another time, nanoseconds: FAT's times are even seconds."""
_remembered: dict[Hashable, tuple[dict[str, Stamp], object]] = {}


def remembered(key: Hashable, paths: Callable[[], Iterable[Path]], compute: Callable[[], T], *, fresh: bool = False) -> T:
    """The result of ``compute`` on files, from memory if it was computed before and the files are the same.

    A result is kept only if no file changed while it was computed, or shortly before.

    Args:
        key: names the computation and its files.
        paths: the files that it reads, and folders whose entries it lists.
        fresh: compute in any case.
    """
    before = _stamps(paths())
    known = _remembered.get(key)  # once, since another thread may remove it
    if not fresh and known and known[0] == before:
        return known[1]  # type: ignore[return-value]
    began = time.time_ns()
    result = compute()
    _remembered.pop(key, None)
    newest = max((max(stamp[-2:]) for stamp in before.values()), default=0)
    if newest < began - SETTLED_NS and _stamps(paths()) == before:
        _remembered[key] = before, result
    return result


def _stamps(paths: Iterable[Path]) -> dict[str, Stamp]:
    """Device, inode, mode, size, and times of modification and change of each path, and of what a symbolic link points to."""
    found: dict[str, Stamp] = {}
    for path in paths:
        for of in (path.lstat(), path.stat()):
            key = f"{path}:{of.st_ino}"
            found[key] = (of.st_dev, of.st_ino, of.st_mode, of.st_size, of.st_mtime_ns, of.st_ctime_ns)
    return found


def within(folder: Path) -> Callable[[], Iterable[Path]]:
    """A function that lists a folder and everything in it."""
    return lambda: [folder, *(Path(top, name) for top, folders, files in os.walk(folder) for name in (*folders, *files))]
