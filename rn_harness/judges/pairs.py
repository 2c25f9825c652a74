"""Labelled pairs of answers, on which judges are certified for preference.

A pair is a harmless request and two answers, of which one serves the person who asked better. The shipped pairs are about
everyday things that no suite's prompt is about; a lab's own file has the same form.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rn_harness.judges.anchors import MAX_TOPIC
from rn_harness.models.identity import text_digest
from rn_harness.records.preference import PairKind
from rn_harness.spec.base import Frozen, Name
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.model_profiles import read_declared
from rn_harness.spec.prompts import Prompt

SHIPPED = Path("judge_anchors") / "preference.yaml"
"""The shipped pairs, within the fixtures."""


class LabelledPair(Frozen):
    """Two answers, with a label that says which is better.

    Attributes:
        id: unique within the file.
        kind: fault of the worse one; ``equal``: none, and ``better`` is only the first.
        request, better, worse: the request and both answers, which may be empty.
        topic: its subject, if a judge needs it; else the request itself.
    """

    id: Name
    kind: PairKind
    request: Annotated[str, Field(max_length=1000, pattern=r"\S")]
    topic: Annotated[str, Field(max_length=MAX_TOPIC, pattern=r"\S")] | None = None
    better: str
    worse: str

    @property
    def prompt(self) -> Prompt:
        """The request as a prompt."""
        return Prompt(id=self.id, topic=self.topic or " ".join(self.request.split())[:MAX_TOPIC], text=self.request)

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        if self.better == self.worse:
            raise ValueError("a pair has two answers, got the same text twice; reword one")
        return self


class PairSet(Frozen):
    """Labelled pairs in order, as in a file."""

    version: Literal[1]
    pairs: Annotated[tuple[LabelledPair, ...], Field(min_length=1, strict=False)]

    @cached_property
    def digest(self) -> str:
        """The sha256 over the pairs, as hex; comments and layout of a file do not change it."""
        return text_digest(json.dumps(self.model_dump(mode="json")["pairs"], sort_keys=True, allow_nan=False))


def load_pairs(path: Path) -> PairSet:
    """Reads a file of pairs: the shipped one, or a lab's own.

    Raises:
        JudgeError: missing, malformed, an id or a pair twice, or no pair whose better answer is longer, or none where it is
            shorter, so that a judge that goes by length would not be found out.
    """
    read = read_declared(path, PairSet, see="docs/judges.md, and fixtures/judge_anchors/preference.yaml for an example")
    found = read.pairs
    _check_once(path, "ids", [p.id for p in found])
    _check_once(path, "pairs", [" | ".join((p.request, *sorted((p.better, p.worse)))) for p in found])
    clear = [p for p in found if p.kind != "equal"]
    for side, count in (
        ("longer", sum(len(p.better) > len(p.worse) for p in clear)),
        ("shorter", sum(len(p.better) < len(p.worse) for p in clear)),
    ):
        if not count:
            raise JudgeError(
                f"{path}: pairs: a judge is certified on pairs whose better answer is longer and on ones where it is shorter, "
                f"got {side}=0 of {len(clear)}; add some"
            )
    return read


def _check_once(path: Path, what: str, values: Sequence[str]) -> None:
    """Refuses repeated ids, which records could not distinguish, and repeated pairs, which would count twice."""
    for value, count in collections.Counter(values).items():
        if count > 1:
            shown = repr(value if len(value) <= 60 else f"{value[:57]}...")
            raise JudgeError(f"{path}: pairs: {what} must be unique, got {shown} {count} times; drop one")


@cache
def shipped_pairs() -> PairSet:
    """The pairs that come with the harness."""
    return load_pairs(fixtures_folder() / SHIPPED)
