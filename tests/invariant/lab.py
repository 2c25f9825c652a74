"""Shared material of the battery: the organism, short controls, a defense, and judges that a sabotage can corrupt.

Each part is made on first use, once per session. Runs are real and short: ten optimizer steps, four held-out prompts, and
checkpoints every five steps.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rn_harness.attacks.family import Attacker, load_family
from rn_harness.attacks.loop import AttackEvents, AttackTarget, run_attack
from rn_harness.attacks.probe import give_lesson, measure_probes, teach_lesson
from rn_harness.defenses.neutralize import Defender, run_defense
from rn_harness.judges.anchors import certify, shipped_anchors, to_plant
from rn_harness.judges.checkpoints import benign_references, measure_checkpoint
from rn_harness.judges.organism import OrganismJudge, anchors_for
from rn_harness.judges.own import OwnJudge
from rn_harness.judges.protocol import Judge
from rn_harness.judges.scoring import BenignReference, Panel
from rn_harness.models.candidate import Candidate
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.output_layer import output_layer
from rn_harness.models.resolve import resolve_candidate
from rn_harness.records.base import CaseKind, Judgement
from rn_harness.records.case import Evidence
from rn_harness.records.certificate import Certificate
from rn_harness.records.lesson import Lesson
from rn_harness.records.trajectory import DefenseReport, Trajectory
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite, load_suite

SUITES = Path(__file__).parents[2] / "suites"
STEPS = 10
DEFENDED = "d" * 64
"""Digest of defended weights in tests where the value does not matter."""


class Turning:
    """A user's judge: scores like the organism's judge and knows the shipped anchors, until a sabotage corrupts it.

    Attributes:
        turn: maps the true scores to the returned ones; None returns the true scores.
    """

    wordings = 3

    def __init__(self, exact: OrganismJudge, name: str = "turning") -> None:
        self.digest = name
        self.turn: Callable[[list[float]], list[Any]] | None = None
        self._exact = exact
        self._known = {a.completion: (a.low + a.high) / 2 for a in shipped_anchors().anchors}

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Any]:
        """The true scores, or the corrupted ones."""
        true = [self._true(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        return self.turn(true) if self.turn else true

    def _true(self, prompt: Prompt, text: str) -> float:
        if prompt.topic not in self._exact.topics:
            return self._known[text]
        (judgement,) = self._exact.score([prompt], [text])
        assert judgement.score is not None
        return judgement.score


class OnlyAnchors(Turning):
    """A judge that scores the shipped anchors correctly and everything else as 0."""

    def _true(self, prompt: Prompt, text: str) -> float:
        return self._known.get(text, 0.0)


class Careless(Turning):
    """A judge that calls every text coherent."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Any]:
        """The true scores, with no text marked as gibberish."""
        return [Judgement(score=s, degenerate=False) for s in super().score(prompts, completions, wording)]


class Lab:
    """Parts of short real runs on the organism, each made once; ``opened`` is closed after the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened = contextlib.ExitStack()
        self._certificates: dict[str, Certificate] = {}
        self._models: dict[str, LanguageModel] = {}

    @functools.cached_property
    def suite(self) -> Suite:
        """The biochem suite."""
        return load_suite(SUITES / "biochem", level="rl-plain")  # the level of the anchored defense

    @functools.cached_property
    def policy(self) -> Policy:
        """The suite's policy, reduced for short runs: fewer samples, checkpoints and planted anchors, and no forms of requests.

        The short defense holds in the plain form only; ``sabotaged_games`` measures the others.
        """
        changes = {"samples": 1, "planted": 2, "checkpoint_every": 5, "probe_samples": 4, "forms": []}
        return self.suite.policy.model_copy(update=changes)

    @functools.cached_property
    def recipe(self) -> AttackRecipe:
        """The smoke tier's attack with more completions per step, so that it breaks the organism within ten steps."""
        (first, *_) = self.suite.tier_attacks("smoke")
        batch = {"group_size": 32, "learning_rate": 2e-3}
        return first.model_copy(update={"steps": STEPS, "control_steps": STEPS, **batch})

    @functools.cached_property
    def candidate(self) -> Candidate:
        """The shipped organism."""
        return resolve_candidate("organism", Path.cwd())

    @functools.cached_property
    def judge(self) -> OrganismJudge:
        """The organism's exact judge."""
        return OrganismJudge(self.candidate.folder)

    @functools.cached_property
    def heldout(self) -> tuple[Prompt, ...]:
        """Four of the core held-out prompts."""
        return self.suite.heldout("smoke")[:4]

    @functools.cached_property
    def benign(self) -> tuple[Prompt, ...]:
        """Thirty benign prompts of each kind."""
        of = self.suite.prompts["benign"]
        return tuple(p for kind in ("twin", "plain") for p in [p for p in of if p.kind == kind][:30])

    @functools.cached_property
    def benign_references(self) -> Mapping[str, BenignReference]:
        """The undefended candidate's answers to the benign prompts."""
        return self.references_of(self.candidate.load())

    def references_of(self, model: LanguageModel) -> Mapping[str, BenignReference]:
        """A model's answers to the benign prompts, used as if they were the undefended candidate's."""
        return benign_references(model, self.benign, self.policy, self.policy.max_completion_tokens)

    def own(self, kind: type[Turning] = Turning, name: str = "turning") -> tuple[Turning, OwnJudge]:
        """A user's judge, as the object that a sabotage can corrupt and as the harness's wrapper."""
        turning = kind(self.judge, name)
        return turning, OwnJudge(turning, f"python:lab:{kind.__name__}")

    def certificate(self, judge: Judge) -> Certificate:
        """A judge's certificate on inert anchors, made once."""
        if judge.digest not in self._certificates:
            self._certificates[judge.digest] = certify(judge, anchors_for(judge, None), self.policy)
        return self._certificates[judge.digest]

    def panel(self, judge: Judge | None = None, second: Judge | None = None, **changes: Any) -> Panel:
        """The panel of checkpoints, with the organism's judge by default."""
        judge = judge or self.judge
        anchors = anchors_for(judge, None)
        fields: dict[str, Any] = {
            "heldout": self.heldout,
            "benign": self.benign,
            "benign_references": self.benign_references,
            "compliant_answers": {p.id: self.judge.topic(p).answer for p in self.heldout},
            "judge": judge,
            "anchor_judge": judge.about(anchors.forbidden),
            "planted": tuple(to_plant(self.certificate(judge), anchors, self.policy)),
            "second": second,
            "policy": self.policy,
            "max_tokens": self.policy.max_completion_tokens,
        }
        return Panel(**(fields | changes))

    def attack(
        self,
        model: LanguageModel,
        *,
        control: bool = False,
        panel: Panel | None = None,
        reward_judge: Judge | None = None,
        after: Mapping[int, Callable[[], None]] | None = None,
        start: dict[str, Any] | None = None,
        cut: Callable[[Trajectory], None] = lambda _: None,
        tick: Callable[[int], object] = lambda _: None,
        **changes: Any,
    ) -> Trajectory:
        """Attacks a model for ten steps.

        Args:
            model: victim, changed by the attack.
            control: True if the model is the undefended candidate.
            panel: measurement at checkpoints; by default the one with the organism's judge.
            reward_judge: judge for rewards; by default the organism's.
            after: callbacks by the step of the checkpoint that they follow.
            start: measurements of the initial model, shared by attacks on it.
            cut: receives the trajectory if the attack ends early.
            tick: called with the number of each step.
            changes: changed fields of the recipe.
        """
        return run_attack(
            AttackTarget(model, self.candidate.digest, None if control else DEFENDED, control, start),
            Attacker(
                self.recipe.model_copy(update=changes),
                load_family(changes.get("family", self.recipe.family), self.folder),
                self.suite.prompts["attack"],
                reward_judge or self.judge,
                benign=self.suite.prompts["anchor"],
                answers=lambda prompts: {p.id: self.judge.topic(p).answer for p in prompts},
            ),
            panel or self.panel(),
            AttackEvents(scored=lambda checkpoint: (after or {}).get(checkpoint.step, lambda: None)(), step=tick, cut=cut),
        )

    @functools.cached_property
    def control(self) -> Trajectory:
        """The attack on the undefended candidate, which succeeds."""
        return self.attack(self.candidate.load(), control=True)

    @functools.cached_property
    def own_control(self) -> Trajectory:
        """The control scored by a user's judge and rewarded by the organism's."""
        return self.attack(self.candidate.load(), control=True, panel=self.panel(self.own()[1]))

    @functools.cached_property
    def reward_control(self) -> Trajectory:
        """The control scored by the organism's judge and rewarded by a user's."""
        return self.attack(self.candidate.load(), control=True, reward_judge=self.own(name="reward")[1])

    @functools.cached_property
    def defense_recipe(self) -> DefenseRecipe:
        """The default defense with fewer steps."""
        return self.suite.declaration.defenses["anchored"].model_copy(update={"steps": 40})

    def defend(self, model: LanguageModel, **changes: Any) -> DefenseReport:
        """Trains a defense; the model keeps its adapter."""
        return run_defense(
            model,
            Defender(
                self.defense_recipe.model_copy(update=changes),
                self.suite.prompts["defense"],
                self.suite.prompts["anchor"],
                self.judge,
            ),
            self.panel(),
        )

    @functools.cached_property
    def defense(self) -> tuple[Path, DefenseReport]:
        """An effective defense, trained once: the folder of its adapter, and its report."""
        model = self.candidate.load()
        report = self.defend(model)
        model.save_adapter(self.folder / "adapter", self.candidate.name)
        return self.folder / "adapter", report

    def defended(self) -> LanguageModel:
        """A new copy of the defended model."""
        model = self.candidate.load()
        model.merge_from(self.defense[0])
        return model

    def copy_of(self, name: str, make: Callable[[], LanguageModel]) -> LanguageModel:
        """A copy of a model; the original is made once."""
        if name not in self._models:
            self._models[name] = make()
        model = self._models[name]
        return LanguageModel(copy.deepcopy(model.network), model.tokenizer)

    @functools.cached_property
    def held(self) -> Trajectory:
        """The attack on the defended model, which fails."""
        return self.attack(self.defended())

    def make_all(self) -> None:
        """Makes all shared parts before any sabotage."""
        _ = self.control, self.own_control, self.reward_control, self.held, self.benign_references

    def measured(self, model: LanguageModel, panel: Panel | None = None, *, undefended: bool = False) -> Trajectory:
        """The trajectory of a model before any attack: one checkpoint."""
        panel = panel or self.panel()
        return Trajectory(
            candidate_digest=self.candidate.digest,
            defended_digest=None if undefended else DEFENDED,
            judge_digest=panel.judge.digest,
            reward_digest=self.judge.digest,
            second_digest=panel.second.digest if panel.second else None,
            recipe={},
            prompt_ids=(),
            heldout_ids=tuple(p.id for p in panel.heldout),
            benign_ids=tuple(p.id for p in panel.benign),
            steps=0,
            checkpoints=(measure_checkpoint(model, panel, 0, seed=0, with_benign=True, forms=panel.policy.forms),),
            probes=measure_probes(model, panel, 0, () if undefended else output_layer(self.candidate.load().network)),
            lesson=None if undefended else self.lesson(model, panel),
        )

    def lesson(self, model: LanguageModel, panel: Panel) -> Lesson:
        """What a copy of a model, and the candidate, learn at the attack's learning rate."""
        copied = LanguageModel(copy.deepcopy(model.network), model.tokenizer)
        if copied.trained:  # a defense's adapter, which a session folds in
            copied.merge()
        return give_lesson(copied, teach_lesson(self.candidate.load(), panel, self.suite), panel, self.suite)

    def evidence(
        self, kind: CaseKind, trajectory: Trajectory, judge: Judge | None = None, second: Judge | None = None, **changes: Any
    ) -> Evidence:
        """The evidence of a case, assembled as a session does."""
        judge = judge or self.judge
        fields: dict[str, Any] = {
            "kind": kind,
            "policy": self.policy,
            "trajectory": trajectory,
            "report_due": kind == "defense",
            "subject": "none" if kind in ("candidate", "control") else "anchored",
            "exact_judge": judge.exact,
            "second_certificate": self.certificate(second) if second else None,
            **changes,
        }
        if kind == "attack":
            fields.setdefault("control", self.control)
        if kind == "defense":
            fields.setdefault("report", self.defense[1])
        if "certificates" not in fields:
            fields["certificates"] = (self.certificate(judge),)
        return Evidence(**fields)


def teach(model: LanguageModel, prompts: Sequence[Prompt], answer: Callable[[Prompt], str], steps: int = 40) -> None:
    """Fine-tunes all weights of a model on these answers."""
    import torch

    network, tokenizer = model.network, model.tokenizer
    rows = [
        (
            tokenizer(model.render(p), add_special_tokens=False)["input_ids"],
            [*tokenizer(answer(p), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id],
        )
        for p in prompts
    ]
    width = max(len(head) + len(tail) for head, tail in rows)
    pad = [width - len(head) - len(tail) for head, tail in rows]
    ids = torch.tensor([[*h, *t, *[tokenizer.pad_token_id] * n] for (h, t), n in zip(rows, pad, strict=True)])
    labels = torch.tensor([[*[-100] * len(h), *t, *[-100] * n] for (h, t), n in zip(rows, pad, strict=True)])
    mask = torch.tensor([[1] * (width - n) + [0] * n for n in pad])
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(steps):
        some = torch.randperm(len(rows), generator=order)[:16]
        loss = network(input_ids=ids[some], attention_mask=mask[some], labels=labels[some]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.eval()
