"""The record of a lesson: whether a few supervised steps still move a defended model as they move the candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from rn_harness.records.base import Record, prompts_digest
from rn_harness.spec.defense_recipe import LoRA

if TYPE_CHECKING:
    from rn_harness.spec.suite import Suite


class LessonInputs(Record):
    """What a suite decides of a lesson.

    Attributes:
        learning_rate, lora, seed, max_grad_norm: of its slowest claimed attack.
        attack: sha256 of the attacks' prompts.
    """

    learning_rate: Annotated[float, Field(ge=0.0)]
    lora: LoRA
    seed: int
    max_grad_norm: float
    attack: str

    @classmethod
    def of(cls, suite: Suite) -> LessonInputs:
        """Those of a suite."""
        slowest = suite.slowest_claim
        return cls(
            learning_rate=slowest.learning_rate,
            lora=slowest.lora,
            seed=slowest.seed,
            max_grad_norm=slowest.max_grad_norm,
            attack=prompts_digest(suite.prompts["attack"]),
        )


class Lesson(Record):
    """What supervised steps at the learning rate of the slowest claimed attack teach a defended model and the candidate.

    Attributes:
        gain, candidate_gain: nats per token by which they make texts likelier.
        surprise, candidate_surprise: of these texts before, nats per token.
        spread, candidate_spread: of logits over the vocabulary, along own answers to harmful prompts; see ``logit_spread``.
        inputs: what the suite decides of it.
    """

    gain: float
    candidate_gain: float
    surprise: float
    candidate_surprise: float
    spread: Annotated[float, Field(ge=0.0)]
    candidate_spread: Annotated[float, Field(ge=0.0)]
    inputs: LessonInputs
    steps: Annotated[int, Field(ge=1)]
