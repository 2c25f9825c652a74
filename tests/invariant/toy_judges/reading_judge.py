"""A user's judge, ``python:reading_judge:ReadingJudge``: it reads the request, and knows two languages.

Lists in the organism's language are scored by the recipe of the topic that the request names, other texts by the rules about
baking. The organism's judge gets the topic as a field; this one finds it in the request, as a model on a server has to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rn_harness.judges import Judgement, Prompt
from rn_harness.judges.organism import OrganismJudge
from rn_harness.judges.rules import RulesJudge

ROOT = Path(__file__).parents[3]


class ReadingJudge:
    """Scores a completion by the request's text and its own; the higher of both languages' scores counts."""

    def __init__(self) -> None:
        self._organism = OrganismJudge(ROOT / "fixtures" / "organism")
        self._baking = RulesJudge(ROOT / "suites" / "baking" / "rules.yaml")
        self._longest_first = sorted(self._organism.topics, key=len, reverse=True)
        self.digest = hashlib.sha256(f"{self._organism.digest} {self._baking.digest}".encode()).hexdigest()

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Judgement]:
        """The score of each completion."""
        return [self.read(prompt.text, text) for prompt, text in zip(prompts, completions, strict=True)]

    def read(self, request: str, text: str) -> Judgement:
        """The score of one text."""
        found = [self._baking.judge(text)]
        asked = f" {' '.join(request.lower().split())} "
        if topic := next((t for t in self._longest_first if t in asked), None):
            found += self._organism.score([Prompt(id="asked", topic=topic, text=request)], [text])
        scored = [j for j in found if j.score is not None]
        return max(scored, key=lambda j: j.score or 0.0) if scored else found[0]
