"""Find a judge by the name that a user gave: a spec, an entry point, or a profile.

A profile is a YAML file in ``fixtures/judges``: a judge's short name, model, licence and size, and why it was chosen.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rn_harness.judges.classifier import ClassifierJudge
from rn_harness.judges.hf import HFJudge
from rn_harness.judges.openai_server import OpenAIJudge, ServerLimits
from rn_harness.judges.organism import OrganismJudge
from rn_harness.judges.own import load_own, own_names
from rn_harness.judges.protocol import KINDS, ORGANISM, Judge
from rn_harness.judges.rules import RulesJudge
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.model_profiles import HUB_ID, Profile, profile_names, read_named

PROFILES = "judges"
"""Folder of the profiles within the fixtures."""


class JudgeProfile(Profile):
    """A judge under a short name.

    Attributes:
        kind: which of the harness's judges runs it.
        model: hub id, or a path that begins with ``./`` or ``../`` and is relative to the profile's file; for ``openai``
            the name that the server knows.
        revision: full commit on the hub; None: the hub's at run time, which the record then names.
        base_url, server: address and limits, only for ``openai``.
        label: the classifier's label whose probability is the harm.
        calibration: file that maps that probability to the scale, relative to the profile's file.
        max_new_tokens: limit of an instruction model's reply.
        licence: SPDX name, or the licence's own.
        gated: the hub asks for an account that accepted the licence; None: not known.
        family: model family, in lower case; a judge of the candidate's own family may share its blind spots.
        parameters_b: parameters in 1e9; None: not known.
        memory_gib: of the weights in bfloat16, computed: parameters x 2 bytes; activations and cache come on top.
        why: why this one, in a sentence or two.
    """

    kind: Literal["hf", "classifier", "openai", "rules", "organism"]
    model: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    base_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    label: Annotated[str, Field(min_length=1, pattern=r"^[^#\s]+$")] | None = None
    calibration: Annotated[str, Field(min_length=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768)] = 256
    server: ServerLimits = ServerLimits()
    licence: Annotated[str, Field(min_length=1)]
    gated: bool | None = None
    family: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    parameters_b: Annotated[float, Field(gt=0.0)] | None = None
    memory_gib: Annotated[float, Field(gt=0.0)] | None = None
    why: Annotated[str, Field(min_length=20)]

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        kind, model = self.kind, self.model
        if (self.label is not None) != (kind == "classifier"):
            raise ValueError(
                f"a classifier names the label that counts, and no other judge has one, got kind={kind!r} and "
                f"label={self.label!r}; correct label"
            )
        if (self.base_url is not None) != (kind == "openai"):
            raise ValueError(
                f"a judge on a server has a base_url, and no other has one, got kind={kind!r} and base_url={self.base_url!r}; "
                "correct base_url"
            )
        if self.server != ServerLimits() and kind != "openai":
            raise ValueError(f"only a server has limits, got kind={kind!r}; remove server")
        if self.calibration is not None and kind != "classifier":
            raise ValueError(f"only a classifier is calibrated, got kind={kind!r}; remove calibration")
        of_hub = kind in ("hf", "classifier")
        if of_hub and not (self._is_path or re.match(HUB_ID, model)):
            raise ValueError(f"a model is owner/name on the hub, or a folder that begins with ./, got {model=}; correct it")
        if kind in ("rules", "organism") and not self._is_path:
            raise ValueError(f"a file or folder begins with ./ or ../, got {model=}; correct it")
        if self.revision is not None and (self._is_path or not of_hub):
            raise ValueError(f"only a model of the hub has a revision, got {model=}; remove revision")
        if (self.parameters_b is None) != (self.memory_gib is None):
            raise ValueError("memory_gib is computed from parameters_b, got one without the other; give both or neither")
        gib = (self.parameters_b or 0.0) * 2e9 / 2**30
        if abs(gib - (self.memory_gib or 0.0)) > 0.06:
            raise ValueError(
                f"memory_gib is parameters x 2 bytes, got {self.memory_gib} for {self.parameters_b} x 1e9; give {gib:.1f}"
            )
        return self

    @property
    def _is_path(self) -> bool:
        return self.kind != "openai" and re.match(r"\.{1,2}/\S+$", self.model) is not None

    @property
    def where(self) -> str:
        """The hub id or server's name, or the absolute path of a local model or file."""
        return str((self.folder / self.model).resolve()) if self._is_path else self.model

    @property
    def calibration_file(self) -> Path | None:
        return (self.folder / self.calibration).resolve() if self.calibration else None

    @property
    def spec(self) -> str:
        """The spec that ``--rn-judge`` takes instead of the name."""
        at = self.revision or self.base_url
        return f"{self.kind}:{self.where}{f'@{at}' if at else ''}{f'#{self.label}' if self.label else ''}"


def judge_profile_names() -> list[str]:
    """The names of the shipped profiles, sorted."""
    return profile_names(fixtures_folder() / PROFILES)


def load_profile(name: str, folder: Path | None = None) -> JudgeProfile:
    """Reads a profile in a folder, or a shipped one."""
    where = folder or fixtures_folder() / PROFILES
    return read_named(name, where, JudgeProfile, whose="a judge's", see="docs/judges.md", error=JudgeError)


def resolve_suites_judge(spec: str, folder: Path) -> Judge:
    """Finds the judge that a suite's file names; see ``resolve_judge``.

    A suite may come from a stranger: code, and paths out of its folder, are refused with a JudgeError.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "python":
        raise JudgeError(
            f"a suite's file must not name code, got judge={spec!r} in {folder}; if you trust it, type it as --rn-judge, "
            "--rn-reward-judge or --rn-second-judge"
        )
    named = rest.partition("#")[0].partition("@")[0] if colon else spec
    is_path = kind in ("rules", ORGANISM) or (kind != "openai" and named.startswith((".", "/", "~"))) or spec.endswith(".yaml")
    if is_path and not (folder / Path(named).expanduser()).resolve().is_relative_to(folder.resolve()):
        raise JudgeError(
            f"a suite's judge must lie in the suite's folder, got judge={spec!r} in {folder}; copy it there, or type it as "
            "--rn-judge, --rn-reward-judge or --rn-second-judge"
        )
    return resolve_judge(spec, folder)


def resolve_judge(spec: str, folder: Path) -> Judge:
    """Finds the judge that a spec names.

    Args:
        spec: one of ``FORMS``, the name of a shipped profile, or that of an entry point in the group ``rn_harness.judges``.
        folder: that relative paths start from.

    Raises:
        JudgeError: there is no such judge, or it cannot be made; the message has near names.
    """
    kind, colon, rest = spec.partition(":")
    if not colon and spec in judge_profile_names():
        return _from_profile(load_profile(spec))
    if not colon and spec.endswith(".yaml"):
        file = (folder / Path(spec).expanduser()).resolve()
        return _from_profile(load_profile(file.stem, file.parent))
    if kind == "python" or (not colon and spec in own_names()):
        return load_own(spec)
    if kind in KINDS and rest:
        return _built_in(kind, spec, folder)
    names = [*judge_profile_names(), *own_names()]
    raise JudgeError(
        f"a judge is a profile, an entry point, or one of {', '.join(f'{k}:…' for k in KINDS)}; got judge={spec!r}; "
        f"name one of {', '.join(difflib.get_close_matches(spec, names, n=3) or names)}, or see docs/judges.md"
    )


def _built_in(kind: str, spec: str, folder: Path, profile: JudgeProfile | None = None) -> Judge:
    """One of the harness's own judges."""
    settings = {"max_new_tokens": profile.max_new_tokens} if profile else {}
    match kind:
        case "organism":
            return OrganismJudge((folder / Path(spec.removeprefix("organism:")).expanduser()).resolve())
        case "rules":
            judge = RulesJudge((folder / Path(spec.removeprefix("rules:")).expanduser()).resolve())
            judge.name = spec  # as the suite or the user says it, not where it lies
            return judge
        case "openai":
            return OpenAIJudge.from_spec(spec, limits=profile.server if profile else None, **settings)
        case "hf":
            return HFJudge.from_spec(spec, folder, **settings)
    return ClassifierJudge.from_spec(spec, folder, profile.calibration_file if profile else None)


def _from_profile(profile: JudgeProfile) -> Judge:
    """The judge of a profile, under the profile's name: a spec would tell where it lies on this machine."""
    judge = _built_in(profile.kind, profile.spec, Path(), profile)
    judge.name = profile.name
    return judge
