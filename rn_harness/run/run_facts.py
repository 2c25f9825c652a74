"""Facts of a run that hold for all of its cases: options, suites, candidate, selection, foreign code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.records.case import CaseRecord
from rn_harness.spec.base import Standing
from rn_harness.spec.loaded_code import LoadedCode
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import now
from rn_harness.store.run_ids import new_run_id
from rn_harness.verdict.release_rules import required_cases
from rn_harness.verdict.validity import recipe_of

RECORDED = (
    *("model", "defense", "second_judge", "tier", "acknowledge", "allow_pickle", "trust_remote_code", "arguments"),
    *("quantise", "shard", "sampler", "fleet", "executor"),
)
"""Options that the run's record has unchanged."""


@dataclass
class RunFacts:
    """A run as the controlling process knows it.

    Attributes:
        folder: of the run.
        options: the user's options.
        suites: all suites with a selected test, as their files declare them; fixtures had no access to them.
        candidate: name, revision and digest.
        judges: judges of each suite, by domain.
        narrowed: how the selection was narrowed, e.g. ``-k``; empty if it was not.
        started: beginning of the run; of a run in parts, the beginning of its first part.
        left_out: suites' tests that were collected and will not run, and those that were kept from being collected.
        plugins: foreign code that any process of the run had loaded.
        unheard: workers that ended without a report on their collection and loaded code.
        dirty: uncommitted files of each suite, by domain.
        run_id: of the run.
        is_part: whether the run is a part of another; its folder is inside the other's.
        joined: the part that each case was taken from, by domain and case id, if parts are joined.
    """

    folder: Path
    options: Options
    suites: Sequence[Suite]
    candidate: Mapping[str, str | None]
    judges: Mapping[str, str]
    narrowed: Sequence[str]
    started: str = field(default_factory=now)
    left_out: Sequence[str] = ()
    plugins: Sequence[LoadedCode] = ()
    unheard: Sequence[str] = ()
    dirty: Mapping[str, Sequence[str]] = field(default_factory=dict)
    run_id: str = field(default_factory=new_run_id)
    is_part: bool = False
    joined: Mapping[str, str] = field(default_factory=dict)

    def suite_of(self, domain: str) -> Suite | None:
        """The suite of a domain."""
        return next((s for s in self.suites if s.domain == domain), None)

    def standing(self, domain: str, case_id: str, record: CaseRecord | None = None) -> tuple[Standing, bool]:
        """A case's standing as its suite declares it, and whether the claim covers its attack.

        Only the record has the settings that a search found.
        """
        suite = self.suite_of(domain)
        run = record.evidence.trajectory if record else None
        return suite.standing_of(case_id, recipe_of(run) if run else None) if suite else ("claim", True)

    @property
    def required(self) -> dict[str, tuple[str, ...]]:
        """The cases that the tier requires, by domain."""
        return {suite.domain: required_cases(suite, self.options.tier) for suite in self.suites}

    def recorded_options(self) -> dict[str, Any]:
        """The user's options in the form of the run's record."""
        options = self.options
        return {
            **{name: getattr(options, name) for name in RECORDED},
            "judges": dict(self.judges),
            "labels": bool(options.labels),
            "overrides": list(options.overrides),
            "base": options.undefended,
            "transcripts": list(options.recipients),
            "strength": list(options.strength),
            "private_prompts": {s.domain: list(s.private) for s in self.suites if s.private},
            "recipe": {s.domain: list(s.recipe) for s in self.suites},
            "chat_template": bool(options.chat_template),
            "narrowed": list(self.narrowed),
            "deselected": len(self.left_out),
            "dirty": {domain: list(files) for domain, files in self.dirty.items()},
            "allowed_plugins": list(options.allowed_plugins),
            "joined": dict(self.joined),
        }
