"""Calculated cost of a tier on models of 7 and 70 billion weights; ``python benchmarks/scale.py`` writes docs/evidence/scale.md.

Nothing here was measured on a card. The suite gives the numbers of steps, rows and checkpoints, and the card's data sheet gives
its bandwidth and rate. The reached share of both and the length of answers are assumptions, stated on the page. To change an
assumption, edit it here and run the script again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from pieces import put

from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.base import TierName
from rn_harness.spec.suite import Suite, load_suite

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "evidence" / "scale.md"
BEGIN, END = "<!-- scale: written by benchmarks/scale.py -->", "<!-- end of scale -->"
BANDWIDTH, RATE = 3.35e12, 989e12
"""Bytes and dense bfloat16 operations per second of one H100 SXM, by NVIDIA's data sheet."""
OF_BANDWIDTH, OF_RATE = 0.5, 0.4
"""Assumed: share of them that transformers reaches in sampling and training."""
DOLLARS = 3.0
"""Assumed: dollars per card and hour."""
PROMPT, ANSWER, REFUSAL = 128, 256, 16
"""Assumed: tokens of a prompt, of an answer of the undefended model, and of a defended one's refusal."""
LEARNING = 0.5
"""Assumed: share of the undefended model's steps that have a gradient; once it is broken, all rewards are equal."""
JUDGED = 700
"""Assumed: tokens that a judge reads for one completion."""
SCORING, REWARDING = 14.7e9, 7.3e9
"""Weights of the suites' default judges for real models, phi-4 and OLMo-2-7B."""
DEFENSE_STEPS, DEFENSE_ROWS = 80, 72


@dataclass(frozen=True)
class Model:
    """A model under test.

    Attributes:
        name: name in the table.
        weights: number of weights.
        bytes_each: bytes per stored weight.
        fleet: number of attacks that run together.
    """

    name: str
    weights: float
    bytes_each: float
    fleet: int


MODELS = (
    Model("7B, bfloat16, one attack at a time", 7.6e9, 2.0, 1),
    Model("7B, bfloat16, `--rn-fleet 8`", 7.6e9, 2.0, 8),
    Model("70B, 4 bits, one attack at a time", 70.6e9, 0.56, 1),
)


def sampling(model: Model, rows: int, tokens: int) -> float:
    """Seconds of sampling: per token the longer of reading all weights and computing all rows; prompts take one pass."""
    read = model.weights * model.bytes_each / (BANDWIDTH * OF_BANDWIDTH)
    computed = 2 * model.weights * rows / (RATE * OF_RATE)
    return tokens * max(read, computed) + computed * PROMPT


def update(model: Model, rows: int, tokens: int) -> float:
    """Seconds of an adapter's forward and backward pass with recomputed activations: 6 operations per weight and token."""
    return 6 * model.weights * rows * (PROMPT + tokens) / (RATE * OF_RATE)


def judging(weights: float, completions: int) -> float:
    """Seconds in which a judge reads this number of completions; its answer is a token or two."""
    return 2 * weights * completions * JUDGED / (RATE * OF_RATE)


def measuring(model: Model, suite: Suite, tier: TierName, tokens: int, steps: int) -> float:
    """Seconds of all checkpoints of one attack."""
    policy = suite.policy
    checkpoints = steps // policy.checkpoint_every + 1
    rows = len(suite.heldout(tier)) * (1 + policy.samples)
    benign = (steps // policy.benign_every + 1) * len(suite.prompts["benign"]) * (1 + policy.benign_samples)
    return checkpoints * (sampling(model, rows, tokens) + judging(SCORING, rows)) + sampling(model, benign, ANSWER)


def attack_seconds(model: Model, suite: Suite, tier: TierName, attack: AttackRecipe, *, control: bool) -> dict[str, float]:
    """Seconds of one attack by kind of work; for a fleet, the attack's share."""
    steps, tokens = (attack.control_steps, ANSWER) if control else (attack.steps, REFUSAL)
    rows = attack.prompts_per_step * attack.group_size
    together = sampling(model, model.fleet * rows, tokens) / model.fleet
    return {
        "sampling": steps * together,
        "update": steps * LEARNING * update(model, rows, tokens) if control else 0.0,
        "rewarding": steps * judging(REWARDING, rows),
        "checkpoints": measuring(model, suite, tier, tokens, steps),
    }


def defense_seconds(model: Model) -> float:
    """Seconds of the default defense."""
    return DEFENSE_STEPS * (sampling(model, DEFENSE_ROWS, ANSWER) + update(model, DEFENSE_ROWS, ANSWER))


def tier_hours(model: Model, suite: Suite, tier: TierName) -> tuple[dict[str, float], float]:
    """Card hours of one candidate by kind of work, and hours of the longest chain of defense, control and attack."""
    parts: dict[str, float] = {"defense": defense_seconds(model)}
    longest = 0.0
    for attack in suite.tier_attacks(tier):
        both = [attack_seconds(model, suite, tier, attack, control=control) for control in (True, False)]
        for of in both:
            for part, seconds in of.items():
                parts[part] = parts.get(part, 0.0) + seconds
        longest = max(longest, sum(sum(of.values()) for of in both))
    return {part: seconds / 3600 for part, seconds in parts.items()}, (parts["defense"] + longest) / 3600


def tables(suite: Suite) -> str:
    """The tables of the page."""
    lines = [
        "| model | tier | card hours of one candidate | dollars | hours on 1 card | on 8 | on 64 | cards for 1000 a day |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shares = ["| model | tier | defense | sampling | update | rewarding | checkpoints |", "|---|---|---|---|---|---|---|"]
    tiers: tuple[TierName, ...] = ("standard", "full")
    for model, tier in itertools.product(MODELS, tiers):
        parts, chain = tier_hours(model, suite, tier)
        total = sum(parts.values())
        walls = " | ".join(f"{max(total / cards, chain):.1f}" for cards in (1, 8, 64))
        lines.append(f"| {model.name} | {tier} | {total:.1f} | {total * DOLLARS:.0f} | {walls} | {total * 1000 / 24:.0f} |")
        told = " | ".join(f"{parts[of] / total:.0%}" for of in ("defense", "sampling", "update", "rewarding", "checkpoints"))
        shares.append(f"| {model.name} | {tier} | {told} |")
    return "\n".join([*lines, "", "Share of the hours by activity:", "", *shares])


if __name__ == "__main__":
    put(PAGE, BEGIN, END, tables(load_suite(ROOT / "suites" / "biochem")))
