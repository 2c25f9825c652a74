"""The defense: Reward Neutralization by GRPO (arXiv 2505.04578), and alternatives for comparison.

``paper`` has the paper's prompts, steps and temperature; the learning rate, LoRA, the reward's numbers and a validation part are
ours, since the paper does not give them. ``anchored`` adds benign anchors to the batch, rewarded for keeping the undefended
answer, and samples at a higher temperature; docs/log.md says why. ``sft`` teaches the refusal by supervised steps on the same
prompts; ``depth`` and ``distill`` go further. ``hardened`` continues after ``anchored`` (``harden``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rn_harness.defenses.depth import deepen
from rn_harness.defenses.harden import MIN_EXAMPLES, Hardener, harden, own_answers
from rn_harness.judges.checkpoints import measure_convergence
from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.scoring import Panel, judge_whole
from rn_harness.models.completion import Completion
from rn_harness.models.language_model import LanguageModel
from rn_harness.records.base import prompts_digest
from rn_harness.records.trajectory import ConvergencePoint, DefenseReport, TrainingWindow
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.retain import Retained
from rn_harness.spec.wording import count_words, is_degenerate, is_refusal, words
from rn_harness.training.grpo import TrainOptions, order_prompts, train
from rn_harness.training.snapshots import Resumption
from rn_harness.training.supervised import Diagnostics, Example, learn
from rn_harness.training.trainer_settings import TRANSFORMERS, Sampler
from rn_harness.verdict.rewards import benign_reward, neutralization_reward


@dataclass(frozen=True, slots=True)
class Defender:
    """One defense: settings, prompts, and the judge that rewards.

    Attributes:
        harmful: the suite's defense prompts.
        anchors: benign prompts; the anchored recipe keeps their undefended answers.
        retained: further benign prompts, whose answers a distilled student keeps.
        teacher: loads the model that a distilled student is made from; None: the candidate.
    """

    recipe: DefenseRecipe
    harmful: Sequence[Prompt]
    anchors: Sequence[Prompt]
    reward_judge: Judge
    sampler: Sampler = TRANSFORMERS
    retained: Sequence[Retained] = ()
    teacher: Callable[[], LanguageModel] | None = None


def split_validation(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Defense prompts for training and, from the end of the set, for validation; at least one each."""
    kept = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    return list(prompts[:-kept]), list(prompts[-kept:])


def mix_benign(harmful: Sequence[Prompt], anchors: Sequence[Prompt], count: int, share: float, seed: int) -> list[Prompt]:
    """``count`` prompts of which ``share`` are benign, evenly interleaved."""
    is_benign = [math.floor((i + 1) * share) > math.floor(i * share) for i in range(count)]
    n_benign = sum(is_benign)
    from_harmful = iter(order_prompts(harmful, count - n_benign, seed))
    from_anchors = iter(order_prompts(anchors, n_benign, seed + 1) if n_benign else [])
    return [next(from_anchors if benign else from_harmful) for benign in is_benign]


def undefended_answers(model: LanguageModel, anchors: Sequence[Prompt], max_tokens: int) -> dict[str, Example]:
    """The undefended candidate's greedy answers by the anchor's id; in memory only.

    An answer cut off by the limit is not marked as whole, so that the model does not learn to end there.
    """
    answers = model.complete(anchors, n=1, temperature=None, max_tokens=max_tokens)
    return {p.id: Example(p, answer.text, whole=not answer.truncated) for p, (answer,) in zip(anchors, answers, strict=True)}


def retained_answers(model: LanguageModel, retained: Sequence[Retained], max_tokens: int) -> list[Example]:
    """The given answers of a retain corpus, and the undefended candidate's own where none is given; in memory only."""
    asked = undefended_answers(model, [of.prompt for of in retained if of.answer is None], max_tokens)
    return [asked[of.prompt.id] if of.answer is None else Example(of.prompt, of.answer) for of in retained]


def defense_reward(
    judge: Judge, recipe: DefenseRecipe, anchor_answers: Mapping[str, str], threshold: float
) -> Callable[[Sequence[Prompt], Sequence[Completion]], list[float | None]]:
    """The reward of a mixed batch: neutralization on harmful prompts, think parts included, and agreement on anchors."""

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        harmful = [i for i, p in enumerate(prompts) if p.id not in anchor_answers]
        of_harmful = judge_whole(judge, [prompts[i] for i in harmful], [completions[i] for i in harmful], threshold)
        judged = dict(zip(harmful, of_harmful, strict=True))
        asked = [whole.judgement for whole in of_harmful]
        ensure_judging(asked, f"the reward judge scored none of a step's {len(judged)} completions")
        rewards: list[float | None] = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            text = completion.text
            if prompt.id in anchor_answers:
                rewards.append(benign_reward(words(text), words(anchor_answers[prompt.id])))
                continue
            harm, degenerate = judged[i].judgement.score, is_degenerate(text) or bool(judged[i].answer.degenerate)
            rewards.append(neutralization_reward(harm, is_refusal(text), degenerate, count_words(text), recipe.word_cost))
        return rewards

    return reward


def run_defense(
    model: LanguageModel,
    defender: Defender,
    panel: Panel,
    say: Callable[[ConvergencePoint], None] = lambda _: None,
    tick: Callable[[int], None] = lambda _: None,
    resumption: Resumption | None = None,
) -> DefenseReport:
    """Neutralizes the model in place: afterwards it has the defended adapter, or other weights if the recipe trains them all.

    Args:
        model: the undefended candidate.
        defender: settings, prompts and reward judge.
        panel: for the judge of convergence, and for what is judged whole.
        say: gets each measurement of convergence.
        tick: gets the number of each step taken.
        resumption: keeps the state of the training, and restores that of an earlier run; None: nothing is kept.

    Raises:
        TrainingError: the training failed.
        JudgeGoneError: the reward judge stopped judging.
    """
    return _Defense(model, defender, panel, say, tick, resumption).run()


@dataclass
class _Defense:
    """A defense while it trains; see ``run_defense``."""

    model: LanguageModel
    defender: Defender
    panel: Panel
    say: Callable[[ConvergencePoint], None]
    tick: Callable[[int], None]
    resumption: Resumption | None

    def __post_init__(self) -> None:
        self.recipe = self.defender.recipe
        self.training, self.validation = split_validation(self.defender.harmful, self.recipe.validation_share)
        self.anchor_answers: dict[str, Example] = {}
        self.compliant: list[Example] = []
        self.retained: list[Example] = []
        self.points = self.resumption.points if self.resumption else list[ConvergencePoint]()

    def run(self) -> DefenseReport:
        """Trains by the recipe's method, hardens if the recipe says so, and measures before, after and in between."""
        model, recipe, policy, anchors = self.model, self.recipe, self.panel.policy, self.defender.anchors
        used = {"defense": self.defender.harmful, "anchor": anchors, "heldout": self.panel.heldout}
        hardening, depth = recipe.hardening, recipe.depth
        if recipe.benign_share or depth:
            self.anchor_answers = undefended_answers(model, anchors, recipe.max_completion_tokens)
        if samples := max(of.samples if of else 0 for of in (hardening, depth)):
            judge = self.defender.reward_judge
            least = MIN_EXAMPLES if hardening else 0
            self.compliant = own_answers(model, self.training, judge, policy, samples, recipe.seed, least)
        if recipe.distill:
            self.retained = retained_answers(model, self.defender.retained, recipe.max_completion_tokens)
        prompts = mix_benign(self.training, anchors, recipe.steps * recipe.prompts_per_step, recipe.benign_share, recipe.seed)
        if self.defender.teacher:
            model.network.float().load_state_dict(self.defender.teacher().network.state_dict())
        settings = self._trained_before()
        if settings is None:
            model.arm(recipe)
            settings = {"grpo": self._reinforce, "sft": self._teach}.get(recipe.method, self._deepen)(prompts)
            if hardening and recipe.form == "lora":
                model.merge()
        if hardening:
            settings = settings | {"hardening": self._harden(settings)}
        return DefenseReport(
            recipe=recipe.model_dump(mode="json"),
            points=tuple(self.points),
            settings=settings,
            resumed=self.resumption.resumed if self.resumption else (),
            prompts={name: prompts_digest(of_set) for name, of_set in used.items()},
        )

    def _trained_before(self) -> dict[str, Any] | None:
        """Settings of the training, if an earlier run was cut off in the hardening after it; its snapshot is read."""
        resumption = self.resumption
        if resumption and resumption.was_hardening() and resumption.begin(self.model, self.recipe):
            return resumption.settings
        return None

    def _harden(self, settings: dict[str, Any]) -> dict[str, Any]:
        """All rounds of hardening, after a training with these settings; returns a summary."""
        recipe, benign = self.recipe, list(self.anchor_answers.values())
        if self.resumption:
            self.resumption.settings = settings
        return harden(
            self.model,
            Hardener(recipe, self.training, self.compliant, benign, self.panel.policy),
            lambda number: self._after(recipe.steps + number),
            self.resumption,
        )

    def _reinforce(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """All steps by RL; returns the settings."""
        recipe, defender, answers = self.recipe, self.defender, self.anchor_answers
        known = {name: example.text for name, example in answers.items()}
        options = TrainOptions(
            sampler=defender.sampler,
            resumption=self.resumption,
            tick=self.tick,
            penalised=(lambda prompt: prompt.id in answers) if recipe.beta_on == "benign" else None,
        )
        reward = defense_reward(defender.reward_judge, recipe, known, self.panel.policy.threshold)
        return train(self.model, recipe, prompts, reward, self._measure, self._due, options)

    def _teach(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """All steps supervised, on the refusal and the anchors' undefended answers; returns the settings."""
        recipe, size = self.recipe, self.recipe.prompts_per_step
        assert recipe.refusal is not None
        self._begin()
        texts = [self.anchor_answers.get(p.id) or Example(p, recipe.refusal) for p in prompts]
        return learn(
            self.model,
            [texts[i : i + size] for i in range(0, len(texts), size)],
            learning_rate=lambda step: recipe.rate_after(step - 1),
            max_grad_norm=recipe.max_grad_norm,
            after=self._after,
            resumption=self.resumption,
        )

    def _deepen(self, _: Sequence[Prompt]) -> dict[str, Any]:
        """All steps of refusal at depth; returns the settings."""
        self._begin()
        kept = [*self.anchor_answers.values(), *self.retained]
        settings = deepen(self.model, self.recipe, self.training, self.compliant, kept, self._after, self.resumption)
        prompts = [of.prompt for of in self.defender.retained]
        return settings | ({"retained": len(prompts), "retain": prompts_digest(prompts)} if self.recipe.distill else {})

    def _begin(self) -> None:
        """Reads the snapshot of supervised steps that an earlier run left; without one, measures step 0."""
        if not (self.resumption and self.resumption.begin(self.model, self.recipe)):
            self._measure(0)

    def _due(self, step: int) -> bool:
        """True if convergence is measured after this step."""
        return step % self.recipe.evaluate_every == 0 or step == self.recipe.last_step

    def _measure(self, step: int, _: TrainingWindow | None = None) -> None:
        """Measures convergence on the validation prompts."""
        panel = self.panel
        point = measure_convergence(self.model, self.validation, panel.judge, self.recipe, panel.policy, step)
        self.points.append(point)
        self.say(point)

    def _after(self, step: int, _: Diagnostics | None = None) -> None:
        """Reports a step, and measures convergence if it is due."""
        self.tick(step)
        if self._due(step):
            self._measure(step)
