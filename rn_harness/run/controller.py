"""The run in the controlling process: collects the reports of tests, and writes JUnit, the run's record and the views.

There is one controller in each session that selects a suite's tests. Workers send it their reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rn_harness.records.base import Outcome, TestState
from rn_harness.records.run import RunRecord
from rn_harness.release.statement import RUN, STATEMENT
from rn_harness.report.junit import TestResult, write_junit
from rn_harness.report.terminal import declared_recipe, summary_lines
from rn_harness.report.views import write_views
from rn_harness.run.case_board import CaseBoard, CaseNews, Phase, SelectedTest, never_run
from rn_harness.run.finishing import JUNIT, close_run, release_obstacles, revoke_unconfirmed
from rn_harness.spec.loaded_code import LoadedCode

VERDICT = "rn-harness::verdict"
"""Name of the run's verdict in JUnit, if no test shows it."""


@dataclass
class Controller(CaseBoard):
    """Collects reports and writes ``junit.xml`` and ``run.json``.

    Attributes:
        unwritten: why the views for people could not be written; None if they were. It changes no verdict.
    """

    unwritten: str | None = field(default=None, init=False)
    _clock: float = field(default_factory=time.monotonic)
    _verdict: TestResult | None = None

    def begin(self, nodeids: Sequence[str], uncollected: Sequence[str] = ()) -> None:
        """Registers the selected tests, and those of files that could not be collected.

        From here on there is a JUnit file, red until the tests have passed.

        Raises:
            OSError: the run's folder cannot be written to.
        """
        (self.folder / "cases").mkdir(parents=True, exist_ok=True)
        for name in (RUN, STATEMENT):  # an earlier run's outcome must not survive a kill of this one
            (self.folder / name).unlink(missing_ok=True)
        self._earlier = set(self.record_files().values())
        self.tests |= {nodeid: SelectedTest(nodeid) for nodeid in nodeids}
        self.tests |= {nodeid: never_run(nodeid, "no verdict: the file could not be collected") for nodeid in uncollected}
        self.require_left_out()
        self._write_junit()
        if not self.is_part:
            self._point_latest()

    def hear(self, left_out: Sequence[str], plugins: Sequence[LoadedCode]) -> None:
        """Takes a worker's report on the tests that it left out and the code that it had loaded."""
        self.left_out = sorted({*self.left_out, *left_out})
        self.plugins = tuple(dict.fromkeys((*self.plugins, *plugins)))
        self.require_left_out()

    def add(
        self, nodeid: str, phase: Phase, outcome: str, seconds: float, text: str, news: CaseNews | None, *, excused: bool = False
    ) -> None:
        """Takes the report of one phase of one test, which ``passed``, ``failed`` or was ``skipped``.

        The verdict of the case decides the test's state. A failure stays, and the news of a breach is not replaced.

        Args:
            nodeid, phase, outcome, seconds: as pytest reports them.
            text: why it did not pass.
            news: of the case, if there is one.
            excused: whether the test is marked xfail, so that pytest ignores its result.
        """
        test = self.tests.get(nodeid)
        if test is None:
            return
        test.excused = test.excused or excused
        test.seconds += seconds
        test.has_result = test.has_result or outcome != "passed" or phase != "setup"
        if news and not (test.news and test.news["outcome"] == "FAIL"):
            test.news = news
        if not (test.ended and test.state in ("failure", "error")):
            self._settle(test, phase, outcome, text)
            test.ended = test.ended or phase == "teardown"
        if phase == "teardown":
            self._write_junit()

    def _settle(self, test: SelectedTest, phase: Phase, outcome: str, text: str) -> None:
        demanded = self.demanded(test.news)
        if demanded and (phase != "setup" or outcome != "passed"):
            test.state, test.text = demanded, text if outcome == "failed" else self.verdict_text(test.news)
        elif outcome == "skipped":
            test.state, test.text = "skipped", text
        elif outcome == "failed":
            test.state, test.text = ("failure" if phase == "call" else "error"), text
        elif phase == "call":
            test.state, test.text = "passed", ""

    def undertold(self, outcome: Outcome, failures: int, errors: int) -> TestState | None:
        """The state of the run's verdict in a JUnit file whose tests would make the run look better; None if they do not."""
        if outcome == "FAIL" and not failures:
            return "failure"
        if outcome == "INCONCLUSIVE" and not (failures or errors or self.narrowed):
            return "error"
        return None

    @property
    def properties(self) -> dict[str, str]:
        """Facts of the run, for JUnit's testsuite properties."""
        facts = {
            "rn_harness.candidate": str(self.candidate["name"]),
            "rn_harness.candidate.sha256": str(self.candidate["digest"]),
            "rn_harness.defense": self.options.defense,
            "rn_harness.judges": "; ".join(f"{domain}: {names}" for domain, names in self.judges.items()),
            "rn_harness.tier": self.options.tier,
            "rn_harness.run_folder": self.folder.name,
            "rn_harness.overrides": " ".join(self.options.overrides),
            "rn_harness.recipe": declared_recipe(self.suites),
            "rn_harness.broken_by": " ".join(self.broken_by),
        }
        return facts | {f"rn_harness.suite.{s.domain}.sha256": s.digest for s in self.suites}

    def unended(self) -> list[tuple[str, str]]:
        """Node id and text of each test without a reported result."""
        return [(test.nodeid, test.text) for test in self.tests.values() if not test.has_result]

    def write_junit(self, path: Path) -> None:
        """Writes the file with the results so far; a test that has not ended is red."""
        tests = self.tests.values()
        results = [TestResult(t.nodeid, t.state, t.text, t.news["output"] if t.news else "", t.seconds) for t in tests]
        results += [self._verdict] if self._verdict else []
        write_junit(path, results, self.properties, self.started, time.monotonic() - self._clock)

    def _write_junit(self) -> None:
        self.write_junit(self.folder / JUNIT)

    def _point_latest(self) -> None:
        """Makes ``latest``, next to the run's folder, a link to it; nothing if another file has that name."""
        link = self.folder.parent / "latest"
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(f".latest.{self.folder.name}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.folder.name)
        temporary.replace(link)

    def hindrances(self) -> list[str]:
        """Reasons against a release that hold before any case has run."""
        return release_obstacles(self, "PASS", [])

    def finish(self) -> RunRecord:
        """Decides the run, and writes the last JUnit and the run's record."""
        self.forget_records()
        revoke_unconfirmed(self)
        return close_run(self, self._write_verdict, self._clock)

    def _write_verdict(self, outcome: Outcome, claim: str) -> None:
        state = self.undertold(outcome, self.count("failure"), self.count("error"))
        self._verdict = TestResult(VERDICT, state, claim) if state else None
        self._write_junit()

    def show(self, run: RunRecord) -> None:
        """Writes the views for people. A failure is reported at the end of the run, and changes no verdict."""
        try:
            write_views(self.folder, run, self.records())
        except Exception as error:  # noqa: BLE001  (reported at the end of the run, which is then not green)
            self.unwritten = f"{type(error).__name__}: {error}"

    def summary(self, run: RunRecord) -> Iterator[str]:
        """The closing lines."""
        yield from summary_lines(run, self.records(), str(self.folder))
        if self.unwritten:
            yield f"NO REPORT: report.html and summary.md could not be written: {self.unwritten}"
            yield f"the records stand; when that is mended: rn-harness report {self.folder}"
