"""Shared setup of this repository's tests: pytester for real sessions, and options that rewrite references and run long tests."""

import gc

import pytest

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that rewrite stored trajectories and run the long tests."""
    parser.addoption("--rewrite-reference", action="store_true", help="store the trajectories of tests/invariant anew")
    parser.addoption("--soak", action="store_true", help="run the tests that take minutes too")


def pytest_configure(config: pytest.Config) -> None:
    """Lets pytest-xdist take files in their order: those of ``invariant`` and ``plugin``, which take minutes, come first.

    By default it takes the files with the fewest tests last, and a long one at the end leaves a core idle.
    """
    config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    """Exempts the objects of imported libraries from garbage collection, which took a third of the unit tests' time.

    A full collection visits half a million of them, and the records that tests make cause one every second.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the long tests unless ``--soak`` is given. A default ``-m`` would narrow every suite's run in this checkout."""
    if not config.getoption("--soak"):
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with --soak"))
