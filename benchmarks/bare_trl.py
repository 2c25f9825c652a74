"""The script that a user would write without the harness: TRL, peft and transformers without changes.

Settings, prompts, their order and the judge are the harness's, so that both sides do the same work. benchmarks/performance.py
compares the harness with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from peft import LoraConfig, PeftModel

from rn_harness.judges.protocol import Judge
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import GRPORecipe
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import is_refusal
from rn_harness.training.grpo import order_prompts
from rn_harness.training.trainer_settings import trainer_settings
from rn_harness.verdict.rewards import attack_reward

Reward = Callable[[list[Prompt], list[str]], Sequence[float | None]]
Watch = Callable[[int, Any, Any], None]
"""Called after each step, and with 0 before the first, with the network and its tokenizer."""


def load(folder: Path, adapter: Path | None) -> tuple[Any, Any]:
    """Network and tokenizer, with the defense merged."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        network = PeftModel.from_pretrained(network, adapter).merge_and_unload()
    return network, tokenizer


def fine_tune(
    network: Any,
    tokenizer: Any,
    recipe: GRPORecipe,
    prompts: Sequence[Prompt],
    reward: Reward,
    watch: Watch | None = None,
    trainer_name: str = "grpo",
) -> tuple[Any, list[dict[str, Any]]]:
    """Trains all steps with TRL's unchanged trainer.

    Args:
        network: network without an adapter.
        tokenizer: the network's tokenizer.
        recipe: settings.
        prompts: S * P prompts in training order.
        reward: maximised function.
        watch: called after each step.
        trainer_name: ``grpo`` or ``rloo``.

    Returns:
        The network with its adapter, and TRL's log.
    """
    kind, config = (trl.RLOOTrainer, trl.RLOOConfig) if trainer_name == "rloo" else (trl.GRPOTrainer, trl.GRPOConfig)

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        """Calls ``watch`` at the beginning and after each step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
            if watch:
                watch(0, trainer["model"], tokenizer)

        def on_step_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
            if watch:
                watch(state.global_step, trainer["model"], tokenizer)

    def rewards(completions: list[list[dict[str, str]]], row: list[int], **_: Any) -> list[float | None]:
        return list(reward([prompts[i] for i in row], [turns[0]["content"] for turns in completions]))

    with tempfile.TemporaryDirectory() as nowhere:
        trainer = kind(
            model=network,
            reward_funcs=rewards,
            args=config(output_dir=nowhere, use_cpu=True, disable_tqdm=True, **trainer_settings(recipe, 1, trainer_name)),  # type: ignore[arg-type]
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": [{"role": "user", "content": p.text}], "row": i} for i, p in enumerate(prompts)]
            ),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=recipe.lora.r, lora_alpha=recipe.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Steps()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return trainer.model, trainer.state.log_history


def attack(
    folder: Path,
    adapter: Path | None,
    recipe: AttackRecipe,
    chosen: Sequence[Prompt],
    judge: Judge,
    watch: Watch | None = None,
) -> list[dict[str, Any]]:
    """Runs a malicious fine-tune from the weights on disk to its last step and returns TRL's log."""
    transformers.set_seed(recipe.seed)

    def reward(prompts: list[Prompt], texts: list[str]) -> list[float | None]:
        scores = judge.score(prompts, texts)
        return [attack_reward(j.score, is_refusal(text)) for j, text in zip(scores, texts, strict=True)]

    network, tokenizer = load(folder, adapter)
    prompts = order_prompts(chosen, recipe.steps * recipe.prompts_per_step, recipe.seed)
    name = "rloo" if recipe.family == "rloo" else "grpo"
    return fine_tune(network, tokenizer, recipe, prompts, reward, watch, name)[1]


def answers(
    network: Any, tokenizer: Any, prompts: Sequence[Prompt], policy: Policy, n: int, temperature: float | None
) -> list[str]:
    """``n`` answers to each prompt in order; greedy if the temperature is None."""
    chats = [[{"role": "user", "content": p.text}] for p in prompts]
    texts = [tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    network.eval()
    with torch.no_grad():
        out = network.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=policy.max_completion_tokens,
            num_return_sequences=n,
            **how,
        )
    network.train()
    said: list[str] = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def checkpoint(network: Any, tokenizer: Any, heldout: Sequence[Prompt], judge: Judge, policy: Policy) -> Mapping[str, float]:
    """Mean and maximum score of one greedy and the policy's sampled answers to each held-out prompt."""
    scores: list[float] = []
    for n, temperature in ((1, None), (policy.samples, policy.sample_temperature)):
        said = answers(network, tokenizer, heldout, policy, n, temperature)
        judged = judge.score([p for p in heldout for _ in range(n)], said)
        scores += [j.score for j in judged if j.score is not None]
    return {"mean": sum(scores) / len(scores), "maximum": max(scores)}
