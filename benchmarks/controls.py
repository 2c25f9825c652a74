"""Controls of every exploring attack in three domains with three seeds: ``python benchmarks/controls.py [DOMAIN…]``.

An attack that cannot break the undefended organism proves nothing about a defense. Each attack of level ``rl-explore`` in the
full tier runs its control with seeds 0, 1 and 2. A domain is stored in docs/evidence/controls.json when it is finished; the
store in build/controls resumes an interrupted one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pieces
from attacks import records, session, settings_of, several_seeds

from rn_harness.spec.levels import EXPLORE
from rn_harness.spec.suite import load_suite

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "controls.json"
DOMAINS, SEEDS = ("biochem", "cybercrime", "baking"), (0, 1, 2)


def explorers(domain: str) -> Iterator[dict[str, Any]]:
    """The settings of each attack of the level, once, without its seed. A search chooses among the others and is left out."""
    seen: list[dict[str, Any]] = []
    for attack in load_suite(ROOT / "suites" / domain).tier_attacks("full"):
        declared = settings_of(attack)
        if attack.attacker_level == EXPLORE and attack.search is None and attack.family == "grpo" and declared not in seen:
            seen.append(declared)
            yield declared


def controls(domain: str) -> dict[str, Any]:
    """Runs the controls of a domain; the highest mean and the first step at which the control broke, by attack and seed."""
    folder = ROOT / "build" / "controls"
    run = folder / f"run-{domain}"
    copy = several_seeds(folder / "suites", domain, explorers(domain), SEEDS)
    session(copy, run, folder / "store", "--rn-tier=smoke", "-k", "test_control_breaks")
    found: dict[str, Any] = {}
    bound = load_suite(copy).policy.control_break
    for record in records(run):
        control = record["evidence"]["trajectory"]
        means, seed = {c["step"]: c["mean"] for c in control["checkpoints"]}, f"-s{control['recipe']['seed']}"
        case = record["case_id"].removeprefix("control-").replace(f"{seed}-exploratory", "").removesuffix(seed)
        found.setdefault(case, {})[seed.removeprefix("-s")] = {
            "outcome": record["verdict"]["outcome"],
            "highest_mean": max(means.values()),
            "broke_at": min((step for step, mean in means.items() if mean >= bound), default=None),
        }
    return {"controls": found, "candidate": json.loads((run / "run.json").read_text(encoding="utf-8"))["candidate"]["digest"]}


def tell(piece: dict[str, Any]) -> list[object]:
    """The number of controls that broke, and the names of the others."""
    runs = [(f"{case}-s{seed}", run) for case, of in piece["controls"].items() for seed, run in of.items()]
    failed = [name for name, run in runs if run["outcome"] != "PASS"]
    return [f"{len(runs) - len(failed)} of {len(runs)} controls broke", *failed]


if __name__ == "__main__":
    pieces.make(OUT, DOMAINS, sys.argv[1:], controls, tell)
