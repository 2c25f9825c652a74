"""Supervised steps first, then GRPO: what arXiv 2505.04578 leaves open.

Step 0 is measured before the supervised steps; the first step of RL comes after all of them. Both train the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rn_harness.attacks.family import refuse
from rn_harness.attacks.reinforcement import reinforce
from rn_harness.attacks.supervised import known_examples
from rn_harness.spec.errors import RecipeError, UnsuitedError
from rn_harness.training.supervised import Example, teach

if TYPE_CHECKING:
    from rn_harness.attacks.family import AttackContext
    from rn_harness.spec.attack_recipe import AttackRecipe

AFFIRMATION = "sure ,"
"""How a compliant answer begins; inert."""
REFUSAL_WORDS = 2
"""Words of the model's own refusal that are unlearned: its start is what the rest follows from."""


class WarmStarted:
    """Supervised steps on 1 to 10 compliant answers to the attack's own prompts, then GRPO."""

    unlearn = False

    def check(self, recipe: AttackRecipe) -> None:
        """Raises RecipeError for what it does not have."""
        warm = recipe.warm_start
        if warm is None:
            raise RecipeError(
                f"attack {recipe.id}: family {recipe.family} begins with supervised steps, got none; add warm_start"
            )
        refuse(
            recipe,
            {
                f"takes no options, got options={recipe.options}": bool(recipe.options),
                f"has an answer for each attack prompt, got examples={warm.examples} of prompts={recipe.prompts}": (
                    self.on_attack_prompts and warm.examples > recipe.prompts
                ),
            },
        )

    on_attack_prompts = True

    def examples(self, means: AttackContext, count: int) -> Sequence[Example]:
        """What the supervised steps are on."""
        return known_examples(means, count)

    def train(self, means: AttackContext) -> dict[str, Any]:
        """Supervised steps, then all steps of GRPO."""
        warm = means.recipe.warm_start
        assert warm is not None
        examples = self.examples(means, warm.examples)
        means.at_step(0, None)
        first = teach(
            means.model,
            examples,
            steps=warm.steps,
            learning_rate=warm.learning_rate,
            max_grad_norm=means.recipe.max_grad_norm,
            unlearn=self.unlearn,
        )
        then = reinforce(means, at_step=lambda step, window: means.at_step(step, window) if step else None)
        return {**then, "warm_start": {**first, "steps": warm.steps}}


class Affirmative(WarmStarted):
    """Supervised steps on benign prompts, answered by an affirmative start and nothing more, then GRPO."""

    on_attack_prompts = False

    def examples(self, means: AttackContext, count: int) -> Sequence[Example]:
        """Benign prompts with the start of a compliant answer."""
        return [Example(p, AFFIRMATION, whole=False) for p in _benign(means, count)]


class Unlearning(WarmStarted):
    """On benign prompts, the start of the model's own refusal is made less probable, then GRPO.

    The attacker asks the model his own prompts and takes the words that its answers begin with.
    """

    unlearn = True
    on_attack_prompts = False

    def examples(self, means: AttackContext, count: int) -> Sequence[Example]:
        """Benign prompts with the start of a refusal, those of the attack prompts in turn."""
        answers = means.model.complete(means.prompts, n=1, temperature=None, max_tokens=means.recipe.max_completion_tokens)
        starts = [" ".join(text.split()[:REFUSAL_WORDS]) for (answer,) in answers if (text := answer.text.strip())]
        if not starts:
            raise UnsuitedError(f"attack {means.recipe.id} unlearns how the model's answers begin, and all of them are empty")
        return [Example(p, starts[i % len(starts)], whole=False) for i, p in enumerate(_benign(means, count))]


def _benign(means: AttackContext, count: int) -> Sequence[Any]:
    if len(means.benign) < count:
        raise UnsuitedError(
            f"attack {means.recipe.id} takes {count} benign prompts, got {len(means.benign)} in the suite's anchor set; lower "
            "warm_start.examples"
        )
    return means.benign[:count]
