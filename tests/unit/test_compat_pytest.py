"""The canary for pytest: every private name that the harness uses is where ``plugin/pytest_compat.py`` expects it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from rn_harness.plugin import pytest_compat as compat

from .canary import moved

SOURCES = Path(compat.__file__).parents[1]
SUITE = """
import pytest

@pytest.fixture
def cake():
    return 1

class TestCake:
    @pytest.mark.parametrize("size", [2])
    def test_cake(self, cake, size):
        assert cake
"""


def _session(pytester: pytest.Pytester) -> tuple[pytest.Config, pytest.Function, pytest.Module]:
    """A session with a JUnit file, its only test and that test's module."""
    path = pytester.makepyfile(SUITE)
    config = pytester.parseconfigure("-p", "no:rn_harness", "--junitxml=asked.xml", str(path))
    session = pytest.Session.from_config(config)
    config.hook.pytest_sessionstart(session=session)
    session.perform_collect()
    (item,) = session.items
    module = item.getparent(pytest.Module)
    assert isinstance(item, pytest.Function)
    assert isinstance(module, pytest.Module)
    return config, item, module


def _writes_junit(config: pytest.Config) -> bool:
    xml = compat.junit_writer(config)
    assert xml is not None
    xml.add_global_property("name", "value")
    compat.add_red_test(xml, "test_cake.py::test_bread", "no verdict")
    report = pytest.TestReport("test_cake.py::test_roll", ("", None, ""), {}, "passed", None, "call")
    compat.add_output(xml, report, "checkpoints")  # a test case without a name, as of a test that was cut off
    named = len(xml.node_reporters_ordered)
    compat.remove_nameless_cases(xml)
    removed = named - len(xml.node_reporters_ordered)
    compat.finish_report(xml, report)
    compat.finish_report(xml, report)  # is in there now
    compat.add_red_test(xml, "test_cake.py::test_bun", "no verdict")
    cases = [case.to_xml() for case in xml.node_reporters_ordered]
    assert [(case.get("name"), len(case)) for case in cases] == [("test_bread", 1), ("test_roll", 0), ("test_bun", 1)]
    return (xml.stats, removed, Path(xml.logfile).name) == (
        {"error": 2, "passed": 1, "failure": 0, "skipped": 0}, 1, "asked.xml",
    )  # fmt: skip


def _writer_has(config: pytest.Config, name: str) -> bool:
    return hasattr(compat.junit_writer(config), name)


def _drops_junit(config: pytest.Config) -> bool:
    compat.drop_junit_writer(config)
    return compat.junit_writer(config) is None


def _probes(config: pytest.Config, item: pytest.Function, module: pytest.Module) -> dict[str, Callable[[], bool]]:
    """A check for each entry in the list of private names."""
    definitions = compat.fixture_definitions(item)
    return {
        "CaptureManager.global_and_fixture_disabled": lambda: not isinstance(compat.uncaptured(config), nullcontext),
        "Function._fixtureinfo.name2fixturedefs": lambda: [d.func.__name__ for d in definitions["cake"]] == ["cake"],
        "Function.callspec.params": lambda: compat.parameters(item) == {"size": 2},
        "FixtureFunctionDefinition._get_wrapped_function": lambda: (
            compat.fixture_function(module.obj.cake) is definitions["cake"][0].func
        ),
        "Module.classnamefilter": lambda: compat.is_test_class(module, "TestCake") and not compat.is_test_class(module, "Cake"),
        "Module.funcnamefilter": lambda: compat.is_test_method(module, "test_cake") and not compat.is_test_method(module, "cake"),
        "Module.istestfunction": lambda: (
            compat.is_test_function(module, _session, "test_cake") and not compat.is_test_function(module, _session, "cake")
        ),
        **{f"LogXML.{name}": partial(_writer_has, config, name) for name in compat.WRITER_NAMES},
        "LogXML, which counts and writes cases and outputs": lambda: _writes_junit(config),
        "_pytest.junitxml.xml_key": lambda: _drops_junit(config),
        "_pytest.__file__": lambda: Path(inspect.getfile(pytest.Session)).resolve().parent in compat.pytest_folders(),
    }


def test_every_private_name_of_pytest_is_in_its_place(pytester: pytest.Pytester) -> None:
    """After an upgrade this names the private name that pytest moved, and the module to correct."""
    assert moved(f"pytest {pytest.__version__}", compat, _probes(*_session(pytester))) == []


def test_no_other_module_uses_a_private_name_of_pytest() -> None:
    """``_pytest`` is imported for types only, and the plugin reads no private attribute outside this one module."""
    found = []
    for path in SOURCES.rglob("*.py"):
        if path == Path(compat.__file__):
            continue
        text = path.read_text(encoding="utf-8")
        if "_pytest" not in text and path.parent.name != "plugin":
            continue
        tree = ast.parse(text)
        types = {id(node) for block in ast.walk(tree) if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
                 for node in ast.walk(block)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("_pytest") and id(node) not in types:
                found.append(f"{path.name}:{node.lineno}")
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if private and path.parent.name == "plugin" and ast.unparse(node.value) not in ("self", "cls", "os"):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
