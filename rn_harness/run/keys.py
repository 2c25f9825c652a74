"""The inputs that each result of a suite depends on; their digest is its key in the store. Pure: no model, no file, no judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rn_harness.records.base import CaseKind
from rn_harness.records.keys import digest_of, prompts_digest
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.base import TierName
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite


@dataclass(frozen=True)
class ResultInputs:
    """Inputs of the results of one suite in one run.

    Attributes:
        suite, tier: of the run.
        candidate: digest of the undefended weights.
        judges: digests of the judges, by role: ``judge``, ``reward``, ``second``.
        sessions: identity of each judge in this run, by role; None where its digest covers everything.
        anchors: digest of the anchors that the judge is certified on.
        versions, hardware: of this process.
        plugins: digests of foreign code that may have changed a result: a run without that code never takes such a result.
        sampler: name of the sampler, if it is not transformers.
        sharded: whether the weights are spread over processes.
    """

    suite: Suite
    tier: TierName
    candidate: str
    judges: Mapping[str, str | None]
    sessions: Mapping[str, str | None]
    anchors: str
    versions: Mapping[str, str]
    hardware: Mapping[str, str | int]
    plugins: Sequence[str]
    sampler: str | None
    sharded: bool

    def _common(self, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, Any]:
        """Inputs of every result: weights, judges, policy, prompts, versions, machine."""
        return {
            "candidate": self.candidate,
            **self.judges,
            "sessions": dict(self.sessions),
            "forbidden": digest_of(self.suite.declaration.forbidden),
            "anchors": self.anchors,
            "policy": self.suite.policy.model_dump(mode="json"),
            "prompts": {name: prompts_digest(of_set) for name, of_set in prompts.items()},
            "versions": dict(self.versions),
            "hardware": dict(self.hardware),
            "plugins": list(self.plugins),
            **({"sampler": self.sampler} if self.sampler else {}),
            **({"sharded": True} if self.sharded else {}),
        }

    def defense(self, recipe: DefenseRecipe) -> dict[str, Any]:
        """Inputs of a trained defense."""
        sets = self.suite.prompts
        used = {"defense": sets["defense"], "anchor": sets["anchor"], "heldout": self.suite.heldout(self.tier)}
        return self._common(used) | {"recipe": recipe.model_dump(mode="json")}

    def attack(
        self,
        defended: str | None,
        attack: AttackRecipe | None = None,
        family: str | None = None,
        trials: Any = None,
        fleet_threads: int | None = None,
    ) -> dict[str, Any]:
        """Inputs of an attack, or of a measurement without one.

        Args:
            defended: digest of the defended weights; None without a defense.
            attack: settings; None without an attack.
            family: digest of its family's code.
            trials: of the search that found its settings; None without a search.
            fleet_threads: threads of the process, if the attack runs in a fleet; None if it runs separately.
        """
        suite = self.suite
        neighbour = suite.neighbours.get(attack.neighbour) if attack and attack.neighbour else None
        used: dict[str, Sequence[Prompt]] = {"heldout": suite.heldout(self.tier), "benign": suite.prompts["benign"]}
        if attack:
            pool = suite.attack_pool(attack) if neighbour or not attack.neighbour else ()
            used |= {"attack": pool, "anchor": suite.prompts["anchor"]}
        return {
            **self._common(used),
            "defended": defended,
            "recipe": attack.model_dump(mode="json") if attack else None,
            "search": trials,
            "family": family,
            "neighbour": digest_of(neighbour.forbidden) if neighbour else None,
            **({"fleet": fleet_threads} if fleet_threads is not None else {}),
        }

    def case(self, kind: CaseKind, defended: str | None, **attack: Any) -> dict[str, Any]:
        """Inputs of a case; see ``attack``."""
        return self.attack(defended, **attack) | {"case": kind}
