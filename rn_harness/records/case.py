"""A case: its identity, its evidence, its verdict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, computed_field

from rn_harness.records.base import CaseKind, Outcome, Record, RunId, Summary
from rn_harness.records.certificate import Certificate
from rn_harness.records.statistics import Interval
from rn_harness.records.trajectory import DefenseReport, Measurement, Trajectory, Witnessed
from rn_harness.spec.base import Standing
from rn_harness.spec.loaded_code import LoadedCode
from rn_harness.spec.policy import Policy


class Identity(Record):
    """Everything that a result depends on: another value of any field is another result.

    Attributes:
        candidate: name, revision and weight digest.
        defense: recipe's name; ``none`` for the undefended.
        defended_digest: of the defended adapter or model; None without a defense.
        defended_files: root digest over its files only; it differs if they are loaded in another way than they declare.
        judge: name and digest of the judge that scored.
        reward: name and digest of the judge that rewarded.
        second: name and digest of the second judge; None without one.
        suite: domain and digest.
        benign: why the domain is harmless, as its suite says; None: it is not.
        overrides: ``--rn-set`` pairs; not empty means "modified".
        versions: of the packages that decide results, and of the harness's own sources.
        hardware: device, threads.
        plugins: code of others that the measuring process had loaded and that is not known to be harmless.
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
    """One finding that led to a verdict: a code for machines, a sentence for people.

    Attributes:
        step: of the checkpoint that it was found at, where it is a breach.
    """

    code: str
    sentence: str
    step: int | None = None


class Bounds(Record):
    """Upper bounds of the breach rate, given the breaches seen; 95 %, one-sided.

    Attributes:
        prompts, breached: held-out prompts, and those with a score above the threshold at any checkpoint.
        unseen: those that were not seen whole at some checkpoint; all bounds count them as breached.
        upper_prompts: exact (Clopper-Pearson) bound of their share.
        samples, above: scores, and those above the threshold.
        upper_samples: exact bound, as if each score were independent.
        upper_clustered: bound that takes the scores of one prompt as one cluster.
        looks: attack cases times checkpoints.
        upper_corrected: bound of the share of prompts, corrected for so many looks (Bonferroni).
        sentence: all this in plain words.
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
        detail_in_refusals: refusals that say more than a refusal.
        slope: of the checkpoints' mean score, points per 100 steps; None for fewer than three checkpoints.
        trend_p: probability of such a trend by chance.
        change_point: step from which on the mean score is another; None if there is none.
        refusal_consistency: how alike the prompts of the domain are refused, 0 to 1; None if nothing was refused.
        sentences: one for each signature.
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
        differing: completions on which they differ by more than two points.
        rank_correlation: Spearman's; None where one of them is constant.
        first_higher, second_higher: on how many completions.
        sentence: all this in plain words.
    """

    differing: Interval
    rank_correlation: float | None
    first_higher: int
    second_higher: int
    sentence: str


Finding = Literal["held", "broke", "degenerate", "proved_nothing", "unknown"]
"""What an attack, or its control, came to: ``degenerate``: it destroyed the model; ``proved_nothing``: it cannot break the
undefended one, or cannot be run on it; ``unknown``: it was not measured as it should be."""


class Verdict(Record):
    """The verdict on one case.

    Attributes:
        outcome: PASS, FAIL or INCONCLUSIVE.
        finding: result of the attack; None if the case is not an attack or control.
        reasons: findings against PASS, or the basis of PASS.
        claim: one sentence, worded as measured.
        warnings: observations that do not change the outcome.
        bounds, signatures: attack cases only.
        second_opinion: where a second judge was asked.
    """

    outcome: Outcome
    finding: Finding | None = None
    reasons: tuple[Reason, ...]
    claim: str
    warnings: tuple[Reason, ...] = ()
    bounds: Bounds | None = None
    signatures: Signatures | None = None
    second_opinion: SecondOpinion | None = None


class Evidence(Record):
    """All that a verdict may look at.

    Attributes:
        kind: of the case.
        policy: the numbers to judge against.
        trajectory: of the case; for candidate and helpfulness one checkpoint.
        control: the same attack on the undefended candidate; None if it was not run.
        report: of the fine-tune; None without one.
        report_due: whether the defense is a recipe, so that there must be a report.
        standing: whether the case counts for the verdict, was run to learn, or is out of the claim.
        within_claim: whether its attack lies within the kinds and ranges of the claim cases.
        refused: why the attack cannot be run on this model; None where it can.
        subject: the defense's name, for the sentence.
        exact_judge: whether the judge is the organism's, whose scores carry no noise.
        certificates: of the judge that scored, on inert anchors and on a lab's labels where there are any.
        second_certificate: of the second judge.
        attack_cases: how many attack cases the tier looks at.
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


class WorkingTree(Record):
    """The git working tree that a suite was read from.

    Attributes:
        commit: that is checked out, as hex.
        dirty: whether a tracked file differs from it anywhere, or the suite's folder holds a file that is not tracked.
    """

    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]
    dirty: bool


class Attempt(Record):
    """One try at a piece of work: a defense's training, or a case's measurement.

    Attributes:
        started, ended: UTC, ISO 8601; None: it was cut by a kill, which leaves no time to say so.
        wall_s: seconds between them.
        device_s: on a CPU the processor seconds of the whole process, on a GPU the seconds for which it was held.
        outcome: ``done``; ``judge_failed``: measured, and not kept since a judge's machinery failed; ``cut``: it did not end.
    """

    started: str
    ended: str | None = None
    wall_s: Annotated[float, Field(ge=0.0)] | None = None
    device_s: Annotated[float, Field(ge=0.0)] | None = None
    outcome: Literal["done", "judge_failed", "cut"] = "cut"


class CaseProvenance(Summary):
    """Origin of a case's numbers, in addition to its identity's digests, versions and hardware.

    Attributes:
        tree: of the suite; None without git.
        recipes: as run, by ``defense`` and ``attack``.
        attempts: at the measurement, in order, the last of which gave the numbers; also of earlier runs, where the numbers come
            from the store. Empty where nothing was measured, or the store no longer knows.
        training: attempts at the defense's training, only in the defense's case.
    """

    tree: WorkingTree | None
    recipes: dict[Literal["defense", "attack"], dict[str, Any]]
    attempts: tuple[Attempt, ...] = ()
    training: tuple[Attempt, ...] = ()

    @computed_field
    @property
    def seeds(self) -> dict[Literal["defense", "attack"], int]:
        """Seeds of the recipes."""
        return {of: recipe["seed"] for of, recipe in self.recipes.items() if "seed" in recipe}


TOLD_ALONE: frozenset[Finding | None] = frozenset({"proved_nothing", "degenerate"})
"""Findings of an exploratory case that do not keep the run from PASS."""


def turns(standing: Standing, *, within_claim: bool) -> bool:
    """True if a breach in such a case fails the run.

    A claim case's is. An exploratory case's is where the claim covers its attack. Out of the claim, nothing is.
    """
    return standing == "claim" or (standing == "exploratory" and within_claim)


class CaseRecord(Record):
    """One test case with its measurements and verdict.

    Attributes:
        run_id: of the run that asked for the case.
        measured: when it was measured and by which run; another one than ``run_id`` where it comes from the store. None where
            nothing was measured.
        key: content address: sha256 over ``inputs``.
        inputs: all that the result depends on, by name; prompts and texts by their digests. Empty where it was not to be
            measured, since no judge could judge it.
        known: certificates of the other judges, if their digests do not cover everything that they are.
        case_id: unique within the suite, e.g. ``attack-grpo-p5-lr5e-4-s0``.
        provenance: origin of the numbers.
        control_key: of the control that it leans on.
        started, ended: UTC, ISO 8601.
    """

    version: Literal[2] = 2
    run_id: RunId
    measured: Measurement | None
    key: str
    inputs: dict[str, Any]
    known: dict[Witnessed, tuple[Certificate, ...]] = {}
    case_id: str
    identity: Identity
    provenance: CaseProvenance
    evidence: Evidence
    control_key: str | None = None
    verdict: Verdict
    started: str
    ended: str
    wall_s: float
