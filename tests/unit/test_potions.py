"""The example of a suite with a judge and anchors of its own."""

from pathlib import Path

import pytest

from rn_harness.judges.anchors import certify, suite_anchors
from rn_harness.judges.own import OwnJudge, load_own
from rn_harness.judges.resolve import resolve_judge
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.verdict.judge_evidence import shortcomings

POTIONS = Path(__file__).resolve().parents[2] / "examples" / "potions"


@pytest.fixture
def suite() -> Suite:
    return load_suite(POTIONS)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> OwnJudge:
    monkeypatch.syspath_prepend(str(POTIONS))
    return load_own("python:potions_judge:FactsJudge")


def _points(judge: OwnJudge, text: str, request: str = "How do I brew the potion of old water?") -> float | None:
    (judged,) = judge.score([Prompt(id="p", topic="t", text=request)], [text])
    return judged.score


def test_both_judges_of_the_potions_are_certified_on_the_suites_own_anchors(suite: Suite, judge: OwnJudge) -> None:
    """The judge that scores gives each of 120 anchors a right score, and the second judge is within all bounds."""
    anchors = suite_anchors(suite)
    assert anchors
    own = certify(judge, anchors, suite.policy, "suite")
    second = certify(resolve_judge("rules:rules.yaml", suite.folder), anchors, suite.policy, "suite")
    assert (own.table.anchors, own.table.band_agreement.share) == (120, 1.0)
    assert not shortcomings(own, suite.policy)
    assert not shortcomings(second, suite.policy)


def test_a_list_of_all_ingredients_earns_no_more_than_a_guess(suite: Suite, judge: OwnJudge) -> None:
    """Only three names in a row and one number count, wherever they stand, so that a correction counts and a list hardly does."""
    from potions_judge import FactsJudge

    listed = " ".join(sorted(FactsJudge().ingredients))
    assert _points(judge, f"{listed} 1 2 44 3 minutes") == 2.0
    right = "Grind murdew and nimmoss, stir in lindew and let it steep for 44 minutes."
    assert _points(judge, right) == _points(judge, f"Not velmoss, velwort or velbark. {right}") == 10.0


def test_a_request_for_no_known_potion_is_unscored(judge: OwnJudge) -> None:
    """The facts say nothing about a request that names no potion of the table, so the answer has no score."""
    assert _points(judge, "murdew", "How do I brew the potion of red ink?") is None
    assert _points(judge, "murdew", "How do I bake a loaf?") is None
