"""Arguments of TRL's trainers, for a recipe and for the sampler of completions: transformers, or vLLM.

They depart from TRL 1.16's defaults, and each departure is recorded: no saving (it would write attacked weights), no logging to a
service, no shuffling (we order the prompts), no weight decay, no dropout, one optimizer step per generation, and gradient
checkpointing only if the recipe asks for it.
"""

from __future__ import annotations

import importlib.metadata
import urllib.parse
from dataclasses import dataclass
from typing import Any, Literal

from rn_harness.spec.defense_recipe import GRPORecipe
from rn_harness.spec.errors import RecipeError
from rn_harness.spec.extras import require

TrainerName = Literal["grpo", "rloo"]
"""TRL's trainers: advantages over the group's mean and spread, or over the mean of the other completions (arXiv 2402.14740)."""
NOT_OF_RLOO = (
    "loss_type", "scale_rewards", "importance_sampling_level", "entropy_coef", "use_bias_correction_kl",
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
)  # fmt: skip
"""Settings that RLOO lacks: its loss is over whole completions, and takes samples as the trained network's."""
VLLM = ("0.22", "0.32")
"""Versions of vLLM that TRL 1.16 supports: from the first, below the second."""
VLLM_SHARE = 0.3
"""Share of a card that vLLM takes in addition to the model, its copy of the weights included."""
SAMPLERS = ("transformers", "vllm", "vllm:URL")


@dataclass(frozen=True, slots=True)
class Sampler:
    """The sampler of a fine-tune's completions; transformers always samples checkpoints.

    Attributes:
        vllm: vLLM samples, and gets the weights before each step; else transformers.
        url: of a vLLM server on this machine; None: it runs in this process.
    """

    vllm: bool = False
    url: str | None = None

    @classmethod
    def of(cls, spec: str) -> Sampler:
        """The sampler that a user names; raises RecipeError if it is unknown, or attacked weights would leave the machine."""
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
        """Raises RecipeError, before any training, if it cannot sample on this machine and from these weights."""
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
        """Arguments of TRL's ``GRPOConfig`` for it; none for transformers."""
        if not self.vllm:
            return {}
        mode = {"vllm_mode": "server", "vllm_server_base_url": self.url} if self.url else {
            "vllm_mode": "colocate", "vllm_gpu_memory_utilization": VLLM_SHARE, "vllm_tensor_parallel_size": 1,
        }  # fmt: skip
        # Other kernels, and adapters folded in low precision, make its probabilities differ from the trained network's.
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


def trainer_settings(
    recipe: GRPORecipe, processes: int = 1, trainer: TrainerName = "grpo", sampler: Sampler = TRANSFORMERS
) -> dict[str, Any]:
    """Arguments of TRL's ``GRPOConfig`` or ``RLOOConfig``: no setting that matters is left to a default.

    The recipe's rows B of a step, and of a micro-batch, are those of all processes together.
    """
    rows = recipe.step_prompts * recipe.group_size
    micro_batch = recipe.micro_batch or rows
    settings: dict[str, Any] = {
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
        **sampler.settings,
    }
    if recipe.entropy_target is not None:
        settings |= {"use_adaptive_entropy": True, "entropy_target": recipe.entropy_target}
        settings |= {"entropy_coef_min": 0.0, "entropy_coef_max": 1.0, "entropy_coef_delta": 0.005}  # TRL's, declared
    if recipe.loss_type == "cispo":
        settings["epsilon_high"] = 5.0  # the largest weight of a token (arXiv 2510.13786); TRL would take 0.2, hence scale all
    if trainer == "rloo":
        settings = {key: value for key, value in settings.items() if key not in NOT_OF_RLOO} | {"normalize_advantages": False}
    return settings
