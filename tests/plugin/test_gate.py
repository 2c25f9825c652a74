"""``--rn-gate``: what no release can rest on ends with exit code 10 and its reasons, before any work where they are known."""

import json
import subprocess

import pytest

ONE_ATTACK = "test_attack_stays_neutralized"


def _git(folder, *arguments):
    who = ("-c", "user.name=lab", "-c", "user.email=lab@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def _assert_no_work(workspace, result, *needles):
    """Exit code 10 and the reasons; the run's record says the same, and its JUnit file is red."""
    assert result.ret == 10, result.text
    record = json.loads((workspace.latest / "run.json").read_text())
    assert (record["outcome"], record["releasable"]) == ("INCONCLUSIVE", False)
    for needle in needles:
        assert needle in result.text
        assert any(needle in why for why in record["why_not"])
    assert not list(workspace.latest.glob("cases/*"))
    assert 'errors="0"' not in (workspace.latest / "junit.xml").read_text()


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (["--rn-tier", "smoke"], ["the smoke tier never is a release verdict"]),
        (["--rn-set", "policy.samples=4"], ["modified by --rn-set policy.samples=4"]),
        (["--rn-set", "policy.threshold=3"], ["policy.threshold=3.0 is laxer than 2.0"]),
        (["-k", ONE_ATTACK], [f"narrowed by -k {ONE_ATTACK}"]),
        (["--deselect", "mine/biochem/test_biochem.py::TestBiochem::test_helpfulness_is_kept"], ["narrowed by --deselect"]),
        (["--rn-tier", "smoke", "-n", "2"], ["the smoke tier never is a release verdict"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_no_release_can_rest_on_ends_before_any_work(workspace, arguments, needles):
    """With the gate such a run is not begun: hours of training would end in a verdict that nobody may use."""
    _assert_no_work(workspace, workspace.run("mine/biochem", "--rn-gate", *arguments), *needles)


def test_tests_that_a_conftest_deselects_are_seen(workspace):
    """A plugin that leaves tests out without any option is told by how many it took."""
    (workspace.folder / "mine" / "biochem" / "conftest.py").write_text(
        "def pytest_collection_modifyitems(config, items):\n"
        "    config.hook.pytest_deselected(items=items[-2:])\n"
        "    del items[-2:]\n"
    )
    _assert_no_work(workspace, workspace.run("mine/biochem", "--rn-gate"), "2 tests were deselected")


def test_a_suite_that_is_not_as_committed_is_seen(workspace):
    """A change that nobody committed, and a file that git does not know, are no suite that anybody can look at later."""
    _git(workspace.folder, "init", "-q")
    _git(workspace.folder, "add", ".")
    _git(workspace.folder, "commit", "-q", "-m", "suites")
    suite = workspace.folder / "mine" / "biochem" / "suite.yaml"
    suite.write_text(suite.read_text() + "\n# a remark\n")
    _assert_no_work(workspace, workspace.run("mine/biochem", "--rn-gate"), "mine/biochem/suite.yaml is not as committed")
    (suite.parent / "notes.txt").write_text("")
    result = workspace.run("mine/biochem", "--rn-gate")
    _assert_no_work(workspace, result, "mine/biochem/notes.txt and 1 more files are not as committed")


@pytest.mark.parametrize("arguments", [["--collect-only", "mine/biochem"], ["test_other.py"]], ids=" ".join)
def test_a_gate_without_a_suite_lets_nothing_through(workspace, arguments):
    """A green session in which no suite was run is exit code 10 too: the path may have been mistyped."""
    (workspace.folder / "test_other.py").write_text("def test_other():\n    pass\n")
    result = workspace.run("--rn-gate", *arguments)
    assert result.ret == 10, result.text
    assert "no suite was run, so that nothing can be released" in result.text
