"""Intervals, bounds, tests and agreement, computed by scipy."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, computed_field, model_validator

from rn_harness.records.base import Record, Summary
from rn_harness.spec.base import Share

RESAMPLES = 2000
"""Number of bootstrap resamples: the error of their 95 % quantile is well under a tenth of the spread."""
ENOUGH_AT_MOST = 100_000
"""Largest number of prompts that a reason names as enough; nobody writes more."""


@functools.lru_cache(maxsize=4096)  # hundreds of checkpoints share a few intervals, and scipy is slow
def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share (Clopper and Pearson 1934), by scipy; 0 to 1 without trials: nothing is known.

    Raises:
        ValueError: ``count`` is not within 0 and ``total``.
    """
    _check_count(count, total)
    if total == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    bounds = binomtest(count, total).proportion_ci(confidence, method="exact")
    return float(bounds.low), float(bounds.high)


class Interval(Summary):
    """A share with its exact (Clopper-Pearson) two-sided 95 % interval; 0 of 0 is unknown, from 0 to 1."""

    count: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(ge=0)]

    @computed_field
    @cached_property
    def share(self) -> Share:
        """Count divided by total; 0 if the total is 0."""
        return self.count / self.total if self.total else 0.0

    @computed_field
    @cached_property
    def low(self) -> Share:
        """Lower end of the interval."""
        return clopper_pearson(self.count, self.total)[0]

    @computed_field
    @cached_property
    def high(self) -> Share:
        """Upper end of the interval."""
        return clopper_pearson(self.count, self.total)[1]

    @property
    def text(self) -> str:
        """The share and its interval, for a line of a table."""
        return f"{self.count}/{self.total} = {self.share:.3f} (95 % {self.low:.3f} to {self.high:.3f})"

    @property
    def words(self) -> str:
        """The share and its interval in a sentence, e.g. ``3 of 1680 (0.002, 95 % 0.000 to 0.005)``, or ``0 of 0``."""
        told = f" ({self.share:.3f}, 95 % {self.low:.3f} to {self.high:.3f})" if self.total else ""
        return f"{self.count} of {self.total}{told}"

    @model_validator(mode="after")
    def _is_share(self) -> Self:
        _check_count(self.count, self.total)
        return self


def counted(hits: Sequence[bool]) -> Interval:
    """The share of these that are true."""
    return Interval(count=sum(hits), total=len(hits))


def mean_of(values: Sequence[float]) -> float | None:
    """The mean of the values; None if there are none."""
    return sum(values) / len(values) if values else None


class MeanInterval(Record):
    """A mean with its two-sided 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float


@functools.lru_cache(maxsize=4096)
def upper_bound(count: int, total: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a rate (Clopper and Pearson 1934) from ``total`` independent trials; 1 without trials.

    It is the rate at which ``count`` or fewer events have a probability of ``1 - confidence``. 0 of 20 give 0.139.

    Raises:
        ValueError: ``count`` is not within 0 and ``total``.
    """
    _check_count(count, total)
    if total == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(count, total, alternative="less").proportion_ci(confidence, method="exact").high)


def clustered_upper_bound(counts_by_prompt: Sequence[tuple[int, int]], confidence: float = 0.95, seed: int = 0) -> float:
    """One-sided upper bound of a share of samples that are correlated within a prompt, by a bootstrap over prompts.

    Prompts are drawn with replacement, each with all of its samples; the bootstrap's bound is the ``confidence`` quantile of the
    share (scipy, percentile method). This bound is too low for rare events: without an event it is 0, and with events in few of
    20 prompts it covers the true share in 62 to 92 % instead of 95 %. The result is therefore never below an exact bound that
    takes each prompt as one trial with its share of events as the result: the beta quantile of Clopper and Pearson at the sum
    of the shares. Without an event this equals the bound over prompts.

    Args:
        counts_by_prompt: (events, samples) of each prompt; without samples the bound is 1.
        confidence: of the bound.
        seed: of the resampling; the same seed gives the same bound.

    Raises:
        ValueError: events are not within 0 and the samples.
    """
    for count, total in counts_by_prompt:
        _check_count(count, total)
    measured = sorted((count, total) for count, total in counts_by_prompt if total)  # the order of prompts must not matter
    if not measured:
        return 1.0
    import numpy as np
    from scipy.stats import beta, bootstrap

    n = len(measured)
    breached = sum(count / total for count, total in measured)
    exact = 1.0 if breached >= n else float(beta.ppf(confidence, breached + 1.0, n - breached))
    if n < 2 or breached == 0.0:
        return exact
    events, samples = (np.array(column, dtype=float) for column in zip(*measured, strict=True))
    resampled = bootstrap(
        (events, samples),
        lambda e, s, axis: e.sum(axis=axis) / s.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        alternative="less",
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return max(exact, float(resampled.confidence_interval.high))


def mean_interval(differences: Sequence[float]) -> MeanInterval:
    """Mean of differences of two shares with its two-sided 95 % interval by Student's t (scipy).

    It needs no random numbers, so that a record can be checked. If all differences are equal, the interval is that single number:
    like a bootstrap, it does not cover events that were not observed. ``upper_bound`` at a count of 0 bounds their share.

    Args:
        differences: -1 to 1, one for each prompt; a single one gives the interval -1 to 1, since nothing is known.

    Raises:
        ValueError: ``differences`` is empty.
    """
    n = len(differences)
    if n == 0:
        raise ValueError("a mean is of numbers, got differences=(); measure some")
    mean = sum(differences) / n
    if n == 1:
        return MeanInterval(mean=mean, low=-1.0, high=1.0)
    half = _half_width(sum((d - mean) ** 2 for d in differences) / (n - 1), n)
    return MeanInterval(mean=mean, low=max(-1.0, mean - half), high=min(1.0, mean + half))


def _half_width(variance: float, n: int) -> float:
    """Half of the width of the interval of ``n`` differences with this sample variance."""
    return math.sqrt(variance / n) * _t_quantile(n - 1)


def enough(differences: Sequence[float], least: float, margin: float) -> int | None:
    """The smallest number of differences, more than these, that would show a non-inferior mean if mean and variance stay.

    The lower end of their ``mean_interval`` is then at least ``least``, and the ``upper_bound`` of a count of 0 at most
    ``margin``. None: up to ``ENOUGH_AT_MOST`` do not show it, or there are fewer than two to compute a variance from.
    """
    n = len(differences)
    if n < 2:
        return None
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    numbers = range(n + 1, ENOUGH_AT_MOST + 1)  # more of them never show less

    def shows(m: int) -> bool:
        return mean - _half_width(variance, m) >= least and upper_bound(0, m) <= margin

    found = bisect.bisect_left(numbers, 1, key=shows)
    return numbers[found] if found < len(numbers) else None


@functools.lru_cache(maxsize=256)  # all checkpoints have the same number of differences
def _t_quantile(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))


def excess_p(count: int, total: int, rate: float) -> float:
    """Probability of ``count`` or more events in ``total`` independent trials at this ``rate``: exact one-sided binomial test.

    It is 1 without trials, since nothing contradicts the rate. At a rate of 0 any event has a probability of 0.

    Raises:
        ValueError: ``count`` is not within 0 and ``total``, or ``rate`` not within 0 and 1.
    """
    _check_count(count, total)
    if total == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(count, total, rate, alternative="greater").pvalue)


def weighted_kappa(expected: Sequence[int], given: Sequence[int]) -> float | None:
    """Quadratic-weighted kappa (Cohen 1968) between given and expected bands, item by item.

    ``1 - sum (e - g)^2 / mean over all pairings of sum (e - g')^2``: 1 is full agreement, 0 is the agreement of the same bands in
    random order, and below 0 is worse.

    Returns:
        None if undefined: no items, or both sides have the same single band for all items.
    """
    n = len(expected)
    squares = sum(e * e for e in expected) + sum(g * g for g in given)
    by_chance = n * squares - 2 * sum(expected) * sum(given)  # over all pairings
    if by_chance == 0:
        return None
    return 1.0 - n * sum((e - g) ** 2 for e, g in zip(expected, given, strict=True)) / by_chance


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank, by scipy; None for fewer than two items or a constant side."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def _check_count(count: int, total: int) -> None:
    if not 0 <= count <= total:
        raise ValueError(f"a count lies within 0 and its total, got count={count} total={total}; count again")
