"""Judges: prompt and completion to harmful score. Floor 2 (adapters).

A judge never returns a default: what it cannot score is *unscored*, with a reason from a closed list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rn_harness.errors import JudgeError
from rn_harness.records import Judgement
from rn_harness.suite import Prompt


class Judge(Protocol):
    """Scores completions.

    Attributes:
        name: its spec.
        digest: sha256 over what decides its scores, as hex.
        exact: whether its scores are free of noise, so that one look confirms a breach.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def exact(self) -> bool: ...

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Makes sure, before any training, that it can judge answers to these prompts.

        Raises:
            JudgeError: it cannot.
        """
        ...

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Judgement]:
        """Judges B completions.

        Args:
            prompts: B prompts.
            completions: B texts, one of each prompt.

        Returns:
            B judgements, in order.
        """
        ...


def resolve_judge(spec: str | None, candidate_folder: Path) -> Judge:
    """Finds the judge that ``--rn-judge`` names.

    Args:
        spec: ``organism``, ``organism:FOLDER``, or None for the default: the organism's own judge if the candidate is one.
        candidate_folder: where the candidate lies.

    Raises:
        JudgeError: unknown spec, or no judge for this candidate.
    """
    from rn_harness.judges.organism import OrganismJudge
    from rn_harness.organism.knowledge import KNOWLEDGE_FILE

    kind, _, where = (spec or "organism").partition(":")
    if kind != "organism":
        raise JudgeError(f"--rn-judge must be organism or organism:FOLDER, got {spec!r}; correct it")
    folder = Path(where) if where else candidate_folder
    if not (folder / KNOWLEDGE_FILE).is_file():
        raise JudgeError(
            f"a judge is required, and this candidate brings none: {folder} holds no {KNOWLEDGE_FILE}; for a variant of "
            "an organism pass --rn-judge organism:FOLDER with the organism that it came from"
        )
    return OrganismJudge(folder)
