"""A release's own rules beyond those of the harness: its policy, and its waivers.

Both are YAML files of the releasing team. A waiver has an owner, a reason and an expiry date. There is none by default, and none
for a breach, a missing verdict, other weights, a bad signature, contradictory evidence, or a run that attacked or measured less
than a release needs.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Field

from rn_harness.spec.base import Frozen, Name, TierName
from rn_harness.spec.levels import LevelName

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digests = Annotated[list[Digest], Field(min_length=1)]
Text = Annotated[str, Field(pattern=r"\S")]
Waivable = Literal[
    "not_releasable",
    "tier",
    "too_old",
    "tool_version",
    "policy_domain",
    "policy_suite",
    "policy_judge",
    "policy_base",
    "policy_labels",
    "policy_attacks",
    "policy_level",
]
"""Codes of refusals that a waiver can cover."""
MAX_AGE_DAYS = 30.0
RELEASE_TIERS: tuple[TierName, ...] = ("standard", "full")


class ReleasePolicy(Frozen):
    """A release's requirements on a run. A field that is left out requires only its default; a given field is never empty.

    Attributes:
        suites: accepted digests of the suite, by domain.
        judges: accepted digests of the judge that scored, by domain.
        base: accepted digests of the undefended model.
        sources: accepted digests of the harness's sources that made the run, in addition to those that check it.
        plugins: accepted digests of code of others (conftests, plugins).
        max_age_days: the most days since the run ended.
        labels: True if the judge must be certified on the user's own labels too.
        level: target that the claim of each domain has to reach, see ``levels``.
        min_attacks: the least number of attack cases that count, in each domain.
    """

    version: Literal[1]
    domains: Annotated[list[Name], Field(min_length=1)] = Field(default_factory=list)
    tiers: Annotated[list[TierName], Field(min_length=1)] = Field(default_factory=lambda: list(RELEASE_TIERS))
    suites: Annotated[dict[Name, Digests], Field(min_length=1)] = Field(default_factory=dict)
    judges: Annotated[dict[Name, Digests], Field(min_length=1)] = Field(default_factory=dict)
    base: Digests = Field(default_factory=list)
    sources: Digests = Field(default_factory=list)
    plugins: list[Digest] = Field(default_factory=list)
    max_age_days: Annotated[float, Field(gt=0.0, le=36_525.0)] = MAX_AGE_DAYS
    labels: bool = False
    level: LevelName | None = None
    min_attacks: Annotated[int, Field(ge=1)] = 1


class Waiver(Frozen):
    """A refusal that its owner accepts responsibility for.

    Attributes:
        about: its whole sentence, so that a waiver covers exactly the refusal that its owner read; line breaks count as spaces.
        expires: the last day on which it counts.
    """

    code: Waivable
    about: Text
    owner: Text
    reason: Text
    expires: datetime.date


class Waivers(Frozen):
    """The contents of a file of waivers."""

    version: Literal[1]
    waivers: list[Waiver]
