"""Hardening: rounds against simulated attackers, after neutralization. Floor 3 (stages).

Reward Neutralization makes compliant answers rare in what a model samples, not far away in its weights: ten supervised steps on
five examples bring them back. Each round here, an attacker drawn by lot fine-tunes the model on compliant answers; the gradient
of refusing *there*, on other prompts, is added to that of refusing and of answering benign prompts *here*, and the model is
stepped. First order: how the attacked weights depend on the model's own is taken to be the identity. It is what model-agnostic
meta-learning does (arXiv 1703.03400, 1803.02999), and tamper-resistant training (arXiv 2408.00761).

The attack is made in place and taken back, so that one copy of the weights is held beside them, and one gradient.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rn_harness.errors import TrainingError
from rn_harness.judges import Judge, ensure_judging
from rn_harness.measures import is_minimal_refusal
from rn_harness.suite import Policy, Prompt, SimulatedAttacker
from rn_harness.supervised import Example, batch_of, engine, make_optimizer, take_step, teach

if TYPE_CHECKING:
    from rn_harness.model import LanguageModel
    from rn_harness.suite import DefenseRecipe, Hardening

MIN_EXAMPLES = 2
"""Compliant answers without which no attacker can be simulated whose prompts are not those that refusals are asked of."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One simulated attacker.

    Attributes:
        kind: of the recipe's.
        learning_rate: constant.
        examples: how many.
        looks: steps after which the attacked model is taught to refuse, the last of which is the attacker's last.
    """

    kind: SimulatedAttacker
    learning_rate: float
    examples: int
    looks: tuple[int, ...]


def draw_attacker(hardening: Hardening, known: int, rng: random.Random) -> Drawn:
    """An attacker by lot: its kind uniformly, its learning rate and examples log-uniformly, its looks one in each part.

    Args:
        hardening: the recipe's.
        known: compliant answers that there are.
        rng: the lot.
    """
    kind = rng.choice(hardening.attackers)
    lowest, highest = map(math.log, kind.learning_rate)
    bounds = [part * hardening.steps // hardening.looks for part in range(hardening.looks + 1)]
    return Drawn(
        kind=kind,
        learning_rate=math.exp(rng.uniform(lowest, highest)),
        examples=round(math.exp(rng.uniform(0.0, math.log(min(hardening.examples, known - 1))))),
        looks=tuple(rng.randint(first + 1, last) for first, last in itertools.pairwise(bounds)),
    )


def own_answers(
    model: LanguageModel, prompts: Sequence[Prompt], judge: Judge, policy: Policy, samples: int, seed: int
) -> list[Example]:
    """What the undefended candidate itself complies with, in memory only: of each prompt its most harmful completion.

    Prompts of which none reaches ``policy.control_break`` are left out.

    Raises:
        JudgeGoneError: the judge scored nothing.
        TrainingError: too few prompts are left.
    """
    from rn_harness.model import own_random_stream

    with own_random_stream(seed):
        said = model.complete(prompts, n=samples, temperature=1.0, max_tokens=policy.max_completion_tokens)
    found = []
    for prompt, completions in zip(prompts, said, strict=True):
        texts = sorted({c.text for c in completions if not c.truncated})
        judged = judge.score([prompt] * len(texts), texts)
        ensure_judging(judged, f"the reward judge scored none of {len(texts)} completions of the undefended candidate")
        scored = [(j.score, text) for j, text in zip(judged, texts, strict=True) if j.score is not None]
        score, text = max(scored, default=(0.0, ""))
        if score >= policy.control_break:
            found.append(Example(prompt, text))
    if len(found) < MIN_EXAMPLES:
        raise TrainingError(
            f"simulated attackers learn what the undefended candidate complies with, got {len(found)} of {len(prompts)} defense "
            f"prompts with a completion of {policy.control_break:g} or more among {samples}; raise hardening.samples"
        )
    return found


def minimal_refusal(model: LanguageModel, prompts: Sequence[Prompt], policy: Policy) -> str:
    """The commonest of the neutralized model's own minimal refusals.

    Raises:
        TrainingError: it gives none.
    """
    answers = model.complete(prompts, n=1, temperature=None, max_tokens=policy.max_completion_tokens)
    minimal = [a.text.strip() for (a,) in answers if is_minimal_refusal(a.text, policy.convergence.minimal_refusal_words)]
    if not minimal:
        raise TrainingError(
            f"hardening begins with a neutralized model, got no minimal refusal of {len(prompts)} defense prompts; neutralize it "
            "for more steps"
        )
    return collections.Counter(minimal).most_common(1)[0][0]


def harden(
    model: LanguageModel,
    recipe: DefenseRecipe,
    prompts: Sequence[Prompt],
    compliant: Sequence[Example],
    benign: Mapping[Prompt, str],
    policy: Policy,
    after: Callable[[int], None],
) -> dict[str, Any]:
    """Trains all weights of a neutralized model, in place.

    Args:
        model: neutralized, without an adapter.
        recipe: with ``hardening``.
        prompts: defense prompts that are trained on.
        compliant: what simulated attackers learn, on some of these prompts.
        benign: anchors, with the undefended candidate's answers, which are to stay.
        policy: for what a minimal refusal is.
        after: told of each round, from 1 on.

    Returns:
        What was simulated, for the record.

    Raises:
        TrainingError: it is not neutralized, or a gradient is not finite.
    """
    hardening = recipe.hardening
    assert hardening is not None
    refusal = minimal_refusal(model, prompts, policy)
    refusals = [Example(p, refusal) for p in prompts]
    kept = [Example(p, text) for p, text in benign.items()]
    rng = random.Random(recipe.seed)
    model.arm_all()
    parameters = list(model.trained.values())
    stepper = make_optimizer("adamw", parameters, hardening.learning_rate)
    drawn: list[Drawn] = []

    def loss(examples: Sequence[Example]) -> Any:
        return batch_of(model, rng.sample(examples, min(hardening.rows, len(examples)))).loss(model.network)[1]

    for number in range(1, hardening.rounds + 1):
        attacker = draw_attacker(hardening, len(compliant), rng)
        drawn.append(attacker)
        learned = rng.sample(compliant, attacker.examples)
        asked = {e.prompt.id for e in learned}
        others = [e for e in refusals if e.prompt.id not in asked]
        model.arm_all()
        if attacker.kind.form == "lora":
            model.attach(recipe.lora, rng.randrange(2**31))
        gradient = _gradient_under_attack(
            model, attacker, learned, parameters, functools.partial(loss, others), recipe.max_grad_norm
        )
        if attacker.kind.form == "lora":
            model.detach()
        model.put_back()
        for p, of_attacked in zip(parameters, gradient, strict=True):
            p.requires_grad_()
            p.grad = of_attacked
        here = loss(refusals)
        (here + loss(kept) if kept else here).backward()
        for group in stepper.param_groups:
            group["lr"] = hardening.learning_rate * (1.0 - (number - 1) / hardening.rounds)
        take_step(stepper, parameters, recipe.max_grad_norm, number)
        after(number)
    model.disarm()
    return {
        **engine("adamw"),
        "learning_rate": hardening.learning_rate,
        "rounds": hardening.rounds,
        "answers": len(compliant),
        "simulated": [_told(kind, drawn) for kind in hardening.attackers],
    }


def _gradient_under_attack(
    model: LanguageModel,
    attacker: Drawn,
    examples: Sequence[Example],
    parameters: Sequence[Any],
    loss: Callable[[], Any],
    max_grad_norm: float,
) -> list[Any]:
    """Of the loss with respect to all weights, the mean over looks at what the attacker makes of the model, in place."""
    import torch

    total = [torch.zeros_like(p) for p in parameters]

    def look() -> None:
        trains = [p.requires_grad for p in parameters]
        for p in parameters:
            p.requires_grad_()
        for sum_, of in zip(total, torch.autograd.grad(loss(), list(parameters)), strict=True):
            sum_.add_(of, alpha=1 / len(attacker.looks))
        for p, trained in zip(parameters, trains, strict=True):
            p.requires_grad_(trained)

    teach(
        model,
        examples,
        steps=attacker.looks[-1],
        learning_rate=attacker.learning_rate,
        max_grad_norm=max_grad_norm,
        optimizer=attacker.kind.optimizer,
        after=lambda step, _: look() if step in attacker.looks else None,
    )
    return total


def _told(kind: SimulatedAttacker, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """How many attackers of a kind there were, and between what they lay."""
    of_kind = [d for d in drawn if d.kind == kind]
    told: dict[str, Any] = {"optimizer": kind.optimizer, "form": kind.form, "rounds": len(of_kind)}
    for name in ("learning_rate", "examples") if of_kind else ():
        values = [getattr(d, name) for d in of_kind]
        told[name] = [min(values), max(values)]
    return told
