"""Measurements of weights that have not changed since.

A starved attack moves no weight, so its greedy answers and probabilities stay the same bit by bit, and all attacks on one model
begin alike. Samples of held-out prompts are never reused: each draw is another chance to see harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rn_harness.models.language_model import UNCHANGING, LanguageModel

T = TypeVar("T")


class MeasurementCache:
    """Measurements of one attack, in memory only; for attacks whose family moves nothing but an adapter.

    Those before the adapter changes anything are added to ``start``, for other attacks on the same model and prompts.
    """

    def __init__(self, start: dict[str, Any] | None = None) -> None:
        self._start: dict[str, Any] = {} if start is None else start
        self._digest: str | None = None
        self._of_weights: dict[str, Any] = {}
        self._of_attack: dict[str, Any] = {}

    def forget_changed(self, model: LanguageModel) -> None:
        """Drops the measurements of other weights."""
        digest = model.adapter_digest()
        if digest is None or digest != self._digest:
            self._digest, self._of_attack = digest, {}
            self._of_weights = self._start if digest == UNCHANGING else {}

    def of_weights(self, name: str, measure: Callable[[], T]) -> T:
        """The named measurement of these weights, from this attack or another; ``measure`` takes it the first time."""
        return _get(self._of_weights, name, measure)

    def of_attack(self, name: str, measure: Callable[[], T]) -> T:
        """A measurement that depends on the attack's random stream or its control, hence is not shared."""
        return _get(self._of_attack, name, measure)


def _get(known: dict[str, Any], name: str, measure: Callable[[], T]) -> T:
    if name not in known:
        known[name] = measure()
    found: T = known[name]
    return found
