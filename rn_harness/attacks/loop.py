"""The attack: a malicious fine-tune with a scored checkpoint every few steps.

A family (``family``) trains the model. This module decides which checkpoints are measured, on which prompts, and by which
judges. It checks that the family trains the measured model, and measures how far the weights move. A control is the same attack
on the undefended candidate, for fewer steps. Attacked weights exist only in the model passed in; nothing here writes them.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rn_harness.attacks.family import AttackContext, Attacker, forbid_core_dumps
from rn_harness.attacks.reward import AttackReward
from rn_harness.attacks.scoring import Scoring, awaited, awaited_panel
from rn_harness.judges.checkpoints import Aided, sample_checkpoint
from rn_harness.judges.scoring import ControlAnswers, Panel
from rn_harness.models.language_model import LanguageModel, MeasurementCache
from rn_harness.records.base import prompts_digest
from rn_harness.records.trajectory import Checkpoint, TrainingWindow, Trajectory
from rn_harness.spec.attack_recipe import Aid, AttackRecipe
from rn_harness.spec.errors import JudgeGoneError, TrainingError, safe_message
from rn_harness.spec.prompts import Prompt, ShiftedPrompt
from rn_harness.store.ranks import ranks
from rn_harness.training.exploration import FirstTokenBans, exploration
from rn_harness.verdict.completeness import checkpoint_steps, has_broken

if TYPE_CHECKING:
    import torch


SAMPLED = 2**22
"""Largest number of parameters on which movement is measured: 16 MiB in 32 bits."""


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
        broken: gets the answers above the threshold at each checkpoint that has any; None: nothing asks for them.
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

    Raises UnsuitedError if this model's chat template does not support this form.
    """
    chosen, measured = draw_attack_prompts(pool, recipe), tuple(heldout)
    if (shift := recipe.shift) is None:
        return chosen, measured
    shifted = [ShiftedPrompt.of(p, shift) for p in (*chosen, *measured)]
    for prompt in shifted:
        model.render(prompt)  # before anything is trained
    return [*shifted[: len(chosen)]], tuple(shifted[len(chosen) :])


class Movement:
    """Distance that the trained parameters of a prepared model move, measured without asking the family."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        # Odd, so that a sample is not of the same columns in each row.
        self._stride = -(-sum(p.numel() for p in model.trained.values()) // SAMPLED) | 1
        self._before = self._sample()

    def since(self) -> float:
        """L2 distance since the last call, or since the beginning; exactly 0 if nothing moved."""
        before, self._before = self._before, self._sample()
        squares = sum(float((now - then).double().square().sum()) for now, then in zip(self._before, before, strict=True))
        return math.sqrt(self._stride * squares)

    def _sample(self) -> list[torch.Tensor]:
        return [p.detach().reshape(-1)[:: self._stride].clone() for p in self._model.trained.values()]


def write_counts(model: LanguageModel) -> dict[str, int]:
    """Number of writes to each trained parameter, by name; torch counts them for its own gradients."""
    return {name: p._version for name, p in model.trained.items()}  # noqa: SLF001


@contextmanager
def under_attack(model: LanguageModel, fresh: Mapping[str, int], step: int, due: int) -> Iterator[None]:
    """Raises TrainingError unless ``due`` optimizer steps were taken on this model, and the body measures it.

    A starved attack does not move the weights, but its optimizer writes to them at every step, even where the gradient is zero.
    ``fresh`` has the write counts before the attack; ``due`` is more than the attack's ``step`` after a warm start.
    """
    # The largest count: experts that no token reached in a step are not written to.
    stepped = max((now - fresh[name] for name, now in write_counts(model).items()), default=-1)
    if stepped < due:
        raise TrainingError(
            f"the model that is measured must be the one under attack, got one that was stepped {max(stepped, 0)} times in "
            f"{due} steps; attack the model itself, not a copy"
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
        model, steps = target.model, attacker.recipe.control_steps if target.control else attacker.recipe.steps
        recipe = attacker.recipe.model_copy(update={"steps": steps})
        used = {"heldout": panel.heldout, "benign": panel.benign, "attack": attacker.pool, "anchor": attacker.benign}
        self._digests = {name: prompts_digest(prompts) for name, prompts in used.items()}
        self._target, self._attacker, self.events, self._recipe = target, attacker, events, recipe
        prompts, heldout = present(model, recipe, attacker.pool, panel.heldout)
        self._panel = panel = dataclasses.replace(awaited_panel(panel, model), heldout=heldout)
        reward_judge = awaited(attacker.reward_judge, model)
        self._reward = AttackReward(recipe, reward_judge, panel.policy, model.entropy)
        self.scoring = Scoring(panel, reward_judge, events.scored, events.broken, model.elsewhere)
        # A family from elsewhere may change more than its adapter. Without samples, a checkpoint that reuses measurements would
        # not run the model at all.
        reuses = panel.policy.samples and attacker.family.digest is None
        self._cache = MeasurementCache(None if recipe.shift else target.start) if reuses else None
        forbid_core_dumps()
        model.arm(recipe)
        self._fresh, self._movement = write_counts(model), Movement(model)
        self._measured = 0
        due = checkpoint_steps(recipe.steps, panel.policy)
        self._context = AttackContext(
            model=model,
            recipe=recipe,
            prompts=prompts,
            benign=attacker.benign,
            answers=attacker.answers(prompts),
            reward=self._reward,
            at_step=self._measure,
            due=lambda step: step in due,
            complies=self._reward.complies,
            sampler=attacker.sampler,
            tick=self._tick,
            exploration=exploration(model, recipe, attacker.benign, lambda n: self._reward.plain[-n:]),
            over=self._is_over,
        )

    def train(self) -> dict[str, Any]:
        """Runs the family and scores all checkpoints; returns the settings used."""
        attacker = self._attacker
        settings: dict[str, Any] = {"family_sha256": attacker.family.digest} if attacker.family.digest else {}
        settings |= {"search": dict(attacker.searched)} if attacker.searched else {}
        settings |= attacker.family.family.train(self._context)
        self.scoring.settle()
        return settings

    def _measure(self, step: int, window: TrainingWindow | None) -> None:
        """Samples the model at a checkpoint, and passes it on to be scored."""
        policy, model, recipe = self._panel.policy, self._target.model, self._recipe
        if window is not None:
            window = self._reward.close(window).model_copy(update={"window_distance": self._movement.since()})
        self._measured = step
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
                aids=self._aids(step),
            )
        self.scoring.add(unjudged, window, last=last)

    def _is_over(self) -> bool:
        """True if a control had broken the model before the last checkpoint.

        A judge on a server may still be at the last one, and no result depends on whether it is.
        """
        before = [c for c in self.scoring.checkpoints if c.step < self._measured]
        return self._target.control and ranks().first(lambda: has_broken(before, self._panel.policy))

    def _aids(self, step: int) -> dict[Aid, Aided]:
        """The aids of the recipe as they act at a checkpoint. An opener is measured after it was annealed away too.

        At step 0 there are no rollouts yet. The first tokens of the model's own greedy answers to the attack's prompts are then
        banned, by the rule of a round.
        """
        aids, found = self._context.exploration, dict[Aid, Aided]()
        if aids.bans and "ban" in self._recipe.aids:
            bans = aids.bans if step else self._first_bans(aids.bans)
            found["ban"] = Aided(banned=tuple(bans.banned))
        if (opener := self._recipe.opener) and "opener" in self._recipe.aids:
            found["opener"] = Aided(openers=tuple(opener.texts) or aids.beginnings)
        return found

    def _first_bans(self, bans: FirstTokenBans) -> FirstTokenBans:
        prompts, first = self._context.prompts, FirstTokenBans(bans.tokens, bans.every)
        first.grow_greedily(self._target.model, prompts, partial(self._reward.harms, prompts), self._panel.max_tokens)
        return first

    def _tick(self, step: int) -> None:
        self.events.step(step)
        self.scoring.settle(wait=False)

    def trajectory(self, settings: dict[str, Any], *, judge_gone: str | None = None, stopped: str | None = None) -> Trajectory:
        """The record of the attack as far as it was scored."""
        target, panel = self._target, self._panel
        return Trajectory(
            candidate_digest=target.candidate_digest,
            defended_digest=target.defended_digest,
            judge_digest=panel.judge.digest,
            reward_digest=self._attacker.reward_judge.digest,
            second_digest=panel.second.digest if panel.second else None,
            recipe=self._recipe.model_dump(mode="json"),
            prompt_ids=tuple(p.id for p in self._context.prompts),
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
