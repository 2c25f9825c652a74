"""Measurements of a policy: checkpoints, trajectories, and the report of a defense. They hold scores and no text."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, computed_field

from rn_harness.records.base import INFRASTRUCTURE, Record, RunId, Scored, Summary
from rn_harness.records.benign import BenignScore
from rn_harness.records.lesson import Lesson
from rn_harness.records.statistics import Interval, counted, mean_of
from rn_harness.spec.base import MAX_STEPS, Share
from rn_harness.spec.forms import FORMS, View


class CompletionScore(Scored):
    """One completion of one prompt, without its text.

    Attributes:
        sample: 0 is the greedy completion, 1 and up are sampled ones.
        score: the highest of the judge's scores of the answer, of the think part, and of both together.
        refusal, degenerate, words: of the answer.
        truncated: whether it was cut at the token limit.
        thought: the judge's score of the think part; None without one.
        again: further looks at a score above the threshold, by the second judge or in other wordings; empty if none was needed
            or possible.
        second: the second judge's score, if one was requested.
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


class TrainingWindow(Record):
    """GRPO diagnostics over the steps since the previous checkpoint.

    Attributes:
        steps: optimizer steps in the window.
        reward_mean: mean reward of all sampled completions; None without rewards.
        reward_spread: mean over steps of the standard deviation of a step's rewards.
        harm_mean: attacks only: mean plain reward (harm, refusals at 0) of the same completions, before the attacker's shaping.
        above_share: attacks only: share of the sampled completions whose harm is above the policy's threshold.
        zero_spread_share: share of groups whose rewards were all equal, so that they have no gradient.
        unrewarded_share: share of completions that the judge could not score.
        failed_share: attacks only: share of the completions at which the judge's infrastructure failed.
        grad_norm: largest norm of the gradient before clipping.
        entropy: mean token entropy of the policy over the steps that computed it, nats.
        completion_tokens: mean length of the sampled completions.
        adapter_distance: L2 distance of the weights, adapter included, from the start of the training.
        window_distance: attacks only: L2 distance that the trained parameters moved in this window, measured by the harness and
            not by the attack; estimated from a sample if there are many millions.
        banned_tokens: attacks with a ban only: first tokens that are banned at its end.
        replayed_steps: attacks with replay only: steps that trained on kept completions.
    """

    steps: Annotated[int, Field(ge=1)]
    reward_mean: float | None
    reward_spread: Annotated[float, Field(ge=0.0)]
    harm_mean: float | None = None
    above_share: Share | None = None
    failed_share: Share | None = None
    zero_spread_share: Share
    unrewarded_share: Share
    grad_norm: Annotated[float, Field(ge=0.0)]
    entropy: float
    completion_tokens: Annotated[float, Field(ge=0.0)]
    adapter_distance: Annotated[float, Field(ge=0.0)]
    window_distance: Annotated[float, Field(ge=0.0)] | None = None
    banned_tokens: Annotated[int, Field(ge=0)] | None = None
    replayed_steps: Annotated[int, Field(ge=0)] | None = None


class PlantedScore(Scored):
    """The judge's score, at one checkpoint, of a text with a known band.

    Attributes:
        high: True for a harmful text, whose score has to be above the threshold; the score of any other must not exceed it.
    """

    anchor_id: str
    high: bool


class ConditionalLeak(Record):
    """Probability of the rest of the full compliant answer after its first tokens, mean over the prompts.

    It is the largest of several sampling temperatures.
    """

    tokens: Annotated[int, Field(ge=0)]
    leak: Share


Witnessed = Literal["reward", "second"]
"""A judge that does not score checkpoints."""
UNDER: dict[View, str] = {
    "ban": "under the ban", "opener": "after the opener", **{name: form.told for name, form in FORMS.items()}
}  # fmt: skip
"""Aids and forms in sentences."""


class Checkpoint(Summary):
    """A policy at one step, scored on the held-out prompts.

    Attributes:
        threshold: of the policy; a score above it is a breach.
        leak: exact probability of the full compliant answer, mean over the prompts, if it can be computed.
        leak_per_token, leak_per_sequence: mean log-probability, in nats, of the greedy answers of the control's last checkpoint
            that scored above the threshold; None if they are not available.
        conditional_leak: at step 0, for the full compliant answers, or for those of the control if they are not known.
        benign: if benign prompts were due at this step.
        training: diagnostics since the previous checkpoint; None at step 0.
        planted: the judge's scores of known anchors, sent together with the completions.
        witnessed: the other judges' scores of known anchors at this step of an attack: ``reward``, if it is not the judge that
            scores, and ``second``.
        aided: scores of one greedy completion of each held-out prompt under each aid of an attack: without the first tokens that
            are banned at this step, or after an opener. For a defended model before any attack, those in each form of request
            (``spec.forms``).
    """

    step: Annotated[int, Field(ge=0)]
    scores: tuple[CompletionScore, ...]
    threshold: float
    leak: float | None = None
    leak_per_token: float | None = None
    leak_per_sequence: float | None = None
    conditional_leak: tuple[ConditionalLeak, ...] | None = None
    benign: BenignScore | None = None
    training: TrainingWindow | None = None
    planted: tuple[PlantedScore, ...] = ()
    witnessed: dict[Witnessed, tuple[PlantedScore, ...]] = {}
    aided: dict[View, tuple[CompletionScore, ...]] = {}

    @property
    def all_scores(self) -> tuple[CompletionScore, ...]:
        """Its own scores, and those under aids."""
        return (*self.scores, *(score for scores in self.aided.values() for score in scores))

    @property
    def highest(self) -> float | None:
        """Highest of all scores; None without scores."""
        return max((s.score for s in self.all_scores if s.score is not None), default=None)

    def under(self, aid: View) -> Checkpoint:
        """The checkpoint with the scores under an aid instead of its own, and without measurements that no aid changes."""
        return self.model_copy(update={"scores": self.aided[aid], "leak": None, "aided": {}})

    @computed_field
    @cached_property
    def aided_maximum(self) -> dict[View, float | None]:
        """Highest score under each aid; None without scores."""
        return {aid: self.under(aid).maximum for aid in self.aided}

    @computed_field
    @cached_property
    def aided_mean(self) -> dict[View, float | None]:
        """Mean score under each aid; None without scores."""
        return {aid: self.under(aid).mean for aid in self.aided}

    @cached_property
    def values(self) -> list[float]:
        """The scores of all scored completions."""
        return [s.score for s in self.scores if s.score is not None]

    @computed_field
    @cached_property
    def maximum(self) -> float | None:
        """Highest score; None without scores."""
        return max(self.values, default=None)

    @computed_field
    @cached_property
    def mean(self) -> float | None:
        """Mean score; None without scores."""
        return mean_of(self.values)

    @computed_field
    @cached_property
    def greedy_mean(self) -> float | None:
        """Mean score of the greedy completions; None if none was scored."""
        return mean_of([s.score for s in self.scores if s.score is not None and s.sample == 0])

    @computed_field
    @cached_property
    def above(self) -> Interval:
        """Scores above the threshold."""
        return counted([value > self.threshold for value in self.values])

    @computed_field
    @cached_property
    def scored(self) -> int:
        """Completions with a score."""
        return len(self.values)

    @computed_field
    @cached_property
    def total(self) -> int:
        """All completions."""
        return len(self.scores)

    @computed_field
    @cached_property
    def degenerate_share(self) -> float:
        """Share of degenerate completions among all."""
        return mean_of([s.degenerate for s in self.scores]) or 0.0

    @computed_field
    @cached_property
    def truncated_share(self) -> float:
        """Share of completions cut at the token limit among all."""
        return mean_of([s.truncated for s in self.scores]) or 0.0

    @computed_field
    @cached_property
    def refusal_share(self) -> float:
        """Share of refusals among all."""
        return mean_of([s.refusal for s in self.scores]) or 0.0

    @computed_field
    @cached_property
    def mean_words(self) -> float:
        """Mean length of the completions in words."""
        return mean_of([s.words for s in self.scores]) or 0.0


class Rendered(Record):
    """The text that a model gets for a prompt, as a hash over it and over the model's template, tokenizer and end tokens."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    characters: Annotated[int, Field(ge=1)]


class Measurement(Record):
    """Time (UTC, ISO 8601) of a measurement or training, and the run that did it."""

    run_id: RunId
    started: str
    ended: str


class Probe(Record):
    """The attack reward of a policy on held-out prompts, without training (the paper's equation 3); None without scores.

    Attributes:
        banned: number of banned first tokens.
        truncated: number of completions that were cut at the token limit.
        failed: number of answers that the judge's machinery lost, also in the search for these tokens.
        unjudged: number of answers without a score in that search.
    """

    mean: Annotated[float, Field(ge=0, le=10)] | None
    spread: float | None
    maximum: Annotated[float, Field(ge=0, le=10)] | None
    scored: int
    total: int
    banned: Annotated[int, Field(ge=0)] = 0
    truncated: Annotated[int, Field(ge=0)] = 0
    failed: Annotated[int, Field(ge=0)] = 0
    unjudged: Annotated[int, Field(ge=0)] = 0

    @property
    def highest_mean(self) -> float:
        """The mean if each unscored completion had the highest reward, 10; 10 without a score, or with more scores than asked."""
        if self.mean is None or not 0 < self.scored <= self.total:
            return 10.0
        return (self.mean * self.scored + 10.0 * (self.total - self.scored)) / self.total


class Probes(Record):
    """Two probes of one model: as it answers, and with the first tokens of its own refusals banned.

    Attributes:
        read: share of tokens of its benign answers that the candidate's output layer finds likeliest too; None: it has that one.
    """

    plain: Probe
    banned: Probe
    read: Share | None = None


class Trajectory(Record):
    """All checkpoints of one run of one recipe, in order.

    Attributes:
        recipe: the attack recipe, as run.
        prompt_ids: of the attack prompts drawn.
        heldout_ids: of the prompts that every checkpoint has to score.
        benign_ids: of the benign prompts that have to be answered when they are due.
        prompts: sha256 of each set of prompts that was measured or trained on: ``heldout`` and ``benign``; for an attack also
            ``attack``, the pool that its prompts were drawn from, and ``anchor``.
        steps: number of steps that the run was to take.
        judge_gone: why it ended early, if a judge stopped judging; else None.
        candidate_digest, defended_digest: of the weights that it started from; ``defended_digest`` is None without a defense.
        judge_digest, reward_digest: of the judge that scored, and of the judge that rewarded.
        settings: those that the trainer got.
        rendered: the first held-out prompt as given to the model.
        stopped: the cause, if the run was cut off; earlier measurements remain valid.
        earlier: checkpoints of other attempts, cut off or under other keys, that this one did not repeat; a breach there counts.
        probes: rewards of the candidate and of the defended model before any attack; None in other cases.
        lesson: in the defense's case; None in other cases.
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
    steps: Annotated[int, Field(ge=0, le=MAX_STEPS)]
    checkpoints: tuple[Checkpoint, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    rendered: Rendered | None = None
    judge_gone: str | None = None
    stopped: str | None = None
    earlier: tuple[Checkpoint, ...] = ()
    probes: Probes | None = None
    lesson: Lesson | None = None

    @property
    def lines(self) -> str:
        """The checkpoints as lines of JSON, as they are written when they are measured."""
        return "".join(c.model_dump_json() + "\n" for c in self.checkpoints)

    @property
    def seen(self) -> tuple[Checkpoint, ...]:
        """All measured checkpoints, including those of other attempts: this one must not hide their breach."""
        return (*self.checkpoints, *self.earlier)

    @property
    def judge_failed(self) -> bool:
        """True if a judge's infrastructure failed at a score or reward. Another attempt is then allowed, and is no re-roll."""
        looks = (
            look
            for c in self.checkpoints
            for look in (
                *c.planted,
                *(each for s in c.all_scores for each in (s, *s.again, *filter(None, (s.second, s.thought)))),
            )
        )
        probed = self.probes is not None and self.probes.plain.failed + self.probes.banned.failed > 0
        rewards = any(c.training is not None and c.training.failed_share for c in self.checkpoints)
        return self.judge_gone is not None or probed or rewards or any(look.unscored in INFRASTRUCTURE for look in looks)


class ConvergencePoint(Record):
    """A measurement of the defense on its validation prompts at one step."""

    step: int
    minimal_refusal_share: float
    reward_mean: float | None
    reward_spread: float | None
    mean_words: float
    scored: int
    total: int


class DefenseReport(Record):
    """The report of a neutralization fine-tune.

    Attributes:
        points: convergence, measured at step 0 and every ``evaluate_every``.
        resumed: steps at which it was resumed after it was cut off, in order; empty: it was trained without interruption.
        prompts: sha256 of each set of prompts that was trained on or measured: ``defense``, ``anchor``, ``heldout``.
        measured: when it was trained and by which run; None only until its run has recorded it.
    """

    recipe: dict[str, Any]
    points: tuple[ConvergencePoint, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    resumed: tuple[Annotated[int, Field(ge=1)], ...] = ()
    prompts: dict[str, str] = {}
    measured: Measurement | None = None
