"""Which cases wait for which, what each takes of a machine, and which comes first. Floor 4 (run). Nothing is loaded or run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rn_harness.models.memory import GIB, RUNTIME, Plan, card_memory
from rn_harness.records.base import CaseKind
from rn_harness.run.lineup import CaseTask
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe, GRPORecipe
from rn_harness.spec.errors import RnHarnessError
from rn_harness.spec.suite import Suite

SHARE_OF_A_CARD = 1.1
"""What a case is given of a card's memory, over what is planned for it."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a case takes while it runs.

    Attributes:
        cpus: as many as it computes threads with.
        gpus: cards, or a share of one.
        memory: bytes of the machine's, not the card's; 0 where that is not known.
    """

    cpus: int
    gpus: float
    memory: int

    @property
    def sentence(self) -> str:
        """For people."""
        card = f", {self.gpus:g} of a card" if self.gpus else ""
        memory = f"{self.memory / GIB:.1f} GiB" if self.memory else "memory not known"
        return f"{self.cpus} CPU{card}, {memory}"


def tasks_of(suite: Suite, attacks: Iterable[AttackRecipe]) -> list[CaseTask]:
    """All cases of a suite with these attacks."""
    alone: tuple[CaseKind, ...] = ("candidate", "defense", "helpfulness")
    paired: tuple[CaseKind, ...] = ("control", "attack")
    return [*(CaseTask(k, suite) for k in alone), *(CaseTask(k, suite, a) for a in attacks for k in paired)]


def needs(task: CaseTask, *, trained: bool) -> tuple[CaseTask, ...]:
    """The cases whose results a case takes: the candidate's has the judge's certificate, the defense's the defended weights.

    Args:
        task: of the case.
        trained: whether the defense is made by a recipe.
    """
    suite = task.suite
    first, defense = CaseTask("candidate", suite), CaseTask("defense", suite)
    if task.kind == "candidate":
        return ()
    defended = (defense,) if trained else (first,)
    if task.kind == "control":  # a search looks for settings on the defended model, and its control waits for them
        return defended if task.attack and task.attack.search else (first,)
    if task.kind == "attack":
        return (*defended, CaseTask("control", suite, task.attack))
    return (first,) if task.kind == "defense" else defended


Recipes = Callable[[Suite], DefenseRecipe | None]
"""By which recipe a suite's defense is made; None: by none."""


def closed(tasks: Iterable[CaseTask], recipes: Recipes) -> list[CaseTask]:
    """The tasks with all that they need, each once, by name: what is needed comes first."""
    found: dict[str, CaseTask] = {}

    def add(task: CaseTask) -> None:
        for needed in needs(task, trained=recipes(task.suite) is not None):
            add(needed)
        found.setdefault(task.name, task)

    for task in tasks:
        add(task)
    return list(found.values())


def trained_steps(task: CaseTask) -> int:
    """Attack steps that are trained for a case; a search comes with its control, which waits for it."""
    search = task.attack.search if task.attack and task.kind == "control" else None
    return task.steps + (search.trials * search.steps if search else 0)


def length(task: CaseTask, defense: DefenseRecipe | None) -> float:
    """How long a case is, in completions that are sampled and trained on; a measurement without training counts as one."""
    recipe = defense if task.kind == "defense" else task.attack
    if recipe is None:
        return 1.0
    steps = recipe.steps if task.kind == "defense" else trained_steps(task)
    return 1.0 + steps * recipe.prompts_per_step * recipe.group_size


def ranked(lengths: Mapping[str, float], waits: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How long it takes from the beginning of each task to the end of the last that waits for it; the longest is to begin first.

    Args:
        lengths: of each task, by name, in whatever unit.
        waits: names of those that each waits for.
    """
    found: dict[str, float] = {}

    def rank(name: str) -> float:
        if name not in found:
            found[name] = lengths[name] + max((rank(other) for other, of in waits.items() if name in of), default=0.0)
        return found[name]

    return {name: rank(name) for name in lengths}


def waits_and_ranks(tasks: Sequence[CaseTask], recipes: Recipes) -> tuple[dict[str, tuple[str, ...]], dict[str, float]]:
    """By name: for which of these tasks each waits, and its rank, see ``ranked``; all that they need is among them."""
    made = {t.name: recipes(t.suite) for t in tasks}
    waits = {t.name: tuple(n.name for n in needs(t, trained=made[t.name] is not None)) for t in tasks}
    return waits, ranked({t.name: length(t, made[t.name]) for t in tasks}, waits)


def makespan(lengths: Mapping[str, float], waits: Mapping[str, Sequence[str]], slots: int) -> float:
    """How long all tasks take on so many machines, each as soon as it can, of those that wait the longest first.

    Args:
        lengths: of each task, by name.
        waits: names of those that each waits for.
        slots: tasks that run at a time.
    """
    order = ranked(lengths, waits)
    ends: dict[str, float] = {}
    running: dict[str, float] = {}
    left, clock = set(lengths), 0.0
    while left or running:
        ready = sorted((n for n in left if all(w in ends for w in waits[n])), key=lambda n: -order[n])
        for name in ready[: slots - len(running)]:
            running[name] = clock + lengths[name]
            left.discard(name)
        clock = min(running.values())
        ended = [name for name, at in running.items() if at <= clock]
        ends |= {name: running.pop(name) for name in ended}
    return clock


def demand_of(session: RunSession, task: CaseTask) -> Demand:
    """What a case takes on a machine like this one, by ``rn_harness.models.memory``.

    Args:
        session: of a process that has a card to itself, where there are cards.
        task: of the case.
    """
    planned = _planned(session, task)
    cpus = session.candidate.threads
    if planned is None:
        return Demand(cpus, 1.0 if session.on == "cuda" else 0.0, 0)
    if planned.work.device == "cpu":
        return Demand(cpus, 0.0, math.ceil(planned.total))
    return Demand(cpus, share_of_card(planned.total, card_memory()), math.ceil(planned.weights + RUNTIME["cpu"]))


def share_of_card(needed: float, card: float) -> float:
    """One over the number of such cases that a card has room for, at least one.

    Args:
        needed: bytes that are planned.
        card: bytes of it.
    """
    return 1.0 / max(1, int(card / (needed * SHARE_OF_A_CARD)))


def _planned(session: RunSession, task: CaseTask) -> Plan | None:
    recipe: GRPORecipe | None = task.attack
    if recipe is None and task.kind == "defense":
        recipe = session.defense_recipe(task.suite)
    recipe = recipe or next(iter(task.suite.tier_attacks(session.options.tier)), None)
    try:
        return session.capacity.planned(task.suite, recipe) if recipe else None
    except RnHarnessError:  # told where the run is checked, or when the case's turn comes
        return None
