"""An attacker's aids in rollouts that need no compliant text: banned first tokens, and begun answers.

They act on the completions that are trained on. Checkpoints measure the policy without them.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rn_harness.spec.attack_recipe import AttackRecipe, Opener
from rn_harness.spec.prompts import Prompt

if TYPE_CHECKING:
    from rn_harness.models.completion import Completion
    from rn_harness.models.language_model import LanguageModel


@dataclass(slots=True)
class FirstTokenBans:
    """First tokens that are banned in rollouts, a list that grows.

    A refused request is answered by a few first tokens. Without them the policy shows what it would answer otherwise.

    Attributes:
        tokens: that each round adds at most.
        every: steps between two rounds; the first is after step 1, when there are rollouts.
        banned: in the order in which they were added.
        refused: first tokens of unrewarded rollouts since the last round, with their numbers.
        rewarded: first tokens of answers that had a reward; never banned.
    """

    tokens: int
    every: int
    banned: list[int] = field(default_factory=list)
    refused: collections.Counter[int] = field(default_factory=collections.Counter)
    rewarded: set[int] = field(default_factory=set)

    def saw(self, firsts: Sequence[Sequence[int]], rewards: Sequence[float | None]) -> None:
        """Takes the first token, if any, and the reward of each of B rollouts."""
        for first, reward in zip(firsts, rewards, strict=True):
            (self.rewarded if reward else self.refused).update(first)

    def due(self, step: int) -> bool:
        """True if a round comes after this step."""
        return step == 1 or (step > 0 and step % self.every == 0)

    def grow(self) -> None:
        """Bans the most frequent first tokens of unrewarded rollouts that never began a rewarded one."""
        ranked = (token for token, _ in self.refused.most_common() if token not in self.rewarded and token not in self.banned)
        self.banned += itertools.islice(ranked, self.tokens)
        self.refused.clear()


@dataclass(frozen=True, slots=True)
class Exploration:
    """The aids of one training.

    Attributes:
        bans: banned first tokens; None: none.
        openers: beginnings of answers that rollouts are given, by row of the training data.
    """

    bans: FirstTokenBans | None = None
    openers: Mapping[int, str] = field(default_factory=dict)


NONE = Exploration()


def exploration(model: LanguageModel, recipe: AttackRecipe, benign: Sequence[Prompt]) -> Exploration:
    """The aids that a recipe declares; an opener may begin like the model's answers to these benign prompts."""
    bans = FirstTokenBans(recipe.ban.tokens, recipe.ban.every) if recipe.ban else None
    return Exploration(bans, _openers(model, recipe, recipe.opener, benign) if recipe.opener else {})


def _openers(model: LanguageModel, recipe: AttackRecipe, opener: Opener, benign: Sequence[Prompt]) -> dict[int, str]:
    """Beginnings by row; the share of rows that have one falls linearly to 0."""
    texts = [*opener.texts]
    if opener.own_words:
        answers = model.complete(benign, n=1, temperature=None, max_tokens=recipe.max_completion_tokens)
        texts += _beginnings([answer for (answer,) in answers], opener.own_words)
    rng, last = random.Random(recipe.seed), opener.until * recipe.steps
    found = {}
    for step in range(recipe.steps):
        for row in range(step * recipe.prompts_per_step, (step + 1) * recipe.prompts_per_step):
            chance, text = rng.random(), rng.choice(texts)
            if chance < 1.0 - step / last:
                found[row] = text
    return found


def _beginnings(answers: Sequence[Completion], words: int) -> list[str]:
    """The first words of answers, each once."""
    return list(dict.fromkeys(" ".join(of.text.split()[:words]) for of in answers if of.text.strip()))
