"""A judge that the first of several processes asks for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rn_harness.judges.protocol import Judge
    from rn_harness.records.base import Judgement
    from rn_harness.spec.prompts import Prompt
from rn_harness.store.ranks import ranks


def unshared(judge: Judge) -> Judge:
    """The judge below a ``SharedJudge``."""
    return judge.inner if isinstance(judge, SharedJudge) else judge


class SharedJudge:
    """A judge that the first process asks; all processes get its answers.

    Texts only go between processes of one machine.
    """

    def __init__(self, judge: Judge) -> None:
        self.inner = judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def about(self, forbidden: str) -> SharedJudge:
        """See ``Judge``."""
        return SharedJudge(self.inner.about(forbidden))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """See ``Judge``; called by all with the same rows."""
        return ranks().first(lambda: self.inner.score(prompts, completions, wording))
