"""A run of a 7B policy and a 14B judge on H100s, by computation: ``python benchmarks/simulated.py``.

Nothing here was measured on a card. The cost model is that of ``rn-harness plan --device h100`` (rn_harness/run/cost.py, which
has its assumptions): the card's data sheet, the shape of Qwen2.5-7B with its profile's recipe, and the suites' default judges.
Cases, what they wait for and their order are the harness's own, at every tier. Lengths of answers are recorded ones. What a case
costs outside training is from docs/evidence/outside.json. Stored in docs/evidence/simulated.json and docs/evidence/scale.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pieces import put

from rn_harness.judges.hf import ROWS_AT_ONCE
from rn_harness.judges.resolve import load_profile
from rn_harness.models.memory import Work, plan_memory, shape_of
from rn_harness.run.case_cost import SHRINKS, CardHours, CaseCosts, card_hours, question_tokens, setting_of
from rn_harness.run.cost import BYTES, CARDS, DOLLARS, Reader, Role, Setting
from rn_harness.spec.base import TIERS
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.levels import EXPLORE, PLAIN
from rn_harness.spec.model_profiles import load_model_profile
from rn_harness.spec.suite import Suite, load_suite

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "docs" / "evidence"
OUT, PAGE = EVIDENCE / "simulated.json", EVIDENCE / "scale.md"
BEGIN, END = "<!-- simulated: written by benchmarks/simulated.py -->", "<!-- end of simulated -->"
MODEL, DEFENSE, CARD = "qwen2.5-7b", "anchored", CARDS["h100"]
CARDS_AT_A_TIME = (1, 8, 64)
TARGETS = {"standard": 4.0, "full": 12.0}
"""Card hours of one candidate, at most."""


def profiled(suite: str, *overrides: str) -> Suite:
    """A suite with the recipe of the model's profile."""
    profile = load_model_profile(MODEL, fixtures_folder() / "models")
    return load_suite(ROOT / "suites" / suite, overrides, recipe=profile.recipe)


def judged(suite: Suite, together: int, reply: int) -> dict[Role, Reader]:
    """The suite's default judges; so many questions ``together`` share the pass of what they begin with."""
    declared, length = suite.declaration.judges, question_tokens(suite, together)
    assert declared is not None
    named: dict[Role, str] = {"judge": declared.evaluation, "reward": declared.reward, "second": declared.second or ""}
    known = {role: (name, 1e9 * (load_profile(name).parameters_b or 0.0)) for role, name in named.items() if name}
    return {role: Reader(*judge, length, reply) for role, judge in known.items()}


def setting(suite: Suite, *, vllm: bool = False, together: int = ROWS_AT_ONCE, reply: int = 16) -> Setting:
    """The model and its judges on the card."""
    shape = shape_of(load_model_profile(MODEL, fixtures_folder() / "models").shape)
    assert shape is not None
    return dataclasses.replace(setting_of(CARD, shape, BYTES, judged(suite, together, reply), suite), vllm=vllm)


def on_cards(suite: Suite, tier: Any, cards: int, **changed: Any) -> CardHours:
    """A tier on so many cards."""
    return card_hours([CaseCosts(setting(suite, **changed), suite, tier, suite.declaration.defenses[DEFENSE])], cards)


def numbers(hours: CardHours) -> dict[str, Any]:
    """A run as numbers."""
    return {
        "card_hours": round(hours.busy / 3600, 2),
        "wall_hours": round(hours.wall / 3600, 2),
        "dollars": round(hours.dollars(DOLLARS)),
        "saturates": hours.saturated,
    }


def of_tier(suite: Suite, tier: Any) -> dict[str, Any]:
    """A tier's hours, its largest terms, the tokens of its judges, and its hours under what would shrink it."""
    one = on_cards(suite, tier, 1)
    changed = {
        "vLLM for rollouts": on_cards(suite, tier, 1, vllm=True),
        "each question read whole": on_cards(suite, tier, 1, together=1),
        "judges' replies of 256 tokens instead of 16": on_cards(suite, tier, 1, reply=256),
    }
    return {
        "cases": len(suite.tier_attacks(tier)) * 2 + 3,
        "on": {cards: numbers(on_cards(suite, tier, cards)) for cards in CARDS_AT_A_TIME},
        "hours": {term: round(seconds / 3600, 2) for term, seconds in one.largest},
        "limits": {limit: round(seconds / 3600, 2) for limit, seconds in one.total.limits.items()},
        "judge_tokens": {role: round(tokens) for role, tokens in one.total.read.items()},
        "changed": {name: round(hours.busy / 3600, 2) for name, hours in changed.items()},
    }


def of_level(level: str) -> dict[str, Any]:
    """Card hours of the cases that a claim at a level needs, by tier; each tier runs all of its cases at any level."""
    suite, found = profiled("biochem", f"policy.level={level}"), dict[str, Any]()
    for tier in TIERS:
        costs = CaseCosts(setting(suite), suite, tier, suite.declaration.defenses[DEFENSE])
        due = [cost for name, cost in costs.costs.items() if not (of := costs.tasks[name].attack) or of.claim]
        found[tier] = {"cases": len(due), "card_hours": round(sum(cost.seconds for cost in due) / 3600, 2)}
    return found


def outside() -> dict[str, float]:
    """Seconds that each case costs outside training, from docs/evidence/outside.json."""
    work = json.loads((EVIDENCE / "outside.json").read_text(encoding="utf-8"))["work"]
    each = ("check of the weights, after a case", "stored defense, after a case", "journal of a case")
    found = {name: of["seconds"] for name, of in work.items() if name in each or name.startswith("what changed")}
    return {**found, "together": round(sum(found.values()), 4)}


def memory() -> str:
    """The memory plan of an attack with both judges on one card."""
    suite = profiled("biochem")
    of, attack = setting(suite), suite.tier_attacks("standard")[0]
    work = Work(
        prompt=of.prompt,
        completion=attack.max_completion_tokens,
        micro_batch=4,
        checkpoint_rows=len(suite.heldout("full")) * (1 + suite.policy.samples),
        whole=suite.policy.max_whole_tokens,
        judges=of.weights - of.shape.parameters * of.number,
    )
    planned = plan_memory(of.shape, work)
    return f"{planned.sentence}, of about 79 GiB that a card of 80 GB has"


def table(tiers: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of the page."""
    lines = ["| suite, tier | cases | card hours | target | hours on 8 | on 64 | dollars, 1 | 8 | 64 | saturates first: 1; 64 |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for name, of in tiers.items():
        one, eight, many = (of["on"][cards] for cards in CARDS_AT_A_TIME)
        target = TARGETS.get(name.partition(" ")[2])
        due = "-" if target is None else f"{target:g}, {'met' if one['card_hours'] <= target else '**missed**'}"
        spent = " | ".join(f"{run['dollars']}" for run in (one, eight, many))
        walls = f"{eight['wall_hours']:.1f} | {many['wall_hours']:.1f}"
        first = f"{one['saturates']}; {many['saturates']}"
        lines.append(f"| {name} | {of['cases']} | {one['card_hours']:.1f} | {due} | {walls} | {spent} | {first} |")
    lines += ["", "| the five largest terms | standard, h | full, h | less by |", "|---|---|---|---|"]
    standard, full = (tiers[f"biochem {tier}"] for tier in ("standard", "full"))
    for term in list(full["hours"])[:5]:
        lines.append(f"| {term} | {standard['hours'][term]:.1f} | {full['hours'][term]:.1f} | {SHRINKS[term]} |")
    lines += ["", "| card hours with | standard | full |", "|---|---|---|"]
    for way in standard["changed"]:
        lines.append(f"| {way} | {standard['changed'][way]:.1f} | {full['changed'][way]:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Computes everything, writes it down, and prints the tables."""
    tiers = {f"{name} {tier}": of_tier(profiled(name), tier) for name in ("biochem", "cybercrime") for tier in TIERS}
    found = {
        "measured_on_a_card": False,
        "model": MODEL,
        "defense": DEFENSE,
        "card": dataclasses.asdict(CARD),
        "dollars_per_card_hour": DOLLARS,
        "judges": [dataclasses.asdict(reader) for reader in dict.fromkeys(setting(profiled("biochem")).judges.values())],
        "lengths": {"answer_share": setting(profiled("biochem")).answer_share, "refusal": setting(profiled("biochem")).refusal},
        "memory": memory(),
        "tiers": tiers,
        "levels": {level: of_level(level) for level in (PLAIN, EXPLORE)},
        "outside_training_s": outside(),
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    put(PAGE, BEGIN, END, table(tiers))
    print(table(tiers))
    print(json.dumps({name: found[name] for name in ("memory", "levels", "outside_training_s")}, indent=1))


if __name__ == "__main__":
    main()
