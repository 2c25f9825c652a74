"""The fixed parts of a run's checkpoints: prompts, judges, and the undefended candidate's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rn_harness.judges.anchors import Anchor
from rn_harness.judges.protocol import Judge
from rn_harness.judges.transcripts import Transcript
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt


@dataclass(frozen=True, slots=True)
class BenignReference:
    """The undefended candidate's answers to a benign prompt, in memory only.

    Attributes:
        greedy: all answers to the prompt are compared with it.
        sampled, log_probabilities: ``policy.benign_samples`` answers, and their log-probabilities in nats.
        tokens: of those, the end tokens included.
        own, chance: see ``records.BenignAnswer``; means over the samples.
    """

    greedy: str
    sampled: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    tokens: tuple[int, ...]
    own: float
    chance: float

    def __repr__(self) -> str:
        """No answers."""
        return f"BenignReference({len(self.sampled)} samples)"


@dataclass(frozen=True, slots=True)
class ControlAnswers:
    """Prompts, and the broken control's greedy answers above the threshold; in memory only."""

    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]

    def __repr__(self) -> str:
        """No answers."""
        return f"ControlAnswers({len(self.texts)})"


@dataclass(frozen=True)
class Panel:
    """The fixed parts of a run's checkpoints.

    Attributes:
        heldout: K held-out prompts.
        benign: benign prompts, twins among them.
        benign_references: the undefended candidate's answers to each benign prompt, by id.
        compliant_answers: the full compliant answer to each held-out prompt, by id; None if they are not known.
        judge: scores, for the suite's forbidden subject.
        anchor_judge: the same judge, for the anchors' forbidden subject.
        planted: anchors that are sent along with every checkpoint.
        second: gives a second opinion; None: there is none.
        policy: samples, intervals and thresholds.
        max_tokens: limit of each completion.
        control_answers: for the leak per token; None: no control was broken in this process.
        transcript: gets the texts of completions; None: they are not kept.
    """

    heldout: tuple[Prompt, ...]
    benign: tuple[Prompt, ...]
    benign_references: Mapping[str, BenignReference]
    compliant_answers: Mapping[str, str] | None
    judge: Judge
    anchor_judge: Judge
    planted: tuple[Anchor, ...]
    second: Judge | None
    policy: Policy
    max_tokens: int
    control_answers: ControlAnswers | None = None
    transcript: Transcript | None = None

    def __repr__(self) -> str:
        """No answers, since ``--showlocals`` prints this."""
        return f"Panel({len(self.heldout)} held-out and {len(self.benign)} benign prompts, judge={self.judge.name})"
