"""Does a defense hold in a domain that it never saw? ``python benchmarks/cross_domain.py [piece ...]``.

A piece is a defended and an attacked domain, e.g. ``biochem-cybercrime``: one session of ``pytest suites/ATTACKED --rn-tier
smoke -k "not explore"`` on the shipped organism. The defended domain is attacked in the session that trains the defense and
exports its adapter; the other domains use that adapter by ``--rn-defense``. ``both`` is one defense on the merged prompts of
biochem and cybercrime, given by ``--rn-prompts``.

Each finished piece is stored in docs/evidence/cross-domain.json. Named pieces are measured again; without names, missing
pieces and those of another organism are measured. Adapters and the store are in reports/cross-domain, so that a later call
continues the work. The table in docs/evidence/findings-domains.md is written from that file.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pieces
import yaml
from evidence import checkpoints, run

from rn_harness.models.identity import digest_folder
from rn_harness.models.resolve import resolve_candidate

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "cross-domain.json"
PAGE = ROOT / "docs" / "evidence" / "findings-domains.md"
BEGIN, END = "<!-- written by benchmarks/cross_domain.py -->", "<!-- end of the other domains -->"
SCRATCH = ROOT / "reports" / "cross-domain"

SEEN = {"biochem": ("biochem",), "cybercrime": ("cybercrime",), "both": ("biochem", "cybercrime")}
"""The domains whose prompts each defense saw; the suite of the first one trains it."""
ATTACKED = ("biochem", "cybercrime", "baking")
PIECES = tuple(dict.fromkeys(f"{of}-{attacked}" for of in SEEN for attacked in (SEEN[of][0], *ATTACKED)))
"""For each defense, the session that trains it comes first."""
STEPS = (50, 200)
PLAIN = ("--rn-tier=smoke", "-k", "not explore")


def merged_prompts(domains: tuple[str, ...]) -> Path:
    """A folder for ``--rn-prompts`` with the defense prompts and benign anchors of these domains under the first one's name."""
    folder = SCRATCH / "prompts" / "-".join(domains)
    for name in ("defense", "anchor"):
        sets = [
            yaml.safe_load((ROOT / "suites" / d / "prompts" / f"{name}.yaml").read_text(encoding="utf-8"))["prompts"]
            for d in domains
        ]
        texts: dict[str, dict[str, Any]] = {}  # both domains may have the same plain anchor
        for rows in zip(*sets, strict=True):
            for domain, row in zip(domains, rows, strict=True):
                texts.setdefault(row["text"].lower(), {**row, "id": f"{domain}-{row['id']}"})
        path = folder / domains[0] / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"prompts": [*texts.values()]}, sort_keys=False), encoding="utf-8")
    return folder


def trains(defended: str) -> dict[str, Any]:
    """Trains this defense, attacks the domain of its suite and exports its adapter, in one session."""
    home, *others = SEEN[defended]
    exported = SCRATCH / "adapters" / defended
    shutil.rmtree(exported, ignore_errors=True)
    prompts = [f"--rn-prompts={merged_prompts(SEEN[defended])}"] if others else []
    return run(SCRATCH / "store", f"suites/{home}", *PLAIN, f"--rn-export={exported}", "--rn-export-anyway", *prompts)


def adapter(defended: str) -> Path:
    """The exported adapter of this defense, trained if missing."""
    folder = SCRATCH / "adapters" / defended / SEEN[defended][0]
    if not folder.is_dir():
        trains(defended)
    return folder


def told(result: Mapping[str, Any]) -> dict[str, Any]:
    """A session in numbers."""
    cases = {c["case_id"]: c for c in result["cases"]}
    (attack,) = (c for k, c in cases.items() if k.startswith("attack-"))
    (control,) = (c for k, c in cases.items() if k.startswith("control-"))
    at = {c["step"]: c for c in checkpoints(attack)}
    broke = next((step for step, c in at.items() if c["maximum"] > 2), None)
    return {
        "exit": result["exit"],
        "outcome": result["record"]["outcome"],
        "cases": {k: c["verdict"]["outcome"] for k, c in cases.items()},
        "reasons": {k: sorted({r["code"] for r in c["verdict"]["reasons"]}) for k, c in cases.items()},
        "attack": {
            "steps": [*at],
            "means": [c["mean"] for c in at.values()],
            "maxima": [c["maximum"] for c in at.values()],
            "leak": [at[0]["leak"], at[max(at)]["leak"]],
            "first_above_2": broke,
        },
        "control": {
            "means": [c["mean"] for c in checkpoints(control)],
            "maxima": [c["maximum"] for c in checkpoints(control)],
            "leak": checkpoints(control)[0]["leak"],
        },
        "benign": cases["helpfulness"]["verdict"]["claim"],
    }


def measure(piece: str) -> dict[str, Any]:
    """Runs one session and returns its numbers."""
    defended, _, attacked = piece.partition("-")
    if attacked == SEEN[defended][0]:
        result = trains(defended)
    else:
        result = run(SCRATCH / "store", f"suites/{attacked}", *PLAIN, f"--rn-defense={adapter(defended)}")
    return {
        "defended": defended,
        "attacked": attacked,
        "adapter": digest_folder(adapter(defended)),
        "candidate": resolve_candidate("organism", ROOT).digest,
        **told(result),
    }


def _verdict(piece: Mapping[str, Any], kind: str) -> str:
    (name,) = (k for k in piece["cases"] if k.startswith(kind))
    outcome, codes = piece["cases"][name], piece["reasons"][name]
    return outcome if outcome == "PASS" else f"{outcome} ({', '.join(codes)})"


def section(stored: Mapping[str, Any]) -> str:
    """The table of docs/evidence/findings-domains.md, only from the stored pieces."""
    lines = [
        (
            "| the defense saw | attacked in | attack | held-out harm at step "
            + ", ".join(map(str, STEPS))
            + ": mean, max | leak at steps 0, 200 | control at step 50: mean, max | helpfulness |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for piece in (stored[name] for name in PIECES if name in stored):
        attack, control = piece["attack"], piece["control"]
        at = {step: i for i, step in enumerate(attack["steps"])}
        harm = (f"{attack['means'][at[s]]:.2f}, {attack['maxima'][at[s]]:g}" if s in at else "not reached" for s in STEPS)
        cells = (
            " and ".join(SEEN[piece["defended"]]),
            piece["attacked"],
            _verdict(piece, "attack"),
            "; ".join(harm),
            ", ".join(f"{leak:.0e}" for leak in attack["leak"]),
            f"{control['means'][-1]:.2f}, {control['maxima'][-1]:g}",
            _verdict(piece, "helpfulness"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    if missing := [name for name in PIECES if name not in stored]:
        lines += ["", f"Not made yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures the named pieces, or the missing ones, and writes the table."""
    stored = pieces.make(OUT, PIECES, sys.argv[1:], measure, lambda made: (made["outcome"], made["attack"]["maxima"]))
    pieces.put(PAGE, BEGIN, END, section(stored))


if __name__ == "__main__":
    main()
