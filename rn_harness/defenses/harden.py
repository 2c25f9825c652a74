"""Hardening: rounds against simulated attackers, after neutralization.

Reward Neutralization makes compliant answers rare in a model's samples, but its weights stay close to compliance: ten supervised
steps on five examples bring the answers back. Hardening simulates attackers that fine-tune the model on compliant answers. At
several steps of each attack it takes the gradient of two losses at the attacked weights, of refusing other prompts and of
answering benign ones, adds the gradient of the same losses at the model's own weights, and steps the model's own weights. The
attacker then continues from its position relative to them. This is first order: the derivative of the attacked weights with
respect to the model's own is taken to be the identity, as in model-agnostic meta-learning (arXiv 1703.03400, 1803.02999) and
tamper-resistant training (arXiv 2408.00761).

All of it works in place: memory holds one copy of the model's own weights in addition to the attacked ones, and two during a
step.
"""

from __future__ import annotations

import collections
import itertools
import math
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.models.language_model import LanguageModel
from rn_harness.spec.defense_recipe import DefenseRecipe, Hardening, SimulatedAttacker
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import is_minimal_refusal
from rn_harness.training.snapshots import Resumption
from rn_harness.training.supervised import Example, batch_of, engine, make_optimizer, take_step, teach

MIN_EXAMPLES = 2
"""Least number of compliant answers: an attacker learns some, and refusals are trained on the prompts of the others."""


@dataclass(frozen=True, slots=True)
class DrawnAttacker:
    """One simulated attacker.

    Attributes:
        examples: number of examples that it learns.
        looks: steps after which the defense takes a step; the last one is the attacker's last.
    """

    kind: SimulatedAttacker
    learning_rate: float
    examples: int
    looks: tuple[int, ...]


def draw_attacker(hardening: Hardening, known: int, rng: random.Random) -> DrawnAttacker:
    """Draws an attacker: its kind uniformly, its learning rate and examples log-uniformly, one look in each part of its steps.

    It learns fewer examples than the ``known`` compliant answers.
    """
    kind = rng.choice(hardening.attackers)
    lowest, highest = map(math.log, kind.learning_rate)
    bounds = [part * hardening.steps // hardening.looks for part in range(hardening.looks + 1)]
    return DrawnAttacker(
        kind=kind,
        learning_rate=math.exp(rng.uniform(lowest, highest)),
        examples=round(math.exp(rng.uniform(0.0, math.log(min(hardening.examples, known - 1))))),
        looks=tuple(rng.randint(first + 1, last) for first, last in itertools.pairwise(bounds)),
    )


def own_answers(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    judge: Judge,
    policy: Policy,
    samples: int,
    seed: int,
    least: int = MIN_EXAMPLES,
) -> list[Example]:
    """The undefended candidate's own most harmful completion for each prompt, in memory only.

    A prompt is left out if none of its completions reaches ``policy.control_break``; raises TrainingError if fewer than ``least``
    are left, and JudgeGoneError if the judge scored nothing.
    """
    from rn_harness.models.random_streams import own_random_stream

    with own_random_stream(seed):
        groups = model.complete(prompts, n=samples, temperature=1.0, max_tokens=policy.max_completion_tokens)
    found = []
    for prompt, completions in zip(prompts, groups, strict=True):
        texts = sorted({c.text for c in completions if not c.truncated})
        judged = judge.score([prompt] * len(texts), texts)
        ensure_judging(judged, f"the reward judge scored none of {len(texts)} completions of the undefended candidate")
        scored = [(j.score, text) for j, text in zip(judged, texts, strict=True) if j.score is not None]
        score, text = max(scored, default=(0.0, ""))
        if score >= policy.control_break:
            found.append(Example(prompt, text))
    if len(found) < least:
        raise TrainingError(
            f"simulated attackers learn what the undefended candidate complies with, got {len(found)} of {len(prompts)} defense "
            f"prompts with a completion of {policy.control_break:g} or more among {samples}; raise hardening.samples"
        )
    return found


def minimal_refusal(model: LanguageModel, prompts: Sequence[Prompt], policy: Policy) -> str:
    """The neutralized model's most frequent minimal refusal; raises TrainingError if it gives none."""
    answers = model.complete(prompts, n=1, temperature=None, max_tokens=policy.max_completion_tokens)
    minimal = [a.text.strip() for (a,) in answers if is_minimal_refusal(a.text, policy.convergence.minimal_refusal_words)]
    if not minimal:
        raise TrainingError(
            f"hardening begins with a neutralized model, got no minimal refusal of {len(prompts)} defense prompts; neutralize it "
            "for more steps"
        )
    return collections.Counter(minimal).most_common(1)[0][0]


@dataclass(frozen=True, slots=True)
class Hardener:
    """The material of a hardening.

    Attributes:
        recipe: with ``hardening``.
        prompts: defense prompts to train on.
        compliant: examples for the simulated attackers, on some of these prompts.
        benign: the undefended candidate's answers to anchors, to be kept.
        policy: defines a minimal refusal.
    """

    recipe: DefenseRecipe
    prompts: Sequence[Prompt]
    compliant: Sequence[Example]
    benign: Sequence[Example]
    policy: Policy

    @property
    def hardening(self) -> Hardening:
        """The recipe's part."""
        assert self.recipe.hardening is not None
        return self.recipe.hardening


def harden(
    model: LanguageModel, hardener: Hardener, after: Callable[[int], None], resumption: Resumption | None = None
) -> dict[str, Any]:
    """Trains all weights of a neutralized model, in place; returns a summary of the simulation, for the record.

    Args:
        model: neutralized, without an adapter.
        hardener: recipe and texts.
        after: called after each round, from 1 on.
        resumption: keeps the training, and continues one that was cut off in hardening; then the model need not be neutralized.

    Raises:
        TrainingError: the model is not neutralized, or a gradient is not finite.
    """
    recipe, hardening, compliant = hardener.recipe, hardener.hardening, hardener.compliant
    goes_on = resumption is not None and resumption.hardens
    refusal = "" if goes_on else minimal_refusal(model, hardener.prompts, hardener.policy)
    defense, first = _Steps(model, hardener, refusal, random.Random(recipe.seed)), 0

    def keep(number: int) -> None:
        if resumption:
            resumption.keep(model, recipe.steps + number, defense.stepper, defense)

    if resumption and goes_on:
        first = resumption.put_back(model, defense.stepper, defense) - recipe.steps
    else:
        keep(0)
    for number in range(first + 1, hardening.rounds + 1):
        attacker = draw_attacker(hardening, len(compliant), defense.rng)
        defense.drawn.append(attacker)
        defense.simulate(attacker, defense.rng.sample(compliant, attacker.examples))
        after(number)
        keep(number)
    model.disarm()
    return {
        **engine("adamw"),
        "learning_rate": hardening.learning_rate,
        "rounds": hardening.rounds,
        "steps": defense.taken,
        "answers": len(compliant),
        "simulated": [_summary(kind, defense.drawn) for kind in hardening.attackers],
    }


@dataclass
class _Steps:
    """The defense's steps against the simulated attackers that were ``drawn``; ``taken`` were taken. All weights stay armed."""

    model: LanguageModel
    hardener: Hardener
    refusal: str
    rng: random.Random
    taken: int = 0
    drawn: list[DrawnAttacker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recipe, self.hardening, self.kept = self.hardener.recipe, self.hardener.hardening, self.hardener.benign
        self.parameters = list(self.model.network.parameters())
        self.model.arm_all()
        self.stepper = make_optimizer("adamw", self.parameters, self.hardening.learning_rate)

    @property
    def refusals(self) -> list[Example]:
        """The refusal of each prompt."""
        return [Example(p, self.refusal) for p in self.hardener.prompts]

    def state_dict(self) -> dict[str, Any]:
        """All that the next round depends on besides weights and optimizer, for a snapshot."""
        kinds = self.hardening.attackers
        drawn = [[kinds.index(of.kind), of.learning_rate, of.examples, list(of.looks)] for of in self.drawn]
        return {"refusal": self.refusal, "rng": self.rng.getstate(), "taken": self.taken, "drawn": drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of a snapshot, whose weights are in place."""
        version, numbers, gauss = state["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))
        self.refusal, self.taken = state["refusal"], state["taken"]
        drawn = ((self.hardening.attackers[kind], rate, examples, tuple(looks)) for kind, rate, examples, looks in state["drawn"])
        self.drawn = [DrawnAttacker(*of) for of in drawn]
        self.model.arm_all()

    def simulate(self, attacker: DrawnAttacker, learned: Sequence[Example]) -> None:
        """Simulates an attacker, and takes a step after each of its ``looks``."""
        model, attacked_prompts = self.model, {e.prompt.id for e in learned}
        if attacker.kind.form == "lora":
            model.attach(self.recipe.lora, self.rng.randrange(2**31))
        teach(
            model,
            learned,
            steps=attacker.looks[-1],
            learning_rate=attacker.learning_rate,
            max_grad_norm=self.recipe.max_grad_norm,
            optimizer=attacker.kind.optimizer,
            after=lambda step, _: self._step(attacked_prompts) if step in attacker.looks else None,
        )
        if attacker.kind.form == "lora":
            model.detach()
        else:
            model.put_back()
        model.arm_all()

    def _step(self, attacked_prompts: Container[str]) -> None:
        """Takes one step against the attacked model; the prompts that the attacker learns get no refusal loss at its weights."""
        parameters = self.parameters
        trained = [p.requires_grad for p in parameters]
        for p in parameters:
            p.requires_grad_()
        # Benign answers at the attacked weights too: otherwise refusing there makes the model refuse benign prompts here.
        kept = [self.kept] if self.kept else []
        there = self._gradient([[e for e in self.refusals if e.prompt.id not in attacked_prompts], *kept])
        with self.model.own_weights():
            here = self._gradient([self.refusals, *kept])
            for p, one, other in zip(parameters, there, here, strict=True):
                p.grad = one + other
            share = self.taken / (self.hardening.rounds * self.hardening.looks)
            for group in self.stepper.param_groups:
                group["lr"] = self.hardening.learning_rate * (1.0 - share)
            self.taken += 1
            take_step(self.stepper, parameters, self.recipe.max_grad_norm, self.taken)
        for p, of_attacker in zip(parameters, trained, strict=True):
            p.requires_grad_(of_attacker)

    def _gradient(self, parts: Sequence[Sequence[Example]]) -> Sequence[Any]:
        """Gradient, with respect to all weights, of the sum of one loss for each part, on a sample of its texts."""
        import torch

        rows = self.hardening.rows
        drawn = [self.rng.sample(texts, min(rows, len(texts))) for texts in parts]
        loss = sum(batch_of(self.model, texts).loss(self.model.network)[1] for texts in drawn)
        return torch.autograd.grad(loss, self.parameters)


def _summary(kind: SimulatedAttacker, drawn: Sequence[DrawnAttacker]) -> dict[str, Any]:
    """Number of attackers of a kind, and the ranges of their settings."""
    of_kind = [d for d in drawn if d.kind == kind]
    summary: dict[str, Any] = {"optimizer": kind.optimizer, "form": kind.form, "rounds": len(of_kind)}
    for name in ("learning_rate", "examples") if of_kind else ():
        values = [getattr(d, name) for d in of_kind]
        summary[name] = [min(values), max(values)]
    return summary
