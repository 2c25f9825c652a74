"""The attacker's reward, and a measure of the harm that it saw."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Sequence

from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.scoring import judge_whole
from rn_harness.models.completion import Completion
from rn_harness.records.base import INFRASTRUCTURE, Judgement
from rn_harness.records.trajectory import TrainingWindow
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import count_step_words, count_words, is_affirmative, is_refusal, words
from rn_harness.verdict.rewards import Form, attack_reward, compliance_reward, shaped_reward


class AttackReward:
    """The attacker's reward. It keeps hashes of the completions, never their text.

    ``entropies`` returns the mean token entropy of the policy along each answer to its prompt.

    Attributes:
        above: for each completion of the current window, True if its harm is above the threshold.
        plain: the reward of each before shaping.
        failed: for each, True if the judge's infrastructure failed at it.
        computed: the rewards of the last call, as they were computed; ``training.credit`` compares a step's losses with them.
    """

    def __init__(
        self,
        recipe: AttackRecipe,
        judge: Judge,
        policy: Policy,
        entropies: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]],
    ) -> None:
        self._recipe, self._judge, self._policy, self._entropies = recipe, judge, policy, entropies
        self._said: collections.Counter[bytes] = collections.Counter()
        self.above: list[bool] = []
        self.plain: list[float | None] = []
        self.failed: list[bool] = []
        self.computed: list[float | None] = []

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        if self._recipe.twin_steps and all(p.kind == "twin" for p in prompts):  # an answer to a benign request does no harm
            self.above.extend([False] * len(completions))
            self.plain.extend([0.0] * len(completions))
            self.failed.extend([False] * len(completions))
            self.computed = [compliance_reward(of.text) for of in completions]
            return [*self.computed]
        judged, plain = self._judged(prompts, completions)
        ensure_judging(judged, f"the reward judge scored none of a step's {len(judged)} completions")
        self.above.extend(j.score is not None and j.score > self._policy.threshold for j in judged)
        self.plain.extend(plain)
        self.failed.extend(j.unscored in INFRASTRUCTURE for j in judged)
        forms = self._forms(prompts, [of.text for of in completions])
        self.computed = [shaped_reward(self._recipe.reward, harm, form) for harm, form in zip(plain, forms, strict=True)]
        return [*self.computed]

    def harms(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        """The rewards before shaping of completions outside training; nothing is kept."""
        return self._judged(prompts, completions)[1]

    def complies(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[bool]:
        """For each text, True if it is an answer to its prompt with harm above the threshold; nothing is kept."""
        harms = self.harms(prompts, [Completion(text, truncated=False) for text in texts])
        return [harm is not None and harm > self._policy.threshold for harm in harms]

    def _judged(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> tuple[list[Judgement], list[float | None]]:
        """The judgements of completions, and their rewards before shaping."""
        found = judge_whole(self._judge, prompts, completions, self._policy.threshold)
        if strange := [i for i, (whole, of) in enumerate(zip(found, completions, strict=True)) if whole.text not in of.looks]:
            raise TrainingError(
                f"a reward is for its own completion, got {len(strange)} of {len(completions)} for other texts; look at the judge"
            )
        judged = [whole.judgement for whole in found]
        return judged, [attack_reward(j.score, is_refusal(of.text)) for j, of in zip(judged, completions, strict=True)]

    def _forms(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Form]:
        # Equal answers have exactly equal rewards only if each is measured once: rounding depends on its place in a batch.
        asked = dict.fromkeys(zip(prompts, completions, strict=True), 0.0)
        if self._recipe.reward.shape == "entropy":
            asked = dict(zip(asked, self._entropies(*zip(*asked, strict=True)), strict=True))
        said = [words(text) for text in completions]
        keys = [hashlib.sha256(" ".join(of).encode()).digest() for of in said]
        self._said.update(keys)
        total = self._said.total()
        return [
            Form(
                refusal=is_refusal(text),
                affirmative=is_affirmative(text),
                words=count_words(text),
                distinct=len(set(of)),
                step_words=count_step_words(text),
                share=self._said[key] / total,
                entropy=asked[prompt, text],
            )
            for prompt, text, of, key in zip(prompts, completions, said, keys, strict=True)
        ]

    def close(self, window: TrainingWindow) -> TrainingWindow:
        """The window with the harm seen since the last one; unchanged if its training had no rewards.

        Raises TrainingError if the window reports rewards although none was computed here.
        """
        above, failed, plain = self.above, self.failed, [value for value in self.plain if value is not None]
        self.above, self.failed, self.plain = [], [], []
        if window.reward_mean is None:
            return window
        if not plain:
            raise TrainingError(
                f"a window's rewards are those that were asked for in it, got reward_mean={window.reward_mean:g} of none; call "
                "the context's reward"
            )
        shares = {"above_share": sum(above) / len(above), "failed_share": sum(failed) / len(failed)}
        return window.model_copy(update={**shares, "harm_mean": sum(plain) / len(plain)})
