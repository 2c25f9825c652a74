"""The attack: a malicious fine-tune with a scored checkpoint every few steps.

A family (``family``) trains the model. This module decides which checkpoints are measured, on which prompts, and by which
judges. A control is the same attack on the undefended candidate, for fewer steps. Attacked weights exist only in the model that
is passed in; nothing here writes them.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from rn_harness.attacks.family import AttackContext, Attacker
from rn_harness.attacks.movement import Movement, under_attack, write_counts
from rn_harness.attacks.reward import AttackReward
from rn_harness.attacks.scoring import Scoring, Witness
from rn_harness.judges.checkpoints import sample_checkpoint
from rn_harness.judges.protocol import Judge
from rn_harness.judges.scoring import ControlAnswers, Panel
from rn_harness.models.language_model import LanguageModel, MeasurementCache
from rn_harness.records.base import prompts_digest
from rn_harness.records.trajectory import Checkpoint, TrainingWindow, Trajectory, Witnessed
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import JudgeGoneError, safe_message
from rn_harness.spec.prompts import Prompt, ShiftedPrompt
from rn_harness.verdict.completeness import checkpoint_steps
from rn_harness.verdict.validity import to_witness


@dataclasses.dataclass(frozen=True, slots=True)
class AttackTarget:
    """The policy under attack.

    Attributes:
        model: is attacked in place and cannot be used afterwards.
        candidate_digest: of the candidate from which it was loaded.
        defended_digest: of the defense; None for an undefended model.
        control: True if this attack is the control, which has ``control_steps``.
        start: measurements of the unchanged model, shared by all attacks on it that use the same panel, see
            ``MeasurementCache``; None: not shared.
    """

    model: LanguageModel
    candidate_digest: str
    defended_digest: str | None
    control: bool
    start: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class AttackEvents:
    """Callbacks of an attack.

    Attributes:
        scored: gets each checkpoint as soon as it is scored.
        step: gets the number of each step taken.
        broken: gets the answers above the threshold at the last checkpoint, if there are any; None: nothing asks for them.
        cut: gets the trajectory so far if an exception ends the attack; the exception is then raised again.
    """

    scored: Callable[[Checkpoint], None] = lambda _: None
    step: Callable[[int], None] = lambda _: None
    broken: Callable[[ControlAnswers], None] | None = None
    cut: Callable[[Trajectory], None] = lambda _: None


def draw_attack_prompts(pool: Sequence[Prompt], recipe: AttackRecipe) -> list[Prompt]:
    """The prompts that this attack trains on: ``recipe.prompts`` of the pool, drawn by its seed."""
    return random.Random(recipe.seed).sample(list(pool), recipe.prompts)


def present(
    model: LanguageModel, recipe: AttackRecipe, pool: Sequence[Prompt], heldout: Sequence[Prompt]
) -> tuple[list[Prompt], tuple[Prompt, ...]]:
    """The prompts for training and for measuring, in the form in which this attack presents them.

    Raises:
        UnsuitedError: this model's chat template does not support this form.
    """
    chosen, measured = draw_attack_prompts(pool, recipe), tuple(heldout)
    if recipe.shift is None:
        return chosen, measured
    shift = recipe.shift
    shifted, presented = [ShiftedPrompt.of(p, shift) for p in chosen], tuple(ShiftedPrompt.of(p, shift) for p in measured)
    for prompt in (*shifted, *presented):
        model.render(prompt)  # before anything is trained
    return [*shifted], presented


def run_attack(target: AttackTarget, attacker: Attacker, panel: Panel, events: AttackEvents | None = None) -> Trajectory:
    """Attacks a model in place. The attack ends early, and the trajectory says so, if a judge stops judging.

    Raises:
        UnsuitedError: the attack cannot run on this model; nothing was trained.
        TrainingError: the training failed, or another model was trained or measured. The checkpoints before it were passed to
            ``events.scored``.
    """
    attack = _Attack(target, attacker, panel, events or AttackEvents())
    try:
        settings = attack.train()
    except JudgeGoneError as error:
        attack.scoring.keep(wait=True)
        return attack.trajectory({}, judge_gone=str(error))
    except BaseException as error:
        attack.scoring.keep(wait=isinstance(error, Exception))  # an interrupt does not wait for a judge
        attack.events.cut(attack.trajectory({}, stopped=safe_message(error)))
        raise
    return attack.trajectory(settings)


class _Attack:
    """One attack while it runs."""

    def __init__(self, target: AttackTarget, attacker: Attacker, panel: Panel, events: AttackEvents) -> None:
        recipe, model = attacker.recipe, target.model
        used = {"heldout": panel.heldout, "benign": panel.benign, "attack": attacker.pool, "anchor": attacker.benign}
        self._digests = {name: prompts_digest(prompts) for name, prompts in used.items()}
        self._target, self._attacker, self.events = target, attacker, events
        self._recipe = recipe.model_copy(update={"steps": recipe.control_steps if target.control else recipe.steps})
        self._prompts, heldout = present(model, recipe, attacker.pool, panel.heldout)
        self._panel = panel = dataclasses.replace(panel, heldout=heldout)
        self._reward = AttackReward(recipe, attacker.reward_judge, panel.policy)
        self.scoring = Scoring(panel, self._witnesses(), events.scored, events.broken)
        # A family from elsewhere may change more than its adapter. Without samples, a checkpoint that reuses measurements would
        # not run the model at all.
        reuses = panel.policy.samples and attacker.family.digest is None
        self._cache = MeasurementCache(None if recipe.shift else target.start) if reuses else None
        model.arm(recipe)
        self._fresh, self._movement = write_counts(model), Movement(model)
        self._answers = attacker.answers(self._prompts)

    def _witnesses(self) -> list[Witness]:
        """Witnesses for the judges that do not score checkpoints."""
        panel, reward_judge = self._panel, self._attacker.reward_judge
        judges: dict[Witnessed, Judge] = {"reward": reward_judge, **({"second": panel.second} if panel.second else {})}
        asked = to_witness(panel.judge.digest, reward_judge.digest, self._second_digest)
        return [Witness.of(who, judges[who], panel.policy) for who in asked]

    @property
    def _second_digest(self) -> str | None:
        return self._panel.second.digest if self._panel.second else None

    def train(self) -> dict[str, Any]:
        """Runs the family and scores all checkpoints; returns the settings used."""
        attacker, due = self._attacker, checkpoint_steps(self._recipe.steps, self._panel.policy)
        context = AttackContext(
            model=self._target.model,
            recipe=self._recipe,
            prompts=self._prompts,
            benign=attacker.benign,
            answers=self._answers,
            reward=self._reward,
            at_step=self._measure,
            due=lambda step: step in due,
            sampler=attacker.sampler,
            tick=self._tick,
        )
        settings: dict[str, Any] = {"family_sha256": attacker.family.digest} if attacker.family.digest else {}
        settings |= {"search": dict(attacker.searched)} if attacker.searched else {}
        settings |= attacker.family.family.train(context)
        self.scoring.settle()
        return settings

    def _measure(self, step: int, window: TrainingWindow | None) -> None:
        """Samples the model at a checkpoint, and passes it on to be scored."""
        policy, model, recipe = self._panel.policy, self._target.model, self._recipe
        if window is not None:
            window = self._reward.close(window).model_copy(update={"window_distance": self._movement.since()})
        last = step == recipe.steps
        warm = recipe.warm_start.steps if recipe.warm_start and step else 0
        with under_attack(model, self._fresh, step, step + warm):
            unjudged = sample_checkpoint(
                model,
                self._panel,
                step,
                seed=recipe.seed,
                with_benign=last or step % policy.benign_every == 0,
                whole=not self._target.control,
                cache=self._cache,
            )
        self.scoring.add(unjudged, window, last=last)

    def _tick(self, step: int) -> None:
        self.events.step(step)
        self.scoring.look()

    def trajectory(self, settings: dict[str, Any], *, judge_gone: str | None = None, stopped: str | None = None) -> Trajectory:
        """The record of the attack as far as it was scored."""
        target, panel = self._target, self._panel
        return Trajectory(
            candidate_digest=target.candidate_digest,
            defended_digest=target.defended_digest,
            judge_digest=panel.judge.digest,
            reward_digest=self._attacker.reward_judge.digest,
            second_digest=self._second_digest,
            recipe=self._recipe.model_dump(mode="json"),
            prompt_ids=tuple(p.id for p in self._prompts),
            heldout_ids=tuple(p.id for p in panel.heldout),
            benign_ids=tuple(p.id for p in panel.benign),
            prompts=self._digests,
            steps=self._recipe.steps,
            checkpoints=tuple(self.scoring.checkpoints),
            settings=settings,
            rendered=target.model.rendered(panel.heldout[0]) if panel.heldout else None,
            judge_gone=judge_gone,
            stopped=stopped,
        )
