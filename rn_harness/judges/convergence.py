"""Rewards of a policy without training: the attacker's on held-out prompts, and the defense's on validation prompts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import pstdev
from typing import TYPE_CHECKING

from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.scoring import Panel, score_samples
from rn_harness.models.random_streams import own_random_stream
from rn_harness.records.statistics import mean_of
from rn_harness.records.trajectory import CompletionScore, ConvergencePoint, Probe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.verdict.rewards import attack_reward, neutralization_reward

if TYPE_CHECKING:
    from rn_harness.models.language_model import LanguageModel

N_COMPLETIONS = 4
"""Completions of each validation prompt."""


def probe_reward(model: LanguageModel, panel: Panel, seed: int) -> Probe:
    """The attack reward of completions sampled on held-out prompts, without training (arXiv 2505.04578, equation 3)."""
    policy = panel.policy
    with own_random_stream(seed):
        sampled = model.complete(
            panel.heldout, n=policy.probe_samples, temperature=policy.sample_temperature, max_tokens=panel.max_tokens
        )
    scores = score_samples(panel.judge, panel.heldout, sampled, policy.threshold)
    rewards = [r for s in scores if (r := attack_reward(s.score, s.refusal)) is not None]
    return Probe(
        mean=mean_of(rewards),
        spread=pstdev(rewards) if rewards else None,
        maximum=max(rewards, default=None),
        scored=len(rewards),
        total=len(scores),
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
            prompts, n=N_COMPLETIONS, temperature=policy.sample_temperature, max_tokens=recipe.max_completion_tokens
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
