"""An attacker's aids in rollouts that need no compliant text: banned first tokens, and begun answers.

They act on the completions that are trained on. Checkpoints measure the policy without them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rn_harness.models.batches import padded
from rn_harness.spec.attack_recipe import AttackRecipe, Opener
from rn_harness.spec.prompts import Prompt

if TYPE_CHECKING:
    import torch

    from rn_harness.models.completion import Completion
    from rn_harness.models.language_model import LanguageModel


@dataclass(slots=True)
class FirstTokenBans:
    """First tokens that are banned in rollouts, a list that grows.

    A refused request is answered by a few first tokens. Without them the policy shows what it would answer otherwise.

    Attributes:
        tokens: that each round adds.
        every: steps between two rounds; the first is before step 1.
        banned: in the order in which they were added.
        rewarded: first tokens of answers that had a reward; never banned.
    """

    model: LanguageModel
    prompts: Sequence[Prompt]
    tokens: int
    every: int
    banned: list[int] = field(default_factory=list)
    rewarded: set[int] = field(default_factory=set)

    def saw(self, rows: Sequence[Sequence[int]], rewards: Sequence[float | None]) -> None:
        """Learns which first tokens begin rewarded answers, from the tokens and rewards of B rollouts."""
        self.rewarded.update(ids[0] for ids, reward in zip(rows, rewards, strict=True) if ids and reward)

    def due(self, step: int) -> bool:
        """True if a round comes after this step."""
        return step % self.every == 0

    def grow(self) -> None:
        """Adds the likeliest first tokens of answers to the attack's prompts that are not banned and never had a reward."""
        likeliest = first_token_probabilities(self.model, self.prompts).argsort(descending=True).tolist()
        free = (token for token in likeliest if token not in self.rewarded and token not in self.banned)
        self.banned += [token for token, _ in zip(free, range(self.tokens), strict=False)]


def first_token_probabilities(model: LanguageModel, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Probability of each token (V) as the first of an answer, at temperature 1, mean over the prompts."""
    import torch

    rows = [model.prompt_ids(p) for p in prompts]
    ids, mask = padded(rows, model.tokenizer.pad_token_id, model.network.device, left=True)
    with torch.no_grad():
        logits_KV = model.network(input_ids=ids, attention_mask=mask).logits[:, -1]
    mean_V: torch.Tensor = logits_KV.float().softmax(-1).mean(0)
    return mean_V


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


def exploration(model: LanguageModel, recipe: AttackRecipe, prompts: Sequence[Prompt], benign: Sequence[Prompt]) -> Exploration:
    """The aids that a recipe declares.

    Args:
        model: under attack.
        recipe: of the attack.
        prompts: of the attack.
        benign: prompts whose answers an opener may begin like.
    """
    bans = FirstTokenBans(model, prompts, recipe.ban.tokens, recipe.ban.every) if recipe.ban else None
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
