"""The context that every part of a run is given: settings, folders, store. Nothing is trained or measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.judges.certification import anchors_for
from rn_harness.models.identity import root_digest
from rn_harness.records.case import Identity
from rn_harness.report.progress import Progress
from rn_harness.run.case import Defended
from rn_harness.run.judge_setup import judge_identity
from rn_harness.run.keys import ResultInputs
from rn_harness.run.participants import Participants
from rn_harness.run.plan import CaseTask
from rn_harness.run.training_limits import TrainingLimits
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import hardware, versions
from rn_harness.store.ranks import ranks
from rn_harness.store.run_ids import new_run_id
from rn_harness.store.store import Store
from rn_harness.verdict.release_rules import PLAIN_FAMILIES, foreign

PARTS = "parts"
"""Folder of a run that holds one folder for each process that does a part of the run."""
CHANGES_SHOWN = 6


@dataclass
class RunContext(Participants):
    """A run as one process sees it.

    Attributes:
        folder: of the run, for its records.
        store: finished work.
        say: gets progress.
        free: bytes that a run may take; all processes of a run get the same number. None: measured when first needed.
        upcoming: the cases that this run will ask for; fleets are formed from them.
        run_id: the same in all processes of a run.
    """

    folder: Path
    store: Store
    say: Callable[[Progress], None]
    free: float | None = None
    upcoming: Sequence[CaseTask] = ()
    run_id: str = field(default_factory=new_run_id)

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
        """Digests of foreign code that may have changed a result."""
        return sorted({code.sha256 for code in foreign(self.options.plugins)})

    def runs_in_fleet(self, suite: Suite, attack: AttackRecipe | None) -> bool:
        """True if an attack runs in a fleet: the user asked for one, and it is plain RL by TRL that trains only an adapter."""
        return (
            attack is not None
            and self.options.fleet > 1
            and attack.family in PLAIN_FAMILIES
            and attack.form == "lora"
            and not (attack.beta or attack.search or attack.micro_batch)
            and not self.limits.obstacle(suite, attack)
        )

    def inputs(self, suite: Suite, sessions: Mapping[str, str | None]) -> ResultInputs:
        """Inputs of this suite's results, given the identity of each judge in this run."""
        judges = self.judges(suite)
        return ResultInputs(
            suite=suite,
            tier=self.options.tier,
            candidate=self.candidate.digest,
            judges={
                "judge": judges.evaluation.digest,
                "reward": judges.reward.digest,
                "second": judges.second.digest if judges.second else None,
            },
            sessions=sessions,
            anchors=anchors_for(judges.evaluation).digest,
            versions=versions(),
            hardware=hardware(self.candidate.threads),
            plugins=self.plugins,
            sampler=self.sampler.name if self.sampler.vllm else None,
            sharded=self.options.shard,
        )

    def attack_inputs(self, suite: Suite, attack: AttackRecipe | None, trials: Any) -> dict[str, Any]:
        """Inputs of an attack, apart from those of its suite; see ``ResultInputs.attack``."""
        if attack is None:
            return {}
        threads = self.candidate.threads if self.runs_in_fleet(suite, attack) else None
        return {"attack": attack, "family": self.family(suite, attack).digest, "trials": trials, "fleet_threads": threads}

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
        )  # fmt: skip

    @contextmanager
    def entry(self, kind: str, key: str) -> Iterator[Path | None]:
        """A locked entry of the store; None: make it in the body. If there are several processes, the first holds the lock."""
        with self.store.locked(kind, key) if ranks().leads else nullcontext():
            yield ranks().first(lambda: self.store.get(kind, key))

    def put(self, kind: str, key: str, files: Mapping[str, str] | Callable[[Path], None], inputs: dict[str, Any]) -> Path:
        """Adds an entry to the store; of several processes the first does.

        Args:
            kind, key: its address.
            files: texts by name, or a function that writes the files into a folder.
            inputs: that the key is the digest of.
        """

        def write(folder: Path) -> None:
            if callable(files):
                files(folder)
                return
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")

        return ranks().first(lambda: self.store.put(kind, key, write, inputs))

    def say_why_new(self, kind: str, inputs: dict[str, Any], what: str) -> None:
        """Reports the inputs in which the most similar stored result differs, if there are stored results."""
        differing = self.store.changed(kind, inputs)
        if differing:
            shown = ", ".join(differing[:CHANGES_SHOWN]) + (", …" if len(differing) > CHANGES_SHOWN else "")
            self.say(Progress(what, 0, 0, f"made anew, since the stored one that is most alike differs in {shown}", stays=True))
