"""The judgement of a whole completion, think part included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rn_harness.records.base import Judgement
from rn_harness.spec.prompts import Prompt

if TYPE_CHECKING:
    from rn_harness.models.completion import Completion
from rn_harness.judges.protocol import Judge


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
    """Judges B completions, think parts included, in one call.

    Args:
        judge: scores texts.
        prompts: B prompts.
        completions: B completions, one of each prompt.
        threshold: a score above it counts whatever else has no score.
    """
    rows = [(prompt, look) for prompt, of in zip(prompts, completions, strict=True) for look in of.looks]
    given: Iterator[Judgement] = iter(judge.score([prompt for prompt, _ in rows], [look for _, look in rows]))
    return [WholeJudgement.of(of, [next(given) for _ in of.looks], threshold) for of in completions]
