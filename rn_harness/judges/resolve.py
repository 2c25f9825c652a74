"""Find a judge by the name that a user gave."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from rn_harness.spec.errors import JudgeError

if TYPE_CHECKING:
    from rn_harness.judges.profiles import JudgeProfile
from rn_harness.judges.protocol import KINDS, ORGANISM, Judge


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
        spec: ``organism:FOLDER``, ``rules:FILE``, ``hf:ID_OR_FOLDER[@REVISION]``, ``classifier:ID_OR_FOLDER[@REVISION]#LABEL``,
            ``openai:MODEL@URL``, ``python:MODULE:NAME``, the name of a shipped profile, a profile's file ``PATH.yaml``, or the
            name of an entry point in the group ``rn_harness.judges``.
        folder: that relative paths start from.

    Raises:
        JudgeError: there is no such judge, or it cannot be made; the message has near names.
    """
    from rn_harness.judges.own import load_own, own_names
    from rn_harness.judges.profiles import judge_profile_names, load_profile

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
    """One of the harness's own judges; each is imported when it is asked for."""
    where = (folder / Path(spec.partition(":")[2]).expanduser()).resolve()
    if kind == "organism":
        from rn_harness.judges.organism import OrganismJudge

        return OrganismJudge(where)
    if kind == "rules":
        from rn_harness.judges.rules import RulesJudge

        judge = RulesJudge(where)
        judge.name = spec  # as the suite or the user says it, not where it lies
        return judge
    if kind == "openai":
        from rn_harness.judges.openai_server import OpenAIJudge, ServerSettings

        if profile is None:
            return OpenAIJudge.from_spec(spec)
        settings = ServerSettings(max_new_tokens=profile.max_new_tokens, **profile.server.model_dump())
        return OpenAIJudge.from_spec(spec, settings)
    if kind == "hf":
        from rn_harness.judges.hf import HFJudge

        return HFJudge.from_spec(spec, folder, **({"max_new_tokens": profile.max_new_tokens} if profile else {}))
    from rn_harness.judges.classifier import ClassifierJudge

    return ClassifierJudge.from_spec(spec, folder, profile.calibration_file if profile else None)


def _from_profile(profile: JudgeProfile) -> Judge:
    """The judge of a profile, under the profile's name: a spec would tell where it lies on this machine."""
    judge = _built_in(profile.kind, profile.spec, Path(), profile)
    judge.name = profile.name
    return judge
