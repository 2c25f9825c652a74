"""Intervals and spreads against independent formulas."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import scipy.stats

from rn_harness.statistics import clopper_pearson, spread, upper_bound_without_events

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
    interval = clopper_pearson(count, total, confidence)
    assert (interval.count, interval.total, interval.share) == (count, total, count / total)
    assert (interval.low, interval.high) == pytest.approx(by_beta(count, total, confidence), abs=1e-9)


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
    """Where the exact interval can be written down, it is that."""
    interval = clopper_pearson(count, total)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


def test_nothing_measured_is_nothing_known() -> None:
    """No trial gives the interval from 0 to 1."""
    interval = clopper_pearson(0, 0)
    assert (interval.low, interval.high, interval.total) == (0.0, 1.0, 0)


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (0, -1), (1, 0)])
def test_impossible_count_is_refused(count: int, total: int) -> None:
    """A count outside of 0 and its total is refused by its numbers."""
    with pytest.raises(ValueError, match=f"count={count} total={total}"):
        clopper_pearson(count, total)


@hypothesis.given(COUNTS)
def test_interval_holds_its_share(case: tuple[int, int]) -> None:
    """A share lies within its interval, the interval within 0 and 1, and the complement's is its mirror image."""
    count, total = case
    hypothesis.assume(total > 0)
    interval, mirror = clopper_pearson(count, total), clopper_pearson(total - count, total)
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
    """0 of 20 bounds a rate below 13.91 % with 95 % confidence, and no lower."""
    assert upper_bound_without_events(total) == pytest.approx(bound, abs=5e-5)


@pytest.mark.parametrize("total", [0, -1])
def test_no_trial_bounds_nothing(total: int) -> None:
    """Without a trial the bound is 1."""
    assert upper_bound_without_events(total) == 1.0


@hypothesis.given(st.integers(1, 500))
def test_bound_makes_no_event_improbable(total: int) -> None:
    """At the bound itself, seeing no event has a probability of 5 %, and another trial lowers the bound."""
    bound = upper_bound_without_events(total)
    assert (1 - bound) ** total == pytest.approx(0.05, abs=1e-9)
    assert upper_bound_without_events(total + 1) < bound


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], 0.0),
        ([7.0], 0.0),
        ([0.0, 10.0], 5.0),
        ([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0], 2.0),  # mean 5, squares 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32, / 8 = 4
    ],
)
def test_spread(values: list[float], expected: float) -> None:
    """The spread is the population's standard deviation, 0 for fewer than two values."""
    assert spread(values) == pytest.approx(expected, abs=1e-12)


@hypothesis.given(st.lists(st.floats(0, 10), min_size=2, max_size=20), st.floats(0, 5))
def test_spread_ignores_a_shift(values: list[float], shift: float) -> None:
    """A constant added to all values changes no spread, and half of the range bounds it."""
    assert spread([v + shift for v in values]) == pytest.approx(spread(values), abs=1e-6)
    assert 0.0 <= spread(values) <= (max(values) - min(values)) / 2 + 1e-9
