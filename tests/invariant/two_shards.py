"""Script of each process of ``test_shards.py``: trains and measures a defense and an attack on it.

Two runs differ only in whether the weights are whole or sharded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from two_processes import PROMPTS, RECIPE, told

from rn_harness.judges.checkpoints import leak_of
from rn_harness.judges.scoring import ControlAnswers
from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.completion import Completion
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.random_streams import own_random_stream
from rn_harness.spec.prompts import Prompt
from rn_harness.store.ranks import ranks
from rn_harness.training import grpo


def hashed(groups: list[list[Completion]]) -> str:
    """A hash of the answers."""
    return hashlib.sha256("\n".join(answer.text for group in groups for answer in group).encode()).hexdigest()


def measured(model: LanguageModel, step: int) -> dict[str, Any]:
    """A hash of greedy and sampled answers, the leak, and the adapter's distance and digest."""
    with own_random_stream(0, step):
        groups = model.complete(PROMPTS, n=1, temperature=None, max_tokens=9)
        groups += model.complete(PROMPTS, n=3, temperature=1.0, max_tokens=9)
    return {
        "answers": hashed(groups),
        "leak": leak_of(model, ControlAnswers(tuple(PROMPTS), ("a b c", "fox"))),
        "distance": model.distance,
        "adapter": model.adapter_digest(),
    }


def trained(model: LanguageModel, how: str) -> list[dict[str, Any]]:
    """The measurements of each step; with fixed completions only those of the last step."""
    found: list[dict[str, Any]] = []
    model.arm(RECIPE)

    def reward(prompts: list[Prompt], said: list[Completion]) -> list[float | None]:
        if how == "apart" and ranks().rank:  # only this process changes its adapter
            next(iter(model.trained.values())).data.add_(1.0)
        return [float(len(of.text) % 5) for of in said]

    if how == "told":
        model.network.generate = told
        grpo.train(model, RECIPE, PROMPTS * RECIPE.steps, reward, lambda *_: None, due=lambda step: True)
        del model.network.generate
        return [measured(model, RECIPE.steps)]
    grpo.train(
        model, RECIPE, PROMPTS * RECIPE.steps, reward, lambda step, _: found.append(measured(model, step)), due=lambda step: True
    )
    return found


def main(folder: Path, out: Path, shards: int, how: str) -> None:
    """Trains and measures defense and attack, and writes the results and the adapter."""

    def load() -> LanguageModel:
        return load_model(folder, Loading(threads=1, shards=shards, dtype=how if how == "bfloat16" else None))

    if how == "shapeless":  # like an architecture without a sharding plan
        transformers.Qwen2Config.base_model_fsdp_plan = {"embed_tokens": "free_full_weight"}
    model = load()
    found: dict[str, Any] = {"undefended": measured(model, 0)}
    if how == "told":  # each process computes other answers
        model.network.generate = told
        found["said"] = hashed(model.complete(PROMPTS, n=1, temperature=None, max_tokens=5))
        del model.network.generate
    found["defense"] = trained(model, how)
    name = f"{how}-{ranks().size}-{shards}"
    ranks().first(lambda: model.save_adapter(out / name, "any"))
    np.savez(out / f"{name}-{ranks().rank}.npz", **{name: p.detach().numpy() for name, p in model.trained.items()})
    defended = load()
    defended.merge_from(out / name)
    found["defended"] = measured(defended, 0)
    found["attack"] = trained(defended, how)
    (out / f"{name}-{ranks().rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
