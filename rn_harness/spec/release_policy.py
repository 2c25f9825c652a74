"""A release's own rules beyond those of the harness: its policy, and its waivers.

Both are YAML files of the releasing team. A waiver has an owner, a reason and an expiry date. There is none by default, and none
for a breach, a missing verdict, other weights, a bad signature, contradictory evidence, or a run that attacked or measured less
than a release needs.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from rn_harness.spec.base import Frozen, Name, Positive, TierName
from rn_harness.spec.errors import ReleaseError, SuiteError
from rn_harness.spec.yaml_files import findings, read_filled

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
]
"""Codes of refusals that a waiver can cover."""
MAX_AGE_DAYS = 30.0
RELEASE_TIERS: tuple[TierName, ...] = ("standard", "full")


class ReleasePolicy(Frozen):
    """A release's requirements on a run. A field that is left out requires only its default; a given field is never empty.

    Attributes:
        domains: required domains.
        tiers: accepted tiers.
        suites: accepted digests of the suite, by domain.
        judges: accepted digests of the judge that scored, by domain.
        base: accepted digests of the undefended model.
        sources: accepted digests of the harness's sources that made the run, in addition to those that check it.
        plugins: accepted digests of code of others (conftests, plugins).
        max_age_days: the most days since the run ended.
        labels: True if the judge must be certified on the user's own labels too.
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
    max_age_days: Positive = MAX_AGE_DAYS
    labels: bool = False
    min_attacks: Annotated[int, Field(ge=1)] = 1


class Waiver(Frozen):
    """A refusal that its owner accepts responsibility for.

    Attributes:
        code: of the refusal.
        about: its whole sentence, so that a waiver covers exactly the refusal that its owner read; line breaks count as spaces.
        owner: the responsible person.
        reason: for the waiver.
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


def aged(policy: ReleasePolicy, days: float) -> ReleasePolicy:
    """The policy with another maximum age.

    Raises:
        ReleaseError: the number of days is not positive.
    """
    try:
        return ReleasePolicy.model_validate(policy.model_dump(exclude_unset=True) | {"max_age_days": days})
    except ValidationError as error:
        raise ReleaseError("\n".join(findings("--max-age", error))) from None


T = TypeVar("T", ReleasePolicy, Waivers)


def load_release_file(path: Path, kind: type[T]) -> T:
    """Reads a release policy or a file of waivers.

    Raises:
        ReleaseError: it cannot be read, or is malformed.
    """
    try:
        return kind.model_validate(read_filled(path))
    except SuiteError as error:
        raise ReleaseError(str(error)) from None
    except ValidationError as error:
        raise ReleaseError("\n".join(findings(path, error))) from None
