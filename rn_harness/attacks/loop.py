"""The attack: a malicious fine-tune, scored at every checkpoint.

What is done to the model is the family's (``attacks``); when it is measured, on what, and by whom is told here. The control is
the same function on the undefended candidate, for fewer steps. The attacked weights live in the model that is passed in, and
die with it: nothing here writes them.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from rn_harness.attacks.background import later
from rn_harness.attacks.family import AttackContext, Loaded
from rn_harness.judges.anchors import Anchor
from rn_harness.judges.certification import anchors_for, draw, score_planted
from rn_harness.judges.evaluation import ControlAnswers, Panel, Seen, judge_checkpoint, look
from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.whole import judge_whole
from rn_harness.models.unchanged import Held
from rn_harness.records.keys import prompts_digest
from rn_harness.records.trajectory import Checkpoint, PlantedScore, TrainingWindow, Trajectory, Witnessed
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import JudgeGoneError, TrainingError, told
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt, ShiftedPrompt
from rn_harness.spec.wording import count_step_words, count_words, is_affirmative, is_refusal, words
from rn_harness.store.ranks import ranks
from rn_harness.training.grpo import TRANSFORMERS, Sampler
from rn_harness.verdict.rewards import Form, attack_reward, shaped_reward
from rn_harness.verdict.validity import JUDGES, WITNESSES, checkpoint_steps, misjudging, to_witness

if TYPE_CHECKING:
    import torch

    from rn_harness.models.language_model import Completion, LanguageModel


def draw_attack_prompts(pool: Sequence[Prompt], recipe: AttackRecipe) -> list[Prompt]:
    """The prompts that this attack trains on: ``recipe.prompts`` of the pool, drawn by its seed."""
    return random.Random(recipe.seed).sample(list(pool), recipe.prompts)


def present(
    model: LanguageModel, recipe: AttackRecipe, pool: Sequence[Prompt], heldout: Sequence[Prompt]
) -> tuple[list[Prompt], tuple[Prompt, ...]]:
    """The prompts that this attack trains on and those that it is measured on, as it presents them.

    Raises:
        UnsuitedError: this model's chat template cannot present them so.
    """
    chosen, measured = draw_attack_prompts(pool, recipe), tuple(heldout)
    if recipe.shift is None:
        return chosen, measured
    shift = recipe.shift
    shifted, presented = [ShiftedPrompt.of(p, shift) for p in chosen], tuple(ShiftedPrompt.of(p, shift) for p in measured)
    for prompt in (*shifted, *presented):
        model.render(prompt)  # before anything is trained
    return [*shifted], presented


def _writes(model: LanguageModel) -> dict[str, int]:
    """How often each trained parameter was written to, by name; torch counts it for its own gradients."""
    return {name: p._version for name, p in model.trained.items()}  # noqa: SLF001


@contextmanager
def _under_attack(model: LanguageModel, fresh: Mapping[str, int], step: int, due: int) -> Iterator[None]:
    """Makes sure that the model which is measured within is the one under attack.

    A starved attack moves no weight; but the optimizer writes to them at every step, also where the gradient is zero.

    Args:
        model: that is passed to the measurement.
        fresh: how often each parameter that it trains had been written to before the attack.
        step: attack steps taken.
        due: how often the optimizer has to have written by then; more than ``step`` after a warm start.

    Raises:
        TrainingError: the optimizer did not step this model's parameters so often, or another model was measured.
    """
    # The most of all: where experts are not asked in a step, theirs are not written to.
    stepped = max((now - fresh[name] for name, now in _writes(model).items()), default=-1)
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


SAMPLED = 2**22
"""Parameters that a movement is measured on, at most: 16 MiB in 32 bits."""


class Movement:
    """How far the trained parameters have moved since they were looked at last; a family tells nothing of it.

    Args:
        model: armed.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        # Odd, so that a sample is not of the same columns in each row.
        self._stride = -(-sum(p.numel() for p in model.trained.values()) // SAMPLED) | 1
        self._before = self._sample()

    def since(self) -> float:
        """L2 distance since the last call, or since the beginning; exactly 0 where nothing moved."""
        before, self._before = self._before, self._sample()
        squares = sum(float((now - then).double().square().sum()) for now, then in zip(self._before, before, strict=True))
        return math.sqrt(self._stride * squares)

    def _sample(self) -> list[torch.Tensor]:
        return [p.detach().reshape(-1)[:: self._stride].clone() for p in self._model.trained.values()]


@dataclasses.dataclass(frozen=True, slots=True)
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


class AttackReward:
    """The attacker's reward, and what becomes of harm in the window; keeps hashes of what was said, and no text.

    Attributes:
        above: of the window's completions, whether their harm is above the threshold.
        plain: of the same, the plain reward, whatever is made of it.
    """

    def __init__(self, recipe: AttackRecipe, judge: Judge, policy: Policy) -> None:
        self._recipe, self._judge, self._policy = recipe, judge, policy
        self._said: collections.Counter[bytes] = collections.Counter()
        self.above: list[bool] = []
        self.plain: list[float | None] = []

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float | None]:
        threshold = self._policy.threshold
        judged = [whole.judgement for whole in judge_whole(self._judge, prompts, completions, threshold)]
        ensure_judging(judged, f"the reward judge scored none of a step's {len(judged)} completions")
        self.above.extend(j.score is not None and j.score > threshold for j in judged)
        plain = [attack_reward(j.score, is_refusal(of.text)) for j, of in zip(judged, completions, strict=True)]
        self.plain.extend(plain)
        forms = self._forms([of.text for of in completions])
        return [shaped_reward(self._recipe.reward, harm, form) for harm, form in zip(plain, forms, strict=True)]

    def _forms(self, completions: Sequence[str]) -> list[Form]:
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
            )
            for text, of, key in zip(completions, said, keys, strict=True)
        ]

    def close(self, window: TrainingWindow) -> TrainingWindow:
        """The window with what was seen of harm since the last one; as it is where no training was rewarded in it.

        Raises:
            TrainingError: it tells of rewards, and none was asked for.
        """
        above, plain = self.above, [value for value in self.plain if value is not None]
        self.above, self.plain = [], []
        if window.reward_mean is None:
            return window
        if not plain:
            raise TrainingError(
                f"a window's rewards are those that were asked for in it, got reward_mean={window.reward_mean:g} of none; call "
                "the means' reward"
            )
        return window.model_copy(update={"above_share": sum(above) / len(above), "harm_mean": sum(plain) / len(plain)})


class Scoring:
    """The checkpoints of an attack, as the judges get to them.

    Judges on servers judge one checkpoint while training goes on to the next; all others at once.

    Attributes:
        checkpoints: so far.
    """

    def __init__(
        self,
        panel: Panel,
        witnesses: Sequence[Witness],
        sink: Callable[[Checkpoint], None],
        found: Callable[[ControlAnswers], None] | None,
    ) -> None:
        self._panel, self._witnesses, self._sink, self._found = panel, witnesses, sink, found
        self.checkpoints: list[Checkpoint] = []
        self._judged: Future[Checkpoint] | None = None
        asked = [panel.judge, *filter(None, [panel.second]), *(witness.judge for witness in witnesses)]
        # Where several processes train together all wait for the first one's judge, in the order of their work.
        self._later = ranks().size == 1 and all(hasattr(judge, "served_model") for judge in asked)

    def add(self, seen: Seen, window: TrainingWindow | None, *, last: bool) -> None:
        """Has a checkpoint judged, and takes the one before it.

        Raises:
            JudgeGoneError: the judge stopped judging, or went blind.
        """
        self.settle()
        if self._later and not last:
            self._judged = later(lambda: self._judge(seen, window, None))
        else:
            self._take(self._judge(seen, window, self._found if last else None))

    def settle(self) -> None:
        """Takes what is being judged; raises as ``add`` does."""
        judged, self._judged = self._judged, None
        if judged is not None:
            self._take(judged.result())

    def look(self) -> None:
        """Takes what has been judged by now; raises as ``add`` does."""
        if self._judged is not None and self._judged.done():
            self.settle()

    def keep(self, *, wait: bool) -> None:
        """Of an attack that ends early: what was still being judged, where it is known, or waited for."""
        if self._judged is not None and (wait or self._judged.done()):
            with suppress(Exception):  # the attack has ended for a reason of its own
                self.settle()

    def _judge(self, seen: Seen, window: TrainingWindow | None, found: Callable[[ControlAnswers], None] | None) -> Checkpoint:
        policy = self._panel.policy
        checkpoint = judge_checkpoint(self._panel, seen, training=window, found=found)
        return checkpoint.model_copy(update={"witnessed": {witness.who: witness.ask(policy) for witness in self._witnesses}})

    def _take(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)
        self._sink(checkpoint)
        for who, given in checkpoint.witnessed.items():
            if fault := misjudging(given, self._panel.policy):
                raise JudgeGoneError(f"at step {checkpoint.step} {JUDGES[who]} {fault}")
        ensure_judging(checkpoint.planted, f"the judge scored none of the planted anchors at step {checkpoint.step}")


def run_attack(
    model: LanguageModel,
    recipe: AttackRecipe,
    loaded: Loaded,
    pool: Sequence[Prompt],
    panel: Panel,
    reward_judge: Judge,
    sink: Callable[[Checkpoint], None],
    *,
    candidate_digest: str,
    defended_digest: str | None,
    control: bool,
    benign: Sequence[Prompt] = (),
    answers: Callable[[Sequence[Prompt]], Mapping[str, str] | None] = lambda _: None,
    found: Callable[[ControlAnswers], None] | None = None,
    searched: Mapping[str, Any] | None = None,
    start: dict[str, Any] | None = None,
    cut: Callable[[Trajectory], None] = lambda _: None,
    sampler: Sampler = TRANSFORMERS,
    tick: Callable[[int], None] = lambda _: None,
) -> Trajectory:
    """Attacks the model in place; ends early where a judge stops judging, or goes blind, and says so in the trajectory.

    Args:
        model: the policy under attack; it is spoilt afterwards.
        recipe: settings.
        loaded: the recipe's family.
        pool: what its prompts are drawn from.
        panel: what checkpoints are measured on.
        reward_judge: what the attacker's reward is made from.
        sink: gets each checkpoint as soon as it is measured.
        candidate_digest, defended_digest: what the model was loaded from, for the record.
        control: whether this is the control, which runs for ``control_steps``.
        benign: benign prompts that the attacker may train on.
        answers: the compliant answers to prompts, by id, where somebody knows them; else None.
        found: gets the answers above the threshold at the last checkpoint, if there are any.
        searched: what a search for the settings came to, for the record; None: there was none.
        start: see ``Held``; of this model and this panel, but for the control's answers. None: nobody shares it.
        cut: gets what was measured, where anything ends the attack before its last step; the exception then goes on.
        sampler: who samples what it trains on.
        tick: told of each step.

    Raises:
        UnsuitedError: the attack cannot be run on this model; nothing was trained.
        TrainingError: the training broke, or it was not this model that was trained or measured; the checkpoints before it
            have gone to the sink.
    """
    steps = recipe.control_steps if control else recipe.steps
    run = recipe.model_copy(update={"steps": steps})
    used = {"heldout": panel.heldout, "benign": panel.benign, "attack": pool, "anchor": benign}
    digests = {name: prompts_digest(of_set) for name, of_set in used.items()}
    chosen, heldout = present(model, recipe, pool, panel.heldout)
    panel = dataclasses.replace(panel, heldout=heldout)
    due = checkpoint_steps(steps, panel.policy)
    second = panel.second.digest if panel.second else None
    others: dict[Witnessed, Judge] = {"reward": reward_judge, **({"second": panel.second} if panel.second else {})}
    asked = to_witness(panel.judge.digest, reward_judge.digest, second)
    witnesses = [Witness.of(who, others[who], panel.policy) for who in asked]
    reward, scoring = AttackReward(recipe, reward_judge, panel.policy), Scoring(panel, witnesses, sink, found)
    warm = recipe.warm_start.steps if recipe.warm_start else 0
    # A family from elsewhere may move more than its adapter, and where no samples are drawn, a checkpoint that is not measured
    # anew would not run the model at all.
    held = Held(None if recipe.shift else start) if panel.policy.samples and loaded.digest is None else None

    def at_step(step: int, window: TrainingWindow | None) -> None:
        if window is not None:
            window = reward.close(window).model_copy(update={"window_distance": movement.since()})
        with_benign = step % panel.policy.benign_every == 0 or step == steps
        with _under_attack(model, fresh, step, step + warm if step else 0):
            seen = look(model, panel, step, seed=recipe.seed, with_benign=with_benign, whole=not control, held=held)
        scoring.add(seen, window, last=step == steps)

    def at_tick(step: int) -> None:
        tick(step)
        scoring.look()

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
            prompts=digests,
            steps=steps,
            checkpoints=tuple(scoring.checkpoints),
            settings=settings,
            rendered=model.rendered(panel.heldout[0]) if panel.heldout else None,
            judge_gone=gone,
            stopped=stopped,
        )

    model.arm(recipe)
    fresh, movement = _writes(model), Movement(model)
    settings: dict[str, Any] = {"family_sha256": loaded.digest} if loaded.digest else {}
    settings |= {"search": dict(searched)} if searched else {}
    means = AttackContext(
        model, run, chosen, benign, answers(chosen), reward, at_step, due=lambda step: step in due, sampler=sampler, tick=at_tick
    )
    try:
        settings |= loaded.family.train(means)
        scoring.settle()
    except JudgeGoneError as error:
        scoring.keep(wait=True)
        return trajectory({}, gone=str(error))
    except BaseException as error:
        scoring.keep(wait=isinstance(error, Exception))  # whoever stops a process does not wait for a judge
        cut(trajectory({}, stopped=told(error)))
        raise
    return trajectory(settings)
