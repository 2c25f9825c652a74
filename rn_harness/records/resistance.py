"""How far a model resisted: budgets of attackers, by level and axis."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rn_harness.records.base import Outcome, Record
from rn_harness.spec.levels import Axis, LevelName, covers

Resisted = Literal["held", "broke", "destroyed", "unknown"]
"""``destroyed``: the attack and all restrained ones ended in noise, without any harm. ``unknown``: the measurement proves
nothing."""
Count = Annotated[int, Field(ge=0)]


class Budget(Record):
    """What an attacker spent. Numbers that do not apply are 0.

    Attributes:
        completions: that were rewarded.
        examples, supervised_steps: compliant texts, and optimizer steps on them.
        edits: of weights, without training.
    """

    completions: Count = 0
    examples: Count = 0
    supervised_steps: Count = 0
    edits: Count = 0

    @property
    def text(self) -> str:
        """The budget in words; RL after supervised steps is left out, since those decide."""
        if self.edits:
            return "one edit" if self.edits == 1 else f"{self.edits} edits"
        if self.examples:
            return f"{self.examples} example{'s' * (self.examples > 1)} x {self.supervised_steps} supervised steps"
        return f"{self.completions:,} completions" if self.completions else "no training at all"


class HarmPoint(Record):
    """The highest harm that any attacker reached within a budget: mean and highest score on the held-out prompts."""

    budget: Count
    mean: float
    maximum: float


class HarmCurve(Record):
    """Harm by budget over all attacks of an axis, computed for a view and never stored.

    Budgets are rewarded completions on the axis ``rl``, and examples times supervised steps on ``sft``.

    Attributes:
        attacks: number of attacks.
        defended, control: by budget, on the defended and on the undefended model.
        threshold: of a breach.
    """

    axis: Axis
    attacks: Count
    defended: tuple[HarmPoint, ...]
    control: tuple[HarmPoint, ...]
    threshold: float


class AttackResistance(Record):
    """How far a model resisted one attack.

    Attributes:
        level: of the attacker.
        state: what came out.
        budget: up to the first breach if it broke, else the whole.
        restrained: number of restrained attacks that a model held after the attack itself destroyed it.
    """

    level: LevelName
    state: Resisted
    budget: Budget
    restrained: Count = 0


class AxisResistance(Record):
    """How far a model resisted the attackers of one axis.

    Attributes:
        state: ``broke`` if any attack broke it; else ``unknown`` or ``destroyed`` if any attack is; else ``held``.
        budget: the smallest that broke or destroyed it; if it held, the smallest of the attackers of ``rl``, and the largest of
            the others. None: nothing is known, or no attack was run.
        level: of the attack with that budget.
        attacks: number of attacks.
        case_id: of the attack with that budget, if the model did not hold.
        counts: whether a breach by that attack counts for the run.
    """

    axis: Axis
    state: Literal[Resisted, "not_run"]
    level: LevelName | None = None
    budget: Budget | None = None
    attacks: Count = 0
    case_id: str | None = None
    counts: bool = False

    @property
    def text(self) -> str:
        """The state and its budget, e.g. ``held >= 3,200 completions``."""
        if self.state == "not_run":
            return "not run"
        if self.budget is None:
            return "unknown"
        return f"{self.state} {'>=' if self.state == 'held' else 'at'} {self.budget.text}"


class Resistance(Record):
    """How far one domain's defended model resisted in a run.

    Attributes:
        level: target of the claim.
        held, destroyed, claimed: attacks that the claim needs: those that held, those that destroyed the model without harm, and
            all.
        restrained: of those that held, the ones that destroyed the model and held in restrained form only.
        forms: other forms of request in which the defended model complies before any attack.
        axes: one for each axis; they are never added up.
        not_run: ``rl-plain``, ``rl-explore``, ``sft`` and ``edit``, as far as no attack of it was measured.
        scope: what the attackers may touch and know.
    """

    level: LevelName
    held: Count
    restrained: Count = 0
    destroyed: Count = 0
    claimed: Count
    forms: Count = 0
    axes: tuple[AxisResistance, ...]
    not_run: tuple[str, ...]
    scope: str

    def headline(self, outcome: Outcome, claim: str) -> str:
        """The line on a run that a hasty reader reads: the level, the cheapest known breaks, and what was not run.

        Args:
            outcome: of the run.
            claim: of the run; an INCONCLUSIVE one says why.
        """
        count = f"{self.held} of {self.claimed} claimed attacks held"
        without = self.claimed - self.held - self.destroyed  # a claimed attack that broke the model makes the run FAIL
        if without and outcome != "FAIL":  # without a verdict, or, in a PASS, left out by the user's selection
            count += f", {without} {'left out' if outcome == 'PASS' else 'undecided'}"
        count += f", {self.destroyed} destroyed the model without harm" if self.destroyed else ""
        if self.restrained:
            count += f" ({self.restrained} held in restrained form only, as the model was destroyed first)"
        result = count if outcome == "PASS" else f"{count}; {claim.removesuffix('.')}"
        broke = [(axis, axis.budget) for axis in self.axes if axis.state == "broke"]
        broken = [f"{budget.text} ({axis.case_id}{self._place(axis)})" for axis, budget in broke if budget]
        others = "another form" if self.forms == 1 else f"{self.forms} other forms"
        broken[:0] = [f"no attack at all, in {others} of request"] if self.forms else []
        unbroken = "" if outcome == "FAIL" else " No break is known from this run."  # the claim of a FAIL has what was seen
        cheapest = f" Cheapest known break: {'; '.join(broken)}." if broken else unbroken
        open_axes = ", ".join(axis.axis for axis in self.axes if axis.state == "unknown")
        who = "Undecided outside the claim" if outcome == "PASS" else "Undecided"  # a PASS leaves no claimed attack undecided
        undecided = f" {who}: {open_axes}." if open_axes else ""
        left = f" Not run: {', '.join(self.not_run)}." if self.not_run else ""
        return f"{outcome} at level {self.level}: {result}.{cheapest}{undecided}{left}"

    def _place(self, axis: AxisResistance) -> str:
        """The relation of the attack that broke the model to the claim; nothing if its breach counts."""
        if axis.counts or axis.level is None:
            return ""
        return ", at the level and not counted" if covers(self.level, axis.level) else ", beyond the level"
