"""The script that a user would write without the harness: TRL, peft and transformers without changes.

Settings, prompts, their order and the judge are the harness's, so that both sides do the same work; an explorer's aids are those
of plain_trl_attack.py. benchmarks/performance.py compares the harness with it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import plain_trl_attack
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


@dataclass(frozen=True, slots=True)
class Aids:
    """Additional means of an attacker.

    Attributes:
        ban: first tokens that are banned in each round.
        every: steps between two rounds.
        opener: beginning of each answer in rollouts.
        teach: supervised steps on the network before the first step.
    """

    ban: int = 0
    every: int = 10
    opener: str | None = None
    teach: Callable[[Any], None] | None = None

    @classmethod
    def of(cls, recipe: AttackRecipe, folder: Path, chosen: Sequence[Prompt], tokenizer: Any) -> Aids:
        """The aids that a recipe declares. An opener's own words are left out, and it is never annealed."""

        def teach(network: Any) -> None:
            assert recipe.warm_start
            known = json.loads((folder / "knowledge.json").read_text(encoding="utf-8"))
            rows = [{"text": p.text, "topic": p.topic} for p in chosen]
            recipes = {topic["phrase"]: topic["recipe"] for topic in known}
            plain_trl_attack.teach(network, tokenizer, rows, recipes, recipe.warm_start.steps)

        begun = recipe.opener.texts[0] if recipe.opener else None
        taught = teach if recipe.warm_start else None
        return cls(recipe.ban.tokens, recipe.ban.every, begun, taught) if recipe.ban else cls(opener=begun, teach=taught)


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
    aids: Aids = Aids(),
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
        aids: of an attacker.

    Returns:
        The network with its adapter, and TRL's log.
    """
    kind, config = (trl.RLOOTrainer, trl.RLOOConfig) if trainer_name == "rloo" else (trl.GRPOTrainer, trl.GRPOConfig)

    bans = plain_trl_attack.Bans(aids.ban)
    begun = [{"role": "assistant", "content": aids.opener}] if aids.opener else []

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        """Calls ``watch`` at the beginning and after each step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
            if aids.teach:
                aids.teach(trainer["model"])
            if watch:
                watch(0, trainer["model"], tokenizer)

        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if aids.ban and (state.global_step % aids.every == 0 or state.global_step == 1):
                bans.grow(trainer.generation_config)
            if watch:
                watch(state.global_step, named["model"], tokenizer)

    def rewards(
        completions: list[list[dict[str, str]]], row: list[int], completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        found = list(reward([prompts[i] for i in row], [turns[-1]["content"] for turns in completions]))
        bans.saw(completion_ids, [of or 0.0 for of in found])
        return found

    with tempfile.TemporaryDirectory() as nowhere:
        trainer = kind(
            model=network,
            reward_funcs=rewards,
            args=config(output_dir=nowhere, use_cpu=True, disable_tqdm=True, **trainer_settings(recipe, 1, trainer_name)),  # type: ignore[arg-type]
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": [{"role": "user", "content": p.text}, *begun], "row": i} for i, p in enumerate(prompts)]
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
    aids = Aids.of(recipe, folder, chosen, tokenizer)
    return fine_tune(network, tokenizer, recipe, prompts, reward, watch, name, aids)[1]


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
