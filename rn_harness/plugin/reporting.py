"""Reports and the exit code: the case's data on pytest's report, the user's own JUnit file, the end of a run."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rn_harness.plugin.pytest_compat import add_output, add_red_test, junit_writer, remove_nameless_cases
from rn_harness.plugin.stash import CASE, SCRATCH, TERMINATED, WORKERS, argument_suites, is_worker

if TYPE_CHECKING:
    from _pytest.junitxml import LogXML

    from rn_harness.records.run import RunRecord
    from rn_harness.run.case_board import CaseNews
    from rn_harness.run.controller import Controller

SINK_NAME = "rn-harness-sink"
STOPPED = 75
"""Exit code after SIGTERM: the same command continues the run."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Adds the case's data to the report, which xdist sends to the controlling process."""
    report = yield
    case = item.stash.get(CASE, None)
    if case is not None:
        from rn_harness.report.terminal import checkpoint_lines
        from rn_harness.run.case_board import news_of

        report.rn_harness = news_of(case, "\n".join(checkpoint_lines(case.record)))
    return report


class Sink:
    """Receives reports in the controlling process. It is registered when a run begins, so that other sessions never see it."""

    def __init__(self, config: pytest.Config, controller: Controller) -> None:
        self.config = config
        self.controller = controller
        self.run: RunRecord | None = None
        self.finishing = False
        self.ended: tuple[pytest.Session, int] | None = None
        self.xml = junit_writer(config)
        if self.xml is not None:
            path = Path(self.xml.logfile)
            path.parent.mkdir(parents=True, exist_ok=True)
            controller.write_junit(path)  # red until pytest writes it at the end of the session
            for name, value in controller.properties.items():
                self.xml.add_global_property(name, value)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Takes each phase's report; the user's own JUnit gets the checkpoints as system-out."""
        text = report.longreprtext
        if report.skipped and isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        news = getattr(report, "rn_harness", None)
        excused = hasattr(report, "wasxfail")
        self.controller.add(report.nodeid, report.when, report.outcome, report.duration, text, news, excused=excused)
        self._correct_outcome(report, news)
        if self.xml is not None and news and (report.when == "call" or (report.when == "setup" and not report.passed)):
            add_output(self.xml, report, news["output"])

    def _correct_outcome(self, report: Any, news: CaseNews | None) -> None:
        """Makes a report as red as the verdict; an emptied test, a mark or a hook may have made it green."""
        demanded = self.controller.demanded(news)
        decisive = {"failure": "call", "error": "setup"}.get(demanded or "")
        if decisive == report.when and (report.outcome != "failed" or hasattr(report, "wasxfail")):
            report.outcome, report.longrepr = "failed", self.controller.verdict_text(news)
            vars(report).pop("wasxfail", None)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        """Concludes the run before all other hooks, and sets the exit code after them."""
        code = self.conclude(session)
        try:
            return (yield)
        except pytest.exit.Exception as error:
            error.returncode = code or error.returncode
            raise
        finally:
            session.exitstatus = code or session.exitstatus

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_unconfigure(self) -> Generator[None]:
        """Sets the exit code again, after other plugins' last hooks."""
        try:
            return (yield)
        finally:
            if self.ended:
                session, code = self.ended
                session.exitstatus = code or session.exitstatus

    def conclude(self, session: pytest.Session) -> int:
        """Writes the run's record, also after an interruption; an unfinished case then has no verdict.

        Returns:
            The exit code that the verdict demands; 0: pytest's own code holds.
        """
        if self.ended:
            return self.ended[1]
        self.finishing = True
        self.controller.unheard = [name for name, heard in self.config.stash[WORKERS].items() if not heard]
        self.run = self.controller.finish()
        if self.xml is not None:
            self._complete_junit(self.xml, self.run)
        self.controller.show(self.run)
        self.ended = session, int(self._exit_code(session, self.run))
        return self.ended[1]

    def _exit_code(self, session: pytest.Session, run: RunRecord) -> int:
        """A breach is never green, whatever was narrowed, marked or hooked; nor is a run that the gate refuses."""
        code = session.exitstatus
        if self.config.stash.get(TERMINATED, False):
            return STOPPED
        if run.outcome == "FAIL" and code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            code = 1
        elif run.outcome != "PASS" and not self.controller.narrowed and code == 0:
            code = 1  # the tests are green but leave out cases that the tier requires
        if self.controller.unwritten and code == 0:
            code = 1  # a run without its views is not green
        is_red = session.testsfailed > 0 or session.exitstatus not in (0, 1)
        if run.releasable or not self.config.getoption("rn_gate") or run.outcome == "FAIL" or is_red:
            return code
        from rn_harness.verdict.release_rules import NOT_RELEASABLE

        return NOT_RELEASABLE

    def _complete_junit(self, xml: LogXML, run: RunRecord) -> None:
        """Adds an error for each unfinished test to the user's own JUnit file.

        If the file would still look better than the verdict, the verdict becomes a test case too.
        """
        remove_nameless_cases(xml)
        for test in self.controller.tests.values():
            if not test.has_result:
                add_red_test(xml, test.nodeid, test.text)
        if state := self.controller.undertold(run.outcome, xml.stats["failure"], xml.stats["error"]):
            from rn_harness.run.controller import VERDICT

            add_red_test(xml, VERDICT, run.claim, "call" if state == "failure" else "setup")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Prints the closing table and the claim."""
        terminalreporter.section("rn-harness")
        for line in self.controller.summary(self.run or self.controller.finish()):
            terminalreporter.write_line(line)


SINK = pytest.StashKey[Sink]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Refuses, under the gate, a session that ran no suite: a wrong path, or one that only lists tests.

    The exit code of a run of several processes is that of the leading one: a launcher kills it when another process's code is
    not 0.
    """
    config = session.config
    if SCRATCH in config.stash:
        if session.exitstatus in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.USAGE_ERROR):
            session.exitstatus = pytest.ExitCode.OK
        return
    if SINK in config.stash:
        if not config.pluginmanager.is_registered(config.stash[SINK]):  # another plugin removed it
            code = config.stash[SINK].conclude(session)
            session.exitstatus = code or session.exitstatus
        return
    if is_worker(config):
        return
    interrupted = session.exitstatus == pytest.ExitCode.INTERRUPTED and argument_suites(config)
    if interrupted and (xml := junit_writer(config)) is not None:  # pytest would write it without a test case
        add_red_test(xml, "rn-harness::interrupted", "no verdict: interrupted before the first test")
    if not config.getoption("rn_gate") or session.exitstatus != 0:
        return
    from rn_harness.verdict.release_rules import NOT_RELEASABLE

    session.exitstatus = NOT_RELEASABLE
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.write_line("--rn-gate: no suite was run, so that nothing can be released; name one, e.g. pytest suites/biochem")
