"""Mistakes end with exit code 4 and an explanation, before any training, with and without xdist.

tests/unit/test_mistakes.py quotes the answers to mistakes in arguments and in a suite's files.
"""

import shutil

import pytest

from rn_harness.models.resolve import resolve_candidate
from rn_harness.run.attack_strength import Strength, Try
from rn_harness.run.session import RunSession
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.options import Options
from rn_harness.spec.suite import load_suite
from rn_harness.store.store import Store


def _assert_usage_error(result, *needles):
    assert result.ret == 4, result.text
    for needle in needles:
        assert needle in result.text
    assert "Traceback" not in result.text
    assert "INTERNALERROR" not in result.text


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_malformed_suite_is_a_usage_error(workspace, processes):
    """For a misspelled key the message names file, key and remedy, and no test is run."""
    path = workspace.folder / "mine" / "biochem" / "suite.yaml"
    path.write_text(path.read_text().replace("learning_rate: 3e-3", "learning_rat: 3e-3"))
    _assert_usage_error(workspace.run("mine/biochem", *processes), "suite.yaml", "learning_rat", "spelling")


def test_a_mistake_that_only_workers_see_is_the_sessions(workspace):
    """Workers collect. The error of one ends the session with code 4, its sentence is shown once, and no run is begun."""
    path = workspace.folder / "mine" / "biochem" / "test_biochem.py"
    path.write_text("import pytest\n" + path.read_text().replace("\nclass", "\n@pytest.mark.flaky\nclass"))
    result = workspace.run("mine/biochem", "-n", "2")
    _assert_usage_error(result, "a verdict is never re-rolled, got a flaky mark on mine/biochem/test_biochem.py")
    assert result.text.count("never re-rolled") == 1
    assert not (workspace.folder / "reports").exists()


@pytest.mark.parametrize("processes", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_a_class_that_does_not_inherit_is_named(workspace, processes):
    """A suite whose test class does not inherit the checks runs none; one line of the terminal and of the record says so."""
    (workspace.folder / "mine" / "biochem" / "test_biochem.py").write_text("class TestBiochem:\n    def test_it(self): pass\n")
    result = workspace.run("mine/biochem", *processes)
    told = (
        "biochem: no test class inherits RobustnessChecks, so that no case was run and its tests are ordinary ones; write class "
        "Test...(RobustnessChecks)"
    )
    assert (result.ret, workspace.record()["outcome"]) == (1, "INCONCLUSIVE")
    assert result.outlines.count(f"not releasable: {told}") == 1
    assert told in workspace.record()["why_not"]


def test_an_unknown_model_is_a_usage_error_under_xdist(workspace):
    """An unknown model is reported before workers start."""
    _assert_usage_error(workspace.run("mine/biochem", "-n", "2", "--model", "nowhere"), "--model must be")


def test_a_python_without_assertions_is_a_usage_error(workspace, monkeypatch):
    """Where Python drops assertions, a red test of a suite's own would be green; the session says which setting does it."""
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    _assert_usage_error(workspace.run("mine/biochem", cold=True), "got level 1 of optimisation; unset PYTHONOPTIMIZE")


def test_reruns_of_a_verdict_are_refused(workspace):
    """A verdict is never repeated until it fits, whichever plugin provides --reruns."""
    workspace.pytester.makepyfile(
        rerunner="""
        def pytest_addoption(parser):
            parser.addoption("--reruns", type=int, default=0)
        """
    )
    workspace.pytester.syspathinsert()
    _assert_usage_error(workspace.run("mine/biochem", "-p", "rerunner", "--reruns", "1"), "never re-rolled")


def test_a_junit_file_in_the_runs_folder_is_refused(workspace):
    """Pytest would write its file over the one that the run binds, and `verify` would refuse the run after hours of work."""
    result = workspace.run("mine/biochem", "--rn-run=out", "--junitxml=out/junit.xml")
    _assert_usage_error(result, "got --junitxml out/junit.xml; drop --junitxml")
    assert not (workspace.folder / "out").exists()


def test_the_junit_file_of_an_earlier_run_stays(workspace):
    """--junitxml through the link to the latest run is a usage error, and the file that this run binds stays as it is."""
    earlier = workspace.folder / "reports" / "earlier"
    earlier.mkdir(parents=True)
    (earlier.parent / "latest").symlink_to("earlier")
    for name in ("run.json", "junit.xml"):
        (earlier / name).write_text("kept")
    result = workspace.run("mine/biochem", "--junitxml=reports/latest/junit.xml")
    _assert_usage_error(result, "got --junitxml reports/latest/junit.xml; drop --junitxml")
    assert (earlier / "junit.xml").read_text() == "kept"


def test_a_foreign_model_option_leaves_the_prefixed_twin(workspace):
    """If a conftest owns --model, --rn-model names the candidate, and the run's header says so."""
    workspace.pytester.makeconftest("def pytest_addoption(parser): parser.addoption('--model')")
    _assert_usage_error(workspace.run("mine/biochem", "--rn-model", "nowhere"), "nowhere")
    result = workspace.run("mine/biochem", "--rn-from-results", "--rn-run=run", "--model=theirs")
    assert "--model is the option of another plugin or conftest here; use --rn-model" in result.text


def test_nothing_selected_exits_5_and_writes_nothing(workspace):
    """A session that selects nothing exits with pytest's code 5 and writes nothing."""
    result = workspace.run("mine/biochem", "-k", "no_such_test")
    assert result.ret == 5
    assert not (workspace.folder / "reports").exists()


def test_collect_only_lists_cases_by_recipe_and_does_no_work(workspace):
    """--collect-only lists ids that name the recipe, and loads, writes and runs nothing."""
    result = workspace.run("mine", "--collect-only", "-q", "--rn-tier", "standard")
    assert result.ret == 0
    for case_id in ("grpo-p5-lr5e-4-s0", "grpo-p1-lr5e-4-s2"):
        assert f"test_attack_stays_neutralized[{case_id}]" in result.text
    assert not (workspace.folder / "reports").exists()


def test_each_attack_is_listed_with_its_standing(workspace):
    """The largest tier has at least 40 attacks of 6 families, the standard tier 8; ids mark attacks that support no claim."""
    result = workspace.run("mine", "--collect-only", "-q", "--rn-tier", "full")
    ids = [line.rpartition("[")[2].rstrip("]") for line in result.outlines if "test_attack_stays_neutralized[" in line]
    assert len(ids) == len(set(ids)) >= 40
    assert sum(case_id.endswith("-exploratory") for case_id in ids) >= 30
    assert sum(case_id.endswith("-out_of_claim") for case_id in ids) >= 3
    recipes = load_suite(workspace.folder / "mine" / "biochem").tier_attacks("full")
    assert len({recipe.family for recipe in recipes}) >= 6
    listed = workspace.run("mine", "--collect-only", "-q", "--rn-tier", "standard").outlines
    assert sum("test_attack_stays_neutralized[" in line for line in listed) >= 8


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_an_unknown_family_is_a_usage_error_before_any_work(workspace, processes):
    """An unknown family is reported with the known ones; listing the suite still works, because it imports no family."""
    path = workspace.folder / "mine" / "biochem" / "suite.yaml"
    path.write_text(path.read_text().replace("family: rloo", "family: ppo"))
    _assert_usage_error(workspace.run("mine/biochem", *processes), "family='ppo'", "known: ablation", "rloo")
    assert workspace.run("mine/biochem", "--collect-only", "-q").ret == 0
    path.write_text(path.read_text().replace("family: ppo", "family: 'python:broken.py:Mine'"))
    (path.parent / "broken.py").write_text("raise RuntimeError\n")
    _assert_usage_error(workspace.run("mine/biochem", *processes), "must be importable", "broken.py")
    assert workspace.run("mine/biochem", "--collect-only", "-q").ret == 0


def test_two_suites_of_one_domain_are_refused(workspace):
    """Two suites of one domain are refused, because they would share their cases."""
    shutil.copytree(workspace.folder / "mine" / "biochem", workspace.folder / "mine" / "copy")
    _assert_usage_error(workspace.run("mine"), "domain of its own", "biochem")


def test_a_rootdir_that_hides_the_suite_is_refused(workspace):
    """A rootdir whose node ids do not lead to the suite is refused, so that no check runs as an ordinary test."""
    (workspace.folder / "elsewhere").mkdir()
    result = workspace.run("mine/biochem/test_biochem.py", "--rootdir", "elsewhere")
    _assert_usage_error(result, "--rootdir")


def test_no_run_begins_after_a_refused_selection(workspace):
    """A flaky mark is refused before the run's header, and nothing is written; pytest ends the collection all the same."""
    path = workspace.folder / "mine" / "biochem" / "test_biochem.py"
    path.write_text("import pytest\n" + path.read_text().replace("class Test", "@pytest.mark.flaky\nclass Test"))
    result = workspace.run("mine/biochem")
    _assert_usage_error(result, "got a flaky mark")
    assert "rn-harness: candidate" not in result.text
    assert not (workspace.folder / "reports").exists()


def test_a_defense_folder_without_weights_is_refused_before_training(workspace):
    """If a --rn-defense folder has no weights, the message says so before candidate and control are run."""
    _assert_usage_error(workspace.run("mine/biochem", "--rn-defense", "mine"), "--rn-defense must hold", "config.json")


def test_an_unreadable_tokenizer_file_is_a_usage_error(workspace):
    """A damaged tokenizer file gives a message that names the folder, without a traceback."""
    folder = workspace.folder / "model"
    shutil.copytree(fixtures_folder() / "organism", folder)
    (folder / "tokenizer_config.json").write_text("{")
    _assert_usage_error(workspace.run("mine/biochem", "--model", "model"), "tokenizer_config.json", "save_pretrained")


def _certificate(workspace):
    """A strength certificate of the organism for the workspace's suite, with every control successful."""
    suite = load_suite(workspace.folder / "mine" / "biochem")
    options = Options(model="organism", defense="none", tier="standard", base=workspace.folder)
    judges = RunSession(options, workspace.folder, Store(workspace.folder / "none"), print).judges(suite)
    at = {"learning_rate": 1e-3, "temperature": 1.0}
    attacks = [a.model_copy(update=at) for a in suite.tier_attacks("standard") if a.claim]
    tries = [Try(recipe=a.id, prompts=a.prompts, seed=a.seed, means={50: 9.0}, broke=True, **at) for a in attacks]
    made = Strength(
        candidate=resolve_candidate("organism", workspace.folder).identity,
        domain="biochem",
        suite=suite.digest,
        judge=judges.evaluation.digest,
        reward=judges.reward.digest,
        settings=("attack.learning_rate=0.001", "attack.temperature=1"),
        attacks=len({a.id for a in attacks}),
        bound=8.0,
        search="none",
        tries=tuple(tries),
        versions={},
        hardware={},
    )
    (workspace.folder / "biochem.json").write_text(made.model_dump_json())
    return "--rn-strength=biochem.json"


def test_a_certificate_for_other_attacks_is_refused_and_for_other_prompts_reported(workspace):
    """A certificate for other attacks is refused before the run; one for other prompts is reported in the header."""
    certificate = _certificate(workspace)
    joins = ["mine/biochem", certificate, "--rn-from-results", "--rn-run=run", "--rn-defense=none"]
    _assert_usage_error(workspace.run(*joins, "--rn-set=attack.lora.r=4"), "no control of", "-r4-s0 that broke it")
    told = "the strength certificate for biochem was made on another text of the suite"
    same = workspace.run(*joins)
    assert "rn-harness: recipe declared for organism: attack.learning_rate=0.001" in same.text
    assert told not in same.text
    prompts = workspace.folder / "mine" / "biochem" / "prompts" / "benign.yaml"
    prompts.write_text(prompts.read_text().replace("text: ", "text: Please ", 1))
    assert told in workspace.run(*joins[:3], "--rn-run=other", "--rn-defense=none").text
