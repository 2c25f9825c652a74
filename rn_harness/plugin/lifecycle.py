"""A run in the controlling process: its start, the hooks of pytest-xdist, its reports, its end and the exit code."""

from __future__ import annotations

import functools
import gc
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rn_harness.plugin.arguments import foreign_aliases
from rn_harness.plugin.collection import COLLECTED, USAGE_ERROR, case_tasks, checked_suites
from rn_harness.plugin.fixtures import CASE
from rn_harness.plugin.pytest_compat import add_output, add_red_test, finish_report, junit_writer, remove_nameless_cases
from rn_harness.plugin.state import SINK_NAME, STATE, SUITE_FILE, unwritable
from rn_harness.spec.errors import RnHarnessError
from rn_harness.spec.options import NOT_RELEASABLE

if TYPE_CHECKING:
    from _pytest.junitxml import LogXML

    from rn_harness.records.run import RunRecord
    from rn_harness.run.case_board import CaseNews
    from rn_harness.run.controller import Controller
    from rn_harness.spec.suite import Suite

STOPPED = 75
"""Exit code after SIGTERM: the same command continues the run."""


class Sink:
    """Receives reports in the controlling process. It is registered when a run begins, so that other sessions never see it."""

    def __init__(self, config: pytest.Config, controller: Controller) -> None:
        self.config = config
        self.state = config.stash[STATE]
        self.controller = controller
        self.run: RunRecord | None = None
        self.ended: tuple[pytest.Session, int] | None = None
        self.interrupted = False
        self.untold: pytest.TestReport | None = None
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
        self.untold = report
        text = report.longreprtext
        if report.skipped and isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        news = getattr(report, "rn_harness", None)
        excused = hasattr(report, "wasxfail")
        self.controller.add(report.nodeid, report.when, report.outcome, report.duration, text, news, excused=excused)
        self._correct_outcome(report, news)
        if self.xml is not None and news and (report.when == "call" or (report.when == "setup" and not report.passed)):
            add_output(self.xml, report, news["output"])

    @pytest.hookimpl(specname="pytest_runtest_logreport", trylast=True)
    def note_told(self) -> None:
        """Notes that all plugins have the report; a signal or an error of a plugin may come before."""
        self.untold = None

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
        self.state.finishing = True
        self.controller.unheard = [name for name, heard in self.state.workers.items() if not heard]
        self.controller.unchecked = self._unchecked()
        self.run = self.controller.finish()
        if self.xml is not None:
            from rn_harness.run.controller import HEADLINE

            self.xml.add_global_property(HEADLINE, " ".join(self.run.headline))
            self._complete_junit(self.xml, self.run)
        self.controller.show(self.run)
        self.ended = session, int(self._exit_code(session, self.run))
        return self.ended[1]

    def _unchecked(self) -> list[str]:
        """The domains of suites without a test of RobustnessChecks, not even one that was left out."""
        from rn_harness.plugin.checks import RobustnessChecks

        tests = (nodeid for nodeid in self.controller.tests if hasattr(RobustnessChecks, _function_of(nodeid)))
        checked = {folder.resolve() for nodeid in tests if (folder := self.state.suite_folder(nodeid))}
        return [suite.domain for suite in self.controller.suites if suite.folder.resolve() not in checked]

    def _exit_code(self, session: pytest.Session, run: RunRecord) -> int:
        """A breach is never green, whatever was narrowed, marked or hooked; nor is a run that the gate refuses."""
        code = session.exitstatus
        if self.state.terminated:
            return STOPPED
        if run.outcome == "FAIL" and code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            code = 1
        elif run.outcome != "PASS" and not self.controller.is_narrowed and code == 0:
            code = 1  # the tests are green but leave out cases that the tier requires
        if self.controller.unwritten and code == 0:
            code = 1  # a run without its views is not green
        is_red = session.testsfailed > 0 or session.exitstatus not in (0, 1)
        if run.releasable or not self.config.getoption("rn_gate") or run.outcome == "FAIL" or is_red:
            return code
        return NOT_RELEASABLE

    def _complete_junit(self, xml: LogXML, run: RunRecord) -> None:
        """Adds an error for each unfinished test to the user's own JUnit file.

        If the file would still look better than the verdict, the verdict becomes a test case too.
        """
        tests = self.controller.tests
        if self.interrupted and (report := self.untold) and (report.nodeid not in tests or tests[report.nodeid].has_result):
            self._correct_outcome(report, getattr(report, "rn_harness", None))
            finish_report(xml, report)
        remove_nameless_cases(xml)
        for test in tests.values():
            if not test.has_result:
                add_red_test(xml, test.nodeid, test.text)
        if state := self.controller.undertold(run.outcome, xml.stats["failure"], xml.stats["error"]):
            from rn_harness.run.controller import VERDICT

            add_red_test(xml, VERDICT, run.claim, "call" if state == "failure" else "setup")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Notes Ctrl-C and SIGTERM; ``pytest.exit`` arrives here too."""
        self.interrupted = isinstance(excinfo.value, KeyboardInterrupt)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Prints the closing table and the claim, and after an interruption how to go on."""
        terminalreporter.section("rn-harness")
        for line in self.controller.summary(self.run or self.controller.finish()):
            terminalreporter.write_line(line)
        if self.interrupted:
            terminalreporter.write_line(self.controller.continuation(self.state.reached))


SINK: pytest.StashKey[Sink] = pytest.StashKey()


def _function_of(nodeid: str) -> str:
    """The name of a test's function; parameters may contain ``::``."""
    return nodeid.partition("[")[0].rpartition("::")[2]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins the run, whose selection is now known; a worker reports the tests that were left out instead."""
    config, state = session.config, session.config.stash[STATE]
    collected = config.stash[COLLECTED]
    if state.has_session:
        gc.freeze()  # libraries and suites stay to the end; the collector went through them again and again
    if state.is_worker and collected.items:
        output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
        output["rn_left_out"] = collected.left_out(config, session.items)
        output["rn_loaded"] = [code.model_dump(mode="json") for code in state.loaded_plugins()]
    if state.checked and not state.is_worker and not config.option.collectonly:
        begin_run(config, [item.nodeid for item in session.items], session.items)
        if state.has_session and config.getoption("rn_fleet") > 1:
            state.run_session.upcoming = list(case_tasks(config, session.items))


def begin_run(config: pytest.Config, nodeids: list[str], items: Sequence[pytest.Item] = ()) -> None:
    """Begins the run of the selected tests, once; ``items`` are the tests themselves, unless workers collect them."""
    if SINK in config.stash:
        return
    state = config.stash[STATE]
    uncollected = [nodeid for nodeid in config.stash[COLLECTED].failed if state.suite_folder(nodeid)]
    selected = [*(nodeid for nodeid in nodeids if state.suite_folder(nodeid)), *uncollected]
    suites = checked_suites(config, selected)
    if not suites:
        return
    session = state.run_session
    session.run_id = state.run_identity.run_id  # not earlier, since the first part of a run writes a file
    if state.scratch:
        return
    try:
        if session.options.on_ray:
            from rn_harness.run.executors.on_ray import OnRay

            session.executor = OnRay.begin(session, case_tasks(config, items))
        controller = _new_controller(config, suites, items)
    except RnHarnessError as error:
        raise pytest.UsageError(str(error)) from None
    try:
        controller.begin(selected, uncollected)
        config.stash[SINK] = Sink(config, controller)
    except OSError as error:
        raise unwritable(Path(error.filename or state.run_folder), error) from None
    config.pluginmanager.register(config.stash[SINK], SINK_NAME)
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.ensure_newline()
        for line in _header(config, controller, suites):
            reporter.write_line(line)
    hindrances = controller.hindrances()
    if config.getoption("rn_gate") and hindrances:
        listed = "".join(f"\n  {why}" for why in hindrances)
        pytest.exit(f"--rn-gate: no release can rest on such a run, so that none is made:{listed}", returncode=NOT_RELEASABLE)
    session.executor.start()


def _new_controller(config: pytest.Config, suites: Sequence[Suite], items: Sequence[pytest.Item]) -> Controller:
    from rn_harness.run.controller import Controller
    from rn_harness.spec.suite import load_suite
    from rn_harness.store.provenance import uncommitted

    state = config.stash[STATE]
    session = state.run_session
    controller = Controller(
        folder=state.run_folder,
        options=session.options,
        # From the files again, since fixtures and other plugins could have changed the objects that they were given.
        suites=[load_suite(s.folder, s.overrides, session.options.private, s.recipe, session.options.level) for s in suites],
        candidate=session.candidate.identity,
        read_candidate=functools.partial(session.candidate.verify, fresh=True),
        judges={suite.domain: session.judges(suite).names for suite in suites},
        narrowed=_narrowed(config),
        left_out=config.stash[COLLECTED].left_out(config, items),
        plugins=tuple(dict.fromkeys((*session.options.plugins, *state.loaded_plugins()))),  # with judges that only nodes use
        dirty={suite.domain: files for suite in suites if (files := uncommitted(suite.folder))},
        run_id=session.run_id,
        started=state.run_identity.began,
        is_part=state.is_part,
    )
    if session.options.from_results:
        from rn_harness.run.executors.results import Results

        session.executor = results = Results(session, controller.recorded_options())
        controller.joined = results.taken
    return controller


def _header(config: pytest.Config, controller: Controller, suites: Sequence[Suite]) -> Iterator[str]:
    """The lines that the terminal shows before the first test."""
    from rn_harness.report.terminal import header_lines
    from rn_harness.run.attack_strength import strength_lines

    session = config.stash[STATE].run_session
    candidate, options = session.candidate, session.options
    memory = session.executor.memory_line(suites)
    yield from header_lines(candidate, suites, options, controller.judges, str(controller.folder), memory)
    yield from strength_lines(session, suites)
    if harmful := session.harmful(suites):
        kept = f"are kept encrypted in {options.transcripts}" if options.transcripts else "are kept nowhere"
        yield (
            f"rn-harness: this run makes {candidate.name} do harm in {', '.join(harmful)}, in memory alone: attacked weights "
            f"are kept nowhere, completions {kept}; see docs/security.md"
        )
    for alias in foreign_aliases(config):
        yield f"rn-harness: {alias} is the option of another plugin or conftest here; use --rn-{alias.removeprefix('--')}"


def _narrowed(config: pytest.Config) -> list[str]:
    """How the user narrowed the selection."""
    from rn_harness.run.case_board import NODE_ID

    found = [f"-{flag} {value}" for flag, value in (("k", config.option.keyword), ("m", config.option.markexpr)) if value]
    found += [f"--deselect {value}" for value in config.option.deselect or []]
    return found + [f"{NODE_ID} {arg}" for arg in config.invocation_params.args if "::" in str(arg)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Checks the suites that the arguments point to before workers start, so that a mistake is a usage error."""
    for folder in config.stash[STATE].argument_suites():
        checked_suites(config, [str(folder / SUITE_FILE)])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Gives a worker the run's folder, its identity, and the memory that it may plan with."""
    state = node.config.stash[STATE]
    state.workers[node.gateway.id] = False
    node.workerinput["rn_run_folder"] = str(state.run_folder)
    node.workerinput["rn_run_identity"] = tuple(state.run_identity)
    if state.has_session:
        node.workerinput["rn_free"] = state.run_session.limits.available


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Begins the run with the selection of the first worker that has collected."""
    config = node.config
    if not config.option.collectonly:
        begin_run(config, list(ids))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Ends the session with a worker's usage error; records the tests that it left out and the code of others that it loaded."""
    config, output = node.config, getattr(node, "workeroutput", {})
    if USAGE_ERROR in output:
        raise pytest.UsageError(output[USAGE_ERROR])
    if SINK in config.stash and {"rn_left_out", "rn_loaded"} <= output.keys():
        from rn_harness.spec.base import LoadedCode

        config.stash[STATE].workers[node.gateway.id] = True
        plugins = [LoadedCode.model_validate(code) for code in output["rn_loaded"]]
        config.stash[SINK].controller.hear(output["rn_left_out"], plugins)


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


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Refuses, under the gate, a session that ran no suite: a wrong path, or one that only lists tests.

    The exit code of a run of several processes is that of the leading one: a launcher kills it when another process's code is
    not 0.
    """
    config, state = session.config, session.config.stash[STATE]
    if state.scratch:
        if session.exitstatus in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.USAGE_ERROR):
            session.exitstatus = pytest.ExitCode.OK
        return
    if SINK in config.stash:
        if not config.pluginmanager.is_registered(config.stash[SINK]):  # another plugin removed it
            code = config.stash[SINK].conclude(session)
            session.exitstatus = code or session.exitstatus
        return
    if state.is_worker:
        return
    interrupted = session.exitstatus == pytest.ExitCode.INTERRUPTED and state.argument_suites()
    if interrupted and (xml := junit_writer(config)) is not None:  # pytest would write it without a test case
        add_red_test(xml, "rn-harness::interrupted", "no verdict: interrupted before the first test")
    if not config.getoption("rn_gate") or session.exitstatus != 0:
        return
    session.exitstatus = NOT_RELEASABLE
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.write_line("--rn-gate: no suite was run, so that nothing can be released; name one, e.g. pytest suites/biochem")
