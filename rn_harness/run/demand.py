"""CPUs, share of a card and memory that a case takes of a machine. Nothing is loaded or run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rn_harness.models.memory import GIB, RUNTIME, Plan, card_memory
from rn_harness.run.context import RunContext
from rn_harness.run.plan import CaseTask
from rn_harness.spec.defense_recipe import GRPORecipe
from rn_harness.spec.errors import RnHarnessError

CARD_MARGIN = 1.1
"""Card memory that a case is given, as a multiple of its plan."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Resources that a case takes while it runs.

    Attributes:
        cpus: one for each thread that it computes with.
        gpus: cards, or a share of one.
        memory: bytes of the machine's memory, not the card's; 0 if unknown.
    """

    cpus: int
    gpus: float
    memory: int

    @property
    def sentence(self) -> str:
        """The demand in words."""
        card = f", {self.gpus:g} of a card" if self.gpus else ""
        memory = f"{self.memory / GIB:.1f} GiB" if self.memory else "memory not known"
        return f"{self.cpus} CPU{card}, {memory}"


def demand_of(context: RunContext, task: CaseTask) -> Demand:
    """Demand of a case on a machine like this one, by ``rn_harness.models.memory``.

    Args:
        context: of a process that has a whole card, if the machine has cards.
        task: the case.
    """
    planned = _planned(context, task)
    cpus = context.candidate.threads
    if planned is None:
        return Demand(cpus, 1.0 if context.on == "cuda" else 0.0, 0)
    if planned.work.device == "cpu":
        return Demand(cpus, 0.0, math.ceil(planned.total))
    return Demand(cpus, share_of_card(planned.total, card_memory()), math.ceil(planned.weights + RUNTIME["cpu"]))


def share_of_card(needed: float, card: float) -> float:
    """One divided by the number of such cases that fit on a card, at most 1.

    Args:
        needed: planned bytes.
        card: bytes of the card.
    """
    return 1.0 / max(1, int(card / (needed * CARD_MARGIN)))


def _planned(context: RunContext, task: CaseTask) -> Plan | None:
    recipe: GRPORecipe | None = task.attack
    if recipe is None and task.kind == "defense":
        recipe = context.defense_recipe(task.suite)
    recipe = recipe or next(iter(task.suite.tier_attacks(context.options.tier)), None)
    try:
        return context.limits.planned(task.suite, recipe) if recipe else None
    except RnHarnessError:  # reported when the run is checked, or by the case itself
        return None
