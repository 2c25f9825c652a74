"""RL by TRL: GRPO, and RLOO.

REINFORCE is a setting of GRPO: ``loss_type: dr_grpo`` with ``scale_rewards: none`` is the policy gradient with the group's mean
as its baseline (arXiv 2503.20783). TRL 1.16.0 has no PPO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rn_harness.attacks.family import BuiltInFamily, refuse
from rn_harness.training.grpo import StepFunction, TrainOptions, order_prompts, train
from rn_harness.training.trainer_settings import TrainerName

if TYPE_CHECKING:
    from rn_harness.attacks.family import AttackContext
    from rn_harness.spec.attack_recipe import AttackRecipe


def reinforce(context: AttackContext, trainer: TrainerName = "grpo", at_step: StepFunction | None = None) -> dict[str, Any]:
    """All steps of RL on the attack prompts; ``at_step`` replaces the context's."""
    recipe = context.recipe
    prompts = order_prompts(context.prompts, recipe.steps * recipe.prompts_per_step, recipe.seed)
    at_step = at_step or context.at_step
    options = TrainOptions(sampler=context.sampler, trainer=trainer, tick=context.tick)
    return train(context.model, recipe, prompts, context.reward, at_step, context.due, options)


class Grpo(BuiltInFamily):
    """Group-relative policy optimization (arXiv 2402.03300)."""

    def train(self, context: AttackContext) -> dict[str, Any]:
        """All steps by TRL's ``GRPOTrainer``."""
        return reinforce(context)


class Rloo(Grpo):
    """REINFORCE leave-one-out (arXiv 2402.14740): compares each completion with the mean of its group's others, unscaled."""

    def check(self, recipe: AttackRecipe) -> None:
        """Raises RecipeError for settings that it does not have."""
        super().check(recipe)
        default = type(recipe).model_fields
        for name in ("loss_type", "scale_rewards", "entropy_coef"):
            value = getattr(recipe, name)
            refuse(recipe, {f"has no {name}, got {name}={value}": value != default[name].default})

    def train(self, context: AttackContext) -> dict[str, Any]:
        """All steps by TRL's ``RLOOTrainer``."""
        return reinforce(context, "rloo")
