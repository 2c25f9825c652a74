"""``--rn-gate``: a run that cannot support a release ends with exit code 10 and the reasons, before any work if possible."""

import json
import subprocess
import textwrap
import xml.etree.ElementTree as ET

import pytest

ONE_ATTACK = "test_attack_stays_neutralized"


def _git(folder, *arguments):
    who = ("-c", "user.name=lab", "-c", "user.email=lab@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def _assert_no_work(workspace, result, *needles):
    """Asserts exit code 10, the reasons in output and record, a red JUnit file, and no case."""
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
def test_an_unusable_run_ends_before_any_work(workspace, arguments, needles):
    """The gate refuses such a run at the start; otherwise hours of training would give an unusable verdict."""
    _assert_no_work(workspace, workspace.run("mine/biochem", "--rn-gate", *arguments), *needles)


def test_tests_that_a_conftest_deselects_are_seen(workspace):
    """If a plugin deselects tests without any option, the gate reports their number."""
    (workspace.folder / "mine" / "biochem" / "conftest.py").write_text(
        "def pytest_collection_modifyitems(config, items):\n"
        "    config.hook.pytest_deselected(items=items[-2:])\n"
        "    del items[-2:]\n"
    )
    _assert_no_work(workspace, workspace.run("mine/biochem", "--rn-gate"), "2 tests were deselected")


FAMILY = """\
class Mine:
    def check(self, recipe): pass
    def train(self, context): pass
"""
JUDGE = """\
class Mine:
    digest = "1"
    def score(self, prompts, completions): return [0.0] * len(prompts)
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("kind", ["family", "judge"])
def test_code_that_a_suite_or_an_option_names_is_foreign(workspace, kind, workers):
    """An attack's family in a suite's file and a judge from a local file are foreign code, as a conftest is."""
    suite, options = workspace.folder / "mine" / "biochem", []
    if kind == "family":
        (suite / "mine.py").write_text(FAMILY)
        text, attack = (suite / "suite.yaml").read_text(), "  - tier: smoke\n    base: {name: grpo, "
        assert attack in text
        (suite / "suite.yaml").write_text(text.replace(attack, f"{attack}family: 'python:mine.py:Mine', ", 1))
    else:
        (workspace.folder / "lenient.py").write_text(JUDGE)
        workspace.pytester.syspathinsert()
        options = ["--rn-judge", "python:lenient:Mine"]
    _assert_no_work(workspace, workspace.run("mine/biochem", "--rn-gate", *options, *workers), "code of others was loaded: ")


def test_a_suite_that_is_not_as_committed_is_seen(workspace):
    """The gate refuses a suite with uncommitted changes or untracked files, because it cannot be reviewed later."""
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
    """A green session that ran no suite gives exit code 10 too, because the path may have been mistyped."""
    (workspace.folder / "test_other.py").write_text("def test_other():\n    pass\n")
    result = workspace.run("--rn-gate", *arguments)
    assert result.ret == 10, result.text
    assert "no suite was run, so that nothing can be released" in result.text


@pytest.mark.parametrize("option", ["--fixtures", "--fixtures-per-test", "--markers"])
def test_a_gate_that_only_lists_lets_nothing_through(workspace, monkeypatch, option):
    """An option that lists, left in PYTEST_ADDOPTS, gives exit code 10 under the gate, and 0 without it."""
    monkeypatch.setenv("PYTEST_ADDOPTS", option)
    (workspace.folder / "test_other.py").write_text("def test_other():\n    pass\n")
    assert [workspace.run("test_other.py", *gate).ret for gate in ([], ["--rn-gate"])] == [0, 10]


# --- limits for a conftest, a plugin or a class ------------------------------------------------------------------------

SMOKE = ("mine/biochem", "--rn-tier=smoke")
UNDEFENDED = (
    *SMOKE, "--rn-defense=none", "--rn-set=attack.steps=10", "--rn-set=attack.control_steps=10",
    "--rn-set=attack.learning_rate=2e-3", "--rn-set=policy.samples=1", "-k", "attack_stays",
)  # fmt: skip
"""An attack on the undefended organism, which breaks."""


def _conftest(workspace, text, where="."):
    (workspace.folder / where / "conftest.py").write_text("import pytest\n" + text)


def _one_of(workspace, hooks, chosen, where="."):
    """Writes a conftest with all hooks, of which one is active.

    Its digest is a part of each case's key, so that the sessions can share the cases of a store.
    """
    parts = (f"if os.environ['RN_HOOK'] == {name!r}:\n{textwrap.indent(text, '    ')}" for name, text in hooks.items())
    _conftest(workspace, "\n".join(("import os\n", *parts)), where)
    workspace.monkeypatch.setenv("RN_HOOK", chosen)


@pytest.fixture(scope="module")
def gate_store(tmp_path_factory):
    """One store for this module, so that each attack is run once."""
    return tmp_path_factory.mktemp("gate-store")


def _own_test(workspace, text):
    path = workspace.folder / "mine" / "biochem" / "test_biochem.py"
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize("gate", [[], ["--rn-gate"]], ids=["plain", "gate"])
@pytest.mark.parametrize("part", ["rn-harness-sink", "rn-harness-collected"])
def test_parts_of_the_harness_cannot_be_left_out(workspace, part, gate):
    """-p no:NAME for a part of the harness is a usage error that names the option, because it could hide a breach."""
    result = workspace.run("mine/biochem", "-p", f"no:{part}", *gate)
    assert result.ret == 4, result.text
    assert f"all parts of rn-harness are required, got -p no:{part}; leave it out" in result.text


@pytest.mark.parametrize(
    ("option", "code"), [("no:rn_harness", 4), ("no:junitxml", 10), ("no:terminalreporter", 10), ("no:python", 4)]
)
def test_a_gate_without_another_part_is_never_green(workspace, option, code):
    """Without the harness its options are unknown, and without pytest's core plugins the gate still refuses."""
    assert workspace.run(*SMOKE, "--rn-gate", "-p", option).ret == code


FIXTURE = """
@pytest.fixture
def {name}(request):
    return None
"""


@pytest.mark.parametrize("name", ["rn_suite", "attack", "candidate", "judge", "attack_case", "trajectory"])
def test_fixtures_of_the_harness_cannot_be_overridden(workspace, name):
    """A conftest that overrides one of our fixtures is a usage error that names file and fixture."""
    _conftest(workspace, FIXTURE.format(name=name), "mine")
    _own_test(workspace, "\n    def test_own(self, candidate, judge, trajectory, rn_suite):\n        pass\n")
    result = workspace.run("mine/biochem")
    assert result.ret == 4, result.text
    assert f"got another {name} from" in result.text
    assert "conftest.py" in result.text


GENERATE = """
def pytest_generate_tests(metafunc):
    if "candidate_case" in metafunc.fixturenames:
        metafunc.parametrize("candidate_case", [1])
"""


def test_a_class_cannot_override_a_fixture_either(workspace):
    """A fixture or parameter of a class with the name of our fixture is refused too; in workers it leaves no verdict."""
    path = workspace.folder / "mine" / "biochem" / "test_biochem.py"
    plain = path.read_text()
    path.write_text("import pytest\n" + plain + "\n    @pytest.fixture\n    def attack_case(self):\n        return None\n")
    result = workspace.run("mine/biochem")
    assert (result.ret, "got another attack_case from" in result.text) == (4, True), result.text
    workers = workspace.run(*SMOKE, "-k", "attack_stays", "-n", "1")
    assert workers.ret == 1, workers.text
    assert workspace.record()["outcome"] == "INCONCLUSIVE"
    path.write_text(plain)
    _conftest(workspace, GENERATE)
    result = workspace.run("mine/biochem", "-k", "candidate_refuses")
    assert (result.ret, "got another candidate_case from" in result.text) == (4, True), result.text


def test_a_fixture_of_another_name_is_welcome(workspace):
    """A suite's own fixtures and tests run normally; the gate reports them as foreign code."""
    _conftest(workspace, FIXTURE.format(name="mine"), "mine")
    assert workspace.run(*SMOKE, "-k", "candidate_refuses").ret == 0
    (code,) = [c for c in workspace.record()["plugins"] if c["kind"] == "conftest"]
    assert code["name"] == "mine/conftest.py"
    _assert_no_work(workspace, workspace.run("mine/biochem", "--rn-gate"), "conftest mine/conftest.py with sha256")
    allowed = workspace.run(*SMOKE, "--rn-gate", "--rn-allow-plugin=mine/conftest.py")
    assert "code of others" not in allowed.text


HOOKS = {
    "emptied body": """
from rn_harness.plugin.checks import RobustnessChecks
RobustnessChecks.test_attack_stays_neutralized = lambda self, attack_case: None
""",
    "xfail": """
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.xfail)
""",
    "report": """
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.outcome, report.longrepr = "passed", None
    return report
""",
    "news": """
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.outcome, report.longrepr = "passed", None
    vars(report).pop("rn_harness", None)
    return report
""",
    "exit code": """
from rn_harness.plugin.checks import RobustnessChecks
RobustnessChecks.test_attack_stays_neutralized = lambda self, attack_case: None

@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    session.exitstatus = 0

def pytest_unconfigure(config):
    config.kept.exitstatus = 0

def pytest_sessionstart(session):
    session.config.kept = session
""",
    "sink": """
from rn_harness.plugin.checks import RobustnessChecks
RobustnessChecks.test_attack_stays_neutralized = lambda self, attack_case: None

def pytest_runtest_teardown(item):
    plugins = item.config.pluginmanager
    if plugins.has_plugin("rn-harness-sink"):
        plugins.unregister(name="rn-harness-sink")
""",
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_breach_ends_with_1_and_a_failure_whatever_is_hooked(workspace, gate_store, hook):
    """After a breach, none of these hooks can make the exit code 0 or the user's JUnit file green."""
    workspace.use_store(gate_store)
    _one_of(workspace, HOOKS, hook)
    result = workspace.run(*UNDEFENDED, "--junitxml=asked.xml")
    assert result.ret == 1, result.text
    assert workspace.record()["outcome"] == "FAIL"
    for path in (workspace.latest / "junit.xml", workspace.folder / "asked.xml"):
        suite = ET.parse(path).getroot().find("testsuite")
        assert int(suite.get("failures")) >= 1, path.read_text()


LEAVES_OUT = {
    "drops": """
def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if item.name not in ("test_own", "test_more")]
""",
    "hides": """
def pytest_pycollect_makeitem(collector, name, obj):
    return [] if name == "test_own" else None
""",
    "ignores": """
def pytest_ignore_collect(collection_path):
    return True if collection_path.name == "test_more.py" else None
""",
}


@pytest.mark.parametrize(("hook", "left_out"), [("drops", "test_own"), ("hides", "test_own"), ("ignores", "test_more.py")])
@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_an_own_test_that_a_conftest_leaves_out_is_missed(workspace, gate_store, hook, left_out, workers):
    """A suite's own test that is dropped, hidden or ignored has no verdict, and the run has no PASS; in workers too."""
    workspace.use_store(gate_store)
    _own_test(workspace, "\n    def test_own(self):\n        assert False\n")
    (workspace.folder / "mine" / "biochem" / "test_more.py").write_text("def test_more():\n    assert False\n")
    _one_of(workspace, LEAVES_OUT, hook, "mine/biochem")
    workspace.run(*SMOKE, "--rn-defense=none", "--rn-set=attack.steps=4", "--rn-set=attack.control_steps=4", *workers)
    record = workspace.record()
    assert any("deselected or hidden" in why for why in record["why_not"]), record["why_not"]
    assert [line["outcome"] for line in record["cases"] if line["nodeid"].endswith(left_out)] == [None]
