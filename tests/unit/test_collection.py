"""Collection: tests that an option or a hook hides are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from rn_harness.plugin.collection import Collected

HIDE = "def pytest_pycollect_makeitem(collector, name):\n    return [] if name == 'test_own' else None\n"


def left_out(pytester: pytest.Pytester, *options: str) -> list[str]:
    """Tests that a session with these options leaves out of a suite of two test files."""
    suite = pytester.mkdir("demo")
    (suite / "suite.yaml").write_text("attacks: []\n", encoding="utf-8")
    (suite / "test_demo.py").write_text("def test_ok(): pass\n", encoding="utf-8")
    (suite / "test_more.py").write_text("def test_own(): assert False\n", encoding="utf-8")
    config = pytester.parseconfigure("-p", "no:rn_harness", "--import-mode=importlib", *options, str(suite))
    collected = Collected()
    config.pluginmanager.register(collected)
    session = pytest.Session.from_config(config)
    config.hook.pytest_sessionstart(session=session)
    session.perform_collect()
    return collected.left_out(config, session.items)


def test_nothing_is_left_out_of_a_plain_session(pytester: pytest.Pytester) -> None:
    """A session without options collects and keeps both tests."""
    assert left_out(pytester) == []


@pytest.mark.parametrize("option", ["python_files=test_demo.py", "python_functions=test_ok*"])
def test_an_ini_option_that_hides_a_test_is_seen(pytester: pytest.Pytester, option: str) -> None:
    """A test hidden by an ini option counts as left out if pytest's defaults would collect it."""
    (found,) = left_out(pytester, "-o", option)
    assert found.startswith("demo/test_more.py")


def test_a_file_whose_only_test_is_hidden_is_seen(pytester: pytest.Pytester) -> None:
    """A file emptied by a hook is found, although it has no item left."""
    pytester.makeconftest(HIDE)
    assert left_out(pytester) == ["demo/test_more.py::test_own"]


@pytest.mark.parametrize(
    ("typed", "ours"), [(["--dist", "load"], False), (["--dist=loadfile"], True), (["-n", "2"], True)], ids=str
)
def test_a_typed_dist_is_respected(
    pytester: pytest.Pytester, request: pytest.FixtureRequest, typed: list[str], ours: bool
) -> None:
    """This repository's scheduler gives a file to one worker, unless --dist asks for another way."""
    plugin = request.config.pluginmanager.get_plugin(str(Path(__file__).parents[1] / "conftest.py"))
    made = plugin.pytest_xdist_make_scheduler(pytester.parseconfig("--tx", "popen", *typed), None)
    assert (made is not None) == ours
