"""A defense's training as it stands, kept while it lasts, so that a kill does not cost it.

It lies in the store, under the defense's key, and goes when the defense is whole. An attack has no such thing: what takes a
snapshot asks for a defense's recipe.
"""

from __future__ import annotations

import pickle  # nosec B403 # torch's error for what its reader of plain tensors refuses; nothing is unpickled here
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn_harness.records.base import Record
from rn_harness.records.trajectory import ConvergencePoint
from rn_harness.spec.defense_recipe import DefenseRecipe, GRPORecipe
from rn_harness.spec.errors import TrainingError
from rn_harness.store.ranks import ranks
from rn_harness.store.store import Store

if TYPE_CHECKING:
    from rn_harness.models.language_model import LanguageModel

PARTIAL = "partial"
STATE, MEASURED = "defense_training.pt", "measured.json"
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError)
COPIES = 3
"""Of what is trained, in a snapshot: itself, and the optimizer's two means."""


def check_resumable(recipe: GRPORecipe) -> None:
    """Makes sure that what is to be kept is a defense's.

    Raises:
        TrainingError: it is an attack's.
    """
    if not isinstance(recipe, DefenseRecipe):
        raise TrainingError(
            f"only a defense's training is kept, got recipe={type(recipe).__name__}; attacked weights stay in memory: train "
            "without a snapshot"
        )


def random_streams() -> dict[str, Any]:
    """This process's random streams, in plain numbers and tensors."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  (the stream that libraries draw from)
    return {
        "python": random.getstate(),
        "numpy": [name, [int(key) for key in keys], *rest],
        "torch": torch.get_rng_state(),
        "card": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_streams(streams: Mapping[str, Any]) -> None:
    """Puts this process's random streams where they were."""
    import numpy as np
    import torch

    version, numbers, gauss = streams["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = streams["numpy"]
    np.random.set_state(  # noqa: NPY002
        (name, np.array(keys, dtype=np.uint32), *rest)
    )
    torch.set_rng_state(streams["torch"])
    if streams["card"] is not None:
        torch.cuda.set_rng_state(streams["card"])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A defense's training after a step: all that the next step depends on.

    Attributes:
        step: steps taken.
        weights: what is trained, by name.
        optimizer, schedule: their states.
        streams: random streams of each process.
    """

    step: int
    weights: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    streams: list[dict[str, Any]]

    def __repr__(self) -> str:
        """No weights: ``--showlocals`` prints what stands here."""
        return f"Snapshot(step={self.step})"

    @classmethod
    def take(cls, model: LanguageModel, recipe: GRPORecipe, step: int, optimizer: Any, schedule: Any) -> Snapshot:
        """Of a training that has taken so many steps; called by all processes.

        Raises:
            TrainingError: it is an attack's.
        """
        check_resumable(recipe)
        weights = {name: p.detach().cpu() for name, p in model.trained.items()}
        return cls(step, weights, optimizer.state_dict(), schedule.state_dict(), ranks().gather(random_streams()))

    def put_back(self, model: LanguageModel, optimizer: Any, schedule: Any) -> None:
        """Puts weights, optimizer and schedule where they were; the random streams are set last, when the next step begins."""
        import torch

        with torch.no_grad():
            for name, p in model.trained.items():
                p.copy_(self.weights[name])
        optimizer.load_state_dict(self.optimizer)
        schedule.load_state_dict(self.schedule)

    def set_streams(self) -> None:
        """Sets the random streams of this process."""
        set_random_streams(self.streams[ranks().rank])

    def misfit(self, model: LanguageModel, recipe: DefenseRecipe) -> str | None:
        """Why this is no snapshot of this training; None where it is one."""
        if not 0 < self.step < recipe.steps or self.step % recipe.evaluate_every:
            return f"it stands at step {self.step}, at which none is kept"
        trained = {name: (p.shape, p.dtype) for name, p in model.trained.items()}
        if trained != {name: (w.shape, w.dtype) for name, w in self.weights.items()}:
            return "its weights are of another form"
        means = sorted(tuple(of["exp_avg"].shape) for of in self.optimizer["state"].values())
        if means != sorted(tuple(w.shape) for w in self.weights.values()):
            return "its optimizer is of another form"
        return None if len(self.streams) == ranks().size else "it is of another number of processes"


@dataclass(frozen=True, slots=True)
class Resuming:
    """How the training of a defense goes on, and what is told to keep it.

    Attributes:
        earlier: where it goes on, as if it had not been cut off; None: it begins.
        keep: gets a snapshot after each due step, when the next one begins.
    """

    earlier: Snapshot | None
    keep: Callable[[Snapshot], None]

    def first(self, recipe: GRPORecipe) -> int:
        """Steps that are taken already.

        Raises:
            TrainingError: it is an attack's.
        """
        check_resumable(recipe)
        return self.earlier.step if self.earlier else 0

    def callback(self, model: LanguageModel, recipe: GRPORecipe, due: Callable[[int], bool]) -> Any:
        """What the trainer calls; before all other callbacks."""
        import transformers

        earlier, keep = self.earlier, self.keep

        class Keeping(transformers.TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
                if earlier is not None:
                    earlier.put_back(model, trainer["optimizer"], trainer["lr_scheduler"])
                    state.global_step = earlier.step

            def on_step_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
                if earlier is not None and state.global_step == earlier.step:
                    earlier.set_streams()  # not sooner: the loader of rows draws a number when it begins
                elif state.global_step and due(state.global_step):
                    keep(Snapshot.take(model, recipe, state.global_step, trainer["optimizer"], trainer["lr_scheduler"]))

        return Keeping()


class Measured(Record):
    """What was measured up to a snapshot.

    Attributes:
        points: of convergence.
        resumed: the steps from which the training went on before.
    """

    points: tuple[ConvergencePoint, ...]
    resumed: tuple[int, ...] = ()


class Resumption:
    """The training of one defense, kept in the store while it lasts; of several processes the first writes.

    Args:
        store: the caller holds the lock of the defense.
        key: of the defense.
        recipe: of the defense.
        tell: gets a sentence where it goes on.

    Raises:
        TrainingError: the recipe is an attack's.
    """

    def __init__(self, store: Store, key: str, recipe: DefenseRecipe, tell: Callable[[str], None]) -> None:
        check_resumable(recipe)
        self._store, self._key, self._recipe, self._tell = store, key, recipe, tell

    def read(self, model: LanguageModel) -> tuple[Snapshot, Measured] | None:
        """What an earlier run left of this training; None where it left nothing.

        What is damaged, or does not fit, is set aside with a warning, and None is returned.

        Args:
            model: armed.
        """
        import torch

        folder = ranks().first(lambda: self._store.get(PARTIAL, self._key))
        if folder is None:
            return None
        try:
            # Plain tensors, numbers, lists and dictionaries; whatever else stands there is refused, and not run.
            snapshot = Snapshot(**torch.load(folder / STATE, map_location="cpu", weights_only=True))
            measured = Measured.model_validate_json((folder / MEASURED).read_text(encoding="utf-8"))
            problem = snapshot.misfit(model, self._recipe)
            due = [*range(0, snapshot.step + 1, self._recipe.evaluate_every)]
            if problem is None and [p.step for p in measured.points] != due:
                problem = "what was measured is of other steps"
        except UNREADABLE as error:
            problem = f"it cannot be read: {type(error).__name__}"
        if problem is not None:
            why = problem
            ranks().first(lambda: self._store.set_aside(PARTIAL, self._key, why))
            return None
        self._tell(f"goes on from step {snapshot.step} of {self._recipe.steps}, where an earlier run was cut off")
        return snapshot, measured

    def keep(self, snapshot: Snapshot, measured: Measured) -> None:
        """Keeps this in the place of what was kept before.

        Raises:
            OSError: it cannot be written.
        """

        def write(folder: Path) -> None:
            import torch

            state = {name: getattr(snapshot, name) for name in Snapshot.__slots__}
            torch.save(state, folder / STATE)
            (folder / MEASURED).write_text(measured.model_dump_json(), encoding="utf-8")

        ranks().first(lambda: self._store.put(PARTIAL, self._key, write))

    def close(self) -> None:
        """The defense is whole, and stands elsewhere."""
        ranks().first(lambda: self._store.remove(PARTIAL, self._key))
