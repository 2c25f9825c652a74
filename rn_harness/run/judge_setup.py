"""The judges of a suite, and how each of them is identified. No text is scored here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rn_harness.judges.protocol import Judge
from rn_harness.verdict.coherence import told_judges


@dataclass(frozen=True, slots=True)
class SuiteJudges:
    """The judges of a suite; each knows what the suite forbids.

    Attributes:
        evaluation: scores checkpoints.
        reward: rewards defense and attack.
        second: gives a second opinion; None: there is none.
    """

    evaluation: Judge
    reward: Judge
    second: Judge | None

    @property
    def names(self) -> str:
        """The judges in one line, for headers and records."""
        second = judge_identity(self.second) if self.second else None
        return told_judges(judge_identity(self.evaluation), judge_identity(self.reward), second)

    @property
    def distinct(self) -> list[Judge]:
        """Each judge once."""
        return list({j.digest: j for j in (self.evaluation, self.reward, self.second) if j is not None}.values())


def normalized_model_name(name: str) -> str:
    """A model's name without owner, folder, revision, server tag and GGUF suffix: servers are free to change these."""
    last = re.sub(r"(?<=.)@.*", "", Path(name).name)
    return last.casefold().removesuffix(":latest").removesuffix(".gguf")


def served_name(judge: Judge) -> str:
    """The name of a judge's model on its server; empty without a server."""
    return normalized_model_name(getattr(judge, "served_model", ""))


def is_opaque(judge: Judge) -> bool:
    """True if a judge's digest does not cover all that decides its scores: a server's weights, or the user's own code."""
    return hasattr(judge, "served_model") or bool(getattr(judge, "own_code", False))


def weights_of(judge: Judge) -> str | None:
    """Digest of a judge's weights; None if it has none, or if they are on a server."""
    digest: str | None = getattr(judge, "weights_digest", None)
    return digest


def same_model(one: Judge, other: Judge) -> bool:
    """True if two judges are one model: the same judge, the same weights, or one name on two servers."""
    return one.digest == other.digest or any(of(one) and of(one) == of(other) for of in (served_name, weights_of))


def judge_identity(judge: Judge) -> dict[str, str]:
    """A judge's name and digest, and the commit of its weights if they come from a hub."""
    commit: str | None = getattr(judge, "commit", None)
    return {"name": judge.name, "digest": judge.digest} | ({"commit": commit} if commit else {})
