"""What the repository's own tests need: pytester, which runs real pytest sessions, and a way to rewrite references."""

import pytest

pytest_plugins = ["pytester"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option that rewrites stored trajectories."""
    parser.addoption("--rewrite-reference", action="store_true", help="store the trajectories of tests/invariant anew")
