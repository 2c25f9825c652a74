"""The battery: sabotages and clean runs as data, their execution, and the tables that list them.

A sabotage declares the change and the expected reaction of the harness. Its execution gives evidence for ``decide``, a run's
record, a verification, or an error if the harness refuses to continue, which leaves a run without a verdict.
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
Area = Literal["training", "judges", "models", "games", "prompts", "records", "runs", "releases"]
AREAS: dict[Area, str] = {
    "training": "Training and measuring: short real runs of GRPO, in which one thing is sabotaged",
    "judges": "Judges: short real runs, or real certificates",
    "models": "Models: real weights that were taught to behave so",
    "games": "Model-side games: the defended model, fine-tuned so that it hides its harm from a measurement",
    "prompts": "Prompt sets",
    "records": "Records: forged evidence",
    "runs": "Runs: files, workers and cases",
    "releases": "Releases: what is handed to `rn-harness verify`",
}
BEGIN, END = "<!-- the battery, written by make validity -->", "<!-- end of the battery -->"
VERDICTS: dict[Expected, str] = {"FAIL": "FAIL", "INCONCLUSIVE": "INCONCLUSIVE", "refused": "refused, no verdict"}


@dataclass(frozen=True)
class Scene:
    """The surroundings of one sabotage.

    Attributes:
        lab: shared parts.
        patch: applies the sabotage and undoes it afterwards.
        folder: an empty folder for this sabotage.
    """

    lab: Lab
    patch: pytest.MonkeyPatch
    folder: Path


Made = Evidence | RunRecord | Verification


@dataclass(frozen=True)
class Sabotage:
    """One sabotage.

    Attributes:
        id: unique name.
        area: section of the page.
        done: description of the change.
        outcome: expected outcome.
        code: expected code of a reason, ``no_verdict`` or ``missing`` of a run, or class of an error.
        seen: text that the reason's sentence, or the error's message, must contain.
        make: carries out the sabotage.
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
    """One clean run or clean evidence, which must be PASS.

    Attributes:
        id: unique name.
        done: description.
        says: text that its claim must contain.
        make: makes the run or the evidence.
        soak: True if it takes long.
    """

    id: str
    done: str
    says: str
    make: Callable[[Scene], Made]
    soak: bool = False


@dataclass(frozen=True)
class Seen:
    """The harness's reaction: the outcome, and each reason's code and sentence."""

    outcome: str
    reasons: tuple[tuple[str, str], ...]


def observe(made: Made) -> Seen:
    """The harness's reaction to evidence or a run, or the result of ``verify`` for a release."""
    if isinstance(made, Evidence):
        verdict = decide(made)
        return Seen(verdict.outcome, tuple((r.code, r.sentence) for r in verdict.reasons))
    if isinstance(made, Verification):
        return Seen("refused" if made.refusals else "PASS", tuple((r.code, r.sentence) for r in made.refusals))
    lines = [("no_verdict", f"{line.case_id}: {line.note}") for line in made.cases if line.outcome in (None, "INCONCLUSIVE")]
    failed = [("breach", f"{line.case_id}: {line.outcome}") for line in made.cases if line.outcome == "FAIL"]
    return Seen(made.outcome, (*failed, *lines, *(("not_releasable", why) for why in made.why_not), ("claim", made.claim)))


def carry_out(sabotage: Sabotage, scene: Scene) -> Seen:
    """Carries out a sabotage; an error of the harness, a file or a declared field counts as refused."""
    try:
        return observe(sabotage.make(scene))
    except (RnHarnessError, pytest.UsageError, OSError, ValidationError) as error:
        return Seen("refused", ((type(error).__name__, str(error)),))


Make = TypeVar("Make", bound=Callable[[Scene], Made])


class Declared(list[Sabotage]):
    """The sabotages of one area, each declared by a decorator of the function that carries it out.

    Args:
        area: area of all of them.
    """

    def __init__(self, area: Area) -> None:
        super().__init__()
        self.area = area

    def by(self, done: str, outcome: Expected, code: str, seen: str) -> Callable[[Make], Make]:
        """Declares the function's change and its expected result; the function's name becomes the id."""

        def declare(make: Make) -> Make:
            self.append(Sabotage(make.__name__.replace("_", "-"), self.area, done, outcome, code, seen, make))
            return make

        return declare


def page(sabotages: Sequence[Sabotage], clean: Sequence[Clean]) -> str:
    """The tables of docs/evidence/battery.md, including the two marks around them."""
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


def check_section(path: Path, begin: str, end: str, told: str, *, rewrite: bool) -> None:
    """A page has exactly this section, the two marks around it included; ``rewrite`` writes it there instead."""
    before, mark, rest = path.read_text(encoding="utf-8").partition(begin)
    inner, last, after = rest.partition(end)
    assert mark
    assert last
    if rewrite:
        path.write_text(f"{before}{told}{after}", encoding="utf-8")
        return
    assert f"{mark}{inner}{last}" == told


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
