"""The cases of a run: their tasks with needs and order, which are pure, and finished cases with their defended candidates.

An executor gives a run its cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import digest_folder
from rn_harness.models.language_model import LanguageModel
from rn_harness.records.base import CaseKind
from rn_harness.records.case import CaseRecord
from rn_harness.records.trajectory import DefenseReport
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.suite import Suite
from rn_harness.verdict.validity import NO_DEFENSE


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
    def name(self) -> str:
        """Unique among the tasks of a run, whose suites have different domains."""
        return f"{self.suite.domain}: {self.case_id}"

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

    def needs(self, *, trained: bool) -> tuple[CaseTask, ...]:
        """The cases whose results this case takes; ``trained``: the defense is trained by a recipe.

        The candidate's case makes the judge's certificate, the defense's case makes the defended weights.
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
        return 1.0 + steps * recipe.step_prompts * recipe.group_size


def all_cases(suite: Suite, attacks: Iterable[AttackRecipe]) -> list[CaseTask]:
    """Every case of a suite with these attacks."""
    single: tuple[CaseKind, ...] = ("candidate", "defense", "helpfulness")
    paired: tuple[CaseKind, ...] = ("control", "attack")
    return [*(CaseTask(k, suite) for k in single), *(CaseTask(k, suite, a) for a in attacks for k in paired)]


@dataclass(frozen=True)
class CasePlan:
    """Cases with everything that they need, each once; a case comes after those that it needs.

    By name, ``needs`` are the cases that each case waits for, and ``priorities`` are those of ``priorities``, in completions.
    """

    tasks: tuple[CaseTask, ...]
    needs: Mapping[str, tuple[str, ...]]
    priorities: Mapping[str, float]

    @classmethod
    def of(cls, tasks: Iterable[CaseTask], recipe_of: Callable[[Suite], DefenseRecipe | None]) -> CasePlan:
        """Plans these cases; ``recipe_of`` gives the recipe that a suite's defense is trained by, if it is trained."""
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

    Lengths are by name and in any unit; needs are the names of the tasks that each waits for.
    """
    found: dict[str, float] = {}

    def priority(name: str) -> float:
        if name not in found:
            found[name] = lengths[name] + max((priority(n) for n, needed in needs.items() if name in needed), default=0.0)
        return found[name]

    return {name: priority(name) for name in lengths}


def makespan(lengths: Mapping[str, float], needs: Mapping[str, Sequence[str]], slots: int) -> float:
    """Time that all tasks take if each free slot takes the ready task with the highest priority, the first of equal ones."""
    order = priorities(lengths, needs)
    ends: dict[str, float] = {}
    running: dict[str, float] = {}
    left, clock = list(lengths), 0.0  # in order, so that the choice between equal priorities is the same each time
    while left or running:
        ready = sorted((n for n in left if all(w in ends for w in needs[n])), key=lambda n: -order[n])
        for name in ready[: slots - len(running)]:
            running[name] = clock + lengths[name]
            left.remove(name)
        clock = min(running.values())
        ended = [name for name, end in running.items() if end <= clock]
        ends |= {name: running.pop(name) for name in ended}
    return clock


@dataclass(frozen=True, slots=True)
class Defended:
    """The candidate with its defense.

    Attributes:
        adapter: folder of the adapter; None for whole weights.
        model: whole defended model; None for an adapter.
        digest: of the adapter or the model; None without a defense.
        hashes: sha256 of each file of the adapter or the model.
        report: of the training; None if the defense was not trained here.
    """

    candidate: Candidate
    name: str
    adapter: Path | None = None
    model: Candidate | None = None
    digest: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    report: DefenseReport | None = None
    stored: bool = False

    @property
    def subject(self) -> str:
        """Name in verdicts; 4-bit weights are named, because they are different weights."""
        quantised = self.candidate.quantised
        return f"{self.name} on weights in {quantised}" if quantised and self.name != NO_DEFENSE else self.name

    @property
    def folder(self) -> Path | None:
        """Folder of the defended weights; None without a defense."""
        return self.adapter or (self.model.folder if self.model else None)

    def verify(self) -> None:
        """Checks that the defended weights still have their digest."""
        if self.model is not None:
            self.model.verify()
        elif self.adapter is not None and digest_folder(self.adapter) != self.digest:
            raise CandidateError(
                f"defended weights must not change during a run, got another digest for {self.adapter}; run again on settled "
                "files"
            )

    def load(self) -> LanguageModel:
        """A fresh copy. An adapter is merged into the weights; 4-bit weights keep it separate."""
        model = (self.model or self.candidate).load()
        if self.adapter is not None:
            model.merge_from(self.adapter)
        return model


@dataclass(slots=True)
class Case:
    """A finished case.

    Attributes:
        stored: whether the measurement was taken from the store.
        defended: folder of the defended weights; None without a defense.
        weights: sha256 of each of their files.
    """

    record: CaseRecord
    domain: str
    stored: bool
    folder: Path
    defended: Path | None
    weights: Mapping[str, str]

    def __repr__(self) -> str:
        """Short: pytest prints fixture values in many places."""
        return f"Case({self.domain} {self.record.case_id}: {self.record.verdict.outcome})"


class Executor:
    """Gives a session its cases: made in this process, on a cluster, or by earlier processes."""

    def start(self) -> None:
        """Begins work that does not wait until a case is asked for, after all checks of the run."""

    def close(self) -> None:
        """Ends work that still runs for this session."""

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """Planned memory, for the run's header."""
        raise NotImplementedError

    def defended(self, suite: Suite) -> Defended:
        """The candidate with this run's defense.

        Raises:
            ExecutorError: its weights were made elsewhere and are not here.
        """
        raise NotImplementedError

    def case(self, declared: CaseTask) -> Case:
        """A case with its record in the run's folder. Waits for it; returns the same object each time.

        Args:
            declared: the case, its attack as the suite declares it.

        Raises:
            ExecutorError: it did not arrive, or is not the case that was asked for. It is not made here instead.
        """
        raise NotImplementedError
