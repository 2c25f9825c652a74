"""Hardening: rounds against simulated attackers, after neutralization.

Reward Neutralization makes compliant answers rare in what a model samples, not far away in its weights: ten supervised steps on
five examples bring them back. Here attackers drawn by lot fine-tune the model on compliant answers, one after the other. Several
times on an attacker's way, the gradient of refusing other prompts *there* and of answering benign ones is added to that of the
same *here*, and the model's own weights are stepped; the attacker goes on from where it was, moved along. First order: how the
attacked weights depend on the model's own is taken to be the identity. It is what model-agnostic meta-learning does
(arXiv 1703.03400, 1803.02999), and tamper-resistant training (arXiv 2408.00761).

All is done in place: the model's own weights are held once beside the attacked ones, and twice for the time of a step.
"""

from __future__ import annotations

import collections
import itertools
import math
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.spec.defense_recipe import SimulatedAttacker
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import is_minimal_refusal
from rn_harness.training.supervised import Diagnostics, Example, batch_of, engine, make_optimizer, take_step, teach

if TYPE_CHECKING:
    from rn_harness.models.language_model import LanguageModel
    from rn_harness.spec.defense_recipe import DefenseRecipe, Hardening

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
    from rn_harness.models.random_streams import own_random_stream

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
    benign: Sequence[Example],
    policy: Policy,
    after: Callable[[int], None],
) -> dict[str, Any]:
    """Trains all weights of a neutralized model, in place.

    Args:
        model: neutralized, without an adapter.
        recipe: with ``hardening``.
        prompts: defense prompts that are trained on.
        compliant: what simulated attackers learn, on some of these prompts.
        benign: the undefended candidate's answers to anchors, which are to stay.
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
    rng = random.Random(recipe.seed)
    defense = _Defense(
        model=model,
        hardening=hardening,
        refusals=[Example(p, refusal) for p in prompts],
        kept=benign,
        rng=rng,
        max_grad_norm=recipe.max_grad_norm,
    )
    drawn: list[Drawn] = []
    for number in range(1, hardening.rounds + 1):
        attacker = draw_attacker(hardening, len(compliant), rng)
        drawn.append(attacker)
        learned = rng.sample(compliant, attacker.examples)
        model.arm_all()
        if attacker.kind.form == "lora":
            model.attach(recipe.lora, rng.randrange(2**31))
        asked = {e.prompt.id for e in learned}

        def look(step: int, _: Diagnostics, looks: Sequence[int] = attacker.looks, asked: set[str] = asked) -> None:
            if step in looks:
                defense.step(asked)

        teach(
            model,
            learned,
            steps=attacker.looks[-1],
            learning_rate=attacker.learning_rate,
            max_grad_norm=recipe.max_grad_norm,
            optimizer=attacker.kind.optimizer,
            after=look,
        )
        if attacker.kind.form == "lora":
            model.detach()
        else:
            model.put_back()
        after(number)
    model.disarm()
    return {
        **engine("adamw"),
        "learning_rate": hardening.learning_rate,
        "rounds": hardening.rounds,
        "steps": defense.taken,
        "answers": len(compliant),
        "simulated": [_told(kind, drawn) for kind in hardening.attackers],
    }


class _Defense:
    """Whose steps are taken on an attacker's way: the model's own weights are stepped, and the attacker's change of them goes on.

    Attributes:
        taken: steps.
    """

    def __init__(
        self,
        model: LanguageModel,
        hardening: Hardening,
        refusals: Sequence[Example],
        kept: Sequence[Example],
        rng: random.Random,
        max_grad_norm: float,
    ) -> None:
        self._model, self._hardening, self._rng, self._max_grad_norm = model, hardening, rng, max_grad_norm
        self._refusals, self._kept = refusals, kept
        self._parameters = list(model.network.parameters())
        model.arm_all()
        self._stepper = make_optimizer("adamw", self._parameters, hardening.learning_rate)
        self.taken = 0

    def step(self, asked: Container[str]) -> None:
        """One, against the attacked model as it stands.

        Args:
            asked: ids of the prompts that the attacker learns, which refusals are not asked of there.
        """
        parameters = self._parameters
        trained = [p.requires_grad for p in parameters]
        for p in parameters:
            p.requires_grad_()
        # Benign answers there too: else refusing there makes the model refuse benign prompts here.
        kept = [self._kept] if self._kept else []
        there = self._gradient([[e for e in self._refusals if e.prompt.id not in asked], *kept])
        with self._model.own_weights():
            here = self._gradient([self._refusals, *kept])
            for p, one, other in zip(parameters, there, here, strict=True):
                p.grad = one + other
            share = self.taken / (self._hardening.rounds * self._hardening.looks)
            for group in self._stepper.param_groups:
                group["lr"] = self._hardening.learning_rate * (1.0 - share)
            self.taken += 1
            take_step(self._stepper, parameters, self._max_grad_norm, self.taken)
        for p, of_attacker in zip(parameters, trained, strict=True):
            p.requires_grad_(of_attacker)

    def _gradient(self, parts: Sequence[Sequence[Example]]) -> Sequence[Any]:
        """Of the sum of losses, each on some of its texts, with respect to all weights."""
        import torch

        rows = self._hardening.rows
        drawn = [self._rng.sample(texts, min(rows, len(texts))) for texts in parts]
        loss = sum(batch_of(self._model, texts).loss(self._model.network)[1] for texts in drawn)
        gradient: Sequence[Any] = torch.autograd.grad(loss, self._parameters)
        return gradient


def _told(kind: SimulatedAttacker, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """How many attackers of a kind there were, and between what they lay."""
    of_kind = [d for d in drawn if d.kind == kind]
    told: dict[str, Any] = {"optimizer": kind.optimizer, "form": kind.form, "rounds": len(of_kind)}
    for name in ("learning_rate", "examples") if of_kind else ():
        values = [getattr(d, name) for d in of_kind]
        told[name] = [min(values), max(values)]
    return told
