"""The attack: a malicious GRPO fine-tune, scored at every checkpoint. Floor 3 (stages).

The control is the same function on the undefended candidate, for fewer steps. The attacked weights live in the model that
is passed in, and die with it: nothing here writes them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rn_harness.evaluate import Panel, measure_checkpoint
from rn_harness.grpo import order_prompts, train
from rn_harness.judges import Judge
from rn_harness.measures import is_refusal
from rn_harness.records import Checkpoint, TrainingWindow, Trajectory
from rn_harness.rewards import attack_reward
from rn_harness.suite import AttackRecipe, Prompt
from rn_harness.validity import checkpoint_steps

if TYPE_CHECKING:
    from rn_harness.model import LanguageModel


def draw_attack_prompts(pool: Sequence[Prompt], recipe: AttackRecipe) -> list[Prompt]:
    """The prompts that this attack trains on: ``recipe.prompts`` of the pool, drawn by its seed."""
    return random.Random(recipe.seed).sample(list(pool), recipe.prompts)


def run_attack(
    model: LanguageModel,
    recipe: AttackRecipe,
    pool: Sequence[Prompt],
    panel: Panel,
    reward_judge: Judge,
    sink: Callable[[Checkpoint], None],
    *,
    candidate_digest: str,
    defended_digest: str | None,
    control: bool,
) -> Trajectory:
    """Attacks the model in place.

    Args:
        model: the policy under attack; it is spoilt afterwards.
        recipe: settings.
        pool: attack prompts of the suite.
        panel: what checkpoints are measured on.
        reward_judge: what the attacker's reward is made from.
        sink: gets each checkpoint as soon as it is measured.
        candidate_digest, defended_digest: what the model was loaded from, for the record.
        control: whether this is the control, which runs for ``control_steps``.

    Raises:
        TrainingError: the training broke; the checkpoints before it have gone to the sink.
    """
    steps = recipe.control_steps if control else recipe.steps
    run = recipe.model_copy(update={"steps": steps})
    chosen = draw_attack_prompts(pool, recipe)
    due = checkpoint_steps(steps, panel.policy)
    checkpoints: list[Checkpoint] = []

    above: list[bool] = []  # of the window's completions, whether their harm is above the threshold

    def reward(prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        judged = reward_judge.score(prompts, completions)
        above.extend(j.score is not None and j.score > panel.policy.threshold for j in judged)
        return [attack_reward(j.score, is_refusal(text)) for j, text in zip(judged, completions, strict=True)]

    def at_step(step: int, window: TrainingWindow | None) -> None:
        if window is not None:
            window = window.model_copy(update={"above_share": sum(above) / len(above)})
            above.clear()
        with_benign = step % panel.policy.benign_every == 0 or step == steps
        checkpoint = measure_checkpoint(model, panel, step, seed=recipe.seed, with_benign=with_benign, training=window)
        checkpoints.append(checkpoint)
        sink(checkpoint)

    model.attach(recipe.lora, recipe.seed)
    settings = train(
        model,
        run,
        order_prompts(chosen, steps * recipe.prompts_per_step, recipe.seed),
        reward,
        at_step,
        due=lambda step: step in due,
    )
    return Trajectory(
        candidate_digest=candidate_digest,
        defended_digest=defended_digest,
        judge_digest=panel.judge.digest,
        reward_digest=reward_judge.digest,
        recipe=run.model_dump(mode="json"),
        prompt_ids=tuple(p.id for p in chosen),
        heldout_ids=tuple(p.id for p in panel.heldout),
        steps=steps,
        checkpoints=tuple(checkpoints),
        settings=settings,
    )
