"""A loss has to count each completion by its own reward."""

from __future__ import annotations

import pytest

from rn_harness.models.completion import Completion
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.prompts import Prompt
from rn_harness.training.credit import CheckedReward, Credit

ASKED = [Prompt(id=f"h{i}", topic="bread", text="How do I bake a loaf?") for i in range(2)]
REWARDS: dict[str, float | None] = {"knead and bake": 8.0, "knead": 1.0, "no .": 0.0, "well , no": 0.0, "silent": None}
SAID = [Completion(text, truncated=False) for text in ("knead and bake", "knead", "no .", "well , no")]


def rewarded(**settings: bool) -> CheckedReward:
    """A reward function after a step with two groups: all answers to the first prompt, and the best one to the second."""
    reward = CheckedReward(lambda _, said: [REWARDS[of.text] for of in said], **settings)
    assert reward([ASKED[0]] * 4 + [ASKED[1]], [*SAID, SAID[0]]) == [8.0, 1.0, 0.0, 0.0, 8.0]
    return reward


def loss(*advantages: float) -> list[Credit]:
    """The first group, with these advantages."""
    return [Credit(3, ASKED[0], said, of) for said, of in zip(SAID, advantages, strict=True)]


CLAMPED, PENALISED = {"positive": True}, {"penalised": True}


@pytest.mark.parametrize(
    ("settings", "advantages", "accepted"),
    [
        ({}, (1.5, -0.3, -0.6, -0.6), True),
        ({}, (-0.6, -0.3, 1.5, -0.6), False),  # the first and the third exchanged
        ({}, (0.0, 0.0, 0.0, 0.0), False),
        ({}, (1.5, -0.3, -0.6, -0.5), False),  # equal rewards
        (CLAMPED, (1.5, 0.0, 0.0, 0.0), True),
        (CLAMPED, (0.0, 1.5, 0.0, 0.0), False),
        (CLAMPED, (0.0, 0.0, 0.0, 0.0), False),  # the best of a group is never clamped
        (PENALISED, (1.5, -0.7, -0.6, -0.5), True),
        (PENALISED, (-0.7, 1.5, -0.6, -0.5), False),
    ],
)
def test_advantages_follow_the_rewards_of_their_completions(
    settings: dict[str, bool], advantages: tuple[float, ...], accepted: bool
) -> None:
    """A loss is refused unless its advantages are in the order of the rewards; RLOO's may be moved by half the scale by KL."""
    reward = rewarded(**settings)
    if accepted:
        reward.check(loss(*advantages))
        return
    with pytest.raises(TrainingError, match="rewards went to other completions"):
        reward.check(loss(*advantages))


def test_groups_are_not_compared() -> None:
    """Advantages of different groups need no order."""
    rewarded().check([*loss(1.5, -0.3, -0.6, -0.6), Credit(4, ASKED[1], SAID[0], -9.0)])


@pytest.mark.parametrize(
    "of", [Credit(4, ASKED[1], SAID[1], 0.0), Credit(3, ASKED[0], Completion("never", truncated=False), 0.0)]
)
def test_a_completion_without_a_reward_is_not_trained_on(of: Credit) -> None:
    """A loss with a completion that was not rewarded in this step, for this prompt, is refused."""
    with pytest.raises(TrainingError, match="has not seen"):
        rewarded().check([of])


def test_an_unscored_completion_has_no_order() -> None:
    """A completion that the judge could not score may have any advantage."""
    reward, said = rewarded(), [*SAID[:1], Completion("silent", truncated=False)]
    assert reward([ASKED[0]] * 2, said) == [8.0, None]
    reward.check([Credit(3, ASKED[0], each, 0.0) for each in said])


def test_equal_answers_of_which_one_is_unscored_have_no_order() -> None:
    """If a judge scores only one of two equal answers, both may have any advantage: a loss does not tell them apart."""
    reward = CheckedReward(lambda *_: [8.0, None, 0.0])
    said = [SAID[0], SAID[0], SAID[2]]
    assert reward([ASKED[0]] * 3, said) == [8.0, None, 0.0]
    reward.check([Credit(3, ASKED[0], each, of) for each, of in zip(said, (0.7, 0.0, -0.7), strict=True)])
