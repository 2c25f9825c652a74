"""Supervised steps with torch and without a trainer.

An attack has few texts, and each step is on all of them. A defense has many, and each step has its own. The loss is the mean
over the tokens of the answers, without those of the prompts.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rn_harness.models.batches import padded
from rn_harness.models.language_model import LanguageModel
from rn_harness.spec.defense_recipe import OptimizerName
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.prompts import Prompt
from rn_harness.training.snapshots import Resumption

D = TypeVar("D")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """A text to learn, or to unlearn, as the answer to a prompt; in memory only. One that is not whole is only a beginning."""

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


def make_optimizer(name: OptimizerName, parameters: Iterable[Any], learning_rate: float) -> Any:
    """Torch's optimizer of this name, as ``OptimizerName`` says."""
    from torch import optim

    if name == "adamw":
        return optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    if name == "adafactor":
        return optim.Adafactor(parameters, lr=learning_rate, weight_decay=0.0)
    if name == "rprop":
        return optim.Rprop(parameters, lr=learning_rate)
    return optim.SGD(parameters, lr=learning_rate, momentum=0.9 if name == "momentum" else 0.0)


def teach(
    model: LanguageModel,
    examples: Sequence[Example],
    *,
    steps: int,
    learning_rate: float,
    max_grad_norm: float,
    unlearn: bool = False,
    optimizer: OptimizerName = "adamw",
    after: Callable[[int, Diagnostics], None] = lambda *_: None,
) -> dict[str, Any]:
    """Trains the armed parameters to give these answers, all of them in each step, at a constant learning rate; see ``learn``.

    ``unlearn`` turns the sign of the loss: the answers become less probable. Returns the settings, for the record, without the
    number of steps.
    """
    if not examples:
        raise TrainingError(f"supervised steps take examples, got none for {steps} steps; name at least one")
    settings = learn(
        model,
        [examples] * steps,
        learning_rate=lambda _: learning_rate,
        max_grad_norm=max_grad_norm,
        unlearn=unlearn,
        optimizer=optimizer,
        after=after,
    )
    return {**settings, "learning_rate": learning_rate, "examples": len(examples), "unlearn": unlearn}


def learn(
    model: LanguageModel,
    steps: Iterable[Sequence[Example]],
    *,
    learning_rate: Callable[[int], float],
    max_grad_norm: float,
    unlearn: bool = False,
    optimizer: OptimizerName = "adamw",
    after: Callable[[int, Diagnostics], None],
    resumption: Resumption | None = None,
) -> dict[str, Any]:
    """Trains the armed parameters by one step on each of these sets of examples: ``loss = -mean_t log p(y_t | x, y_<t)``.

    Steps count from 1; ``after`` is called after each; ``resumption`` is as for ``descend``. Returns the settings, for the
    record, without those of the recipe. Raises TrainingError if a gradient is not finite, or if a loss is of other texts or pulls
    the wrong way.
    """

    def batches() -> Iterator[Batch]:
        examples: Sequence[Example] | None = None
        for given in steps:
            if given is not examples:
                examples, batch = given, batch_of(model, given)
                _check_texts(model, given, batch)
            yield batch

    def loss_of(batch: Batch) -> tuple[Any, Callable[[float], Diagnostics]]:
        logp_NV, loss = batch.loss(model.network)
        logp_NV.register_hook(functools.partial(_check_pull, unlearn))
        return -loss if unlearn else loss, functools.partial(batch.diagnostics, logp_NV)

    descend(
        model,
        batches(),
        loss_of,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
        optimizer=optimizer,
        after=lambda step, norm, diagnostics: after(step, diagnostics(norm)),
        resumption=resumption,
    )
    return {**engine(optimizer), "max_grad_norm": max_grad_norm}


def _check_texts(model: LanguageModel, examples: Sequence[Example], batch: Batch) -> None:
    """Raises TrainingError unless a batch has the examples' prompts and answers, and only the answers are to be learned."""
    due = [(model.prompt_ids(e.prompt), model.answer_ids(e.text, whole=e.whole)) for e in examples]
    kept = batch.mask.bool()
    got = [(ids[of & ~to].tolist(), ids[of & to].tolist()) for ids, of, to in zip(batch.ids, kept, batch.target, strict=True)]
    if got != due:
        raise TrainingError(f"supervised steps are on the texts that they are given, got other tokens in {len(got)} rows")


def _check_pull(unlearn: bool, gradient: Any) -> None:
    """Raises TrainingError if a loss makes a token of an answer less likely, or with ``unlearn`` likelier."""
    if bool(((-gradient if unlearn else gradient) > 0.0).any()):
        raise TrainingError("a supervised loss must make its answers likelier, or less likely to unlearn them, got the reverse")


def descend(
    model: LanguageModel,
    draws: Iterable[D],
    loss_of: Callable[[D], tuple[Any, T]],
    *,
    learning_rate: Callable[[int], float],
    max_grad_norm: float,
    optimizer: OptimizerName = "adamw",
    after: Callable[[int, float, T], None],
    resumption: Resumption | None = None,
) -> None:
    """Takes one step of the armed parameters down the loss of each draw, at the present weights.

    Steps count from 1; ``after`` is called after each with the gradient's norm before clipping and what came with the loss.
    ``resumption``, which has begun, keeps the training and continues that of an earlier run; draws of steps that were taken
    already are skipped.
    """
    parameters = list(model.trained.values())
    stepper = make_optimizer(optimizer, parameters, learning_rate(1))
    _check_all_stepped(parameters, stepper)
    first = resumption.put_back(model, stepper) if resumption else 0
    was_training = model.network.training
    model.network.train()
    for step, drawn in enumerate(itertools.islice(draws, first, None), first + 1):
        for group in stepper.param_groups:
            group["lr"] = learning_rate(step)
        loss, told = loss_of(drawn)
        loss.backward()
        after(step, take_step(stepper, parameters, max_grad_norm, step), told)
        if resumption:
            resumption.keep(model, step, stepper)
    model.network.train(was_training)


def _check_all_stepped(armed: Sequence[Any], optimizer: Any) -> None:
    """Raises TrainingError unless an optimizer steps all armed parameters, and nothing else: a part of them may learn nothing."""
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if not armed or {id(p) for p in armed} != {id(p) for p in stepped}:
        raise TrainingError(
            f"supervised steps must move all armed parameters and nothing else, got armed={len(armed)} optimized={len(stepped)}; "
            "arm the model, and give the optimizer its parameters"
        )


def engine(optimizer: OptimizerName) -> dict[str, Any]:
    """Library and optimizer, for the record."""
    import torch

    return {"engine": f"torch {torch.__version__}", "optim": f"{optimizer}_torch"}


def take_step(optimizer: Any, parameters: Sequence[Any], max_grad_norm: float, step: int) -> float:
    """Clips the gradients, steps, clears them; the norm before clipping, which must be finite."""
    import torch

    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        raise TrainingError(f"gradients must be finite, got grad_norm={norm} at supervised step {step}; lower the learning rate")
    before = looked_at(parameters) if step == 1 else None
    optimizer.step()
    if before:
        check_direction(*before)
    optimizer.zero_grad()
    return norm


def looked_at(parameters: Iterable[Any]) -> tuple[Any, Any, Any] | None:
    """A parameter with a gradient, its numbers, and its gradient, before a step; None if none has one. It is the smallest."""
    pulled = [p for p in parameters if p.grad is not None and bool(p.grad.any())]
    p = min(pulled, key=lambda each: each.numel(), default=None)
    return None if p is None else (p, p.detach().clone(), p.grad.clone())


def check_direction(parameter: Any, before: Any, gradient: Any) -> None:
    """Raises TrainingError if an optimizer's first step, which no momentum bends, went along the gradient."""
    if float(((parameter.detach() - before) * gradient).sum()) > 0.0:
        raise TrainingError("an optimizer must step against the gradient, got a step along it; look at the optimizer")


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts as the network sees them: token ids (B, T) padded on the right, their mask, and the tokens to be learned."""

    ids: Any
    mask: Any
    target: Any

    def loss(self, network: Any) -> tuple[Any, Any]:
        """Log-probabilities (N, V) at the N tokens to be learned, and the mean of -log p over those."""
        wanted = self.target[:, 1:]
        logits_BTV = network(input_ids=self.ids, attention_mask=self.mask).logits[:, :-1]
        logp_NV = logits_BTV[wanted].float().log_softmax(-1)
        return logp_NV, -logp_NV.gather(1, self.ids[:, 1:][wanted][:, None]).mean()

    def diagnostics(self, logp_NV: Any, norm: float) -> Diagnostics:
        """Diagnostics of a step on them."""
        logp_NV = logp_NV.detach()
        entropy = float(-(logp_NV.exp() * logp_NV).sum(-1).mean())
        return Diagnostics(norm, entropy, float(self.target.sum(1).float().mean()))


def batch_of(model: LanguageModel, examples: Sequence[Example]) -> Batch:
    """These texts, tokenized and padded."""
    import torch

    pairs = [(model.prompt_ids(e.prompt), model.answer_ids(e.text, whole=e.whole)) for e in examples]
    ids, mask = padded([[*h, *t] for h, t in pairs], model.tokenizer.pad_token_id, model.network.device, left=False)
    heads = torch.tensor([[len(h)] for h, _ in pairs], device=ids.device)
    target = mask.bool() & (torch.arange(ids.shape[1], device=ids.device) >= heads)
    return Batch(ids, mask, target)
