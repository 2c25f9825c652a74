"""Judge profiles: a judge by a short name, with its model, licence and size.

A profile is a YAML file in ``fixtures/judges``. It names a judge and says why it was chosen; it loads nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rn_harness.judges.openai_server import ServerLimits
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.model_profiles import HUB_ID, Profile, profile_names, read_named

ProfileKind = Literal["hf", "classifier", "openai", "rules", "organism"]
PROFILES = "judges"
"""Folder of the profiles within the fixtures."""
DEFAULT_NEW_TOKENS = 256
_FOLDER = r"^\.{1,2}/\S+$"


class JudgeProfile(Profile):
    """A judge under a short name.

    Attributes:
        name: as in ``--rn-judge NAME``; the file's name without ``.yaml``.
        kind: which of the harness's judges runs it.
        model: hub id, or a path that begins with ``./`` or ``../`` and is relative to the profile's file; for ``openai``
            the name that the server knows.
        revision: full commit on the hub; None: the hub's at run time, which the record then names.
        base_url: of the server, only for ``openai``.
        label: the classifier's label whose probability is the harm.
        calibration: file that maps that probability to the scale, relative to the profile's file.
        max_new_tokens: limit of an instruction model's reply.
        server: limits, only for ``openai``.
        licence: SPDX name, or the licence's own.
        gated: the hub asks for an account that accepted the licence; None: not known.
        family: model family, in lower case; a judge of the candidate's own family may share its blind spots.
        parameters_b: parameters in 1e9; None: not known.
        memory_gib: of the weights in bfloat16, computed: parameters x 2 bytes; activations and cache come on top.
        why: why this one, in a sentence or two.
    """

    kind: ProfileKind
    model: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    base_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    label: Annotated[str, Field(min_length=1, pattern=r"^[^#\s]+$")] | None = None
    calibration: Annotated[str, Field(min_length=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768)] = DEFAULT_NEW_TOKENS
    server: ServerLimits = ServerLimits()
    licence: Annotated[str, Field(min_length=1)]
    gated: bool | None = None
    family: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    parameters_b: Annotated[float, Field(gt=0.0)] | None = None
    memory_gib: Annotated[float, Field(gt=0.0)] | None = None
    why: Annotated[str, Field(min_length=20)]

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        if (self.label is not None) != (self.kind == "classifier"):
            raise ValueError(f"a classifier names the label that counts, and no other judge has one, got kind={self.kind!r} "
                             f"and label={self.label!r}; correct label")  # fmt: skip
        if (self.base_url is not None) != (self.kind == "openai"):
            raise ValueError(f"a judge on a server has a base_url, and no other has one, got kind={self.kind!r} and "
                             f"base_url={self.base_url!r}; correct base_url")  # fmt: skip
        if self.server != ServerLimits() and self.kind != "openai":
            raise ValueError(f"only a server has limits, got kind={self.kind!r}; remove server")
        if self.calibration is not None and self.kind != "classifier":
            raise ValueError(f"only a classifier is calibrated, got kind={self.kind!r}; remove calibration")
        is_path = re.match(_FOLDER, self.model) is not None
        is_hub = re.match(HUB_ID, self.model) is not None
        if self.kind in ("hf", "classifier") and not (is_path or is_hub):
            raise ValueError(f"a model is owner/name on the hub, or a folder that begins with ./, got model={self.model!r}; "
                             "correct it")  # fmt: skip
        if self.kind in ("rules", "organism") and not is_path:
            raise ValueError(f"a file or folder begins with ./ or ../, got model={self.model!r}; correct it")
        if self.revision is not None and (is_path or self.kind not in ("hf", "classifier")):
            raise ValueError(f"only a model of the hub has a revision, got model={self.model!r}; remove revision")
        if (self.parameters_b is None) != (self.memory_gib is None):
            raise ValueError("memory_gib is computed from parameters_b, got one without the other; give both or neither")
        if self.parameters_b is not None and abs(self.parameters_b * 2e9 / 2**30 - (self.memory_gib or 0.0)) > 0.06:
            raise ValueError(f"memory_gib is parameters x 2 bytes, got {self.memory_gib} for {self.parameters_b} x 1e9; give "
                             f"{self.parameters_b * 2e9 / 2**30:.1f}")  # fmt: skip
        return self

    @property
    def where(self) -> str:
        """The hub id or server's name, or the absolute path of a local model or file."""
        local = self.model.startswith(("./", "../")) and self.kind != "openai"
        return str((self.folder / self.model).resolve()) if local else self.model

    @property
    def calibration_file(self) -> Path | None:
        """The absolute path of the calibration; None if there is none."""
        return (self.folder / self.calibration).resolve() if self.calibration else None

    @property
    def spec(self) -> str:
        """The spec that ``--rn-judge`` takes instead of the name."""
        at = {"hf": self.revision, "classifier": self.revision, "openai": self.base_url}.get(self.kind)
        return f"{self.kind}:{self.where}{'@' + at if at else ''}{'#' + self.label if self.label else ''}"


def judge_profile_names() -> list[str]:
    """The names of the shipped profiles, sorted."""
    return profile_names(fixtures_folder() / PROFILES)


def load_profile(name: str, folder: Path | None = None) -> JudgeProfile:
    """Reads a profile in a folder, or a shipped one."""
    where = folder or fixtures_folder() / PROFILES
    return read_named(name, where, JudgeProfile, whose="a judge's", see="docs/judges.md", error=JudgeError)
