"""The distance that an attack moved the parameters that it trains."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

import rn_harness.attacks.loop
from rn_harness.attacks.loop import Movement


def test_a_movement_is_from_the_last_look_on() -> None:
    """Each look measures from the previous one: 3 and 4 along two axes are 5, the way back is 5, no movement is exactly 0."""
    a, b = torch.zeros(10), torch.zeros(2, 3)
    movement = Movement(SimpleNamespace(trained={"a": a, "b": b}))  # type: ignore[arg-type]
    a[3], b[1, 2] = 3.0, 4.0
    assert movement.since() == 5.0
    assert movement.since() == 0.0
    a[3], b[1, 2] = 0.0, 0.0
    assert movement.since() == 5.0


def test_a_sample_of_many_parameters_gives_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all 100,000 parameters move by one, a sample of every 101st gives ``sqrt(100,000)`` within one percent."""
    monkeypatch.setattr(rn_harness.attacks.loop, "SAMPLED", 1000)
    weights = torch.zeros(100, 1000)
    movement = Movement(SimpleNamespace(trained={"w": weights}))  # type: ignore[arg-type]
    weights += 1.0
    assert movement.since() == pytest.approx(math.sqrt(100_000), rel=0.01)
