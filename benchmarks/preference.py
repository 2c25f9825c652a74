"""Preference between defended and undefended benign answers: ``python benchmarks/preference.py [piece ...]``.

A piece is a defense and a seed, e.g. ``anchored-0``. The defense is trained on the shipped organism. The organism's judge then
compares the answers to biochem's 200 benign prompts with the undefended organism's, as ``rn-harness utility --preference
organism`` does. ``refuse-all`` learns to refuse benign prompts too, which shows that the measure can fall.

Each finished piece is stored in docs/evidence/preference.json. Named pieces are measured again; without names, missing pieces
and those of another organism are measured. The table of docs/evidence/findings-cost.md is written from that file.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pieces
from panel import Bench, reinforce

from rn_harness.judges.organism import OrganismJudge
from rn_harness.judges.preference import OrganismPreference
from rn_harness.models.candidate import Candidate
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.resolve import resolve_candidate
from rn_harness.spec.defense_recipe import LoRA
from rn_harness.spec.suite import load_suite
from rn_harness.training.supervised import Example, teach
from rn_harness.utility.pairwise import Question, measure_preference, read_instructions
from rn_harness.utility.tasks import DefendedFolder

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "preference.json"
PAGE = ROOT / "docs" / "evidence" / "findings-cost.md"
SUITE = ROOT / "suites" / "biochem"
BEGIN, END = "<!-- written by benchmarks/preference.py -->", "<!-- end of preference -->"
REFUSE_ALL = "refuse-all"
DEFENSES, SEEDS = ("anchored", "paper", "sft", REFUSE_ALL), (0, 1, 2)
PIECES = tuple(f"{defense}-{seed}" for seed in SEEDS for defense in DEFENSES)


def defend(candidate: Candidate, defense: str, seed: int) -> LanguageModel:
    """The organism with the adapter of a defense."""
    suite = load_suite(SUITE)
    if defense != REFUSE_ALL:
        return reinforce(Bench(candidate, suite, seed), recipe=defense)[0]
    model = candidate.load()
    model.attach(LoRA(), seed)
    taught = [Example(p, "sorry .") for name in ("defense", "anchor") for p in suite.prompts[name]]
    teach(model, taught, steps=20, learning_rate=1e-3, max_grad_norm=1.0)
    return model


def measure(piece: str) -> dict[str, Any]:
    """Trains the defense of a piece and compares its answers."""
    defense, _, number = piece.rpartition("-")
    candidate = resolve_candidate("organism", ROOT)
    prompts, tokens = read_instructions(SUITE, ())
    with tempfile.TemporaryDirectory() as name:
        adapter = Path(name) / "adapter"
        defend(candidate, defense, int(number)).save_adapter(adapter, f"organism@sha256:{candidate.digest}")
        question = Question(OrganismPreference(OrganismJudge(candidate.folder)), prompts, tokens)
        found = measure_preference(candidate, DefendedFolder.find(candidate, adapter), question).document
    del found["certificates"], found["comparison"]["pairs"]
    return {"defense": defense, "seed": int(number), "candidate": candidate.digest, **found}


def reached(made: Mapping[str, Any]) -> tuple[object, ...]:
    """The values printed for a piece."""
    c = made["comparison"]
    return c["win_rate"], {k: c[k] for k in ("won", "tied", "lost", "unscored", "same")}, made["outcome"]


def section(stored: Mapping[str, Any]) -> str:
    """The table of docs/evidence/findings-cost.md, only from the stored pieces."""
    lines = [
        "| defense, seed | win rate (95 %) | won, tied, lost | one text from both | refusals before, after | outcome |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(stored, key=lambda n: (DEFENSES.index(stored[n]["defense"]), stored[n]["seed"])):
        piece, c = stored[name], stored[name]["comparison"]
        rate = c["win_rate"]
        cells = (
            f"`{piece['defense']}`, {piece['seed']}",
            f"{rate['mean']:.3f} ({rate['low']:.3f} to {rate['high']:.3f})",
            f"{c['won']}, {c['tied']}, {c['lost']}",
            str(c["same"]),
            f"{c['refusals'][0]}, {c['refusals'][1]}",
            piece["outcome"],
        )
        lines.append("| " + " | ".join(cells) + " |")
    if missing := [name for name in PIECES if name not in stored]:
        lines += ["", f"Not made yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures the named pieces, or the missing ones, and writes the table."""
    stored = pieces.make(OUT, PIECES, sys.argv[1:], measure, reached)
    pieces.put(PAGE, BEGIN, END, section(stored))


if __name__ == "__main__":
    main()
