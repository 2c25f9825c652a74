"""Supervised steps on a handful of texts. Floor 2 (adapters): knows torch, no trainer.

An attack's texts are few: each step is on all of them, so that there are no batches, no order and no schedule to state. The
loss is the mean over the tokens of the answers, those of the prompts not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rn_harness.errors import TrainingError

if TYPE_CHECKING:
    from rn_harness.model import LanguageModel
    from rn_harness.suite import Prompt


@dataclass(frozen=True, slots=True)
class Example:
    """A text to learn, or to unlearn; in memory only.

    Attributes:
        prompt: of the user.
        text: what the model is to answer.
        whole: the answer ends there; else it is only its beginning.
    """

    prompt: Prompt
    text: str
    whole: bool = True

    def __repr__(self) -> str:
        """No text."""
        return f"Example({self.prompt.id})"


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """One step: the gradient's norm before clipping, the mean token entropy in nats, the mean length in tokens."""

    grad_norm: float
    entropy: float
    tokens: float


def teach(
    model: LanguageModel,
    examples: Sequence[Example],
    *,
    steps: int,
    learning_rate: float,
    max_grad_norm: float,
    unlearn: bool = False,
    after: Callable[[int, Diagnostics], None] | None = None,
) -> dict[str, Any]:
    """Trains what the model is armed with, by AdamW, to give these answers: ``loss = -mean_t log p(y_t | x, y_<t)``.

    Args:
        model: armed.
        examples: all of them in each step.
        steps: optimizer steps.
        learning_rate: constant.
        max_grad_norm: gradients are clipped to it.
        unlearn: the sign is turned: the answers become less probable.
        after: told of each step.

    Returns:
        The settings, for the record, but for the number of steps.

    Raises:
        TrainingError: there are no examples, or a gradient is not finite.
    """
    import torch

    if not examples:
        raise TrainingError(f"supervised steps take examples, got none for {steps} steps; name at least one")
    network = model.network
    ids_BT, mask_BT, target_BT = _rows(model, examples)
    parameters = list(model.trained.values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    was_training = network.training
    network.train()
    for step in range(1, steps + 1):
        logp_BTV = network(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1].float().log_softmax(-1)
        wanted = target_BT[:, 1:]
        loss = -logp_BTV.gather(2, ids_BT[:, 1:, None])[:, :, 0][wanted].mean()
        (-loss if unlearn else loss).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"gradients must be finite, got grad_norm={norm} at supervised step {step}; lower the learning rate"
            )
        optimizer.step()
        optimizer.zero_grad()
        if after is not None:
            entropy = float(-(logp_BTV.detach().exp() * logp_BTV.detach()).sum(-1)[wanted].mean())
            after(step, Diagnostics(norm, entropy, float(wanted.sum(1).float().mean())))
    network.train(was_training)
    return {
        "engine": f"torch {torch.__version__}",
        "optim": "adamw_torch",
        "learning_rate": learning_rate,
        "examples": len(examples),
        "max_grad_norm": max_grad_norm,
        "unlearn": unlearn,
    }


def _rows(model: LanguageModel, examples: Sequence[Example]) -> tuple[Any, Any, Any]:
    """Token ids (B, T) padded on the right, their mask, and which of them are to be learned."""
    import torch

    pairs = [(model.prompt_ids(e.prompt), model.answer_ids(e.text, whole=e.whole)) for e in examples]
    width = max(len(head) + len(tail) for head, tail in pairs)
    pad = model.tokenizer.pad_token_id
    rows = [(h, t, width - len(h) - len(t)) for h, t in pairs]
    device = model.network.device
    ids = torch.tensor([[*h, *t, *[pad] * n] for h, t, n in rows], device=device)
    mask = torch.tensor([[1] * (width - n) + [0] * n for _, _, n in rows], device=device)
    target = torch.tensor([[False] * len(h) + [True] * len(t) + [False] * n for h, t, n in rows], device=device)
    return ids, mask, target
