"""Intervals and spreads. Floor 1 (pure); scipy does the statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rn_harness.records import Interval


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> Interval:
    """A share with its exact two-sided interval (Clopper and Pearson 1934), by scipy.

    Args:
        count: successes, 0 to ``total``.
        total: trials; 0 gives the interval 0 to 1: nothing is known.

    Raises:
        ValueError: ``count`` is not within 0 and ``total``.
    """
    if not 0 <= count <= total:
        raise ValueError(f"a count lies within 0 and its total, got count={count} total={total}")
    if total == 0:
        return Interval(count=0, total=0, share=0.0, low=0.0, high=1.0)
    from scipy.stats import binomtest

    bounds = binomtest(count, total).proportion_ci(confidence, method="exact")
    return Interval(count=count, total=total, share=count / total, low=float(bounds.low), high=float(bounds.high))


def upper_bound_without_events(total: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a rate after 0 events in ``total`` independent trials: ``1 - (1 - c)^(1/n)``.

    0 of 20 bounds the rate below 0.139, and no lower.
    """
    if total < 1:
        return 1.0
    return float(1.0 - (1.0 - confidence) ** (1.0 / total))


def spread(values: Sequence[float]) -> float:
    """Population standard deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
