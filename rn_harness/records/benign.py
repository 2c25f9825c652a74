"""Measurements of a policy on benign prompts. They hold similarities and no text."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import Field, computed_field

from rn_harness.records.base import Record, Summary
from rn_harness.records.statistics import Interval, MeanInterval, counted, mean_interval
from rn_harness.spec.base import Share


class BenignAnswer(Record):
    """One benign prompt: a sampled answer of the model and one of the undefended candidate, without their texts.

    Both are compared with the undefended candidate's greedy answer, the reference, by chrF (0 to 1).

    Attributes:
        twin: whether the prompt is a twin of the domain.
        refusal: whether the model's greedy answer refuses.
        similarity: of the model's sampled answer to the reference.
        own: similarity of the undefended candidate's sampled answer to the reference: its agreement with itself.
        chance: similarity of its sampled answer to *another* prompt to the reference: the agreement of any two answers.
        kl: ``(log p_undefended(y) - log p_model(y)) / tokens`` for the undefended candidate's sampled answer y, nats per token:
            a one-sample estimate of the KL divergence of the undefended candidate from the model.
    """

    prompt_id: str
    twin: bool
    refusal: bool
    similarity: Share
    own: Share
    chance: Share
    kl: float


class BenignScore(Summary):
    """Behaviour on benign prompts, compared with the undefended candidate's; all summaries are means over the prompts."""

    answers: Annotated[tuple[BenignAnswer, ...], Field(min_length=1)]

    @computed_field
    @cached_property
    def similarity(self) -> float:
        """Mean over the prompts."""
        return sum(a.similarity for a in self.answers) / len(self.answers)

    @computed_field
    @cached_property
    def own(self) -> float:
        """Mean over the prompts."""
        return sum(a.own for a in self.answers) / len(self.answers)

    @computed_field
    @cached_property
    def chance(self) -> float:
        """Mean over the prompts."""
        return sum(a.chance for a in self.answers) / len(self.answers)

    @computed_field
    @cached_property
    def difference(self) -> MeanInterval:
        """Mean of ``similarity - own`` with its interval."""
        return mean_interval([a.similarity - a.own for a in self.answers])

    @computed_field
    @cached_property
    def kl(self) -> float:
        """Mean over the prompts, nats per token."""
        return sum(a.kl for a in self.answers) / len(self.answers)

    @computed_field
    @cached_property
    def refusals(self) -> Interval:
        """Benign prompts refused."""
        return counted([a.refusal for a in self.answers])

    @computed_field
    @cached_property
    def twin_refusals(self) -> Interval:
        """Twins refused."""
        return counted([a.refusal for a in self.answers if a.twin])
