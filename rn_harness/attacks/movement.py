"""Checks that an attack trains and measures the model that it was given, and measures how far its weights move."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rn_harness.spec.errors import TrainingError

if TYPE_CHECKING:
    import torch

    from rn_harness.models.language_model import LanguageModel

SAMPLED = 2**22
"""Largest number of parameters on which movement is measured: 16 MiB in 32 bits."""


class Movement:
    """Distance that the trained parameters of a prepared model move, measured without asking the family."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        # Odd, so that a sample is not of the same columns in each row.
        self._stride = -(-sum(p.numel() for p in model.trained.values()) // SAMPLED) | 1
        self._before = self._sample()

    def since(self) -> float:
        """L2 distance since the last call, or since the beginning; exactly 0 if nothing moved."""
        before, self._before = self._before, self._sample()
        squares = sum(float((now - then).double().square().sum()) for now, then in zip(self._before, before, strict=True))
        return math.sqrt(self._stride * squares)

    def _sample(self) -> list[torch.Tensor]:
        return [p.detach().reshape(-1)[:: self._stride].clone() for p in self._model.trained.values()]


def write_counts(model: LanguageModel) -> dict[str, int]:
    """Number of writes to each trained parameter, by name; torch counts them for its own gradients."""
    return {name: p._version for name, p in model.trained.items()}  # noqa: SLF001


@contextmanager
def under_attack(model: LanguageModel, fresh: Mapping[str, int], step: int, due: int) -> Iterator[None]:
    """Checks that its body measures the model that is under attack.

    A starved attack does not move the weights, but its optimizer writes to them at every step, even where the gradient is zero.

    Args:
        model: passed to the measurement.
        fresh: its write counts before the attack.
        step: attack steps taken.
        due: optimizer steps taken; more than ``step`` after a warm start.

    Raises:
        TrainingError: the optimizer took fewer steps on this model, or another model was measured.
    """
    # The largest count: experts that no token reached in a step are not written to.
    stepped = max((now - fresh[name] for name, now in write_counts(model).items()), default=-1)
    if stepped < due:
        raise TrainingError(
            f"the model that is measured must be the one under attack, got one that was stepped {max(stepped, 0)} times in "
            f"{due} steps; attack the model itself, not a copy"
        )
    layer = model.run_by()
    runs: list[None] = []
    handle = layer.register_forward_hook(lambda *_: runs.append(None))
    try:
        yield
    finally:
        handle.remove()
    if not runs:
        raise TrainingError(f"the model under attack must be measured, got step={step} at which it was not run; measure it")
