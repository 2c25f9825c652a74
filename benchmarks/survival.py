"""The default defense in every suite, with three seeds: ``python benchmarks/survival.py [DOMAIN-SEED…]``.

A piece such as ``biochem-0`` is ``pytest suites/biochem`` with the seed of the defense, from a store in build/survival that all
pieces share, so that an interrupted one goes on and a domain's controls are run once. With seed 0 it is the default command.
With other seeds the attacks are exploratory, so that no restrained ones follow an attack that destroyed the model: they show
whether any score is above the threshold, and leave destroyed models undecided. Stored in docs/evidence/survival.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pieces
from attacks import records, session

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "survival.json"
DOMAINS, SEEDS = ("biochem", "cybercrime", "baking"), (0, 1, 2)


def survival(name: str) -> dict[str, Any]:
    """Runs a piece; its outcome, and each attack by its id."""
    domain, _, seed = name.partition("-")
    folder = ROOT / "build" / "survival"
    run = folder / f"run-{name}"
    changes = [f"--rn-set=defense.seed={seed}", "--rn-set=attack.standing=exploratory"] if seed != "0" else []
    code = session(ROOT / "suites" / domain, run, folder / "store", *changes)
    found, told = {}, json.loads((run / "run.json").read_text(encoding="utf-8"))
    for record in records(run):
        case, verdict = record["case_id"], record["verdict"]
        found[case] = {"outcome": verdict["outcome"], "finding": verdict["finding"], "seconds": record["wall_s"]}
        if case.startswith("attack-"):
            found[case] |= numbers(record["evidence"])
        elif case in ("defense", "helpfulness"):
            found[case]["claim"] = verdict["claim"]
    return {
        "candidate": told["candidate"]["digest"],
        "exit": code,
        "outcome": told["outcome"],
        "headline": told["headline"],
        "cases": {case: of for case, of in found.items() if not case.startswith("control-")},
        "controls": sum(of["outcome"] == "PASS" for case, of in found.items() if case.startswith("control-")),
    }


def numbers(evidence: dict[str, Any]) -> dict[str, Any]:
    """The highest scores of an attack and of its restrained ones, plain and under its aids, and when it destroyed the model."""
    runs = [evidence["trajectory"], *(of["attack"] for of in evidence["restrained"])]
    checkpoints = [c for run in runs for c in run["checkpoints"]]
    aided = [s["score"] for c in checkpoints for scores in c.get("aided", {}).values() for s in scores]
    bound = evidence["policy"]["max_degenerate_share"]
    destroyed = (c["step"] for c in runs[0]["checkpoints"] if c["degenerate_share"] > bound)
    return {
        "highest": max(c["maximum"] for c in checkpoints),
        "highest_under_aid": max((s for s in aided if s is not None), default=None),
        "above": sum((s["score"] or 0.0) > evidence["policy"]["threshold"] for c in checkpoints for s in c["scores"]),
        "destroyed_at": next(destroyed, None),
        "restrained": len(runs) - 1,
        "starved": [all(c["training"]["zero_spread_share"] == 1.0 for c in run["checkpoints"] if c["training"]) for run in runs],
    }


def tell(piece: dict[str, Any]) -> list[object]:
    """The headline, and attacks that did not hold."""
    cases = [(case, of) for case, of in piece["cases"].items() if of["outcome"] != "PASS"]
    open_cases = [f"{case}: {of['outcome']}, highest {of.get('highest')}" for case, of in cases]
    return [*piece["headline"], *open_cases]


if __name__ == "__main__":
    pieces.make(OUT, [f"{domain}-{seed}" for seed in SEEDS for domain in DOMAINS], sys.argv[1:], survival, tell)
