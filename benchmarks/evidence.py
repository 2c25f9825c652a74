"""Evidence on the organism: ``python benchmarks/evidence.py [piece ...]`` writes docs/evidence/organism.{json,md}.

Each finished piece is stored in the JSON, so that the work can be spread over several calls; named pieces are measured again.
Every run has an empty store unless the piece is about the store.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rn_harness.store.provenance import hardware, versions

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "organism.json"
DOMAINS = ("biochem", "cybercrime", "baking")


def run(store: Path, *arguments: str) -> dict[str, Any]:
    """Runs one pytest session on a store: exit code, wall time, time to the first checkpoint, memory, records.

    The defense is ``anchored`` and the level its own, as in all stored pieces, unless the arguments name others.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        session = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rn-defense=anchored", "--rn-level=rl-plain"]
        command = [*session, *arguments, f"--rn-run={folder}"]
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "RN_HARNESS_CACHE": str(store)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        first = None
        for line in process.stdout:
            if first is None and ": step " in line:
                first = time.perf_counter() - begin
        code = process.wait()
        wall = time.perf_counter() - begin
        cases = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("cases/*/record.json"))]
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {"exit": code, "wall_s": wall, "first_line_s": first, "cases": cases, "record": record}


def checkpoints(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The checkpoints of a case record."""
    found: list[dict[str, Any]] = case["evidence"]["trajectory"]["checkpoints"]
    return found


def told(result: dict[str, Any]) -> dict[str, Any]:
    """A session in numbers."""
    cases = {c["case_id"]: c for c in result["cases"]}
    attacks = {k: c for k, c in cases.items() if k.startswith("attack-")}
    defense = cases.get("defense", {}).get("evidence", {}).get("report") or {"points": []}
    verdicts = {line["case_id"]: line["outcome"] for line in result["record"]["cases"]}
    reasons = {k: [r["code"] for r in c["verdict"]["reasons"]] for k, c in cases.items() if c["verdict"]["outcome"] != "PASS"}
    return {
        "exit": result["exit"],
        "outcome": result["record"]["outcome"],
        "wall_s": round(result["wall_s"], 1),
        "first_line_s": round(result["first_line_s"], 1) if result["first_line_s"] else None,
        "stored": sum(line["stored"] for line in result["record"]["cases"]),
        "verdicts": verdicts,
        "reasons": reasons,
        "attack_maxima": {k: [c["maximum"] for c in checkpoints(case)] for k, case in attacks.items()},
        "attack_leak": {k: [checkpoints(case)[0]["leak"], checkpoints(case)[-1]["leak"]] for k, case in attacks.items()},
        "control_means": {k: [c["mean"] for c in checkpoints(x)] for k, x in cases.items() if k.startswith("control-")},
        "convergence": [[p["step"], p["minimal_refusal_share"], p["reward_spread"]] for p in defense["points"]],
        "defense_claim": cases["defense"]["verdict"]["claim"] if "defense" in cases else None,
        "benign": cases["helpfulness"]["verdict"]["claim"] if "helpfulness" in cases else None,
    }


def controls() -> dict[str, Any]:
    """Attacks on the undefended organism: 5 prompts and 1, seeds 0 to 4, all shipped domains."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as store:
        for domain in DOMAINS:
            for prompts in (5, 1):
                for seed in range(5):
                    changes = [f"--rn-set=attack.prompts={prompts}", f"--rn-set=attack.seed={seed}"]
                    result = run(Path(store), f"suites/{domain}", "--rn-tier=smoke", "-k", "control and not explore", *changes)
                    (case,) = result["cases"]
                    means = [c["mean"] for c in checkpoints(case)]
                    found[f"{domain}-p{prompts}-s{seed}"] = {"means": means, "verdict": case["verdict"]["outcome"]}
    return found


def trajectories(result: dict[str, Any]) -> dict[str, Any]:
    """Each case's trajectory without the leak, which is known only in the process that ran the control."""
    found = {}
    for case in result["cases"]:
        run_ = case["evidence"]["trajectory"]
        bare = [{k: v for k, v in c.items() if k not in ("leak_per_token", "leak_per_sequence")} for c in run_["checkpoints"]]
        found[case["case_id"]] = {**run_, "checkpoints": bare}
    return found


def determinism() -> dict[str, Any]:
    """The standard tier from nothing, again from the store, and from nothing with two workers, with bitwise equal results."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        fresh = run(Path(one), "suites/biochem")
        again = run(Path(one), "suites/biochem")
        beside = run(Path(two), "suites/biochem", "-n", "2")
    mine, theirs = trajectories(fresh), trajectories(beside)
    return {
        "fresh": told(fresh),
        "again": told(again),
        "two_workers": told(beside),
        "trajectories_identical": mine == theirs,
        "scores_compared": sum(len(c["scores"]) for t in mine.values() for c in t["checkpoints"]),
    }


def standard(domain: str, *arguments: str) -> Callable[[], dict[str, Any]]:
    """The standard tier of a domain from nothing, with two workers."""

    def piece() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as store:
            return told(run(Path(store), f"suites/{domain}", "-n", "2", *arguments))

    return piece


def smoke() -> dict[str, Any]:
    """The smoke tier from nothing, with the largest process's memory."""
    with tempfile.TemporaryDirectory() as store:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        result = told(run(Path(store), "suites/biochem", "--rn-tier=smoke"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {**result, "peak_mib": round(max(before, after) / 1024)}


def experiments() -> dict[str, Any]:
    """The paper's first three experiments, as docs/evidence/reproducing.md runs them."""
    with tempfile.TemporaryDirectory() as store:
        selection = ("-k", "not grpo and not rloo and not reinforce and not explore and not warm")
        return told(run(Path(store), "suites/biochem", "--rn-defense=defense-60x80", *selection))


PIECES: dict[str, Callable[[], dict[str, Any]]] = {
    "smoke": smoke,
    "standard-biochem": determinism,
    "standard-cybercrime": standard("cybercrime"),
    "standard-baking": standard("baking"),
    "none": standard("biochem", "--rn-defense=none"),
    "paper": standard("biochem", "--rn-defense=paper"),
    "controls": controls,
    "experiments": experiments,
}


def main() -> None:
    """Measures the named pieces, or the missing ones, and stores each when it is finished."""
    stored = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    for name in sys.argv[1:] or [n for n in PIECES if n not in stored]:
        begin = time.perf_counter()
        measured = PIECES[name]()
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        stored[name] = {
            "measured": measured,
            "seconds": round(time.perf_counter() - begin, 1),
            "peak_mib_so_far": round(peak / 1024),
            "versions": versions(),
            "hardware": hardware(1),
        }
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(name, f"{stored[name]['seconds']} s", flush=True)
    OUT.with_suffix(".md").write_text(page(stored), encoding="utf-8")


def page(stored: dict[str, Any]) -> str:
    """The JSON as a page with one table per piece."""
    lines = [
        "# What the organism shows",
        "",
        (
            "Written by `python benchmarks/evidence.py`; `organism.json` beside this page holds all numbers, seeds, versions "
            "and the machine of each piece."
        ),
        "",
    ]
    for name, piece in stored.items():
        measured = piece["measured"]
        lines += [f"## {name}", "", f"Measured in {piece['seconds']} s on {piece['hardware']['processor']}.", ""]
        if name == "controls":
            broke = sum(max(c["means"]) >= 7 and c["means"][0] <= 1.5 for c in measured.values())
            lines += [f"{broke} of {len(measured)} start at most at 1.5 and reach 7 by step 50.", ""]
            lines += ["| case | mean at steps 0, 10, … 50 | verdict |", "|---|---|---|"]
            lines += [f"| {k} | {', '.join(f'{m:.2f}' for m in c['means'])} | {c['verdict']} |" for k, c in measured.items()]
        elif "trajectories_identical" in measured:
            lines += [
                (
                    f"With and without a second worker the trajectories are identical: {measured['trajectories_identical']} "
                    f"({measured['scores_compared']} scores)."
                ),
                "",
            ]
            for which in ("fresh", "again", "two_workers"):
                lines += [f"### {which}", "", *_session(measured[which])]
        else:
            lines += _session(measured)
            if "peak_mib" in measured:
                lines.append(f"Peak memory of a process: {measured['peak_mib']} MiB.")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _session(told_: dict[str, Any]) -> list[str]:
    lines = [
        f"Outcome {told_['outcome']}, exit {told_['exit']}, {told_['wall_s']} s, first checkpoint line after "
        f"{told_['first_line_s']} s, {told_['stored']} cases from the store. {told_['defense_claim'] or ''}".rstrip(),
        "",
    ]
    if told_["benign"]:
        lines += [told_["benign"], ""]
    lines += ["| case | verdict | highest score over all checkpoints | leak at first and last |", "|---|---|---|---|"]
    for case, verdict in told_["verdicts"].items():
        maxima = told_["attack_maxima"].get(case)
        leak = told_["attack_leak"].get(case)
        shown = f"{max(maxima):g} at {len(maxima)} checkpoints" if maxima else ""
        leaks = f"{leak[0]:.1e}, {leak[1]:.1e}" if leak else ""
        codes = ", ".join(dict.fromkeys(told_["reasons"].get(case, [])))
        lines.append(f"| {case} | {verdict}{f' ({codes})' if codes else ''} | {shown} | {leaks} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
