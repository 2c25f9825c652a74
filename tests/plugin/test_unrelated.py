"""The plugin has no effect on a session without a suite."""

import pytest


def test_an_unrelated_session_sees_nothing_of_the_plugin(pytester):
    """An unrelated session gets no output, no file, and none of the heavy modules."""
    pytester.makeconftest(
        """
        import sys

        def pytest_sessionfinish(session):
            heavy = {"torch", "transformers", "trl", "peft", "pydantic", "yaml", "scipy", "rn_harness.run.session"}
            print("LOADED", sorted(heavy & set(sys.modules)))
        """
    )
    pytester.makepyfile("def test_nothing(): pass")
    before = {p.name for p in pytester.path.iterdir()}
    result = pytester.runpytest_subprocess("-s", "-p", "no:cacheprovider")
    assert result.ret == 0
    text = result.stdout.str()
    assert "LOADED []" in text
    assert "rn-harness:" not in text
    assert "no verdict" not in text
    left = {p.name for p in pytester.path.iterdir()} - before
    assert {name for name in left if not name.startswith("runpytest-")} <= {"__pycache__", "stdout", "stderr"}  # pytester's


THEIRS = """
def pytest_addoption(parser):
    parser.addoption("--model", default="theirs")
"""
TEST = """
def test_theirs(request):
    assert request.config.getoption("--model") == {value!r}
"""


@pytest.mark.parametrize("typed", [[], ["--model", "mine"], ["--model=mine"]], ids=["untyped", "typed", "equals"])
@pytest.mark.parametrize("declared_by", ["conftest", "conftest without our plugin", "plugin before", "plugin after"])
def test_anybody_else_may_declare_model(pytester, monkeypatch, declared_by, typed):
    """A conftest or plugin that declares --model gets its value, whether it is loaded before our plugin or after it."""
    args = ["-p", "no:rn_harness"] if "without" in declared_by else []
    if "conftest" in declared_by:
        pytester.makeconftest(THEIRS)
    else:
        pytester.makepyfile(foreign=THEIRS)
        pytester.syspathinsert()
        if declared_by.endswith("before"):
            args = ["-p", "foreign"]
        else:
            monkeypatch.setenv("PYTEST_PLUGINS", "foreign")  # pytest loads it after all installed plugins
    pytester.makepyfile(TEST.format(value="mine" if typed else "theirs"))
    pytester.runpytest_inprocess(*args, *typed).assert_outcomes(passed=1)


def test_the_model_option_of_a_conftest_may_be_a_switch(pytester):
    """A conftest's --model that takes no value works too."""
    pytester.makeconftest(THEIRS.replace('default="theirs"', 'action="store_true"'))
    pytester.makepyfile(TEST.format(value=True))
    pytester.runpytest_inprocess("--model").assert_outcomes(passed=1)


def test_a_conftest_that_is_found_late_may_declare_model(pytester):
    """A conftest far below, which pytest first reads while it collects, may declare --model."""
    folder = pytester.mkpydir("deep") / "deeper"
    folder.mkdir()
    (folder / "conftest.py").write_text(THEIRS)
    (folder / "test_it.py").write_text(TEST.format(value="theirs"))
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


@pytest.mark.parametrize("typed", [["--model", "folder"], ["--model=folder"], ["--rn-model", "folder"]], ids=" ".join)
def test_a_model_folder_is_no_folder_of_tests(pytester, typed):
    """The folder that --model names is taken as our candidate, and a conftest in it is not run."""
    pytester.mkdir("folder").joinpath("conftest.py").write_text("raise RuntimeError")
    pytester.makepyfile("def test_ours(request): assert request.config.getoption('rn_model') == 'folder'")
    pytester.runpytest_inprocess("test_a_model_folder_is_no_folder_of_tests.py", *typed).assert_outcomes(passed=1)


ANOTHERS = """
import pytest

class Item(pytest.Item):
    def runtest(self): pass

class File(pytest.File):
    def collect(self): yield Item.from_parent(self, name="smoke")

def pytest_collect_file(file_path, parent):
    return File.from_parent(parent, path=file_path) if file_path.name == "suite.yaml" else None
"""


@pytest.mark.parametrize("argument", ["theirs", "theirs/suite.yaml", "."])
def test_another_tools_suite_is_none_of_ours(pytester, argument):
    """A suite.yaml that declares nothing of ours is left to the plugin that reads it, as are the tests next to it."""
    folder = pytester.mkdir("theirs")
    (folder / "suite.yaml").write_text("name: smoke\ntests: [one]\n")
    (folder / "test_it.py").write_text("def test_it(): pass\n")
    pytester.makeconftest(ANOTHERS)
    result = pytester.runpytest_inprocess("--import-mode=importlib", argument)
    result.assert_outcomes(passed=1 if argument.endswith("yaml") else 2)
    assert "rn-harness:" not in result.stdout.str()


@pytest.mark.parametrize(
    ("declared", "test"),
    [
        ("'attacks' : []\n", "def test_it(): pass\n"),
        ("", "from rn_harness import RobustnessChecks\nclass TestIt(RobustnessChecks): ...\n"),
    ],
    ids=["a key of ours", "a test of ours"],
)
def test_no_mistake_hides_a_suite(pytester, declared, test):
    """A suite.yaml with one key of ours, or next to a test that imports the harness, is ours, and its faults are reported."""
    folder = pytester.mkdir("mine")
    (folder / "suite.yaml").write_text(declared)
    (folder / "test_it.py").write_text(test)
    result = pytester.runpytest_inprocess("--import-mode=importlib", "mine")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "suite.yaml" in result.stderr.str()
