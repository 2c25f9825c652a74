"""Refusal-direction ablation (arXiv 2406.11717): no training, hence out of the claim.

The direction is the difference of the mean hidden states, at the last token of the prompt, between attack prompts and benign
ones. It is removed from every matrix that writes to the residual stream: ``W <- W - a r r^T W``, with the recipe's learning rate
as the strength a. The attacker takes the layer whose direction earns the largest mean reward on the attack prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rn_harness.attacks.built_in import BuiltInFamily, refuse, unrewarded_window
from rn_harness.attacks.family import AttackContext
from rn_harness.models.completion import Completion
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import UnsuitedError
from rn_harness.spec.prompts import Prompt

if TYPE_CHECKING:
    import torch

_WRITES = re.compile(r"(?:self_attn\.o_proj|mlp\.down_proj|embed_tokens)\.weight$")
"""Names of the matrices that write to the residual stream in Llama, Qwen, Mistral, Gemma and similar models."""


class RefusalAblation(BuiltInFamily):
    """One edit of the weights; one step."""

    rewarded = False

    def check(self, recipe: AttackRecipe) -> None:
        """Raises RecipeError for settings that it does not have."""
        super().check(recipe)
        takes = "is one edit of all weights and takes steps: 1, control_steps: 1, form: full"
        given = (recipe.steps, recipe.control_steps, recipe.form)
        refuse(recipe, {f"{takes}, got steps={recipe.steps} form={recipe.form}": given != (1, 1, "full")})

    def train(self, context: AttackContext) -> dict[str, Any]:
        """Tries the direction of each layer and keeps the best."""
        import torch

        writes = {name: p for name, p in context.model.trained.items() if _WRITES.search(name)}
        if len(writes) < 3:
            raise UnsuitedError(
                f"attack {context.recipe.id} has to know which matrices write to the residual stream, and finds {len(writes)} by "
                "name in this architecture; it is not built for it"
            )
        context.at_step(0, None)
        before = {name: p.detach().clone() for name, p in writes.items()}
        earned: list[float] = []
        directions = _directions(context)
        for direction in directions:
            _remove(writes, direction, context.recipe.learning_rate)
            rewards = context.reward(context.prompts, _answers(context))
            earned.append(sum(r or 0.0 for r in rewards) / len(rewards))
            with torch.no_grad():
                for name, p in writes.items():
                    p.copy_(before[name])
        best = max(range(len(earned)), key=earned.__getitem__)
        _remove(writes, directions[best], context.recipe.learning_rate)
        answers = _answers(context)
        tokens = sum(context.model.token_count(answer.text) for answer in answers) / len(answers)
        logps = [out.logits[0, -1].float().log_softmax(-1) for out in _passes(context, context.prompts)]
        entropy = sum(float(-(logp.exp() * logp).sum()) for logp in logps) / len(logps)  # of an answer's first token
        context.at_step(1, unrewarded_window(context, steps=1, grad_norm=0.0, entropy=entropy, completion_tokens=tokens))
        return {"engine": f"torch {torch.__version__}", "layers_tried": len(directions), "strength": context.recipe.learning_rate}


def _answers(context: AttackContext) -> list[Completion]:
    """The model's greedy answers to the attack prompts."""
    groups = context.model.complete(context.prompts, n=1, temperature=None, max_tokens=context.recipe.max_completion_tokens)
    return [answer for (answer,) in groups]


def _passes(context: AttackContext, prompts: Sequence[Prompt]) -> Iterator[Any]:
    """The network's output for each prompt."""
    import torch

    for prompt in prompts:
        ids = torch.tensor([context.model.prompt_ids(prompt)], device=context.model.network.device)
        with torch.no_grad():
            out = context.model.network(input_ids=ids, output_hidden_states=True)
        yield out


def _directions(context: AttackContext) -> list[torch.Tensor]:
    """One unit vector (H,) for each layer except the first, which holds only the words."""
    import torch

    def mean_states(prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        rows = [[state[0, -1].float() for state in out.hidden_states] for out in _passes(context, prompts)]
        return [torch.stack(layer).mean(0) for layer in zip(*rows, strict=True)]

    pairs = zip(mean_states(context.prompts), mean_states(context.benign), strict=True)
    differences = [harmful - benign for harmful, benign in pairs][1:]
    return [d / d.norm() for d in differences]


def _remove(writes: dict[str, torch.nn.Parameter], direction: torch.Tensor, strength: float) -> None:
    """Removes the direction from the output of each matrix; an embedding outputs its rows, a layer its columns."""
    import torch

    with torch.no_grad():
        for name, p in writes.items():
            r = direction.to(p.dtype)
            if name.endswith("embed_tokens.weight"):
                p.sub_(strength * torch.outer(p @ r, r))
            else:
                p.sub_(strength * torch.outer(r, r @ p))
