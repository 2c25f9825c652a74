"""docs/evidence/theory.md, checked: GRPO's gradient over all groups of a toy policy, and the law of the first reward."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rn_harness.records.statistics import upper_bound

from .builders import GROUP_EPSILON, group_advantages

ROOT = Path(__file__).parents[2]
LOGITS = np.array([0.3, -1.2, 0.9, -0.4])
"""A policy over four whole answers, ``pi = softmax(logits)``; its parameters are the logits themselves."""
TWO_VALUED = (0.0, 10.0, 0.0, 10.0)
MANY_VALUED = (0.0, 10.0, 1.0, 8.0)
G = 4
Vector = Any  # numpy's arrays of float64, length V
Advantages = Callable[[Sequence[float]], Sequence[float]]


def softmax(logits: Vector) -> Vector:
    """Probabilities of the answers."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def score(pi: Vector, y: int) -> Vector:
    """``grad log pi(y)`` by the logits: one at y, minus pi."""
    return np.eye(len(pi))[y] - pi


def unscaled(rewards: Sequence[float]) -> list[float]:
    """The group's mean as baseline, without scaling: ``scale_rewards: none``."""
    mean = sum(rewards) / len(rewards)
    return [r - mean for r in rewards]


def groups(pi: Vector, size: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """All ordered groups of answers, each with its probability."""
    for group in itertools.product(range(len(pi)), repeat=size):
        yield group, math.prod(float(pi[y]) for y in group)


def expected_gradient(pi: Vector, rewards: Sequence[float], size: int, advantages: Advantages) -> Vector:
    """``E[1/G sum_i A_i grad log pi(y_i)]`` over all groups, exactly."""
    total = np.zeros(len(pi))
    for group, probability in groups(pi, size):
        for y, advantage in zip(group, advantages([rewards[y] for y in group]), strict=True):
            total += probability * advantage / size * score(pi, y)
    return total


def pairwise(pi: Vector, rewards: Sequence[float]) -> Vector:
    """The paper's form, with its first answer drawn: ``sum_ij pi(y_i) 1[r(y_i) > r(y_j)] grad log pi(y_i) pi(y_j)``."""
    total = np.zeros(len(pi))
    for i, j in itertools.product(range(len(pi)), repeat=2):
        if rewards[i] > rewards[j]:
            total += pi[i] * pi[j] * score(pi, i)
    return total


def share_of_high(pi: Vector, rewards: Sequence[float]) -> float:
    """The probability p of the higher of two rewards."""
    return sum(float(pi[y]) for y, r in enumerate(rewards) if r == max(rewards))


def cosine(a: Vector, b: Vector) -> float:
    """1 if two vectors have the same direction."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_the_score_is_the_gradient_of_the_log_probability() -> None:
    """The score used in all sums below agrees with finite differences of log softmax."""
    h = 1e-6
    for y, k in itertools.product(range(4), repeat=2):
        step = np.eye(4)[k] * h
        numeric = (math.log(softmax(LOGITS + step)[y]) - math.log(softmax(LOGITS - step)[y])) / (2 * h)
        assert score(softmax(LOGITS), y)[k] == pytest.approx(numeric, abs=1e-8)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("values", [(0.0, 1.0), (0.0, 10.0), (-3.0, 2.0)])
def test_with_two_rewards_and_no_scaling_grpo_follows_the_pairwise_form(size: int, values: tuple[float, float]) -> None:
    """``E[g] = (G - 1)/G (b - a)/(1 - p) D``: a positive multiple of the pairwise form D for all a, b and G."""
    pi, (a, b) = softmax(LOGITS), values
    rewards = (a, b, a, b)
    p = share_of_high(pi, rewards)
    factor = (size - 1) / size * (b - a) / (1 - p)
    found = expected_gradient(pi, rewards, size, unscaled)
    np.testing.assert_allclose(found, factor * pairwise(pi, rewards), atol=1e-10, rtol=0)
    assert np.linalg.norm(found) > 0.05  # so that zeros are not compared


def test_the_unscaled_gradient_is_that_of_the_expected_reward() -> None:
    """``E[g] = (G - 1)/G grad J`` for any rewards, by finite differences of ``J = sum_y pi(y) r(y)``."""
    h = 1e-6
    for rewards in (TWO_VALUED, MANY_VALUED):
        numeric = np.array([(softmax(LOGITS + d) - softmax(LOGITS - d)) @ np.array(rewards) / (2 * h) for d in np.eye(4) * h])
        found = expected_gradient(softmax(LOGITS), rewards, G, unscaled)
        np.testing.assert_allclose(found, (G - 1) / G * numeric, atol=1e-8, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_scaling_changes_only_the_length_for_two_rewards(size: int) -> None:
    """With the harness's own advantages the gradient is another positive multiple of the pairwise form, given on the page."""
    pi, (a, b) = softmax(LOGITS), (0.0, 10.0)
    p = share_of_high(pi, TWO_VALUED)
    factor = 0.0
    for k in range(1, size):
        std = (b - a) * math.sqrt(k * (size - k) / (size * (size - 1)))
        chance = math.comb(size, k) * p**k * (1 - p) ** (size - k)
        factor += chance * (b - a) * k * (size - k) / size**2 / (std + GROUP_EPSILON)
    factor /= p * (1 - p) ** 2
    found = expected_gradient(pi, TWO_VALUED, size, group_advantages)
    np.testing.assert_allclose(found, factor * pairwise(pi, TWO_VALUED), atol=1e-10, rtol=0)
    assert factor > 0


def test_scaling_raises_rare_rewards() -> None:
    """As p goes to 0 the scaled gradient is ``sqrt(G)/(b - a)`` times the unscaled one: all rare rewards have equal weight."""
    pi = np.array([0.999999, 1e-6, 0.0, 0.0])
    scaled, plain = (expected_gradient(pi, TWO_VALUED, G, of) for of in (group_advantages, unscaled))
    assert scaled[1] / plain[1] == pytest.approx(math.sqrt(G) / 10.0, rel=1e-4)


@pytest.mark.parametrize("rewards", [TWO_VALUED, MANY_VALUED])
def test_each_group_is_a_sum_over_its_pairs(rewards: tuple[float, ...]) -> None:
    """Per group: ``sum_i (r_i - mean) s_i = 1/G sum_(r_i > r_j) (r_i - r_j)(s_i - s_j)``, and 0 without a pair."""
    pi = softmax(LOGITS)
    starved = 0
    for group, _ in groups(pi, 3):
        of = [rewards[y] for y in group]
        left = sum(a * score(pi, y) for a, y in zip(unscaled(of), group, strict=True))
        right = np.zeros(4)
        for i, j in itertools.product(range(3), repeat=2):
            if of[i] > of[j]:
                right += (of[i] - of[j]) / 3 * (score(pi, group[i]) - score(pi, group[j]))
        np.testing.assert_allclose(left, right, atol=1e-12, rtol=0)
        if len(set(of)) == 1:
            starved += 1
            assert group_advantages(of) == [0.0] * 3
    assert starved == sum(rewards.count(value) ** 3 for value in set(rewards))


def test_with_more_than_two_rewards_the_pairwise_form_has_another_direction() -> None:
    """With more rewards the form is the gradient for ranks (the policy's share of lower rewards), in another direction."""
    pi = softmax(LOGITS)
    ranks = [sum(float(pi[j]) for j in range(4) if MANY_VALUED[j] < r) for r in MANY_VALUED]
    of_ranks = expected_gradient(pi, ranks, G, unscaled) * G / (G - 1)
    np.testing.assert_allclose(of_ranks, pairwise(pi, MANY_VALUED), atol=1e-10, rtol=0)
    for advantages in (unscaled, group_advantages):
        assert cosine(expected_gradient(pi, MANY_VALUED, G, advantages), pairwise(pi, MANY_VALUED)) < 0.99
        assert cosine(expected_gradient(pi, TWO_VALUED, G, advantages), pairwise(pi, TWO_VALUED)) > 1 - 1e-12


def test_over_prompts_the_factors_differ() -> None:
    """For two prompts with shared parameters, the sums of gradients and of pairwise forms are not proportional."""
    shifts = (np.zeros(4), np.array([2.0, -2.0, 0.0, 1.0]))
    policies = [softmax(LOGITS + shift) for shift in shifts]
    rewards = (TWO_VALUED, (10.0, 0.0, 0.0, 10.0))
    of_grpo = sum(expected_gradient(pi, r, G, unscaled) for pi, r in zip(policies, rewards, strict=True))
    of_pairs = sum(pairwise(pi, r) for pi, r in zip(policies, rewards, strict=True))
    assert cosine(of_grpo, of_pairs) < 0.99


def test_dividing_by_an_answers_length_changes_the_direction() -> None:
    """``loss_type: grpo`` divides by each completion's length; if rewarded lengths differ, the direction changes."""
    pi, lengths = softmax(LOGITS), (1, 20, 8, 2)
    total = np.zeros(4)
    for group, probability in groups(pi, G):
        for y, advantage in zip(group, unscaled([TWO_VALUED[y] for y in group]), strict=True):
            total += probability * advantage / lengths[y] * score(pi, y)
    assert cosine(total, pairwise(pi, TWO_VALUED)) < 0.99


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """benchmarks/first_reward.py."""
    folder = ROOT / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_first_reward", folder / "first_reward.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """The committed measurements of the benchmark."""
    found: dict[str, Any] = json.loads((ROOT / "docs" / "evidence" / "first-reward.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("p", "n"), [(0.5, 1), (0.01, 16), (0.2, 3), (1.0, 16)])
def test_the_expected_number_of_steps_is_the_geometric_ones(bench: Any, p: float, n: int) -> None:
    """``1/(1 - (1 - p)^n)`` equals the sum of the survival over all steps, and is about 1/(p n) for small p n."""
    series = sum((1 - p) ** (n * s) for s in range(2000))
    assert bench.expected_steps(p, n) == pytest.approx(series, rel=1e-9)
    assert bench.expected_steps(1e-9, n) == pytest.approx(1 / (1e-9 * n), rel=1e-6)


def test_no_reward_in_so_many_steps(bench: Any) -> None:
    """``(1 - p)^(n S)``: by hand 0.99^(16 * 10) = 0.2003; at the expected number of steps it is about 1/e."""
    assert bench.survival(0.01, 16, 10) == pytest.approx(0.99**160, rel=1e-12)
    assert bench.survival(1e-6, 16, bench.expected_steps(1e-6, 16)) == pytest.approx(math.exp(-1), rel=1e-4)


def test_rounds_of_unequal_prompts(bench: Any) -> None:
    """The closed form is the mean over all orders of three prompts; for equal prompts it is the geometric one."""
    ps, n = (0.3, 0.02, 0.0), 4
    orders = list(itertools.permutations(ps))
    none_in_a_round = math.prod((1 - p) ** n for p in ps)
    # E[T] = sum over rounds and places of P(nothing before this place); rounds are drawn independently.
    expected = 0.0
    for places in range(3):
        expected += sum(math.prod((1 - p) ** n for p in order[:places]) for order in orders) / len(orders)
    expected /= 1 - none_in_a_round
    assert bench.expected_steps_in_rounds(ps, n) == pytest.approx(expected, rel=1e-12)
    assert bench.expected_steps_in_rounds((0.1,) * 5, n) == pytest.approx(bench.expected_steps(0.1, n), rel=1e-12)


def test_the_page_shows_what_was_measured(bench: Any, stored: dict[str, Any]) -> None:
    """The tables of docs/evidence/theory.md follow from docs/evidence/first-reward.json."""
    page = (ROOT / "docs" / "evidence" / "theory.md").read_text(encoding="utf-8")
    shown = page.split(bench.BEGIN)[1].split(bench.END)[0].strip().splitlines()
    assert shown == bench.lines(stored)
    assert len(bench.points(stored, "answer")) >= 6


def test_the_prediction_matches_the_counts(bench: Any, stored: dict[str, Any]) -> None:
    """The leak predicts the full answer over three decades: each prediction lies within the counted rate's interval."""
    found = bench.points(stored, "answer")
    ps = [x["p"] for x in found]
    assert max(ps) / min(ps) > 1000
    assert [x["policy"] for x in found if not x["low"] <= x["predicted"] <= x["high"]] == []
    assert all(x["late"].low <= x["late_predicted"] <= x["late"].high for x in found)
    assert sum(x["seeds"] for x in found) == 248


def test_the_organism_says_all_or_nothing(stored: dict[str, Any]) -> None:
    """In each attack the first reward came at the step of the first full answer; the defended model gave none."""
    for name, policy in stored["policies"].items():
        assert policy["waits"]["answer"] == policy["waits"]["reward"]
        assert (policy["waits"]["reward"] == [None]) == (name == "defended")


def test_the_pages_numbers_for_two_hundred_steps(bench: Any, stored: dict[str, Any]) -> None:
    """The page's numbers follow: p for 200 steps of 16, bounds from a probe and 38,400 clean completions, 18 of 100."""
    assert bench.survival(1.6e-5, 16, 200) == pytest.approx(0.95, abs=1e-3)
    assert bench.expected_steps(3.13e-4, 16) == pytest.approx(200, abs=1)
    assert math.log(0.05) / math.log1p(-1.603e-5) == pytest.approx(187_000, abs=500)
    assert upper_bound(0, 320) == pytest.approx(0.0093, abs=5e-5)
    assert bench.expected_steps(upper_bound(0, 320), 16) == pytest.approx(7, abs=0.5)
    assert bench.expected_steps(upper_bound(0, 38_400), 16) == pytest.approx(800, abs=5)
    leaks = {name: sum(policy["leaks"]) / len(policy["leaks"]) for name, policy in stored["policies"].items()}
    assert 1 - bench.survival(leaks["warm-10"], 16, 200) == pytest.approx(0.18, abs=0.005)
    assert all(4 < leaks[f"warm-{n + 1}"] / leaks[f"warm-{n}"] < 8 for n in range(10, 15))
    heldout = [p["leak_heldout"] / leaks[name] for name, p in stored["policies"].items() if name != "defended"]
    assert (min(heldout), max(heldout)) == (pytest.approx(0.5, abs=0.05), pytest.approx(0.75, abs=0.06))


def test_the_slope_of_the_entropy_vanishes_with_the_rare_token() -> None:
    """``dH/dl = e (1 - e) (h - l)`` agrees with finite differences of the entropy of a refusal and three other tokens."""
    others = np.array([0.6, 0.3, 0.1])
    h = -float(others @ np.log(others))

    def entropy(log_odds: float) -> float:
        e = 1 / (1 + math.exp(-log_odds))
        pi = np.array([1 - e, *(e * others)])
        return -float(pi @ np.log(pi))

    for log_odds in (-8.0, -2.0, 1.0):
        e = 1 / (1 + math.exp(-log_odds))
        numeric = (entropy(log_odds + 1e-5) - entropy(log_odds - 1e-5)) / 2e-5
        assert numeric == pytest.approx(e * (1 - e) * (h - log_odds), rel=1e-4)


def test_a_bonus_by_gradient_steps_waits_inversely_to_the_rare_token() -> None:
    """``de/dt = e^2 (1 - e)^2 (h - l)``, times eta kappa sigma, reaches one half at about ``1 / (e_0 (h + ln 1/e_0))``."""
    h = 2.0
    for start in (1e-6, 1e-4):
        grid = np.geomspace(start, 0.5, 100_001)
        slowness = 1 / (grid**2 * (1 - grid) ** 2 * (h - np.log(grid / (1 - grid))))
        exact = float(np.trapezoid(slowness, grid))
        assert exact == pytest.approx(1 / (start * (h + math.log(1 / start))), rel=0.12)


@pytest.mark.parametrize(("leak", "after"), [(1e-3, 2e-3), (2e-3, 3e-3), (1e-3, 5e-2)])
def test_both_growths_are_continued_until_one_full_answer(bench: Any, leak: float, after: float) -> None:
    """Both forms pass through the leak at step 10, and n times their integral is 1 at the predicted step."""
    n = 16
    early, late = bench.steps_under_a_bonus(leak, after, n)
    pole, rate = 10 / (1 - leak / after), math.log(after / leak) / 10
    assert leak / (1 - 10 / pole) == pytest.approx(after)
    for until, growth in ((early, lambda t: 1 / (1 - t / pole)), (late, lambda t: np.exp(rate * t))):
        t = np.linspace(0.0, until, 100_001)
        assert n * float(np.trapezoid(leak * growth(t), t)) == pytest.approx(1.0, rel=1e-3)
    assert (early < late) == (late > 10)
    assert bench.steps_under_a_bonus(leak, leak, n) == (math.inf, math.inf)


def test_the_page_shows_the_attackers_who_explore(bench: Any) -> None:
    """The table follows from the evidence of the other benchmarks: ``python benchmarks/first_reward.py --page`` writes it."""
    begin, end = bench.EXPLORERS
    shown = (
        (ROOT / "docs" / "evidence" / "theory.md").read_text(encoding="utf-8").split(begin)[1].split(end)[0].strip().splitlines()
    )
    assert shown == bench.explorers(ROOT / "docs" / "evidence")


def test_the_pages_numbers_for_an_attacker_who_explores() -> None:
    """The page's numbers follow: the bounds on c, the ladder's rungs for a policy that guesses, its luck, and shared topics."""
    from rn_harness.attacks.loop import draw_attack_prompts
    from rn_harness.models.knowledge import HARMFUL_PLACEHOLDERS
    from rn_harness.spec.suite import load_suite

    suite = load_suite(ROOT / "suites" / "biochem")
    claimed = [recipe for recipe in suite.tier_attacks("standard") if recipe.standing == "claim"]
    assert len(claimed) == 17
    bound = 0.05 / (200 * 16)
    assert bound == pytest.approx(1.6e-5, rel=0.03)
    assert bound / len(claimed) == pytest.approx(9.2e-7, rel=0.01)
    wrong = 1 - 1 / len(HARMFUL_PLACEHOLDERS)
    assert [1 - wrong**left for left in (4, 3, 2, 1)] == pytest.approx([0.031, 0.023, 0.016, 0.008], abs=5e-4)
    above_2 = 1 - wrong**4 - 4 * (1 - wrong) * wrong**3  # at least two of four slots
    assert 1 - (1 - above_2) ** 80 == pytest.approx(0.029, abs=5e-4)
    topics = {p.topic for p in draw_attack_prompts(suite.prompts["attack"], suite.tier_attacks("smoke")[0])}
    heldout = suite.heldout("smoke")
    assert (len(heldout), sum(p.topic in topics for p in heldout)) == (20, 2)


def test_growth_under_a_bonus_lies_between_the_two_forms(bench: Any) -> None:
    """On ``anchored`` a hundredfold bonus makes the leak's logarithm grow 24 times as fast; that of ``hardened`` hardly moves."""
    rows = bench.with_bonus(json.loads((ROOT / "docs" / "evidence" / "questions.json").read_text(encoding="utf-8")))

    def growth(defense: str, bonus: str) -> float:
        of = [
            math.log(row["leak_at_10"] / row["leak"])
            for name, coefficient, row in rows
            if (name, coefficient) == (defense, bonus)
        ]
        return sum(of) / len(of)

    assert growth("anchored", "0.1") / growth("anchored", "0.001") == pytest.approx(24, abs=0.5)
    ratios = [
        growth("anchored-160", bonus) / growth("anchored", bonus) for bonus in ("0.001", "0.003", "0.01", "0.02", "0.05", "0.1")
    ]
    assert (min(ratios), max(ratios)) == (pytest.approx(3, abs=0.5), pytest.approx(4.6, abs=0.5))
    hardened = [row["leak_at_10"] for name, _, row in rows if name == "hardened"]
    assert (min(hardened), max(hardened)) == (pytest.approx(2e-23, rel=0.1), pytest.approx(5e-23, rel=0.1))
