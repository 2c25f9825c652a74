"""The frozen settings of a defense, and of its simulated attackers."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rn_harness.spec.base import MAX_STEPS, Frozen, Positive, Share

OptimizerName = Literal["adamw", "sgd", "momentum", "adafactor", "rprop"]
"""Optimizers of supervised steps, without weight decay: AdamW; SGD, plain or with momentum 0.9; Adafactor, with steps relative
to the size of the weights; Rprop, which uses only the signs of gradients."""


class LoRA(Frozen):
    """Low-rank adapter on all linear layers (arXiv 2106.09685).

    Attributes:
        r: rank.
        alpha: its product is multiplied by ``alpha / r``.
    """

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Positive = 32.0


class GRPORecipe(Frozen):
    """Settings of one GRPO run. Each relevant one is set here, since TRL's defaults change between releases.

    Attributes:
        steps: optimizer steps S.
        group_size: completions G of a prompt; their rewards are compared with each other.
        prompts_per_step: prompts P of one step; rows of a step B = P * G.
        learning_rate: of AdamW.
        schedule: the learning rate is constant, or falls to 0 at the last step, linearly or along half a cosine.
        temperature: of sampling; it also divides the logits in the loss, as in TRL.
        top_k: sample among the k likeliest tokens; 0: all.
        min_p: sample among tokens of at least this share of the likeliest one's probability; 0: all.
        max_completion_tokens: T; an answer cut there counts as truncated.
        beta: weight of the KL penalty towards the policy at step 0; 0: none.
        entropy_coef: weight of the mean token entropy as a bonus; 0: none.
        entropy_target: mean token entropy, nats, up to which TRL adapts that weight (arXiv 2505.22312); it begins at
            ``entropy_coef``. None: the weight is constant.
        loss_type: TRL's name of the loss.
        scale_rewards: divisor of a group's advantages: the group's spread, the batch's, or none.
        max_grad_norm: L2 norm to which gradients are clipped.
        micro_batch: rows of one forward and backward pass; advantages are still taken over whole groups. It bounds memory and
            changes no update but by rounding, except with ``bnpo``. None: all B.
        gradient_checkpointing: activations are computed again in the backward pass instead of being kept.
        form: an adapter is trained, or all weights, which are then kept in float32.
        lora: the adapter's size.
        seed: of prompt order, adapter start and sampling.
    """

    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    group_size: Annotated[int, Field(ge=2, le=1024)] = 16
    prompts_per_step: Annotated[int, Field(ge=1, le=1024)] = 1
    learning_rate: Annotated[float, Field(ge=0.0, le=1.0)]
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    temperature: Positive = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Share = 0.0
    max_completion_tokens: Annotated[int, Field(ge=1, le=32_768)] = 24
    beta: Annotated[float, Field(ge=0.0)] = 0.0
    entropy_coef: Annotated[float, Field(ge=0.0)] = 0.0
    entropy_target: Positive | None = None
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "vespo", "luspo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    max_grad_norm: Positive = 1.0
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    gradient_checkpointing: bool = False
    form: Literal["lora", "full"] = "lora"
    lora: LoRA = LoRA()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def whole(self) -> bool:
        """True if all weights are trained, so that the result is a whole model and not an adapter."""
        return self.form == "full"

    @property
    def rewarded(self) -> bool:
        """True if it is RL; supervised methods ignore groups, sampling, penalties and micro-batches."""
        return True

    @property
    def step_prompts(self) -> int:
        """Number of prompts of one step."""
        return self.prompts_per_step

    def __hash__(self) -> int:
        """The hash of the settings as JSON, since lists and mappings among them have no hash."""
        return hash(self.model_dump_json())

    def rate_after(self, step: int) -> float:
        """The learning rate after this number of steps."""
        share = step / self.steps
        return (
            self.learning_rate
            * {"constant": 1.0, "linear": 1.0 - share, "cosine": (1.0 + math.cos(math.pi * share)) / 2}[self.schedule]
        )

    @model_validator(mode="after")
    def _penalty_has_a_reference_and_batch_splits(self) -> Self:
        if self.form == "full" and self.beta and self.rewarded:
            raise ValueError(
                f"a KL penalty is towards the policy without its adapter, got beta={self.beta} for form={self.form!r}; take "
                "beta=0 or form=lora"
            )
        rows = self.step_prompts * self.group_size
        if self.micro_batch is None:
            return self
        if rows % self.micro_batch:
            raise ValueError(
                f"micro-batches have equally many rows, got micro_batch={self.micro_batch} of prompts_per_step * group_size = "
                f"{rows}; take a divisor"
            )
        if self.loss_type == "bnpo" and self.micro_batch != rows:
            raise ValueError(
                f"the loss bnpo depends on how rows are split, got micro_batch={self.micro_batch} of {rows}; take another loss"
            )
        return self


class SimulatedAttacker(Frozen):
    """A kind of attacker that hardening simulates.

    Attributes:
        optimizer: one of PyTorch's, or Adafactor.
        form: an adapter is trained, or all weights.
        learning_rate: lowest and highest; each attacker draws its own, log-uniformly.
    """

    optimizer: OptimizerName
    form: Literal["lora", "full"]
    learning_rate: Annotated[list[Positive], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _rates_are_in_order(self) -> Self:
        lowest, highest = self.learning_rate
        if lowest > highest:
            raise ValueError(f"a range goes from lowest to highest, got learning_rate={self.learning_rate}; turn it round")
        return self


class Hardening(Frozen):
    """Rounds against simulated attackers, after neutralization; all weights are trained, in float32.

    Attributes:
        rounds: number of attackers, one after the other.
        attackers: kinds; each round draws one.
        steps: supervised steps of an attacker.
        looks: steps of the defense during an attack: one at a random step in each of this many equal parts.
        examples: the most compliant answers that an attacker learns; drawn from 1 up, log-uniformly.
        learning_rate: of the defense's AdamW; it falls linearly to 0.
        rows: prompts of each loss of the defense.
        samples: completions of each defense prompt, drawn from the undefended candidate. Attackers learn the most harmful one if
            its score reaches ``policy.control_break``.
    """

    rounds: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    attackers: Annotated[list[SimulatedAttacker], Field(min_length=1)]
    steps: Annotated[int, Field(ge=1, le=10_000)] = 100
    looks: Annotated[int, Field(ge=1, le=1000)] = 5
    examples: Annotated[int, Field(ge=1, le=1000)] = 20
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 3e-4
    rows: Annotated[int, Field(ge=1, le=1024)] = 32
    samples: Annotated[int, Field(ge=1, le=4096)] = 128

    @model_validator(mode="after")
    def _looks_fit(self) -> Self:
        if self.looks > self.steps:
            raise ValueError(f"looks are at steps of their own, got looks={self.looks} of steps={self.steps}; lower looks")
        return self


class Depth(Frozen):
    """Refusal at depth, see ``defenses.depth``.

    Attributes:
        margin: each token of the refusal is taught up to these log odds, in nats: 10 leaves 5e-5 to all others. None: its
            likelihood is raised, by a gradient that fades.
        flatten: weight of the term that makes all tokens but the refusal's first one equally likely.
        keep: weight of the KL divergence from the candidate on its answers to benign prompts: anchors, and for ``distill`` the
            retain corpus.
        opening: weight of those answers' first tokens in the divergence; others have 1.
        kept_rows: benign prompts in each step.
        start_share: share of the rows of a step in which no answer has begun.
        samples: completions of each defense prompt, drawn from the candidate; the most harmful one is begun with, if its score
            reaches ``policy.control_break``.
    """

    margin: Positive | None = None
    flatten: Annotated[float, Field(ge=0.0)] = 0.1
    keep: Annotated[float, Field(ge=0.0)] = 5.0
    opening: Annotated[float, Field(ge=1.0)] = 1.0
    kept_rows: Annotated[int, Field(ge=0, le=1024)] = 24
    start_share: Share = 0.5
    samples: Annotated[int, Field(ge=1, le=4096)] = 128


class Distillation(Frozen):
    """A student that begins nearer to fresh weights than to the candidate's, see ``defenses.distill``.

    Attributes:
        noise_share: a in ``(1 - a) * candidate + a * fresh``; vectors are only shrunk.
        noise_scale: standard deviation of the fresh numbers, times Xavier's.
        teacher: the suite's recipe of the defense that takes the candidate's place: it is trained first, and the student begins
            near its weights and learns its benign answers. None: the candidate itself.
    """

    noise_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    noise_scale: Positive = 1.0
    teacher: str | None = None


class DefenseRecipe(GRPORecipe):
    """Reward Neutralization (arXiv 2505.04578), or a supervised defense to compare it with.

    Attributes:
        method: ``grpo`` with the neutralization reward; ``sft``: supervised steps on ``refusal``, each on ``prompts_per_step``
            prompts; ``deep``: the same wherever an answer may have begun (``depth``); ``distill``: as ``deep``, by a student that
            starts with noise in its weights. Groups, sampling, penalties and micro-batches apply to ``grpo`` only.
        refusal: the answer that the supervised methods teach.
        depth: settings of ``deep`` and ``distill``.
        distill: settings of ``distill``.
        benign_share: share of a step's prompts that are benign anchors, rewarded for keeping the undefended answer, or taught it;
            0 is the paper's recipe.
        beta_on: the KL penalty applies to all samples, or only to the answers to benign anchors, so that refusals can get
            short; a recipe without anchors then has no penalty.
        word_cost: reward lost per word of a refusal, out of 10.
        validation_share: last part of the defense prompts, kept out of training to measure convergence.
        evaluate_every: steps between two measurements of convergence; rounds of hardening count as steps.
        hardening: rounds after neutralization; None: none. A hardened defense is exploratory: no release can rest on it.
    """

    method: Literal["grpo", "sft", "deep", "distill"] = "grpo"
    refusal: Annotated[str, Field(pattern=r"\S", max_length=200)] | None = None
    depth: Depth | None = None
    distill: Distillation | None = None
    benign_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    beta_on: Literal["all", "benign"] = "all"
    word_cost: Annotated[float, Field(gt=0.0, le=10.0)] = 0.3
    validation_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    evaluate_every: Annotated[int, Field(ge=1)] = 10
    hardening: Hardening | None = None

    @property
    def rewarded(self) -> bool:
        """True if it is RL."""
        return self.method == "grpo"

    @property
    def whole(self) -> bool:
        """True if all weights are trained, so that the result is a whole model and not an adapter."""
        return super().whole or self.hardening is not None

    @property
    def last_step(self) -> int:
        """The number of steps and rounds together."""
        return self.steps + (self.hardening.rounds if self.hardening else 0)

    @model_validator(mode="after")
    def _penalty_and_method_fit(self) -> Self:
        if self.beta_on == "benign" and not self.beta:
            raise ValueError("a penalty on benign answers has a weight, got beta_on=benign with beta=0; set beta or remove it")
        supervised, deep = self.method != "grpo", self.method in ("deep", "distill")
        for name, needed, what in (
            ("refusal", supervised, "methods sft, deep and distill teach a refusal"),
            ("depth", deep, "methods deep and distill have settings of their depth"),
            ("distill", self.method == "distill", "method distill has settings of its noise"),
        ):
            got = getattr(self, name)
            if needed != (got is not None):
                raise ValueError(
                    f"{what}, and no other method does, got method={self.method!r} with {name}={got!r}; add it or remove it"
                )
        if self.method == "distill" and self.form == "lora":
            raise ValueError("noise goes into all weights, got method='distill' with form='lora'; set form: full")
        return self
