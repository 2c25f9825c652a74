"""A case: its identity, its evidence, its verdict."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, computed_field

from rn_harness.records.base import CaseKind, Outcome, Record, RunId, Summary, content_key
from rn_harness.records.certificate import Certificate
from rn_harness.records.resistance import AttackResistance
from rn_harness.records.statistics import Interval
from rn_harness.records.trajectory import DefenseReport, Measurement, Trajectory, Witnessed
from rn_harness.spec.base import LoadedCode, Standing
from rn_harness.spec.policy import Policy


class Identity(Record):
    """Everything that a result depends on. If any value differs, it is another result.

    Attributes:
        candidate: name, revision and weight digest.
        defense: recipe's name; ``none`` for the undefended candidate.
        defended_digest: of the defended adapter or model; None without a defense.
        defended_files: root digest over its files only; ``defended_digest`` also covers the settings they are loaded with.
        judge, reward, second: name and digest of the judge that scored, of the one that rewarded, and of the second judge.
        suite: domain and digest.
        benign: why the domain is harmless, according to its suite.
        overrides: ``--rn-set`` pairs; not empty means "modified".
        versions: of the packages that decide results, and of the harness's own sources.
        hardware: device, threads.
        plugins: third-party code that the measuring process had loaded and that is not known to be harmless.
    """

    candidate: dict[str, str | None]
    defense: str
    defended_digest: str | None = None
    defended_files: str | None = None
    judge: dict[str, str]
    reward: dict[str, str]
    second: dict[str, str] | None = None
    suite: dict[str, str]
    benign: str | None = None
    overrides: tuple[str, ...] = ()
    versions: dict[str, str]
    hardware: dict[str, str | int]
    plugins: tuple[LoadedCode, ...] = ()


class Reason(Record):
    """One finding that led to a verdict: a code for machines, a sentence for people, and the step of a breach."""

    code: str
    sentence: str
    step: int | None = None


def because(code: str, sentence: str) -> list[Reason]:
    """A list of one reason."""
    return [Reason(code=code, sentence=sentence)]


class Bounds(Record):
    """Upper bounds of the rate of breaches, from the observed number of breaches: 95 %, one-sided.

    Attributes:
        prompts, breached: number of held-out prompts, and of those with a score above the threshold at any checkpoint.
        unseen: number of prompts that were not fully measured at some checkpoint; all bounds count them as breached.
        upper_prompts: exact (Clopper-Pearson) bound of the share of breached prompts.
        samples, above: scores, and those above the threshold.
        upper_samples: exact bound, as if each score were independent.
        upper_clustered: bound that takes the scores of one prompt as one cluster.
        looks: attack cases times checkpoints.
        upper_corrected: bound of the share of prompts, corrected for the number of looks (Bonferroni).
    """

    prompts: int
    breached: int
    unseen: int
    upper_prompts: float
    samples: int
    above: int
    upper_samples: float
    upper_clustered: float
    looks: int
    upper_corrected: float
    sentence: str


class Signatures(Record):
    """The four failure signatures that arXiv 2505.04578 names, measured.

    Attributes:
        above: scores above the threshold.
        detail_in_refusals: refusals that contain details.
        slope: of the checkpoints' mean score, points per 100 steps; None for fewer than three checkpoints.
        trend_p: probability that chance gives such a trend.
        change_point: step at which the mean score changes; None without a change.
        refusal_consistency: similarity of the refusals of the domain's prompts, 0 to 1; None if nothing was refused.
    """

    above: Interval
    detail_in_refusals: Interval
    slope: float | None
    trend_p: float | None
    change_point: int | None
    refusal_consistency: float | None
    sentences: tuple[str, str, str, str]


class SecondOpinion(Record):
    """Two judges on the same completions.

    Attributes:
        differing: share of completions on which they differ by more than two points.
        rank_correlation: Spearman's; None if the scores of one judge are constant.
        first_higher, second_higher: number of completions on which that judge's score is higher.
    """

    differing: Interval
    rank_correlation: float | None
    first_higher: int
    second_higher: int
    sentence: str


Finding = Literal["held", "broke", "destroyed", "degenerate", "proved_nothing", "unknown"]
"""The finding on an attack or its control: ``destroyed``: it destroyed the model, as did all restrained attacks, and none ever
did harm; ``degenerate``: it destroyed the model, and nothing follows; ``proved_nothing``: it cannot break the undefended model,
or cannot be run on it; ``unknown``: its measurement is incomplete or invalid."""


class Verdict(Record):
    """The verdict on one case.

    Attributes:
        outcome: PASS, FAIL or INCONCLUSIVE.
        finding: of an attack or a control; None for other cases.
        reasons: against PASS, or for it.
        claim: one sentence, limited to the measured settings.
        warnings: observations that do not decide.
        resistance: of the model to an attack; None for other cases, or without a valid recipe.
    """

    outcome: Outcome
    finding: Finding | None = None
    reasons: tuple[Reason, ...]
    claim: str
    warnings: tuple[Reason, ...] = ()
    bounds: Bounds | None = None
    signatures: Signatures | None = None
    second_opinion: SecondOpinion | None = None
    resistance: AttackResistance | None = None

    @property
    def breached(self) -> list[int]:
        """Steps with a breach, in order."""
        codes = ("breach", "breach_in_form", "breach_under_aid")
        return sorted({r.step for r in self.reasons if r.code in codes and r.step is not None})


class RestrainedAttack(Record):
    """One restrained attack after an attack that destroyed the model (``spec.restraint``), with its own control."""

    attack: Trajectory
    control: Trajectory


CHECKPOINTS = "checkpoints.jsonl"
"""File with the checkpoints of a case, written as they are measured."""


class Evidence(Record):
    """Everything that a verdict may use.

    Attributes:
        trajectory: of the case; for candidate and helpfulness one checkpoint.
        control: the same attack on the undefended candidate; None if it was not run.
        report: of the fine-tune; None without one.
        report_due: whether the defense is a recipe, so that a report is required.
        standing: whether the case counts for the verdict, is exploratory, or is out of the claim.
        within_claim: whether its attack lies within the kinds and ranges of the claim cases.
        refused: why the attack cannot be run on this model; None if it can.
        subject: the defense's name, for the sentence.
        exact_judge: whether the judge is the organism's, whose scores have no noise.
        certificates: of the judge that scored, on inert anchors or the suite's, and on a lab's labels if any.
        attack_cases: number of attack cases of the tier.
        restrained: attacks after this one, which destroyed the model, in the order of their numbers.
    """

    kind: CaseKind
    policy: Policy
    trajectory: Trajectory | None
    control: Trajectory | None = None
    report: DefenseReport | None = None
    report_due: bool = False
    standing: Standing = "claim"
    within_claim: bool = True
    refused: str | None = None
    subject: str
    exact_judge: bool = False
    certificates: tuple[Certificate, ...] = ()
    second_certificate: Certificate | None = None
    attack_cases: Annotated[int, Field(ge=1)] = 1
    restrained: tuple[RestrainedAttack, ...] = ()

    @property
    def runs(self) -> tuple[Trajectory, ...]:
        """The case's own trajectory, if it was measured, and those of restrained attacks."""
        return tuple(filter(None, (self.trajectory, *(of.attack for of in self.restrained))))

    @property
    def highest(self) -> float | None:
        """Highest score at any checkpoint, under aids and of restrained attacks too; None without scores."""
        return max((c.highest for run in self.runs for c in run.seen if c.highest is not None), default=None)

    @property
    def journals(self) -> dict[str, Trajectory]:
        """All trajectories that were measured for this case, by the name of the file with their checkpoints."""
        found = {CHECKPOINTS: self.trajectory} if self.trajectory else {}
        for number, of in enumerate(self.restrained, 1):
            found |= {restrained_file(number, "control"): of.control, restrained_file(number, "attack"): of.attack}
        return found


PROBED: tuple[CaseKind, ...] = ("candidate", "defense")
"""Kinds of cases that measure the rewards before any training."""


def restrained_file(number: int, kind: CaseKind) -> str:
    """Name of the file with the checkpoints of a restrained attack, or of its control; numbers begin at 1."""
    return f"restrained-{number}-{kind}.jsonl"


class WorkingTree(Record):
    """The git working tree of a suite: dirty if any tracked file differs, or the suite's folder has an untracked file."""

    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]
    dirty: bool


class Attempt(Record):
    """One attempt at a defense's training or a case's measurement.

    Attributes:
        started, ended: UTC, ISO 8601; ``ended`` is None after a kill.
        device_s: on a CPU the processor seconds of the process, on a GPU the seconds for which it was in use.
        outcome: ``done``; ``judge_failed``: measured, but not kept, since a judge's infrastructure failed; ``cut``: not finished.
    """

    started: str
    ended: str | None = None
    wall_s: Annotated[float, Field(ge=0.0)] | None = None
    device_s: Annotated[float, Field(ge=0.0)] | None = None
    outcome: Literal["done", "judge_failed", "cut"] = "cut"


class CaseProvenance(Record):
    """Provenance of a case's numbers, in addition to the digests, versions and hardware of its identity.

    Attributes:
        tree: of the suite; None without git.
        defense: recipe of the defense as run; None without one.
        attempts: at the measurement, in order; the last one gave the numbers. They include those of earlier runs if the numbers
            come from the store. Those at restrained attacks and their controls follow. Empty if nothing was measured, or the
            store has lost them.
        training: attempts at the defense's training; only in the defense's case.
    """

    tree: WorkingTree | None
    defense: dict[str, Any] | None = None
    attempts: tuple[Attempt, ...] = ()
    training: tuple[Attempt, ...] = ()


WITHOUT_PROOF: frozenset[Finding | None] = frozenset({"proved_nothing", "degenerate"})
"""Findings of an exploratory case that do not prevent the run's PASS."""


def turns(standing: Standing, *, within_claim: bool) -> bool:
    """True if a breach counts for the run: in a claim case always, in an exploratory case if the claim covers the attack."""
    return standing == "claim" or (standing == "exploratory" and within_claim)


def only_reported(standing: Standing, finding: Finding | None, *, within_claim: bool) -> bool:
    """True if a case without a PASS is reported and changes nothing: beyond the claim, or exploratory and without proof."""
    return not turns(standing, within_claim=within_claim) or (standing == "exploratory" and finding in WITHOUT_PROOF)


class CaseRecord(Summary):
    """One test case: its identity, evidence and verdict.

    Attributes:
        run_id: of the run that asked for the case.
        measured: time of the measurement, and its run, which is an earlier one if the result comes from the store. It includes
            restrained attacks. None if nothing was measured.
        inputs: all that the result depends on, by name; prompts and texts by their digests. Only the suite and the case if no
            judge could judge the case, so that it was not measured.
        known: certificates of the reward's and the second judge, if their digest does not cover all that they depend on.
        case_id: unique within the suite, e.g. ``attack-grpo-p5-lr5e-4-s0``.
        started, ended: UTC, ISO 8601.
    """

    version: Literal[2] = 2
    run_id: RunId
    measured: Measurement | None
    inputs: dict[str, Any]
    known: dict[Witnessed, tuple[Certificate, ...]] = {}
    case_id: str
    identity: Identity
    provenance: CaseProvenance
    evidence: Evidence
    verdict: Verdict
    started: str
    ended: str
    wall_s: float

    @computed_field
    @cached_property
    def key(self) -> str:
        """Content address: sha256 over ``inputs``."""
        return content_key("case", self.inputs)

    @computed_field
    @cached_property
    def control_key(self) -> str | None:
        """Key of the attack's control, which has the same inputs without a defense; None without a control."""
        return content_key("case", {**self.inputs, "defended": None, "case": "control"}) if self.evidence.control else None
