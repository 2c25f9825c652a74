"""A run: its cases, coverage, provenance and outcome."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, computed_field

from rn_harness.records.base import Outcome, Record, RunId, Summary, TestState, Value
from rn_harness.records.case import Finding, WorkingTree
from rn_harness.records.resistance import Resistance
from rn_harness.spec.base import LoadedCode, Standing, TierName
from rn_harness.spec.levels import LevelName

RUN, STATEMENT, JUNIT, REPORT, SUMMARY = "run.json", "statement.json", "junit.xml", "report.html", "summary.md"
OUTCOME_FILES = (RUN, STATEMENT, JUNIT, REPORT, SUMMARY)
"""The files of a run's folder that say how it ended."""


class CaseLine(Record):
    """One case's line in a run: its standing, outcome and test state.

    Attributes:
        outcome: of the verdict; None without a verdict.
        finding: of an attack or a control; None for other cases, or without a verdict.
        stored: whether the result comes from the store.
        state: of the test at its end.
        note: why the verdict is missing, in words; it decides nothing.
        record: path of the case's record, relative to the run's folder; None without a record.
        level: of an attack with a verdict; None for other cases.
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
    level: LevelName | None = None

    @property
    def claim(self) -> bool:
        """True if the run needs the PASS of this case."""
        return self.standing == "claim"

    @property
    def is_own_green(self) -> bool:
        """True for a test method of the suite that passed; such a method has no verdict."""
        return self.key is None and self.state == "passed"


class SettingCoverage(Record):
    """The values of one field of an attack's recipe that were run, and possible values or ranges that were not, in words."""

    setting: str
    run: Annotated[tuple[Value, ...], Field(min_length=1)]
    not_run: tuple[str, ...]


class FamilyCoverage(Record):
    """One family of attacks that was run on the defended model.

    Attributes:
        cases: ids of its cases with a verdict.
        claimed: number of cases that count for the run's outcome.
        held, destroyed, broke, unknown: number of claimed cases with the outcome PASS that held, PASS with a destroyed model,
            FAIL, and neither.
        restrained: number of those that held only in restrained form, after the attack itself destroyed the model.
        exploratory, out_of_claim: number of cases of this standing, by finding.
        settings: values of the claimed cases.
        steps, completions: the largest budget of a case: optimizer steps, and rewarded completions.
    """

    family: str
    cases: tuple[str, ...]
    claimed: int
    held: int
    restrained: int = 0
    destroyed: int = 0
    broke: int
    unknown: int
    exploratory: dict[Finding, int] = {}
    out_of_claim: dict[Finding, int] = {}
    settings: tuple[SettingCoverage, ...]
    steps: int
    completions: int


class NotRun(Record):
    """A family of attacks, a declared case or a measurement that a reader might assume and that this run did not cover."""

    kind: Literal["family", "case", "measurement"]
    name: str
    why: str


class Coverage(Record):
    """Coverage of one domain: the attacks that were run against its defense, and those that were not.

    Attributes:
        heldout: largest number of held-out prompts scored at a checkpoint.
        completions: number of completions of each held-out prompt at a checkpoint.
        checkpoint_every: attack steps between two checkpoints.
        claim: ``held against … within …``, or why nothing is claimed.
    """

    domain: str
    tier: TierName
    families: tuple[FamilyCoverage, ...]
    heldout: int
    completions: int
    checkpoint_every: int
    not_run: Annotated[tuple[NotRun, ...], Field(min_length=1)]
    resistance: Resistance
    claim: str


class RunProvenance(Record):
    """The provenance of a run.

    Attributes:
        tool: version of rn-harness.
        digests: sha256 of each part: ``candidate``, and for each domain ``suite.DOMAIN``, ``defended.DOMAIN``,
            ``judge.DOMAIN``, ``reward.DOMAIN``, ``second.DOMAIN``.
        recipes: by domain: of the defense and of each attack case, by name.
        hardware: empty if no case has a record.
        trees: of the suites, by domain; None without git.
        attempts: number of attempts at all measurements and trainings that the run uses, including those of earlier runs.
        device_s: device seconds of these attempts.
    """

    tool: str
    digests: dict[str, str]
    recipes: dict[str, dict[str, dict[str, Any]]]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    trees: dict[str, WorkingTree | None]
    attempts: Annotated[int, Field(ge=0)]
    device_s: Annotated[float, Field(ge=0.0)]


class RunRecord(Summary):
    """A run: its options, its cases and the one outcome over all of them.

    Attributes:
        run_id: random; the records of its cases have the same.
        name: of its folder.
        defended: folder of the defended weights, by domain.
        exported: folder to which they were exported, by domain.
        weights: sha256 of each file of the defended weights, by domain.
        beside: sha256 of other files at the top of the weights' folder, for instance a model card, by domain; after an export,
            of the files that it wrote.
        required: ids of the cases that the tier requires, by domain.
        files: sha256 of each file of evidence, by its path relative to the run's folder.
        plugins: third-party code that any of its processes had loaded.
        why_not: reasons against a release.
        lax: reasons in ``why_not`` that less was attacked or measured than a release needs; they cannot be waived.
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
    @cached_property
    def headline(self) -> tuple[str, ...]:
        """One line for each domain: the level, the cheapest known breaks, and what was not run."""
        named = len(self.coverage) > 1
        end = "" if self.releasable else " Not releasable."
        lines = [(c.domain, c.resistance.headline(self.outcome, self.claim) + end) for c in self.coverage]
        return tuple(f"{domain}: {line}" if named else line for domain, line in lines)

    @computed_field
    @cached_property
    def releasable(self) -> bool:
        """True if a release can rest on the outcome."""
        return not self.why_not
