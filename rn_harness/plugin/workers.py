"""Hooks of pytest-xdist: the controlling process gives each worker the run's folder and id, and records its collection."""

from __future__ import annotations

from typing import Any

import pytest

from rn_harness.plugin.collection import SUITE_FILE
from rn_harness.plugin.reporting import SINK
from rn_harness.plugin.selection import checked_suites
from rn_harness.plugin.start import begin_run
from rn_harness.plugin.stash import SESSION, WORKERS, argument_suites, run_folder, run_identity, run_session


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Checks the suites that the arguments point to before workers start, so that a mistake is a usage error."""
    for folder in argument_suites(config):
        checked_suites(config, [str(folder / SUITE_FILE)])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Gives a worker the run's folder, its identity, and the memory that it may plan with."""
    node.config.stash[WORKERS][node.gateway.id] = False
    node.workerinput["rn_run_folder"] = str(run_folder(node.config))
    node.workerinput["rn_run_identity"] = tuple(run_identity(node.config))
    if SESSION in node.config.stash:
        node.workerinput["rn_free"] = run_session(node.config).limits.available


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Begins the run with the selection of the first worker that has collected."""
    if not node.config.option.collectonly:
        begin_run(node.config, list(ids))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Records the tests that a worker left out and the code of others that it loaded."""
    config, output = node.config, getattr(node, "workeroutput", {})
    if SINK in config.stash and {"rn_left_out", "rn_loaded"} <= output.keys():
        from rn_harness.spec.loaded_code import LoadedCode

        config.stash[WORKERS][node.gateway.id] = True
        plugins = [LoadedCode.model_validate(code) for code in output["rn_loaded"]]
        config.stash[SINK].controller.hear(output["rn_left_out"], plugins)
