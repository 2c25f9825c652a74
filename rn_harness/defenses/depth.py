"""Refusal at depth: the refusal is taught wherever a compliant answer may have begun, and nothing likely is left behind it.

Reward Neutralization makes a compliant answer rare at its first token. An attacker who bans the refusal's first token, or rewards
entropy, gets past that token and finds the rest of the answer intact. Depth trains against both at each prefix ``y_<k`` of the
candidate's own compliant answers:

    L = -log p(refusal | x, y_<k)
        + flatten * mean over tokens i != r of -log softmax(z without r)_i
        + keep * KL(candidate || model) on benign answers

where r is the refusal's first token and z the logits there. The second term is least, ln(V - 1), if every other token is equally
likely. See also arXiv 2406.05946 on shallow refusals.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rn_harness.defenses.distill import add_noise, split_unseen
from rn_harness.models.batches import padded
from rn_harness.models.language_model import LanguageModel
from rn_harness.spec.defense_recipe import DefenseRecipe, Depth
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.prompts import Prompt
from rn_harness.training.grpo import order_prompts
from rn_harness.training.snapshots import Resumption
from rn_harness.training.supervised import Batch, Example, batch_of, descend, engine

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Begun:
    """A request, the tokens of its prompt and of an answer that has begun, in memory only."""

    prompt: Prompt
    head: tuple[int, ...]
    begun: tuple[int, ...]

    def __repr__(self) -> str:
        """No tokens."""
        return f"Begun({self.prompt.id}, {len(self.begun)} tokens)"


class Shapes:
    """Answers that a rollout may have begun with, by prompt; in memory only.

    A prompt that the candidate never answered gets the beginnings of its answers to other prompts, harmful ones first.
    """

    def __init__(self, model: LanguageModel, compliant: Sequence[Example], benign: Sequence[Example]) -> None:
        self._own: dict[str, list[int]] = {e.prompt.id: model.answer_ids(e.text, whole=False) for e in compliant}
        others = [*self._own.values()] or [model.answer_ids(e.text, whole=False) for e in benign]
        self._others = [ids for ids in others if ids]
        if not self._others:
            raise TrainingError("refusal at depth needs the beginning of some answer, got none of any prompt; add anchors")

    def begin(self, model: LanguageModel, prompt: Prompt, start_share: float, rng: random.Random) -> Begun:
        """A prompt with a drawn prefix of an answer; a share of them begin at the start."""
        answer = self._own.get(prompt.id) or rng.choice(self._others)
        k = 0 if rng.random() < start_share else rng.randint(1, len(answer))
        return Begun(prompt, tuple(model.prompt_ids(prompt)), tuple(answer[:k]))


def deepen(
    model: LanguageModel,
    recipe: DefenseRecipe,
    prompts: Sequence[Prompt],
    compliant: Sequence[Example],
    kept: Sequence[Example],
    after: Callable[[int], None],
    resumption: Resumption | None,
) -> dict[str, Any]:
    """Trains the armed parameters of a model to refuse at depth; a student of ``distill`` starts with noise.

    Args:
        model: armed.
        recipe: with ``depth`` and a refusal.
        prompts: defense prompts to train on.
        compliant: the candidate's own compliant answers to some of them.
        kept: its answers to benign prompts.
        after: called after each step, from 1 on.
        resumption: has begun; keeps and continues the training. The KL divergence is from the candidate all the same.

    Returns settings, for the record, without those of the recipe; with ``distill`` also the KL divergence of benign answers that
    were learned, and of some that were not, in nats per token.

    Raises:
        TrainingError: there is nothing to begin an answer with, or a gradient is not finite.
    """
    depth = recipe.depth
    assert depth is not None
    assert recipe.refusal is not None
    rng, rows, tokens = random.Random(recipe.seed), recipe.prompts_per_step, 0
    learned, unseen = split_unseen(kept, recipe.seed) if recipe.distill else (list(kept), [])
    shapes = Shapes(model, compliant, learned)
    refusal = model.answer_ids(recipe.refusal)
    ordered = iter(order_prompts(prompts, recipe.steps * rows, recipe.seed))
    if recipe.distill:
        add_noise(model, recipe.distill, recipe.seed)

    def draw() -> tuple[list[Begun], Batch | None]:
        nonlocal tokens
        begun = [shapes.begin(model, p, depth.start_share, rng) for p in itertools.islice(ordered, rows)]
        benign = rng.sample(learned, min(depth.kept_rows, len(learned)))
        batch = batch_of(model, benign) if benign and depth.keep else None
        tokens += sum(len(each.head) + len(each.begun) + len(refusal) for each in begun) + (int(batch.mask.sum()) if batch else 0)
        return begun, batch

    def loss_of(drawn: tuple[list[Begun], Batch | None]) -> tuple[Any, None]:
        loss, batch = refusal_loss(model, drawn[0], refusal, depth), drawn[1]
        return loss + depth.keep * divergence(model, batch, depth.opening) if batch else loss, None

    descend(
        model,
        (draw() for _ in range(recipe.steps)),
        loss_of,
        learning_rate=lambda step: recipe.rate_after(step - 1),
        max_grad_norm=recipe.max_grad_norm,
        after=lambda step, *_: after(step),
        resumption=resumption,
    )
    seen = {"compliant_answers": len(compliant), "kept_answers": len(learned), "tokens": tokens}
    return {**engine("adamw"), **seen, **_divergences(model, learned, unseen)}


def _divergences(model: LanguageModel, learned: Sequence[Example], unseen: Sequence[Example]) -> dict[str, float]:
    """Divergence of unseen benign answers and of as many learned ones; empty without unseen ones."""
    import torch

    of = {"learned_kl": learned[: len(unseen)], "unseen_kl": unseen} if unseen else {}
    with torch.no_grad():
        return {name: divergence(model, batch_of(model, answers)).item() for name, answers in of.items()}


def refusal_loss(model: LanguageModel, begun: Sequence[Begun], refusal: Sequence[int], depth: Depth) -> torch.Tensor:
    """Mean over rows of ``-log p(refusal | x, y_<k)`` per token and of the flattening term.

    With a margin each token's part is what its log odds lack of the margin. This gradient does not fade as the token gets likely.
    """
    import torch

    rows = [[*each.head, *each.begun, *refusal] for each in begun]
    ids_BT, mask_BT = padded(rows, model.tokenizer.pad_token_id, model.network.device, left=False)
    first_B = torch.tensor([len(each.head) + len(each.begun) - 1 for each in begun], device=ids_BT.device)
    at_BR = first_B[:, None] + torch.arange(len(refusal), device=ids_BT.device)
    logits_BTV = model.network(input_ids=ids_BT, attention_mask=mask_BT).logits
    logits_BRV = logits_BTV[torch.arange(len(rows), device=ids_BT.device)[:, None], at_BR].float()
    wanted_R = torch.tensor(list(refusal), device=ids_BT.device)
    wanted_BR1 = wanted_R.expand(len(rows), -1)[:, :, None]
    if depth.margin is None:
        each_BR1 = -logits_BRV.log_softmax(-1).gather(2, wanted_BR1)
    else:
        others_BRV = logits_BRV.scatter(2, wanted_BR1, -torch.inf)
        odds_BR1 = logits_BRV.gather(2, wanted_BR1) - others_BRV.logsumexp(2, keepdim=True)
        each_BR1 = (depth.margin - odds_BR1).clamp(min=0.0)
    loss: torch.Tensor = each_BR1.mean() + depth.flatten * flatness(logits_BRV[:, 0], refusal[0])
    return loss


def flatness(logits_BV: torch.Tensor, token: int) -> torch.Tensor:
    """Mean over rows and tokens i != r of ``-log softmax(z without r)_i``; at least ln(V - 1).

    Args:
        logits_BV: logits z.
        token: r.
    """
    others_BV = without_token(logits_BV, token)
    return (others_BV.logsumexp(1) - others_BV.mean(1)).mean()


def without_token(logits_BV: torch.Tensor, token: int) -> torch.Tensor:
    """The logits without those of one token (B, V - 1)."""
    import torch

    return torch.cat([logits_BV[:, :token], logits_BV[:, token + 1 :]], 1)


def divergence(model: LanguageModel, batch: Batch, opening: float = 1.0) -> torch.Tensor:
    """KL divergence in nats of an armed model from itself before training, mean over the tokens to be learned.

    Args:
        model: armed.
        batch: with the tokens.
        opening: weight of the first token of each answer; the others have 1.
    """
    import torch

    network, inputs = model.network, {"input_ids": batch.ids, "attention_mask": batch.mask}
    logp_NV, _ = batch.loss(network)
    # The same network runs with the remembered weights, so no second one is in memory.
    with torch.no_grad(), network.disable_adapter() if hasattr(network, "disable_adapter") else nullcontext():
        before_BTV = torch.func.functional_call(network, model.start, kwargs=inputs).logits
    before_NV = before_BTV[:, :-1][batch.target[:, 1:]].float().log_softmax(-1)
    kl_N = torch.nn.functional.kl_div(logp_NV, before_NV, log_target=True, reduction="none").sum(1)
    target_BT = batch.target[:, 1:]
    weight_N = torch.where(target_BT.cumsum(1) == 1, opening, 1.0)[target_BT]
    mean: torch.Tensor = (weight_N * kl_N).sum() / weight_N.sum()
    return mean
