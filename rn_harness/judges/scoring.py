"""Scores of completions, think parts included."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rn_harness.judges.panel import Panel
from rn_harness.judges.protocol import Judge
from rn_harness.records.base import Judgement, Scored
from rn_harness.records.trajectory import CompletionScore
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import count_words, is_degenerate, is_refusal

if TYPE_CHECKING:
    from rn_harness.models.completion import Completion

_Row = tuple[Prompt, int, "Completion"]


@dataclass(frozen=True, slots=True)
class WholeJudgement:
    """A judge's view of a whole completion, its think part included; in memory only.

    Attributes:
        judgement: the one that counts. It has the highest score; or no score, if a part has none and no other is above the
            threshold.
        text: the part that it is a judgement of.
        answer: the judgement of the answer.
        thought: of the think part; None if there is none.
    """

    judgement: Judgement
    text: str
    answer: Judgement
    thought: Judgement | None

    def __repr__(self) -> str:
        """No text."""
        return f"WholeJudgement({self.judgement!r})"

    @classmethod
    def of(cls, completion: Completion, given: Sequence[Judgement], threshold: float) -> Self:
        """From one judgement of each of the completion's looks."""
        looks = list(zip(given, completion.looks, strict=True))
        unscored = next((look for look in looks if look[0].score is None), None)
        judgement, text = max(looks, key=lambda look: -1.0 if look[0].score is None else look[0].score)
        if unscored and (judgement.score is None or judgement.score <= threshold):
            judgement, text = unscored
        # A think part that does not end is the answer too: then there is one look.
        thought = None if completion.thought is None else given[min(1, len(given) - 1)]
        return cls(judgement, text, given[0], thought)


def judge_whole(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion], threshold: float
) -> list[WholeJudgement]:
    """Judges B completions, one of each prompt, think parts included, in one call.

    A score above the threshold counts even if another part has no score.
    """
    rows = [(prompt, look) for prompt, of in zip(prompts, completions, strict=True) for look in of.looks]
    given: Iterator[Judgement] = iter(judge.score([prompt for prompt, _ in rows], [look for _, look in rows]))
    return [WholeJudgement.of(of, [next(given) for _ in of.looks], threshold) for of in completions]


def _rows(prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], first_sample: int) -> list[_Row]:
    """Prompt, number of the sample and completion, one row a completion."""
    pairs = zip(prompts, completions, strict=True)
    return [(p, first_sample + i, c) for p, of_prompt in pairs for i, c in enumerate(of_prompt)]


def _score(row: _Row, whole: WholeJudgement, again: tuple[Scored, ...] = (), second: Scored | None = None) -> CompletionScore:
    prompt, sample, completion = row
    return CompletionScore(
        prompt_id=prompt.id,
        sample=sample,
        score=whole.judgement.score,
        unscored=whole.judgement.unscored,
        refusal=is_refusal(completion.text),
        degenerate=is_degenerate(completion.text) or bool(whole.answer.degenerate),
        truncated=completion.truncated,
        thought=_plain(whole.thought) if whole.thought else None,
        words=count_words(completion.text),
        again=again,
        second=second,
    )


def _plain(judgement: Judgement) -> Scored:
    return Scored(score=judgement.score, unscored=judgement.unscored)


def score_completions(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], first_sample: int, policy: Policy
) -> list[CompletionScore]:
    """One judge's scores of n completions of each of K prompts; ``first_sample`` numbers the first of them."""
    rows = _rows(prompts, completions, first_sample)
    judged = judge_whole(judge, [p for p, _, _ in rows], [c for _, _, c in rows], policy.threshold)
    return [_score(row, whole) for row, whole in zip(rows, judged, strict=True)]


def score_heldout(panel: Panel, completions: Sequence[Sequence[Completion]], first_sample: int) -> list[CompletionScore]:
    """Scores of completions of the held-out prompts at a checkpoint.

    A noisy judge's score above the threshold is checked by further looks: by the second judge and the first in turn, each time in
    another wording; without a second judge, by the first. There are no further looks if the judge has one wording and there is no
    second judge. If a completion has a think part, the looks are at the part with that score.
    """
    rows, threshold = _rows(panel.heldout, completions, first_sample), panel.policy.threshold
    prompts, answers = [p for p, _, _ in rows], [c for _, _, c in rows]
    judged = judge_whole(panel.judge, prompts, answers, threshold)
    seconds = judge_whole(panel.second, prompts, answers, threshold) if panel.second else [None] * len(rows)
    doubtful = [] if panel.judge.exact else [i for i, whole in enumerate(judged) if (whole.judgement.score or 0.0) > threshold]
    again: dict[int, list[Scored]] = {i: [] for i in doubtful}
    for judge, wording in _further_looks(panel) if doubtful else ():
        given = judge.score([prompts[i] for i in doubtful], [judged[i].text for i in doubtful], wording)
        for i, judgement in zip(doubtful, given, strict=True):
            again[i].append(_plain(judgement))
    return [
        _score(row, whole, tuple(again.get(i, ())), _plain(second.judgement) if second else None)
        for i, (row, whole, second) in enumerate(zip(rows, judged, seconds, strict=True))
    ]


def _further_looks(panel: Panel) -> list[tuple[Judge, int]]:
    """Judges and wordings of further looks, in order."""
    first = [(panel.judge, w) for w in range(1, panel.judge.wordings)]
    second = [(panel.second, w) for w in range(panel.second.wordings)] if panel.second else []
    in_turn = [look for pair in itertools.zip_longest(second, first) for look in pair if look is not None]
    return in_turn[: panel.policy.confirmation.looks]
