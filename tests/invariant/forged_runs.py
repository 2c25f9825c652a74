"""Short real runs on the organism, honest and forged, for the tests of ``rn-harness verify --replay``.

A forger uses the harness itself: what was measured is changed before it is recorded, so that scores, verdicts, digests and
statement all agree. Only a new measurement can show it.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from rn_harness.judges.anchors import certify
from rn_harness.models.resolve import resolve_candidate
from rn_harness.records.base import CaseKind
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.run import suite_run
from rn_harness.run.case import CaseTask, Defended, all_cases
from rn_harness.run.case_board import news_of
from rn_harness.run.controller import Controller
from rn_harness.run.session import CaseMaker, RunSession
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store import provenance
from rn_harness.store.store import Store

SUITES = Path(__file__).parents[2] / "suites"
SHORT = ("attack.steps=6", "attack.control_steps=6", "attack.learning_rate=3e-3", "attack.group_size=32", "policy.samples=1")
"""Attacks that break the undefended organism within six steps."""
HELDOUT, BENIGN = 6, 20
"""Prompts of the short suite: held-out ones, and benign ones of each kind."""
Change = Callable[[CaseTask, Trajectory], Trajectory]


def short_suite(folder: Path) -> Path:
    """A copy of the suite biochem with one attack, few held-out prompts and few benign ones."""
    shutil.copytree(SUITES / "biochem", folder)
    path = folder / "suite.yaml"
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    declared |= {"attacks": declared["attacks"][:1], "policy": {"level": "rl-plain", "checkpoint_every": 3, "forms": []}}
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")
    for name, keep in (("heldout", HELDOUT), ("benign", BENIGN)):
        prompts = folder / "prompts" / f"{name}.yaml"
        rows = yaml.safe_load(prompts.read_text(encoding="utf-8"))["prompts"]
        kinds = dict.fromkeys(row.get("kind") for row in rows)
        kept = [row for kind in kinds for row in [row for row in rows if row.get("kind") == kind][:keep]]
        prompts.write_text(yaml.safe_dump({"prompts": kept}), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Handed:
    """The hand-over of a run to a release job: the run's folder, and the folder of the weights."""

    folder: Path
    weights: Path


@dataclass(frozen=True)
class Lab:
    """A lab that makes runs of one suite.

    Attributes:
        root: holds all folders.
        suite: folder of the suite.
        store: of the lab's honest measurements; a verifier never reads it.
    """

    root: Path
    suite: Path
    store: Path

    @property
    def loaded(self) -> Suite:
        """The suite with the short settings."""
        return load_suite(self.suite, SHORT)

    def adapter(self, name: str, change: Callable[[str, Any], Any] = lambda _, tensor: tensor, of: str | None = None) -> Path:
        """An adapter that changes nothing, or the tensors of another one as ``change`` gives them, by name."""
        from safetensors.torch import load_file, save_file

        folder = self.root / name
        if folder.exists():
            return folder
        if of is None:
            model = resolve_candidate("organism", self.root).load()
            model.arm(self.loaded.declaration.defenses["anchored"])
            model.save_adapter(folder, "organism")
            return folder
        shutil.copytree(self.root / of, folder)
        path = folder / "adapter_model.safetensors"
        save_file({key: change(key, tensor) for key, tensor in load_file(path).items()}, path)
        return folder

    def run(self, name: str, defense: Path) -> Handed:
        """A run of all cases on the organism with a given adapter, and its export."""
        folder, suite = self.root / name, self.loaded
        weights = self.root / f"{name}-weights"
        options = Options(
            model="organism",
            defense=str(defense),
            tier="smoke",
            overrides=SHORT,
            base=self.root,
            export=str(weights),
            export_anyway=True,
        )
        session = RunSession(options, folder, Store(self.store), lambda _: None)
        controller = Controller(
            folder,
            options,
            [suite],
            session.candidate.identity,
            {suite.domain: session.judges(suite).names},
            (),
            run_id=session.run_id,
            started=provenance.now(),
            read_candidate=session.candidate.verify,
        )
        tasks = all_cases(suite, suite.tier_attacks("smoke"))
        nodeids = [f"{suite.folder.name}/test_biochem.py::TestBiochem::test[{task.case_id}]" for task in tasks]
        controller.begin(nodeids)
        for task, nodeid in zip(tasks, nodeids, strict=True):
            news = news_of(session.case(task.kind, suite, task.attack), "")
            passed = "passed" if news["outcome"] == "PASS" else "failed"
            for phase, outcome in (("setup", "passed"), ("call", passed), ("teardown", "passed")):
                controller.add(nodeid, phase, outcome, 0.0, "unsafe", news)  # type: ignore[arg-type]
        controller.finish()
        return Handed(folder, weights)


# ------------------------------------------------------------------------------------------------------------ the forger


@contextmanager
def recording(change: Change) -> Iterator[None]:
    """Runs in the body record what ``change`` makes of each measurement, in record and journal alike."""
    real = CaseMaker._trajectory

    def forged(self: CaseMaker, draft: Any, work: Any, member: Any = None) -> Any:
        found, measured, stored = real(self, draft, work, member)
        changed = change(work.task, found)
        (draft.folder / work.file).write_text(changed.lines, encoding="utf-8")
        return changed, measured, stored

    with patch.object(CaseMaker, "_trajectory", forged):
        yield


def each_checkpoint(change: Callable[[Checkpoint], Checkpoint], *kinds: CaseKind) -> Change:
    """A change of each checkpoint of cases of these kinds."""

    def changed(task: CaseTask, run: Trajectory) -> Trajectory:
        return run.model_copy(update={"checkpoints": tuple(map(change, run.checkpoints))}) if task.kind in kinds else run

    return changed


def scored(value: float, above: float = -1.0) -> Callable[[Checkpoint], Checkpoint]:
    """Gives this score to each completion whose score is above another."""

    def change(checkpoint: Checkpoint) -> Checkpoint:
        scores = [s.model_copy(update={"score": value}) if (s.score or 0.0) > above else s for s in checkpoint.scores]
        return checkpoint.model_copy(update={"scores": tuple(scores)})

    return change


def _held(task: CaseTask, run: Trajectory, scores: Callable[[Checkpoint], Checkpoint]) -> Trajectory:
    """An attack with these scores, whose training and leak betray nothing either."""
    leak = run.checkpoints[0].leak

    def change(checkpoint: Checkpoint) -> Checkpoint:
        window, told = checkpoint.training, ("harm_mean", "above_share", "reward_mean")
        window = window and window.model_copy(update=dict.fromkeys(told, 0.0))
        return scores(checkpoint).model_copy(update={"training": window, "leak": leak})

    return each_checkpoint(change, "attack")(task, run)


def _breach_lowered(task: CaseTask, run: Trajectory) -> Trajectory:
    return _held(task, run, scored(0.0, above=2.0))


def _never_attacked(task: CaseTask, run: Trajectory) -> Trajectory:
    first = run.checkpoints[0].scores
    return _held(task, run, lambda checkpoint: checkpoint.model_copy(update={"scores": first}))


def _other_rewards(checkpoint: Checkpoint) -> Checkpoint:
    window = checkpoint.training
    return checkpoint.model_copy(update={"training": window and window.model_copy(update={"reward_mean": 0.125})})


def _hair(checkpoint: Checkpoint) -> Checkpoint:
    first, *rest = checkpoint.scores
    score = abs((first.score or 0.0) - 1e-6)  # a score of 10 has none above it, and one of 0 none below
    return checkpoint.model_copy(update={"scores": (first.model_copy(update={"score": score}), *rest)})


def _benign_kept(checkpoint: Checkpoint) -> Checkpoint:
    of = checkpoint.benign
    answers = of and tuple(a.model_copy(update={"refusal": False, "similarity": 1.0}) for a in of.answers)
    return checkpoint.model_copy(update={"benign": of and of.model_copy(update={"answers": answers})})


@contextmanager
def measured_on(other: Path) -> Iterator[None]:
    """Runs in the body measure other weights than those that they name."""
    real = Defended.load

    def load(self: Defended) -> Any:
        return real(dataclasses.replace(self, adapter=other) if self.adapter else self)

    with patch.object(Defended, "load", load):
        yield


@contextmanager
def _certified_otherwise(_: Lab) -> Iterator[None]:
    def forged(*of: Any) -> Any:
        made = certify(*of)
        first, *rest = made.scores
        looks = tuple(look.model_copy(update={"score": abs((look.score or 0.0) - 1.0)}) for look in first.looks)
        return made.model_copy(update={"scores": (first.model_copy(update={"looks": looks}), *rest)})

    with patch.object(suite_run, "certify", forged):
        yield


@contextmanager
def _on_another_processor(_: Lab) -> Iterator[None]:
    """The record says another processor, so that only the tolerance applies."""
    with ExitStack() as forged:
        forged.enter_context(patch.object(provenance, "_processor", lambda: "another processor"))
        forged.enter_context(recording(_breach_lowered))
        yield


@dataclass(frozen=True)
class Forgery:
    """A forged run.

    Attributes:
        context: in it the run is made.
        weights: name of the adapter that is handed over.
        measures: whether it measures otherwise, and not only records otherwise; then it needs its own store.
    """

    context: Callable[[Lab], AbstractContextManager[None]]
    weights: str = "null"
    measures: bool = False

    def make(self, lab: Lab, name: str) -> Handed:
        """The forged run."""
        lab = dataclasses.replace(lab, store=lab.root / f"{name}-store") if self.measures else lab
        with self.context(lab):
            return lab.run(name, lab.root / self.weights)


FORGERIES = {
    "breach-lowered": Forgery(lambda _: recording(_breach_lowered)),
    "attack-never-run": Forgery(lambda _: recording(_never_attacked)),
    "one-score-by-a-hair": Forgery(lambda _: recording(each_checkpoint(_hair, "attack"))),
    "control-that-breaks": Forgery(lambda _: recording(each_checkpoint(scored(9.0), "control"))),
    "candidate-that-refuses": Forgery(lambda _: recording(each_checkpoint(scored(0.0), "candidate"))),
    "rewards-of-another-attack": Forgery(lambda _: recording(each_checkpoint(_other_rewards, "attack"))),
    "helpfulness-kept": Forgery(lambda _: recording(each_checkpoint(_benign_kept, "helpfulness")), weights="wrecked"),
    "judge-certified-otherwise": Forgery(_certified_otherwise, measures=True),
    "made-on-other-weights": Forgery(lambda lab: measured_on(lab.root / "strong"), measures=True),
    "on-another-processor": Forgery(_on_another_processor, measures=True),
}
