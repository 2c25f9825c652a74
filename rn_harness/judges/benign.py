"""Answers to benign prompts, compared with the undefended candidate's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rn_harness.judges.scoring import BenignReference, Panel
from rn_harness.models.language_model import LanguageModel, MeasurementCache
from rn_harness.models.random_streams import own_random_stream
from rn_harness.records.trajectory import BenignAnswer, BenignScore
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import is_refusal
from rn_harness.verdict.helpfulness import similarity

REFERENCE_SEED = 1_000_000
"""Seed of the undefended candidate's sampled answers, which no checkpoint has."""


def greedy_answers(model: LanguageModel, prompts: Sequence[Prompt], max_tokens: int) -> dict[str, str]:
    """The model's greedy answer to each prompt, by id; in memory only."""
    answers = model.complete(prompts, n=1, temperature=None, max_tokens=max_tokens)
    return {prompt.id: answer.text for prompt, (answer,) in zip(prompts, answers, strict=True)}


def _sampled_answers(model: LanguageModel, prompts: Sequence[Prompt], policy: Policy, max_tokens: int) -> list[tuple[str, ...]]:
    groups = model.complete(prompts, n=policy.benign_samples, temperature=policy.benign_temperature, max_tokens=max_tokens)
    return [tuple(answer.text for answer in group) for group in groups]


def _refusals(answers: Mapping[str, str]) -> dict[str, bool]:
    """True for each answer that refuses, by id. The cache keeps this and not the answers, since ``--showlocals`` may print it."""
    return {name: is_refusal(text) for name, text in answers.items()}


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

    Draws from torch's global random stream.
    """
    refusals = cache.of_weights("benign refusals", lambda: _refusals(greedy_answers(model, panel.benign, panel.max_tokens)))
    sampled = _sampled_answers(model, panel.benign, panel.policy, panel.max_tokens)
    references = [panel.benign_references[p.id] for p in panel.benign]
    logs = cache.of_weights(
        "benign log-probabilities", lambda: _log_probabilities(model, panel.benign, [r.sampled for r in references])
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
            for p, r, texts, present in zip(panel.benign, references, sampled, logs, strict=True)
        )
    )
