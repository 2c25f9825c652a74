"""Arguments of TRL's trainers.

They depart from TRL 1.16's defaults, and each departure is recorded: no saving (it would write attacked weights), no logging to a
service, no shuffling (we order the prompts), no weight decay, no dropout, one optimizer step per generation, and gradient
checkpointing only if the recipe asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rn_harness.spec.defense_recipe import GRPORecipe

TrainerName = Literal["grpo", "rloo"]
"""TRL's trainers: advantages over the group's mean and spread, or over the mean of the other completions (arXiv 2402.14740)."""
NOT_OF_RLOO = (
    "loss_type", "scale_rewards", "importance_sampling_level", "entropy_coef", "use_bias_correction_kl",
    "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max",
)  # fmt: skip
"""Settings that RLOO lacks: its loss is over whole completions, and takes samples as the trained network's."""


def trainer_settings(recipe: GRPORecipe, processes: int = 1, trainer: TrainerName = "grpo") -> dict[str, Any]:
    """Arguments of TRL's ``GRPOConfig`` or ``RLOOConfig``: no setting that matters is left to a default.

    The recipe's rows B of a step, and of a micro-batch, are those of all processes together.
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
    return settings if trainer == "grpo" else known_to(trainer, settings) | {"normalize_advantages": False}


def known_to(trainer: TrainerName, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that this trainer lacks."""
    return {key: value for key, value in settings.items() if trainer == "grpo" or key not in NOT_OF_RLOO}
