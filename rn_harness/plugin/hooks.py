"""The pytest plugin's entry point: all hooks and fixtures in one namespace, so that no part of it can be blocked.

pytest loads it in every session of the environment. It imports only the standard library and pytest, and does nothing until a
suite's test is selected.
"""

# ruff: noqa: F401  (pytest reads the names)

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import suppress

import pytest

from rn_harness.plugin.arguments import declare, find_shipped, hint_at_options, own_spellings
from rn_harness.plugin.collection import (
    COLLECTED,
    COLLECTED_NAME,
    Collected,
    check_paths,
    pytest_collection,
    pytest_collection_modifyitems,
    pytest_generate_tests,
)
from rn_harness.plugin.fixtures import FIXTURES, pytest_runtest_setup
from rn_harness.plugin.lifecycle import (
    pytest_collection_finish,
    pytest_configure_node,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    pytest_testnodedown,
    pytest_xdist_node_collection_finished,
    pytest_xdist_setupnodes,
)
from rn_harness.plugin.pytest_compat import drop_junit_writer
from rn_harness.plugin.state import STATE, PluginState
from rn_harness.spec.options import NOT_RELEASABLE

globals().update(FIXTURES)  # pytest finds them as this module's


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declares the options."""
    declare(parser)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> Generator[None]:
    """Reads ``--model`` as ``--rn-model``, unless a plugin or a conftest declares it."""
    with suppress(pytest.UsageError):  # their --model may be a switch
        known = parser.parse_known_args(own_spellings(early_config, args))
        # Otherwise pytest would take the model's folder for a folder of tests, and run a conftest in it.
        early_config.known_args_namespace.file_or_dir = known.file_or_dir
    try:
        return (yield)
    finally:
        args[:] = own_spellings(early_config, args)
        with suppress(pytest.UsageError):  # a wrong value of an option that is known
            hint_at_options(parser, parser.parse_known_and_unknown_args(args)[1])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, int | pytest.ExitCode | None, int | pytest.ExitCode | None]:
    """Under the gate, a session that only lists fixtures or markers is not green; pytest drops its session's exit code."""
    code = yield
    lists = any(config.getoption(name, None) for name in ("showfixtures", "show_fixtures_per_test", "markers"))
    return NOT_RELEASABLE if lists and not code and config.getoption("rn_gate") else code


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Prepares the stash. In a run of several processes, all but the leading one stop writing to terminal and JUnit."""
    find_shipped(config)
    check_paths(config)
    config.stash[STATE] = state = PluginState(config)
    config.stash[COLLECTED] = Collected()
    config.pluginmanager.register(config.stash[COLLECTED], COLLECTED_NAME)
    if "LOCAL_RANK" not in os.environ or state.is_worker or not state.argument_suites():
        return
    from rn_harness.store.ranks import ranks

    if not ranks().leads:
        state.scratch = tempfile.TemporaryDirectory(prefix="rn-harness-")
        config.pluginmanager.unregister(name="terminalreporter")
        drop_junit_writer(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the temporary folder, closes the executor, and leaves the group of processes."""
    state = config.stash.get(STATE, None)  # another plugin's configuration may have failed before
    if state and state.scratch:
        state.scratch.cleanup()
    if state and state.has_session:
        from rn_harness.store.ranks import ranks

        state.run_session.executor.close()
        ranks().part()
