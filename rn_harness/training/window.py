"""Diagnostics of the steps between two checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from rn_harness.records.statistics import mean_of
from rn_harness.records.trajectory import TrainingWindow
from rn_harness.spec.errors import TrainingError


@dataclass(slots=True)
class Window:
    """TRL's logged metrics of the steps since the last call; None if no completion of a step has a reward."""

    logs: list[Mapping[str, float | None]] = field(default_factory=list)

    def close(self, distance: float) -> TrainingWindow:
        """The diagnostics of these steps; the next call's begin here.

        Raises:
            TrainingError: a gradient is infinite or not a number.
        """

        def known(key: str) -> list[float]:
            return [value for log in self.logs if (value := log.get(key)) is not None and math.isfinite(value)]

        def mean(key: str) -> float:
            return mean_of(known(key)) or 0.0

        norms = [log["grad_norm"] or 0.0 for log in self.logs]
        if not all(math.isfinite(norm) for norm in norms):
            raise TrainingError(
                f"gradients must be finite, got grad_norm={norms}; lower the learning rate or look at the rewards"
            )
        window = TrainingWindow(
            steps=len(self.logs),
            reward_mean=mean_of(known("reward")),
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
