"""Checkpoints of a policy: completions of held-out prompts, then their scores.

Texts of completions are given to the judge and the transcript, and are not kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rn_harness.judges.benign import measure_benign
from rn_harness.judges.certification import score_planted
from rn_harness.judges.scoring import ControlAnswers, Panel, score_heldout
from rn_harness.models.language_model import LanguageModel, MeasurementCache
from rn_harness.models.random_streams import own_random_stream
from rn_harness.records.trajectory import BenignScore, Checkpoint, CompletionScore, TrainingWindow
from rn_harness.spec.errors import TrainingError

if TYPE_CHECKING:
    from rn_harness.models.completion import Completion

WHOLE_SEED = 1
"""Seed of the continuation of cut completions: a separate stream, so that continuing them changes nothing else."""


@dataclass(frozen=True, slots=True)
class UnjudgedCheckpoint:
    """A policy's completions at a step, and all measurements that need no judge; in memory only.

    Attributes:
        step: attack steps taken so far.
        greedy, sampled: one greedy and ``policy.samples`` sampled completions of each of K held-out prompts.
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
        return f"UnjudgedCheckpoint(step={self.step})"


def sample_checkpoint(
    model: LanguageModel,
    panel: Panel,
    step: int,
    *,
    seed: int,
    with_benign: bool,
    whole: bool = True,
    cache: MeasurementCache | None = None,
) -> UnjudgedCheckpoint:
    """Samples a policy at a step, and takes all measurements that need no judge.

    Args:
        model, panel: the policy; prompts and numbers.
        step: attack steps taken so far.
        seed: of the sampling, which has a separate random stream.
        with_benign: the benign prompts are due.
        whole: continue held-out completions that the limit cut, up to ``policy.max_whole_tokens``.
        cache: earlier measurements of this attack; None: everything is measured now.
    """
    policy, answers = panel.policy, panel.control_answers
    if cache is None:
        cache = MeasurementCache()
    else:
        cache.forget_changed(model)
    with own_random_stream(seed, step):
        greedy = cache.of_weights(
            "greedy", lambda: model.complete(panel.heldout, n=1, temperature=None, max_tokens=panel.max_tokens)
        )
        sampled: list[list[Completion]] = [[] for _ in panel.heldout]
        if policy.samples:
            sampled = model.complete(
                panel.heldout, n=policy.samples, temperature=policy.sample_temperature, max_tokens=panel.max_tokens
            )
        if whole:
            limit, cut = policy.max_whole_tokens, greedy
            greedy = cache.of_weights(
                "greedy, whole", lambda: model.finish(panel.heldout, cut, temperature=None, max_tokens=limit)
            )
            with own_random_stream(seed, step, WHOLE_SEED):
                sampled = model.finish(panel.heldout, sampled, temperature=policy.sample_temperature, max_tokens=limit)
        return UnjudgedCheckpoint(
            step=step,
            greedy=greedy,
            sampled=sampled,
            leak=cache.of_weights("leak", lambda: _leak(model, panel)),
            leak_of_control=cache.of_attack("leak of control", lambda: leak_of(model, answers)) if answers else None,
            benign=cache.of_attack("benign", lambda: measure_benign(model, panel, cache)) if with_benign else None,
        )


def judge_checkpoint(
    panel: Panel,
    unjudged: UnjudgedCheckpoint,
    *,
    training: TrainingWindow | None = None,
    found: Callable[[ControlAnswers], None] | None = None,
) -> Checkpoint:
    """Scores all completions and the planted anchors; needs no model. Raises TrainingError if there is nothing to score.

    ``training`` has the diagnostics since the last checkpoint. ``found`` gets the greedy answers above the threshold, if any.
    """
    policy, scores = panel.policy, list[CompletionScore]()
    for completions, first_sample in ((unjudged.greedy, 0), (unjudged.sampled, 1)):
        given = score_heldout(panel, completions, first_sample) if any(completions) else []
        if panel.transcript and given:
            panel.transcript.add(unjudged.step, panel.heldout, completions, given)
        scores += given
    if not scores:
        raise TrainingError(f"a checkpoint scores completions of held-out prompts, got none at step {unjudged.step}; name some")
    # The probability of an answer without its think part says little, and the harm may be in that part.
    greedy = [group[0] for group in unjudged.greedy]
    above = [i for i, c in enumerate(greedy) if c.thought is None and (scores[i].score or 0.0) > policy.threshold]
    if found is not None and above:
        found(ControlAnswers(tuple(panel.heldout[i] for i in above), tuple(greedy[i].text for i in above)))
    per_token, per_sequence = unjudged.leak_of_control or (None, None)
    return Checkpoint(
        step=unjudged.step,
        scores=tuple(scores),
        threshold=policy.threshold,
        leak=unjudged.leak,
        leak_per_token=per_token,
        leak_per_sequence=per_sequence,
        benign=unjudged.benign,
        training=training,
        planted=score_planted(panel.anchor_judge, panel.planted, policy),
    )


def measure_checkpoint(model: LanguageModel, panel: Panel, step: int, *, seed: int, with_benign: bool) -> Checkpoint:
    """Samples and judges a checkpoint; see ``sample_checkpoint``."""
    return judge_checkpoint(panel, sample_checkpoint(model, panel, step, seed=seed, with_benign=with_benign))


def _leak(model: LanguageModel, panel: Panel) -> float | None:
    """See ``records.Checkpoint``; None if the compliant answers are not known."""
    known = panel.compliant_answers
    return model.leak(panel.heldout, [known[p.id] for p in panel.heldout]) if known is not None else None


def leak_of(model: LanguageModel, answers: ControlAnswers) -> tuple[float, float]:
    """Mean log-probability of the broken control's answers, in nats: over all tokens, and over the answers."""
    logs = model.log_probability(answers.prompts, answers.texts)
    return sum(logs) / sum(model.token_count(text) for text in answers.texts), sum(logs) / len(logs)
