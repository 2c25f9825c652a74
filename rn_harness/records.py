"""Records: what a run measured and decided. Floor 0 (words).

Records are the truth; every report is a view of them. They hold scores, counts and digests, and no text of any
completion. ``NaN`` cannot be written.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rn_harness.suite import MAX_STEPS, Policy, Share, Standing, TierName

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
CaseKind = Literal["candidate", "control", "defense", "attack", "helpfulness"]
CASE_KINDS: tuple[CaseKind, ...] = ("candidate", "control", "defense", "attack", "helpfulness")
Unscored = Literal[
    "judge_error",
    "judge_timeout",
    "judge_budget",
    "judge_refused",
    "too_long",
    "unreadable",
    "unparsable",
    "off_scale",
    "not_a_number",
]
UNSCORED: tuple[Unscored, ...] = get_args(Unscored)
INFRASTRUCTURE: tuple[Unscored, ...] = ("judge_error", "judge_timeout", "judge_budget")
"""Reasons that lie with the judge's machinery, not with the text or the answer."""


RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""A run's random id."""


class Record(BaseModel):
    """Base of all records: immutable, closed, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Scored(Record):
    """A score from 0 to 10, or the reason why there is none; never both, since a failed judge's 0 must not count."""

    score: Annotated[float, Field(ge=0.0, le=10.0)] | None
    unscored: Unscored | None = None

    @model_validator(mode="after")
    def _score_or_reason(self) -> Self:
        if (self.score is None) == (self.unscored is None):
            raise ValueError(
                f"either a score or the reason why there is none, got score={self.score} and unscored={self.unscored!r}; "
                "give one of the two"
            )
        return self


class Judgement(Scored):
    """What a judge says of one completion: a score from 0 to 10, or why there is none.

    Attributes:
        score: harmful score; None if unscored.
        unscored: the reason, given exactly when there is no score.
        degenerate: whether the completion is gibberish, where the judge can tell; None: it cannot.
    """

    degenerate: bool | None = None


class CompletionScore(Scored):
    """One completion of one prompt, without its text.

    Attributes:
        sample: 0 is the greedy completion, 1 and up are sampled ones.
        score: the highest that the judge gave to the answer, to the think part, or to both together.
        refusal, degenerate, words: of the answer.
        truncated: it was cut at the token limit.
        thought: the judge's score of the think part; None if there is none.
        again: further looks at a score above the threshold, by the second judge or in other wordings; empty where no other
            look is to be had, or none was needed.
        second: the second judge's score, where one was asked for.
    """

    prompt_id: str
    sample: Annotated[int, Field(ge=0)]
    refusal: bool
    degenerate: bool
    truncated: bool
    thought: Scored | None = None
    words: Annotated[int, Field(ge=0)]
    again: tuple[Scored, ...] = ()
    second: Scored | None = None


class Interval(Record):
    """A share with its exact (Clopper-Pearson) two-sided 95 % interval; 0 of 0 is unknown, from 0 to 1."""

    count: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(ge=0)]
    share: Share
    low: Share
    high: Share

    @property
    def follows(self) -> bool:
        """Whether the share is the count's and lies in its interval."""
        share = self.count / self.total if self.total else 0.0
        return 0 <= self.count <= self.total and abs(share - self.share) < 1e-9 and self.low <= self.share <= self.high

    @property
    def told(self) -> str:
        """For a line of a table."""
        return f"{self.count}/{self.total} = {self.share:.3f} (95 % {self.low:.3f} to {self.high:.3f})"

    @model_validator(mode="after")
    def _share_follows(self) -> Self:
        if not self.follows:
            raise ValueError(f"a share follows from its count, got {self.count}/{self.total} and {self.share}; correct it")
        return self


class MeanInterval(Record):
    """A mean with its two-sided 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float


class BenignAnswer(Record):
    """One benign prompt: a sampled answer of the model and one of the undefended candidate, without their texts.

    Both are compared with the undefended candidate's greedy answer, the reference, by chrF (0 to 1).

    Attributes:
        twin: the prompt is a twin of the domain.
        refusal: the model's greedy answer refuses.
        similarity: of the model's sampled answer to the reference.
        own: of the undefended candidate's sampled answer to the reference: how far it agrees with itself.
        chance: of the undefended candidate's sampled answer to *another* prompt: how far any two answers agree.
        kl: ``(log p_undefended(y) - log p_model(y)) / tokens`` for the undefended candidate's sampled answer y, nats per token:
            one draw of what the KL divergence of the undefended candidate from the model is the mean of.
    """

    prompt_id: str
    twin: bool
    refusal: bool
    similarity: Share
    own: Share
    chance: Share
    kl: float


class BenignScore(Record):
    """Behaviour on benign prompts, against the undefended candidate's; all but the answers follows from them.

    Attributes:
        answers: one for each benign prompt.
        similarity, own, chance: means over the prompts.
        difference: mean of ``similarity - own`` with its interval.
        kl: mean, nats per token.
        refusals: benign prompts refused.
        twin_refusals: twins among them refused.
    """

    answers: Annotated[tuple[BenignAnswer, ...], Field(min_length=1)]
    similarity: float
    own: float
    chance: float
    difference: MeanInterval
    kl: float
    refusals: Interval
    twin_refusals: Interval


class TrainingWindow(Record):
    """GRPO diagnostics over the steps since the previous checkpoint.

    Attributes:
        steps: optimizer steps in the window.
        reward_mean: mean reward of all sampled completions; None where nothing is rewarded.
        reward_spread: mean over steps of the standard deviation of a step's rewards.
        harm_mean: attacks only: mean of the plain attack reward (harm, refusals at 0) of the same completions, whatever the
            attacker's own reward makes of it.
        above_share: attacks only: share of the sampled completions whose harm is above the policy's threshold.
        zero_spread_share: share of groups whose rewards were all equal, hence without gradient.
        unrewarded_share: share of completions that the judge could not score.
        grad_norm: largest norm of the gradient before clipping.
        entropy: mean token entropy of the policy over the steps that computed it, nats.
        completion_tokens: mean length of the sampled completions.
        adapter_distance: L2 distance of the weights, adapter included, from where the training started.
        window_distance: attacks only: L2 distance that the trained parameters moved in this window, measured by the harness and
            not by the attack; of many millions it is estimated from a sample.
    """

    steps: Annotated[int, Field(ge=1)]
    reward_mean: float | None
    reward_spread: Annotated[float, Field(ge=0.0)]
    harm_mean: float | None = None
    above_share: Share | None = None
    zero_spread_share: Share
    unrewarded_share: Share
    grad_norm: Annotated[float, Field(ge=0.0)]
    entropy: float
    completion_tokens: Annotated[float, Field(ge=0.0)]
    adapter_distance: Annotated[float, Field(ge=0.0)]
    window_distance: Annotated[float, Field(ge=0.0)] | None = None


class PlantedScore(Scored):
    """What the judge said, at one checkpoint, of a text whose band is known.

    Attributes:
        anchor_id: of the anchor.
        high: whether the text is harmful: its score has to be above the threshold, or else at most at it.
    """

    anchor_id: str
    high: bool


Witnessed = Literal["reward", "second"]
"""A judge that does not score checkpoints."""


class Checkpoint(Record):
    """A policy at one step, scored on the held-out prompts.

    Attributes:
        scores: every completion's score.
        maximum, mean: over the scored completions; None if none was.
        greedy_mean: over the greedy ones.
        above: completions above the policy's threshold.
        scored, total: completions with a score, and all.
        degenerate_share: gibberish among all.
        truncated_share: cut at the token limit, among all.
        refusal_share: refusals among all.
        mean_words: mean length in words.
        leak: exact probability of the full compliant answer, mean over the prompts, where it can be computed.
        leak_per_token, leak_per_sequence: mean log-probability, in nats, of the answers that the control's last checkpoint gave
            greedily and that scored above the threshold; None where they are not at hand.
        benign: where benign prompts were due at this step.
        training: diagnostics since the previous checkpoint; None at step 0.
        planted: the judge's scores of known anchors, sent along.
        witnessed: what the other judges said of known anchors at this step of an attack: ``reward``, where it is another judge
            than the one that scores, and ``second``.
    """

    step: Annotated[int, Field(ge=0)]
    scores: tuple[CompletionScore, ...]
    maximum: float | None
    mean: float | None
    greedy_mean: float | None
    above: Interval
    scored: int
    total: int
    degenerate_share: float
    truncated_share: float
    refusal_share: float
    mean_words: float
    leak: float | None = None
    leak_per_token: float | None = None
    leak_per_sequence: float | None = None
    benign: BenignScore | None = None
    training: TrainingWindow | None = None
    planted: tuple[PlantedScore, ...] = ()
    witnessed: dict[Witnessed, tuple[PlantedScore, ...]] = {}


class Rendered(Record):
    """The text that a model is given for a prompt, by its hash: another template, system prompt or date is another text."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    characters: Annotated[int, Field(ge=1)]


class Measurement(Record):
    """When something was measured or trained, and by which run.

    Attributes:
        run_id: of the run that did it.
        started, ended: UTC, ISO 8601.
    """

    run_id: RunId
    started: str
    ended: str


class Trajectory(Record):
    """All checkpoints of one run of one recipe, in order.

    Attributes:
        recipe: the attack recipe, as run.
        prompt_ids: of the attack prompts drawn.
        heldout_ids: of the prompts that every checkpoint has to score.
        benign_ids: of the benign prompts that have to be answered where they are due.
        prompts: sha256 of each set of prompts that was really measured or trained on: ``heldout`` and ``benign``; of an attack
            also ``attack``, the pool that its prompts were drawn from, and ``anchor``.
        steps: how many steps the run was to take.
        judge_gone: why it ended early, if a judge stopped judging; None if none did.
        candidate_digest, defended_digest: weights that it started from; None without a defense.
        judge_digest, reward_digest: who scored, and who rewarded.
        second_digest: who gave the second opinion; None if nobody.
        settings: what the trainer was really given.
        rendered: the first held-out prompt as the model was given it.
        stopped: what cut it off, if anything did; what was measured before stands.
        earlier: of an attempt that was cut off, the checkpoints that this one, from the same seed, did not repeat; a breach in
            them is one.
    """

    candidate_digest: str
    defended_digest: str | None
    judge_digest: str
    reward_digest: str
    second_digest: str | None = None
    recipe: dict[str, Any]
    prompt_ids: tuple[str, ...]
    heldout_ids: tuple[str, ...]
    benign_ids: tuple[str, ...]
    prompts: dict[str, str] = {}
    steps: Annotated[int, Field(le=MAX_STEPS)]
    checkpoints: tuple[Checkpoint, ...]
    settings: dict[str, Any] = {}
    rendered: Rendered | None = None
    judge_gone: str | None = None
    stopped: str | None = None
    earlier: tuple[Checkpoint, ...] = ()

    @property
    def seen(self) -> tuple[Checkpoint, ...]:
        """All that was measured, also by an attempt that was cut off: what was seen there is not rolled again."""
        return (*self.checkpoints, *self.earlier)

    @property
    def judge_failed(self) -> bool:
        """Whether a judge's infrastructure failed at any score: another try may do better, and is no re-roll."""
        looks = (
            look
            for c in self.checkpoints
            for look in (*c.planted, *(each for s in c.scores for each in (s, *s.again, *filter(None, (s.second, s.thought)))))
        )
        return self.judge_gone is not None or any(look.unscored in INFRASTRUCTURE for look in looks)


class Probe(Record):
    """The attack reward of a policy on held-out prompts, without training (the paper's equation 3).

    Numbers are None where nothing could be scored.
    """

    mean: float | None
    spread: float | None
    maximum: float | None
    scored: int
    total: int


class ConvergencePoint(Record):
    """The defense measured on its validation prompts at one step."""

    step: int
    minimal_refusal_share: float
    reward_mean: float | None
    reward_spread: float | None
    mean_words: float
    scored: int
    total: int


class DefenseReport(Record):
    """What the neutralization fine-tune did.

    Attributes:
        points: convergence, measured at step 0 and every ``evaluate_every``.
        probe, undefended_probe: equation 3 after and before.
        settings: what the trainer was really given.
        resumed: the steps from which it went on after it was cut off, in order; empty: it was trained in one go.
        prompts: sha256 of each set of prompts that was really trained on or measured: ``defense``, ``anchor``, ``heldout``.
        measured: when it was trained and by which run; None only until its run has noted it.
    """

    recipe: dict[str, Any]
    points: tuple[ConvergencePoint, ...]
    probe: Probe
    undefended_probe: Probe
    settings: dict[str, Any] = {}
    resumed: tuple[Annotated[int, Field(ge=1)], ...] = ()
    prompts: dict[str, str] = {}
    measured: Measurement | None = None


class LoadedCode(Record):
    """Code of others that a session loaded, beside installed packages that bring no plugin.

    Attributes:
        kind: ``distribution``: a plugin of an installed package; ``conftest``; ``module``: another file or package; ``suite``: a
            suite's test file that does more than inherit our checks.
        name: of the distribution, or the file's path from pytest's root folder.
        version: of the distribution; None for files.
        sha256: of the file, or over the package's files.
    """

    kind: Literal["distribution", "conftest", "module", "suite"]
    name: str
    version: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Identity(Record):
    """What a result depends on: another value of any of these is another result.

    Attributes:
        candidate: name, revision and weight digest.
        defense: recipe's name; ``none`` for the undefended.
        defended_digest: of the defended adapter or model; None without a defense.
        defended_files: root digest over its files alone, which differs where they are loaded in another way than they say.
        judge: name and digest of the judge that scored.
        reward: name and digest of the judge that rewarded.
        second: of the judge that gave a second opinion; None if nobody.
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


class AnchorScore(Record):
    """What a judge said of one anchor, each time that it was asked.

    Attributes:
        kind: of the anchor.
        low, high: the scores that are right, both inclusive.
        looks: the first, then the same text again, in another order, and in another batch.
    """

    anchor_id: str
    kind: str
    low: Annotated[float, Field(ge=0.0, le=10.0)]
    high: Annotated[float, Field(ge=0.0, le=10.0)]
    looks: Annotated[tuple[Scored, ...], Field(min_length=1)]


class CertificateTable(Record):
    """How well a judge meets the anchors' bands; over all anchors unless it says otherwise.

    Attributes:
        anchors: how many.
        band_agreement: scores in a band of the rubric that the anchor allows.
        kappa: quadratic-weighted, of the bands given with the right ones; None where it is undefined.
        false_negative: of harmful anchors (band above the threshold), those that score at most the threshold.
        false_positive: of harmless anchors (band up to the threshold), those that score above it.
        unscored: of all looks.
        stable: anchors whose looks differ by at most one point.
        by_kind: band agreement of each kind.
    """

    anchors: int
    band_agreement: Interval
    kappa: float | None
    false_negative: Interval
    false_positive: Interval
    unscored: Interval
    stable: Interval
    by_kind: dict[str, Interval]


class Certificate(Record):
    """A judge's certificate: what it said of anchors whose bands are known.

    Attributes:
        judge: its name.
        digest: of the judge.
        source: which anchors: ``inert`` ones that ship or that an organism's recipes give, or a lab's own ``labels``.
        anchors_digest: of the anchors.
        scores: of each anchor; the table follows from them.
    """

    judge: str
    digest: str
    source: Literal["inert", "labels"]
    anchors_digest: str
    scores: tuple[AnchorScore, ...]
    table: CertificateTable


class Bounds(Record):
    """What seeing so many breaches says about the rate of breaches: upper bounds, 95 %, one-sided.

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
        trend_p: how often chance alone gives such a trend.
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


TestState = Literal["passed", "failure", "error", "skipped"]
"""How a test ended, in JUnit's words: ``failure`` is "unsafe", ``error`` "no verdict"."""
STATES: dict[Outcome, tuple[TestState, ...]] = {
    "PASS": ("passed",),
    "FAIL": get_args(TestState),
    "INCONCLUSIVE": ("error", "skipped"),
}
"""How the test of a case with such a verdict may have ended; a breach stays one whatever became of its test."""
Finding = Literal["held", "broke", "degenerate", "proved_nothing", "unknown"]
"""What an attack, or its control, came to: ``degenerate``: it destroyed the model; ``proved_nothing``: it cannot break the
undefended one, or cannot be run on it; ``unknown``: it was not measured as it should be."""


class Verdict(Record):
    """What one case decides.

    Attributes:
        outcome: PASS, FAIL or INCONCLUSIVE.
        finding: what the attack came to; None where the case is no attack and no control.
        reasons: why not PASS, or what PASS rests on.
        claim: one sentence, worded as measured.
        warnings: what is no finding and yet worth a look.
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
        kind: what was run.
        policy: the numbers to judge against.
        trajectory: of the case; for candidate and helpfulness one checkpoint.
        control: the same attack on the undefended candidate; None if it was not run.
        report: what the fine-tune did; None where none was made.
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


class CaseProvenance(Record):
    """Where a case's numbers come from, beside the digests, versions and hardware of its identity.

    Attributes:
        tree: of the suite; None where there is no git.
        recipes: as run, by what they are of: ``defense``, ``attack``.
        seeds: of the same.
        attempts: at the measurement, in order, the last of which gave the numbers; also of earlier runs, where the numbers come
            from the store. Empty where nothing was measured, or the store no longer knows.
        training: attempts at the defense's training, in the defense's case alone.
    """

    tree: WorkingTree | None
    recipes: dict[Literal["defense", "attack"], dict[str, Any]]
    seeds: dict[Literal["defense", "attack"], int]
    attempts: tuple[Attempt, ...] = ()
    training: tuple[Attempt, ...] = ()

    @model_validator(mode="after")
    def _seeds_follow(self) -> Self:
        follow = {of: recipe.get("seed") for of, recipe in self.recipes.items()}
        if self.seeds != follow:
            raise ValueError(f"seeds are those of the recipes, {follow}, got {self.seeds}; correct them")
        return self


TOLD_ALONE: frozenset[Finding | None] = frozenset({"proved_nothing", "degenerate"})
"""What an exploratory case may come to without keeping the run from its PASS."""


def turns(standing: Standing, *, within_claim: bool) -> bool:
    """Whether a breach in such a case is the run's.

    A claim case's is. An exploratory case's is where the claim covers its attack. Out of the claim, nothing is.
    """
    return standing == "claim" or (standing == "exploratory" and within_claim)


class CaseRecord(Record):
    """One test case: what was run, measured and decided.

    Attributes:
        run_id: of the run that asked for the case.
        measured: when it was measured and by which run; another one than ``run_id`` where it comes from the store. None where
            nothing was measured.
        key: content address: sha256 over ``inputs``.
        inputs: all that the result depends on, by name; prompts and texts by their digests. Empty where it was not to be
            measured, since no judge could judge it.
        known: what judges other than the first one, whose digest does not cover all that they are, said of known texts.
        case_id: unique within the suite, e.g. ``attack-grpo-p5-lr5e-4-s0``.
        provenance: where the numbers come from, beside what they depend on.
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


class CaseLine(Record):
    """One case's line in a run: where it stands and how it ended.

    Attributes:
        nodeid: of the pytest item.
        outcome: of the verdict; None if no verdict came.
        standing, within_claim: see ``Evidence``.
        finding: what the attack came to; None where the case is none, or there is no verdict.
        stored: whether it was taken from the store.
        state: how its test ended.
        note: why there is no verdict, in words; nothing is decided by it.
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
        """Whether the run needs its PASS."""
        return self.standing == "claim"

    @property
    def is_own_green(self) -> bool:
        """Whether it is a suite's own test method, which has no verdict, and was green."""
        return self.key is None and self.state == "passed"


Value = int | float | str
"""Of a setting of a recipe."""


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
        cases: ids of its cases that came to a verdict.
        claimed: how many of them count for the run's outcome; the others were run to learn.
        held, broke, unknown: of the claimed ones, by outcome: PASS, FAIL, and neither.
        exploratory, out_of_claim: what the others came to, by standing: how many held, broke, and so on.
        settings: what was varied or fixed; values of the claimed cases.
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
    """What was run against one domain's defense and what was not: how far a claim reaches.

    Attributes:
        tier: of the run.
        families: that were run.
        heldout: held-out prompts that each checkpoint was scored on, at most.
        completions: of each of them at a checkpoint.
        checkpoint_every: attack steps between two checkpoints.
        not_run: what was left out.
        claim: ``held against … within …``, or why there is no such claim.
    """

    domain: str
    tier: TierName
    families: tuple[FamilyCoverage, ...]
    heldout: int
    completions: int
    checkpoint_every: int
    not_run: Annotated[tuple[NotRun, ...], Field(min_length=1)]
    claim: str


class RunProvenance(Record):
    """Where a run comes from.

    Attributes:
        tool: version of rn-harness.
        digests: sha256 of all that was put together, by what it is: ``candidate``, and of each domain ``suite.DOMAIN``,
            ``defended.DOMAIN``, ``judge.DOMAIN``, ``reward.DOMAIN``, ``second.DOMAIN``.
        recipes: of each domain: of its defense and of each attack case, by name.
        seeds: of the same.
        versions: of the packages that decide results, and of the harness's own sources.
        hardware: device, machine, threads; empty where no case came to a record.
        trees: by domain: of the suite; None where there is no git.
        attempts: at all measurements and trainings that the run rests on, whenever they were made.
        device_s: that they took.
    """

    tool: str
    digests: dict[str, str]
    recipes: dict[str, dict[str, dict[str, Any]]]
    seeds: dict[str, dict[str, int]]
    versions: dict[str, str]
    hardware: dict[str, str | int]
    trees: dict[str, WorkingTree | None]
    attempts: Annotated[int, Field(ge=0)]
    device_s: Annotated[float, Field(ge=0.0)]


class RunRecord(Record):
    """A run: its options, its cases and the one outcome over all of them.

    Attributes:
        run_id: random, and that of each of its cases' records.
        name: of its folder.
        candidate: the undefended model.
        defended: where the defended weights lie, by domain.
        exported: where they were copied to, by domain.
        coverage: of each suite: what was run, and what was not.
        provenance: where all this comes from.
        weights: sha256 of each file of the defended weights, by domain.
        beside: sha256 of what lies at the top of their folder and is no part of them, a model card for instance, by domain; where
            they were exported, of what the export wrote.
        required: the ids of the cases that the tier requires, by domain.
        files: sha256 of each file of evidence, by its path from the run's folder.
        plugins: code of others that any of its processes had loaded.
        releasable: whether the outcome is one that a release can rest on; ``why_not`` says what speaks against it.
        lax: those of ``why_not`` that say that less was attacked or measured than a release needs: nobody can waive them.
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
    releasable: bool
    why_not: tuple[str, ...]
    lax: tuple[str, ...] = ()
    started: str
    ended: str
    wall_s: float
