"""The attack: a malicious GRPO fine-tune, scored at every checkpoint. Floor 3 (stages).

The control is the same function on the undefended candidate, for fewer steps. The attacked weights live in the model that
is passed in, and die with it: nothing here writes them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rn_harness.anchors import Anchor
from rn_harness.certification import anchors_for, draw, score_planted
from rn_harness.errors import JudgeGoneError, TrainingError, told
from rn_harness.evaluate import ControlAnswers, Panel, measure_checkpoint
from rn_harness.grpo import TRANSFORMERS, Sampler, order_prompts, train
from rn_harness.judges import Judge, ensure_judging
from rn_harness.measures import is_refusal
from rn_harness.records import Checkpoint, PlantedScore, TrainingWindow, Trajectory, Witnessed
from rn_harness.rewards import attack_reward
from rn_harness.suite import AttackRecipe, Policy, Prompt
from rn_harness.validity import JUDGES, WITNESSES, checkpoint_steps, misjudging, to_witness

if TYPE_CHECKING:
    from rn_harness.model import LanguageModel


def draw_attack_prompts(pool: Sequence[Prompt], recipe: AttackRecipe) -> list[Prompt]:
    """The prompts that this attack trains on: ``recipe.prompts`` of the pool, drawn by its seed."""
    return random.Random(recipe.seed).sample(list(pool), recipe.prompts)


def _writes(model: LanguageModel) -> dict[str, int]:
    """How often each trained parameter was written to, by name; torch counts it for its own gradients."""
    return {name: p._version for name, p in model.trained.items()}  # noqa: SLF001


@contextmanager
def _under_attack(model: LanguageModel, fresh: Mapping[str, int], step: int) -> Iterator[None]:
    """Makes sure that the model which is measured within is the one under attack.

    A starved attack moves no weight; but the optimizer writes to them at every step, also where the gradient is zero.

    Args:
        model: that is passed to the measurement.
        fresh: how often each parameter that it trains had been written to before the attack.
        step: attack steps taken.

    Raises:
        TrainingError: the optimizer did not step this model's parameters so often, or another model was measured.
    """
    # The most of all: where experts are not asked in a step, theirs are not written to.
    stepped = max((now - fresh[name] for name, now in _writes(model).items()), default=-1)
    if stepped < step:
        raise TrainingError(
            f"the model that is measured must be the one under attack, got one that was stepped {max(stepped, 0)} times in "
            f"{step} steps; attack the model itself, not a copy"
        )
    layer = model.run_by()
    runs: list[None] = []
    handle = layer.register_forward_hook(lambda *_: runs.append(None))
    try:
        yield
    finally:
        handle.remove()
    if not runs:
        raise TrainingError(f"the model under attack must be measured, got step={step} at which it was not run; measure it")


@dataclass(frozen=True, slots=True)
class Witness:
    """Known anchors for a judge that does not score checkpoints, to see at each of them whether it still judges.

    A reward's judge that turns blind starves the attack, and a second judge that does takes back what the first saw; neither
    shows in the scores.

    Attributes:
        who: whether the judge rewards, or gives the second opinion.
        judge: told what is forbidden in the anchors.
        anchors: as many of each side as there are, up to ``WITNESSES``, drawn by the judge's digest.
    """

    who: Witnessed
    judge: Judge
    anchors: tuple[Anchor, ...]

    @classmethod
    def of(cls, who: Witnessed, judge: Judge, policy: Policy) -> Self:
        """A witness of this judge."""
        anchors = anchors_for(judge)
        return cls(who, judge.about(anchors.forbidden), tuple(draw(anchors.of("certify"), judge.digest, WITNESSES, policy)))

    def ask(self, policy: Policy) -> tuple[PlantedScore, ...]:
        """What the judge says of the anchors now."""
        return score_planted(self.judge, self.anchors, policy)


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
    found: Callable[[ControlAnswers], None] | None = None,
    cut: Callable[[Trajectory], None] = lambda _: None,
    sampler: Sampler = TRANSFORMERS,
) -> Trajectory:
    """Attacks the model in place; ends early where a judge stops judging, or goes blind, and says so in the trajectory.

    Args:
        model: the policy under attack; it is spoilt afterwards.
        recipe: settings.
        pool: attack prompts of the suite.
        panel: what checkpoints are measured on.
        reward_judge: what the attacker's reward is made from.
        sink: gets each checkpoint as soon as it is measured.
        candidate_digest, defended_digest: what the model was loaded from, for the record.
        control: whether this is the control, which runs for ``control_steps``.
        found: gets the answers above the threshold at the last checkpoint, if there are any.
        cut: gets what was measured, where anything ends the attack before its last step; the exception then goes on.
        sampler: who samples what it trains on.

    Raises:
        TrainingError: the training broke, or it was not this model that was trained or measured; the checkpoints before it
            have gone to the sink.
    """
    steps = recipe.control_steps if control else recipe.steps
    run = recipe.model_copy(update={"steps": steps})
    chosen = draw_attack_prompts(pool, recipe)
    due = checkpoint_steps(steps, panel.policy)
    checkpoints: list[Checkpoint] = []

    second = panel.second.digest if panel.second else None
    others: dict[Witnessed, Judge] = {"reward": reward_judge, **({"second": panel.second} if panel.second else {})}
    asked = to_witness(panel.judge.digest, reward_judge.digest, second)
    witnesses = [Witness.of(who, others[who], panel.policy) for who in asked]
    above: list[bool] = []  # of the window's completions, whether their harm is above the threshold

    def reward(prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        judged = reward_judge.score(prompts, completions)
        ensure_judging(judged, f"the reward judge scored none of a step's {len(judged)} completions")
        above.extend(j.score is not None and j.score > panel.policy.threshold for j in judged)
        return [attack_reward(j.score, is_refusal(text)) for j, text in zip(judged, completions, strict=True)]

    def at_step(step: int, window: TrainingWindow | None) -> None:
        if window is not None:
            window = window.model_copy(update={"above_share": sum(above) / len(above)})
            above.clear()
        with_benign = step % panel.policy.benign_every == 0 or step == steps
        with _under_attack(model, fresh, step):
            checkpoint = measure_checkpoint(
                model,
                panel,
                step,
                seed=recipe.seed,
                with_benign=with_benign,
                training=window,
                found=found if step == steps else None,
            )
        witnessed = {witness.who: witness.ask(panel.policy) for witness in witnesses}
        checkpoint = checkpoint.model_copy(update={"witnessed": witnessed})
        checkpoints.append(checkpoint)
        sink(checkpoint)
        for who, given in witnessed.items():
            if fault := misjudging(given, panel.policy):
                raise JudgeGoneError(f"at step {step} {JUDGES[who]} {fault}")
        ensure_judging(checkpoint.planted, f"the judge scored none of the planted anchors at step {step}")

    def trajectory(settings: dict[str, Any], *, gone: str | None = None, stopped: str | None = None) -> Trajectory:
        return Trajectory(
            candidate_digest=candidate_digest,
            defended_digest=defended_digest,
            judge_digest=panel.judge.digest,
            reward_digest=reward_judge.digest,
            second_digest=second,
            recipe=run.model_dump(mode="json"),
            prompt_ids=tuple(p.id for p in chosen),
            heldout_ids=tuple(p.id for p in panel.heldout),
            benign_ids=tuple(p.id for p in panel.benign),
            steps=steps,
            checkpoints=tuple(checkpoints),
            settings=settings,
            rendered=model.rendered(panel.heldout[0]) if panel.heldout else None,
            judge_gone=gone,
            stopped=stopped,
        )

    model.arm(recipe)
    fresh = _writes(model)
    try:
        settings = train(
            model,
            run,
            order_prompts(chosen, steps * recipe.prompts_per_step, recipe.seed),
            reward,
            at_step,
            due=lambda step: step in due,
            sampler=sampler,
        )
    except JudgeGoneError as error:
        return trajectory({}, gone=str(error))
    except BaseException as error:
        cut(trajectory({}, stopped=told(error)))
        raise
    return trajectory(settings)
