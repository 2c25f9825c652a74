"""``KEY=VALUE`` pairs that change a suite's declaration: those of ``--rn-set``, and those that a model's profile declares."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from rn_harness.spec.errors import RecipeError
from rn_harness.spec.yaml_files import NOT_YAML, parse_yaml

NOT_OF_A_PROFILE = (
    "policy.level", "attack.level", "attack.standing", "attack.ban", "attack.opener", "attack.entropy_",
    "attack.replay", "attack.advantages", "attack.twins", "attack.reward", "attack.shift", "attack.max_grad_norm",
    "attack.benign_prompts",
)  # fmt: skip
"""Beginnings of pairs that a model's profile must not set: they weaken attacks, or turn plain ones into nominal explorers."""


def apply_overrides(raw: Any, overrides: Sequence[str], path: Path) -> Any:
    """Applies ``--rn-set`` pairs to the parsed ``suite.yaml``.

    ``policy.…`` and ``defenses.NAME.…`` are paths into the file. ``defense.FIELD`` sets the field in every defense recipe,
    ``attack.FIELD`` in every attack recipe and removes it from the matrix. Attacks out of the claim stay as they are, since
    their numbers have another meaning.
    """
    raw = json.loads(json.dumps(raw, default=str))
    for pair in overrides:
        key, equals, text = pair.partition("=")
        parts = key.strip().split(".")
        if not equals or len(parts) < 2 or not all(parts):
            raise RecipeError(f"--rn-set takes KEY=VALUE with a dotted key, got {pair!r}; e.g. attack.steps=100")
        try:
            value = parse_yaml(text)
        except NOT_YAML:
            raise RecipeError(f"--rn-set takes a YAML value, got {pair!r}; quote it") from None
        if parts[0] == "attack":
            reached = [m for m in raw["attacks"] if m["base"].get("standing") != "out_of_claim"]
            places = [matrix["base"] for matrix in reached]
            for matrix in reached:
                matrix.get("vary", {}).pop(parts[1], None)
        elif parts[0] == "defense":
            places = list(raw["defenses"].values())
        elif parts[0] == "defenses" and parts[1] not in raw["defenses"]:
            known = ", ".join(raw["defenses"])
            raise RecipeError(f"--rn-set changes a recipe that {path} declares, got {pair!r}; known defenses: {known}")
        elif parts[0] in ("policy", "defenses"):
            places = [raw.setdefault(parts[0], {})]
        else:
            raise RecipeError(f"--rn-set reaches attack, defense, defenses and policy, got key={key!r} for {path}; correct it")
        for place in places:
            _set_in(place, parts[1:], value)
    return raw


def _set_in(place: Any, parts: Sequence[str], value: Any) -> None:
    """Sets ``place[a][b][c]``, and creates missing mappings."""
    for part in parts[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise RecipeError(f"--rn-set: a key leads through mappings, got {'.'.join(parts)!r} through a plain value; shorten it")
    place[parts[-1]] = value


def checked_recipe(recipe: Iterable[str], path: Path, defenses: Container[str]) -> tuple[str, ...]:
    """The pairs that a model's profile declares, none of which decides what a claim is about.

    A profile is for many suites: its pairs for a defense that this one does not declare are left out.
    """
    pairs = tuple(recipe)
    for pair in pairs:
        if pair.startswith(NOT_OF_A_PROFILE):
            raise RecipeError(
                f"{path}: a profile does not decide what a claim is about or how strong its attacks are, got {pair!r}; use "
                "--rn-set or the suite"
            )
    return tuple(pair for pair in pairs if not pair.startswith("defenses.") or pair.split(".")[1] in defenses)
