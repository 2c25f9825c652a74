"""Signs of life of long work: a bar with what is left on a terminal, plain lines elsewhere.

A bar is drawn without colours, and never from a thread: it changes when there is something to tell. tqdm draws it and estimates
the time; pytest's reporter writes it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

NARROWEST = 10
"""Columns of a bar below which the state is left out."""
FILLING = ".#"
OF_A_BUILD = ("CI", "BUILD_NUMBER")
"""Variables by which pytest too knows that nobody sits in front."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One sign of life of long work.

    Attributes:
        what: domain and case.
        step, steps: how far it is.
        state: its numbers; None: as they were at the last sign, so that a log is not told.
        stays: whether it stays on a terminal whose last line is redrawn, and is told to whoever asked for quiet.
        among: what the bar is of, where several are worked on together; None: of this one.
    """

    what: str
    step: int
    steps: int
    state: str | None = None
    stays: bool = False
    among: str | None = None

    @property
    def drawn(self) -> str:
        """What its bar is of."""
        return self.among or self.what

    @property
    def line(self) -> str:
        """For a log."""
        if self.stays:
            return f"{self.what}: {self.state}"
        return f"{self.what}: step {self.step}/{self.steps}: {self.state}"


class Bar:
    """The bar of one piece of work.

    Args:
        progress: its first sign of life, from which time is counted.
        clock: seconds.
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self._first, self._state = progress.drawn, progress.step, progress.state
        self._clock, self._begun = clock, clock()

    def line(self, progress: Progress, width: int) -> str:
        """What stands on the terminal's last line, at most so many columns wide."""
        from tqdm.std import tqdm

        self._state = self._state if progress.state is None else progress.state
        rest = "took {elapsed}" if progress.step >= progress.steps else "{remaining} left"
        drawn = f"{{desc}} [{{bar}}] {{n_fmt}}/{{total_fmt}}, {rest}"

        def draw(state: str) -> str:
            return str(
                tqdm.format_meter(
                    progress.step, progress.steps, self._clock() - self._begun, ncols=width, prefix=self.what, ascii=FILLING,
                    bar_format=drawn + "{postfix}", postfix=state, initial=self._first,
                )
            )  # fmt: skip

        told = draw(self._state or "")
        bar = told.partition("[")[2].partition("]")[0]
        return told if len(bar) >= NARROWEST and len(told) <= width else draw("")[:width]


class ProgressView:
    """Shows signs of life where they belong.

    Args:
        reporter: pytest's terminal reporter; None: plain lines go to standard error, as of a worker.
        quiet: none but those that stay.
        environment: says whether a terminal can redraw its last line, and whether a build runs.
    """

    def __init__(self, reporter: Any | None, *, quiet: bool, environment: Mapping[str, str] = os.environ) -> None:
        self._reporter, self._quiet = reporter, quiet
        built = any(environment.get(name) for name in OF_A_BUILD)
        self._redraws = bool(reporter and reporter.isatty) and environment.get("TERM") != "dumb" and not built
        self._bar: Bar | None = None

    def show(self, progress: Progress) -> None:
        """Draws or writes it."""
        if self._quiet and not progress.stays:
            return
        if self._redraws and not progress.stays:
            self._draw(progress)
        elif progress.state is not None:
            self.end()
            self._write(progress.line)

    def end(self) -> None:
        """Ends the line that a bar stands on, if one does, so that others can write."""
        if self._bar is not None and self._reporter is not None:
            self._bar = None
            self._reporter.line("")

    def _draw(self, progress: Progress) -> None:
        reporter = self._reporter
        if reporter is None:
            return
        if self._bar is None or self._bar.what != progress.drawn:
            self.end()
            reporter.ensure_newline()
            self._bar = Bar(progress)
        # One column is left free: a full line would wrap, and the next one be drawn below it.
        reporter.rewrite(self._bar.line(progress, shutil.get_terminal_size().columns - 1), erase=True)
        reporter.flush()
        if progress.step >= progress.steps and progress.state is not None and progress.among is None:
            self.end()

    def _write(self, line: str) -> None:
        if self._reporter is None:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        else:
            self._reporter.ensure_newline()
            self._reporter.write_line(line)
