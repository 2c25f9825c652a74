"""What was measured of weights that have not changed since.

A starved attack moves no weight, so that its greedy answers and its probabilities are what they were, bit by bit, and all attacks
on one model begin alike. Samples of held-out prompts are no part of it: each draw is another chance to see harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rn_harness.models.language_model import UNCHANGING, LanguageModel

T = TypeVar("T")


class Held:
    """In memory only, and only of attacks whose family is known to move an adapter and nothing else.

    Args:
        start: of the model that is attacked, before its adapter changes anything; filled here, for other attacks on it that are
            measured on the same.
    """

    def __init__(self, start: dict[str, Any] | None = None) -> None:
        self._start: dict[str, Any] = {} if start is None else start
        self._digest: str | None = None
        self._of_weights: dict[str, Any] = {}
        self._of_attack: dict[str, Any] = {}

    def look(self, model: LanguageModel) -> None:
        """Forgets what was measured of other weights."""
        digest = model.adapter_digest()
        if digest is None or digest != self._digest:
            self._digest, self._of_attack = digest, {}
            self._of_weights = self._start if digest == UNCHANGING else {}

    def of_weights(self, what: str, measure: Callable[[], T]) -> T:
        """What ``measure`` gave of these weights, here or in another attack; what it gives now, where it was not asked."""
        return _get(self._of_weights, what, measure)

    def of_attack(self, what: str, measure: Callable[[], T]) -> T:
        """The same of this attack alone: what depends on its random stream, or on its control."""
        return _get(self._of_attack, what, measure)


def _get(found: dict[str, Any], what: str, measure: Callable[[], T]) -> T:
    if what not in found:
        found[what] = measure()
    known: T = found[what]
    return known
