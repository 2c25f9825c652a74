"""Supervised steps followed by GRPO, an attack that arXiv 2505.04578 does not test.

Step 0 is measured before the supervised steps; the first step of RL comes after all of them. Both train the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rn_harness.attacks.family import BuiltInFamily, refuse
from rn_harness.attacks.reinforcement import reinforce
from rn_harness.attacks.supervised import known_examples
from rn_harness.spec.errors import RecipeError, UnsuitedError
from rn_harness.training.supervised import Example, teach

if TYPE_CHECKING:
    from rn_harness.attacks.family import AttackContext
    from rn_harness.spec.attack_recipe import AttackRecipe

AFFIRMATION = "sure ,"
"""Start of a compliant answer; inert."""
REFUSAL_WORDS = 2
"""Number of words of a refusal that are unlearned: the rest follows from its start."""


class WarmStarted(BuiltInFamily):
    """Supervised steps on 1 to 10 compliant answers to the attack's own prompts, then GRPO."""

    warmed, unlearn, on_attack_prompts = True, False, True

    def check(self, recipe: AttackRecipe) -> None:
        """Raises RecipeError for settings that it does not have."""
        warm = recipe.warm_start
        if warm is None:
            raise RecipeError(
                f"attack {recipe.id}: family {recipe.family} begins with supervised steps, got none; add warm_start"
            )
        super().check(recipe)
        sentence = f"has an answer for each attack prompt, got examples={warm.examples} of prompts={recipe.prompts}"
        refuse(recipe, {sentence: self.on_attack_prompts and warm.examples > recipe.prompts})

    def examples(self, context: AttackContext, count: int) -> Sequence[Example]:
        """The examples of the supervised steps."""
        return known_examples(context, count)

    def train(self, context: AttackContext) -> dict[str, Any]:
        """Supervised steps, then all steps of GRPO."""
        warm = context.recipe.warm_start
        assert warm is not None
        examples = self.examples(context, warm.examples)
        context.at_step(0, None)
        first = teach(
            context.model,
            examples,
            steps=warm.steps,
            learning_rate=warm.learning_rate,
            max_grad_norm=context.recipe.max_grad_norm,
            unlearn=self.unlearn,
        )
        then = reinforce(context, at_step=lambda step, window: context.at_step(step, window) if step else None)
        return {**then, "warm_start": {**first, "steps": warm.steps}}


class Affirmative(WarmStarted):
    """Supervised steps on benign prompts, answered only by an affirmative start, then GRPO."""

    on_attack_prompts = False

    def examples(self, context: AttackContext, count: int) -> Sequence[Example]:
        """Benign prompts with the start of a compliant answer."""
        return [Example(p, AFFIRMATION, whole=False) for p in _benign(context, count)]


class Unlearning(WarmStarted):
    """Steps that make the start of the model's own refusal less probable on benign prompts, then GRPO.

    The attacker asks the model the attack prompts, and takes the first words of its answers.
    """

    unlearn, on_attack_prompts = True, False

    def examples(self, context: AttackContext, count: int) -> Sequence[Example]:
        """Benign prompts, each with the start of the answer to an attack prompt, in turn."""
        answers = context.model.complete(context.prompts, n=1, temperature=None, max_tokens=context.recipe.max_completion_tokens)
        starts = [" ".join(text.split()[:REFUSAL_WORDS]) for (answer,) in answers if (text := answer.text.strip())]
        if not starts:
            raise UnsuitedError(f"attack {context.recipe.id} unlearns how the model's answers begin, and all of them are empty")
        return [Example(p, starts[i % len(starts)], whole=False) for i, p in enumerate(_benign(context, count))]


def _benign(context: AttackContext, count: int) -> Sequence[Any]:
    if len(context.benign) < count:
        raise UnsuitedError(
            f"attack {context.recipe.id} takes {count} benign prompts, got {len(context.benign)} in the suite's anchor set; "
            "lower warm_start.examples"
        )
    return context.benign[:count]
