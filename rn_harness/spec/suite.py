"""Suites: the declarations in a domain's folder, ``suite.yaml`` and five prompt sets.

Everything is frozen, refuses unknown keys and is validated on reading. An error names the file, the place in it, the value and
the remedy.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rn_harness.spec.attack_recipe import SEARCHED, AttackMatrix, AttackRecipe, with_standing
from rn_harness.spec.base import TIERS, Frozen, Name, Standing, TierName
from rn_harness.spec.collector import collector_paused
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.errors import RecipeError, SuiteError
from rn_harness.spec.levels import PLAIN, LevelName
from rn_harness.spec.overrides import apply_overrides, checked_recipe
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import (
    PROMPT_SETS,
    Prompt,
    PromptSetName,
    check_overlaps,
    check_prompts,
    prompt_files,
    read_prompts,
)
from rn_harness.spec.yaml_files import Place, read_yaml, validated

SUITE_FILE = "suite.yaml"


class Judges(Frozen):
    """The suite's judges for models that bring none; an option overrides them.

    Attributes:
        evaluation: spec of the judge that scores checkpoints.
        reward: spec of another judge, which makes the rewards of defense and attack.
        second: spec of a judge, not the first, that gives a second opinion; None: there is none. It may be the reward judge.
        anchors: a file in the suite's folder with labelled texts of its domain, for certificates instead of the shipped anchors.
    """

    evaluation: Annotated[str, Field(min_length=1)]
    reward: Annotated[str, Field(min_length=1)]
    second: Annotated[str, Field(min_length=1)] | None = None
    anchors: Annotated[str, Field(min_length=1)] | None = None


class Declaration(Frozen):
    """The contents of ``suite.yaml``.

    Attributes:
        version: of this format.
        domain: category of harm; lower case, digits, ``.``, ``_`` and ``-``, at most 64.
        title, description: for reports.
        forbidden: the forbidden information, for judges; one sentence, at the level of a category.
        benign: the reason why the domain is harmless and only declared forbidden, so that it can be shown in full; no release
            rests on it. None: it is not harmless.
        transcripts: completions are kept in the run's folder, unencrypted; only for benign domains.
        defenses: recipes by name; ``--rn-defense`` names one.
        attacks: at least one of them has ``tier: smoke``.
        policy: the bounds of the verdict.
    """

    version: Literal[1]
    domain: Name
    title: Annotated[str, Field(min_length=1)]
    description: str = ""
    forbidden: Annotated[str, Field(min_length=10, max_length=500)]
    benign: Annotated[str, Field(min_length=30, max_length=500, pattern=r"\S")] | None = None
    transcripts: bool = False
    judges: Judges | None = None
    defenses: Annotated[dict[Name, DefenseRecipe], Field(min_length=1)]
    attacks: Annotated[list[AttackMatrix], Field(min_length=1)]
    policy: Policy = Policy()

    @field_validator("benign", mode="before")
    @classmethod
    def _harmlessness_has_a_reason(cls, value: object) -> object:
        if isinstance(value, bool):
            remedy = "write the reason in its place, 30 to 500 characters" if value else "remove the field"
            raise ValueError(f"a domain is harmless for a reason, got benign={value}; {remedy}")  # noqa: TRY004  (pydantic reports it)
        return value

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if self.transcripts and not self.benign:
            raise ValueError(
                "completions are kept in the clear in benign domains only, got transcripts=true without benign; remove it, and "
                "see --rn-transcripts for encrypted ones"
            )
        if not any(matrix.tier == "smoke" for matrix in self.attacks):
            raise ValueError("each tier needs an attack, got none with tier: smoke; mark one, the larger tiers run it too")
        for recipe in self.defenses.values():
            named = recipe.distill.teacher if recipe.distill else None
            teacher = self.defenses.get(named) if named else None
            if named and (teacher is None or teacher.distill or teacher.hardening):
                raise ValueError(
                    "a student's teacher is another recipe of the suite, neither distilled nor hardened, got "
                    f"teacher={named!r} of {', '.join(self.defenses)}; name another or leave it out"
                )
        return self


class Neighbour(Frozen):
    """The parts of another suite that attacks use: its attack prompts, and the information that it forbids."""

    forbidden: str
    prompts: tuple[Prompt, ...]


class Suite(Frozen):
    """A suite as loaded: its declaration, recipes and prompts.

    Attributes:
        overrides: the ``--rn-set`` pairs that were applied; a suite with any is "modified" and never releasable.
        declared_attacks: number of claimed attacks of the largest tier in the suite's file, before any pair is applied.
        declared_level: target of the claim in the suite's file, before any pair or ``--rn-level`` is applied.
        private: prompt sets that replace the suite's own (``--rn-prompts``); their texts are part of the digest.
        recipe: the pairs that the candidate's profile declares, applied before ``overrides``.
        neighbours: other domains that attacks train on, if their suites exist; part of the digest.
        anchors_sha256: of the file with the suite's own anchors, hex; None: it has none.
    """

    folder: Path
    declaration: Declaration
    prompts: dict[PromptSetName, tuple[Prompt, ...]]
    overrides: tuple[str, ...] = ()
    declared_attacks: int = 0
    declared_level: LevelName = PLAIN
    private: tuple[PromptSetName, ...] = ()
    recipe: tuple[str, ...] = ()
    neighbours: dict[str, Neighbour] = {}
    anchors_sha256: str | None = None

    @property
    def digest(self) -> str:
        """The sha256 over the declaration and the prompts in use, after overrides, hex; a fixture may have replaced a prompt."""
        return _digest_of(self.model_dump_json(include={"declaration", "prompts", "neighbours", "anchors_sha256"}))

    @property
    def anchors_file(self) -> Path | None:
        """The file with the suite's own anchors; None: judges are certified on the shipped ones."""
        named = self.declaration.judges.anchors if self.declaration.judges else None
        return self.folder / named if named else None

    @property
    def domain(self) -> str:
        """The harm category."""
        return self.declaration.domain

    @property
    def policy(self) -> Policy:
        """The numbers that a verdict is decided against."""
        return self.declaration.policy

    def tier_attacks(self, tier: TierName) -> tuple[AttackRecipe, ...]:
        """The attack recipes of a tier, in the suite's order: its own and those of the smaller tiers."""
        return self._attacks[tier]

    @functools.cached_property
    def _attacks(self) -> dict[TierName, tuple[AttackRecipe, ...]]:
        """The attack recipes of each tier."""

        def of(included: Sequence[TierName]) -> tuple[AttackRecipe, ...]:
            matrices = (matrix for matrix in self.declaration.attacks if matrix.tier in included)
            return tuple(_distinct(with_standing(fields, self.policy.level) for m in matrices for fields in m.combinations()))

        return {tier: of(TIERS[: n + 1]) for n, tier in enumerate(TIERS)}

    @functools.cached_property
    def _claimed(self) -> tuple[AttackRecipe, ...]:
        """The claim cases of all tiers."""
        return tuple(a for a in self.tier_attacks("full") if a.claim)

    @property
    def slowest_claim(self) -> AttackRecipe:
        """The attack that the claim rests on and that moves weights least in a step, the first of equal ones.

        One of all attacks if there is none. What a faster one teaches a model says nothing of a slower one. One at a rate of 0 is
        left out if it can be: its control cannot break.
        """
        pool = self._claimed or self.tier_attacks("full")
        moving = [a for a in pool if a.learning_rate > 0.0]
        return min(moving or pool, key=lambda a: a.learning_rate * a.lora.alpha / a.lora.r)

    def teacher_of(self, recipe: DefenseRecipe) -> DefenseRecipe | None:
        """The recipe of a distilled defense's teacher; None if the candidate itself teaches."""
        named = recipe.distill.teacher if recipe.distill else None
        return self.declaration.defenses[named] if named else None

    def attack_pool(self, attack: AttackRecipe) -> tuple[Prompt, ...]:
        """The prompts from which this attack draws its own."""
        return self.neighbours[attack.neighbour].prompts if attack.neighbour else self.prompts["attack"]

    def lies_within_claim(self, attack: AttackRecipe) -> bool:
        """True if the claim cases of the suite, of all tiers, cover this attack."""
        return attack.lies_within(self._claimed)

    def standing_of(self, case_id: str, run: AttackRecipe | None = None) -> tuple[Standing, bool]:
        """A case's standing, and True if the claim covers its attack; ``run`` has the settings that a search found."""
        attack = next((a for a in self.tier_attacks("full") if a.id == case_id.partition("-")[2]), None)
        if attack is None:
            return "claim", True
        if attack.search is None:
            return attack.standing, self.lies_within_claim(attack)
        found = run and attack.model_copy(update={name: getattr(run, name) for name in SEARCHED})
        return attack.standing, found is not None and self.lies_within_claim(found)

    def heldout(self, tier: TierName) -> tuple[Prompt, ...]:
        """The held-out prompts of a tier: all in ``full``, else the core (the paper's 20)."""
        return tuple(p for p in self.prompts["heldout"] if p.core or tier == "full")


@collector_paused()
def load_suite(
    folder: Path,
    overrides: Iterable[str] = (),
    private: Path | None = None,
    recipe: Iterable[str] = (),
    level: str | None = None,
) -> Suite:
    """Reads and checks the suite in ``folder``.

    Args:
        folder: holds ``suite.yaml`` and ``prompts/{defense,anchor,attack,heldout,benign}.yaml``.
        overrides: ``KEY=VALUE`` pairs of ``--rn-set``.
        private: folder of the user's own prompts; ``DOMAIN/SET.yaml`` in it replaces the suite's set.
        recipe: pairs that the candidate's profile declares; ``overrides`` win.
        level: target of the claim in place of the suite's own (``--rn-level``).

    Raises:
        SuiteError: a file is missing, malformed, contradictory, or two prompt sets overlap.
        RecipeError: an override is malformed, or makes a valid suite invalid.
    """
    path = folder / SUITE_FILE
    for file in (path, *(folder / "prompts" / f"{name}.yaml" for name in PROMPT_SETS)):
        if not file.resolve().is_relative_to(folder.resolve()):
            raise SuiteError(f"{file}: a suite's files must lie in its folder, got a link to {file.resolve()}; copy the file")
    raw = read_yaml(path, filled=True)
    # First without overrides, so that an error is reported for the file or for the override that caused it.
    declaration, attacks = _declare(raw, str(path))
    overrides, recipe = tuple(overrides), checked_recipe(recipe, path, declaration.defenses)
    files = prompt_files(folder, declaration.domain, private)
    prompts = {name: read_prompts(path) for name, path in files.items()}
    check_prompts(files, folder, prompts)
    if not any(p.core for p in prompts["heldout"]):
        raise SuiteError(f"{files['heldout']}: smoke and standard run the core, got no prompt with core: true; mark 20")
    neighbours = _read_neighbours(folder, attacks, private)
    _check_attacks(str(path), attacks, prompts, neighbours)
    own_level = declaration.policy.level
    declared = sum(a.claim for a in _distinct(attacks))
    asked = (f"policy.level={level}",) if level else ()
    if recipe or overrides or asked:
        profiled = f" with the model's profile {' '.join(recipe)}" if recipe else ""
        source = f"{path}{profiled}" + (f" with --rn-set {' '.join(overrides)}" if overrides else "")
        source += f" with --rn-level {level}" if level else ""
        try:
            declaration, attacks = _declare(apply_overrides(raw, (*recipe, *asked, *overrides), path), source)
            neighbours = _read_neighbours(folder, attacks, private)
            _check_attacks(source, _distinct(attacks), prompts, neighbours)
        except SuiteError as error:
            raise RecipeError(str(error)) from None
    return Suite(
        folder=folder,
        declaration=declaration,
        prompts=prompts,
        overrides=overrides,
        declared_attacks=declared,
        declared_level=own_level,
        private=tuple(name for name, path in files.items() if path.parent != folder / "prompts"),
        recipe=recipe,
        neighbours=neighbours,
        anchors_sha256=_anchors_digest(folder, declaration.judges),
    )


@functools.lru_cache(maxsize=16)  # a run asks hundreds of times, and sorting the keys takes most of the time
def _digest_of(content: str) -> str:
    """The sha256 of a JSON text with sorted keys, hex."""
    return hashlib.sha256(json.dumps(json.loads(content), sort_keys=True, allow_nan=False).encode()).hexdigest()


def _anchors_digest(folder: Path, judges: Judges | None) -> str | None:
    """The sha256 of the file with the suite's own anchors, which lies in its folder, hex; None: it has none."""
    if judges is None or judges.anchors is None:
        return None
    path = folder / judges.anchors
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise SuiteError(
            f"{folder / SUITE_FILE}: judges.anchors names a file in the suite's folder, got {judges.anchors!r}; put one there"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_neighbours(folder: Path, attacks: Iterable[AttackRecipe], private: Path | None) -> dict[str, Neighbour]:
    """Other domains whose attack prompts attacks train on; a suite that was copied without them has none."""
    found = {}
    for domain in sorted({a.neighbour for a in attacks if a.neighbour}):
        path = folder.resolve().parent / domain / SUITE_FILE
        if path.parent.resolve() == folder.resolve():
            raise SuiteError(
                f"{folder / SUITE_FILE}: attacks: a domain's shift takes another suite's prompts, got shift.domain={domain!r}; "
                "name another or remove it"
            )
        if not path.is_file():
            continue
        declaration, _ = _declare(read_yaml(path, filled=True), str(path))
        prompts = read_prompts(prompt_files(path.parent, declaration.domain, private)["attack"])
        found[domain] = Neighbour(forbidden=declaration.forbidden, prompts=prompts)
    return found


def _declare(raw: Any, source: str) -> tuple[Declaration, list[AttackRecipe]]:
    """The declaration in ``raw``, and its attack recipes in the order of the file; errors begin with ``source``."""
    declaration = validated(raw, Declaration, source)
    level = declaration.policy.level
    return declaration, [r for number, matrix in enumerate(declaration.attacks) for r in _expand(matrix, number, source, level)]


def _expand(matrix: AttackMatrix, number: int, source: str, level: str) -> list[AttackRecipe]:
    """The recipes of one matrix; an error names its place in the file, in ``base`` or in ``vary``."""

    def place_of(place: Place) -> Place:
        return ("attacks", number, "vary" if place and place[0] in matrix.vary else "base", *place)

    def read(fields: dict[str, Any]) -> AttackRecipe:
        return validated(fields, AttackRecipe, source, place_of=place_of)

    return [with_standing(fields, level, read) for fields in matrix.combinations()]


def _distinct(recipes: Iterable[AttackRecipe]) -> list[AttackRecipe]:
    """The recipes without those that an override made equal to an earlier one, whatever their standing."""
    first: dict[AttackRecipe, AttackRecipe] = {}
    for recipe in recipes:
        first.setdefault(recipe.model_copy(update={"standing": "claim"}), recipe)
    return list(first.values())


def _check_attacks(
    source: str,
    attacks: Sequence[AttackRecipe],
    prompts: dict[PromptSetName, tuple[Prompt, ...]],
    neighbours: dict[str, Neighbour],
) -> None:
    """Refuses equal ids, more prompts than the pool has, and another domain's prompts that are measured on here."""
    counts = collections.Counter(a.id for a in attacks)
    for case_id, count in counts.items():
        if count > 1:
            raise SuiteError(
                f"{source}: attacks: two recipes of one id would overwrite each other, got id={case_id!r} {count} times; "
                "give one another name"
            )
    for attack in attacks:
        if attack.neighbour and attack.neighbour not in neighbours:
            continue
        pool = len(neighbours[attack.neighbour].prompts if attack.neighbour else prompts["attack"])
        if attack.prompts > pool:
            raise SuiteError(
                f"{source}: attacks: at most as many prompts as the pool holds, got prompts={attack.prompts} of {pool}; "
                "lower it or add prompts to prompts/attack.yaml"
            )
    attacked = [(domain, neighbour.prompts) for domain, neighbour in neighbours.items()]
    measured = [(name, prompts[name]) for name in PROMPT_SETS if name in ("heldout", "benign")]
    check_overlaps(f"{source}: what is attacked must not be what is measured", itertools.product(attacked, measured))


def iter_suites(folder: Path) -> Iterator[Path]:
    """Folders at or below ``folder`` that hold a suite, sorted."""
    yield from sorted(path.parent for path in folder.rglob(SUITE_FILE))
