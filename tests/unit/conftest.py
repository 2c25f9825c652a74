"""Shared by all unit tests: hypothesis's settings and a small valid suite on disk."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# The controlling process of pytest-xdist imports this file too, so that it imports no more than it needs.
# The same examples on every machine and in every run: a red test points at the code, never at the random draw.
hypothesis.settings.register_profile("unit", derandomize=True, deadline=None, max_examples=60, database=None)
hypothesis.settings.load_profile("unit")


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """Leaves the disk's cache alone: each of two thousand files would wait for it, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def built_once() -> Iterator[None]:
    """Keeps the command that typer builds from the functions of the command line; building it takes longer than most commands."""
    import typer.testing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.testing._get_command))
        yield


@pytest.fixture(autouse=True, scope="session")
def parsed_once() -> Iterator[None]:
    """Keeps the contents of each YAML text: hundreds of tests read the same suites and anchors."""
    from rn_harness.spec import yaml_files

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_files, "parse_yaml", functools.cache(yaml_files.parse_yaml))
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves figures out of reports, for tests of their text: drawing one takes a fifth of a second."""
    monkeypatch.setattr("rn_harness.report.pages.stored_svg", lambda *_: "<svg></svg>")


@pytest.fixture
def suite_folder(tmp_path: Path) -> Path:
    """A valid suite of a few prompts: six attack recipes, two defenses, and three held-out prompts, two of them core."""
    from .builders import write_suite

    return write_suite(tmp_path / "demo")
