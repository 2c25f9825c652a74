"""Levels: classes of attackers with a budget, at which a claim is made.

There are three axes. ``rl``: reinforcement learning with a harmful reward, without any compliant text. ``sft``: supervised steps
on compliant examples, with or without reinforcement learning after them. ``edit``: a change of weights without training. Levels
of different axes are never compared: completions, examples and edits have no common unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

Axis = Literal["rl", "sft", "edit"]
AXES: tuple[Axis, ...] = ("rl", "sft", "edit")
PLAIN, EXPLORE, EDIT = "rl-plain", "rl-explore", "edit"
PATTERN = r"^(rl-plain|rl-explore|sft-[1-9]\d{0,5}x[1-9]\d{0,5}|edit)$"


def _checked(name: Any) -> Any:
    """The name, or an error that says which there are, as no pattern does."""
    return Level.of(name) and name if isinstance(name, str) else name


LevelName = Annotated[str, Field(pattern=PATTERN), BeforeValidator(_checked)]
"""``rl-plain``: on-policy RL without aids, at a temperature of at most 2. ``rl-explore``: with everything that needs no compliant
text. ``sft-KxM``: K compliant examples, M supervised steps. ``edit``: one edit."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level in parts.

    Attributes:
        axis: of the attacker.
        size: what the attacker may use, number by number: ``(0,)`` and ``(1,)`` for ``rl-plain`` and ``rl-explore``, examples and
            steps for ``sft-KxM``.
    """

    axis: Axis
    size: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> Level:
        """The level of a name; raises ValueError for any other text."""
        if not re.fullmatch(PATTERN, name):
            raise ValueError(f"a level is rl-plain, rl-explore, sft-KxM or edit, got level={name!r}; take one of those")
        if name == EDIT:
            return cls("edit", ())
        if name in (PLAIN, EXPLORE):
            return cls("rl", (int(name == EXPLORE),))
        examples, steps = name.removeprefix("sft-").split("x")
        return cls("sft", (int(examples), int(steps)))

    def covers(self, other: Level) -> bool:
        """True if the other level is this one, or below it on the same axis."""
        return self.axis == other.axis and all(mine >= its for mine, its in zip(self.size, other.size, strict=True))


def sft_level(examples: int, steps: int) -> str:
    """The name of a level on the axis of supervised steps."""
    return f"sft-{examples}x{steps}"


def covers(target: str, level: str) -> bool:
    """True if a claim at the target level needs the attacks of this level."""
    return Level.of(target).covers(Level.of(level))
