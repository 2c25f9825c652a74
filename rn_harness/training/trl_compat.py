"""TRL's trainer with cheaper steps, and every internal of TRL and accelerate that the package relies on.

Three steps cost less than in TRL. Sampling runs with the adapter folded into the weights. The rows of a group share their
prompt's forward pass, and off the GPU the output layer sees completion tokens only. If all groups have equal rewards, and neither
KL nor an entropy bonus is asked for, the gradient is exactly zero: forward and backward are skipped, and the optimizer steps on
zero gradients, since its momentum moves the weights. On a defended model that is nearly every step.

The KL penalty may count for some answers only. An answer without penalty is its own reference, so its penalty and that penalty's
gradient are zero.

No other module relies on an internal of TRL 1.16, transformers' trainer or accelerate 1.15 that is not in ``PRIVATE_NAMES``.
``tests/unit/test_compat.py`` tries each and fails with a sentence when an upgrade moves it.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rn_harness.models.batches import completion_log_probabilities, padded
from rn_harness.models.peft_compat import without_wrapper
from rn_harness.models.random_streams import random_state, set_random_state
from rn_harness.models.transformers_compat import shares_prompts
from rn_harness.spec.errors import TrainingError
from rn_harness.store.ranks import ranks
from rn_harness.training.supervised import check_direction, looked_at
from rn_harness.training.trainer_settings import TrainerName

if TYPE_CHECKING:
    from trl import GRPOTrainer as _Trainer

    from rn_harness.models.language_model import LanguageModel
    from rn_harness.training.exploration import Exploration, FirstTokenBans, Replay
else:
    _Trainer = object  # TRL is imported when a trainer is made

Credited = Callable[[Sequence[tuple[int, list[int], list[int], float]]], None]
"""Gets each completion of a loss: its row of the data, its prompt's tokens, its own, and its advantage."""
VOCABULARY_CHUNK = 32_768
"""Vocabulary entries of which TRL computes logits at once."""
REPLAYED = -1
"""Row of a completion that is trained on again."""
OVERRIDDEN = (
    "_get_per_token_logps_and_entropies", "_tokenize_prompts", "_generate_single_turn", "_generate_and_score_completions",
    "_compute_loss",
)  # fmt: skip
"""Methods of TRL's trainers that are overridden here."""
METRICS = ("reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_length")
"""Keys of TRL's logged metrics that a training's diagnostics are made of."""
BATCH_KEYS = (
    "advantages", "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "num_items_in_batch", "ref_per_token_logps",
)  # fmt: skip
"""Keys of a batch that TRL has scored; RLOO's lacks the last two."""
PRIVATE_NAMES = {
    **{f"{name} or its arguments": "make steps cheaper" for name in OVERRIDDEN},
    **{f"key {key} of a scored batch": "replay answers, and find steps without a gradient" for key in BATCH_KEYS},
    "trl.kernels.ChunkedLogProbFunction": "compute log-probabilities and entropies without all logits",
    "arguments of GRPOConfig that RLOOConfig lacks": "leave them out of RLOO's settings",
    **{f"logged metric {key}": "describe a training" for key in METRICS},
    "the trainer's call of accelerator.backward": "train a fleet's members together",
    "the logger of a trainer's module": "keep completions without a reward out of logs",
    "trainer.generation_config, which rollouts are sampled with": "ban first tokens",
    "adapters of a 4-bit model in bfloat16": "keep their numbers",
    "accelerate.state.GradientState._shared_state": "switch between trainings in one process",
}
"""Each private name or undocumented behaviour, with its purpose."""


class SavingTrainer(_Trainer):  # type: ignore[misc]
    """The part of a trainer class that makes steps cheaper; ``saving_trainer`` puts it over one of TRL's.

    Attributes:
        policy: the model that it trains.
        is_due: steps that are computed in full even if the gradient is zero, since they measure the entropy.
        penalised: for each prompt of the data, True if its answers count for the KL penalty; None: all count.
        exploration: an attacker's aids; None: none.
        starved: no row of the present step has an advantage, on any process.
        credited: gets each completion of a loss; None: nobody does.
        pulled: while such a loss is computed, the advantages (B,) that its gradient has to follow; None: a penalty counts by
            whole completions.
        reference: while a loss with a KL penalty is computed, the reference's log-probabilities (B, T).
        free: while a loss is computed, the rows without penalty (B,), and all reference log-probabilities (B, T); None: no such.
    """

    policy: LanguageModel
    is_due: Callable[[int], bool]
    penalised: Sequence[bool] | None
    exploration: Exploration | None
    starved: bool
    credited: Credited | None = None
    pulled: Any = None
    reference: Any = None
    free: tuple[Any, Any] | None = None

    @functools.cached_property
    def learning(self) -> list[Any]:
        """The parameters that the optimizer steps; training checks them at its beginning and at each due step."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        logps, *others = self._log_probabilities(*args, **kwargs)
        if self.free:
            rows, reference = self.free
            reference[rows] = logps.detach()[rows]
        if self.pulled is not None and logps.requires_grad:
            drift = 0.0 * logps.detach() if self.reference is None else logps.detach() - self.reference
            logps.register_hook(functools.partial(_check_pull, self.pulled, drift))
        return logps, *others

    def _log_probabilities(
        self,
        network: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> Any:
        import torch

        plain = without_wrapper(self.accelerator.unwrap_model(network))
        # With several processes the wrapper around the network adds up gradients, so its pass is needed. Gradient
        # checkpointing works without a cache.
        if self.accelerator.num_processes > 1 or self.args.gradient_checkpointing or not shares_prompts(plain):
            return super()._get_per_token_logps_and_entropies(
                network, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others
            )
        rows, kept = batch_size or len(input_ids), logits_to_keep
        parts = [
            completion_log_probabilities(
                self.policy.completion_states(plain, (ids[:, :-kept], mask[:, :-kept]), (ids[:, -kept:], mask[:, -kept:])),
                plain.get_output_embeddings(),
                (ids[:, -kept:], mask[:, -kept:]),
                self._score_tokens,
            )
            for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True)
        ]
        logps, entropies = (torch.cat(each) for each in zip(*parts, strict=True))
        return logps, entropies if compute_entropy else None, None

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        """Tokens of prompts that are rendered as for measurements; TRL would add special tokens."""
        return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}

    def _score_tokens(self, hidden: Any, output: Any, targets: Any) -> Any:
        """Log-probabilities and entropies by TRL's function, which never holds all logits."""
        from trl.kernels import ChunkedLogProbFunction

        given = (hidden, output.weight, output.bias, targets, self.temperature, VOCABULARY_CHUNK, None, 1.0, ("entropy",))
        return ChunkedLogProbFunction.apply(*given)[:2]

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        if not self.use_vllm:
            self._check_sampling()
        with self.policy.restored() if self.use_vllm else self.policy.folded():
            return super()._generate_single_turn(*args, **kwargs)

    def _check_sampling(self) -> None:
        """Raises TrainingError unless rollouts are sampled as the arguments say: without variety no group has a spread."""
        due = {"max_new_tokens": self.args.max_completion_length, "do_sample": True}
        due |= {name: getattr(self.args, name) for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
        differing = [name for name, value in due.items() if getattr(self.generation_config, name) != value]
        if differing:
            raise TrainingError(f"rollouts must be sampled as the recipe says, got another {', '.join(differing)}")

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        import torch

        scored, aids = super()._generate_and_score_completions(inputs), self.exploration
        scored["row"] = torch.tensor([row["row"] for row in inputs])
        if aids and aids.positive:
            scored["advantages"].clamp_(min=0.0)
        # All processes decide together: if one left its part out, the others would wait for its gradient.
        self.starved = not any(ranks().gather(bool(scored["advantages"].any())))
        if aids and aids.replay:
            scored = self._replayed(scored, aids.replay)
        if self.penalised is None:
            return scored
        rows = torch.tensor([self.penalised[row["row"]] for row in inputs], device=scored["advantages"].device)
        return {**scored, "penalised": rows}

    def _replayed(self, scored: dict[str, Any], replay: Replay) -> dict[str, Any]:
        """Keeps the completions with a positive advantage; a step without any advantage becomes one on kept completions."""
        import torch

        parts = [scored[key] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")]
        found = [
            (reward, tuple(head[head_mask.bool()].tolist()), tuple(tail[tail_mask.bool()].tolist()))
            for reward, head, head_mask, tail, tail_mask, advantage in zip(replay.rewards, *parts, strict=True)
            if reward is not None and advantage > 0.0
        ]
        together, rows = ranks(), len(parts[-1])
        replay.keep([row for part in together.gather(found) for row in part], rows * together.size)
        if not (self.starved and replay.kept):
            return scored
        self.starved, replay.steps = False, replay.steps + 1
        chosen, pad, device = replay.rows(rows * together.size), self.processing_class.pad_token_id, parts[-1].device
        mine = chosen[rows * together.rank :][:rows]
        heads, tails = (padded([row[i] for row in mine], pad, device, left=not i) for i in (0, 1))
        return {
            **scored,
            "row": torch.full_like(scored["row"], REPLAYED),
            **dict(zip(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), (*heads, *tails), strict=True)),
            "advantages": torch.ones_like(parts[-1]),
            "num_items_in_batch": torch.full_like(scored["num_items_in_batch"], sum(len(tail) for _, tail in chosen)),
        }

    def _compute_loss(self, network: Any, inputs: dict[str, Any]) -> Any:
        import torch

        if self.credited and "row" in inputs:
            heads, tails = (
                [ids[kept.bool()].tolist() for ids, kept in zip(inputs[f"{part}_ids"], inputs[f"{part}_mask"], strict=True)]
                for part in ("prompt", "completion")
            )
            self.credited([*zip(inputs["row"].tolist(), heads, tails, inputs["advantages"].tolist(), strict=True)])
            self.pulled, self.reference = inputs["advantages"], inputs.get("ref_per_token_logps")
            if self.beta and getattr(self.args, "importance_sampling_level", "token") == "sequence":  # it spreads the penalty
                self.pulled = None
        bonus = getattr(self.args, "entropy_coef", 0.0) or getattr(self.args, "use_adaptive_entropy", False)  # RLOO has neither
        free = self.beta == 0.0 and not bonus and self.starved
        if free and not self.is_due(self.state.global_step + 1):
            for p in self.learning:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            return torch.zeros((), device=inputs["completion_ids"].device, requires_grad=True)
        if self.penalised is not None:
            self.free = ~inputs["penalised"], inputs["ref_per_token_logps"]
        try:
            return super()._compute_loss(network, inputs)
        finally:
            self.free = self.pulled = self.reference = None


def _check_pull(advantages: Any, drift: Any, gradient: Any) -> None:
    """Raises TrainingError if a loss makes tokens of a completion with an advantage less likely, or others likelier.

    A KL penalty may do so with a token that is already likelier than under the reference, or less likely: ``drift`` (B, T) is the
    difference of the log-probabilities.
    """
    reversed_pull, by_penalty = gradient * advantages[:, None] > 0.0, drift * advantages[:, None] > 0.0
    if bool((reversed_pull & ~by_penalty).any()):
        raise TrainingError(
            "a loss must make completions likelier that have a positive advantage, and others less likely, got the reverse; look "
            "at the trainer"
        )


def saving_trainer(
    model: LanguageModel,
    due: Callable[[int], bool],
    name: TrainerName = "grpo",
    penalised: Sequence[bool] | None = None,
    exploration: Exploration | None = None,
    credited: Credited | None = None,
) -> Any:
    """TRL's trainer class of this name, with cheaper steps for a model; see ``SavingTrainer``."""
    import trl

    base = trl.GRPOTrainer if name == "grpo" else trl.RLOOTrainer
    settings = {"policy": model, "is_due": staticmethod(due), "penalised": penalised, "exploration": exploration}
    settings |= {"credited": credited and staticmethod(credited)}
    return type("SavingTrainer", (SavingTrainer, base), settings)


def ban_callback(trainer: Any, bans: FirstTokenBans) -> Any:
    """A callback that extends the list of banned first tokens when a round is due, for the rollouts of the next step."""
    import transformers

    class Ban(transformers.TrainerCallback):  # type: ignore[misc]
        """Grows the list every few steps."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if bans.due(state.global_step):
                bans.grow()
                trainer.generation_config.begin_suppress_tokens = list(bans.banned) or None

    return Ban()


def direction_callback(first: int) -> Any:
    """A callback that makes sure that the first step on a gradient goes against it; ``first`` steps were taken by an earlier run.

    AdamW has no momentum then, so that each number moves against its gradient. One parameter is looked at, the smallest.
    """
    import transformers

    class Direction(transformers.TrainerCallback):  # type: ignore[misc]
        """Compares a parameter before and after the step."""

        known = first > 0
        before: tuple[Any, Any, Any] | None = None

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
            if self.known:
                return
            trained = (p for group in trainer["optimizer"].param_groups for p in group["params"])
            self.before = looked_at(trained)
            self.known = self.before is not None

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.before:
                before, self.before = self.before, None
                check_direction(*before)

    return Direction()


@contextmanager
def silent_trainer(name: TrainerName) -> Iterator[None]:
    """Switches off TRL's logger, which logs the text of a completion without a reward. Several may do so at once."""
    logger = logging.getLogger(f"trl.trainer.{name}_trainer")

    def nothing(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


@contextmanager
def unrounded_adapters(model: LanguageModel) -> Iterator[None]:
    """Keeps the numbers of trained parameters while a trainer is made: bfloat16 would round small steps away."""
    started = {name: p.data for name, p in model.trained.items()}
    yield
    for name, p in model.trained.items():
        p.data = started[name]


def process_state() -> dict[str, Any]:
    """A copy of the process's state that belongs to one training: random generators, and accelerate's gradient accumulation."""
    from accelerate.state import GradientState

    state = GradientState._shared_state.items()  # noqa: SLF001
    gradients = {key: copy.copy(value) if isinstance(value, list) else value for key, value in state}
    return {**random_state(), "gradients": gradients}


def set_process_state(state: dict[str, Any]) -> None:
    """Sets the process's state."""
    from accelerate.state import GradientState

    set_random_state(state)
    GradientState._shared_state.clear()  # noqa: SLF001
    GradientState._shared_state.update(state["gradients"])  # noqa: SLF001
