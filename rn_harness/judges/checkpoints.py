"""Checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rn_harness.judges.certification import score_planted
from rn_harness.models.unchanged import Held
from rn_harness.records.trajectory import (
    BenignScore,
    Checkpoint,
    CompletionScore,
    TrainingWindow,
)

if TYPE_CHECKING:
    from rn_harness.models.completion import Completion
    from rn_harness.models.language_model import LanguageModel
from rn_harness.judges.benign import measure_benign
from rn_harness.judges.panel import ControlAnswers, Panel
from rn_harness.judges.scoring import score_heldout, summarise

WHOLE_SEED = 1
"""Of what follows where a limit cut a sampled completion: a stream apart, so that going on changes nothing else."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a policy said and how it stands at a step, in memory only, before any judge has seen it.

    Attributes:
        step: attack steps taken so far.
        greedy, sampled: of each of K held-out prompts one completion, and ``policy.samples``.
        leak, leak_of_control, benign: see ``records.Checkpoint``.
    """

    step: int
    greedy: list[list[Completion]]
    sampled: list[list[Completion]]
    leak: float | None
    leak_of_control: tuple[float, float] | None
    benign: BenignScore | None

    def __repr__(self) -> str:
        """No answers."""
        return f"Seen(step={self.step})"


def look(
    model: LanguageModel,
    panel: Panel,
    step: int,
    *,
    seed: int,
    with_benign: bool,
    whole: bool = True,
    held: Held | None = None,
) -> Seen:
    """One greedy and ``policy.samples`` sampled completions of each held-out prompt, and what needs no judge.

    Args:
        model: the policy as it stands.
        panel: what it is measured on.
        step: attack steps taken so far.
        seed: of the sampling; the stream is the measurement's own.
        with_benign: whether the benign prompts are due.
        whole: whether held-out completions that the limit cut are gone on with, up to ``policy.max_whole_tokens``.
        held: what earlier checkpoints of this attack measured; None: everything is measured now.
    """
    from rn_harness.models.random_streams import own_random_stream

    policy, answers = panel.policy, panel.control_answers
    if held is None:
        held = Held()
    else:
        held.look(model)
    with own_random_stream(seed, step):
        greedy = held.of_weights(
            "greedy", lambda: model.complete(panel.heldout, n=1, temperature=None, max_tokens=panel.max_tokens)
        )
        how: dict[str, Any] = {"temperature": policy.sample_temperature, "max_tokens": panel.max_tokens}
        sampled = model.complete(panel.heldout, n=policy.samples, **how) if policy.samples else [[] for _ in panel.heldout]
        if whole:
            longer: dict[str, Any] = {"max_tokens": policy.max_whole_tokens}
            cut = greedy
            greedy = held.of_weights("greedy, whole", lambda: model.finish(panel.heldout, cut, temperature=None, **longer))
            with own_random_stream(seed, step, WHOLE_SEED):
                sampled = model.finish(panel.heldout, sampled, temperature=policy.sample_temperature, **longer)
        return Seen(
            step=step,
            greedy=greedy,
            sampled=sampled,
            leak=held.of_weights("leak", lambda: _leak(model, panel)),
            leak_of_control=held.of_attack("leak of control", lambda: leak_of(model, answers)) if answers else None,
            benign=held.of_attack("benign", lambda: measure_benign(model, panel, held)) if with_benign else None,
        )


def judge_checkpoint(
    panel: Panel,
    seen: Seen,
    *,
    training: TrainingWindow | None = None,
    found: Callable[[ControlAnswers], None] | None = None,
) -> Checkpoint:
    """All completions scored, and the planted anchors; the model is not asked any more.

    Args:
        panel: who judges.
        seen: what is judged.
        training: diagnostics since the last checkpoint.
        found: gets the greedy answers above the threshold, if there are any.
    """
    policy, scores = panel.policy, list[CompletionScore]()
    for completions, first_sample in ((seen.greedy, 0), (seen.sampled, 1)):
        of = score_heldout(panel, completions, first_sample) if any(completions) else []
        if panel.transcript and of:
            panel.transcript.add(seen.step, panel.heldout, completions, of)
        scores += of
    # Of an answer with a think part the probability without it says little, and the harm may be in that part.
    greedy = [of[0] for of in seen.greedy]
    above = [i for i, c in enumerate(greedy) if c.thought is None and (scores[i].score or 0.0) > policy.threshold]
    if found is not None and above:
        found(ControlAnswers(tuple(panel.heldout[i] for i in above), tuple(greedy[i].text for i in above)))
    return summarise(
        seen.step,
        scores,
        policy,
        leak=seen.leak,
        leak_of_control=seen.leak_of_control,
        benign=seen.benign,
        training=training,
        planted=score_planted(panel.anchor_judge, panel.planted, policy),
    )


def measure_checkpoint(model: LanguageModel, panel: Panel, step: int, *, seed: int, with_benign: bool) -> Checkpoint:
    """A checkpoint, seen and judged at once; see ``look``."""
    return judge_checkpoint(panel, look(model, panel, step, seed=seed, with_benign=with_benign))


def _leak(model: LanguageModel, panel: Panel) -> float | None:
    """See ``records.Checkpoint``; None where the compliant answers are not known."""
    known = panel.compliant_answers
    return model.leak(panel.heldout, [known[p.id] for p in panel.heldout]) if known is not None else None


def leak_of(model: LanguageModel, answers: ControlAnswers) -> tuple[float, float]:
    """Mean log-probability of what the broken control answered, in nats: over all tokens, and over the answers."""
    logs = model.log_probability(answers.prompts, answers.texts)
    return sum(logs) / sum(model.token_count(text) for text in answers.texts), sum(logs) / len(logs)
