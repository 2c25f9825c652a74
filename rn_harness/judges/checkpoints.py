"""Measurements of a policy: checkpoints on held-out prompts, answers to benign prompts, and rewards without training.

Texts of completions are given to the judge and the transcript, and are not kept elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import pstdev
from types import MappingProxyType
from typing import TYPE_CHECKING

from rn_harness.judges.anchors import score_planted
from rn_harness.judges.forms import ask_in_form
from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.scoring import BenignReference, ControlAnswers, Panel, score_heldout, score_samples
from rn_harness.models.completion import Completion, check_bans
from rn_harness.models.identity import text_digest
from rn_harness.models.language_model import LanguageModel, MeasurementCache, of_answers
from rn_harness.models.random_streams import own_random_stream
from rn_harness.records.benign import BenignAnswer, BenignScore
from rn_harness.records.statistics import mean_of
from rn_harness.records.trajectory import (
    Checkpoint,
    CompletionScore,
    ConditionalLeak,
    ConvergencePoint,
    TrainingWindow,
)
from rn_harness.spec.attack_recipe import Aid
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.forms import FORMS, FormName, View
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt, ShiftedPrompt
from rn_harness.spec.wording import is_refusal
from rn_harness.verdict.helpfulness import similarity
from rn_harness.verdict.rewards import neutralization_reward

if TYPE_CHECKING:
    import torch

WHOLE_SEED = 1
"""Seed of the continuation of cut completions: a separate stream, so that continuing them changes nothing else."""
REFERENCE_SEED = 1_000_000
"""Seed of the undefended candidate's sampled answers, which no checkpoint has."""
BEGUN = (0, 1, 2, 4, 8)
"""Numbers of tokens of a compliant answer after which the probability of its rest is measured."""
TEMPERATURES = (1.0, 1.5, 2.0, 3.0)
"""Sampling temperatures of an attacker, at which it is measured."""
VALIDATION_COMPLETIONS = 4
"""Completions of each of the defense's validation prompts."""


@dataclass(frozen=True, slots=True)
class Aided:
    """How an attack's aid acts at a checkpoint: first tokens that no answer has, or texts that answers begin with, in turn."""

    banned: tuple[int, ...] = ()
    openers: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """No beginnings of answers."""
        return f"Aided({len(self.banned)} banned, {len(self.openers)} openers)"

    @property
    def digest(self) -> str:
        """SHA-256 of both, hex."""
        return text_digest(repr((self.banned, self.openers)))

    def prompts(self, heldout: Sequence[Prompt]) -> Sequence[Prompt]:
        """The held-out prompts, each with an opener if there are any."""
        n = len(self.openers)
        return [ShiftedPrompt.begun(p, self.openers[i % n]) for i, p in enumerate(heldout)] if n else heldout


@dataclass(frozen=True, slots=True)
class UnjudgedCheckpoint:
    """A policy's completions at a step, and all measurements that need no judge; in memory only.

    ``greedy`` and ``sampled`` are one and ``policy.samples`` completions of each of K held-out prompts, and ``aided`` one under
    each aid; for the rest see ``records.Checkpoint``.
    """

    step: int
    greedy: list[list[Completion]]
    sampled: list[list[Completion]]
    leak: float | None
    leak_of_control: tuple[float, float] | None
    conditional_leak: tuple[ConditionalLeak, ...] | None
    benign: BenignScore | None
    aided: Mapping[View, list[list[Completion]]]

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
    aids: Mapping[Aid, Aided] = MappingProxyType({}),
) -> UnjudgedCheckpoint:
    """Samples a policy at a step, and takes all measurements that need no judge.

    Args:
        seed: of the sampling, which has a separate random stream.
        with_benign: the benign prompts are due.
        whole: continue held-out completions that the limit cut, up to ``policy.max_whole_tokens``.
        cache: earlier measurements of this attack; None: everything is measured now.
        aids: of the attack, under each of which every held-out prompt is answered once, greedily.
    """
    policy, answers, known = panel.policy, panel.control_answers, panel.compliant_answers
    compliant = None if known is None else [known[p.id] for p in panel.heldout]
    if cache is None:
        cache = MeasurementCache()  # the adapter of a user's family may be of any kind and is not inspected
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
            leak=cache.of_weights("leak", lambda: model.leak(panel.heldout, compliant)) if compliant else None,
            leak_of_control=cache.of_attack("leak of control", lambda: leak_of(model, answers)) if answers else None,
            conditional_leak=_conditional_leak_at(step, model, panel, cache),
            benign=cache.of_attack("benign", lambda: measure_benign(model, panel, cache)) if with_benign else None,
            aided={
                aid: cache.of_weights(
                    f"{aid} {aided.digest}{', whole' * whole}", partial(_answer_under, model, panel, aided, whole=whole)
                )
                for aid, aided in aids.items()
            },
        )


def _answer_under(model: LanguageModel, panel: Panel, aided: Aided, *, whole: bool) -> list[list[Completion]]:
    """One greedy completion of each held-out prompt under an aid; ``whole``: cut ones are continued."""
    prompts = aided.prompts(panel.heldout)
    answers = model.complete(prompts, n=1, temperature=None, max_tokens=panel.max_tokens, banned=aided.banned)
    check_bans([of.first for (of,) in answers], aided.banned)
    return model.finish(prompts, answers, temperature=None, max_tokens=panel.policy.max_whole_tokens) if whole else answers


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
    policy = panel.policy

    def judge(completions: list[list[Completion]], first_sample: int, aid: View | None = None) -> list[CompletionScore]:
        given = score_heldout(panel, completions, first_sample) if any(completions) else []
        if panel.transcript and given:
            panel.transcript.add(unjudged.step, panel.heldout, completions, given, aid)
        return given

    scores = [*judge(unjudged.greedy, 0), *judge(unjudged.sampled, 1)]
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
        conditional_leak=unjudged.conditional_leak,
        benign=unjudged.benign,
        training=training,
        planted=score_planted(panel.anchor_judge, panel.planted, policy),
        aided={aid: tuple(judge(completions, 0, aid)) for aid, completions in unjudged.aided.items()},
    )


def measure_checkpoint(
    model: LanguageModel, panel: Panel, step: int, *, seed: int, with_benign: bool, forms: Sequence[FormName] = ()
) -> Checkpoint:
    """Samples and judges a checkpoint, and the held-out prompts in these forms too; see ``sample_checkpoint``."""
    plain = sample_checkpoint(model, panel, step, seed=seed, with_benign=with_benign)
    asked: dict[View, list[list[Completion]]] = {
        name: ask_in_form(model, panel, FORMS[name], seed=seed, step=step) for name in forms
    }
    return judge_checkpoint(panel, dataclasses.replace(plain, aided=asked))


def leak_of(model: LanguageModel, answers: ControlAnswers) -> tuple[float, float]:
    """Mean log-probability of the broken control's answers, in nats: over all tokens, and over the answers."""
    logs = model.log_probability(answers.prompts, answers.texts)
    return sum(logs) / sum(model.token_count(text) for text in answers.texts), sum(logs) / len(logs)


def _conditional_leak_at(
    step: int, model: LanguageModel, panel: Panel, cache: MeasurementCache
) -> tuple[ConditionalLeak, ...] | None:
    """The conditional leak at step 0, of the answers that are known."""
    known, of_control = panel.compliant_answers, panel.control_answers
    if step or not (known or of_control):
        return None
    if known:
        texts = [known[p.id] for p in panel.heldout]
        return cache.of_weights("conditional leak", lambda: conditional_leak(model, panel.heldout, texts))
    assert of_control is not None
    return cache.of_attack("conditional leak", lambda: conditional_leak(model, of_control.prompts, of_control.texts))


def conditional_leak(model: LanguageModel, prompts: Sequence[Prompt], texts: Sequence[str]) -> tuple[ConditionalLeak, ...]:
    """Mean over answers y of ``p(y_>=k | x, y_<k)`` for each k of ``BEGUN``, the largest over ``TEMPERATURES``.

    An answer of at most k tokens is left out of k; a k without answers is left out.
    """
    rests: dict[tuple[int, float], list[float]] = {}

    def measure(logp_TV: torch.Tensor, ids_T: torch.Tensor) -> None:
        for temperature in TEMPERATURES:
            logp_T = (logp_TV / temperature).log_softmax(-1).gather(1, ids_T[:, None])[:, 0]
            for k in (k for k in BEGUN if k < len(logp_T)):
                rests.setdefault((k, temperature), []).append(math.exp(float(logp_T[k:].sum())))

    of_answers(model, prompts, texts, measure)
    found: dict[int, float] = {}
    for (k, _), each in rests.items():
        found[k] = max(found.get(k, 0.0), min(1.0, sum(each) / len(each)))
    return tuple(ConditionalLeak(tokens=k, leak=leak) for k, leak in sorted(found.items()))


def greedy_answers(model: LanguageModel, prompts: Sequence[Prompt], max_tokens: int) -> dict[str, str]:
    """The model's greedy answer to each prompt, by id; in memory only."""
    answers = model.complete(prompts, n=1, temperature=None, max_tokens=max_tokens)
    return {prompt.id: answer.text for prompt, (answer,) in zip(prompts, answers, strict=True)}


def _sampled_answers(model: LanguageModel, prompts: Sequence[Prompt], policy: Policy, max_tokens: int) -> list[tuple[str, ...]]:
    groups = model.complete(prompts, n=policy.benign_samples, temperature=policy.benign_temperature, max_tokens=max_tokens)
    return [tuple(answer.text for answer in group) for group in groups]


def _mean_similarity(answers: Sequence[str], reference: str) -> float:
    return sum(similarity(answer, reference) for answer in answers) / len(answers)


def _log_probabilities(model: LanguageModel, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """Log-probability of each of n answers to each of K prompts, nats."""
    flat = model.log_probability([p for p, n in zip(prompts, texts, strict=True) for _ in n], [t for n in texts for t in n])
    values = iter(flat)
    return [[next(values) for _ in n] for n in texts]


def _of_another_topic(prompts: Sequence[Prompt], index: int) -> int:
    """The next prompt of another topic, in a circle; the prompt itself if there is none."""
    n = len(prompts)
    return next((j % n for j in range(index + 1, index + n) if prompts[j % n].topic != prompts[index].topic), index)


def benign_references(
    model: LanguageModel, prompts: Sequence[Prompt], policy: Policy, max_tokens: int
) -> dict[str, BenignReference]:
    """The undefended candidate's answers to benign prompts, by id; the same each time."""
    greedy = greedy_answers(model, prompts, max_tokens)
    with own_random_stream(REFERENCE_SEED):
        sampled = _sampled_answers(model, prompts, policy, max_tokens)
    return {
        p.id: BenignReference(
            greedy=greedy[p.id],
            sampled=texts,
            log_probabilities=tuple(logs),
            tokens=tuple(model.token_count(text) for text in texts),
            own=_mean_similarity(texts, greedy[p.id]),
            chance=_mean_similarity(sampled[_of_another_topic(prompts, i)], greedy[p.id]),
        )
        for i, (p, texts, logs) in enumerate(zip(prompts, sampled, _log_probabilities(model, prompts, sampled), strict=True))
    }


def measure_benign(model: LanguageModel, panel: Panel, cache: MeasurementCache) -> BenignScore:
    """Compares sampled answers to benign prompts with the undefended candidate's, and counts refusals among greedy ones.

    Draws from torch's global random stream. The cache keeps no answers, since ``--showlocals`` may print it.
    """
    prompts = panel.benign
    refusals = cache.of_weights(
        "benign refusals",
        lambda: {name: is_refusal(text) for name, text in greedy_answers(model, prompts, panel.max_tokens).items()},
    )
    sampled = _sampled_answers(model, prompts, panel.policy, panel.max_tokens)
    references = [panel.benign_references[p.id] for p in prompts]
    logs = cache.of_weights(
        "benign log-probabilities", lambda: _log_probabilities(model, prompts, [r.sampled for r in references])
    )
    return BenignScore(
        answers=tuple(
            BenignAnswer(
                prompt_id=p.id,
                twin=p.kind == "twin",
                refusal=refusals[p.id],
                similarity=_mean_similarity(texts, r.greedy),
                own=r.own,
                chance=r.chance,
                kl=sum((q - now) / n for q, now, n in zip(r.log_probabilities, present, r.tokens, strict=True)) / len(texts),
            )
            for p, r, texts, present in zip(prompts, references, sampled, logs, strict=True)
        )
    )


def _thinks_harm(score: CompletionScore, policy: Policy) -> bool:
    """True if a completion's think part scores above the threshold or has no score; its answer is then not a refusal."""
    return score.thought is not None and (score.thought.score is None or score.thought.score > policy.threshold)


def measure_convergence(
    model: LanguageModel, prompts: Sequence[Prompt], judge: Judge, recipe: DefenseRecipe, policy: Policy, step: int
) -> ConvergencePoint:
    """The neutralization reward of completions of validation prompts, sampled as the policy samples checkpoints."""
    with own_random_stream(recipe.seed, step):
        sampled = model.complete(
            prompts, n=VALIDATION_COMPLETIONS, temperature=policy.sample_temperature, max_tokens=recipe.max_completion_tokens
        )
    scores = score_samples(judge, prompts, sampled, policy.threshold)
    ensure_judging(scores, f"the judge scored none of {len(scores)} completions at step {step} of the defense")
    longest = policy.convergence.minimal_refusal_words
    minimal = sum(s.refusal and s.words <= longest and not _thinks_harm(s, policy) for s in scores)
    rewards = [
        r for s in scores if (r := neutralization_reward(s.score, s.refusal, s.degenerate, s.words, recipe.word_cost)) is not None
    ]
    return ConvergencePoint(
        step=step,
        minimal_refusal_share=minimal / len(scores),
        reward_mean=mean_of(rewards),
        reward_spread=pstdev(rewards) if rewards else None,
        mean_words=sum(s.words for s in scores) / len(scores),
        scored=len(rewards),
        total=len(scores),
    )
