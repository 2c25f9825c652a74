"""Refusal-direction ablation (arXiv 2406.11717): no training, hence out of the claim.

The direction is the difference of the mean hidden states, at the last token of the prompt, between attack prompts and benign
ones. It is removed from every matrix that writes to the residual stream: ``W <- W - a r r^T W``, with the recipe's learning rate
as the strength a. The attacker takes the layer whose direction earns him the largest mean reward on his own prompts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rn_harness.attacks.family import refuse
from rn_harness.records.trajectory import TrainingWindow
from rn_harness.spec.errors import UnsuitedError

if TYPE_CHECKING:
    import torch

    from rn_harness.attacks.family import AttackContext
    from rn_harness.models.language_model import Completion
    from rn_harness.spec.attack_recipe import AttackRecipe

_WRITES = re.compile(r"(?:self_attn\.o_proj|mlp\.down_proj|embed_tokens)\.weight$")
"""Matrices that write to the residual stream, as Llama, Qwen, Mistral, Gemma and their kin call them."""


class RefusalAblation:
    """One edit of the weights; one step."""

    def check(self, recipe: AttackRecipe) -> None:
        """Raises RecipeError for what it does not have."""
        refuse(
            recipe,
            {
                "trains without rewards and takes standing: out_of_claim": recipe.standing != "out_of_claim",
                f"is one edit of all weights and takes steps: 1, control_steps: 1, form: full, got steps={recipe.steps} "
                f"form={recipe.form}": (recipe.steps, recipe.control_steps, recipe.form) != (1, 1, "full"),
                "has no supervised steps, got warm_start": recipe.warm_start is not None,
                f"takes no options, got options={recipe.options}": bool(recipe.options),
            },
        )

    def train(self, means: AttackContext) -> dict[str, Any]:
        """Tries the direction of each layer and keeps the best."""
        import torch

        writes = {name: p for name, p in means.model.trained.items() if _WRITES.search(name)}
        if len(writes) < 3:
            raise UnsuitedError(
                f"attack {means.recipe.id} has to know which matrices write to the residual stream, and finds {len(writes)} by "
                "name in this architecture; it is not built for it"
            )
        means.at_step(0, None)
        before = {name: p.detach().clone() for name, p in writes.items()}
        earned: list[float] = []
        directions = _directions(means)
        for direction in directions:
            _remove(writes, direction, means.recipe.learning_rate)
            rewards = means.reward(means.prompts, _answers(means))
            earned.append(sum(r or 0.0 for r in rewards) / len(rewards))
            with torch.no_grad():
                for name, p in writes.items():
                    p.copy_(before[name])
        best = max(range(len(earned)), key=earned.__getitem__)
        _remove(writes, directions[best], means.recipe.learning_rate)
        told = _answers(means)
        window = TrainingWindow(
            steps=1,
            reward_mean=None,
            reward_spread=0.0,
            zero_spread_share=1.0,
            unrewarded_share=0.0,
            grad_norm=0.0,
            entropy=_entropy(means),
            completion_tokens=sum(means.model.token_count(answer.text) for answer in told) / len(told),
            adapter_distance=means.model.distance,
        )
        means.at_step(1, window)
        return {"engine": f"torch {torch.__version__}", "layers_tried": len(directions), "strength": means.recipe.learning_rate}


def _answers(means: AttackContext) -> list[Completion]:
    """The model's greedy answers to the attack prompts."""
    groups = means.model.complete(means.prompts, n=1, temperature=None, max_tokens=means.recipe.max_completion_tokens)
    return [answer for (answer,) in groups]


def _entropy(means: AttackContext) -> float:
    """Mean entropy of the first token of an answer, nats."""
    import torch

    found = []
    with torch.no_grad():
        for prompt in means.prompts:
            ids = torch.tensor([means.model.prompt_ids(prompt)], device=means.model.network.device)
            logp = means.model.network(input_ids=ids).logits[0, -1].float().log_softmax(-1)
            found.append(float(-(logp.exp() * logp).sum()))
    return sum(found) / len(found)


def _directions(means: AttackContext) -> list[torch.Tensor]:
    """One unit vector (H,) for each layer but the first, which holds the words alone."""
    harmful, benign = (_hidden(means, of) for of in (means.prompts, means.benign))
    differences = [a - b for a, b in zip(harmful, benign, strict=True)][1:]
    return [d / d.norm() for d in differences]


def _hidden(means: AttackContext, prompts: Any) -> list[torch.Tensor]:
    """The mean hidden state (H,) at the prompts' last token, by layer."""
    import torch

    rows = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([means.model.prompt_ids(prompt)], device=means.model.network.device)
            states = means.model.network(input_ids=ids, output_hidden_states=True).hidden_states
            rows.append([state[0, -1].float() for state in states])
    return [torch.stack(layer).mean(0) for layer in zip(*rows, strict=True)]


def _remove(writes: dict[str, torch.nn.Parameter], direction: torch.Tensor, strength: float) -> None:
    """Takes the direction out of all that is written; an embedding's rows are what it writes, a layer's columns."""
    import torch

    with torch.no_grad():
        for name, p in writes.items():
            r = direction.to(p.dtype)
            if name.endswith("embed_tokens.weight"):
                p.sub_(strength * torch.outer(p @ r, r))
            else:
                p.sub_(strength * torch.outer(r, r @ p))
