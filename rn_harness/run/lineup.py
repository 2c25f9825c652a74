"""Who takes part in a run: the candidate, its judges, the defense's recipe, by the options and a suite.

Each is looked for once. Nothing is loaded or measured.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rn_harness.attacks.family import Loaded, load_family
from rn_harness.judges.anchors import AnchorSet, load_anchors
from rn_harness.judges.protocol import Judge
from rn_harness.judges.resolve import resolve_judge, resolve_suites_judge
from rn_harness.judges.shared import SharedJudge
from rn_harness.models.adapter_files import ADAPTER_CONFIG
from rn_harness.models.candidate import ORGANISM, Candidate
from rn_harness.models.identity import hash_files, weights_digest
from rn_harness.models.resolve import resolve_candidate
from rn_harness.records.base import CaseKind
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.errors import JudgeError, RecipeError
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import device
from rn_harness.store.ranks import ranks
from rn_harness.training.sampler import Sampler
from rn_harness.verdict.coherence import told_judges
from rn_harness.verdict.validity import NO_DEFENSE

NO_JUDGE = "none"
MAKERS = "makers"
"""What the defense of a model is called that its makers defended."""


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges a suite, each told what is forbidden there.

    Attributes:
        evaluation: scores checkpoints.
        reward: what the rewards of defense and attack are made from.
        second: gives a second opinion; None: nobody does.
    """

    evaluation: Judge
    reward: Judge
    second: Judge | None

    @property
    def names(self) -> str:
        """For headers and records."""
        return told_judges(who(self.evaluation), who(self.reward), who(self.second) if self.second else None)


@dataclass(frozen=True)
class CaseTask:
    """One case that is to be made."""

    kind: CaseKind
    suite: Suite
    attack: AttackRecipe | None = None

    @property
    def case_id(self) -> str:
        """As in its record."""
        return self.kind if self.attack is None else f"{self.kind}-{self.attack.id}"

    @functools.cached_property
    def at(self) -> tuple[str, str]:
        """What a process keeps it under: by the suite's digest and the case's id."""
        return self.suite.digest, self.case_id

    @property
    def steps(self) -> int:
        """Attack steps; 0 without an attack."""
        if self.attack is None:
            return 0
        return self.attack.control_steps if self.kind == "control" else self.attack.steps

    @property
    def name(self) -> str:
        """Of all tasks of a run."""
        return f"{self.suite.domain}: {self.case_id}"


@dataclass
class Lineup:
    """Finds who takes part in a run.

    Attributes:
        options: what the user asked for.
    """

    options: Options
    _judges: dict[str, Judge] = field(default_factory=dict, init=False)
    _asked: set[str] = field(default_factory=set, init=False)

    @functools.cached_property
    def candidate(self) -> Candidate:
        """The undefended model, digested: what is to be defended, or the twin of what its makers defended."""
        return self.resolve(self.options.undefended or self.options.model)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Who samples in training.

        Raises:
            RecipeError: the option names none.
        """
        return Sampler.of(self.options.sampler)

    @functools.cached_property
    def released(self) -> Candidate | None:
        """The model that its makers defended, digested; None where the defense is ours to make or was given as a folder."""
        return self.resolve(self.options.model) if self.options.undefended else None

    @property
    def defense_name(self) -> str:
        """How verdicts call the defense."""
        return MAKERS if self.options.undefended else self.options.defense

    @property
    def on(self) -> Literal["cpu", "cuda"]:
        """What the model under test is computed on in this process."""
        return "cpu" if device() == "cpu" else "cuda"

    def resolve(self, spec: str) -> Candidate:
        """A model that the user named, with what he lets its files do."""
        options = self.options
        return resolve_candidate(
            spec,
            options.base,
            chat_template=options.chat_template,
            allow_pickle=options.allow_pickle,
            trust_remote_code=options.trust_remote_code,
            quantise=options.quantise,
            shards=ranks().size if options.shard else 1,
        )

    def judges(self, suite: Suite) -> Judges:
        """Who judges this suite: the option's judge, else the organism's own, else the suite's default.

        A second opinion comes from the option's judge, else from the suite's; where the organism is the candidate, by default
        from nobody.

        Raises:
            JudgeError: one of them cannot be found, or is the candidate itself.
        """
        options, declared = self.options, suite.declaration.judges
        own = f"{ORGANISM}:{self.candidate.folder}" if self.candidate.is_organism else None
        evaluation = options.judge or own or (declared.evaluation if declared else None)
        reward = options.reward_judge or own or (declared.reward if declared else None)
        if evaluation is None or reward is None:
            raise JudgeError(
                f"a judge is required, and neither the candidate nor suite {suite.domain} brings one, got "
                f"--rn-judge={options.judge!r} --rn-reward-judge={options.reward_judge!r}; name both, see docs/judges.md"
            )
        by_suite = declared.second if declared and not own else None
        second = None if options.second_judge == NO_JUDGE else options.second_judge or by_suite
        return Judges(
            evaluation=self._judge(evaluation, suite, typed=bool(options.judge or own)),
            reward=self._judge(reward, suite, typed=bool(options.reward_judge or own)),
            second=self._judge(second, suite, typed=bool(options.second_judge)) if second else None,
        )

    def _judge(self, spec: str, suite: Suite, *, typed: bool) -> Judge:
        """The judge that the user typed, or that the suite's file names."""
        folder, resolve = (self.options.base, resolve_judge) if typed else (suite.folder, resolve_suites_judge)
        key = f"{folder} {spec}"
        if key not in self._judges:
            judge = resolve_judge(f"{ORGANISM}:{self.candidate.folder}", folder) if spec == ORGANISM else resolve(spec, folder)
            served = served_as(judge)
            if weights_of(judge) in self._under_test or {served, served.partition(":")[0]} & self._names_under_test:
                raise JudgeError(
                    f"a model must not judge itself, got judge={spec} for candidate={self.candidate.name}; name another, or, "
                    "if it is another, have its server call it otherwise"
                )
            self._judges[key] = judge
        told = self._judges[key].about(suite.declaration.forbidden)
        return SharedJudge(told) if ranks().size > 1 else told

    @functools.cached_property
    def _under_test(self) -> set[str]:
        """What the weights under test are known by: the candidate's, and those of a whole defended model."""
        whole = {weights_digest(hash_files(self.defense_folder, follow_links=True))} if self.is_given_whole else set()
        return whole | {of.weights_digest for of in (self.candidate, self.released) if of}

    @functools.cached_property
    def _names_under_test(self) -> set[str]:
        """What a server may call them, whose weights cannot be seen."""
        names = [self.defense_folder.name] if self.defense_folder.is_dir() else []
        for of in (self.candidate, self.released):
            if of:
                hub = of.name.partition("@")[0] if of.revision else of.name
                cached = next((p.name.rpartition("--")[2] for p in of.folder.parents if p.name.startswith("models--")), "")
                names += [hub, cached, of.gguf or of.folder.name, of.profile.model if of.profile else ""]
        return {_called(name) for name in names} - {""}

    def ask_judges(self, suite: Suite) -> None:
        """Asks each judge once whether it can judge the suite's prompts: one on a server is asked in earnest.

        Raises:
            JudgeError: it cannot.
        """
        if suite.digest in self._asked:
            return
        judges = self.judges(suite)
        prompts = [p for of_set in suite.prompts.values() for p in of_set]
        for judge in (judges.evaluation, judges.reward, *([judges.second] if judges.second else [])):
            judge.check(prompts)
        self._asked.add(suite.digest)

    @functools.cached_property
    def labels(self) -> AnchorSet | None:
        """The lab's own labelled texts.

        Raises:
            JudgeError: the file cannot be read as anchors.
        """
        return load_anchors(self.options.path(self.options.labels)) if self.options.labels else None

    def rewards(self, suite: Suite, attack: AttackRecipe) -> Judge:
        """Who rewards an attack: told what is forbidden where its prompts come from."""
        reward = self.judges(suite).reward
        return reward.about(suite.neighbours[attack.neighbour].forbidden) if attack.neighbour else reward

    @property
    def defense_folder(self) -> Path:
        """What ``--rn-defense`` names where it is no recipe."""
        return self.options.path(self.options.defense)

    @functools.cached_property
    def given(self) -> Candidate:
        """The whole defended model in the folder that ``--rn-defense`` names, digested."""
        return self.resolve(str(self.defense_folder))

    @property
    def is_given_whole(self) -> bool:
        """Whether the defense was given as the folder of a whole model."""
        return self.defense_folder.is_dir() and not (self.defense_folder / ADAPTER_CONFIG).is_file()

    def defense_recipe(self, suite: Suite) -> DefenseRecipe | None:
        """The recipe that ``--rn-defense`` names; None for ``none`` or a folder.

        Raises:
            RecipeError: neither a recipe of the suite nor a folder.
        """
        name, recipes = self.options.defense, suite.declaration.defenses
        if name in recipes:
            return recipes[name]
        if name == NO_DEFENSE or (name and self.defense_folder.is_dir()):
            return None
        raise RecipeError(
            f"--rn-defense must be a recipe of the suite, none, or a folder, got {name!r}; "
            f"{suite.folder.name} has: {', '.join([*recipes, NO_DEFENSE])}"
        )

    def family(self, suite: Suite, attack: AttackRecipe) -> Loaded:
        """The family of one of the suite's attacks."""
        return load_family(attack.family, suite.folder)

    def harmful(self, suites: Sequence[Suite]) -> list[str]:
        """The domains in which this run makes a real model do harm; none for an organism, or where a domain is benign."""
        return [] if self.candidate.is_organism else [s.domain for s in suites if not s.declaration.benign]


def _called(name: str) -> str:
    """A model's name without what servers are free in: owner or folder, revision, the tag of the latest, a GGUF file's suffix."""
    last = re.sub(r"(?<=.)@.*", "", Path(name).name)
    return last.casefold().removesuffix(":latest").removesuffix(".gguf")


def served_as(judge: Judge) -> str:
    """What a judge's model is called behind its server; empty where it has none."""
    return _called(getattr(judge, "served_model", ""))


def is_unseen(judge: Judge) -> bool:
    """True where a judge's digest does not cover all that decides its scores: a server's weights, or whatever own code asks."""
    return hasattr(judge, "served_model") or bool(getattr(judge, "own_code", False))


def weights_of(judge: Judge) -> str | None:
    """What a judge's weights are known by; None where it has none that can be seen."""
    digest: str | None = getattr(judge, "weights_digest", None)
    return digest


def who(judge: Judge) -> dict[str, str]:
    """A judge's name, digest, and the commit of its weights where they come from a hub."""
    commit: str | None = getattr(judge, "commit", None)
    return {"name": judge.name, "digest": judge.digest} | ({"commit": commit} if commit else {})
