"""The protocol of an attack family, and loading a family by its name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from rn_harness.judges.protocol import Judge
from rn_harness.models.language_model import LanguageModel
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import RecipeError
from rn_harness.spec.prompts import Prompt
from rn_harness.training.credit import RewardFunction
from rn_harness.training.exploration import NONE, Exploration
from rn_harness.training.grpo import StepFunction
from rn_harness.training.trainer_settings import TRANSFORMERS, Sampler

GROUP = "rn_harness.attacks"
"""Entry point group of attack families."""
PREFIX = "python:"
BUILT_IN = {
    "grpo": "rn_harness.attacks.built_in:Grpo",
    "rloo": "rn_harness.attacks.built_in:Rloo",
    "warm-start": "rn_harness.attacks.built_in:WarmStarted",
    "affirmative": "rn_harness.attacks.built_in:Affirmative",
    "unlearning": "rn_harness.attacks.built_in:Unlearning",
    "sft": "rn_harness.attacks.built_in:SupervisedFineTuning",
    "ablation": "rn_harness.attacks.ablation:RefusalAblation",
}
"""Name to module and class; imported on first use."""


@dataclass(frozen=True, slots=True)
class AttackContext:
    """Everything an attack family works with.

    Attributes:
        model: the policy under attack, prepared for training; only the parameters in ``model.trained`` may change.
        recipe: settings; ``steps`` are those of this attack.
        prompts: the attack prompts, drawn by the recipe's seed.
        benign: benign prompts, on which nothing is measured.
        answers: the full compliant answer to each attack prompt by id; None if no answers are known. In memory only.
        reward: the reward to maximise.
        at_step: call it with 0 and None before training, then after each step that is due, with the diagnostics since the
            last call.
        due: True for a step after which ``at_step`` is called.
        complies: for texts as answers to prompts, True for each that the reward's judge scores above the threshold.
        sampler: samples the completions for RL.
        tick: may be called with each step taken, to show progress.
        exploration: the recipe's aids in rollouts; checkpoints are measured under their present state.
        over: True if the training may end after a due step, since a control has broken the model; a family need not ask.
    """

    model: LanguageModel
    recipe: AttackRecipe
    prompts: Sequence[Prompt]
    benign: Sequence[Prompt]
    answers: Mapping[str, str] | None
    reward: RewardFunction
    at_step: StepFunction
    due: Callable[[int], bool]
    complies: Callable[[Sequence[Prompt], Sequence[str]], Sequence[bool]]
    sampler: Sampler = TRANSFORMERS
    tick: Callable[[int], None] = lambda _: None
    exploration: Exploration = NONE
    over: Callable[[], bool] = lambda: False

    def __repr__(self) -> str:
        """Name without answers."""
        return f"AttackContext({self.recipe.id}, {len(self.prompts)} prompts)"


def forbid_core_dumps() -> None:
    """Switches core dumps of this process off: one would contain attacked weights."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


class AttackFamily(Protocol):
    """One way to attack."""

    def check(self, recipe: AttackRecipe) -> None:
        """Raises RecipeError, before any work, if this family cannot follow the recipe."""
        ...

    def train(self, context: AttackContext) -> dict[str, Any]:
        """Attacks the model in place.

        Returns:
            The settings used, for the record; the same for an attack and its control.

        Raises:
            UnsuitedError: the attack cannot run on this model; nothing was trained.
            TrainingError: the training failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded family.

    ``digest`` is the SHA-256 of its source file, hex; None for a built-in family, whose source is part of the harness's digest.
    """

    family: AttackFamily
    digest: str | None


@dataclass(frozen=True, slots=True)
class Attacker:
    """One attacker: settings, method, prompts, and the judge that rewards.

    Attributes:
        pool: prompts from which the attack prompts are drawn.
        benign: benign prompts to train on.
        answers: returns the compliant answers to prompts by id; None if they are not known.
        searched: the result of a search for these settings, for the record; None without a search.
    """

    recipe: AttackRecipe
    family: Loaded
    pool: Sequence[Prompt]
    reward_judge: Judge
    benign: Sequence[Prompt] = ()
    answers: Callable[[Sequence[Prompt]], Mapping[str, str] | None] = lambda _: None
    sampler: Sampler = TRANSFORMERS
    searched: Mapping[str, Any] | None = None


def family_names() -> list[str]:
    """Names of the built-in families and of those in installed packages."""
    return sorted({*BUILT_IN, *(entry.name for entry in metadata.entry_points(group=GROUP))})


def load_family(spec: str, folder: Path) -> Loaded:
    """Loads a recipe's ``family``; one in a file lies in the suite's ``folder``.

    Raises RecipeError if the family is unknown, or cannot be imported, created or used.
    """
    if spec in BUILT_IN:
        module, _, name = BUILT_IN[spec].partition(":")
        return Loaded(getattr(importlib.import_module(module), name)(), None)
    found = _from_file(spec, folder) if spec.startswith(PREFIX) else _from_entry_point(spec)
    try:
        family = found()
    except Exception as error:
        raise RecipeError(
            f"an attack family is made without arguments, got family={spec!r}: {type(error).__name__}: {error}; see "
            "docs/for-red-teamers.md"
        ) from error
    missing = [method for method in ("check", "train") if not callable(getattr(family, method, None))]
    if missing:
        raise RecipeError(f"an attack family has check and train, got family={spec!r} without {', '.join(missing)}; add it")
    source = inspect.getsourcefile(found)
    declared = str(getattr(family, "digest", "")).encode()  # of further files that it reads
    return Loaded(family, hashlib.sha256((Path(source).read_bytes() if source else spec.encode()) + declared).hexdigest())


def _from_file(spec: str, folder: Path) -> Any:
    file, _, name = spec.removeprefix(PREFIX).partition(":")
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RecipeError(f"a family of your own lies in the suite's folder, got family={spec!r}, which is {path}; copy it there")
    if not path.is_file():
        raise RecipeError(f"a family of your own lies in the suite's folder, got family={spec!r} and no file {path}; correct it")
    module_spec = importlib.util.spec_from_file_location(f"rn_harness_attack_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # inspect and dataclasses look there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(
            f"the file of a family must be importable, got family={spec!r}: {type(error).__name__}: {error}; repair it"
        ) from error
    if not inspect.isclass(getattr(module, name, None)):
        raise RecipeError(f"the family must be a class in {path}, got name={name!r}, which is none; correct it")
    return getattr(module, name)


def _from_entry_point(name: str) -> Any:
    entries = {entry.value: entry for entry in metadata.entry_points(group=GROUP, name=name)}
    if not entries:
        raise RecipeError(
            f"an attack's family must be known, got family={name!r}; known: {', '.join(family_names())}, or "
            "python:FILE.py:Name with a file of the suite's folder"
        )
    if len(entries) > 1:
        raise RecipeError(f"one package must declare the family {name!r}, got {', '.join(sorted(entries))}; remove one")
    ((value, entry),) = entries.items()
    try:
        return entry.load()
    except Exception as error:
        raise RecipeError(
            f"the family's package must be importable, got entry={value!r}: {type(error).__name__}: {error}; reinstall it"
        ) from error
