"""Finds tests of suites that were left out, and fixtures that replace ours.

Hooks of a conftest or a plugin may drop a test, hide it, or replace a fixture. This module finds the visible traces of that.
"""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rn_harness.plugin.pytest_compat import fixture_definitions, fixture_function, is_test_class, is_test_function, is_test_method

SUITE_FILE = "suite.yaml"
COLLECTED_NAME = "rn-harness-collected"
FILES, CLASSES, FUNCTIONS = ("test_*.py", "*_test.py"), "Test", "test"
"""Names of tests by pytest's defaults. They count next to the names in an ini file, which could hide a test."""


class Collected:
    """The collected tests of suites, recorded before any other hook can drop one; with xdist, in each worker."""

    def __init__(self) -> None:
        self.items: dict[str, pytest.Function] = {}
        self.failed: list[str] = []
        self.files: set[str] = set()
        self.modules: dict[Path, pytest.Module] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Records a test of a suite."""
        if isinstance(item, pytest.Function) and (item.path.parent / SUITE_FILE).is_file():
            self.items[item.nodeid] = item

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Records a file, and a failure to collect it."""
        self.files.add(report.nodeid.partition("::")[0])
        for node in report.result or ():
            if isinstance(node, pytest.Module) and (node.path.parent / SUITE_FILE).is_file():
                self.modules[node.path] = node
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    def left_out(self, config: pytest.Config, kept: Sequence[pytest.Item]) -> list[str]:
        """The tests and files of suites that are not in ``kept``, however they were left out, sorted."""
        dropped = self.items.keys() - {item.nodeid for item in kept}
        return sorted({*dropped, *self._hidden_tests(), *self._hidden_files(config)})

    def _hidden_tests(self) -> Iterator[str]:
        """Tests in collected files that pytest would collect without other plugins' hooks."""
        known = {(item.path, item.cls, item.originalname) for item in self.items.values()}
        for file, module in self.modules.items():
            for name, value in list(vars(module.obj).items()):
                if inspect.isclass(value) and value.__module__ == module.obj.__name__:
                    if not (is_test_class(module, name) or name.startswith(CLASSES)):
                        continue
                    for method in dir(value):
                        named = is_test_method(module, method) or method.startswith(FUNCTIONS)
                        if named and callable(getattr(value, method)) and (file, value, method) not in known:
                            yield f"{module.nodeid}::{name}::{method}"
                    continue
                named = inspect.isfunction(value) and (is_test_function(module, value, name) or name.startswith(FUNCTIONS))
                if named and (file, None, name) not in known:
                    yield f"{module.nodeid}::{name}"

    def _hidden_files(self, config: pytest.Config) -> Iterator[str]:
        """Test files of these suites that pytest did not collect from."""
        patterns = {*config.getini("python_files"), *FILES}
        for folder in {file.parent for file in self.modules}:
            for path in folder.glob("*.py"):
                if not path.is_relative_to(config.rootpath) or not any(fnmatch.fnmatch(path.name, p) for p in patterns):
                    continue
                nodeid = path.relative_to(config.rootpath).as_posix()
                if nodeid not in self.files:
                    yield nodeid


def overridden(items: Iterable[pytest.Item], ours: Mapping[str, Any]) -> list[str]:
    """A sentence for each fixture of ours that a suite's test gets from another file."""
    found = {}
    for item in items:
        for name, file in _replacements(item, ours):
            found[name, file] = (
                f"the fixtures of rn-harness must be its own, so that a run proves something, got another {name} from {file} for "
                f"{item.nodeid}; give yours another name"
            )
    return list(found.values())


def _replacements(item: pytest.Item, ours: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fixtures that replace ours in a test: name and file."""
    definitions = fixture_definitions(item)
    for name in ours.keys() & definitions.keys():
        own = fixture_function(ours[name])
        for definition in definitions[name]:
            if definition.func is not own:
                module = sys.modules.get(getattr(definition.func, "__module__", ""))
                yield name, getattr(module, "__file__", None) or definition.baseid or "a mark"
