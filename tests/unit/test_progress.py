"""Progress: the output on a terminal, in other outputs, and in quiet mode."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from rn_harness.report.progress import Bar, Progress, ProgressView

WHAT = "biochem: attack-grpo-p5-lr5e-4-s0"
STATE = "max 0, mean 0.00, 0/80 above 2"


class Reporter:
    """A stub of pytest's terminal reporter that records its calls."""

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
    """The bar of a task with 200 steps whose first report was ``seconds`` ago."""
    times = iter([0.0, seconds, seconds])
    return Bar(Progress(WHAT, first, 200, STATE), lambda: next(times)).line(Progress(WHAT, step, 200, state), width)


def test_a_bar_estimates_what_is_left() -> None:
    """20 of 200 steps in 30 s leave 270 s for 180; resumed at 40, 20 steps in 30 s leave 210 s for 140."""
    assert bar_after(30, 20).startswith(f"{WHAT} [")
    assert bar_after(30, 20).endswith(f"] 20/200, 04:30 left, {STATE}")
    assert bar_after(30, 60, first=40).endswith(f"] 60/200, 03:30 left, {STATE}")
    assert bar_after(0, 0).endswith(f"] 0/200, ? left, {STATE}")  # nothing is done yet
    assert bar_after(300, 200).endswith(f"] 200/200, took 05:00, {STATE}")


def test_a_step_keeps_the_last_numbers() -> None:
    """Between two measurements the bar moves and keeps the last measured numbers."""
    assert bar_after(30, 21, state=None).endswith(f"] 21/200, 04:15 left, {STATE}")


@hypothesis.given(step=st.integers(0, 200), width=st.integers(10, 300), seconds=st.floats(0, 1e6))
def test_a_bar_fits_and_needs_no_colour(step: int, width: int, seconds: float) -> None:
    """At any width a bar is one line without control characters, and wide ones show the step in digits."""
    line = bar_after(seconds, step, width=width)
    assert len(line) <= width
    assert line.isprintable()
    assert line.isascii()
    if width >= 80:
        assert f"] {step}/200, " in line


def shown(*signs: Progress, reporter: Reporter | None = None, quiet: bool = False, environment: Any = None) -> list[str]:
    """The output given to the reporter."""
    reporter = reporter or Reporter()
    view = ProgressView(reporter, quiet=quiet, environment=environment or {"TERM": "xterm"})
    for sign in signs:
        view.show(sign)
    return reporter.said


SIGNS = (Progress("a", 0, 2, "x"), Progress("a", 1, 2), Progress("a", 2, 2), Progress("a", 2, 2, "y"))
NOTE = Progress("b", 0, 0, "made anew", stays=True)


def test_on_a_terminal_the_last_line_is_redrawn_and_closed_at_the_end() -> None:
    """Each report redraws the line; the last measurement ends it, so that pytest continues on the next line."""
    said = shown(*SIGNS)
    assert [line[:1] for line in said] == ["\r", "\r", "\r", "\r", "\n"]
    assert "1/2" in said[1]


@pytest.mark.parametrize(
    ("isatty", "environment"), [(False, {"TERM": "xterm"}), (True, {"TERM": "dumb"}), (True, {"TERM": "xterm", "CI": "true"})]
)
def test_elsewhere_measurements_are_plain_lines(isatty: bool, environment: dict[str, str]) -> None:
    """Without a redrawable terminal, or in CI, each measurement is a plain line; steps are not shown."""
    assert shown(*SIGNS, NOTE, reporter=Reporter(isatty=isatty), environment=environment) == [
        "a: step 0/2: x\n", "a: step 2/2: y\n", "b: made anew\n",
    ]  # fmt: skip


@pytest.mark.parametrize("isatty", [True, False])
def test_quiet_shows_only_lasting_notes(isatty: bool) -> None:
    """Quiet mode shows neither bars nor lines, except a note that explains why work is repeated."""
    assert shown(*SIGNS, NOTE, reporter=Reporter(isatty=isatty), quiet=True) == ["b: made anew\n"]


def test_an_unfinished_bar_closes_its_line() -> None:
    """Another task, a note, or the end of the test closes the line of an unfinished bar."""
    said = shown(SIGNS[0], Progress("c", 0, 2, "z"), NOTE)
    assert [line.strip()[:1] or "newline" for line in said] == ["a", "newline", "c", "newline", "b"]
    reporter = Reporter()
    view = ProgressView(reporter, quiet=False, environment={})
    view.show(SIGNS[0])
    for _ in range(2):
        view.end()
    assert [line[-1:] for line in reporter.said][1:] == ["\n"]


def test_a_worker_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a reporter, a worker writes measurements as plain lines to standard error."""
    view = ProgressView(None, quiet=False, environment={})
    for sign in (*SIGNS, NOTE):
        view.show(sign)
    view.end()
    assert capsys.readouterr() == ("", "a: step 0/2: x\na: step 2/2: y\nb: made anew\n")
