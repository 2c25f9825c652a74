"""Collection of suites' tests: their parameters, their order, and the refusal of a run that could not be valid."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sys
import threading
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from rn_harness.plugin.collection import COLLECTED_NAME, SUITE_FILE
from rn_harness.plugin.fixtures import replaced_fixtures
from rn_harness.plugin.pytest_compat import parameters
from rn_harness.plugin.reporting import SINK, SINK_NAME
from rn_harness.plugin.stash import (
    PARENT,
    SCRATCH,
    TERMINATED,
    Terminated,
    is_worker,
    run_folder,
    run_session,
    suite_folder,
    suite_in,
    unwritable,
)

if TYPE_CHECKING:
    from rn_harness.run.case import CaseTask
    from rn_harness.spec.attack_recipe import AttackRecipe
    from rn_harness.spec.suite import Suite


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes each test of a suite that asks for ``attack`` with the recipes of the tier."""
    if "attack" not in metafunc.fixturenames or metafunc.cls is None or "rn_harness.plugin.checks" not in sys.modules:
        return
    from rn_harness.plugin.checks import RobustnessChecks
    from rn_harness.spec.errors import RnHarnessError

    if not issubclass(metafunc.cls, RobustnessChecks):
        return
    try:
        suite = suite_in(metafunc.config, metafunc.definition.path.parent)
    except RnHarnessError:  # reported once, as a usage error, when collection ends
        recipes: tuple[AttackRecipe, ...] = ()
    else:
        recipes = suite.tier_attacks(metafunc.config.getoption("rn_tier"))
    ids = [recipe.id if recipe.claim else f"{recipe.id}-{recipe.standing}" for recipe in recipes]
    metafunc.parametrize("attack", recipes, ids=ids, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Removes an earlier run's outcome from the given folder first, since any later step may end this session."""
    config = session.config
    if config.getoption("rn_run") and not is_worker(config) and not config.option.collectonly:
        folder = run_folder(config)
        try:
            for name in ("run.json", "statement.json", "junit.xml"):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ends the session before any work if a suite, an option or another plugin makes a valid run impossible."""
    of_suites = [item for item in items if (item.path.parent / SUITE_FILE).is_file()]
    for item in of_suites:
        if item.get_closest_marker("flaky"):
            raise pytest.UsageError(f"a verdict is never re-rolled, got a flaky mark on {item.nodeid}; remove it")
        if suite_folder(config, item.nodeid) != item.path.parent:
            raise pytest.UsageError(
                f"node ids must lead to the suite, got {item.nodeid!r} under rootdir {config.rootpath}; "
                "pass --rootdir with a folder above the suite"
            )
    if not is_worker(config) and (sentences := replaced_fixtures(of_suites)):  # in a worker each such test is an error
        raise pytest.UsageError("\n".join(sentences))
    checked_suites(config, [item.nodeid for item in items])
    if is_worker(config) and not config.option.collectonly:
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
    priorities = CasePlan.of(itertools.chain.from_iterable(tasks.values()), run_session(config).defense_recipe).priorities
    ordered = sorted((items[i] for i in places), key=lambda item: -max(priorities[task.name] for task in tasks[item]))
    for i, item in zip(places, ordered, strict=True):
        items[i] = item


def case_tasks(config: pytest.Config, items: Iterable[pytest.Item]) -> Generator[CaseTask]:
    """The cases that suites' tests ask for; a control or an attack has its recipe."""
    from rn_harness.records.base import CASE_KINDS
    from rn_harness.run.case import CaseTask

    for item in items:
        if suite_folder(config, item.nodeid) is None:
            continue
        suite = suite_in(config, item.path.parent)
        for kind in CASE_KINDS:
            if f"{kind}_case" in getattr(item, "fixturenames", ()):
                yield CaseTask(kind, suite, parameters(item).get("attack") if kind in ("control", "attack") else None)


def checked_suites(config: pytest.Config, nodeids: Iterable[str]) -> list[Suite]:
    """The suites of these tests, if they can be run.

    Raises:
        pytest.UsageError: a suite is malformed, an option names something that does not exist, or reruns are on.
    """
    folders = sorted({folder for nodeid in nodeids if (folder := suite_folder(config, nodeid))})
    if not folders:
        return []
    from rn_harness.plugin.arguments import clashes
    from rn_harness.run.preflight import check_run
    from rn_harness.spec.errors import RnHarnessError

    errors: list[str] = []
    suites: list[Suite] = []
    for folder in folders:
        try:
            suites.append(suite_in(config, folder))
        except RnHarnessError as error:
            errors.append(str(error))
    errors += [
        f"all parts of rn-harness are required, got -p no:{name}; leave it out"
        for name in (SINK_NAME, COLLECTED_NAME)
        if config.pluginmanager.is_blocked(name)
    ]
    errors += clashes(config, shared=is_worker(config) or config.getoption("dist", "no") != "no")
    domains = [suite.domain for suite in suites]
    if len(set(domains)) != len(domains):
        errors.append(f"each suite of a session needs a domain of its own, got domains={domains}; rename one in its suite.yaml")
    if not errors and not config.option.collectonly:
        _guard_process(config)
        try:
            check_run(run_session(config), suites)
        except RnHarnessError as error:
            errors.append(str(error))
    if errors:
        if SCRATCH in config.stash:
            pytest.exit("a usage error, which the first process tells", returncode=pytest.ExitCode.OK)
        raise pytest.UsageError("\n".join(errors))
    return suites


def _guard_process(config: pytest.Config) -> None:
    """Forbids core dumps, which would hold attacked weights, and lets SIGTERM end the session as an interruption does."""
    if TERMINATED in config.stash or threading.current_thread() is not threading.main_thread():
        return
    config.stash[TERMINATED] = False
    config.stash[PARENT] = os.getppid()
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))

    def stop(*_: Any) -> None:
        again = config.stash[TERMINATED] and SINK in config.stash and config.stash[SINK].finishing
        config.stash[TERMINATED] = True
        if not again:
            raise Terminated

    before = signal.signal(signal.SIGTERM, stop)

    def restore() -> None:
        signal.signal(signal.SIGTERM, before)

    config.add_cleanup(restore)
