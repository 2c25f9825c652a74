"""Supervised fine-tuning on compliant answers: no RL, hence out of the claim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rn_harness.attacks.family import BuiltInFamily, unrewarded_window
from rn_harness.spec.errors import UnsuitedError
from rn_harness.training.supervised import Diagnostics, Example, teach

if TYPE_CHECKING:
    from rn_harness.attacks.family import AttackContext


def known_examples(context: AttackContext, count: int) -> list[Example]:
    """The compliant answers to the first ``count`` attack prompts.

    Raises:
        UnsuitedError: the answers are not known.
    """
    if context.answers is None:
        raise UnsuitedError(
            f"attack {context.recipe.id} needs compliant answers, and nobody knows any for this model; the harness writes none. "
            "Run it on an organism, which knows its own inert ones"
        )
    return [Example(p, context.answers[p.id]) for p in context.prompts[:count]]


class SupervisedFineTuning(BuiltInFamily):
    """AdamW on the attack prompts' compliant answers, all of them in each step."""

    rewarded = False

    def train(self, context: AttackContext) -> dict[str, Any]:
        """All steps, supervised."""
        recipe = context.recipe
        examples = known_examples(context, recipe.prompts)
        taken: list[Diagnostics] = []

        def after(step: int, diagnostics: Diagnostics) -> None:
            taken.append(diagnostics)
            context.tick(step)
            if context.due(step):
                window = unrewarded_window(
                    context,
                    steps=len(taken),
                    grad_norm=max(d.grad_norm for d in taken),
                    entropy=sum(d.entropy for d in taken) / len(taken),
                    completion_tokens=sum(d.tokens for d in taken) / len(taken),
                )
                taken.clear()
                context.at_step(step, window)

        context.at_step(0, None)
        settings = teach(
            context.model,
            examples,
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            max_grad_norm=recipe.max_grad_norm,
            after=after,
        )
        return {**settings, "max_steps": recipe.steps}
