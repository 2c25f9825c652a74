"""Shared setup of this repository's tests: pytester for real sessions, and options that rewrite references and run long tests."""

import gc
import importlib.util
from typing import Any

import pytest

pytest_plugins = ["pytester"]
NEEDED = ("torch", "hypothesis", "jsonschema", "xmlschema")
"""Modules of the extra dev that tests import first."""

WITH_TORCH = frozenset({
    "candidate", "cli_runs", "compat", "depth", "distill", "explorers", "helpfulness", "judge_classifier", "judge_hf", "memory",
    "mistakes", "model", "movement", "preference", "ranks", "sampler",
})  # fmt: skip
"""Files of tests/unit that load torch; a file that is missing here costs its worker the time of the import."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that rewrite stored trajectories and run the long tests."""
    parser.addoption("--rewrite-reference", action="store_true", help="store the trajectories of tests/invariant anew")
    parser.addoption("--soak", action="store_true", help="run the tests that take minutes too")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses to run without the extra dev, and lets pytest-xdist take files in their order: those that take minutes come first.

    By default it takes the files with the fewest tests last, and a long one at the end leaves a core idle. The garbage collector
    becomes rare first, since imports make half a million objects, and each full collection would visit them.
    """
    gc.set_threshold(100_000, 20, 20)
    config.option.loadscopereorder = False
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise pytest.UsageError(
            f"the harness's own tests need the extra dev, got no module {lacking[0]}; pip install -c constraints.txt -e "
            "'.[dev]', or name a suite to run: pytest suites/biochem"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a file to one worker, so that its fixtures are made once, and all unit tests with torch to the same worker.

    If ``--dist`` names another way, pytest-xdist takes that one; ``-n`` and ``-d`` give ``load``.
    """
    typed = [word for word in config.invocation_params.args if str(word).partition("=")[0] == "--dist"]
    if typed and config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByImports(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "torch" if file.removeprefix("tests/unit/test_").removesuffix(".py") in WITH_TORCH else file

    return ByImports(config, log)


def pytest_collection_finish() -> None:
    """Exempts the objects of imported libraries from garbage collection, which took a third of the unit tests' time.

    A full collection visits half a million of them, and the records that tests make cause one every second.
    """
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the long tests unless ``--soak`` is given. A default ``-m`` would narrow every suite's run in this checkout."""
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with --soak"))
