"""Model profiles: a candidate by a short name, with its licence, settings and recipe.

A profile is a YAML file in ``fixtures/models``. It gives a model's short name and its settings; nothing is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from rn_harness.spec.base import Frozen, Name
from rn_harness.spec.errors import CandidateError, RnHarnessError
from rn_harness.spec.yaml_files import read_declared

DType = Literal["float32", "bfloat16"]
HUB_ID = r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$"
_P = TypeVar("_P", bound="Profile")


def profile_names(folder: Path) -> list[str]:
    """The names of all profiles in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def hint(name: str, known: Sequence[str]) -> str:
    """The names that a user may have meant instead of an unknown one: similar ones, else all."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"


class Profile(Frozen):
    """Base of profiles of models and judges; ``folder``, the profile's own, is set on reading and not a key of the file."""

    name: Name
    folder: Path = Field(default=Path(), exclude=True)


def read_named(name: str, folder: Path, model: type[_P], *, whose: str, see: str, error: type[RnHarnessError]) -> _P:
    """Reads the profile of this name, or raises ``error``; ``whose`` is the owner of the name, for the message."""
    known = profile_names(folder)
    if name not in known:
        near = hint(name, known) if known else "it holds none; rn-harness list profiles, or list judges, shows names to type"
        raise error(f"{whose} name must be a profile in {folder}, got name={name!r}; {near}")
    path = folder / f"{name}.yaml"
    profile = read_declared(path, model, see, error)
    if profile.name != name:
        raise error(f"{path}: a profile is named as its file, got name={profile.name!r}; rename one of the two")
    return profile.model_copy(update={"folder": folder.resolve()})


class Memory(Frozen):
    """The expected memory of a run without its judges, in GiB, from ``rn_harness.models.memory``.

    Attributes:
        attack_gib: a LoRA attack, group of 16, prompts of 128 tokens, completions of 256, with gradient checkpointing.
        defense_gib: the same for the suites' default defense: three groups of 24, in micro-batches of 16 rows.
    """

    attack_gib: Annotated[float, Field(gt=0.0)]
    defense_gib: Annotated[float, Field(gt=0.0)]


class ModelProfile(Profile):
    """A candidate under a short name.

    Attributes:
        name: as in ``--model NAME``; the file's name without ``.yaml``.
        model: hub id, or a path from the profile's folder that begins with ``./`` or ``../``.
        revision: full commit on the hub; None: the latest one at run time, which the record names.
        digest: sha256 that the files must have; None: any.
        licence: SPDX name, or the licence's own.
        gated: True if the hub demands an account that accepted the licence.
        lora_targets: the layers that get an adapter.
        chat_template: the model's own.
        system_prompt: ``none``: the model gets only the user's turn. ``template``: the template adds the model's default one.
            The harness never gives one.
        default_system_prompt: the text that the template adds.
        thinking: True if it writes a think part before its answer.
        generation: sampling settings, and the settings of the model that are ignored.
        shape: numbers of its ``config.json``, by which memory and time are computed before the model is here.
        recipe: ``KEY=VALUE`` pairs, as for ``--rn-set``, that change a suite's fields for this model. They are declared: their
            digest is recorded, and they do not make a run "modified". ``defenses.NAME.…`` counts if the suite has that defense.
        why: the reason for the numbers in the recipe.
    """

    model: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    licence: Annotated[str, Field(min_length=1)]
    gated: bool
    dtype: DType
    lora_targets: Literal["all-linear"]
    chat_template: Literal["own"]
    system_prompt: Literal["none", "template"]
    default_system_prompt: Annotated[str, Field(min_length=1)] | None = None
    thinking: bool
    generation: Annotated[str, Field(min_length=10)]
    memory: Memory
    shape: dict[str, bool | int | str] = Field(default_factory=dict)
    recipe: list[Annotated[str, Field(pattern=r"^(attack|defenses?|policy)(\.[a-z][\w-]*)+=\S.*$")]] = Field(default_factory=list)
    why: Annotated[str, Field(min_length=20)]

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        is_hub = re.match(HUB_ID, self.model) is not None
        if not is_hub and not self.model.startswith(("./", "../")):
            raise ValueError(f"a model is owner/name on the hub, or a folder that begins with ./, got model={self.model!r}; "
                             "correct it")  # fmt: skip
        if self.revision is not None and not is_hub:
            raise ValueError(f"only a model of the hub has a revision, got model={self.model!r}; remove revision")
        if (self.default_system_prompt is not None) != (self.system_prompt == "template"):
            raise ValueError(f"a template's own system prompt is quoted, got system_prompt={self.system_prompt!r} and "
                             f"default_system_prompt={self.default_system_prompt!r}; correct one")  # fmt: skip
        return self

    @property
    def local(self) -> Path | None:
        """The folder of a local model; None for one of the hub."""
        return (self.folder / self.model).resolve() if self.model.startswith(".") else None

    @property
    def sha256(self) -> str:
        """The sha256 over the profile's contents, hex."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def load_model_profile(name: str, folder: Path) -> ModelProfile:
    """Reads a candidate's profile, or raises CandidateError as ``read_named`` does."""
    return read_named(name, folder, ModelProfile, whose="a model's", see="docs/models.md", error=CandidateError)
