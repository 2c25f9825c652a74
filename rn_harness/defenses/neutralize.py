"""The defense: Reward Neutralization by GRPO (arXiv 2505.04578), and what it is compared with.

``paper`` has the paper's prompts, steps and temperature; what the paper leaves open (learning rate, LoRA, the reward's numbers,
a validation part) is ours. ``anchored`` adds benign anchors to the batch, rewarded for keeping the undefended answer, and samples
hotter; docs/log.md says why. ``sft`` teaches the refusal by supervised steps on the same prompts. ``hardened`` goes on where
``anchored`` ends (``hardening``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rn_harness.defenses.harden import harden, own_answers
from rn_harness.judges.convergence import measure_convergence, probe_reward
from rn_harness.judges.panel import Panel
from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.whole import judge_whole
from rn_harness.records.keys import prompts_digest
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


def split_validation(prompts: Sequence[Prompt], share: float) -> tuple[list[Prompt], list[Prompt]]:
    """Defense prompts for training and, from the end of the set, for measuring convergence; at least one of each."""
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
    """What the undefended candidate answers greedily, by the anchor's id; in memory only.

    One that the limit cut off is no whole answer: nothing is to learn to end there.
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
    recipe: DefenseRecipe,
    harmful: Sequence[Prompt],
    anchors: Sequence[Prompt],
    panel: Panel,
    reward_judge: Judge,
    say: Callable[[ConvergencePoint], None],
    sampler: Sampler = TRANSFORMERS,
    resumption: Resumption | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> DefenseReport:
    """Neutralizes the model in place: afterwards it carries the defended adapter, or other weights where all were trained.

    Args:
        model: the undefended candidate.
        recipe: settings.
        harmful: the suite's defense prompts.
        anchors: benign prompts; their undefended answers are what the anchored recipe keeps.
        panel: for the reward probe, and for the judge that convergence is measured by.
        reward_judge: what the neutralization reward is made from.
        say: told of each measurement of convergence.
        sampler: who samples what it trains on.
        resumption: where the training is kept while it lasts, and what an earlier run left of it; None: nowhere.
        tick: told of each step.

    Raises:
        TrainingError: the training broke.
        JudgeGoneError: the reward judge stopped judging.
    """
    used = {"defense": harmful, "anchor": anchors, "heldout": panel.heldout}
    digests = {name: prompts_digest(of_set) for name, of_set in used.items()}
    training, validation = split_validation(harmful, recipe.validation_share)
    anchor_answers = undefended_answers(model, anchors, recipe.max_completion_tokens) if recipe.benign_share else {}
    hardening = recipe.hardening
    compliant = own_answers(model, training, reward_judge, panel.policy, hardening.samples, recipe.seed) if hardening else []
    undefended_probe = probe_reward(model, panel, recipe.seed)
    prompts = mix_benign(training, anchors, recipe.steps * recipe.prompts_per_step, recipe.benign_share, recipe.seed)
    model.arm(recipe)
    earlier = resumption.read(model) if resumption else None
    points = [*earlier[1].points] if earlier else []
    resumed = (*earlier[1].resumed, earlier[0].step) if earlier else ()

    def at_step(step: int, _: TrainingWindow | None = None) -> None:
        point = measure_convergence(model, validation, panel.judge, recipe, panel.policy, step)
        points.append(point)
        say(point)

    def due(step: int) -> bool:
        return step % recipe.evaluate_every == 0 or step == recipe.last_step

    def resuming(kept: Resumption) -> Resuming:
        def keep(snapshot: Snapshot) -> None:
            kept.keep(snapshot, Measured(points=tuple(points), resumed=resumed))

        return Resuming(earlier[0] if earlier else None, keep)

    def after(step: int) -> None:
        tick(step)
        if due(step):
            at_step(step)

    settings: dict[str, Any]
    if recipe.method == "sft":
        at_step(0)
        settings = _supervise(model, recipe, prompts, anchor_answers, after)
    else:
        settings = train(
            model,
            recipe,
            prompts,
            defense_reward(
                reward_judge, recipe, {name: kept.text for name, kept in anchor_answers.items()}, panel.policy.threshold
            ),
            at_step,
            due,
            TrainOptions(
                sampler=sampler,
                resuming=resuming(resumption) if resumption else None,
                tick=tick,
                penalised=(lambda prompt: prompt.id in anchor_answers) if recipe.beta_on == "benign" else None,
            ),
        )
    if hardening:
        if recipe.form == "lora":
            model.merge()
        benign = list(anchor_answers.values())
        hardened = harden(
            model, recipe, training, compliant, benign, panel.policy, after=lambda number: after(recipe.steps + number)
        )
        settings = {**settings, "hardening": hardened}
    return DefenseReport(
        recipe=recipe.model_dump(mode="json"),
        points=tuple(points),
        probe=probe_reward(model, panel, recipe.seed),
        undefended_probe=undefended_probe,
        settings=settings,
        resumed=resumed,
        prompts=digests,
    )


def _supervise(
    model: LanguageModel,
    recipe: DefenseRecipe,
    prompts: Sequence[Prompt],
    anchor_answers: Mapping[str, Example],
    after: Callable[[int], None],
) -> dict[str, Any]:
    """Supervised steps on the recipe's refusal, and on the undefended answers of benign anchors."""
    assert recipe.refusal is not None
    texts = [anchor_answers.get(p.id) or Example(p, recipe.refusal) for p in prompts]
    size = recipe.prompts_per_step
    return learn(
        model,
        [texts[i : i + size] for i in range(0, len(texts), size)],
        learning_rate=lambda step: recipe.rate_after(step - 1),
        max_grad_norm=recipe.max_grad_norm,
        after=after,
    )
