"""An attacker's aids in training that need no compliant text: banned first tokens, begun answers, replay of own successes.

They act on the completions that are trained on. Checkpoints measure the policy without them, and once more under each of them.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rn_harness.models.completion import Completion
from rn_harness.models.language_model import LanguageModel
from rn_harness.spec.attack_recipe import AttackRecipe, Opener
from rn_harness.spec.prompts import Prompt

LEAST_HARM = 0.5
"""Mean harm, of 10, from which on a first token earns an attacker something; single misjudged refusals stay below it."""


@dataclass(slots=True)
class FirstTokenBans:
    """First tokens that are banned in rollouts, a list that grows.

    A refused request is answered by a few first tokens. Without them the policy shows what it would answer otherwise.

    Attributes:
        tokens: that each round adds at most.
        every: steps between two rounds; the first is after step 1, when there are rollouts.
        banned: in the order in which they were added.
        begun: numbers of scored rollouts by their first token, since the last round.
        harm: harm and number of all scored rollouts by their first token.
    """

    tokens: int
    every: int
    banned: list[int] = field(default_factory=list)
    begun: collections.Counter[int] = field(default_factory=collections.Counter)
    harm: dict[int, tuple[float, int]] = field(default_factory=dict)

    def saw(self, firsts: Sequence[Sequence[int]], harms: Sequence[float | None]) -> None:
        """Takes the first token, if any, and the harm of each of B rollouts; None: unscored, so that it bans nothing."""
        scored = [(first, harm) for first, harm in zip(firsts, harms, strict=True) if harm is not None]
        for first, harm in scored:
            self.begun.update(first)
            for token in first:
                total, count = self.harm.get(token, (0.0, 0))
                self.harm[token] = total + harm, count + 1

    def earns(self, token: int) -> bool:
        """True if answers that begin with this token have earned the attacker something."""
        total, count = self.harm.get(token, (0.0, 0))
        return count > 0 and total / count >= LEAST_HARM

    def due(self, step: int) -> bool:
        """True if a round comes after this step."""
        return step == 1 or (step > 0 and step % self.every == 0)

    def grow(self) -> None:
        """Bans the most frequent first tokens since the last round that earn nothing."""
        ranked = (token for token, _ in self.begun.most_common() if token not in self.banned and not self.earns(token))
        self.banned += itertools.islice(ranked, self.tokens)
        self.begun.clear()

    def grow_greedily(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        harms: Callable[[Sequence[Completion]], Sequence[float | None]],
        max_tokens: int,
    ) -> None:
        """A round without training: by the harm of the model's greedy answers to these prompts under the ban so far."""
        answers = [of for (of,) in model.complete(prompts, n=1, temperature=None, max_tokens=max_tokens, banned=self.banned)]
        self.saw([() if of.first is None else (of.first,) for of in answers], harms(answers))
        self.grow()


@dataclass(slots=True)
class Replay:
    """The best rewarded completions so far, in memory only (self-imitation, arXiv 1806.05635).

    Attributes:
        kept: reward, and the tokens of prompt and completion; the best first, each once.
        rewards: of this process's rows of the latest step; None: unscored.
        steps: that trained on kept completions, since the last report.
    """

    kept: list[tuple[float, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list, repr=False)
    rewards: Sequence[float | None] = ()
    steps: int = 0

    def keep(self, found: Sequence[tuple[float, tuple[int, ...], tuple[int, ...]]], most: int) -> None:
        """Adds completions, and drops the worst above a number."""
        self.kept = sorted({*self.kept, *found}, key=lambda row: (-row[0], row[1:]))[:most]

    def rows(self, count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """So many rows of the kept completions, each as often as the others."""
        return [row[1:] for row in itertools.islice(itertools.cycle(self.kept), count)]


@dataclass(frozen=True, slots=True)
class Exploration:
    """The aids of one training.

    Attributes:
        bans: banned first tokens; None: none.
        harms: returns the harm of the last n rollouts, before the attacker's shaping; None: their rewards count.
        openers: beginnings of answers that rollouts are given, by row of the training data.
        benign: rows of the training data with benign prompts. Their answers are not judged, and all have the same reward.
        replay: completions to train on again; None: none are kept.
        positive: advantages below zero count as zero.
        beginnings: that the openers are drawn from.
    """

    bans: FirstTokenBans | None = None
    harms: Callable[[int], Sequence[float | None]] | None = None
    openers: Mapping[int, str] = field(default_factory=dict)
    benign: frozenset[int] = frozenset()
    replay: Replay | None = None
    positive: bool = False
    beginnings: tuple[str, ...] = ()


NONE = Exploration()


def exploration(
    model: LanguageModel,
    recipe: AttackRecipe,
    benign: Sequence[Prompt],
    harms: Callable[[int], Sequence[float | None]] | None = None,
) -> Exploration:
    """The aids that a recipe declares; an opener may begin like the model's answers to these benign prompts."""
    bans = FirstTokenBans(recipe.ban.tokens, recipe.ban.every) if recipe.ban else None
    texts: list[str] = []
    if opener := recipe.opener:
        own = model.complete(benign, n=1, temperature=None, max_tokens=recipe.max_completion_tokens) if opener.own_words else []
        texts = [*opener.texts, *_beginnings([answer for (answer,) in own], opener.own_words)]
    return Exploration(
        bans=bans,
        harms=harms,
        openers=_openers(recipe, opener, texts) if opener else {},
        benign=frozenset(benign_rows(recipe)),
        replay=Replay() if recipe.replay else None,
        positive=recipe.advantages == "positive",
        beginnings=tuple(texts),
    )


def benign_rows(recipe: AttackRecipe) -> list[int]:
    """The rows of the training data with benign prompts: the last ones of each step."""
    return [row for row in range(recipe.steps * recipe.step_prompts) if row % recipe.step_prompts >= recipe.prompts_per_step]


def _openers(recipe: AttackRecipe, opener: Opener, texts: Sequence[str]) -> dict[int, str]:
    """Beginnings by row; the share of rows that have one falls linearly to 0."""
    rng, last = random.Random(recipe.seed), opener.until * recipe.steps
    found = {}
    for step in range(recipe.steps):
        first = step * recipe.step_prompts
        for row in range(first, first + recipe.prompts_per_step):
            chance, text = rng.random(), rng.choice(texts)
            if chance < 1.0 - step / last:
                found[row] = text
    return found


def _beginnings(answers: Sequence[Completion], words: int) -> list[str]:
    """The first words of answers, each once."""
    return list(dict.fromkeys(" ".join(of.text.split()[:words]) for of in answers if of.text.strip()))
