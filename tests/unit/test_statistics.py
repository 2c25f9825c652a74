"""Intervals, bounds, tests and agreement, compared with independent formulas."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import scipy.stats

from rn_harness.records.statistics import (
    Interval,
    clopper_pearson,
    clustered_upper_bound,
    excess_p,
    rank_correlation,
    upper_bound,
    weighted_kappa,
)

COUNTS = st.integers(0, 200).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


def by_beta(count: int, total: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's bounds as quantiles of the beta distribution, which the harness does not use."""
    tail = (1.0 - confidence) / 2
    low = 0.0 if count == 0 else float(scipy.stats.beta.ppf(tail, count, total - count + 1))
    high = 1.0 if count == total else float(scipy.stats.beta.ppf(1.0 - tail, count + 1, total - count))
    return low, high


@hypothesis.given(COUNTS, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_clopper_pearson_is_the_beta_quantile(case: tuple[int, int], confidence: float) -> None:
    """The exact interval equals the quantiles of the beta distribution."""
    count, total = case
    hypothesis.assume(total > 0)
    assert clopper_pearson(count, total, confidence) == pytest.approx(by_beta(count, total, confidence), abs=1e-9)
    interval = Interval(count=count, total=total)
    assert (interval.low, interval.share, interval.high) == pytest.approx(
        (by_beta(count, total, 0.95)[0], count / total, by_beta(count, total, 0.95)[1]), abs=1e-9
    )


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # 0 events: high = 1 - 0.025^(1/n); all events: low = 0.025^(1/n).
        (0, 20, 0.0, 1 - 0.025 ** (1 / 20)),
        (20, 20, 0.025 ** (1 / 20), 1.0),
        (0, 1, 0.0, 0.975),
        (1, 1, 0.025, 1.0),
        # One of two: p^2 = 0.025 for the lower bound of "at least one" by symmetry: 1 - sqrt(0.975), sqrt(0.975).
        (1, 2, 1 - 0.975**0.5, 0.975**0.5),
    ],
)
def test_clopper_pearson_by_hand(count: int, total: int, low: float, high: float) -> None:
    """The exact interval equals the closed form where there is one."""
    assert clopper_pearson(count, total) == pytest.approx((low, high), abs=1e-9)


def test_without_trials_nothing_is_known() -> None:
    """Without trials the interval is 0 to 1."""
    interval = Interval(count=0, total=0)
    assert (interval.low, interval.high, interval.total) == (0.0, 1.0, 0)


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (0, -1), (1, 0)])
def test_impossible_count_is_refused(count: int, total: int) -> None:
    """A count below 0 or above its total is refused with both numbers."""
    with pytest.raises(ValueError, match=f"count={count} total={total}"):
        clopper_pearson(count, total)
    with pytest.raises(ValueError, match=r"greater than or equal to 0|a count lies within"):
        Interval(count=count, total=total)


@hypothesis.given(COUNTS)
def test_interval_holds_its_share(case: tuple[int, int]) -> None:
    """A share lies within its interval, the interval within 0 and 1, and the complement's interval is the mirror image."""
    count, total = case
    hypothesis.assume(total > 0)
    interval, mirror = (Interval(count=n, total=total) for n in (count, total - count))
    assert 0.0 <= interval.low <= interval.share <= interval.high <= 1.0
    assert (mirror.low, mirror.high) == pytest.approx((1 - interval.high, 1 - interval.low), abs=1e-9)


@pytest.mark.parametrize(
    ("total", "bound"),
    [
        (20, 0.1391),  # 1 - 0.05^(1/20) = 1 - exp(-2.99573 / 20) = 1 - 0.86089
        (60, 0.0487),  # 1 - exp(-2.99573 / 60) = 1 - 0.95129
        (1, 0.95),
    ],
)
def test_upper_bound_without_events(total: int, bound: float) -> None:
    """0 of 20 bounds a rate at 13.91 % with 95 % confidence."""
    assert upper_bound(0, total) == pytest.approx(bound, abs=5e-5)


def test_no_trial_bounds_nothing() -> None:
    """Without a trial the bound is 1."""
    assert upper_bound(0, 0) == 1.0


@hypothesis.given(st.integers(1, 500))
def test_bound_makes_no_event_improbable(total: int) -> None:
    """At the bound, no event has a probability of 5 %, and one more trial lowers the bound."""
    bound = upper_bound(0, total)
    assert (1 - bound) ** total == pytest.approx(0.05, abs=1e-9)
    assert upper_bound(0, total + 1) < bound


@hypothesis.given(COUNTS, st.sampled_from([0.9, 0.95, 0.9996]))
def test_upper_bound_is_the_beta_quantile(case: tuple[int, int], confidence: float) -> None:
    """The one-sided bound is the beta quantile at the full confidence, not at half of the rest."""
    count, total = case
    expected = 1.0 if count == total else float(scipy.stats.beta.ppf(confidence, count + 1, total - count))
    assert upper_bound(count, total, confidence) == pytest.approx(expected, abs=1e-9)


@hypothesis.given(COUNTS)
def test_upper_bound_makes_so_few_events_improbable(case: tuple[int, int]) -> None:
    """At the bound, this count or fewer events have a probability of 5 %."""
    count, total = case
    hypothesis.assume(count < total)
    assert scipy.stats.binom.cdf(count, total, upper_bound(count, total)) == pytest.approx(0.05, abs=1e-6)


@hypothesis.given(COUNTS)
def test_upper_bound_grows_with_events_and_shrinks_with_trials(case: tuple[int, int]) -> None:
    """A trial without an event lowers the bound, one with an event raises it; without events the closed form holds."""
    count, total = case
    hypothesis.assume(count < total)
    bound = upper_bound(count, total)
    assert upper_bound(count, total + 1) < bound < upper_bound(count + 1, total + 1)
    assert upper_bound(0, total) == pytest.approx(1 - 0.05 ** (1 / total), abs=1e-9)


@pytest.mark.parametrize("bound", [upper_bound, lambda count, total: clustered_upper_bound([(count, total)])])
@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (1, 0), (0, -1)])
def test_bound_refuses_an_impossible_count(bound: Callable[[int, int], float], count: int, total: int) -> None:
    """More events than trials, or a negative count, are refused."""
    with pytest.raises(ValueError, match=f"count={count} total={total}"):
        bound(count, total)


@pytest.mark.parametrize("counts", [[], [(0, 0)], [(0, 0), (0, 0)]])
def test_bounds_without_measurements_are_one(counts: list[tuple[int, int]]) -> None:
    """Without measurements the bound is 1."""
    assert upper_bound(0, 0) == 1.0
    assert clustered_upper_bound(counts) == 1.0


CLUSTERS = st.integers(1, 6).flatmap(lambda m: st.lists(st.tuples(st.integers(0, m), st.just(m)), min_size=1, max_size=12))


@hypothesis.given(CLUSTERS, st.randoms())
def test_clustered_bound_takes_prompts_as_trials(clusters: list[tuple[int, int]], order: random.Random) -> None:
    """The bound is at least the share and the bound without events, and does not depend on the order of prompts."""
    bound = clustered_upper_bound(clusters)
    shuffled = list(clusters)
    order.shuffle(shuffled)
    assert clustered_upper_bound(shuffled) == bound
    assert upper_bound(0, len(clusters)) <= bound + 1e-9
    assert sum(c for c, _ in clusters) / sum(t for _, t in clusters) <= bound + 1e-9


@hypothesis.given(CLUSTERS)
def test_clustered_bound_grows_with_events(clusters: list[tuple[int, int]]) -> None:
    """An additional event raises the bound, a prompt without events lowers it, up to the noise of resampling."""
    hypothesis.assume(clusters[0][0] < clusters[0][1])
    count, total = clusters[0]
    bound, noise = clustered_upper_bound(clusters), 0.02
    assert clustered_upper_bound([(count + 1, total), *clusters[1:]]) >= bound - noise
    assert clustered_upper_bound([*clusters, (0, total)]) <= bound + noise


def test_samples_do_not_replace_prompts() -> None:
    """20 prompts without an event bound the share below 13.91 %, with one sample each or with 84."""
    assert clustered_upper_bound([(0, 84)] * 20) == pytest.approx(0.1391, abs=5e-5)
    assert clustered_upper_bound([(0, 84)] * 20) == clustered_upper_bound([(0, 1)] * 20)
    # With independent samples: 1 - 0.05^(1/1680) = 1 - exp(-2.99573 / 1680) = 0.00178.
    assert upper_bound(0, 1680) == pytest.approx(0.00178, abs=5e-6)


def test_prompts_hit_wholly_are_bounded_as_prompts() -> None:
    """If each prompt breaches always or never, the bound is the exact one over prompts: 5 of 20 is below 45.6 %."""
    clusters = [(84, 84)] * 5 + [(0, 84)] * 15
    assert clustered_upper_bound(clusters) == pytest.approx(upper_bound(5, 20), abs=1e-9)
    assert upper_bound(5, 20) == pytest.approx(0.4556, abs=5e-5)  # from tables of Clopper and Pearson


def test_clustered_bound_knows_that_prompts_differ_in_size() -> None:
    """If one prompt has nearly all samples and events, resampling finds a rate that a count of prompts misses."""
    clusters = [(0, 1)] * 10 + [(990, 1000)]
    # The share is 990 / 1010 = 0.98; 0.99 prompts of 11 would be bounded at 0.36.
    assert clustered_upper_bound(clusters) >= 0.98
    assert clustered_upper_bound(clusters, seed=1) == clustered_upper_bound(clusters, seed=1)


def test_clustered_bound_covers_the_truth() -> None:
    """If 16 % of prompts breach always, the bound is above 16 % in at least 95 % of draws; with resampling only, in 84 %."""
    draw = random.Random(0)
    runs, covered = 200, 0
    for _ in range(runs):
        clusters = [(84 if draw.random() < 0.16 else 0, 84) for _ in range(20)]
        covered += clustered_upper_bound(clusters) >= 0.16
    assert covered / runs >= 0.95


@pytest.mark.parametrize(
    ("count", "total", "rate", "p"),
    [
        (2, 3, 0.5, 0.5),  # (3 + 1) / 8
        (3, 3, 0.5, 0.125),
        (0, 3, 0.5, 1.0),
        (1, 10, 0.1, 1 - 0.9**10),
        (0, 0, 0.3, 1.0),
        (0, 9, 0.0, 1.0),
        (1, 9, 0.0, 0.0),
        (9, 9, 1.0, 1.0),
    ],
)
def test_excess_by_hand(count: int, total: int, rate: float, p: float) -> None:
    """The probability of at least this many events equals the closed form."""
    assert excess_p(count, total, rate) == pytest.approx(p, abs=1e-12)


@hypothesis.given(COUNTS, st.floats(0.001, 0.999))
def test_excess_is_one_sided(case: tuple[int, int], rate: float) -> None:
    """The excess is the binomial's upper tail, and one more event makes it smaller."""
    count, total = case
    p = excess_p(count, total, rate)
    assert p == pytest.approx(float(scipy.stats.binom.sf(count - 1, total, rate)), abs=1e-9)
    if count < total:
        assert excess_p(count + 1, total, rate) <= p


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_excess_needs_a_rate(rate: float) -> None:
    """A rate outside 0 and 1 is refused."""
    with pytest.raises(ValueError, match="must be in range"):
        excess_p(1, 2, rate)


@pytest.mark.parametrize(
    ("expected", "given", "kappa"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 1.0),
        # Squares: 9 + 1 + 1 + 9 = 20 here, 4 * 20 = 80; over all pairings 2 * (4 * 14 - 36) = 40: 1 - 80 / 40.
        ([0, 1, 2, 3], [3, 2, 1, 0], -1.0),
        # One of four is off by one: 4 * 1 / 40 of all pairings ([0,1,2,3] x [0,1,2,2]: 4 * 14 + 4 * 9 - 2 * 6 * 5 = 32).
        ([0, 1, 2, 3], [0, 1, 2, 2], 1 - 4 / 32),
        # A constant judge agrees no better than chance: all pairings are the observed ones.
        ([0, 3, 0, 3], [3, 3, 3, 3], 0.0),
        ([1, 1], [1, 1], None),
        ([], [], None),
    ],
)
def test_weighted_kappa_by_hand(expected: list[int], given: list[int], kappa: float | None) -> None:
    """Kappa with squared weights equals the hand-made value, and is None if chance explains everything."""
    found = weighted_kappa(expected, given)
    assert found == (None if kappa is None else pytest.approx(kappa, abs=1e-12))


def kappa_by_matrix(expected: list[int], given: list[int], bands: int) -> float | None:
    """Cohen's form: 1 - sum(w * observed) / sum(w * expected), from the table of counts and its margins."""
    n = len(expected)
    weights = [[(i - j) ** 2 / (bands - 1) ** 2 for j in range(bands)] for i in range(bands)]
    table = [
        [sum(e == i and g == j for e, g in zip(expected, given, strict=True)) / n for j in range(bands)] for i in range(bands)
    ]
    rows = [sum(row) for row in table]
    columns = [sum(column) for column in zip(*table, strict=True)]
    every = [(i, j) for i in range(bands) for j in range(bands)]
    chance = sum(weights[i][j] * rows[i] * columns[j] for i, j in every)
    return None if chance == 0 else 1 - sum(weights[i][j] * table[i][j] for i, j in every) / chance


@hypothesis.given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_weighted_kappa_is_cohens(pairs: list[tuple[int, int]]) -> None:
    """The short form equals Cohen's form, and the two sides may be swapped."""
    expected, given = ([pair[i] for pair in pairs] for i in (0, 1))
    found, reference = weighted_kappa(expected, given), kappa_by_matrix(expected, given, 5)
    assert (found is None) == (reference is None)
    if found is not None:
        assert found == pytest.approx(reference, abs=1e-9)
        assert weighted_kappa(given, expected) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 1000.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, squares 4.5 and 5: 4.5 / sqrt(22.5).
        ([0.0, 5.0, 5.0, 9.0], [1.0, 2.0, 3.0, 4.0], 4.5 / math.sqrt(22.5)),
        ([1.0, 1.0], [1.0, 2.0], None),
        ([1.0, 2.0], [0.0, 0.0], None),
        ([1.0], [1.0], None),
        ([], [], None),
    ],
)
def test_rank_correlation_by_hand(a: list[float], b: list[float], rho: float | None) -> None:
    """Spearman's correlation uses only ranks, and is None for a constant side."""
    assert rank_correlation(a, b) == (None if rho is None else pytest.approx(rho, abs=1e-12))
