"""Results of each attack on the shipped organism: ``python benchmarks/attacks.py full|seeds [FOLDER]``.

``full`` is ``pytest suites/biochem --rn-tier full --rn-defense anchored``; ``seeds`` runs one attack of each kind with five
seeds, and repeats the first seed from an empty store. Both resume an interrupted measurement in FOLDER (build/attacks). A
complete part goes to docs/evidence/attacks.json, and its table to docs/evidence/attacks.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pieces
import yaml

from rn_harness.spec.attack_recipe import AttackMatrix, AttackRecipe
from rn_harness.spec.suite import load_suite
from rn_harness.store.provenance import hardware, versions

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "attacks.json"
PAGE = ROOT / "docs" / "evidence" / "attacks.md"
DOMAIN = "biochem"
SEEDS = [0, 1, 2, 3, 4]
KINDS = (
    "grpo-p5-lr5e-4-s0", "grpo-p1-lr5e-4-s0", "rloo-p5-lr5e-4-s0", "reinforce-p5-lr5e-4-dr_grpo-scale_none-s0",
    "length-p5-lr5e-4-s0", "affirmative-p5-lr5e-4-s0", "unlearning-p5-lr5e-4-s0", "warm-5x3-p5-lr5e-4-s0",
    "warm-5x10-p5-lr5e-4-s0", "wording-p20-lr2e-3-b4-s0", "prefill-p5-lr5e-4-s0", "sft-p5-lr1e-3-s0",
    "ablation-p20-lr1e0-full-s0",
)  # fmt: skip
"""The attack of each kind that runs with several seeds, by its id in the full tier."""


def session(suite: Path, run: Path, store: Path, *arguments: str) -> int:
    """Runs one pytest session; its output goes to a file next to its run."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(suite), f"--rn-run={run}", *arguments]
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".log").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "RN_HARNESS_CACHE": str(store)}, stdout=log, stderr=log, check=False
        )
    return done.returncode


def records(run: Path) -> Iterator[dict[str, Any]]:
    """The case records of a run, in the order of ``run.json``."""
    for line in json.loads((run / "run.json").read_text(encoding="utf-8"))["cases"]:
        if line["record"]:
            yield json.loads((run / line["record"]).read_text(encoding="utf-8"))


def told(record: Mapping[str, Any]) -> dict[str, Any]:
    """An attack and its control in numbers."""
    evidence = record["evidence"]
    attack, control = evidence["trajectory"], evidence["control"]
    row: dict[str, Any] = {
        "standing": evidence["standing"],
        "finding": record["verdict"]["finding"],
        "outcome": record["verdict"]["outcome"],
        "reasons": list(dict.fromkeys(reason["code"] for reason in record["verdict"]["reasons"])),
        "wall_s": record["wall_s"],
    }
    if not attack or not control:
        return row | {"refused": evidence["refused"]}
    of, recipe = attack["checkpoints"], attack["recipe"]
    windows = [c["training"] for c in of[1:]]
    above = [c["step"] for c in of if c["maximum"] is not None and c["maximum"] > evidence["policy"]["threshold"]]
    return row | {
        "family": recipe["family"],
        "settings": {name: recipe[name] for name in ("learning_rate", "temperature", "beta", "seed")}
        | {"shape": recipe["reward"]["shape"]},
        "steps": attack["steps"],
        "control_means": [c["mean"] for c in control["checkpoints"]],
        "means": [c["mean"] for c in of],
        "maxima": [c["maximum"] for c in of],
        "first_breach": min(above, default=None),
        "leak": [of[0]["leak"], of[-1]["leak"]],
        "spread_share": [1.0 - w["zero_spread_share"] for w in windows],
        "degenerate_share": of[-1]["degenerate_share"],
        "moved": windows[-1]["adapter_distance"] if windows else None,
    }


def whole(run: Path) -> dict[str, Any]:
    """A finished run in numbers: its outcome, and each attack by its id."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {
        "outcome": record["outcome"],
        "releasable": record["releasable"],
        "why_not": record["why_not"],
        "claim": record["claim"],
        "coverage": [c["claim"] for c in record["coverage"]],
        "sources": next(r["identity"]["versions"]["rn-harness-sources"] for r in records(run)),
        "attacks": {r["case_id"].removeprefix("attack-"): told(r) for r in records(run) if r["case_id"].startswith("attack-")},
    }


def full(folder: Path) -> dict[str, Any]:
    """The full tier of one domain."""
    code = session(ROOT / "suites" / DOMAIN, folder / "full", folder / "store", "--rn-tier=full", "--rn-defense=anchored")
    return {"exit": code, **whole(folder / "full")}


def seeds(folder: Path) -> dict[str, Any]:
    """One attack of each kind with five seeds, and with the first of them twice."""
    found = {}
    kinds = [settings_of(attack) for attack in load_suite(ROOT / "suites" / DOMAIN).tier_attacks("full") if attack.id in KINDS]
    for name, store, of in (("five", folder / "store", SEEDS), ("again", folder / "store-again", SEEDS[:1])):
        if name == "again" and not (folder / f"seeds-{name}" / "run.json").exists():
            shutil.rmtree(store, ignore_errors=True)
        suite = several_seeds(folder / f"suites-{name}", DOMAIN, kinds, of)
        session(suite, folder / f"seeds-{name}", store, "--rn-tier=smoke", "--rn-defense=anchored")
        found[name] = whole(folder / f"seeds-{name}")["attacks"]
    same = {case: measured(found["five"][case]) == measured(found["again"][case]) for case in found["again"]}
    return {"attacks": found["five"], "repeated": same}


def measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a repeated case must reproduce: all except its time."""
    return {name: value for name, value in row.items() if name != "wall_s"}


def settings_of(attack: AttackRecipe) -> dict[str, Any]:
    """The settings that declare an attack, without its seed."""
    return attack.model_dump(mode="json", exclude_defaults=True, exclude={"seed"})


def several_seeds(folder: Path, domain: str, attacks: Iterable[Mapping[str, Any]], of: Sequence[int]) -> Path:
    """A copy of a suite, next to the others, whose smoke tier is these attacks, each with each of the seeds."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "suites", folder)
    path = folder / domain / "suite.yaml"
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    matrices = [AttackMatrix(tier="smoke", base=dict(base), vary={"seed": list(of)}) for base in attacks]
    declared["attacks"] = [matrix.model_dump(mode="json") for matrix in matrices]
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")
    return folder / domain


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line per attack."""
    lines = [
        "| case | standing | control: highest mean | result | defended: highest score, highest mean | leak, before and after |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for case, row in rows.items():
        if "means" not in row:
            lines.append(f"| `{case}` | {row['standing']} | | could not be run | | |")
            continue
        broke = f" at step {row['first_breach']}" if row["finding"] == "broke" and row["first_breach"] is not None else ""
        lines.append(
            f"| `{case}` | {row['standing'].replace('_', ' ')} | {max(row['control_means']):.1f} | "
            f"{row['finding'].replace('_', ' ')}{broke} | {max(row['maxima']):g}, {max(row['means']):.2f} | "
            f"{row['leak'][0]:.0e}, {row['leak'][1]:.0e} |"
        )
    return lines


def flips(rows: Mapping[str, Mapping[str, Any]], repeated: Mapping[str, bool]) -> list[str]:
    """One line per kind of attack, with the findings of its seeds."""
    lines = ["| attack | standing | result by seed | flips | repeated bit by bit |", "|---|---|---|---|---|"]
    kinds: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for case, row in rows.items():
        kinds.setdefault(case.rpartition("-s")[0], []).append((case, row))
    for kind, of in kinds.items():
        findings = [row["finding"].replace("_", " ") for _, row in of]
        most = max(set(findings), key=findings.count)
        again = [("yes" if repeated[case] else "**no**") for case, _ in of if case in repeated]
        standing = of[0][1]["standing"].replace("_", " ")
        odd = sum(f != most for f in findings)
        lines.append(f"| `{kind}` | {standing} | {', '.join(findings)} | {odd} of {len(findings)} | {', '.join(again)} |")
    return lines


def write(part: str, lines: Sequence[str]) -> None:
    """Puts a part's tables into the page."""
    pieces.put(PAGE, f"<!-- {part}: written by benchmarks/attacks.py -->", f"<!-- end of {part} -->", "\n".join(lines))


def main() -> None:
    """Runs a part, or reads an existing run of it, and stores the results."""
    part = sys.argv[1]
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "build" / "attacks").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    stored = pieces.read(OUT)
    found = {"full": full, "seeds": seeds}[part](folder)
    stored[part] = {**found, "versions": versions(), "hardware": hardware(1)}
    pieces.store(OUT, stored)
    write(part, table(found["attacks"]) if part == "full" else flips(found["attacks"], found["repeated"]))


if __name__ == "__main__":
    main()
