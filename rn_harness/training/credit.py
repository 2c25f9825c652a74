"""Every training with rewards checks that its losses count each completion by the completion's own reward.

Rewards that belong to other completions of the same step have the same mean and spread, and teach nothing.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rn_harness.models.completion import Completion
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.prompts import Prompt
from rn_harness.verdict.rewards import TOP

RewardFunction = Callable[[Sequence[Prompt], Sequence[Completion]], Sequence[float | None]]
"""B prompts and B completions, think parts included, to B rewards; None: unscored, left out of its group's baseline."""
EQUAL = 1e-3
"""Rewards, and advantages, that are closer count as equal: a reward model's scores of one text differ in their last bits."""


@dataclass(frozen=True, slots=True)
class Credit:
    """The advantage with which a loss counts a completion; ``row`` is the prompt's place in the training data: its group."""

    row: int
    prompt: Prompt
    completion: Completion
    advantage: float


class CheckedReward:
    """A reward function that keeps the rewards of the last step, to compare them with the step's losses.

    It keeps hashes of the completions, never their text.

    Args:
        reward: computes the rewards; one that keeps them as ``computed`` is compared by those, in case they change on their way.
        penalised: the trainer subtracts a KL penalty from rewards before it compares them, as RLOO does.
        positive: advantages below zero count as zero.
    """

    def __init__(self, reward: RewardFunction, *, penalised: bool = False, positive: bool = False) -> None:
        self._reward, self._slack, self._positive = reward, TOP / 2 if penalised else EQUAL, positive
        self._told: dict[bytes, list[float | None]] = {}

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        rewards = list(self._reward(prompts, completions))
        self._told = {}
        computed = getattr(self._reward, "computed", rewards)
        for prompt, completion, reward in zip(prompts, completions, computed, strict=True):
            self._told.setdefault(_key(prompt, completion), []).append(reward)
        return rewards

    def check(self, loss: Sequence[Credit]) -> None:
        """Makes sure that the losses of a step count each completion by its own reward.

        Within a group the advantage grows with the reward.

        Raises TrainingError if a completion was never rewarded, or if two completions of a group are in another order.
        """
        groups = collections.defaultdict[int, list[tuple[float, float, float]]](list)
        for credit in loss:
            told = self._told.get(_key(credit.prompt, credit.completion))
            if told is None:
                raise TrainingError("a loss counts a completion that the reward function has not seen; look at the trainer")
            if rewards := [reward for reward in told if reward is not None]:
                known = len(rewards) == len(told)  # of equal answers, one may be scored and another not
                between = (min(rewards), max(rewards)) if known else (-math.inf, math.inf)
                groups[credit.row].append((*between, credit.advantage))
        for group in groups.values():
            self._check_group(group)

    def _check_group(self, group: Sequence[tuple[float, float, float]]) -> None:
        """Checks a group: for each completion the least and greatest reward that it may have, and its advantage."""
        best = max(most for _, most, _ in group)
        for (least, greatest, higher), (other, most, lower) in itertools.permutations(group, 2):
            # The best of a group is above its mean, so that its advantage is never clamped.
            clamped = higher == lower == 0.0 and least < best and self._positive
            unordered = least > most + self._slack and higher <= lower and not clamped
            apart = self._slack == EQUAL and least == greatest == other == most and abs(higher - lower) > EQUAL
            if unordered or apart:
                raise TrainingError(
                    f"completions of a group with rewards {least:g} and {most:g} must have advantages in the same order, got "
                    f"{higher:g} and {lower:g}; rewards went to other completions, look at the trainer"
                )


def _key(prompt: Prompt, completion: Completion) -> bytes:
    """A hash of a prompt and the answer to it."""
    return hashlib.sha256("\0".join((prompt.id, str(completion.truncated), *completion.looks)).encode()).digest()
