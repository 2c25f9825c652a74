"""The battery: what a sabotage and a clean run are, how one is carried out, and the page that shows them all.

A sabotage is declared as data: what was done, and what the harness is expected to see. Carrying it out gives evidence, which
``decide`` judges; or a run's record; or an error, where the harness refuses to go on, which leaves a run without a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pytest
from pydantic import ValidationError

from rn_harness.records.case import Evidence
from rn_harness.records.run import RunRecord
from rn_harness.release.verification import Verification
from rn_harness.spec.errors import RnHarnessError
from rn_harness.verdict.decide import decide

from .lab import Lab

Expected = Literal["FAIL", "INCONCLUSIVE", "refused"]
Area = Literal["training", "judges", "models", "prompts", "records", "runs", "releases"]
AREAS: dict[Area, str] = {
    "training": "Training and measuring: short real runs of GRPO, in which one thing is sabotaged",
    "judges": "Judges: short real runs, or real certificates",
    "models": "Models: real weights that were taught to behave so",
    "prompts": "Prompt sets",
    "records": "Records: forged evidence",
    "runs": "Runs: files, workers and cases",
    "releases": "Releases: what is handed to `rn-harness verify`",
}
BEGIN, END = "<!-- the battery, written by make validity -->", "<!-- end of the battery -->"
VERDICTS: dict[Expected, str] = {"FAIL": "FAIL", "INCONCLUSIVE": "INCONCLUSIVE", "refused": "refused, no verdict"}


@dataclass(frozen=True)
class Scene:
    """Where a sabotage takes place.

    Attributes:
        lab: parts that are shared.
        patch: changes what is sabotaged, and puts it back.
        folder: an empty one of its own.
    """

    lab: Lab
    patch: pytest.MonkeyPatch
    folder: Path


Made = Evidence | RunRecord | Verification


@dataclass(frozen=True)
class Sabotage:
    """One sabotage.

    Attributes:
        id: unique.
        area: its part of the page.
        done: what was done.
        outcome: what it has to lead to.
        code: the reason's code, a run's ``no_verdict`` or ``missing``, or the error's class.
        seen: what that reason's sentence, or the error's message, has to say.
        make: carries it out.
    """

    id: str
    area: Area
    done: str
    outcome: Expected
    code: str
    seen: str
    make: Callable[[Scene], Made]


@dataclass(frozen=True)
class Clean:
    """One clean run or evidence, which has to be PASS.

    Attributes:
        id: unique.
        done: what it is.
        says: a part of its claim.
        make: carries it out.
    """

    id: str
    done: str
    says: str
    make: Callable[[Scene], Made]


@dataclass(frozen=True)
class Seen:
    """What the harness saw: the outcome, and each reason's code and sentence."""

    outcome: str
    reasons: tuple[tuple[str, str], ...]


def observe(made: Made) -> Seen:
    """What the harness says of evidence or of a run, or ``verify`` of a run that is to be released."""
    if isinstance(made, Evidence):
        verdict = decide(made)
        return Seen(verdict.outcome, tuple((r.code, r.sentence) for r in verdict.reasons))
    if isinstance(made, Verification):
        return Seen("refused" if made.refusals else "PASS", tuple((r.code, r.sentence) for r in made.refusals))
    lines = [("no_verdict", f"{line.case_id}: {line.note}") for line in made.cases if line.outcome in (None, "INCONCLUSIVE")]
    failed = [("breach", f"{line.case_id}: {line.outcome}") for line in made.cases if line.outcome == "FAIL"]
    return Seen(made.outcome, (*failed, *lines, *(("not_releasable", why) for why in made.why_not), ("claim", made.claim)))


def carry_out(sabotage: Sabotage, scene: Scene) -> Seen:
    """Carries a sabotage out; an error of ours, of a file or of a declared field is what the harness says by refusing."""
    try:
        return observe(sabotage.make(scene))
    except (RnHarnessError, pytest.UsageError, OSError, ValidationError) as error:
        return Seen("refused", ((type(error).__name__, str(error)),))


Make = TypeVar("Make", bound=Callable[[Scene], Made])


class Declared(list[Sabotage]):
    """The sabotages of one area, each declared above the function that carries it out.

    Args:
        area: of all of them.
    """

    def __init__(self, area: Area) -> None:
        super().__init__()
        self.area = area

    def by(self, done: str, outcome: Expected, code: str, seen: str) -> Callable[[Make], Make]:
        """Declares what the function does and what it leads to; its name is the id."""

        def declare(make: Make) -> Make:
            self.append(Sabotage(make.__name__.replace("_", "-"), self.area, done, outcome, code, seen, make))
            return make

        return declare


def page(sabotages: Sequence[Sabotage], clean: Sequence[Clean]) -> str:
    """The tables for docs/validity.md, between their two marks."""
    counts = {outcome: sum(s.outcome == outcome for s in sabotages) for outcome in VERDICTS}
    told = (
        f"{len(sabotages)} sabotages: {counts['FAIL']} are FAIL, {counts['INCONCLUSIVE']} INCONCLUSIVE, {counts['refused']} are "
        f"refused without a verdict, and none is PASS. {len(clean)} clean runs: all are PASS."
    )
    lines = [
        BEGIN,
        "",
        told,
    ]
    for area, title in AREAS.items():
        lines += ["", f"**{title}**", "", "| sabotage | what the harness saw | verdict |", "|---|---|---|"]
        lines += [
            f"| {_cell(s.done)} | `{s.code}`: {_cell(s.seen)} | {VERDICTS[s.outcome]} |" for s in sabotages if s.area == area
        ]
    lines += ["", "**Clean runs**", "", "| run | what the claim says | verdict |", "|---|---|---|"]
    lines += [f"| {_cell(c.done)} | {_cell(c.says)} | PASS |" for c in clean]
    return "\n".join([*lines, "", END])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
