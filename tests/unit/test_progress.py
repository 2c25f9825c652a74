"""Signs of life: what is drawn on a terminal, what is written elsewhere, and what not at all."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from rn_harness.report.progress import Bar, Progress, ProgressView

WHAT = "biochem: attack-grpo-p5-lr5e-4-s0"
STATE = "max 0, mean 0.00, 0/80 above 2"


class Reporter:
    """What pytest's terminal reporter would do, noted."""

    def __init__(self, *, isatty: bool = True) -> None:
        self.isatty, self.said = isatty, list[str]()

    def rewrite(self, line: str, *, erase: bool) -> None:
        assert erase
        self.said.append(f"\r{line}")

    def line(self, text: str) -> None:
        self.said.append(f"{text}\n")

    write_line = line

    def ensure_newline(self) -> None:
        pass

    def flush(self) -> None:
        pass


def bar_after(seconds: float, step: int, *, first: int = 0, width: int = 100, state: str | None = STATE) -> str:
    """The bar of a work of 200 steps whose first sign came ``seconds`` ago."""
    times = iter([0.0, seconds, seconds])
    return Bar(Progress(WHAT, first, 200, STATE), lambda: next(times)).line(Progress(WHAT, step, 200, state), width)


def test_a_bar_estimates_what_is_left() -> None:
    """20 of 200 steps in 30 s: 180 more take 270 s. Of one that goes on at 40, 20 steps in 30 s leave 140, hence 210 s."""
    assert bar_after(30, 20).startswith(f"{WHAT} [")
    assert bar_after(30, 20).endswith(f"] 20/200, 04:30 left, {STATE}")
    assert bar_after(30, 60, first=40).endswith(f"] 60/200, 03:30 left, {STATE}")
    assert bar_after(0, 0).endswith(f"] 0/200, ? left, {STATE}")  # nothing was done yet
    assert bar_after(300, 200).endswith(f"] 200/200, took 05:00, {STATE}")


def test_a_step_keeps_the_last_numbers() -> None:
    """Between two measurements the bar moves, and the numbers stay as they were measured."""
    assert bar_after(30, 21, state=None).endswith(f"] 21/200, 04:15 left, {STATE}")


@hypothesis.given(step=st.integers(0, 200), width=st.integers(10, 300), seconds=st.floats(0, 1e6))
def test_a_bar_fits_and_needs_no_colour(step: int, width: int, seconds: float) -> None:
    """On whatever width a bar is one line within it, without control characters; how far it is stands in figures too."""
    line = bar_after(seconds, step, width=width)
    assert len(line) <= width
    assert line.isprintable()
    assert line.isascii()
    if width >= 80:
        assert f"] {step}/200, " in line


def shown(*signs: Progress, reporter: Reporter | None = None, quiet: bool = False, environment: Any = None) -> list[str]:
    """What the reporter was given."""
    reporter = reporter or Reporter()
    view = ProgressView(reporter, quiet=quiet, environment=environment or {"TERM": "xterm"})
    for sign in signs:
        view.show(sign)
    return reporter.said


SIGNS = (Progress("a", 0, 2, "x"), Progress("a", 1, 2), Progress("a", 2, 2), Progress("a", 2, 2, "y"))
NOTE = Progress("b", 0, 0, "made anew", stays=True)


def test_on_a_terminal_the_last_line_is_redrawn_and_closed_at_the_end() -> None:
    """Each sign redraws the line, each step too; at the last measurement it ends, so that pytest goes on below."""
    said = shown(*SIGNS)
    assert [line[:1] for line in said] == ["\r", "\r", "\r", "\r", "\n"]
    assert "1/2" in said[1]


@pytest.mark.parametrize(
    ("isatty", "environment"), [(False, {"TERM": "xterm"}), (True, {"TERM": "dumb"}), (True, {"TERM": "xterm", "CI": "true"})]
)
def test_elsewhere_measurements_are_plain_lines(isatty: bool, environment: dict[str, str]) -> None:
    """No terminal, one that cannot redraw, or a build: a line a measurement, none a step, no control character."""
    assert shown(*SIGNS, NOTE, reporter=Reporter(isatty=isatty), environment=environment) == [
        "a: step 0/2: x\n", "a: step 2/2: y\n", "b: made anew\n",
    ]  # fmt: skip


@pytest.mark.parametrize("isatty", [True, False])
def test_quiet_leaves_what_stays(isatty: bool) -> None:
    """Neither bars nor lines; what says why work is done again is no progress, and stands."""
    assert shown(*SIGNS, NOTE, reporter=Reporter(isatty=isatty), quiet=True) == ["b: made anew\n"]


def test_a_bar_that_was_cut_off_leaves_the_line() -> None:
    """Another work, a note, or the end of the test closes the line of a bar that still stands."""
    said = shown(SIGNS[0], Progress("c", 0, 2, "z"), NOTE)
    assert [line.strip()[:1] or "newline" for line in said] == ["a", "newline", "c", "newline", "b"]
    reporter = Reporter()
    view = ProgressView(reporter, quiet=False, environment={})
    view.show(SIGNS[0])
    for _ in range(2):
        view.end()
    assert [line[-1:] for line in reporter.said][1:] == ["\n"]


def test_a_worker_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a reporter of its own: plain lines, measurements alone."""
    view = ProgressView(None, quiet=False, environment={})
    for sign in (*SIGNS, NOTE):
        view.show(sign)
    view.end()
    assert capsys.readouterr() == ("", "a: step 0/2: x\na: step 2/2: y\nb: made anew\n")
