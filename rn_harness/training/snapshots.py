"""Snapshots of a defense's training, so that a kill does not cost it.

They are in the store, under the defense's key, until the defense is whole. An attack has none: its recipe is refused.
"""

from __future__ import annotations

import pickle  # nosec B403 # the error of torch's reader of plain tensors; nothing is unpickled here
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn_harness.models.language_model import LanguageModel
from rn_harness.models.random_streams import random_state, set_random_state
from rn_harness.records.base import Record
from rn_harness.records.trajectory import ConvergencePoint
from rn_harness.spec.defense_recipe import DefenseRecipe, GRPORecipe
from rn_harness.spec.errors import TrainingError
from rn_harness.store.ranks import ranks
from rn_harness.store.store import Store

PARTIAL = "partial"
STATE, MEASURED = "defense_training.pt", "measured.json"
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError)
COPIES = 3
"""Copies of the trained numbers in a snapshot: themselves, and the optimizer's two means."""


def check_resumable(recipe: GRPORecipe) -> None:
    """Raises TrainingError unless a training that is kept is a defense's."""
    if not isinstance(recipe, DefenseRecipe):
        raise TrainingError(
            f"only a defense's training is kept, got recipe={type(recipe).__name__}; attacked weights stay in memory: train "
            "without a snapshot"
        )


def is_kept(recipe: DefenseRecipe, step: int) -> bool:
    """True if the training after this step is kept: where convergence is measured, and where hardening begins.

    It is not kept at the start or the end.
    """
    return 0 < step < recipe.last_step and (step % recipe.evaluate_every == 0 or step == recipe.steps)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A defense's training after a step: all that the next step depends on.

    Trained parameters are by name; ``schedule`` has what else a step leaves to the next; ``streams`` has the state of the random
    generators of each process.
    """

    step: int
    weights: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    streams: list[dict[str, Any]]

    def __repr__(self) -> str:
        """No weights, since ``--showlocals`` prints this."""
        return f"Snapshot(step={self.step})"

    @classmethod
    def take(cls, model: LanguageModel, recipe: GRPORecipe, step: int, optimizer: Any, schedule: Any) -> Snapshot:
        """A snapshot after so many steps of a defense; called by all processes. A schedule of None follows from the step."""
        check_resumable(recipe)
        weights = {name: p.detach().cpu() for name, p in model.trained.items()}
        scheduled = {} if schedule is None else schedule.state_dict()
        return cls(step, weights, optimizer.state_dict(), scheduled, ranks().gather(random_state()))

    def put_back(self, model: LanguageModel, optimizer: Any, schedule: Any) -> None:
        """Restores weights, optimizer and schedule; the random generators are set when the next step begins."""
        import torch

        with torch.no_grad():
            for name, p in model.trained.items():
                p.copy_(self.weights[name])
        optimizer.load_state_dict(self.optimizer)
        if schedule is not None:
            schedule.load_state_dict(self.schedule)

    def misfit(self, model: LanguageModel, recipe: DefenseRecipe, *, hardened: bool) -> str | None:
        """The reason why this snapshot is not of this training, or of its hardening; None if it is."""
        import torch

        if not is_kept(recipe, self.step) or hardened != (self.step >= recipe.steps):
            return f"it stands at step {self.step}, at which none is kept"
        parameters = dict(model.network.named_parameters()) if hardened else model.trained
        trained = {name: (p.shape, torch.float32 if hardened else p.dtype) for name, p in parameters.items()}
        if trained != {name: (w.shape, w.dtype) for name, w in self.weights.items()}:
            return "its weights are of another form"
        means = sorted(tuple(state["exp_avg"].shape) for state in self.optimizer["state"].values())
        stepped = {} if hardened and self.step == recipe.steps else self.weights  # before its first round
        if means != sorted(tuple(w.shape) for w in stepped.values()):
            return "its optimizer is of another form"
        return None if len(self.streams) == ranks().size else "it is of another number of processes"


class Measured(Record):
    """Measurements of convergence up to a snapshot, and the steps from which the training continued before.

    ``settings`` are those of the training, if it is whole and the snapshot is of the hardening after it.
    """

    points: tuple[ConvergencePoint, ...]
    resumed: tuple[int, ...] = ()
    settings: dict[str, Any] | None = None


class Resumption:
    """The unfinished training of one defense in the store; the first of several processes writes it.

    The caller holds the lock of the defense. ``tell`` gets a sentence when a training continues.

    Attributes:
        points: measurements of convergence so far; those to come are added to it.
        resumed: the steps from which the training continued.
        settings: of the training, once hardening has begun.
    """

    def __init__(self, store: Store, key: str, recipe: DefenseRecipe, tell: Callable[[str], None]) -> None:
        check_resumable(recipe)
        self._store, self._key, self._recipe, self._tell = store, key, recipe, tell
        self._earlier: Snapshot | None = None
        self.points: list[ConvergencePoint] = []
        self.resumed: tuple[int, ...] = ()
        self.settings: dict[str, Any] | None = None

    def begin(self, model: LanguageModel, recipe: GRPORecipe) -> int:
        """Reads the snapshot that an earlier run left, for an armed model; returns the steps taken, rounds of hardening included.

        It is called without arming if the earlier run ``was_hardening``. A snapshot that is damaged, or does not fit, is set
        aside with a warning.
        """
        import torch

        check_resumable(recipe)
        folder = ranks().first(lambda: self._store.get(PARTIAL, self._key))
        if folder is None:
            return 0
        try:
            # Plain tensors, numbers, lists and dictionaries; torch refuses anything else without running it.
            snapshot = Snapshot(**torch.load(folder / STATE, map_location="cpu", weights_only=True))
            measured = Measured.model_validate_json((folder / MEASURED).read_text(encoding="utf-8"))
            problem = snapshot.misfit(model, self._recipe, hardened=measured.settings is not None)
            due = [*range(0, snapshot.step + 1, self._recipe.evaluate_every)]
            if problem is None and [p.step for p in measured.points] != due:
                problem = "what was measured is of other steps"
        except UNREADABLE as error:
            problem = f"it cannot be read: {type(error).__name__}"
        if problem is not None:
            why = problem
            ranks().first(lambda: self._store.set_aside(PARTIAL, self._key, why))
            return 0
        self._tell(f"goes on from step {snapshot.step} of {self._recipe.last_step}, where an earlier run was cut off")
        self._earlier, self.resumed = snapshot, (*measured.resumed, snapshot.step)
        self.points.extend(measured.points)
        self.settings = measured.settings
        return snapshot.step

    def was_hardening(self) -> bool:
        """True if the snapshot that an earlier run left is of hardening, so that the training before it is whole."""
        folder = ranks().first(lambda: self._store.get(PARTIAL, self._key))
        try:
            return folder is not None and Measured.model_validate_json((folder / MEASURED).read_bytes()).settings is not None
        except UNREADABLE:
            return False  # ``begin`` sets it aside

    @property
    def hardens(self) -> bool:
        """True if the snapshot that ``begin`` read is of hardening."""
        return self._earlier is not None and self._earlier.step >= self._recipe.steps

    def put_back(self, model: LanguageModel, optimizer: Any, schedule: Any = None) -> int:
        """Continues a training by torch with the snapshot that ``begin`` read, if there was one; returns its steps."""
        if self._earlier is None:
            return 0
        self._earlier.put_back(model, optimizer, schedule)
        set_random_state(self._earlier.streams[ranks().rank])
        return self._earlier.step

    def callback(self, model: LanguageModel) -> Any:
        """The trainer's callback that continues the training, and keeps it when the step after a kept one begins.

        It comes before all other callbacks.
        """
        import transformers

        earlier, keep = self._earlier, self.keep

        class Keeping(transformers.TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
                if earlier is not None:
                    earlier.put_back(model, trainer["optimizer"], trainer["lr_scheduler"])
                    state.global_step = earlier.step

            def on_step_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
                if earlier is not None and state.global_step == earlier.step:
                    set_random_state(earlier.streams[ranks().rank])  # not sooner: the loader of rows draws a number first
                else:
                    keep(model, state.global_step, trainer["optimizer"], trainer["lr_scheduler"])

        return Keeping()

    def keep(self, model: LanguageModel, step: int, optimizer: Any, schedule: Any = None) -> None:
        """Replaces the kept snapshot after a step that is kept, once it is measured; called by all processes.

        After its last step a training is kept only with its ``settings``, by the hardening that follows.
        """
        if not is_kept(self._recipe, step) or (step >= self._recipe.steps and self.settings is None):
            return
        snapshot = Snapshot.take(model, self._recipe, step, optimizer, schedule)
        measured = Measured(points=tuple(self.points), resumed=self.resumed, settings=self.settings)

        def write(folder: Path) -> None:
            import torch

            torch.save({name: getattr(snapshot, name) for name in Snapshot.__slots__}, folder / STATE)
            (folder / MEASURED).write_text(measured.model_dump_json(), encoding="utf-8")

        ranks().first(lambda: self._store.put(PARTIAL, self._key, write))

    def close(self) -> None:
        """Removes the snapshot of a defense that is whole and stored elsewhere."""
        ranks().first(lambda: self._store.remove(PARTIAL, self._key))
