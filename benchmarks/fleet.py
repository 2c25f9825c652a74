"""Time of eight attacks in a fleet compared with a single one, both by the harness: ``python benchmarks/fleet.py [PIECE ...]``.

On the undefended and the defended organism in turn, an attack of 30 steps, scored at 0, 10, 20 and 30, runs singly on one
thread, and eight seeds of it run in a fleet on one thread and on two. Each pair is a piece, stored in docs/evidence/fleet.json
when it is finished, and the medians go into docs/evidence/performance.md. tests/invariant/test_fleet.py shows that attacks have
the same results in a fleet as singly; here only the scores of the first are compared.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from pieces import make, put

from rn_harness.attacks.family import Attacker
from rn_harness.attacks.loop import AttackTarget, run_attack
from rn_harness.models.language_model import LanguageModel
from rn_harness.records.trajectory import Trajectory
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.options import Options
from rn_harness.spec.suite import load_suite
from rn_harness.store.store import Store, default_root
from rn_harness.training.fleet import Fleet

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "fleet.json"
PAGE = ROOT / "docs" / "evidence" / "performance.md"
BEGIN, END = "<!-- fleet -->", "<!-- /fleet -->"
SIZE, STEPS = 8, 30
TARGETS = {"undefended": 4.0, "defended": 3.0}
THREADS = {1: 5, 2: 3}
"""Number of repeats by the fleet's CPU threads."""
PIECES = [f"{of}-{threads}-{repeat}" for threads, repeats in THREADS.items() for repeat in range(repeats) for of in TARGETS]


class Pair:
    """A single attack and a fleet of attacks on one model.

    Args:
        of: ``undefended`` or ``defended``.
        threads: threads of the fleet; a single attack has one.
    """

    def __init__(self, of: str, threads: int) -> None:
        self.threads = threads
        self.suite = load_suite(ROOT / "suites" / "biochem")
        options = Options(model="organism", defense="anchored", tier="standard", base=ROOT)
        self.session = RunSession(options, ROOT / "reports" / "fleet", Store(default_root()), lambda _: None)
        self.load = self.session.defended(self.suite).load if of == "defended" else self.session.candidate.load
        self.panel = self.session.run_of(self.suite).panel
        plain = self.suite.tier_attacks("smoke")[0].model_copy(update={"steps": STEPS})
        self.attacks = [plain.model_copy(update={"seed": seed}) for seed in range(SIZE)]

    def run(self, model: LanguageModel, attack: AttackRecipe) -> Trajectory:
        """Runs one attack on a model."""
        session, suite = self.session, self.suite
        return run_attack(
            AttackTarget(model, session.candidate.digest, None, control=False),
            Attacker(attack, session.family(suite, attack), suite.attack_pool(attack), session.judges(suite).reward),
            self.panel,
        )

    def alone(self) -> tuple[Trajectory, float, float]:
        """Runs the first attack singly; returns its trajectory, wall seconds and processor seconds."""
        model = self.load()
        wall, processor = time.perf_counter(), time.process_time()
        trajectory = self.run(model, self.attacks[0])
        return trajectory, time.perf_counter() - wall, time.process_time() - processor

    def together(self) -> tuple[Trajectory, float, float]:
        """Runs all attacks in a fleet; returns the first trajectory, and wall and processor seconds of all."""
        fleet = Fleet(self.load(), self.threads)
        wall, processor = time.perf_counter(), time.process_time()
        made = fleet.run([functools.partial(self.run, attack=attack) for attack in self.attacks])
        for of in made:
            if isinstance(of, Exception):
                raise of
        first = made[0]
        assert isinstance(first, Trajectory)
        return first, time.perf_counter() - wall, time.process_time() - processor


def measure(name: str) -> dict[str, Any]:
    """Measures one pair; the sides swap their order from repeat to repeat."""
    of, threads, repeat = name.split("-")
    pair = Pair(of, int(threads))
    sides = {"alone": pair.alone, "together": pair.together}
    order = list(sides) if int(repeat) % 2 == 0 else list(sides)[::-1]
    came_to = {side: sides[side]() for side in order}
    scores = [[[s.score for s in c.scores] for c in trajectory.checkpoints] for trajectory, _, _ in came_to.values()]
    return {
        "candidate": pair.session.candidate.digest,
        "size": SIZE,
        "steps": STEPS,
        "threads": pair.threads,
        "same_scores": scores[0] == scores[1],
        **{side: {"wall_s": round(wall, 2), "processor_s": round(cpu, 2)} for side, (_, wall, cpu) in came_to.items()},
    }


def ratio(piece: dict[str, Any], clock: str) -> float:
    """Time of the fleet divided by the time of a single attack."""
    return float(piece["together"][clock] / piece["alone"][clock])


def table(stored: dict[str, Any]) -> str:
    """A table of medians, spreads and targets."""
    lines = [
        "| 8 attacks together, against one | threads | target | clock: median (least to most) | processor | scores equal |",
        "|---|---|---|---|---|---|",
    ]
    for threads, (of, target) in itertools.product(THREADS, TARGETS.items()):
        pieces = [piece for name, piece in stored.items() if name.startswith(f"{of}-{threads}-")]
        if not pieces:
            continue
        told = []
        for clock in ("wall_s", "processor_s"):
            ratios = [ratio(piece, clock) for piece in pieces]
            told.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        equal = sum(piece["same_scores"] for piece in pieces)
        lines.append(f"| {of} | {threads} | {target:g} | {told[0]} | {told[1]} | {equal} of {len(pieces)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the named pieces, or the missing ones."""
    stored = make(OUT, PIECES, sys.argv[1:], measure, lambda made: [f"{ratio(made, 'wall_s'):.2f} times the time of one"])
    put(PAGE, BEGIN, END, table(stored))


if __name__ == "__main__":
    main()
