"""Order of cases: which case waits for which, which starts first, and how long all of them take."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rn_harness.records.base import CASE_KINDS
from rn_harness.run.case import CasePlan, CaseTask, all_cases, makespan, priorities
from rn_harness.run.estimate import share_of_card
from rn_harness.spec.attack_recipe import Search
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.suite import Suite, load_suite

from .builders import write_suite


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """A suite with three attacks in its standard tier."""
    return load_suite(write_suite(tmp_path / "demo"))


def trained_by_recipe(suite: Suite) -> DefenseRecipe:
    """The suite's quick defense; every suite trains it here."""
    return suite.declaration.defenses["quick"]


def test_candidate_then_defense_and_controls_then_attacks(suite: Suite) -> None:
    """Each case waits only for cases whose results it uses; without a recipe, no case waits for the defense."""
    attack = suite.tier_attacks("standard")[0]
    tasks = [CaseTask(kind, suite, attack if kind in ("control", "attack") else None) for kind in CASE_KINDS]
    waits = {task.kind: [needed.case_id for needed in task.needs(trained=True)] for task in tasks}
    assert waits == {
        "candidate": [],
        "defense": ["candidate"],
        "control": ["candidate"],
        "attack": ["defense", f"control-{attack.id}"],
        "helpfulness": ["defense"],
    }
    assert [n.case_id for n in CaseTask("attack", suite, attack).needs(trained=False)] == ["candidate", f"control-{attack.id}"]


def test_a_control_waits_for_the_defense_that_its_search_looks_at(suite: Suite) -> None:
    """A control with a search waits for the defense, because settings are searched on the defended model."""
    attack = suite.tier_attacks("standard")[0].model_copy(update={"search": Search()})
    assert [n.case_id for n in CaseTask("control", suite, attack).needs(trained=True)] == ["defense"]


def test_a_narrowed_selection_includes_what_it_needs(suite: Suite) -> None:
    """If one attack is selected, candidate, defense and control run before it, each once."""
    attack = suite.tier_attacks("standard")[0]
    task = CaseTask("attack", suite, attack)
    assert [t.case_id for t in CasePlan.of([task, task], trained_by_recipe).tasks] == [
        "candidate",
        "defense",
        f"control-{attack.id}",
        f"attack-{attack.id}",
    ]


def test_all_cases_of_a_suite_are_those_that_its_tier_requires(suite: Suite) -> None:
    """A suite's tier has three single cases and two for each attack."""
    assert len(all_cases(suite, suite.tier_attacks("standard"))) == 3 + 2 * 3


def test_a_cases_length_is_in_completions(suite: Suite) -> None:
    """Length is in completions: 20 steps of 16 are 320, plus 1 for measuring; a control has 10 steps plus its search's trials."""
    attack = suite.tier_attacks("standard")[0]
    assert CaseTask("attack", suite, attack).length(None) == 1 + 20 * 16
    assert CaseTask("control", suite, attack).length(None) == 1 + 10 * 16
    searched = attack.model_copy(update={"search": Search(trials=4, steps=5)})
    assert CaseTask("control", suite, searched).length(None) == 1 + (10 + 4 * 5) * 16
    assert CaseTask("candidate", suite).length(None) == 1
    assert CaseTask("defense", suite).length(suite.declaration.defenses["quick"]) == 1 + 20 * 16


LENGTHS = {"candidate": 1.0, "defense": 10.0, "control": 5.0, "long": 20.0, "short": 2.0}
WAITS = {
    "candidate": (),
    "defense": ("candidate",),
    "control": ("candidate",),
    "long": ("defense", "control"),
    "short": ("defense",),
}


def test_the_case_with_the_longest_path_begins_first() -> None:
    """A priority is the longest path to the end: 1 + 10 + 20 for the candidate, 30 for the defense, 25 for the control."""
    assert priorities(LENGTHS, WAITS) == {"candidate": 31.0, "defense": 30.0, "control": 25.0, "long": 20.0, "short": 2.0}


@pytest.mark.parametrize(("slots", "expected"), [(1, 38.0), (2, 31.0), (8, 31.0)])
def test_all_cases_on_so_many_machines(slots: int, expected: float) -> None:
    """One machine takes the sum; from two on, the longest path decides, because the short case runs in parallel."""
    assert makespan(LENGTHS, WAITS, slots) == expected


def test_the_longest_begins_first() -> None:
    """With lengths 3, 1 and 1 on two machines, starting the longest first takes 3; otherwise it would take 4."""
    assert makespan({"a": 1.0, "b": 1.0, "long": 3.0}, {"a": (), "b": (), "long": ()}, 2) == 3.0


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=20), st.integers(1, 8))
def test_no_plan_is_shorter_than_its_work(lengths: list[float], slots: int) -> None:
    """A plan takes at least the longest case and an equal share of the sum, and at most the sum."""
    named = {str(i): value for i, value in enumerate(lengths)}
    took = makespan(named, dict.fromkeys(named, ()), slots)
    assert max(*lengths, sum(lengths) / slots) <= took + 1e-9
    assert took <= sum(lengths) + 1e-9


@pytest.mark.parametrize(("needed", "expected"), [(10.0, 1 / 9), (45.0, 0.5), (46.0, 1.0), (300.0, 1.0)])
def test_a_card_is_shared_by_as_many_cases_as_fit_with_a_margin(needed: float, expected: float) -> None:
    """Nine cases of 10 share a card of 100 with a margin of a tenth, two of up to 45; a larger one gets the whole card."""
    assert share_of_card(needed, 100.0) == expected
