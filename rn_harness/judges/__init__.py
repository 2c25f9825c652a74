"""Judges: prompt and completion to harmful score. Floor 2 (adapters).

A judge never returns a default: what it cannot score is *unscored*, with a reason from a closed list. All judges score on one
rubric (docs/rubric.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from rn_harness.errors import JudgeError, JudgeGoneError
from rn_harness.records import INFRASTRUCTURE, Judgement, Scored
from rn_harness.suite import Prompt

if TYPE_CHECKING:
    from rn_harness.judges.profiles import JudgeProfile
    from rn_harness.model import Completion

ORGANISM = "organism"
KINDS = (ORGANISM, "rules", "hf", "openai", "classifier", "python")


class Judge(Protocol):
    """Scores completions.

    Attributes:
        name: its spec, without secrets.
        digest: sha256 over what decides its scores but the forbidden subject, as hex.
        exact: whether its scores are free of noise, so that one look confirms a breach; the organism's alone.
        wordings: in how many forms it can put its question; 1: another look would be the same look.
    """

    name: str

    @property
    def digest(self) -> str: ...
    @property
    def exact(self) -> bool: ...
    @property
    def wordings(self) -> int: ...

    def about(self, forbidden: str) -> Self:
        """The same judge, told what is forbidden; itself where it need not be told."""
        ...

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Makes sure, before any training and without loading weights, that it can judge answers to these prompts.

        Raises:
            JudgeError: it cannot.
        """
        ...

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Judges B completions.

        Args:
            prompts: B prompts.
            completions: B texts, one of each prompt.
            wording: in which form it is asked, 0 to ``wordings - 1``.

        Returns:
            B judgements, in order.
        """
        ...


@dataclass(frozen=True, slots=True)
class WholeJudgement:
    """A judge's view of a whole completion, its think part included; in memory only.

    Attributes:
        judgement: the one that counts. It has the highest score; or no score, if a part has none and no other is above the
            threshold.
        text: the part that it is a judgement of.
        answer: the judgement of the answer.
        thought: of the think part; None if there is none.
    """

    judgement: Judgement
    text: str
    answer: Judgement
    thought: Judgement | None

    def __repr__(self) -> str:
        """No text."""
        return f"WholeJudgement({self.judgement!r})"

    @classmethod
    def of(cls, completion: Completion, given: Sequence[Judgement], threshold: float) -> Self:
        """From one judgement of each of the completion's looks."""
        looks = list(zip(given, completion.looks, strict=True))
        unscored = next((look for look in looks if look[0].score is None), None)
        judgement, text = max(looks, key=lambda look: -1.0 if look[0].score is None else look[0].score)
        if unscored and (judgement.score is None or judgement.score <= threshold):
            judgement, text = unscored
        # A think part that does not end is the answer too: then there is one look.
        thought = None if completion.thought is None else given[min(1, len(given) - 1)]
        return cls(judgement, text, given[0], thought)


def judge_whole(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion], threshold: float
) -> list[WholeJudgement]:
    """Judges B completions, think parts included, in one call.

    Args:
        judge: scores texts.
        prompts: B prompts.
        completions: B completions, one of each prompt.
        threshold: a score above it counts whatever else has no score.
    """
    rows = [(prompt, look) for prompt, of in zip(prompts, completions, strict=True) for look in of.looks]
    given: Iterator[Judgement] = iter(judge.score([prompt for prompt, _ in rows], [look for _, look in rows]))
    return [WholeJudgement.of(of, [next(given) for _ in of.looks], threshold) for of in completions]


def ensure_judging(scored: Sequence[Scored], otherwise: str) -> None:
    """Makes sure that a judge still works: that not all of what it was asked failed in its machinery.

    Args:
        scored: what it said.
        otherwise: the sentence to say if it does not.

    Raises:
        JudgeGoneError: it does not; going on would cost hours and prove nothing.
    """
    if scored and all(s.unscored in INFRASTRUCTURE for s in scored):
        raise JudgeGoneError(f"{otherwise}: {scored[0].unscored}")


def resolve_suites_judge(spec: str, folder: Path) -> Judge:
    """Finds the judge that a suite's file names, which may come from a stranger: no code, and no path out of its folder.

    Args:
        spec: as for ``resolve_judge``.
        folder: of the suite.

    Raises:
        JudgeError: it names either, or nothing that can be a judge.
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
        JudgeError: nothing is called so, or what it names cannot be a judge; near names are told.
    """
    from rn_harness.judges.own import load_own, own_names
    from rn_harness.judges.profiles import load_profile, profile_names

    kind, colon, rest = spec.partition(":")
    if not colon and spec in profile_names():
        return _from_profile(load_profile(spec))
    if not colon and spec.endswith(".yaml"):
        file = (folder / Path(spec).expanduser()).resolve()
        return _from_profile(load_profile(file.stem, file.parent))
    if kind == "python" or (not colon and spec in own_names()):
        return load_own(spec)
    if kind in KINDS and rest:
        return _built_in(kind, spec, folder)
    names = [*profile_names(), *own_names()]
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
        limits = ServerSettings(max_new_tokens=profile.max_new_tokens, **profile.server.model_dump(exclude_none=True))
        return OpenAIJudge.from_spec(spec, limits)
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
