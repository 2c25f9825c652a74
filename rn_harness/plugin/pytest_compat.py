"""Every private name of pytest that the harness uses; no other module uses one.

``tests/unit/test_compat_pytest.py`` tries each name and fails with a sentence when an upgrade of pytest moves it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy
import pytest

if TYPE_CHECKING:
    from _pytest.junitxml import LogXML

WRITER_NAMES = ("logfile", "add_global_property", "node_reporter", "node_reporters", "node_reporters_ordered", "stats")
"""Names of the writer of a JUnit file."""
PRIVATE_NAMES = {
    "CaptureManager.global_and_fixture_disabled": "write progress past pytest's capture",
    "Function._fixtureinfo.name2fixturedefs": "find fixtures that replace ours",
    "Function.callspec.params": "read the attack that a test is run with",
    "FixtureFunctionDefinition._get_wrapped_function": "find fixtures that replace ours",
    "Module.classnamefilter": "find tests that a hook hid",
    "Module.funcnamefilter": "find tests that a hook hid",
    "Module.istestfunction": "find tests that a hook hid",
    **{f"LogXML.{name}": "write into the JUnit file that the user asked for" for name in WRITER_NAMES},
    "LogXML, which counts and writes cases and outputs": "write into that file",
    "_pytest.junitxml.xml_key": "find the JUnit file that the user asked for",
    "_pytest.__file__": "tell pytest's own code from the code of others",
}
"""Each private name, with its purpose."""


def uncaptured(config: pytest.Config) -> AbstractContextManager[None]:
    """Lets the body of a ``with`` write past pytest's capture."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture else nullcontext()


def fixture_definitions(item: pytest.Item) -> Mapping[str, Sequence[Any]]:
    """The definitions of each fixture that a test uses, by name."""
    return getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})


def fixture_function(fixture: Any) -> Callable[..., Any]:
    """The function that was decorated as a fixture."""
    function: Callable[..., Any] = fixture._get_wrapped_function()  # noqa: SLF001
    unwrapped: Callable[..., Any] = inspect.unwrap(function)
    return unwrapped


def parameters(item: pytest.Item) -> Mapping[str, Any]:
    """The parameters that a test is run with, by name."""
    return getattr(getattr(item, "callspec", None), "params", {})


def is_test_class(module: pytest.Module, name: str) -> bool:
    """True if the session's settings collect a class of this name."""
    return bool(module.classnamefilter(name))


def is_test_method(module: pytest.Module, name: str) -> bool:
    """True if the session's settings collect a method of this name."""
    return bool(module.funcnamefilter(name))


def is_test_function(module: pytest.Module, value: object, name: str) -> bool:
    """True if the session's settings collect this function."""
    return bool(module.istestfunction(value, name))


def junit_writer(config: pytest.Config) -> LogXML | None:
    """The writer of the JUnit file that the user asked for by ``--junitxml``."""
    from _pytest.junitxml import xml_key

    return config.stash.get(xml_key, None)


def drop_junit_writer(config: pytest.Config) -> None:
    """Ends the writing of the user's JUnit file in this process."""
    from _pytest.junitxml import xml_key

    if xml_key in config.stash:
        config.pluginmanager.unregister(config.stash[xml_key])
        del config.stash[xml_key]


def add_red_test(xml: LogXML, nodeid: str, text: str, phase: Literal["call", "setup"] = "setup") -> None:
    """Adds a test case to the user's JUnit file: an error for the phase ``setup``, a failure for ``call``."""
    path, _, name = nodeid.partition("::")
    report = pytest.TestReport(nodeid, (path, None, name), {}, "failed", text, phase, start=0.0, stop=0.0)
    xml.pytest_runtest_logreport(report)


def add_output(xml: LogXML, report: pytest.TestReport, text: str) -> None:
    """Adds a ``system-out`` to a test case of the user's JUnit file."""
    import xml.etree.ElementTree as ET  # nosec B405 # written, never read

    output = ET.Element("system-out")
    output.text = text
    xml.node_reporter(report).append(output)


def remove_nameless_cases(xml: LogXML) -> None:
    """Removes test cases that were cut off before pytest named them, so that each can be added again."""
    for key, reporter in list(xml.node_reporters.items()):
        if "name" not in reporter.attrs:
            xml.node_reporters_ordered.remove(reporter)
            del xml.node_reporters[key]


def finish_report(xml: LogXML, report: pytest.TestReport) -> None:
    """Writes a report that a signal may have kept from the user's JUnit file, unless it is in there."""
    name: Any = getattr(report, "id", report.nodeid)  # pytest 9.0 has no id
    case = xml.node_reporters.get((name, getattr(report, "node", None)))  # gone after its teardown
    if report.when == "teardown":
        is_written = case is None
    elif case is None or "name" not in case.attrs:
        is_written = False
    else:
        due = {"skipped"} if report.skipped else {"failure", "error"}
        is_written = report.passed or any(node.tag in due for node in case.nodes)
    if not is_written:
        xml.pytest_runtest_logreport(report)


@cache
def pytest_folders() -> tuple[Path, ...]:
    """The folders of pytest's own code."""
    import _pytest

    return tuple(Path(module.__file__ or "").resolve().parent for module in (_pytest, pytest, pluggy))
