"""The pytest plugin's entry point: all hooks and fixtures in one namespace, so that no part of it can be blocked.

pytest loads it in every session of the environment. It imports only the standard library and pytest, and does nothing until a
suite's test is selected.
"""

# ruff: noqa: F401  (pytest reads the names)

from __future__ import annotations

import os
import tempfile

import pytest

from rn_harness.plugin.collection import COLLECTED_NAME, Collected
from rn_harness.plugin.fixtures import (
    attack,
    attack_case,
    candidate,
    candidate_case,
    control_case,
    defended,
    defense_case,
    helpfulness_case,
    judge,
    pytest_runtest_setup,
    rn_suite,
    trajectory,
)
from rn_harness.plugin.pytest_compat import drop_junit_writer
from rn_harness.plugin.reporting import pytest_runtest_makereport, pytest_sessionfinish
from rn_harness.plugin.selection import pytest_collection, pytest_collection_modifyitems, pytest_generate_tests
from rn_harness.plugin.start import pytest_collection_finish
from rn_harness.plugin.stash import COLLECTED, SCRATCH, SESSION, SUITES, WORKERS, argument_suites, is_worker, run_session
from rn_harness.plugin.workers import (
    pytest_configure_node,
    pytest_testnodedown,
    pytest_xdist_node_collection_finished,
    pytest_xdist_setupnodes,
)


@pytest.hookimpl(trylast=True)
def pytest_addoption(parser: pytest.Parser) -> None:
    """Declares the options; last of all plugins, so that a clash over ``--model`` is ours to handle."""
    from rn_harness.plugin.arguments import declare

    declare(parser)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Prepares the stash. In a run of several processes, all but the leading one stop writing to terminal and JUnit."""
    config.stash[SUITES] = {}
    config.stash[WORKERS] = {}
    config.stash[COLLECTED] = Collected()
    config.pluginmanager.register(config.stash[COLLECTED], COLLECTED_NAME)
    if "LOCAL_RANK" not in os.environ or is_worker(config) or not argument_suites(config):
        return
    from rn_harness.store.ranks import ranks

    if not ranks().leads:
        config.stash[SCRATCH] = tempfile.TemporaryDirectory(prefix="rn-harness-")
        config.pluginmanager.unregister(name="terminalreporter")
        drop_junit_writer(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the temporary folder, closes the executor, and leaves the group of processes."""
    if SCRATCH in config.stash:
        config.stash[SCRATCH].cleanup()
    if SESSION in config.stash:
        from rn_harness.store.ranks import ranks

        run_session(config).executor.close()
        ranks().part()
