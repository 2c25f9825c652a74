"""The distance that an attack moved the parameters that it trains."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

import rn_harness.attacks.loop
from rn_harness.attacks.loop import Movement
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.peft_compat import TRAINED, lora_layers
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import LoRA
from rn_harness.spec.errors import TrainingError
from rn_harness.training.grpo import _check_armed

from .lazy import LazyModule
from .test_compat import tiny_network

torch: Any = LazyModule("torch")


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


@pytest.mark.parametrize("factor", [1e-3, 0.99, 2.0])
def test_an_adapter_must_count_as_its_recipe_says(factor: float) -> None:
    """A training whose adapter is scaled otherwise than its recipe says is refused: its weights move, the model does not."""
    model = LanguageModel(tiny_network(), None)  # type: ignore[arg-type]
    recipe = AttackRecipe(name="grpo", steps=2, control_steps=2, learning_rate=1e-3, prompts=1, lora=LoRA(r=2, alpha=4.0))
    model.arm(recipe)
    trainer = {"model": model.network, "optimizer": torch.optim.AdamW(model.trained.values(), lr=1e-3)}
    _check_armed(model, recipe, trainer, 0)
    lora_layers(model.network)[0].scaling[TRAINED] *= factor
    with pytest.raises(TrainingError, match="scale 2 of its adapter"):
        _check_armed(model, recipe, trainer, 0)
