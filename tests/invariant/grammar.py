"""The grammar of sabotages: components, faults, scopes and subjects, and the rules that every combination has to obey.

A component offers hooks. A hook is a place in the real code or in a real file at which a value passes by as a row of pieces. A
fault is a generic change of such a row. A cell is a hook, a fault, a scope and a subject. No cell has an expected verdict of its
own: the rules of ``broken_rules`` hold for all of them.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from pydantic import ValidationError

from rn_harness.spec.errors import RnHarnessError

from .battery import Made, Scene, Seen, observe

Component = Literal[
    "tokenizer", "template", "sampler", "judge", "reward", "optimizer", "adapter", "evaluation", "store", "record", "suite file",
    "conftest", "hook", "option", "clock",
]  # fmt: skip
COMPONENTS: tuple[Component, ...] = get_args(Component)
Scope = Literal["everywhere", "attack"]
"""``attack``: only the attack on the defended model, or its case, meets the fault; its control and all else are honest."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
Subject = Literal["honest", "broken", "quiet"]
"""``honest``: a defense that holds. ``broken``: one that an honest attack breaks. ``quiet``: the same, and only the scores of
held-out prompts show the break: there is no harm in training, and probabilities of answers are unknown."""
Row = list[Any]


@dataclass(frozen=True)
class Nature:
    """The pieces of a value, and the changes that a single piece allows; None: it does not allow it.

    Attributes:
        pieces: their name, in the plural.
        constant: makes the piece that takes the place of others, from the row's first.
        shift, scale, negate, rename: change one piece.
    """

    pieces: str
    constant: Callable[[Any], Any] | None = None
    shift: Callable[[Any], Any] | None = None
    scale: Callable[[Any], Any] | None = None
    negate: Callable[[Any], Any] | None = None
    rename: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Fault:
    """A generic change of a row.

    Attributes:
        name: of the fault.
        needs: the change of one piece that it needs; empty: none.
        make: the row, the first row that was seen in this place, and the nature of its pieces, to the faulty row.
    """

    name: str
    needs: str
    make: Callable[[Row, Row, Any], Row]


FAULTS: tuple[Fault, ...] = (
    Fault("missing", "", lambda now, first, of: []),
    Fault("stale", "", lambda now, first, of: list(first)),
    Fault("swapped", "", lambda now, first, of: now[::-1]),
    Fault("constant", "constant", lambda now, first, of: [of.constant(now[0])] * len(now)),
    Fault("shifted", "shift", lambda now, first, of: [of.shift(piece) for piece in now]),
    Fault("scaled", "scale", lambda now, first, of: [of.scale(piece) for piece in now]),
    Fault("truncated", "", lambda now, first, of: now[: len(now) // 2]),
    Fault("duplicated", "", lambda now, first, of: [*now, *now]),
    Fault("renamed", "rename", lambda now, first, of: [of.rename(piece) for piece in now]),
    Fault(
        "partially applied", "constant",
        lambda now, first, of: [of.constant(now[0]) if i % 2 else piece for i, piece in enumerate(now)],
    ),
    Fault("negated", "negate", lambda now, first, of: [of.negate(piece) for piece in now]),
)  # fmt: skip
"""A fault that is applied to the attack only is a scope: it combines with each of these."""


@dataclass
class Tap:
    """The place at which a fault enters: each row of the hook passes through it.

    Attributes:
        fault, nature: of the cell.
        armed: rows pass unchanged while it is false.
        bites: number of rows that the fault changed.
    """

    fault: Fault
    nature: Nature
    armed: bool = True
    bites: int = 0
    _first: dict[Any, Row] = field(default_factory=dict)

    def __call__(self, row: Sequence[Any], place: Any = "") -> Row:
        """The row as the fault leaves it; ``place`` tells apart rows whose first ones must not be mixed up."""
        now = list(row)
        first = self._first.setdefault(place, now)
        if not (self.armed and now):
            return now
        made = self.fault.make(now, first, self.nature)
        self.bites += made != now
        return made

    def remember(self, row: Sequence[Any], place: Any = "") -> None:
        """Makes a row the first one that was seen in its place, for a stale value from elsewhere."""
        self._first[place] = list(row)


@dataclass(frozen=True)
class Result:
    """The result of a cell.

    Attributes:
        made: what is decided.
        same: True if each score and each reward that a verdict uses is the one of the subject without any fault.
    """

    made: Made
    same: bool = False


@dataclass(frozen=True)
class Hook:
    """A place of a component.

    Attributes:
        component, name: of the place.
        nature: of the pieces that pass there.
        carry_out: makes a cell of this hook.
        live: True if a cell trains a model.
        quick: True if a cell takes milliseconds.
        subjects: of its cells.
        senseless: faults that make no sense here, with the reason; a nature rules out others.
    """

    component: Component
    name: str
    nature: Nature
    carry_out: Callable[[Scene, Tap, Cell], Result]
    live: bool = False
    quick: bool = False
    subjects: tuple[Subject, ...] = ("honest", "broken")
    senseless: Mapping[str, str] = field(default_factory=dict)

    def why_senseless(self, fault: Fault) -> str | None:
        """Why a fault makes no sense here; None if it does."""
        if fault.needs and getattr(self.nature, fault.needs) is None:
            return f"{self.nature.pieces} have nothing to {NEEDS[fault.needs]}"
        return self.senseless.get(fault.name)


NEEDS = {"constant": "be replaced by", "shift": "shift", "scale": "scale", "negate": "negate", "rename": "rename"}


@dataclass(frozen=True)
class Cell:
    """One combination."""

    hook: Hook
    fault: Fault
    scope: Scope
    subject: Subject

    @property
    def id(self) -> str:
        """Unique name."""
        words = (self.hook.component, self.hook.name, self.fault.name, self.scope, self.subject)
        return "-".join(word.replace(" ", "_") for word in words)


def cells(hooks: Sequence[Hook]) -> Iterator[Cell]:
    """All cells, senseless ones included."""
    for hook in hooks:
        for fault, scope, subject in itertools.product(FAULTS, SCOPES, hook.subjects):
            yield Cell(hook, fault, scope, subject)


def sensible(hooks: Sequence[Hook]) -> list[Cell]:
    """The cells that make sense."""
    return [cell for cell in cells(hooks) if cell.hook.why_senseless(cell.fault) is None]


def in_default_run(cell: Cell) -> bool:
    """True for the cells of the default run; the others need ``--soak``.

    All cells of recorded attacks are in it, since each takes milliseconds. Of the others those are in it that are about a broken
    defense, in one of the two scopes; of those that train, a part of the cells in which the attack alone is faulty, in turn.
    """
    number = FAULTS.index(cell.fault)
    if cell.hook.quick:
        return True
    if cell.hook.live:
        return cell.subject == "broken" and cell.scope == "attack" and (number + len(cell.hook.name)) % 4 == 0
    return cell.subject == "broken" and cell.scope == SCOPES[number % 2]


def params(hooks: Iterable[Hook]) -> list[Any]:
    """One test case for each cell that makes sense; those outside the default run are soak tests."""
    return [
        pytest.param(cell, id=cell.id, marks=() if in_default_run(cell) else pytest.mark.soak) for cell in sensible(tuple(hooks))
    ]


def page(hooks: Sequence[Hook]) -> str:
    """The counts of docs/evidence/battery.md."""
    lines = ["| component | places | cells | senseless | default run | soak |", "|---|---|---|---|---|---|"]
    totals = [0] * 5
    for component in COMPONENTS:
        of = [hook for hook in hooks if hook.component == component]
        known, useful = len(list(cells(of))), sensible(of)
        quick = sum(map(in_default_run, useful))
        row = [len(of), known, known - len(useful), quick, len(useful) - quick]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        places = ", ".join(hook.name for hook in of)
        lines.append(f"| {component}: {places} | {' | '.join(map(str, row))} |")
    lines.append(f"| all | {' | '.join(map(str, totals))} |")
    reasons = sorted({reason for hook in hooks for f in FAULTS if (reason := hook.why_senseless(f))})
    return "\n".join([*lines, "", f"Senseless: {'; '.join(reasons)}."])


def carry_out(cell: Cell, scene: Scene) -> tuple[Seen, Result | None, Tap]:
    """Carries out a cell; an error of the harness, a file or a declared field is an outcome without a verdict."""
    tap = Tap(cell.fault, cell.hook.nature)
    try:
        result = cell.hook.carry_out(scene, tap, cell)
    except (RnHarnessError, pytest.UsageError, OSError, ValidationError) as error:
        return Seen("refused", ((type(error).__name__, str(error)),)), None, tap
    except Exception as error:  # the test of such a case is red, and the case has no verdict
        if Path(traceback.extract_tb(error.__traceback__)[-1].filename).name.startswith("grammar"):
            raise
        return Seen("crashed", ((type(error).__name__, str(error)),)), None, tap
    return observe(result.made), result, tap


def broken_rules(cell: Cell, seen: Seen, result: Result | None, tap: Tap) -> list[str]:
    """The rules that a cell breaks.

    1. A broken defense never passes, whatever is faulty.
    2. A fault that only the attack on the defended model meets lets it pass only if nothing that the verdict uses changed.
    3. A fault that changes nothing leaves the subject's own outcome.
    """
    passed = seen.outcome == "PASS"
    rules = {
        "a broken defense passes": passed and cell.subject != "honest",
        "the attack alone is faulty, its trajectory is another one, and it passes": passed
        and cell.scope == "attack"
        and result is not None
        and not result.same,
        "the fault changed nothing, and the outcome is another one": not tap.bites and passed != (cell.subject == "honest"),
    }
    return [rule for rule, applies in rules.items() if applies]
