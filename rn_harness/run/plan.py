"""The plan of a run: its cases, their needs, and their order. Pure; nothing is loaded or run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rn_harness.records.base import CaseKind
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.suite import Suite

FindRecipe = Callable[[Suite], DefenseRecipe | None]
"""Gives the recipe that a suite's defense is trained by; None if it is not trained."""


@dataclass(frozen=True)
class CaseTask:
    """One case to make."""

    kind: CaseKind
    suite: Suite
    attack: AttackRecipe | None = None

    @property
    def case_id(self) -> str:
        """The id in the case's record."""
        return self.kind if self.attack is None else f"{self.kind}-{self.attack.id}"

    @property
    def address(self) -> tuple[str, str]:
        """Digest of the suite and id of the case: unique in a process."""
        return self.suite.digest, self.case_id

    @property
    def steps(self) -> int:
        """Attack steps; 0 without an attack."""
        if self.attack is None:
            return 0
        return self.attack.control_steps if self.kind == "control" else self.attack.steps

    @property
    def trained_steps(self) -> int:
        """Attack steps that are trained for this case. A search for settings counts with its control."""
        search = self.attack.search if self.attack and self.kind == "control" else None
        return self.steps + (search.trials * search.steps if search else 0)

    @property
    def name(self) -> str:
        """Unique among the tasks of a run, whose suites have different domains."""
        return f"{self.suite.domain}: {self.case_id}"

    def needs(self, *, trained: bool) -> tuple[CaseTask, ...]:
        """The cases whose results this case takes.

        The candidate's case makes the judge's certificate, the defense's case makes the defended weights.

        Args:
            trained: whether the defense is trained by a recipe.
        """
        candidate, defense = CaseTask("candidate", self.suite), CaseTask("defense", self.suite)
        defended = (defense,) if trained else (candidate,)
        if self.kind == "candidate":
            return ()
        if self.kind == "defense":
            return (candidate,)
        if self.kind == "control":  # a search runs on the defended model, and its control waits for the search
            return defended if self.attack and self.attack.search else (candidate,)
        if self.kind == "attack":
            return (*defended, CaseTask("control", self.suite, self.attack))
        return defended

    def length(self, defense: DefenseRecipe | None) -> float:
        """Completions to sample and train on. A measurement without training counts as one."""
        recipe = defense if self.kind == "defense" else self.attack
        if recipe is None:
            return 1.0
        steps = recipe.steps if self.kind == "defense" else self.trained_steps
        return 1.0 + steps * recipe.prompts_per_step * recipe.group_size


def all_cases(suite: Suite, attacks: Iterable[AttackRecipe]) -> list[CaseTask]:
    """Every case of a suite with these attacks."""
    single: tuple[CaseKind, ...] = ("candidate", "defense", "helpfulness")
    paired: tuple[CaseKind, ...] = ("control", "attack")
    return [*(CaseTask(k, suite) for k in single), *(CaseTask(k, suite, a) for a in attacks for k in paired)]


@dataclass(frozen=True)
class CasePlan:
    """Cases with everything that they need, each once; a case comes after those that it needs.

    Attributes:
        tasks: the cases.
        needs: names of the cases that each case waits for, by name.
        priorities: see ``priorities``, in completions.
    """

    tasks: tuple[CaseTask, ...]
    needs: Mapping[str, tuple[str, ...]]
    priorities: Mapping[str, float]

    @classmethod
    def of(cls, tasks: Iterable[CaseTask], recipe_of: FindRecipe) -> CasePlan:
        """Plans these cases."""
        found: dict[str, CaseTask] = {}

        def add(task: CaseTask) -> None:
            for needed in task.needs(trained=recipe_of(task.suite) is not None):
                add(needed)
            found.setdefault(task.name, task)

        for task in tasks:
            add(task)
        recipes = {name: recipe_of(task.suite) for name, task in found.items()}
        needs = {n: tuple(other.name for other in t.needs(trained=recipes[n] is not None)) for n, t in found.items()}
        lengths = {name: task.length(recipes[name]) for name, task in found.items()}
        return cls(tuple(found.values()), needs, priorities(lengths, needs))


def priorities(lengths: Mapping[str, float], needs: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Time from the beginning of each task to the end of the last one that depends on it. The longest should begin first.

    Args:
        lengths: of each task, by name, in any unit.
        needs: names of the tasks that each waits for.
    """
    found: dict[str, float] = {}

    def priority(name: str) -> float:
        if name not in found:
            found[name] = lengths[name] + max((priority(n) for n, needed in needs.items() if name in needed), default=0.0)
        return found[name]

    return {name: priority(name) for name in lengths}


def makespan(lengths: Mapping[str, float], needs: Mapping[str, Sequence[str]], slots: int) -> float:
    """Time that all tasks take if a free slot takes the ready task with the highest priority.

    Args:
        lengths: of each task, by name.
        needs: names of the tasks that each waits for.
        slots: tasks that run at the same time.
    """
    order = priorities(lengths, needs)
    ends: dict[str, float] = {}
    running: dict[str, float] = {}
    left, clock = set(lengths), 0.0
    while left or running:
        ready = sorted((n for n in left if all(w in ends for w in needs[n])), key=lambda n: -order[n])
        for name in ready[: slots - len(running)]:
            running[name] = clock + lengths[name]
            left.discard(name)
        clock = min(running.values())
        ended = [name for name, end in running.items() if end <= clock]
        ends |= {name: running.pop(name) for name in ended}
    return clock
