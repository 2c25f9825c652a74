"""The context that every part of a run is given: settings, folders, store, and the inputs that its results depend on.

The digest of a result's inputs is its key in the store. Nothing is trained or measured here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.judges.organism import anchors_for
from rn_harness.models.identity import root_digest
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.resident import ResidentModel
from rn_harness.records.base import digest_of, prompts_digest
from rn_harness.records.case import Identity
from rn_harness.records.lesson import LessonInputs
from rn_harness.report.progress import Progress
from rn_harness.run.case import CaseTask, Defended
from rn_harness.run.participants import Participants, judge_identity
from rn_harness.run.training_limits import TrainingLimits
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import hardware, new_run_id, versions
from rn_harness.store.ranks import ranks
from rn_harness.store.store import Store
from rn_harness.verdict.release_rules import PLAIN_FAMILIES, foreign

PARTS = "parts"
"""Folder of a run that holds one folder for each process that does a part of the run."""
CHANGES_SHOWN = 6


@dataclass
class RunContext(Participants):
    """A run as one process sees it.

    ``free`` are bytes that a run may take, the same in all of its processes; None: measured when first needed. Fleets are formed
    from the ``upcoming`` cases.
    """

    folder: Path
    store: Store
    say: Callable[[Progress], None]
    free: float | None = None
    upcoming: Sequence[CaseTask] = ()
    run_id: str = field(default_factory=new_run_id)
    _resident: ResidentModel = field(default_factory=ResidentModel)

    def model(self, defended: Defended | None = None) -> LanguageModel:
        """The model of a case, as if fresh from its files; None: the candidate without a defense."""
        key = (self.candidate.digest, defended and defended.digest)
        return self._resident.copy(key, defended.load if defended else self.candidate.load)

    @property
    def run_folder(self) -> Path:
        """Folder of the whole run, also if this process does a part of it."""
        return self.folder.parent.parent if self.folder.parent.name == PARTS else self.folder

    @functools.cached_property
    def limits(self) -> TrainingLimits:
        """The limits of training here."""
        return TrainingLimits(self, self.free)

    @property
    def plugins(self) -> list[str]:
        """Digests of foreign code that may have changed a result: a run without that code never takes such a result."""
        return sorted({code.sha256 for code in foreign(self.options.plugins)})

    def runs_in_fleet(self, suite: Suite, attack: AttackRecipe | None) -> bool:
        """True if an attack runs in a fleet: the user asked for one, and it is plain RL by TRL that trains only an adapter."""
        return (
            attack is not None
            and self.options.fleet > 1
            and attack.family in PLAIN_FAMILIES
            and attack.form == "lora"
            and not (attack.beta or attack.search or attack.micro_batch or attack.ban or attack.opener or attack.replay)
            and attack.reward.shape != "entropy"
            and not self.limits.obstacle(suite, attack)
        )

    def common_inputs(
        self, suite: Suite, sessions: Mapping[str, str | None], prompts: Mapping[str, Sequence[Prompt]]
    ) -> dict[str, Any]:
        """Inputs of every result: weights, judges, policy, prompts, versions, machine, foreign code.

        ``sessions`` has the identity of each judge in this run, by role; None where its digest covers everything.
        """
        judges, sampler = self.judges(suite), self.sampler
        return {
            "candidate": self.candidate.digest,
            "judge": judges.evaluation.digest,
            "reward": judges.reward.digest,
            "second": judges.second.digest if judges.second else None,
            "sessions": dict(sessions),
            "forbidden": digest_of(suite.declaration.forbidden),
            "anchors": anchors_for(judges.evaluation, self.anchors(suite)).digest,
            "policy": suite.policy.model_dump(mode="json"),
            "prompts": {name: prompts_digest(of_set) for name, of_set in prompts.items()},
            "versions": dict(versions()),
            "hardware": hardware(self.candidate.threads),
            "plugins": self.plugins,
            **({"sampler": sampler.name} if sampler.vllm else {}),
            **({"sharded": True} if self.options.shard else {}),
        }

    def defense_inputs(self, suite: Suite, sessions: Mapping[str, str | None], recipe: DefenseRecipe) -> dict[str, Any]:
        """Inputs of a trained defense; see ``common_inputs``."""
        sets = suite.prompts
        used = {"defense": sets["defense"], "anchor": sets["anchor"], "heldout": suite.heldout(self.options.tier)}
        inputs = self.common_inputs(suite, sessions, used) | {"recipe": recipe.model_dump(mode="json")}
        if recipe.distill:
            inputs["retain"] = digest_of([[of.prompt.text, of.answer] for of in self.retained(suite)])
        if teacher := suite.teacher_of(recipe):
            inputs["teacher"] = self.defense_inputs(suite, sessions, self.limits.fitted(suite, teacher))
        return inputs

    def attack_inputs(
        self,
        suite: Suite,
        sessions: Mapping[str, str | None],
        defended: str | None,
        attack: AttackRecipe | None,
        trials: Any = None,
    ) -> dict[str, Any]:
        """Inputs of an attack, or of a measurement without one; see ``common_inputs``.

        ``defended`` is the digest of the defended weights; ``trials`` are those of the search that found the settings.
        """
        neighbour = suite.neighbours.get(attack.neighbour) if attack and attack.neighbour else None
        used: dict[str, Sequence[Prompt]] = {"heldout": suite.heldout(self.options.tier), "benign": suite.prompts["benign"]}
        if attack:
            pool = suite.attack_pool(attack) if neighbour or not attack.neighbour else ()
            used |= {"attack": pool, "anchor": suite.prompts["anchor"]}
        return {
            **self.common_inputs(suite, sessions, used),
            "defended": defended,
            "recipe": attack.model_dump(mode="json") if attack else None,
            "lesson": None if attack else LessonInputs.of(suite).model_dump(mode="json"),
            "search": trials,
            "family": self.family(suite, attack).digest if attack else None,
            "neighbour": digest_of(neighbour.forbidden) if neighbour else None,
            **({"fleet": self.candidate.threads} if self.runs_in_fleet(suite, attack) else {}),
        }

    def identity(self, suite: Suite, defended: Defended | None) -> Identity:
        """The models, judges, suite and code of a case; None as ``defended`` leaves the defended weights open."""
        judges = self.judges(suite)
        return Identity(
            candidate=self.candidate.identity,
            defense=defended.name if defended else self.defense_name,
            defended_digest=defended.digest if defended else None,
            defended_files=root_digest(defended.hashes) if defended and defended.hashes else None,
            judge=judge_identity(judges.evaluation),
            reward=judge_identity(judges.reward),
            second=judge_identity(judges.second) if judges.second else None,
            suite={"domain": suite.domain, "digest": suite.digest},
            benign=suite.declaration.benign,
            overrides=suite.overrides,
            versions=versions(),
            hardware=hardware(self.candidate.threads),
            plugins=foreign(self.options.plugins),
        )

    @contextmanager
    def entry(self, kind: str, key: str) -> Iterator[Path | None]:
        """A locked entry of the store; None: make it in the body. If there are several processes, the first holds the lock."""
        with self.store.locked(kind, key) if ranks().leads else nullcontext():
            yield ranks().first(lambda: self.store.get(kind, key))

    def put(self, kind: str, key: str, files: Mapping[str, str] | Callable[[Path], None], inputs: dict[str, Any]) -> Path:
        """Adds texts by name, or the files that a function writes, to the store; of several processes the first does."""

        def write(folder: Path) -> None:
            if callable(files):
                files(folder)
                return
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")

        return ranks().first(lambda: self.store.put(kind, key, write, inputs))

    def say_why_new(self, kind: str, inputs: dict[str, Any], name: str) -> None:
        """Reports the inputs in which the most similar stored result differs, if there are stored results."""
        if differing := self.store.changed(kind, inputs):
            shown = ", ".join(differing[:CHANGES_SHOWN]) + (", …" if len(differing) > CHANGES_SHOWN else "")
            self.say(Progress(name, 0, 0, f"made anew, since the stored one that is most alike differs in {shown}", stays=True))
