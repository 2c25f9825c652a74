"""Computed time on a card: each kind of work by hand, what bounds it, and a run on one card and on many."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rn_harness.judges.rubric import build_question
from rn_harness.models.memory import Shape
from rn_harness.run.case_cost import SHRINKS, CaseCosts, card_hours, question_tokens
from rn_harness.run.cost import LAUNCH_S, Card, Cost, Reader, Setting
from rn_harness.spec.forms import samples_in
from rn_harness.spec.levels import EXPLORE
from rn_harness.spec.suite import Suite, load_suite

ROOT = Path(__file__).parents[2]
SHAPE = Shape(parameters=10**9, layers=10, hidden=100, intermediate=400, queries=100, keys=50, vocabulary=1000)
CARD = Card("made up", bandwidth=2e12, rate=5e14)
"""1e12 bytes and 2e14 operations per second are reached."""
JUDGE = Reader("judge", parameters=4e9, question=500, reply=10)
SETTING = Setting(card=CARD, shape=SHAPE, number=2, prompt=100, judges={"judge": JUDGE, "reward": JUDGE})


@pytest.fixture(scope="module")
def suite() -> Suite:
    """A shipped suite."""
    return load_suite(ROOT / "suites" / "biochem")


def test_sampling_waits_for_the_slowest_of_its_parts() -> None:
    """A token of few rows waits for Python, without it for the weights, and of many rows for the products."""
    few, vllm, many = Cost(), Cost(), Cost()
    few.sample(SETTING, "t", 4, 20)
    # A pass over 4 prompts of 100 tokens: 2 * 1e9 * 400 / 2e14 = 4 ms, below 10 layers' launch of 5.5 ms; then 20 tokens.
    assert few.terms == pytest.approx({"t": 21 * 10 * LAUNCH_S})
    assert few.limits == pytest.approx({"launching from Python": 21 * 10 * LAUNCH_S})
    vllm.sample(dataclasses.replace(SETTING, vllm=True), "t", 4, 20, rollouts=True)
    # 2e9 bytes of weights, and of 4 rows 110 tokens' keys and values of 10 layers and 50 numbers in 2 bytes, at 1e12 a second.
    cache = 4 * 110 * 2 * 10 * 50 * 2
    assert vllm.limits == pytest.approx({"launching from Python": 10 * LAUNCH_S, "memory bandwidth": 20 * (2e9 + cache) / 1e12})
    many.sample(dataclasses.replace(SETTING, prompt=1), "t", 2 * 256, 20)
    # Two calls of 256 rows: 2 * 1e9 * 256 / 2e14 = 2.56 ms a token is less than Python's 5.5 ms; not so at a tenth of the rate.
    assert many.limits == pytest.approx({"launching from Python": 2 * 21 * 10 * LAUNCH_S})
    slow = dataclasses.replace(SETTING, prompt=1, card=dataclasses.replace(CARD, rate=5e13))
    (bound := Cost()).sample(slow, "t", 2 * 256, 20)
    assert bound.limits == pytest.approx({"arithmetic": 2 * 21 * 2e9 * 256 / 2e13})


def test_a_judge_reads_its_question_and_the_answer() -> None:
    """A judge's time is that of its question and the answer in one pass, and of its reply in batches of sixteen."""
    cost = Cost()
    cost.judge(SETTING, "t", "judge", 32, 100)
    assert cost.read == {"judge": 32 * 600}
    # 2 * 4e9 operations for each of 19,200 tokens at 2e14; 10 tokens of 2 batches, each of which reads 8e9 bytes at 1e12.
    assert cost.limits == pytest.approx({"arithmetic": 8e9 * 19_200 / 2e14, "memory bandwidth": 10 * 2 * 8e9 / 1e12})
    cost.judge(SETTING, "t", "second", 32, 100)
    assert set(cost.read) == {"judge"}


def test_a_judge_on_a_server_takes_tokens_and_no_time() -> None:
    """A judge without weights on the card reads as many tokens, in no time of the card."""
    served = dataclasses.replace(SETTING, judges={"judge": dataclasses.replace(JUDGE, parameters=0.0)})
    cost = Cost()
    cost.judge(served, "t", "judge", 32, 100)
    assert (cost.read, cost.seconds) == ({"judge": 32 * 600}, 0.0)


def test_one_card_takes_the_sum_and_many_take_the_longest_chain(suite: Suite) -> None:
    """One card runs all cases in a row; with a card for each case the run is the longest chain, and says so."""
    part = CaseCosts(SETTING, suite, "standard", suite.declaration.defenses["anchored"])
    one, many = card_hours([part], 1), card_hours([part], 64)
    lengths = {name: cost.seconds for name, cost in part.costs.items()}
    assert (one.wall, one.busy) == pytest.approx((SETTING.start + sum(lengths.values()),) * 2)
    # Candidate, then the defense or the longest control, then the attack; the control of a search is in no standard tier.
    chains = [
        lengths["biochem: candidate"] + max(lengths["biochem: defense"], lengths[name.replace(": attack", ": control")]) + seconds
        for name, seconds in lengths.items()
        if ": attack" in name
    ]
    assert many.wall == many.longest == pytest.approx(SETTING.start + max(chains))
    assert (one.saturated, many.saturated) == ("arithmetic", "the longest chain of cases")
    assert many.busy == pytest.approx(len(lengths) * SETTING.start + sum(lengths.values()))
    assert many.dollars(3.0) == pytest.approx(64 * many.wall / 3600 * 3.0)


def test_each_kind_of_work_says_what_would_shrink_it(suite: Suite) -> None:
    """All kinds of work of all tiers and defenses have a sentence, and no sentence is of other work."""
    terms = set[str]()
    for name in ("anchored", "sft", "hardened", "deep-distilled"):
        terms |= card_hours([CaseCosts(SETTING, suite, "full", suite.declaration.defenses[name])], 1).total.terms.keys()
    with_second = dataclasses.replace(SETTING, judges={**SETTING.judges, "second": JUDGE})
    terms |= card_hours([CaseCosts(with_second, suite, "full", None)], 1).total.terms.keys()
    assert terms == SHRINKS.keys()


@pytest.mark.parametrize("kind", ["control", "attack"])
def test_the_judge_reads_every_completion_of_a_checkpoint(suite: Suite, kind: Any) -> None:
    """Judged tokens of a plain attack equal those counted by hand: completions, planted anchors, rewards, further looks."""
    plain = next(a for a in suite.tier_attacks("smoke") if not a.aids)
    part = CaseCosts(SETTING, suite, "smoke", None)
    task = next(t for t in part.tasks.values() if t.attack == plain and t.kind == kind)
    read = part.of(task).read
    # 20 prompts of 4 completions and 8 planted anchors at each checkpoint; a broken control's 80 are judged five times more.
    answers, points = 80, task.steps // 10 + 1
    tokens = 0.53 * 24 if kind == "control" else 16
    first, later = (500 + 16) * (answers + 8), (500 + tokens) * (answers * (6 if kind == "control" else 1) + 8)
    assert read["judge"] == pytest.approx(first + (points - 1) * later)
    assert read["reward"] == pytest.approx(task.steps * 16 * (500 + tokens))


def test_answers_that_must_not_end_have_the_length_of_their_limit(suite: Suite) -> None:
    """The judge reads whole answers in the form without end tokens, and refusals in another greedy form."""
    read = {}
    for form in ("capitals", "unending"):
        policy = suite.policy.model_copy(update={"forms": (form,)})
        declaration = suite.declaration.model_copy(update={"policy": policy})
        part = CaseCosts(SETTING, suite.model_copy(update={"declaration": declaration}), "smoke", None)
        (task,) = (task for task in part.tasks.values() if task.kind == "defense")
        read[form] = part.of(task).read["judge"]
    rows = 20 * samples_in("unending", suite.policy.samples)
    assert samples_in("capitals", suite.policy.samples) == samples_in("unending", suite.policy.samples)
    assert read["unending"] - read["capitals"] == pytest.approx(rows * (suite.policy.max_whole_tokens - SETTING.refusal))


def test_explorers_sample_long_answers(suite: Suite) -> None:
    """Rollouts of an attack that explores a defended model are as long as the limit, those of a plain one as a refusal."""
    part = CaseCosts(SETTING, suite, "standard", None)
    seconds = {
        (task.attack.attacker_level == EXPLORE): cost.terms["rollouts"]
        for name, cost in part.costs.items()
        if (task := part.tasks[name]).attack and task.kind == "attack" and task.attack.family == "grpo"
    }
    # 16 rows of 100 prompt tokens take 16 ms before the first token, in both.
    assert seconds[True] - seconds[False] == pytest.approx(200 * (24 - 16) * 10 * LAUNCH_S)


def test_the_length_of_a_question_is_that_of_its_text(suite: Suite) -> None:
    """A judge's question about the longest held-out prompt has a token for four characters, and a chat template.

    The part before the request counts once in questions that are asked together.
    """
    longest = max((p.text for p in suite.prompts["heldout"]), key=len)
    (turn,) = build_question(suite.declaration.forbidden, longest, "")
    text = turn["content"]
    assert question_tokens(suite, 1) == round(len(text) / 4) + 64
    before = text.index("<request-")
    assert before > len(text) / 2
    assert question_tokens(suite, 4) == round((len(text) - before + before / 4) / 4) + 64


def test_recorded_lengths_are_those_of_the_model() -> None:
    """The share of the limit that answers have is the one that docs/evidence/performance.json has, of 24 tokens."""
    stored = json.loads((ROOT / "docs" / "evidence" / "performance.json").read_text(encoding="utf-8"))
    tokens = [of["measured"]["undefended"]["ours"]["completion_tokens"] for name, of in stored.items() if "overhead" in name]
    assert SETTING.answer_share == pytest.approx(sum(tokens) / len(tokens) / 24, abs=0.01)


def test_the_page_is_of_the_stored_numbers() -> None:
    """Both pages on scale have the hours of docs/evidence/simulated.json, which says that none is measured."""
    stored = json.loads((ROOT / "docs" / "evidence" / "simulated.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "evidence" / "scale.md").read_text(encoding="utf-8")
    standard, full = (stored["tiers"][f"biochem {tier}"]["on"]["1"]["card_hours"] for tier in ("standard", "full"))
    assert not stored["measured_on_a_card"]
    assert f"| biochem standard | 45 | {standard:.1f} |" in page
    assert f"| biochem full | 185 | {full:.1f} |" in page
    assert f"takes {standard:.0f} card hours for the standard tier and {full:.0f} for" in " ".join(
        (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").split()
    )
