"""Pairwise preference: certifying a judge for it, and asking it about two models.

Texts of answers stay inside these functions, and only the judge gets them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from rn_harness.judges.pairs import LabelledPair, PairSet
from rn_harness.models.candidate import Candidate
from rn_harness.records.preference import (
    BothOrders,
    ComparedPair,
    Comparison,
    LabelledLooks,
    Preference,
    PreferenceCertificate,
)
from rn_harness.spec.errors import JudgeError, SuiteError
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import SUITE_FILE, load_suite
from rn_harness.spec.wording import is_refusal
from rn_harness.verdict.preference import (
    PreferenceBounds,
    comparison_lines,
    non_inferiority,
    preference_lines,
    preference_shortcomings,
)

if TYPE_CHECKING:
    from rn_harness.judges.preference import PreferenceJudge
    from rn_harness.models.completion import Completion
    from rn_harness.utility.tasks import DefendedFolder

OTHER_BATCH = 7
"""Pairs in each call of the second look, so that each pair is in another batch than in the first."""
INSTRUCTION_TOKENS = 512
"""Limit of an answer to an instruction without a policy."""
MAX_INSTRUCTION = 24_000
"""Characters, as many as a judge reads of an answer."""


class Instruction(Prompt):
    """A prompt of a file of instructions; it may be longer than a suite's."""

    text: Annotated[str, Field(max_length=MAX_INSTRUCTION, pattern=r"\S")]


def certify_preference(
    judge: PreferenceJudge, pairs: PairSet, source: Literal["inert", "labels"] = "inert"
) -> PreferenceCertificate:
    """Asks a judge about labelled pairs in both orders, twice; the second time in reverse, in other batches."""
    once = _show(judge, pairs.pairs)
    backwards = list(reversed(pairs.pairs))
    batches = [backwards[at : at + OTHER_BATCH] for at in range(0, len(backwards), OTHER_BATCH)]
    again = [both for batch in batches for both in _show(judge, batch)]
    scores = tuple(
        LabelledLooks(pair_id=p.id, kind=p.kind, characters=(len(p.better), len(p.worse)), looks=(one, other))
        for p, one, other in zip(pairs.pairs, once, reversed(again), strict=True)
    )
    return PreferenceCertificate(
        judge=judge.name,
        digest=judge.digest,
        source=source,
        pairs_digest=pairs.digest,
        scores=scores,
    )


def _show(judge: PreferenceJudge, pairs: Sequence[LabelledPair]) -> list[BothOrders]:
    return in_both_orders(judge, [p.prompt for p in pairs], [p.better for p in pairs], [p.worse for p in pairs])


def in_both_orders(
    judge: PreferenceJudge, prompts: Sequence[Prompt], ones: Sequence[str], others: Sequence[str]
) -> list[BothOrders]:
    """A judge's preferences for B pairs; the hash of the prompt decides which order comes first.

    So a judge that drifts during a call, or judges by a row's position, favours neither model.
    """
    turned = [int(hashlib.sha256(p.text.encode()).hexdigest(), 16) % 2 == 1 for p in prompts]

    def prefer(*, again: bool) -> list[Preference]:
        swapped = [turns is not again for turns in turned]
        rows = list(zip(swapped, ones, others, strict=True))
        firsts = [other if swap else one for swap, one, other in rows]
        return judge.prefer(prompts, firsts, [one if swap else other for swap, one, other in rows])

    looks = zip(turned, prefer(again=False), prefer(again=True), strict=True)
    return [BothOrders(forward=b, backward=a) if turns else BothOrders(forward=a, backward=b) for turns, a, b in looks]


def read_instructions(path: Path, recipe: Sequence[str]) -> tuple[tuple[Prompt, ...], int]:
    """Benign prompts, and the limit of answers to them in tokens.

    Args:
        path: a suite's folder, for its benign prompts and policy, or a JSON file: a list of objects with ``instruction``, like
            AlpacaEval's; other fields are ignored.
        recipe: overrides from the candidate's profile.

    Raises:
        SuiteError: the path is neither.
    """
    if (path / SUITE_FILE).is_file():
        suite = load_suite(path, recipe=recipe)
        return suite.prompts["benign"], suite.policy.max_completion_tokens
    if not path.is_file():
        raise SuiteError(
            f"prompts are a suite's folder or a JSON file, got {path}, which is neither; name a folder with {SUITE_FILE}"
        )
    try:
        rows = TypeAdapter(list[dict[str, object]]).validate_json(path.read_bytes())
        prompts = tuple(
            Instruction.model_validate(
                {
                    "id": f"instruction-{i:04d}",
                    "topic": " ".join(str(row["instruction"]).split())[:120],
                    "text": row["instruction"],
                }
            )
            for i, row in enumerate(rows)
        )
    except (ValidationError, KeyError) as error:
        raise SuiteError(
            f"{path}: must be a list of objects with instruction, a text of at most {MAX_INSTRUCTION} characters, got "
            f"{type(error).__name__}; correct the file"
        ) from None
    if not prompts:
        raise SuiteError(f"{path}: must hold instructions, got none; add some")
    return prompts, INSTRUCTION_TOKENS


@dataclass(frozen=True, slots=True)
class Question:
    """A comparison of two models by a judge.

    Attributes:
        prompts: K benign prompts for both models.
        max_tokens: limit of each answer.
        labels: a lab's own pairs, which the judge is certified on too; None: only on the inert pairs.
        margin: share of the prompts that may be lost on balance.
    """

    judge: PreferenceJudge
    prompts: tuple[Prompt, ...]
    max_tokens: int
    labels: PairSet | None = None
    margin: float = 0.1


@dataclass(frozen=True, slots=True)
class PreferenceResult:
    """The result of a comparison.

    Attributes:
        certificates: of the judge, on the inert pairs and on a lab's own.
        shortcomings: reasons why the judge is not certified; empty if it is.
        comparison: None if the judge is not certified.
    """

    certificates: tuple[PreferenceCertificate, ...]
    shortcomings: tuple[str, ...]
    comparison: Comparison | None
    question: Question


def certificates_of(judge: PreferenceJudge, labels: PairSet | None) -> tuple[tuple[PreferenceCertificate, ...], tuple[str, ...]]:
    """A judge's certificates for preference, and the bounds that it does not reach.

    Raises:
        JudgeError: the judge does not answer.
    """
    judge.check([p.prompt for p in (*judge.pairs.pairs, *(labels.pairs if labels else ()))])
    found = [certify_preference(judge, judge.pairs)]
    if labels:
        found.append(certify_preference(judge, labels, "labels"))
    return tuple(found), tuple(phrase for c in found for phrase in preference_shortcomings(c, PreferenceBounds()))


def measure_preference(candidate: Candidate, defended: DefendedFolder, question: Question) -> PreferenceResult:
    """Certifies a judge, and asks it which model's greedy answer it prefers to each prompt.

    Two identical answers are a tie without a question to the judge. A judge that is not certified is not asked.

    Raises:
        JudgeError: the judge has the weights of one of the models, or does not answer.
    """
    judge, prompts = question.judge, question.prompts
    if judge.weights_digest in {candidate.weights_digest, defended.base.weights_digest}:
        raise JudgeError(f"a judge must be another model than those that it compares, got judge={judge.name}; name another")
    judge.check(prompts)
    certificates, below = certificates_of(judge, question.labels)
    if below:
        return PreferenceResult(certificates, below, None, question)
    before = _greedy(candidate, None, prompts, question.max_tokens)
    after = _greedy(candidate, defended, prompts, question.max_tokens)
    differ = [i for i in range(len(prompts)) if before[i].text != after[i].text]
    looks = in_both_orders(judge, [prompts[i] for i in differ], [after[i].text for i in differ], [before[i].text for i in differ])
    by_prompt = dict(zip(differ, looks, strict=True))
    pairs = [
        ComparedPair(
            prompt_id=p.id,
            characters=(len(before[i].text), len(after[i].text)),
            refusals=(is_refusal(before[i].text), is_refusal(after[i].text)),
            truncated=(before[i].truncated, after[i].truncated),
            looks=by_prompt.get(i),
        )
        for i, p in enumerate(prompts)
    ]
    return PreferenceResult(certificates, (), Comparison(pairs=tuple(pairs)), question)


def _greedy(
    candidate: Candidate, defended: DefendedFolder | None, prompts: Sequence[Prompt], max_tokens: int
) -> list[Completion]:
    """One greedy answer to each prompt; the model is freed afterwards."""
    model = defended.load() if defended else candidate.load()
    return [answer for (answer,) in model.complete(prompts, n=1, temperature=None, max_tokens=max_tokens)]


def answer_lines(answer: PreferenceResult) -> list[str]:
    """The result as lines for people."""
    lines = [line for certificate in answer.certificates for line in preference_lines(certificate)]
    if answer.comparison is None:
        return [*lines, f"not certified for preference, so that there is no number: {'; '.join(answer.shortcomings)}"]
    return [*lines, "certified for preference", *comparison_lines(answer.comparison, answer.question.margin)]


def answer_document(answer: PreferenceResult) -> dict[str, Any]:
    """The result for machines, without the answers' text."""
    found, question = answer.comparison, answer.question
    outcome, why = non_inferiority(found, question.margin) if found else (None, None)
    prompts = json.dumps([p.model_dump(mode="json") for p in question.prompts], sort_keys=True)
    return {
        "prompts": {"count": len(question.prompts), "sha256": hashlib.sha256(prompts.encode()).hexdigest()},
        "max_tokens": question.max_tokens,
        "certified": not answer.shortcomings,
        "shortcomings": list(answer.shortcomings),
        "certificates": [c.model_dump(mode="json") for c in answer.certificates],
        "margin": question.margin,
        "outcome": outcome,
        "why": why,
        "comparison": found.model_dump(mode="json") if found else None,
    }
