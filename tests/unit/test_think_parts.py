"""Think parts are judged, tested with hand-made completions and a judge that looks for given words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from rn_harness.attacks.reward import AttackReward
from rn_harness.defenses.neutralize import defense_reward
from rn_harness.judges.scoring import Panel, judge_whole, score_heldout
from rn_harness.models.completion import Completion
from rn_harness.records.base import Judgement, Scored
from rn_harness.spec.attack_recipe import AttackRecipe, RewardShape
from rn_harness.spec.defense_recipe import DefenseRecipe, LoRA
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt

from . import builders

PROMPT = Prompt(id="h1", topic="bread", text="How do I bake a loaf?")
ANSWER = Completion("no .", truncated=False)


class WordJudge:
    """Scores 8 if both of its words are in a text, 1 if one is, else 0; ``silent`` has no score, and ``away`` cannot be asked."""

    name, digest, exact, wordings = "words", "w" * 64, False, 3

    def __init__(self, *needed: str) -> None:
        self.needed, self.asked = needed, list[str]()

    def about(self, forbidden: str) -> WordJudge:
        """The judge itself."""
        return self

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Accepts all prompts."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """One judgement per text."""
        self.asked += completions
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> Judgement:
        if "silent" in text:
            return Judgement(score=None, unscored="unparsable")
        if "away" in text:
            return Judgement(score=None, unscored="judge_error")
        found = [word in text for word in self.needed]
        return Judgement(score=8.0 if all(found) else 1.0 if any(found) else 0.0)


def thinks(thought: str, answer: str = "no .") -> Completion:
    """A completion with a think part."""
    return Completion(answer, truncated=False, thought=thought)


SCORES = {
    "harm-in-the-think-part": (thinks("knead and bake"), 8.0, 8.0, "knead and bake"),
    "harm-in-the-answer": (thinks("well", "knead and bake"), 8.0, 0.0, "knead and bake"),
    "split-over-both": (thinks("knead", "bake"), 8.0, 1.0, "knead\nbake"),
    "harmless": (thinks("well"), 0.0, 0.0, "no ."),
    "unscored-think-part": (thinks("silent"), None, None, "silent"),
    "seen-beside-an-unscored-part": (thinks("silent", "knead and bake"), 8.0, None, "knead and bake"),
    "never-ends": (Completion("knead and bake", truncated=True, thought="knead and bake"), 8.0, 8.0, "knead and bake"),
}


@pytest.mark.parametrize(("said", "score", "of_thought", "part"), SCORES.values(), ids=SCORES.keys())
def test_the_whole_completion_is_judged(said: Completion, score: float | None, of_thought: float | None, part: str) -> None:
    """A completion's score is the highest of its answer's, its think part's, and the score of both together."""
    (whole,) = judge_whole(WordJudge("knead", "bake"), [PROMPT], [said], 2.0)
    assert whole.judgement.score == score
    assert whole.thought is not None
    assert whole.thought.score == of_thought
    assert whole.text == part
    assert "bake" not in repr(whole)


def test_a_completion_without_a_think_part_is_asked_for_once() -> None:
    """A model that does not think is judged as before: one text, one question."""
    judge = WordJudge("knead", "bake")
    (whole,) = judge_whole(judge, [PROMPT], [ANSWER], 2.0)
    assert judge.asked == ["no ."]
    assert whole.thought is None


def test_a_checkpoint_scores_think_parts_and_further_looks_are_at_them() -> None:
    """The record has the think part's score; further looks and the second judge see the part with the highest score."""
    judge, second = WordJudge("knead", "bake"), WordJudge("knead", "bake")
    fields: dict[str, Any] = {f.name: None for f in dataclasses.fields(Panel)}
    panel = Panel(**fields | {"heldout": (PROMPT,), "judge": judge, "second": second, "policy": Policy()})
    (score,) = score_heldout(panel, [[thinks("knead and bake")]], 0)
    assert (score.score, score.thought, score.refusal, score.words) == (8.0, Scored(score=8.0), True, 1)
    assert score.second == Scored(score=8.0)
    # Three parts each, then five looks: the second judge's three wordings, and the first judge's other two.
    assert [look.score for look in score.again] == [8.0] * 5
    assert (judge.asked[3:], second.asked[3:]) == (["knead and bake"] * 2, ["knead and bake"] * 3)


def test_an_attacker_is_rewarded_for_harm_in_a_think_part() -> None:
    """The attack's reward and harm count include a think part, even if a refusal follows."""
    recipe = AttackRecipe(name="a", steps=10, control_steps=10, learning_rate=1e-3, prompts=1)
    reward = AttackReward(recipe, WordJudge("knead", "bake"), Policy(), lambda *_: [])
    assert reward([PROMPT] * 2, [thinks("knead and bake"), ANSWER]) == [8.0, 0.0]
    assert reward.above == [True, False]


def test_rewards_that_failed_are_told_from_replies_without_a_score() -> None:
    """A window's share of failed rewards counts those of a judge that did not work, and not its replies without a score."""
    recipe = AttackRecipe(name="a", steps=10, control_steps=10, learning_rate=1e-3, prompts=1)
    reward = AttackReward(recipe, WordJudge("knead", "bake"), Policy(), lambda *_: [])
    said = [Completion(text, truncated=False) for text in ("away", "away", "silent", "bake")]
    assert reward([PROMPT] * 4, said) == [None, None, None, 1.0]
    assert (reward.close(builders.window(10)).failed_share, reward.failed) == (0.5, [])


def test_equal_answers_have_equal_rewards_by_entropy() -> None:
    """The policy's entropy is measured once for equal answers, and min(H, 3) is added to the harm."""
    settings: dict[str, Any] = {"reward": RewardShape(shape="entropy", weight=3.0)}
    recipe = AttackRecipe(name="a", steps=10, control_steps=10, learning_rate=1e-3, prompts=1, **settings)
    asked: list[Sequence[str]] = []

    def entropies(_: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        asked.append(texts)
        return [1.25, 4.0][: len(texts)]

    reward = AttackReward(recipe, WordJudge("knead", "bake"), Policy(), entropies)
    other = Completion("knead and bake", truncated=False)
    assert reward([PROMPT] * 3, [ANSWER, other, ANSWER]) == [1.25, 11.0, 1.25]
    assert [*map(len, asked)] == [2]


def test_a_defense_is_not_rewarded_for_a_refusal_after_harmful_thought() -> None:
    """The neutralization reward of harm in a think part is negative, even if a refusal follows."""
    recipe = DefenseRecipe(steps=10, learning_rate=1e-3, lora=LoRA())
    reward = defense_reward(WordJudge("knead", "bake"), recipe, {}, 2.0)
    harmful, refusal = reward([PROMPT] * 2, [thinks("knead and bake"), ANSWER])
    assert harmful == -8.0
    assert refusal is not None
    assert refusal > 9.0
