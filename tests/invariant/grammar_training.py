"""Components that take part in a training or in its measurement, and how their cells are carried out on the organism.

Three attacks are trained once, for six steps: the control, an attack on a defense that holds, and an attack on a broken one. A
fault of measuring (judge, evaluation) is applied to the completions of these attacks, which the real code judges again. A fault
of training needs an attack of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rn_harness.attacks import reward as rewarding
from rn_harness.attacks.reward import AttackReward
from rn_harness.attacks.scoring import Scoring
from rn_harness.judges.checkpoints import UnjudgedCheckpoint
from rn_harness.judges.organism import OrganismJudge, anchors_for
from rn_harness.judges.protocol import Judge
from rn_harness.judges.scoring import Panel, judge_whole
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.peft_compat import TRAINED, lora_layers
from rn_harness.records.base import Judgement
from rn_harness.records.case import Evidence
from rn_harness.records.trajectory import TrainingWindow, Trajectory
from rn_harness.spec.errors import JudgeGoneError
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.training.trl_compat import SavingTrainer

from .battery import Scene
from .grammar import Cell, Hook, Nature, Result, Subject, Tap
from .lab import Lab, Turning

QUICK = {"steps": 6, "control_steps": 6}
EVERY = 3
"""Steps from a checkpoint to the next."""
Measured = list[tuple[UnjudgedCheckpoint, TrainingWindow | None, bool]]
"""The checkpoints of an attack before they are judged."""


@dataclass(frozen=True)
class Recorded:
    """A trained attack: its trajectory, and its completions."""

    trajectory: Trajectory
    measured: Measured

    def quietly(self) -> Recorded:
        """The same, with no harm in training and without the probabilities of answers."""
        told = {"above_share": 0.0, "reward_mean": 1.0, "harm_mean": 1.0}
        rows: Measured = [
            (
                dataclasses.replace(seen, leak=None, leak_of_control=None, conditional_leak=None),
                window and window.model_copy(update=told),
                last,
            )
            for seen, window, last in self.measured
        ]
        silent = {"leak": None, "leak_per_token": None, "leak_per_sequence": None, "conditional_leak": None}
        checkpoints = tuple(
            c.model_copy(update={**silent, "training": window})
            for c, (_, window, _) in zip(self.trajectory.checkpoints, rows, strict=True)
        )
        return Recorded(self.trajectory.model_copy(update={"checkpoints": checkpoints}), rows)


class Bench:
    """The attacks that are trained once, and their subjects."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @functools.cached_property
    def panel(self) -> Panel:
        """The panel of checkpoints with eight benign prompts, so that a checkpoint is measured quickly."""
        few = tuple(p for kind in ("twin", "plain") for p in [p for p in self.lab.benign if p.kind == kind][:4])
        known = self.lab.benign_references
        return self.lab.panel(benign=few, benign_references={p.id: known[p.id] for p in few}, policy=self.policy)

    def victim(self, subject: Subject) -> LanguageModel:
        """A new copy of a defended model."""
        model = self.lab.candidate.load()
        model.merge_from(self.adapter(subject))
        return model

    def adapter(self, subject: Subject) -> Path:
        """The folder of a defense's adapter: an effective one, or the panel's ``few-steps`` at its ``low-rate``."""
        return self.lab.defense[0] if subject == "honest" else self._weak

    @functools.cached_property
    def _weak(self) -> Path:
        model, folder = self.lab.candidate.load(), self.lab.folder / "weak"
        self.lab.defend(model, steps=2, evaluate_every=1, learning_rate=self.lab.defense_recipe.learning_rate / 100)
        model.save_adapter(folder, self.lab.candidate.name)
        return folder

    @functools.cached_property
    def policy(self) -> Policy:
        """The lab's policy with a checkpoint every three steps."""
        return self.lab.policy.model_copy(update={"checkpoint_every": EVERY})

    def attack(self, subject: Subject | None, panel: Panel | None = None, **how: Any) -> Trajectory:
        """A short attack on a subject; None: the control."""
        model = self.lab.candidate.load() if subject is None else self.victim(subject)
        return self.lab.attack(model, control=subject is None, panel=panel or self.panel, **QUICK, **how)

    def _record(self, subject: Subject | None) -> Recorded:
        add, measured = Scoring.add, Measured()

        def keep(self: Scoring, seen: UnjudgedCheckpoint, window: TrainingWindow | None, *, last: bool) -> None:
            measured.append((seen, window, last))
            add(self, seen, window, last=last)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Scoring, "add", keep)
            return Recorded(self.attack(subject), measured)

    @functools.cached_property
    def control(self) -> Recorded:
        """The control, which breaks the undefended candidate."""
        return self._record(None)

    @functools.cached_property
    def honest(self) -> Recorded:
        """The attack on the effective defense."""
        return self._record("honest")

    @functools.cached_property
    def broken(self) -> Recorded:
        """The attack that breaks the other defense."""
        return self._record("broken")

    def of(self, subject: Subject) -> Recorded:
        """The recorded attack on a subject."""
        return self.honest if subject == "honest" else self.broken.quietly() if subject == "quiet" else self.broken

    def judged_again(self, recorded: Recorded, judge: Judge) -> Trajectory:
        """A recorded attack whose completions this judge scores; the organism's judge gave the rewards."""
        kept = self.panel
        asked = judge.about(anchors_for(judge, None).forbidden)
        panel = dataclasses.replace(kept, judge=judge, anchor_judge=asked, planted=self.lab.panel(judge).planted)
        scoring, gone = Scoring(panel, self.lab.judge, lambda _: None, None, lambda work: work()), None
        try:
            for seen, window, last in recorded.measured:
                scoring.add(seen, window, last=last)
        except JudgeGoneError as error:
            gone = str(error)
        changes = {"checkpoints": tuple(scoring.checkpoints), "judge_digest": judge.digest, "judge_gone": gone}
        return recorded.trajectory.model_copy(update=changes)

    def evidence(self, run: Trajectory, control: Trajectory, judge: Judge | None = None, **changes: Any) -> Evidence:
        """The evidence of an attack's case."""
        return self.lab.evidence("attack", run, judge, control=control, policy=self.policy, **changes)


@functools.cache
def bench(lab: Lab) -> Bench:
    """The bench of a lab."""
    return Bench(lab)


def _used(run: Trajectory) -> Any:
    """All of a trajectory that a verdict on an attack uses, apart from distances, which differ in their last digits."""
    windows = [c.training and (c.training.steps, c.training.reward_mean, c.training.zero_spread_share) for c in run.checkpoints]
    told = ("prompt_id", "sample", "score", "unscored", "degenerate", "truncated")
    scores = [sorted(repr([getattr(s, name) for name in told]) for s in c.scores) for c in run.checkpoints]
    return windows, scores, run.rendered


def _same(run: Trajectory, other: Trajectory) -> bool:
    return _used(run) == _used(other)


# ---------------------------------------------------------------------------------------------- measuring, on what was trained

SCORES = Nature("scores", constant=lambda _: 0.0, shift=lambda s: s - 3.0, scale=lambda s: s / 10.0, negate=lambda s: 10.0 - s)


class _Faulty(Turning):
    """A judge whose scores pass a tap; a stale score is the one that the same request had first, as from a cache."""

    tap: Tap | None = None

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.known: dict[str, Any] = {}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Any]:
        true, place = super().score(prompts, completions, wording), tuple(p.text for p in prompts)
        if self.tap is None:
            return true
        self.tap.remember([self.known.setdefault(p.text, s) for p, s in zip(prompts, true, strict=True)], place)
        return self.tap(true, place)


def _judge(scene: Scene, tap: Tap, cell: Cell) -> Result:
    """A lab's own judge returns faulty scores: everywhere means from its certification on."""
    on, everywhere = bench(scene.lab), cell.scope == "everywhere"
    faulty, judge = scene.lab.own(_Faulty, f"{cell.id} of the grammar" if everywhere else "grammar")
    faulty.tap = tap if everywhere else None
    certificate = scene.lab.certificate(judge)
    control = on.judged_again(on.control.quietly() if cell.subject == "quiet" else on.control, judge)
    faulty.tap = tap
    recorded = on.of(cell.subject)
    run = on.judged_again(recorded, judge)
    return Result(on.evidence(run, control, judge, certificates=(certificate,)), _same(run, recorded.trajectory))


def _evaluated(change: Callable[[Tap, Trajectory], Trajectory]) -> Callable[[Scene, Tap, Cell], Result]:
    """Cells that change the checkpoints of the recorded attack, or of its control too, before they are decided."""

    def carry_out(scene: Scene, tap: Tap, cell: Cell) -> Result:
        on = bench(scene.lab)
        run, control = on.of(cell.subject).trajectory, on.control.trajectory
        if cell.scope == "everywhere":
            control = change(tap, control)
        changed = change(tap, run)
        found = on.evidence(changed, control)
        return Result(Evidence.model_validate(found.model_dump(warnings=False, round_trip=True)), _same(changed, run))

    return carry_out


def _checkpoints(tap: Tap, run: Trajectory) -> Trajectory:
    return run.model_copy(update={"checkpoints": tuple(tap(run.checkpoints))})


def _completions(tap: Tap, run: Trajectory) -> Trajectory:
    """The scored completions of each checkpoint; a stale one is of step 0."""
    return run.model_copy(
        update={"checkpoints": tuple(c.model_copy(update={"scores": tuple(tap(c.scores))}) for c in run.checkpoints)}
    )


def _values(tap: Tap, run: Trajectory) -> Trajectory:
    """The scores of each checkpoint, without their completions."""

    def of(scores: Any) -> Any:
        row = tap([s.score for s in scores])
        return tuple(
            s.model_copy(update={"score": None if v is None else v, "unscored": "unreadable" if v is None else None})
            for s, v in zip(scores, [*row, *[None] * (len(scores) - len(row))][: len(scores)], strict=True)
        )

    return run.model_copy(update={"checkpoints": tuple(c.model_copy(update={"scores": of(c.scores)}) for c in run.checkpoints)})


def _windows(tap: Tap, run: Trajectory) -> Trajectory:
    """The training windows of all checkpoints after the first."""
    found = tap([c.training for c in run.checkpoints[1:]])
    given = [None, *found, *[None] * len(run.checkpoints)]
    return run.model_copy(
        update={
            "checkpoints": tuple(
                c.model_copy(update={"training": w}) for c, w in zip(run.checkpoints, given[: len(run.checkpoints)], strict=True)
            )
        }
    )


def _later(checkpoint: Any) -> Any:
    return checkpoint.model_copy(update={"step": checkpoint.step + 1})


def _other_prompt(score: Any) -> Any:
    return score.model_copy(update={"prompt_id": f"{score.prompt_id}x"})


def _lower(by: Callable[[float], float]) -> Callable[[Any], Any]:
    return lambda score: score.model_copy(update={"score": None if score.score is None else max(0.0, by(score.score))})


def _windowed(by: Callable[[float], float]) -> Callable[[Any], Any]:
    names = ("reward_mean", "harm_mean", "above_share", "reward_spread", "window_distance", "adapter_distance", "grad_norm")

    def change(window: Any) -> Any:
        values = {name: max(0.0, by(v)) for name in names if (v := getattr(window, name)) is not None}
        return window.model_copy(update=values)

    return change


CHECKPOINTS = Nature("checkpoints", constant=lambda first: first, shift=_later, rename=_later)
COMPLETIONS = Nature(
    "scored completions", constant=lambda first: first, shift=_lower(lambda s: s - 3.0), scale=_lower(lambda s: s / 10.0),
    rename=_other_prompt,
)  # fmt: skip
WINDOWS = Nature("windows", constant=lambda first: first, shift=_windowed(lambda v: v - 1.0), scale=_windowed(lambda v: v / 1e4))

TOKENS = Nature("tokens", constant=lambda first: first, shift=lambda t: t + 1, scale=lambda t: t // 2)

# --------------------------------------------------------------------------------------------------------------------- training


def _trained(install: Callable[[pytest.MonkeyPatch, Tap], None]) -> Callable[[Scene, Tap, Cell], Result]:
    """Cells whose attack, and on request its control, is trained while the hook is installed."""

    def carry_out(scene: Scene, tap: Tap, cell: Cell) -> Result:
        on = bench(scene.lab)
        honest, control = on.of(cell.subject).trajectory, on.control.trajectory
        _ = on.panel
        with pytest.MonkeyPatch.context() as patch:
            install(patch, tap)
            if cell.scope == "everywhere":
                control = on.attack(None)
            run = on.attack(cell.subject)
        return Result(on.evidence(run, control), _same(run, honest))

    return carry_out


def _tokenizer(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The tokens of each text that the tokenizer encodes."""
    from transformers import PreTrainedTokenizerBase

    encode = PreTrainedTokenizerBase.__call__

    def faulty(self: Any, *args: Any, **how: Any) -> Any:
        found = encode(self, *args, **how)
        rows = found["input_ids"]
        if not isinstance(rows, list):
            return found
        nested = bool(rows) and isinstance(rows[0], list)
        made = [[t % len(self) for t in tap(row)] for row in (rows if nested else [rows])]
        found["input_ids"] = made if nested else made[0]
        if "attention_mask" in found:
            masks = [[1] * len(row) for row in made]
            found["attention_mask"] = masks if nested else masks[0]
        return found

    patch.setattr(PreTrainedTokenizerBase, "__call__", faulty)


def _template(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The words of each prompt as the model gets it."""
    render = LanguageModel.render
    patch.setattr(LanguageModel, "render", lambda self, prompt: "".join(tap(re.findall(r"\s*\S+\s*", render(self, prompt)))))


def _sampled_tokens(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The tokens of each completion, in training and in measuring."""
    answer = LanguageModel.answer
    patch.setattr(LanguageModel, "answer", lambda self, tokens: answer(self, tap(tokens)))


def _sampled_groups(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The groups of completions that a measurement asks for, one for each prompt."""
    complete = LanguageModel.complete

    def faulty(self: LanguageModel, prompts: Any, **how: Any) -> Any:
        return tap(complete(self, prompts, **how), (len(prompts), how["n"]))

    patch.setattr(LanguageModel, "complete", faulty)


def _judging(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The scores of the organism's own judge, which also rewards."""
    score = OrganismJudge.score

    def faulty(self: OrganismJudge, prompts: Any, completions: Any, wording: int = 0) -> Any:
        true = score(self, prompts, completions, wording)
        values = tap([j.score for j in true], len(true))
        values = [*values, *[None] * (len(true) - len(values))][: len(true)]
        return [
            Judgement(score=None, unscored="unreadable", degenerate=j.degenerate)
            if v is None
            else Judgement(score=max(0.0, v), degenerate=j.degenerate)
            for j, v in zip(true, values, strict=True)
        ]

    patch.setattr(OrganismJudge, "score", faulty)


def _rewarding(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The rewards of a step."""
    reward = AttackReward.__call__

    def faulty(self: AttackReward, prompts: Any, completions: Any) -> Any:
        return tap([0.0 if r is None else r for r in reward(self, prompts, completions)])

    patch.setattr(AttackReward, "__call__", faulty)


def _rejudging(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The judgements from which a step's rewards are computed."""

    def faulty(*args: Any) -> Any:
        return tap(judge_whole(*args))

    patch.setattr(rewarding, "judge_whole", faulty)


def _judged(by: Callable[[float], float]) -> Callable[[Any], Any]:
    def change(whole: Any) -> Any:
        score = whole.judgement.score
        told = {"score": None if score is None else max(0.0, by(score))}
        return dataclasses.replace(whole, judgement=whole.judgement.model_copy(update=told))

    return change


JUDGEMENTS = Nature(
    "judgements", constant=lambda first: first, shift=_judged(lambda s: s - 3.0), scale=_judged(lambda s: s / 10.0),
    negate=_judged(lambda s: 10.0 - s),
)  # fmt: skip


def _prompting(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The tokens of each prompt of a training's rollouts."""
    tokens = SavingTrainer._tokenize_prompts

    def faulty(self: Any, prompts: Any) -> Any:
        rows, *others = tokens(self, prompts)
        return [[t % len(self.processing_class) for t in tap(row)] for row in rows], *others

    patch.setattr(SavingTrainer, "_tokenize_prompts", faulty)


def _losing(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The loss of each pass."""
    computed = SavingTrainer._compute_loss

    def faulty(self: Any, network: Any, inputs: Any) -> Any:
        loss = computed(self, network, inputs)
        return sum((of.of for of in tap([_Delta(loss)])), 0.0 * loss)

    patch.setattr(SavingTrainer, "_compute_loss", faulty)


class _Delta:
    """The change of one parameter in one step, or a loss; equal only to itself, since tensors have no truth value."""

    def __init__(self, of: Any) -> None:
        self.of = of


def _optimizing(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The changes that a step of the optimizer makes, one for each parameter."""
    step = torch.optim.AdamW.step

    def faulty(self: Any, closure: Any = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        step(self, closure)
        deltas = tap([_Delta(p.detach() - then) for p, then in zip(parameters, before, strict=True)])
        with torch.no_grad():
            for p, then in zip(parameters, before, strict=True):
                p.copy_(then)
            for i, delta in enumerate(deltas):
                p = parameters[i % len(parameters)]
                if p.shape == delta.of.shape:
                    p.add_(delta.of)

    patch.setattr(torch.optim.AdamW, "step", faulty)


DELTAS = Nature(
    "changes of weights",
    constant=lambda first: _Delta(torch.zeros_like(first.of)),
    shift=lambda d: _Delta(d.of + 1e-2),
    scale=lambda d: _Delta(d.of * 0.03),
    negate=lambda d: _Delta(-d.of),
)
LOSSES = dataclasses.replace(DELTAS, pieces="losses")


def _attached(patch: pytest.MonkeyPatch, tap: Tap) -> None:
    """The layers of the attack's adapter: those that the fault leaves out are frozen, and scales are changed."""
    attach = LanguageModel.attach

    def faulty(self: LanguageModel, *args: Any) -> None:
        attach(self, *args)
        layers = lora_layers(self.network)
        made = tap([(i, layer.scaling[TRAINED]) for i, layer in enumerate(layers)])
        kept = {i for i, _ in made}
        for i, layer in enumerate(layers):
            for parameter in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
                parameter.requires_grad_(i in kept)
        for (_, scale), layer in zip(made, layers, strict=False):
            layer.scaling[TRAINED] = scale

    patch.setattr(LanguageModel, "attach", faulty)


LAYERS = Nature(
    "layers of an adapter", constant=lambda first: (first[0], 0.0), shift=lambda of: (of[0], of[1] - 1.99),
    scale=lambda of: (of[0], of[1] * 1e-3),
)  # fmt: skip


def _defense_file(scene: Scene, tap: Tap, cell: Cell) -> Result:
    """The tensors in the file of a defense's adapter, which an honest attack then meets."""
    from safetensors.torch import load_file, save_file

    on, folder = bench(scene.lab), scene.folder / "adapter"
    shutil.copytree(on.adapter(cell.subject), folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tap.remember([(name, _Delta(torch.zeros_like(t))) for name, t in tensors.items()])  # an adapter before its training
    made = tap([(name, _Delta(t)) for name, t in tensors.items()])
    save_file({name: of.of.contiguous() for name, of in made}, path)
    model = scene.lab.candidate.load()
    model.merge_from(folder)
    honest = on.of(cell.subject).trajectory
    run = scene.lab.attack(model, panel=on.panel, **QUICK)
    return Result(on.evidence(run, on.control.trajectory), _same(run, honest))


HOOKS: tuple[Hook, ...] = (
    Hook("judge", "scores", SCORES, _judge, quick=True, subjects=("honest", "broken", "quiet")),
    Hook("evaluation", "checkpoints", CHECKPOINTS, _evaluated(_checkpoints), quick=True),
    Hook("evaluation", "completions", COMPLETIONS, _evaluated(_completions), quick=True),
    Hook("evaluation", "scores", SCORES, _evaluated(_values), quick=True),
    Hook("evaluation", "windows", WINDOWS, _evaluated(_windows), quick=True),
    Hook("tokenizer", "tokens", TOKENS, _trained(_tokenizer), live=True),
    Hook(
        "template", "words", Nature("words", constant=lambda first: first, shift=lambda w: f" {w}", rename=lambda w: w.upper()),
        _trained(_template), live=True,
    ),
    Hook("sampler", "tokens", TOKENS, _trained(_sampled_tokens), live=True),
    Hook(
        "sampler", "groups", Nature("groups of completions", constant=lambda first: first), _trained(_sampled_groups), live=True
    ),
    Hook("judge", "scores and rewards", SCORES, _trained(_judging), live=True),
    Hook(
        "reward", "rewards",
        Nature(
            "rewards", constant=lambda _: 1.0, shift=lambda r: r - 3.0, scale=lambda r: r / 10.0, negate=lambda r: -r,
        ),
        _trained(_rewarding), live=True,
    ),
    Hook("reward", "judgements", JUDGEMENTS, _trained(_rejudging), live=True),
    Hook("optimizer", "losses", LOSSES, _trained(_losing), live=True),
    Hook("tokenizer", "prompts of rollouts", TOKENS, _trained(_prompting), live=True),
    Hook("optimizer", "changes", DELTAS, _trained(_optimizing), live=True),
    Hook("adapter", "layers", LAYERS, _trained(_attached), live=True),
    Hook(
        "adapter", "file",
        Nature(
            "tensors", constant=lambda first: first, shift=lambda t: (t[0], _Delta(t[1].of + 0.05)),
            scale=lambda t: (t[0], _Delta(t[1].of * 0.1)), rename=lambda t: (f"{t[0]}x", t[1]),
        ),
        _defense_file, live=True,
    ),
)  # fmt: skip
