"""The candidate, judges, recipes and families that a run's options and suites name. Nothing is trained or measured."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rn_harness.attacks.family import Loaded, load_family
from rn_harness.judges.anchors import AnchorSet, load_anchors, suite_anchors
from rn_harness.judges.protocol import Judge, SharedJudge
from rn_harness.judges.resolve import resolve_judge, resolve_suites_judge
from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import RETAIN_FILE, hash_files, weights_digest
from rn_harness.models.resolve import ADAPTER_CONFIG, resolve_candidate
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.errors import JudgeError, RecipeError
from rn_harness.spec.options import ORGANISM, Options
from rn_harness.spec.prompts import PROMPT_SETS
from rn_harness.spec.retain import Retained, check_retained, read_retained
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import device
from rn_harness.store.ranks import ranks
from rn_harness.training.trainer_settings import Sampler
from rn_harness.verdict.coherence import told_judges
from rn_harness.verdict.validity import NO_DEFENSE

NO_JUDGE = "none"
MAKERS = "makers"
"""Name of a defense that the model's makers applied."""


@dataclass(frozen=True, slots=True)
class SuiteJudges:
    """The judges of a suite: of checkpoints, of rewards, and for a second opinion; each knows what the suite forbids."""

    evaluation: Judge
    reward: Judge
    second: Judge | None

    @property
    def names(self) -> str:
        """The judges in one line, for headers and records."""
        second = judge_identity(self.second) if self.second else None
        return told_judges(judge_identity(self.evaluation), judge_identity(self.reward), second)

    @property
    def distinct(self) -> list[Judge]:
        """Each judge once."""
        return list({j.digest: j for j in (self.evaluation, self.reward, self.second) if j is not None}.values())


def normalized_model_name(name: str) -> str:
    """A model's name without owner, folder, revision, server tag and GGUF suffix: servers are free to change these."""
    last = re.sub(r"(?<=.)@.*", "", Path(name).name)
    return last.casefold().removesuffix(":latest").removesuffix(".gguf")


def is_opaque(judge: Judge) -> bool:
    """True if a judge's digest does not cover all that decides its scores: a server's weights, or the user's own code."""
    return hasattr(judge, "served_model") or bool(getattr(judge, "own_code", False))


def model_of(judge: Judge) -> tuple[str, str | None]:
    """The name of a judge's model on its server, empty without a server, and the digest of weights that it has here."""
    return normalized_model_name(getattr(judge, "served_model", "")), getattr(judge, "weights_digest", None)


def same_model(one: Judge, other: Judge) -> bool:
    """True if two judges are one model: the same judge, the same weights, or one name on two servers."""
    return one.digest == other.digest or any(a and a == b for a, b in zip(model_of(one), model_of(other), strict=True))


def judge_identity(judge: Judge) -> dict[str, str]:
    """A judge's name and digest, and the commit of its weights if they come from a hub."""
    commit: str | None = getattr(judge, "commit", None)
    return {"name": judge.name, "digest": judge.digest} | ({"commit": commit} if commit else {})


@dataclass
class Participants:
    """Finds the models, judges and recipes that a user's options name, each once."""

    options: Options
    _judges: dict[str, Judge] = field(default_factory=dict, init=False)
    _checked: set[str] = field(default_factory=set, init=False)
    _anchors: dict[str, AnchorSet | None] = field(default_factory=dict, init=False)
    _retained: dict[str, tuple[Retained, ...]] = field(default_factory=dict, init=False)

    @functools.cached_property
    def candidate(self) -> Candidate:
        """The undefended model, digested: the one to defend, or the undefended twin of a model that its makers defended."""
        return self.resolve(self.options.undefended or self.options.model)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """The sampler of training; a ``RecipeError`` if the option names none."""
        return Sampler.of(self.options.sampler)

    @functools.cached_property
    def released(self) -> Candidate | None:
        """The model that its makers defended, digested; None if the defense is trained here or given as a folder."""
        return self.resolve(self.options.model) if self.options.undefended else None

    @property
    def defense_name(self) -> str:
        """The defense's name in verdicts."""
        return MAKERS if self.options.undefended else self.options.defense

    @property
    def on(self) -> Literal["cpu", "cuda"]:
        """The device that the model under test runs on in this process."""
        return "cpu" if device() == "cpu" else "cuda"

    def resolve(self, spec: str) -> Candidate:
        """A model that the user named, with the permissions that the user gave its files."""
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

    def judges(self, suite: Suite) -> SuiteJudges:
        """The judges of this suite: the option's judge, else the organism's own, else the suite's default.

        The second judge is the option's, else the suite's. An organism as candidate has none by default.
        A ``JudgeError`` if one of them cannot be found, or is the candidate itself.
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
        return SuiteJudges(
            evaluation=self._judge(evaluation, suite, typed=bool(options.judge or own)),
            reward=self._judge(reward, suite, typed=bool(options.reward_judge or own)),
            second=self._judge(second, suite, typed=bool(options.second_judge)) if second else None,
        )

    def _judge(self, spec: str, suite: Suite, *, typed: bool) -> Judge:
        """A judge that the user typed, or that the suite's file names."""
        folder, resolve = (self.options.base, resolve_judge) if typed else (suite.folder, resolve_suites_judge)
        key = f"{folder} {spec}"
        if key not in self._judges:
            judge = resolve_judge(f"{ORGANISM}:{self.candidate.folder}", folder) if spec == ORGANISM else resolve(spec, folder)
            served, weights = model_of(judge)
            if weights in self._weights_under_test or {served, served.partition(":")[0]} & self._names_under_test:
                raise JudgeError(
                    f"a model must not judge itself, got judge={spec} for candidate={self.candidate.name}; name another, or, "
                    "if it is another, have its server call it otherwise"
                )
            self._judges[key] = judge
        instructed = self._judges[key].about(suite.declaration.forbidden)
        return SharedJudge(instructed) if ranks().size > 1 else instructed

    @functools.cached_property
    def _weights_under_test(self) -> set[str]:
        """Digests of the candidate's weights, and of those of a whole defended model."""
        whole = {weights_digest(hash_files(self.defense_folder, follow_links=True))} if self.is_given_whole else set()
        return whole | {of.weights_digest for of in (self.candidate, self.released) if of}

    @functools.cached_property
    def _names_under_test(self) -> set[str]:
        """Names that a server may give to the models under test; a server's weights cannot be compared."""
        names = [self.defense_folder.name] if self.defense_folder.is_dir() else []
        for of in (self.candidate, self.released):
            if of:
                hub = of.name.partition("@")[0] if of.revision else of.name
                cached = next((p.name.rpartition("--")[2] for p in of.folder.parents if p.name.startswith("models--")), "")
                names += [hub, cached, of.gguf or of.folder.name, of.profile.model if of.profile else ""]
        return {normalized_model_name(name) for name in names} - {""}

    def check_judges(self, suite: Suite) -> None:
        """Checks once that each judge can judge the suite's prompts; a judge on a server gets a real question."""
        if suite.digest not in self._checked:
            self.anchors(suite)
            for judge in self.judges(suite).distinct:
                judge.check([p for of_set in suite.prompts.values() for p in of_set])
            self._checked.add(suite.digest)

    @functools.cached_property
    def labels(self) -> AnchorSet | None:
        """The lab's own labelled texts; a ``JudgeError`` if the file cannot be read as anchors."""
        return load_anchors(self.options.path(self.options.labels)) if self.options.labels else None

    def anchors(self, suite: Suite) -> AnchorSet | None:
        """The suite's own anchors; None: it has none. A ``JudgeError`` if they are no whole exam."""
        if suite.anchors_file is None:
            return None
        digest = suite.digest
        if digest not in self._anchors:
            self._anchors[digest] = suite_anchors(suite)
        return self._anchors[digest]

    def retained(self, suite: Suite) -> tuple[Retained, ...]:
        """The benign prompts, besides anchors, that a distilled defense of this suite keeps the answers to.

        They are those of ``--rn-retain``, else of the candidate's folder, and those of the suite. Raises SuiteError if they
        cannot be read, or overlap with the suite's other prompts.
        """
        if suite.digest not in self._retained:
            options, beside = self.options, self.candidate.folder / RETAIN_FILE
            path = options.path(options.retain) if options.retain else beside if beside.is_file() else None
            found = read_retained(path) if path else ()
            if path:
                check_retained(path, found, [p for name in PROMPT_SETS if name != "anchor" for p in suite.prompts[name]])
            self._retained[suite.digest] = (*found, *map(Retained, suite.prompts.get("retain", ())))
        return self._retained[suite.digest]

    def reward_judge(self, suite: Suite, attack: AttackRecipe) -> Judge:
        """The judge that rewards an attack; it knows what is forbidden in the domain of the attack's prompts."""
        reward = self.judges(suite).reward
        return reward.about(suite.neighbours[attack.neighbour].forbidden) if attack.neighbour else reward

    @property
    def defense_folder(self) -> Path:
        """The folder that ``--rn-defense`` names if it names no recipe."""
        return self.options.path(self.options.defense)

    @functools.cached_property
    def given(self) -> Candidate:
        """The whole defended model in the folder that ``--rn-defense`` names, digested."""
        return self.resolve(str(self.defense_folder))

    @property
    def is_given_whole(self) -> bool:
        """True if the defense was given as the folder of a whole model."""
        return self.defense_folder.is_dir() and not (self.defense_folder / ADAPTER_CONFIG).is_file()

    def defense_recipe(self, suite: Suite) -> DefenseRecipe | None:
        """The recipe that ``--rn-defense`` names; None for ``none`` or a folder."""
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
        """The domains in which this run makes a real model do harm; none for an organism, or for a benign domain."""
        return [] if self.candidate.is_organism else [s.domain for s in suites if not s.declaration.benign]
