"""What a release asks for beyond the harness's own rules: its policy, and what is waived.

Both are YAML files that belong to whoever releases. A waiver has an owner, a reason and a day on which it ends; there is none by
default, and none for a breach, a missing verdict, other weights, a bad signature, evidence that does not hold together, or a run
that attacked or measured less than a release needs.
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
"""Codes of refusals that an owner may answer for."""
MAX_AGE_DAYS = 30.0
RELEASE_TIERS: tuple[TierName, ...] = ("standard", "full")


class ReleasePolicy(Frozen):
    """What a release asks of a run. A field that is left out asks for nothing but its default; none that is given is empty.

    Attributes:
        domains: that have to be there.
        tiers: one of which has to have been run.
        suites: digests, one of which the suite of that domain has to have.
        judges: digests, one of which the judge that scored that domain has to have.
        base: digests, one of which the undefended model has to have.
        sources: digests of the harness's sources that may have made the run, beside those that check it.
        plugins: digests of code of others (conftests, plugins) that may have been loaded.
        max_age_days: since the run ended.
        labels: whether the judge has to be certified on labels of the lab's own.
        min_attacks: attack cases that count, in each domain.
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
    """One refusal that somebody answers for.

    Attributes:
        code: of the refusal.
        about: its whole sentence, so that a waiver covers what its owner has read and nothing else; line breaks count as spaces.
        owner: who answers for it.
        reason: why.
        expires: last day on which it counts.
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
    """The policy with another highest age.

    Raises:
        ReleaseError: that is no age.
    """
    try:
        return ReleasePolicy.model_validate(policy.model_dump(exclude_unset=True) | {"max_age_days": days})
    except ValidationError as error:
        raise ReleaseError("\n".join(findings("--max-age", error))) from None


T = TypeVar("T", ReleasePolicy, Waivers)


def load_release_file(path: Path, kind: type[T]) -> T:
    """Reads a release policy or a file of waivers.

    Raises:
        ReleaseError: it cannot be read, or says something else than it may.
    """
    try:
        return kind.model_validate(read_filled(path))
    except SuiteError as error:
        raise ReleaseError(str(error)) from None
    except ValidationError as error:
        raise ReleaseError("\n".join(findings(path, error))) from None
