"""The defense: Reward Neutralization by GRPO (arXiv 2505.04578), and alternatives for comparison.

``paper`` has the paper's prompts, steps and temperature; the learning rate, LoRA, the reward's numbers and a validation part are
ours, since the paper does not give them. ``anchored`` adds benign anchors to the batch, rewarded for keeping the undefended
answer, and samples at a higher temperature; docs/log.md says why. ``sft`` teaches the refusal by supervised steps on the same
prompts. ``hardened`` continues after ``anchored`` (``harden``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rn_harness.defenses.harden import harden, own_answers
from rn_harness.judges.checkpoints import measure_convergence, probe_reward
from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.scoring import Panel, judge_whole
from rn_harness.records.base import prompts_digest
from rn_harness.records.trajectory import ConvergencePoint, DefenseReport, TrainingWindow
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import count_words, is_degenerate, is_refusal, words
from rn_harness.training.grpo import TrainOptions, order_prompts, train
from rn_harness.training.sampler import TRANSFORMERS, Sampler
from rn_harness.training.snapshots import Measured, Resuming, Resumption, Snapshot
from rn_harness.training.supervised import Example, learn
from rn_harness.verdict.rewards import benign_reward, neutralization_reward

if TYPE_CHECKING:
    from rn_harness.models.completion import Completion
    from rn_harness.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Defender:
    """One defense: settings, prompts, and the judge that rewards.

    Attributes:
        harmful: the suite's defense prompts.
        anchors: benign prompts; the anchored recipe keeps their undefended answers.
    """

    recipe: DefenseRecipe
    harmful: Sequence[Prompt]
    anchors: Sequence[Prompt]
    reward_judge: Judge
    sampler: Sampler = TRANSFORMERS


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
        panel: for the reward probe, and for the judge of convergence.
        say: gets each measurement of convergence.
        tick: gets the number of each step taken.
        resumption: keeps the state of the training, and restores that of an earlier run; None: nothing is kept.

    Raises:
        TrainingError: the training failed.
        JudgeGoneError: the reward judge stopped judging.
    """
    recipe, judge, policy = defender.recipe, defender.reward_judge, panel.policy
    used = {"defense": defender.harmful, "anchor": defender.anchors, "heldout": panel.heldout}
    training, validation = split_validation(defender.harmful, recipe.validation_share)
    anchor_answers = undefended_answers(model, defender.anchors, recipe.max_completion_tokens) if recipe.benign_share else {}
    hardening = recipe.hardening
    compliant = own_answers(model, training, judge, policy, hardening.samples, recipe.seed) if hardening else []
    undefended_probe = probe_reward(model, panel, recipe.seed)
    prompts = mix_benign(training, defender.anchors, recipe.steps * recipe.prompts_per_step, recipe.benign_share, recipe.seed)
    model.arm(recipe)
    convergence = _Convergence(model, recipe, validation, panel, say, tick, resumption)
    settings = _neutralize(model, defender, prompts, anchor_answers, convergence, policy.threshold)
    if hardening:
        if recipe.form == "lora":
            model.merge()
        benign = list(anchor_answers.values())
        settings["hardening"] = harden(
            model, recipe, training, compliant, benign, policy, lambda number: convergence.after(recipe.steps + number)
        )
    return DefenseReport(
        recipe=recipe.model_dump(mode="json"),
        points=tuple(convergence.points),
        probe=probe_reward(model, panel, recipe.seed),
        undefended_probe=undefended_probe,
        settings=settings,
        resumed=convergence.resumed,
        prompts={name: prompts_digest(of_set) for name, of_set in used.items()},
    )


class _Convergence:
    """Measures convergence while a defense trains, and keeps the measurements together with the training's state.

    Attributes:
        points: the measurements.
        resumed: the steps from which the training was resumed.
        tick: gets the number of each step taken.
    """

    def __init__(
        self,
        model: LanguageModel,
        recipe: DefenseRecipe,
        validation: Sequence[Prompt],
        panel: Panel,
        say: Callable[[ConvergencePoint], None],
        tick: Callable[[int], None],
        resumption: Resumption | None,
    ) -> None:
        self._model, self._recipe, self._validation, self._panel, self._say = model, recipe, validation, panel, say
        self.tick, self._resumption = tick, resumption
        earlier = resumption.read(model) if resumption else None
        self._snapshot = earlier[0] if earlier else None
        self.points = [*earlier[1].points] if earlier else []
        self.resumed = (*earlier[1].resumed, earlier[0].step) if earlier else ()

    def due(self, step: int) -> bool:
        """True if convergence is measured after this step."""
        return step % self._recipe.evaluate_every == 0 or step == self._recipe.last_step

    def measure(self, step: int, _: TrainingWindow | None = None) -> None:
        """Measures convergence on the validation prompts."""
        point = measure_convergence(self._model, self._validation, self._panel.judge, self._recipe, self._panel.policy, step)
        self.points.append(point)
        self._say(point)

    def after(self, step: int) -> None:
        """Reports a step, and measures convergence if it is due."""
        self.tick(step)
        if self.due(step):
            self.measure(step)

    def resuming(self) -> Resuming | None:
        """Restores the state of an earlier training, and keeps this one's."""
        resumption = self._resumption
        if resumption is None:
            return None

        def keep(snapshot: Snapshot) -> None:
            resumption.keep(snapshot, Measured(points=tuple(self.points), resumed=self.resumed))

        return Resuming(self._snapshot, keep)


def _neutralize(
    model: LanguageModel,
    defender: Defender,
    prompts: Sequence[Prompt],
    anchor_answers: Mapping[str, Example],
    convergence: _Convergence,
    threshold: float,
) -> dict[str, Any]:
    """All steps by RL, or supervised steps on the refusal and the anchors' undefended answers; returns the settings."""
    recipe = defender.recipe
    if recipe.method == "sft":
        assert recipe.refusal is not None
        convergence.measure(0)
        texts = [anchor_answers.get(p.id) or Example(p, recipe.refusal) for p in prompts]
        size = recipe.prompts_per_step
        return learn(
            model,
            [texts[i : i + size] for i in range(0, len(texts), size)],
            learning_rate=lambda step: recipe.rate_after(step - 1),
            max_grad_norm=recipe.max_grad_norm,
            after=convergence.after,
        )
    known = {name: example.text for name, example in anchor_answers.items()}
    return train(
        model,
        recipe,
        prompts,
        defense_reward(defender.reward_judge, recipe, known, threshold),
        convergence.measure,
        convergence.due,
        TrainOptions(
            sampler=defender.sampler,
            resuming=convergence.resuming(),
            tick=convergence.tick,
            penalised=(lambda prompt: prompt.id in anchor_answers) if recipe.beta_on == "benign" else None,
        ),
    )
