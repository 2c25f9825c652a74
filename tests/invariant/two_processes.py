"""Script of each process of ``test_ranks.py``: trains a tiny model on fixed completions and saves its adapter.

The rows do not depend on the number of processes, because a completion depends only on its position in its group.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.completion import Completion
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.prompts import Prompt
from rn_harness.store.ranks import ranks
from rn_harness.training import grpo
from rn_harness.training.credit import CheckedReward, Credit

PROMPTS = [Prompt(id=name, topic=name, text=text) for name, text in (("even", "Draw a house."), ("uneven", "Name three rivers."))]
RECIPE = AttackRecipe(
    name="x", steps=2, control_steps=2, learning_rate=1e-3, prompts=2, prompts_per_step=2, group_size=4, max_completion_tokens=6
)
"""Each of two processes gets a whole group, one of them without a reward spread."""


def told(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
    """Replaces ``generate``: each completion depends on the position of its row among the rows of all processes."""
    first = ranks().rank * len(input_ids)
    draws = [np.random.default_rng((first + i) % RECIPE.group_size).integers(20, 300, 5) for i in range(len(input_ids))]
    return torch.cat([input_ids, torch.tensor(np.array(draws))], 1)


def main(folder: Path, out: Path, how: str) -> None:
    """Trains two steps and writes the adapter's change and the rows that the reward and the check received."""
    model = load_model(folder, Loading(threads=1))
    model.arm(RECIPE)
    start = {name: p.detach().clone() for name, p in model.trained.items()}

    asked: list[list[str]] = []
    checked: list[list[int]] = []

    class Seen(CheckedReward):
        """Notes the rows that are checked."""

        def check(self, loss: Sequence[Credit]) -> None:
            checked.append(sorted(credit.row for credit in loss))
            super().check(loss)

    def reward(prompts: list[Prompt], said: list[Completion]) -> list[float | None]:
        asked.append([p.id for p in prompts])
        if how == "broken" and ranks().rank == 1:
            raise TrainingError("one process fails")
        return [0.0 if p.id == "even" or how == "starved" else float(i % 4) for i, p in enumerate(prompts)]

    grpo.CheckedReward = Seen  # type: ignore[misc]
    model.network.generate = told
    windows = []
    grpo.train(
        model,
        RECIPE,
        PROMPTS * RECIPE.steps,
        reward,
        lambda _, window: windows.append(window),
        due=lambda step: step == 2,
    )
    moved = {name: (p.detach() - start[name]).numpy() for name, p in model.trained.items()}
    np.savez(out / f"{ranks().size}-{ranks().rank}.npz", **moved)
    last = windows[-1]
    assert last is not None
    (out / f"{ranks().size}-{ranks().rank}.txt").write_text(f"{asked} {checked} {last.reward_mean} {last.zero_spread_share}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
