"""Finds which tests of suites were collected or left out, and whose fixtures they use.

Hooks of a conftest or a plugin may drop a test, hide it, or put another fixture in the place of ours. What can be seen of that is
found here. It imports the standard library and pytest only, since it is loaded in every pytest session of the environment.
"""

from __future__ import annotations

import fnmatch
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

SUITE_FILE = "suite.yaml"
FILES, CLASSES, FUNCTIONS = ("test_*.py", "*_test.py"), "Test", "test"
"""Names of tests by pytest's defaults. They count next to those of an ini file, which could hide a test."""


class Collected:
    """Everything that was collected of suites, noted before any other hook can drop it; with xdist, in any worker."""

    def __init__(self) -> None:
        self.items: dict[str, pytest.Function] = {}
        self.failed: list[str] = []
        self.files: set[str] = set()
        self.modules: dict[Path, pytest.Module] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Notes a test of a suite."""
        if isinstance(item, pytest.Function) and (item.path.parent / SUITE_FILE).is_file():
            self.items[item.nodeid] = item

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Notes a file, and whether it failed."""
        self.files.add(report.nodeid.partition("::")[0])
        for node in report.result or ():
            if isinstance(node, pytest.Module) and (node.path.parent / SUITE_FILE).is_file():
                self.modules[node.path] = node
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    def left_out(self, config: pytest.Config, kept: Sequence[pytest.Item]) -> list[str]:
        """The tests and files of suites that will not be run, in whatever way they were left out, sorted.

        Args:
            config: of the session.
            kept: the tests that will be run.
        """
        dropped = self.items.keys() - {item.nodeid for item in kept}
        return sorted({*dropped, *self._hidden_tests(), *self._hidden_files(config)})

    def _hidden_tests(self) -> Iterator[str]:
        """Tests in collected files that pytest would collect if no hook kept it from that."""
        known = {(item.path, item.cls, item.originalname) for item in self.items.values()}
        for file, module in self.modules.items():
            for name, value in list(vars(module.obj).items()):
                if inspect.isclass(value) and value.__module__ == module.obj.__name__:
                    if not (module.classnamefilter(name) or name.startswith(CLASSES)):
                        continue
                    for method in dir(value):
                        named = module.funcnamefilter(method) or method.startswith(FUNCTIONS)
                        if named and callable(getattr(value, method)) and (file, value, method) not in known:
                            yield f"{module.nodeid}::{name}::{method}"
                    continue
                named = inspect.isfunction(value) and (module.istestfunction(value, name) or name.startswith(FUNCTIONS))
                if named and (file, None, name) not in known:
                    yield f"{module.nodeid}::{name}"

    def _hidden_files(self, config: pytest.Config) -> Iterator[str]:
        """Test files of these suites that were not looked at."""
        patterns = {*config.getini("python_files"), *FILES}
        for folder in {file.parent for file in self.modules}:
            for path in folder.glob("*.py"):
                if not path.is_relative_to(config.rootpath) or not any(fnmatch.fnmatch(path.name, p) for p in patterns):
                    continue
                nodeid = path.relative_to(config.rootpath).as_posix()
                if nodeid not in self.files:
                    yield nodeid


def overridden(items: Iterable[pytest.Item], ours: Mapping[str, Any]) -> list[str]:
    """For each fixture of ours that a test gets from elsewhere: a sentence that names both.

    Args:
        items: tests of suites.
        ours: the fixtures that are not to be overridden, by name.
    """
    found = {}
    for item in items:
        for name, file in _strange(item, ours):
            found[name, file] = (
                f"the fixtures of rn-harness must be its own, so that a run proves something, got another {name} from {file} for "
                f"{item.nodeid}; give yours another name"
            )
    return list(found.values())


def _strange(item: pytest.Item, ours: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fixtures of our names that a test gets from elsewhere, with the file. pytest has no public way to ask."""
    definitions: Mapping[str, Sequence[Any]] = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    for name in ours.keys() & definitions.keys():
        own = inspect.unwrap(ours[name]._get_wrapped_function())  # noqa: SLF001
        for definition in definitions[name]:
            if definition.func is not own:
                module = sys.modules.get(getattr(definition.func, "__module__", ""))
                yield name, getattr(module, "__file__", None) or definition.baseid or "a mark"
