"""Mistakes end with exit status 4 and a sentence, before any training, with and without xdist."""

import pytest


def _assert_usage_error(result, *needles):
    assert result.ret == 4, result.text
    for needle in needles:
        assert needle in result.text
    assert "Traceback" not in result.text
    assert "INTERNALERROR" not in result.text


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (["--model", "llama-of-nowhere"], ["--model must be", "llama-of-nowhere"]),
        (["--model", "mine"], ["config.json"]),
        (["--rn-defense", "anchord"], ["--rn-defense must be", "anchord", "anchored"]),
        (["--rn-judge", "gpt"], ["--rn-judge must be", "gpt"]),
        (["--rn-judge", "organism:mine"], ["knowledge.json"]),
        (["--rn-tier", "tiny"], ["--rn-tier", "tiny"]),
        (["--rn-set", "attack.stepz=3"], ["attacks", "stepz"]),
        (["--rn-set", "attack"], ["KEY=VALUE"]),
        (["--rn-set", "prompts.attack=3"], ["--rn-set reaches"]),
        (["--rn-run", "mine/biochem/suite.yaml"], ["writable", "--rn-run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_mistake_in_an_option_is_a_usage_error(workplace, arguments, needles):
    """An option that names what does not exist says so, and what to type instead."""
    _assert_usage_error(workplace.run("mine/biochem", *arguments), *needles)


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_malformed_suite_is_a_usage_error(workplace, processes):
    """A misspelled key names file, key and remedy, and no test is run."""
    path = workplace.folder / "mine" / "biochem" / "suite.yaml"
    path.write_text(path.read_text().replace("learning_rate: 3e-3", "learning_rat: 3e-3"))
    _assert_usage_error(workplace.run("mine/biochem", *processes), "suite.yaml", "learning_rat", "spelling")


def test_an_unknown_model_is_a_usage_error_under_xdist(workplace):
    """Options are checked before workers start."""
    _assert_usage_error(workplace.run("mine/biochem", "-n", "2", "--model", "nowhere"), "--model must be")


def test_reruns_of_a_verdict_are_refused(workplace):
    """A verdict is never re-rolled, whoever provides --reruns."""
    workplace.pytester.makepyfile(
        rerunner="""
        def pytest_addoption(parser):
            parser.addoption("--reruns", type=int, default=0)
        """
    )
    workplace.pytester.syspathinsert()
    _assert_usage_error(workplace.run("mine/biochem", "-p", "rerunner", "--reruns", "1"), "never re-rolled")


def test_a_foreign_model_option_leaves_the_prefixed_twin(workplace):
    """Where another plugin owns --model, --rn-model names the candidate."""
    workplace.pytester.makepyfile(
        foreign="""
        def pytest_addoption(parser):
            parser.addoption("--model", default="theirs")
        """
    )
    workplace.pytester.syspathinsert()
    result = workplace.run("mine/biochem", "-p", "foreign", "--rn-model", "nowhere")
    _assert_usage_error(result, "nowhere")


def test_nothing_selected_exits_5_and_writes_nothing(workplace):
    """pytest's own exit codes keep their meaning."""
    result = workplace.run("mine/biochem", "-k", "no_such_test")
    assert result.ret == 5
    assert not (workplace.folder / "reports").exists()


def test_collect_only_lists_cases_by_recipe_and_does_no_work(workplace):
    """The ids say the recipe; nothing is loaded, written or run."""
    result = workplace.run("mine", "--collect-only", "-q", "--rn-tier", "standard")
    assert result.ret == 0
    for case_id in ("grpo-p5-lr5e-4-s0", "grpo-p1-lr5e-4-s2"):
        assert f"test_attack_stays_neutralized[{case_id}]" in result.text
    assert not (workplace.folder / "reports").exists()
