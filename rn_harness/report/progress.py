"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere.

A bar has no colours and is never drawn from a thread: it changes when there is news. tqdm draws it and estimates the time;
pytest's reporter writes it.
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
"""Environment variables that mark a build without a user, as in pytest."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of progress.

    Attributes:
        what: domain and case.
        step, steps: steps done, and all steps.
        state: current numbers; None: unchanged since the last report, which a log then skips.
        stays: True if the line stays on the terminal, and is shown even in a quiet session.
        among: title of the bar if several cases run together; None: this case's own title.
    """

    what: str
    step: int
    steps: int
    state: str | None = None
    stays: bool = False
    among: str | None = None

    @property
    def drawn(self) -> str:
        """The title of the bar."""
        return self.among or self.what

    @property
    def line(self) -> str:
        """The line for a log."""
        if self.stays:
            return f"{self.what}: {self.state}"
        return f"{self.what}: step {self.step}/{self.steps}: {self.state}"


class Bar:
    """The bar of one piece of work; time is counted from its first report."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self._first, self._state = progress.drawn, progress.step, progress.state
        self._clock, self._begun = clock, clock()

    def line(self, progress: Progress, width: int) -> str:
        """The bar as text, at most ``width`` columns wide."""
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

        text = draw(self._state or "")
        bar = text.partition("[")[2].partition("]")[0]
        return text if len(bar) >= NARROWEST and len(text) <= width else draw("")[:width]


class ProgressView:
    """Shows progress through pytest's terminal reporter; without one (in a worker), plain lines go to standard error."""

    def __init__(self, reporter: Any, *, quiet: bool, environment: Mapping[str, str] = os.environ) -> None:
        self._reporter, self._quiet = reporter, quiet
        built = any(environment.get(name) for name in OF_A_BUILD)
        self._redraws = bool(reporter and reporter.isatty) and environment.get("TERM") != "dumb" and not built
        self._bar: Bar | None = None

    def show(self, progress: Progress) -> None:
        """Draws or writes one report."""
        reporter = self._reporter
        if self._quiet and not progress.stays:
            return
        if self._redraws and not progress.stays:
            if self._bar is None or self._bar.what != progress.drawn:
                self.end()
                reporter.ensure_newline()
                self._bar = Bar(progress)
            # One column stays free: a full line would wrap, and the next bar would appear below it.
            reporter.rewrite(self._bar.line(progress, shutil.get_terminal_size().columns - 1), erase=True)
            reporter.flush()
            if progress.step >= progress.steps and progress.state is not None and progress.among is None:
                self.end()
        elif progress.state is not None and reporter:
            self.end()
            reporter.ensure_newline()
            reporter.write_line(progress.line)
        elif progress.state is not None:
            sys.stderr.write(f"{progress.line}\n")
            sys.stderr.flush()

    def end(self) -> None:
        """Ends the line of the current bar, if there is one, so that other lines can follow."""
        if self._bar is not None:
            self._bar = None
            self._reporter.line("")
