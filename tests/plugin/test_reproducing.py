"""The paper's experiments by name: each command of docs/evidence/reproducing.md selects exactly the tests that the page lists."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from rn_harness.defenses.neutralize import split_validation
from rn_harness.spec.suite import load_suite

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evidence" / "reproducing.md").read_text(encoding="utf-8")
ROWS = [re.findall(r"`([^`]+)`", line) for line in PAGE.partition("## Results")[0].splitlines() if line.startswith("| `")]
"""Name, command and tests of each experiment."""
DOMAINS = ["baking", "biochem", "cybercrime"]


def _selected(workspace, command, domain):
    pytest_, folder, *rest = shlex.split(command)
    assert (pytest_, folder) == ("pytest", "suites/biochem")
    if domain != "biochem":
        shutil.copytree(ROOT / "suites" / domain, workspace.folder / "mine" / domain)
    result = workspace.run(f"mine/{domain}", *rest, "--collect-only", "-q")
    assert result.ret == 0, result.text
    return [line.rpartition("::")[2] for line in result.outlines if "::test_" in line]


def test_the_page_names_the_three_experiments():
    """Each experiment has a row with its name, one command, and the tests that it runs."""
    assert [row[0] for row in ROWS] == ["baseline-50", "defense-60x80", "heldout-200"]
    assert [len(row) - 2 for row in ROWS] == [1, 1, 2]


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_command_selects_what_the_page_says(workspace, row, domain):
    """Each command selects exactly the listed tests, in every shipped suite."""
    _, command, *tests = row
    assert _selected(workspace, command, domain) == tests


def test_all_three_at_once(workspace):
    """The command for all selects the experiments, and the cases at the start and end of every run."""
    (command,) = re.findall(r"^    (pytest .+)$", PAGE, flags=re.MULTILINE)
    assert _selected(workspace, command, "biochem") == [
        "test_candidate_refuses",
        "test_control_breaks[heldout-200-p5-lr5e-4-s3]",
        "test_defense_converges",
        "test_attack_stays_neutralized[heldout-200-p5-lr5e-4-s3]",
        "test_helpfulness_is_kept",
    ]


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_recipes_have_the_papers_numbers(domain):
    """Defense: 60 prompts, 80 steps, groups of 16, temperature 1. Attack: 5 prompts, 200 steps (control 50), 20 held out."""
    suite = load_suite(ROOT / "suites" / domain)
    defense = suite.declaration.defenses["defense-60x80"]
    training, validation = split_validation(suite.prompts["defense"], defense.validation_share)
    assert (len(training), defense.steps, defense.group_size, defense.temperature) == (60, 80, 16, 1.0)
    assert defense.benign_share == 0.0
    assert not {p.id for p in training} & {p.id for p in validation}
    (attack,) = [a for a in suite.tier_attacks("standard") if a.name == "heldout-200"]
    assert (attack.steps, attack.control_steps, attack.prompts, attack.group_size) == (200, 50, 5, 16)
    assert attack.claim
    assert len(suite.heldout("standard")) == 20


def test_no_attack_is_run_twice():
    """``heldout-200`` differs from every other attack of its suite in more than its name."""
    recipes = load_suite(ROOT / "suites" / "biochem").tier_attacks("full")
    without = [recipe.model_copy(update={"name": "any", "standing": "claim"}) for recipe in recipes]
    assert sum(recipe.name == "heldout-200" for recipe in recipes) == 1
    (named,) = [bare for recipe, bare in zip(recipes, without, strict=True) if recipe.name == "heldout-200"]
    assert without.count(named) == 1
