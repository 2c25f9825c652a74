"""Collection of suites' tests: their parameters, order and traces of hidden ones, and the refusal of a run that cannot be valid.

Hooks of a conftest or a plugin may drop or hide a test. ``Collected`` finds the visible traces of that.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import inspect
import itertools
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rn_harness.plugin.arguments import clashes, junit_in_run
from rn_harness.plugin.fixtures import replaced_fixtures
from rn_harness.plugin.pytest_compat import drop_junit_writer, is_test_class, is_test_function, is_test_method, parameters
from rn_harness.plugin.state import SINK_NAME, STATE, SUITE_FILE, Terminated, holds_suite, unwritable
from rn_harness.spec.errors import RnHarnessError
from rn_harness.spec.fixtures import SUITES, suites_folder

if TYPE_CHECKING:
    from rn_harness.run.case import CaseTask
    from rn_harness.spec.attack_recipe import AttackRecipe
    from rn_harness.spec.suite import Suite

COLLECTED_NAME = "rn-harness-collected"
USAGE_ERROR = "rn_usage_error"
"""Key of a worker's usage error in what it sends to the controlling process."""
FILES, CLASSES, FUNCTIONS = ("test_*.py", "*_test.py"), "Test", "test"
"""Names of tests by pytest's defaults. They count next to the names in an ini file, which could hide a test."""


class Collected:
    """The collected tests of suites, recorded before any other hook can drop one; with xdist, in each worker."""

    def __init__(self) -> None:
        self.items: dict[str, pytest.Function] = {}
        self.failed: list[str] = []
        self.files: set[str] = set()
        self.modules: dict[Path, pytest.Module] = {}
        self.folders: set[Path] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Records the folder of a suite."""
        if isinstance(collector, pytest.Directory) and holds_suite(collector.path):
            self.folders.add(collector.path)

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Records a test of a suite."""
        if isinstance(item, pytest.Function) and holds_suite(item.path.parent):
            self.items[item.nodeid] = item

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Records a file, and a failure to collect it."""
        self.files.add(report.nodeid.partition("::")[0])
        for node in report.result or ():
            if isinstance(node, pytest.Module) and holds_suite(node.path.parent):
                self.modules[node.path] = node
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Ends a worker's collection again after a usage error, before pytest-xdist reports its tests as selected.

        pytest calls this hook after each collection. The controlling process would begin a run of these tests.
        """
        output: dict[str, Any] = getattr(session.config, "workeroutput", {})
        if USAGE_ERROR in output:
            raise pytest.UsageError(output[USAGE_ERROR])

    def left_out(self, config: pytest.Config, kept: Sequence[pytest.Item]) -> list[str]:
        """The tests and files of suites that are not in ``kept``, however they were left out, sorted."""
        dropped = self.items.keys() - {item.nodeid for item in kept}
        return sorted({*dropped, *self._hidden_tests(), *self._hidden_files(config), *map(str, self.untested)})

    @property
    def untested(self) -> list[Path]:
        """The suites' folders in which pytest found no test, unless it reports errors of its own."""
        return sorted(self.folders - {item.path.parent for item in self.items.values()}) if not self.failed else []

    def _hidden_tests(self) -> Iterator[str]:
        """Tests in collected files that pytest would collect without other plugins' hooks."""
        known = {(item.path, item.cls, item.originalname) for item in self.items.values()}
        for file, module in self.modules.items():
            for name, value in list(vars(module.obj).items()):
                if inspect.isclass(value) and value.__module__ == module.obj.__name__:
                    named = is_test_class(module, name) or name.startswith(CLASSES)
                    for method in dir(value) if named else ():
                        named = is_test_method(module, method) or method.startswith(FUNCTIONS)
                        if named and callable(getattr(value, method)) and (file, value, method) not in known:
                            yield f"{module.nodeid}::{name}::{method}"
                elif inspect.isfunction(value):
                    named = is_test_function(module, value, name) or name.startswith(FUNCTIONS)
                    if named and (file, None, name) not in known:
                        yield f"{module.nodeid}::{name}"

    def _hidden_files(self, config: pytest.Config) -> Iterator[str]:
        """Test files of these suites that pytest did not collect from."""
        patterns = {*config.getini("python_files"), *FILES}
        folders = {file.parent: module.nodeid.removesuffix(file.name) for file, module in self.modules.items()}
        for path, nodeid in ((path, above + path.name) for folder, above in folders.items() for path in folder.glob("*.py")):
            if nodeid not in self.files and any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns):
                yield nodeid


COLLECTED: pytest.StashKey[Collected] = pytest.StashKey()


def _refuse_untested(config: pytest.Config, folders: Iterable[Path]) -> None:
    """Ends a session in which these suites have no test, and shows one; ``--lf`` leaves out whole files."""
    sentences = []
    for folder in folders:
        files = ", ".join(path.name for path in sorted(folder.glob("*.py")))
        title = "".join(part.capitalize() for part in folder.name.split("_"))
        sentences.append(
            f"{folder}: a suite needs a class Test... in a file test_*.py, got {'none in ' if files else 'no such file'}{files}; "
            f"write it into test_{folder.name}.py, or copy a suite that has one: rn-harness init biochem --into DIR\n"
            f"    from rn_harness import RobustnessChecks\n\n    class Test{title}(RobustnessChecks): ..."
        )
    if sentences and not config.getoption("lf", default=False):
        raise pytest.UsageError("\n".join(sentences))


def check_paths(config: pytest.Config) -> None:
    """Refuses a suite's file, and a path that does not exist but is near a suite's, and names the right one."""
    for argument in config.args:
        path = Path(argument.partition("::")[0])
        place = config.invocation_params.dir / path
        if place.name == SUITE_FILE and holds_suite(place.parent):
            raise pytest.UsageError(f"pytest runs a suite by its folder, got {argument}; pytest {path.parent}")
        if place.exists():
            continue
        shipped = [suite.parent.name for suite in suites_folder().glob(f"*/{SUITE_FILE}") if path.name == str(path)]
        beside = [suite.parent.name for suite in place.parent.glob(f"*/{SUITE_FILE}")]
        known = {name: f"--pyargs {SUITES}.{name}" for name in shipped} | {name: str(path.with_name(name)) for name in beside}
        if near := difflib.get_close_matches(path.name.removeprefix(f"{SUITES}."), known, n=1, cutoff=0.8):
            raise pytest.UsageError(f"file or directory not found: {argument}; did you mean pytest {known[near[0]]}?")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes each test of a suite that asks for ``attack`` with the recipes of the tier."""
    if "attack" not in metafunc.fixturenames or metafunc.cls is None or "rn_harness.plugin.checks" not in sys.modules:
        return
    from rn_harness.plugin.checks import RobustnessChecks

    if not issubclass(metafunc.cls, RobustnessChecks):
        return
    try:
        suite = metafunc.config.stash[STATE].suite_in(metafunc.definition.path.parent)
    except RnHarnessError:  # reported once, as a usage error, when collection ends
        recipes: tuple[AttackRecipe, ...] = ()
    else:
        recipes = suite.tier_attacks(metafunc.config.getoption("rn_tier"))
    ids = [recipe.id if recipe.claim else f"{recipe.id}-{recipe.standing}" for recipe in recipes]
    metafunc.parametrize("attack", recipes, ids=ids, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Removes an earlier run's outcome from the given folder first, since any later step may end this session."""
    config, state = session.config, session.config.stash[STATE]
    if config.getoption("rn_run") and not state.is_worker and not config.option.collectonly:
        from rn_harness.store.provenance import clear_outcome

        folder = state.run_folder
        try:
            moved = clear_outcome(folder)
        except OSError as error:
            raise unwritable(folder, error) from None
        reporter: Any = config.pluginmanager.getplugin("terminalreporter")
        if moved and reporter:
            kept, outcome = moved
            reporter.write_line(f"rn-harness: {folder} held a run that was decided ({outcome}); it was moved to {kept}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ends the session before any work if a suite, an option or another plugin makes a valid run impossible.

    pytest-xdist does not show a worker's error, so that the controlling process is given its text.
    """
    try:
        _check_selection(config, items)
    except pytest.UsageError as error:
        if config.stash[STATE].is_worker:
            config.workeroutput[USAGE_ERROR] = str(error)  # type: ignore[attr-defined]
        raise


def _check_selection(config: pytest.Config, items: list[pytest.Item]) -> None:
    state = config.stash[STATE]
    of_suites = [item for item in items if holds_suite(item.path.parent)]
    for item in of_suites:
        if item.get_closest_marker("flaky"):
            raise pytest.UsageError(f"a verdict is never re-rolled, got a flaky mark on {item.nodeid}; remove it")
        if state.suite_folder(item.nodeid) != item.path.parent:
            raise pytest.UsageError(
                f"node ids must lead to the suite, got {item.nodeid!r} under rootdir {config.rootpath}; "
                "pass --rootdir with a folder above the suite"
            )
    if not state.is_worker and (sentences := replaced_fixtures(of_suites)):  # in a worker each such test is an error
        raise pytest.UsageError("\n".join(sentences))
    _refuse_untested(config, config.stash[COLLECTED].untested)
    checked_suites(config, [item.nodeid for item in items])
    state.checked = True
    if state.is_worker and not config.option.collectonly:
        _sort_longest_first(config, items)


def _sort_longest_first(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts suites' tests so that a case comes first which the most work waits for; other tests keep their places.

    Workers take tests in this order.
    """
    from rn_harness.run.case import CasePlan

    tasks = {item: list(case_tasks(config, [item])) for item in items}
    places = [i for i, item in enumerate(items) if tasks[item]]
    if not places:
        return
    priorities = CasePlan.of(
        itertools.chain.from_iterable(tasks.values()), config.stash[STATE].run_session.defense_recipe
    ).priorities
    ordered = sorted((items[i] for i in places), key=lambda item: -max(priorities[task.name] for task in tasks[item]))
    for i, item in zip(places, ordered, strict=True):
        items[i] = item


def case_tasks(config: pytest.Config, items: Iterable[pytest.Item]) -> Generator[CaseTask]:
    """The cases that suites' tests ask for; a control or an attack has its recipe."""
    from rn_harness.records.base import CASE_KINDS
    from rn_harness.run.case import CaseTask

    state = config.stash[STATE]
    for item in items:
        if state.suite_folder(item.nodeid) is None:
            continue
        suite = state.suite_in(item.path.parent)
        for kind in CASE_KINDS:
            if f"{kind}_case" in getattr(item, "fixturenames", ()):
                yield CaseTask(kind, suite, parameters(item).get("attack") if kind in ("control", "attack") else None)


def checked_suites(config: pytest.Config, nodeids: Iterable[str]) -> list[Suite]:
    """The suites of these tests; a usage error if one is malformed, or if an option or another plugin forbids the run."""
    state = config.stash[STATE]
    folders = sorted({folder for nodeid in nodeids if (folder := state.suite_folder(nodeid))})
    if not folders:
        return []
    from rn_harness.run.preflight import check_run

    errors: list[str] = []
    suites: list[Suite] = []
    for folder in folders:
        try:
            suites.append(state.suite_in(folder))
        except RnHarnessError as error:
            errors.append(str(error))
    errors += [
        f"all parts of rn-harness are required, got -p no:{name}; leave it out"
        for name in (SINK_NAME, COLLECTED_NAME)
        if config.pluginmanager.is_blocked(name)
    ]
    if misplaced := junit_in_run(config):
        drop_junit_writer(config)  # which would write after a usage error, too
        errors.append(misplaced)
    errors += clashes(config, shared=state.is_worker or config.getoption("dist", "no") != "no")
    domains = [suite.domain for suite in suites]
    if len(set(domains)) != len(domains):
        errors.append(f"each suite of a session needs a domain of its own, got domains={domains}; rename one in its suite.yaml")
    if not errors and not config.option.collectonly:
        _guard_process(config)
        try:
            check_run(state.run_session, suites)
            state.run_session.options = dataclasses.replace(state.run_session.options, plugins=state.loaded_plugins())
        except RnHarnessError as error:
            errors.append(str(error))
    if errors:
        if state.scratch:
            pytest.exit("a usage error, which the first process tells", returncode=pytest.ExitCode.OK)
        raise pytest.UsageError("\n".join(errors))
    return suites


def _guard_process(config: pytest.Config) -> None:
    """Lets SIGTERM end the session as an interruption does."""
    state = config.stash[STATE]
    if state.terminated is not None or threading.current_thread() is not threading.main_thread():
        return
    state.terminated = False

    def stop(*_: Any) -> None:
        again = state.terminated and state.finishing
        state.terminated = True
        if not again:
            raise Terminated

    before = signal.signal(signal.SIGTERM, stop)

    def restore() -> None:
        signal.signal(signal.SIGTERM, before)

    config.add_cleanup(restore)
