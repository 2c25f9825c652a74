"""Time on a GPU, computed from its data sheet: sampling, updates and judges' reading. Nothing here was measured on a card.

A forward pass takes as long as the slowest of three: reading the weights, multiplying, and launching the kernels from Python. An
update is bound by multiplying. A judge reads a question in one pass, and writes its short reply token by token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rn_harness.judges.hf import ROWS_AT_ONCE as JUDGED_AT_ONCE
from rn_harness.models.memory import ROWS_AT_ONCE, Shape

Limit = Literal["launching from Python", "memory bandwidth", "arithmetic", "reading files"]
Role = Literal["judge", "reward", "second"]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its data sheet.

    Attributes:
        name: full name.
        bandwidth, rate: bytes, and dense bfloat16 operations, per second.
        of_bandwidth, of_rate: assumed shares of them that are reached.
    """

    name: str
    bandwidth: float
    rate: float
    of_bandwidth: float = 0.5
    of_rate: float = 0.4


CARDS = {"h100": Card("NVIDIA H100 SXM", 3.35e12, 989e12)}
"""By NVIDIA's data sheet, which gives 1979 TFLOPS of bfloat16 with sparsity, half of it without."""
DOLLARS = 3.0
"""Assumed dollars of a card and hour."""
LAUNCH_S = 0.55e-3
"""Python's part of a layer's forward pass: half of 4.5 ms for four layers, measured on a CPU (docs/evidence/performance.md)."""
HASH_RATE = 0.15e9
"""Bytes per second that one core hashes, beside other work (docs/evidence/outside.json)."""
FILE_RATE = 2e9
"""Assumed bytes per second at which weights are loaded from a disk."""
BYTES = 2
"""Of a judge's weight."""
BACKWARD, FULL_BACKWARD, RECOMPUTED = 2, 4, 2
"""Operations of a weight and token in addition to the forward pass's two: of an adapter, of all weights, of activations."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A judge that is a language model.

    Attributes:
        name: its spec.
        parameters: of its weights on this card; 0: it is on a server.
        question: tokens of its question, without the answer that it rates.
        reply: assumed tokens of its reply, at most.
    """

    name: str
    parameters: float
    question: int
    reply: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A model and its judges on a card.

    Attributes:
        card: that all of them share.
        shape: of the model under test.
        number: bytes of one of its weights.
        prompt: tokens of a prompt.
        judges: by role; the same judge may have several. A role without a language model is left out.
        vllm: vLLM samples the rollouts, which launches a pass at once; everything else is transformers'.
        answer_share: mean length of the undefended model's answers, as a share of the limit; the longest of a batch has all.
            12.7 of 24 tokens on the organism (docs/evidence/performance.json).
        refusal: tokens of a defended model's answer. SmolLM2's refusals have eleven words (docs/log.md).
    """

    card: Card
    shape: Shape
    number: float
    prompt: int
    judges: Mapping[Role, Reader]
    vllm: bool = False
    answer_share: float = 0.53
    refusal: int = 16

    @property
    def launch(self) -> float:
        """Seconds in which Python launches a forward pass."""
        return LAUNCH_S * self.shape.layers

    @property
    def weights(self) -> float:
        """Bytes of all weights on the card."""
        return self.shape.parameters * self.number + sum(r.parameters * BYTES for r in set(self.judges.values()))

    @property
    def start(self) -> float:
        """Seconds before a process begins its first case: all weights are hashed, and the judges' are loaded."""
        return self.weights / HASH_RATE + (self.weights - self.shape.parameters * self.number) / FILE_RATE


@dataclass
class Cost:
    """The time of some work.

    Attributes:
        terms: seconds by kind of work.
        limits: the same seconds by what bounds them.
        read: tokens that judges read, by role.
    """

    terms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    limits: dict[Limit, float] = field(default_factory=lambda: defaultdict(float))
    read: dict[Role, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self.terms.values())

    @property
    def limit(self) -> Limit:
        """What bounds most of it."""
        return max(self.limits, key=lambda name: self.limits[name])

    def add(self, term: str, seconds: Mapping[Limit, float]) -> None:
        """Adds a piece of work that lasts as long as its slowest part."""
        limit = max(seconds, key=lambda name: seconds[name])
        self.terms[term] += seconds[limit]
        self.limits[limit] += seconds[limit]

    def include(self, other: Cost, times: int = 1) -> None:
        """Adds other work, done so many times."""
        for term, seconds in other.terms.items():
            self.terms[term] += times * seconds
        for limit, seconds in other.limits.items():
            self.limits[limit] += times * seconds
        for role, tokens in other.read.items():
            self.read[role] += times * tokens

    def sample(self, of: Setting, term: str, rows: int, tokens: int, *, rollouts: bool = False) -> None:
        """Sampling of this many rows, each call of which ends with its longest row."""
        for at in range(0, rows, ROWS_AT_ONCE):
            together = min(ROWS_AT_ONCE, rows - at)
            self.forward(of, term, together * of.prompt)
            cached = together * (of.prompt + tokens / 2) * 2 * of.shape.layers * of.shape.keys * of.number
            one: dict[Limit, float] = {
                "launching from Python": 0.0 if of.vllm and rollouts else of.launch,
                "memory bandwidth": (of.shape.parameters * of.number + cached) / (of.card.bandwidth * of.card.of_bandwidth),
                "arithmetic": 2 * of.shape.parameters * together / (of.card.rate * of.card.of_rate),
            }
            self.add(term, {limit: tokens * seconds for limit, seconds in one.items()})

    def forward(self, of: Setting, term: str, tokens: float, operations: int = 2, passes: int = 1) -> None:
        """Passes over known tokens, at this many operations of a weight and token."""
        computed = operations * of.shape.parameters * tokens / (of.card.rate * of.card.of_rate)
        self.add(term, {"launching from Python": passes * of.launch, "arithmetic": computed})

    def judge(self, of: Setting, term: str, role: Role, answers: float, tokens: float) -> None:
        """A judge's rating of this many answers of this mean length."""
        reader = of.judges.get(role)
        if reader is None or not answers:
            return
        read = answers * (reader.question + tokens)
        self.read[role] += read
        self.add(term, {"arithmetic": 2 * reader.parameters * read / (of.card.rate * of.card.of_rate)})
        one = reader.parameters * BYTES / (of.card.bandwidth * of.card.of_bandwidth)
        self.add(term, {"memory bandwidth": reader.reply * one * answers / JUDGED_AT_ONCE})

    def load(self, of: Setting, term: str) -> None:
        """The model under test from its files."""
        self.add(term, {"reading files": of.shape.parameters * of.number / FILE_RATE})
