"""The measurements of a case that has not ended, that failed, or that left doubts."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.store.files import write_text


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """True if two JSON values are equal. Floats may differ by the tolerance, except scores."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k], 0.0 if k == "score" else tolerance) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(alike(*pair, tolerance) for pair in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return type(one) is type(other) and bool(one == other)


@dataclass
class Journal:
    """The measurements of an unfinished case, one line each. They survive a kill, and are removed once the case is complete.

    A case that was cut off starts again from its seed. While it repeats the earlier lines, nothing is written. If it differs, the
    earlier lines are kept in another file, which each further attempt reads: a measurement that was made is never lost. One
    on another processor, or under a judge that scored one known text otherwise, has a file of its own, and reads the others.

    Attributes:
        earlier: complete lines of the last attempt that was cut off.
        aside: complete lines of each attempt before it from which a later one differed, and of those with another file.
        lines: of this attempt.
        differs_at: the first line in which this attempt differs; None: it repeats the earlier one so far.
        begun: this attempt has written the file, to which further lines are appended.
        tolerance: the difference, absolute or relative, at which two numbers still count as equal; 0: bit by bit. Scores have to
            be equal, since a single score can decide.
    """

    path: Path
    earlier: tuple[str, ...] = ()
    aside: tuple[tuple[str, ...], ...] = ()
    lines: list[str] = field(default_factory=list)
    differs_at: int | None = None
    tolerance: float = 0.0
    begun: bool = False

    @classmethod
    def at(cls, path: Path, tolerance: float = 0.0) -> Journal:
        """Opens a journal with the lines of earlier attempts; an incomplete last line is dropped."""

        def lines(of: Path) -> tuple[str, ...]:
            text = ""
            with suppress(FileNotFoundError):  # another process may have closed it
                text = of.read_text(encoding="utf-8", errors="replace")
                with suppress(OSError):
                    os.utime(of)  # it is in use, and not to be pruned
            return tuple(line[:-1] for line in text.splitlines(keepends=True) if line.endswith("\n"))

        mine = _set_aside(path)
        others = sorted(set(path.parent.glob(f"{path.name.partition('-')[0]}-*.jsonl*")) - {path, *mine})
        return cls(path, lines(path), tuple(map(lines, (*others, *mine))), tolerance=tolerance)

    def add(self, line: str) -> None:
        """Adds a line; it is on disk when this returns."""
        number = len(self.lines)
        self.lines.append(line)
        if self.differs_at is None and number < len(self.earlier):
            if self._repeats(line, self.earlier[number]):
                return
            self.differs_at = number
            taken = [int(path.suffix[1:]) for path in _set_aside(self.path)]
            _write(self.path.with_name(f"{self.path.name}.{max(taken, default=0) + 1}"), self.earlier)
        if self.begun and self.path.is_file():  # another process may have pruned it
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
                file.flush()
                os.fsync(file.fileno())
            return
        # The file may end in half a line of an earlier attempt.
        _write(self.path, self.lines)
        self.begun = True

    def _repeats(self, line: str, before: str) -> bool:
        """True if a line repeats the earlier one; one that is no JSON repeats nothing else."""
        with suppress(ValueError):
            return line == before or (self.tolerance > 0 and alike(json.loads(line), json.loads(before), self.tolerance))
        return False

    @property
    def unrepeated(self) -> list[str]:
        """Lines of earlier attempts that this one does not repeat: of each from the first different line on, each line once."""
        found: list[str] = []
        for attempt in (*self.aside, self.earlier):
            pairs = enumerate(zip(self.lines, attempt, strict=False))
            differs_at = next((n for n, (line, before) in pairs if not self._repeats(line, before)), len(attempt))
            found += attempt[differs_at:]
        return list(dict.fromkeys(found))

    @property
    def other_keys(self) -> list[str]:
        """Keys of the same case under which other attempts have left a file."""
        case, _, mine = self.path.stem.partition("-")
        found = {path.name.partition(".")[0].partition("-")[2] for path in self.path.parent.glob(f"{case}-*.jsonl*")}
        return sorted(found - {mine})

    @property
    def is_behind(self) -> bool:
        """True if this attempt repeats the earlier one so far, and has not reached its last line."""
        return self.differs_at is None and len(self.lines) < len(self.earlier)

    def close(self) -> None:
        """Removes the file; the complete case is stored as an entry. Attempts that differ are kept, as is a case that failed."""
        self.path.unlink(missing_ok=True)


def _write(path: Path, lines: Iterable[str]) -> None:
    """Writes a file of lines; another process may have pruned its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _set_aside(path: Path) -> list[Path]:
    """The files of a journal's attempts from which a later one differed, the oldest first."""
    numbered = (other for other in path.parent.glob(f"{path.name}.*") if other.suffix[1:].isdecimal())
    return sorted(numbered, key=lambda other: int(other.suffix[1:]))
