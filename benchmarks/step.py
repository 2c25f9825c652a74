"""Seconds of one GRPO step, ours against TRL's own: ``python benchmarks/step.py MODEL [--adapter DEFENSE]``.

Both train on the same prompt, with the same settings and random streams, at learning rate 0: the weights stay, and both sample
the same completions. A repeat makes one trainer of each kind, in turn, and measures from the first scoring of
completions to the second: one update and one generation. Two cases: every group has a spread, and none has. Prints a table and
JSON. Judged by processor time, since wall time also measures what else the machine is doing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rn_harness.grpo import order_prompts, train, trainer_settings
from rn_harness.model import LanguageModel, quiet_libraries
from rn_harness.suite import AttackRecipe, Prompt, load_suite

SUITE = Path(__file__).resolve().parent.parent / "suites" / "baking"
TARGET = 0.6
Reward = Callable[[list[str]], list[float]]


class EnoughError(Exception):
    """Ends a training that has been measured."""


class Watch:
    """A reward that takes the time from its first call to its second, and ends the training there."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.begin: tuple[float, float] | None = None
        self.wall = self.cpu = 0.0
        self.characters = 0

    def __call__(self, texts: list[str]) -> list[float]:
        if self.begin is None:
            self.characters = sum(map(len, texts))
            self.begin = time.perf_counter(), time.process_time()
            return self.reward(texts)
        self.wall = time.perf_counter() - self.begin[0]
        self.cpu = time.process_time() - self.begin[1]
        raise EnoughError


def bare(model: LanguageModel, recipe: AttackRecipe, prompts: list[Prompt], watch: Watch) -> None:
    """As a user of TRL would do it."""
    import datasets
    import trl
    from peft import LoraConfig

    with tempfile.TemporaryDirectory() as nowhere:
        trainer = trl.GRPOTrainer(
            model=model.network,
            reward_funcs=lambda completions, **_: watch([turns[0]["content"] for turns in completions]),
            args=trl.GRPOConfig(output_dir=nowhere, use_cpu=True, disable_tqdm=True, **trainer_settings(recipe)),
            train_dataset=datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": p.text}]} for p in prompts]),
            processing_class=model.tokenizer,
            peft_config=LoraConfig(
                r=recipe.lora.r, lora_alpha=recipe.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
        )
        trainer.train()


def ours(model: LanguageModel, recipe: AttackRecipe, prompts: list[Prompt], watch: Watch) -> None:
    """As the harness does it; no step is due, so that only training is measured."""
    model.arm(recipe)
    train(model, recipe, prompts, lambda _, texts: watch(list(texts)), lambda *_: None, due=lambda _: False)


def measure(
    way: Callable[..., None], load: Callable[[], LanguageModel], recipe: AttackRecipe, reward: Reward
) -> dict[str, float]:
    """One repeat."""
    watch = Watch(reward)
    prompts = order_prompts(load_suite(SUITE).prompts["attack"], recipe.steps, recipe.seed)
    try:
        way(load(), recipe, prompts, watch)
    except EnoughError:
        return {"wall": watch.wall, "cpu": watch.cpu, "characters": watch.characters}
    raise RuntimeError(f"a training must score twice, got once in steps={recipe.steps}; look at the trainer")


def main() -> None:
    """Measures all and judges by the ratio of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapter", type=Path, default=None, help="a defense, merged before it is trained on")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    arguments = parser.parse_args()
    quiet_libraries()

    def load() -> LanguageModel:
        model = LanguageModel.load(arguments.model, threads=arguments.threads, dtype=arguments.dtype)
        if arguments.adapter:
            model.merge_from(arguments.adapter)
        return model

    recipe = AttackRecipe(
        name="step", steps=2, control_steps=2, learning_rate=0.0, prompts=1, max_completion_tokens=arguments.tokens
    )
    rewards: dict[str, Reward] = {
        "spread": lambda texts: [float(i) for i in range(len(texts))],
        "no spread": lambda texts: [0.0] * len(texts),
    }
    result: dict[str, Any] = {
        "model": arguments.model.name,
        "defended": arguments.adapter is not None,
        "threads": arguments.threads,
        "dtype": str(load().network.dtype),
        "tokens": arguments.tokens,
        "repeats": arguments.repeats,
        "target": TARGET,
        "cases": {},
    }
    print(f"{'case':<10} {'TRL cpu s':>10} {'ours':>7} {'ratio':>6} {'TRL wall s':>11} {'ours':>7} {'ratio':>6}", flush=True)
    for case, reward in rewards.items():
        pairs = [[measure(way, load, recipe, reward) for way in (bare, ours)] for _ in range(arguments.repeats)]
        medians = {kind: [statistics.median(pair[way][kind] for pair in pairs) for way in (0, 1)] for kind in ("cpu", "wall")}
        result["cases"][case] = {
            "pairs": pairs,
            **{f"{kind}_ratio": round(mine / theirs, 3) for kind, (theirs, mine) in medians.items()},
        }
        told = " ".join(f"{t:>10.2f} {m:>7.2f} {m / t:>6.2f}" for t, m in medians.values())
        print(f"{case:<10} {told}", flush=True)
    text = json.dumps(result, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    sys.exit(0 if all(case["cpu_ratio"] <= TARGET for case in result["cases"].values()) else 1)


if __name__ == "__main__":
    main()
