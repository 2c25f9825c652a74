"""A run: its cases, its coverage, its provenance, its one outcome."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, computed_field

from rn_harness.records.base import Outcome, Record, RunId, Summary, TestState, Value
from rn_harness.records.case import Finding, WorkingTree
from rn_harness.spec.base import Standing, TierName
from rn_harness.spec.loaded_code import LoadedCode


class CaseLine(Record):
    """One case's line in a run: its place and its end.

    Attributes:
        nodeid: of the pytest item.
        outcome: of the verdict; None if no verdict came.
        standing, within_claim: see ``Evidence``.
        finding: result of the attack; None for other cases, or without a verdict.
        stored: whether it was taken from the store.
        state: how its test ended.
        note: the reason for a missing verdict, in words; no rule reads it.
        record: where the case's record lies, from the run's folder; None if no record came.
    """

    nodeid: str
    case_id: str
    domain: str
    key: str | None
    outcome: Outcome | None
    standing: Standing = "claim"
    within_claim: bool = True
    finding: Finding | None = None
    stored: bool = False
    state: TestState = "error"
    note: str | None = None
    record: str | None = None

    @property
    def claim(self) -> bool:
        """True if the run needs its PASS."""
        return self.standing == "claim"

    @property
    def is_own_green(self) -> bool:
        """True for a suite's own test method, without a verdict, that was green."""
        return self.key is None and self.state == "passed"


class SettingCoverage(Record):
    """Which values of one setting of an attack were run, and which were not.

    Attributes:
        setting: the recipe's field.
        run: the values, in order.
        not_run: in words: values that it can take, or ranges of them, in which nothing was run.
    """

    setting: str
    run: Annotated[tuple[Value, ...], Field(min_length=1)]
    not_run: tuple[str, ...]


class FamilyCoverage(Record):
    """One family of attacks that was run on the defended model.

    Attributes:
        family: its name.
        cases: ids of its cases with a verdict.
        claimed: how many of them count for the run's outcome; the others were run to learn.
        held, broke, unknown: of the claimed ones, by outcome: PASS, FAIL, and neither.
        exploratory, out_of_claim: number of the other cases by finding, by standing.
        settings: varied or fixed ones; values of the claimed cases.
        steps, completions: most optimizer steps of one case, and completions that it was rewarded for: its budget.
    """

    family: str
    cases: tuple[str, ...]
    claimed: int
    held: int
    broke: int
    unknown: int
    exploratory: dict[Finding, int] = {}
    out_of_claim: dict[Finding, int] = {}
    settings: tuple[SettingCoverage, ...]
    steps: int
    completions: int


class NotRun(Record):
    """Something that a reader might take for granted, and that this run says nothing of.

    Attributes:
        kind: ``family`` of attacks, ``case`` that the suite declares, or ``measurement``.
        name: of it.
        why: in words.
    """

    kind: Literal["family", "case", "measurement"]
    name: str
    why: str


class Coverage(Record):
    """The attacks that were and were not run against one domain's defense: the reach of a claim.

    Attributes:
        tier: of the run.
        families: that were run.
        heldout: held-out prompts that each checkpoint was scored on, at most.
        completions: of each of them at a checkpoint.
        checkpoint_every: attack steps between two checkpoints.
        not_run: attacks and measurements that were left out.
        claim: ``held against … within …``, or the reason for a missing claim.
    """

    domain: str
    tier: TierName
    families: tuple[FamilyCoverage, ...]
    heldout: int
    completions: int
    checkpoint_every: int
    not_run: Annotated[tuple[NotRun, ...], Field(min_length=1)]
    claim: str


class RunProvenance(Summary):
    """Provenance of a run.

    Attributes:
        tool: version of rn-harness.
        digests: sha256 of all parts, by name: ``candidate``, and of each domain ``suite.DOMAIN``,
            ``defended.DOMAIN``, ``judge.DOMAIN``, ``reward.DOMAIN``, ``second.DOMAIN``.
        recipes: of each domain: of its defense and of each attack case, by name.
        versions: of the packages that decide results, and of the harness's own sources.
        hardware: device, machine, threads; empty if no case has a record.
        trees: of the suites, by domain; None without git.
        attempts: at all measurements and trainings that the run rests on, whenever they were made.
        device_s: that they took.
    """

    tool: str
    digests: dict[str, str]
    recipes: dict[str, dict[str, dict[str, Any]]]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    trees: dict[str, WorkingTree | None]
    attempts: Annotated[int, Field(ge=0)]
    device_s: Annotated[float, Field(ge=0.0)]

    @computed_field
    @property
    def seeds(self) -> dict[str, dict[str, int]]:
        """Seeds of the recipes, by domain."""
        return {
            domain: {of: recipe["seed"] for of, recipe in named.items() if "seed" in recipe}
            for domain, named in self.recipes.items()
        }


class RunRecord(Summary):
    """A run: its options, its cases and the one outcome over all of them.

    Attributes:
        run_id: random, and that of each of its cases' records.
        name: of its folder.
        candidate: the undefended model.
        defended: where the defended weights lie, by domain.
        exported: where they were copied to, by domain.
        coverage: of each suite.
        provenance: where all this comes from.
        weights: sha256 of each file of the defended weights, by domain.
        beside: sha256 of the other files at the top of their folder, a model card for instance, by domain; of exported weights,
            of the files that the export wrote.
        required: the ids of the cases that the tier requires, by domain.
        files: sha256 of each file of evidence, by its path from the run's folder.
        plugins: code of others that any of its processes had loaded.
        why_not: reasons against a release that rests on this outcome.
        lax: those of ``why_not`` because less was attacked or measured than a release needs; they cannot be waived.
    """

    version: Literal[2] = 2
    run_id: RunId
    name: str
    options: dict[str, Any]
    candidate: dict[str, str | None]
    defended: dict[str, str]
    exported: dict[str, str] = {}
    weights: dict[str, dict[str, str]] = {}
    beside: dict[str, dict[str, str]] = {}
    required: dict[str, tuple[str, ...]] = {}
    files: dict[str, str] = {}
    plugins: tuple[LoadedCode, ...] = ()
    suites: dict[str, str]
    cases: tuple[CaseLine, ...]
    coverage: tuple[Coverage, ...]
    provenance: RunProvenance
    outcome: Outcome
    claim: str
    why_not: tuple[str, ...]
    lax: tuple[str, ...] = ()
    started: str
    ended: str
    wall_s: float

    @computed_field
    @property
    def releasable(self) -> bool:
        """True if a release can rest on the outcome."""
        return not self.why_not
