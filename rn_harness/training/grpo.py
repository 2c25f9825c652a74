"""GRPO and RLOO by TRL. It is the only module that knows TRL.

Departures from TRL 1.16.0's defaults, each of them set here and recorded: no saving (it would write attacked weights), no
logging to anyone, no shuffling (the order of prompts is ours), no weight decay, no dropout, one optimizer step per
generation; gradient checkpointing only where the recipe asks for it.

Three things are done more cheaply than TRL does them. Sampling runs with the adapter folded into the weights. The rows of a
group share their prompt's forward pass, and off the GPU the output layer sees completion tokens only. Where all
groups have equal rewards, and neither KL nor an entropy bonus is asked for, the gradient is exactly zero: forward and backward
are left out, the optimizer still steps on zero gradients, since its momentum moves the weights. On a defended model that is
nearly every step.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import math
import random
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rn_harness.records.trajectory import TrainingWindow
from rn_harness.spec.defense_recipe import GRPORecipe
from rn_harness.spec.errors import RecipeError, TrainingError
from rn_harness.spec.extras import require
from rn_harness.spec.prompts import Prompt
from rn_harness.store.ranks import ranks
from rn_harness.training.snapshots import Resuming

if TYPE_CHECKING:
    from rn_harness.models.language_model import Completion, LanguageModel

TrainerName = Literal["grpo", "rloo"]
"""TRL's trainers: advantages over the group's mean and spread, or over the mean of the other completions (arXiv 2402.14740)."""
NOT_OF_RLOO = (
    "loss_type", "scale_rewards", "importance_sampling_level", "entropy_coef", "use_bias_correction_kl",
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
)  # fmt: skip
"""Settings that RLOO has not: its loss is over whole completions, and takes samples as the trained network's own."""
VOCABULARY_CHUNK = 32_768
"""Vocabulary entries of which TRL 1.16.0 computes logits at once."""

VLLM = ("0.22", "0.32")
"""Versions of vLLM that TRL 1.16 knows: from the first, below the second."""
VLLM_SHARE = 0.3
"""Share of a card that vLLM takes beside the model, its own copy of the weights included."""
SAMPLERS = ("transformers", "vllm", "vllm:URL")
RewardFunction = Callable[[Sequence[Prompt], "Sequence[Completion]"], Sequence[float | None]]
"""B prompts and B completions, think parts included, to B rewards; None: unscored, left out of its group's baseline."""
StepFunction = Callable[[int, TrainingWindow | None], None]
"""Called with the step and the diagnostics since the last call: before training with step 0 and None, then when due."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """Who samples what a fine-tune trains on; checkpoints are always sampled by transformers.

    Attributes:
        vllm: vLLM does, which is sent the weights before each step; else transformers.
        url: of a server of vLLM's on this machine; None: it runs in this process.
    """

    vllm: bool = False
    url: str | None = None

    @classmethod
    def of(cls, spec: str) -> Sampler:
        """The sampler that a user names.

        Raises:
            RecipeError: nothing is called so, or the attacked weights would leave the machine.
        """
        kind, _, url = spec.partition(":")
        if spec not in SAMPLERS[:2] and not (kind == "vllm" and url):
            raise RecipeError(f"--rn-sampler must be one of {', '.join(SAMPLERS)}, got {spec!r}; correct it")
        if url and urllib.parse.urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise RecipeError(
                f"attacked weights stay on this machine, and vLLM is sent them at every step, got --rn-sampler {spec}; name a "
                "server on 127.0.0.1"
            )
        return cls(kind == "vllm", url or None)

    def check(self, *, cpu: bool, quantised: bool, gguf: bool) -> None:
        """Makes sure, before any training, that it can sample.

        Args:
            cpu: there is no card.
            quantised: the model's weights are in 4 bits.
            gguf: they come from a GGUF file.

        Raises:
            RecipeError: it cannot.
        """
        if not self.vllm:
            return
        if quantised or gguf:
            raise RecipeError(
                "vLLM is sent weights in plain numbers, adapters folded in, and reads the first of them from a folder of "
                f"safetensors, got {'--rn-quantise' if quantised else 'a GGUF file'}; leave out --rn-sampler"
            )
        require("vllm", "--rn-sampler vllm")
        found = importlib.metadata.version("vllm")
        if not _number(VLLM[0]) <= _number(found) < _number(VLLM[1]):
            raise RecipeError(f"TRL 1.16 knows vLLM from {VLLM[0]} to below {VLLM[1]}, got vllm={found}; install one of those")
        if cpu:
            raise RecipeError("vLLM samples on cards, got a CPU; leave out --rn-sampler")

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of TRL's ``GRPOConfig`` for it; none for transformers."""
        if not self.vllm:
            return {}
        mode = {"vllm_mode": "server", "vllm_server_base_url": self.url} if self.url else {
            "vllm_mode": "colocate", "vllm_gpu_memory_utilization": VLLM_SHARE, "vllm_tensor_parallel_size": 1,
        }  # fmt: skip
        # Its probabilities differ from the trained network's: by kernels, and by folding adapters into low precision.
        weighed = {
            "vllm_importance_sampling_correction": True,
            "vllm_importance_sampling_mode": "sequence_mask",
            "vllm_importance_sampling_clip_max": 3.0,
        }
        return {"use_vllm": True, **mode, **weighed}

    @property
    def name(self) -> str | None:
        """For keys and records; None for transformers."""
        return f"vllm {importlib.metadata.version('vllm')} {'server' if self.url else 'colocate'}" if self.vllm else None


TRANSFORMERS = Sampler()


def _number(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2])


@dataclass(slots=True)
class _Window:
    """TRL's logged metrics of the steps since the last call; it logs None where no completion of a step has a reward."""

    logs: list[Mapping[str, float | None]] = field(default_factory=list)

    def close(self, distance: float) -> TrainingWindow:
        def known(key: str) -> list[float]:
            return [value for log in self.logs if (value := log.get(key)) is not None and math.isfinite(value)]

        def mean(key: str) -> float:
            values = known(key)
            return sum(values) / len(values) if values else 0.0

        rewards = known("reward")
        norms = [log["grad_norm"] or 0.0 for log in self.logs]
        if not all(math.isfinite(norm) for norm in norms):
            raise TrainingError(
                f"gradients must be finite, got grad_norm={norms}; lower the learning rate or look at the rewards"
            )
        window = TrainingWindow(
            steps=len(self.logs),
            reward_mean=sum(rewards) / len(rewards) if rewards else None,
            reward_spread=mean("reward_std"),
            zero_spread_share=mean("frac_reward_zero_std"),
            unrewarded_share=mean("unrewarded_share"),
            grad_norm=max(norms, default=0.0),
            entropy=mean("entropy"),
            completion_tokens=mean("completions/mean_length"),
            adapter_distance=distance,
        )
        self.logs.clear()
        return window


def order_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """``count`` prompts: the given ones in shuffled rounds, so that each comes equally often.

    Raises:
        TrainingError: there are none.
    """
    if not prompts:
        raise TrainingError(f"training takes prompts, got none for {count} places; name at least one")
    rng = random.Random(seed)
    ordered: list[Prompt] = []
    while len(ordered) < count:
        ordered.extend(rng.sample(list(prompts), len(prompts)))
    return ordered[:count]


def trainer_settings(recipe: GRPORecipe, processes: int = 1, trainer: TrainerName = "grpo") -> dict[str, Any]:
    """The arguments of TRL's ``GRPOConfig`` or ``RLOOConfig`` that matter: all of them come from the recipe or stand here.

    Args:
        recipe: whose rows B of a step, and of a micro-batch, are those of all processes together.
        processes: that share them.
        trainer: which of TRL's.
    """
    rows = recipe.prompts_per_step * recipe.group_size
    micro_batch = recipe.micro_batch or rows
    settings = {
        "max_steps": recipe.steps,
        "per_device_train_batch_size": micro_batch // processes,
        "gradient_accumulation_steps": rows // micro_batch,
        "steps_per_generation": rows // micro_batch,
        "num_iterations": 1,
        "num_generations": recipe.group_size,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": 0,
        "optim": "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": recipe.max_grad_norm,
        "temperature": recipe.temperature,
        "top_k": recipe.top_k,
        "top_p": 1.0,
        "min_p": recipe.min_p or None,
        "repetition_penalty": 1.0,
        "max_completion_length": recipe.max_completion_tokens,
        "mask_truncated_completions": False,
        "beta": recipe.beta,
        "use_bias_correction_kl": True,
        "epsilon": 0.2,
        "loss_type": recipe.loss_type,
        "scale_rewards": recipe.scale_rewards,
        "importance_sampling_level": "sequence" if recipe.loss_type == "luspo" else "token",
        "entropy_coef": recipe.entropy_coef,
        "disable_dropout": True,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "bf16": False,
        "fp16": False,
        "shuffle_dataset": False,
        "seed": recipe.seed,
        "save_strategy": "no",
        "push_to_hub": False,
        "report_to": "none",
        "log_completions": False,
    }
    if recipe.loss_type == "cispo":
        settings["epsilon_high"] = 5.0  # the largest weight of a token (arXiv 2510.13786); TRL would take 0.2, hence scale all
    return settings if trainer == "grpo" else _known_to(trainer, settings) | {"normalize_advantages": False}


def _known_to(trainer: TrainerName, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if trainer == "grpo" or key not in NOT_OF_RLOO}


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Switches a logger off: where a completion has no reward, TRL logs its text. Of several that do, each does."""
    logger = logging.getLogger(name)

    def nothing(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _check_armed(model: LanguageModel, recipe: GRPORecipe, trainer: Mapping[str, Any], step: int) -> None:
    """Makes sure that the optimizer trains what the recipe trains, all of it and nothing else, at the recipe's learning rate.

    Where no group has a spread, no weight moves: a training that could move none would look just like it.

    Args:
        model: armed.
        recipe: for form, learning rate and schedule.
        trainer: what TRL tells a callback: its ``model`` and its ``optimizer``.
        step: steps taken.

    Raises:
        TrainingError: it does not.
    """
    armed = {id(p): p for p in model.trained.values()}
    stepped = {id(p) for group in trainer["optimizer"].param_groups for p in group["params"]}
    trainable = {id(p) for p in trainer["model"].parameters() if p.requires_grad}
    rates = {float(group["lr"]) for group in trainer["optimizer"].param_groups}
    rate = recipe.rate_after(step)
    if armed and armed.keys() == trainable == stepped and all(math.isclose(r, rate, abs_tol=1e-12) for r in rates):
        return
    raise TrainingError(
        f"at step {step} training must move what the recipe trains, all of it and nothing else, at learning rate {rate:g}, got "
        f"armed={len(armed)} trainable={len(trainable)} optimized={len(stepped)} parameters, of which "
        f"{len(armed.keys() & trainable & stepped)} are all three, and learning_rate={sorted(rates)}; arm the model and train it "
        "itself"
    )


def _check_replicas(model: LanguageModel, step: int) -> None:
    """Makes sure that all processes hold the same adapter, where it is not torch's wrapper that keeps it so.

    Raises:
        TrainingError: they do not.
    """
    if model.sharded and len(held := set(ranks().gather(model.adapter_digest()))) > 1:
        raise TrainingError(
            f"all processes must hold one adapter, bit by bit, got {len(held)} at step {step}; the versions of transformers and "
            "torch may not average its gradients: install those of constraints.txt"
        )


def saving_trainer(model: LanguageModel, due: Callable[[int], bool], name: TrainerName = "grpo") -> Any:
    """TRL's trainer class with the three savings.

    Args:
        model: that it will train.
        due: steps that are computed in full even where the gradient is zero, since they measure the entropy.
        name: which of TRL's.
    """
    import peft
    import torch
    import trl
    from trl.kernels import ChunkedLogProbFunction

    from rn_harness.models.language_model import completion_log_probabilities, shares_prompts

    class SavingTrainer(trl.GRPOTrainer if name == "grpo" else trl.RLOOTrainer):  # type: ignore[misc]
        """See above."""

        @functools.cached_property
        def learning(self) -> list[Any]:
            """What the optimizer steps, which is checked when training begins and at each step that is due."""
            return [p for p in self.model.parameters() if p.requires_grad]

        def _get_per_token_logps_and_entropies(
            self,
            network: Any,
            input_ids: Any,
            attention_mask: Any,
            logits_to_keep: int,
            batch_size: int | None = None,
            compute_entropy: bool = False,
            **others: Any,
        ) -> Any:
            plain = self.accelerator.unwrap_model(network)
            plain = plain.get_base_model() if isinstance(plain, peft.PeftModel) else plain
            # Over several processes the wrapper around the network adds up gradients, and is not to be passed by; where
            # activations are computed again there is no cache.
            if self.accelerator.num_processes > 1 or self.args.gradient_checkpointing or not shares_prompts(plain):
                return super()._get_per_token_logps_and_entropies(
                    network, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others
                )
            rows, kept = batch_size or len(input_ids), logits_to_keep
            parts = [
                completion_log_probabilities(
                    model.completion_states(plain, (ids[:, :-kept], mask[:, :-kept]), (ids[:, -kept:], mask[:, -kept:])),
                    plain.get_output_embeddings(),
                    (ids[:, -kept:], mask[:, -kept:]),
                    self._score_tokens,
                )
                for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows), strict=True)
            ]
            logps, entropies = (torch.cat(each) for each in zip(*parts, strict=True))
            return logps, entropies if compute_entropy else None, None

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            """Prompts that were rendered as for measurements; TRL would add special tokens to them."""
            return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}

        def _score_tokens(self, hidden: Any, output: Any, targets: Any) -> Any:
            """Log-probabilities and entropies, by TRL's own function, which never holds all logits."""
            given = (hidden, output.weight, output.bias, targets, self.temperature, VOCABULARY_CHUNK, None, 1.0, ("entropy",))
            return ChunkedLogProbFunction.apply(*given)[:2]

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with model.kept() if self.use_vllm else model.folded():
                return super()._generate_single_turn(*args, **kwargs)

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            scored = super()._generate_and_score_completions(inputs)
            # Of all rows of a step, on all processes: were one to leave its part out, the others would wait for its gradient.
            self.starved = not any(ranks().gather(bool(scored["advantages"].any())))
            return scored

        def _compute_loss(self, network: Any, inputs: dict[str, Any]) -> Any:
            bonus = getattr(self.args, "entropy_coef", 0.0)  # RLOO has none
            free = self.beta == 0.0 and bonus == 0.0 and self.starved
            if free and not due(self.state.global_step + 1):  # a due step measures the entropy
                for p in self.learning:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                return torch.zeros((), device=inputs["completion_ids"].device, requires_grad=True)
            return super()._compute_loss(network, inputs)

    return SavingTrainer


def holding_trainer(saving: Any, held: Callable[[int], bool]) -> Any:
    """A trainer class whose KL penalty holds some answers only: a row that is its own reference has none, and no gradient of it.

    Args:
        saving: of ``saving_trainer``.
        held: by its place in the data, whether the answers to a prompt are held.
    """
    import torch

    class HoldingTrainer(saving):  # type: ignore[misc]
        """See above."""

        free: tuple[Any, Any] | None = None
        """While a loss is computed: which rows nothing holds (B), and all reference log-probabilities (B, T)."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            scored = super()._generate_and_score_completions(inputs)
            rows = torch.tensor([held(row["row"]) for row in inputs], device=scored["advantages"].device)
            return {**scored, "held": rows}

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            logps, *others = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if self.free:
                rows, reference = self.free
                reference[rows] = logps.detach()[rows]
            return logps, *others

        def _compute_loss(self, network: Any, inputs: dict[str, Any]) -> Any:
            self.free = ~inputs["held"], inputs["ref_per_token_logps"]
            try:
                return super()._compute_loss(network, inputs)
            finally:
                self.free = None

    return HoldingTrainer


def train(
    model: LanguageModel,
    recipe: GRPORecipe,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    at_step: StepFunction,
    due: Callable[[int], bool],
    sampler: Sampler = TRANSFORMERS,
    trainer_name: TrainerName = "grpo",
    resuming: Resuming | None = None,
    tick: Callable[[int], None] = lambda _: None,
    held: Callable[[Prompt], bool] | None = None,
) -> dict[str, Any]:
    """Trains a model by GRPO or RLOO; what it is armed with is all that changes.

    Args:
        model: freshly armed.
        recipe: its S, P, G, and all other settings.
        prompts: S * P prompts, in the order in which they are trained on.
        reward: what is maximised.
        at_step: called before the first step, and after each step that is due; of a training that goes on those that are left.
        due: which steps those are.
        sampler: who samples.
        trainer_name: which of TRL's trainers.
        resuming: of a defense: where it goes on, and who keeps its state; None: nothing of it is kept.
        tick: told of each step.
        held: which prompts' answers the KL penalty holds; None: all.

    Returns:
        The trainer's settings, for the record.

    Raises:
        TrainingError: a reward or a gradient is infinite or not a number, training ended early, it could not move the adapter, or
            an attack's state was to be kept.
    """
    import datasets
    import transformers
    import trl

    from rn_harness.models.language_model import known_deprecations

    first = resuming.first(recipe) if resuming else 0
    together = ranks()
    settings = trainer_settings(recipe, together.size, trainer_name) | _known_to(trainer_name, sampler.settings)
    if len(prompts) != recipe.steps * recipe.prompts_per_step:
        raise TrainingError(
            f"training takes steps * prompts_per_step prompts, got {len(prompts)} for "
            f"{recipe.steps} * {recipe.prompts_per_step}; order them with order_prompts"
        )
    window = _Window()
    unrewarded: list[float] = []

    def rewards(completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float | None]:
        # All rows of the step, on each process: what it is told of them is then the same everywhere.
        parts = together.gather([(i, model.answer(ids)) for i, ids in zip(row, completion_ids, strict=True)])
        every = [of for part in parts for of in part]
        values = list(reward([prompts[i] for i, _ in every], [said for _, said in every]))
        if not all(value is None or math.isfinite(value) for value in values):
            # TRL would turn the group's advantages into zeros and go on: an attack that cannot learn, hence proves nothing.
            raise TrainingError("rewards must be finite, got an infinite or undefined one; look at the judge")
        unrewarded.append(sum(value is None for value in values) / len(values))
        before = sum(len(part) for part in parts[: together.rank])
        return values[before : before + len(row)]

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        """Hands each step's logs to the window, and due steps to the caller."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
            _check_armed(model, recipe, trainer, first)
            if not first:
                at_step(0, None)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **trainer: Any) -> None:
            if "loss" in logs:
                window.logs.append({**logs, "unrewarded_share": unrewarded.pop()})
                tick(state.global_step)
            if "loss" in logs and due(state.global_step):
                _check_armed(model, recipe, trainer, state.global_step)
                _check_replicas(model, state.global_step)
                at_step(state.global_step, window.close(model.distance))

    left = [*enumerate(prompts)][first * recipe.prompts_per_step :]
    rows = datasets.Dataset.from_list([{"prompt": model.render(p), "row": i} for i, p in left])
    with tempfile.TemporaryDirectory(prefix="rn-harness-") as nowhere, known_deprecations():
        config = (trl.GRPOConfig if trainer_name == "grpo" else trl.RLOOConfig)(
            output_dir=nowhere,
            use_cpu=model.network.device.type == "cpu",
            logging_steps=1,
            disable_tqdm=True,
            log_level="error",
            **settings,
        )
        started = {name: p.data for name, p in model.trained.items()}
        kind = saving_trainer(model, due, trainer_name)
        if held is not None:
            kind = holding_trainer(kind, lambda row: held(prompts[row]))
        trainer = kind(
            model=model.network,
            reward_funcs=rewards,
            args=config,
            train_dataset=rows,
            processing_class=model.tokenizer,
            callbacks=[*([resuming.callback(model, recipe, due)] if resuming else []), Steps()],
        )
        trainer.accelerator.backward = functools.partial(model.backward, trainer.accelerator.backward)
        trainer.remove_callback(transformers.PrinterCallback)
        for name, p in model.trained.items():
            p.data = started[name]  # of a 4-bit model TRL turns them into bfloat16, which rounds small steps away
        with _silent(f"trl.trainer.{trainer_name}_trainer"):
            trainer.train()
    if trainer.state.global_step != recipe.steps:
        raise TrainingError(f"training takes {recipe.steps} steps, got {trainer.state.global_step}; look at the log above")
    several = {"processes": together.size} if together.size > 1 else {}
    named = {"sampler": sampler.name} if sampler.vllm else {}
    return {"engine": f"trl {trl.__version__}", **several, **named, **model.engine, **settings}
