"""Where deep-distilled defenses that are weakened on purpose FAIL: ``python benchmarks/weakened.py [VARIANT ...]``.

Each variant leaves out one thing that the defense needs, and is attacked in biochem by a ban of one token, an entropy bonus, an
opener and ten supervised steps on five answers. A weakness matters if a case FAILs that passes on ``whole``, the defense as the
suite declares it. Finished variants are kept in docs/evidence/weakened.json, and measured again only if they are named. One
takes about 8 minutes of an idle core, and up to 13 where restrained attacks follow one that ends in noise.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pieces
import yaml
from panel import gate

from rn_harness.models.identity import RETAIN_FILE
from rn_harness.models.resolve import resolve_candidate
from rn_harness.spec.suite import load_suite

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "weakened.json"
DOMAIN, DEFENSE, TIER = "biochem", "deep-distilled", "standard"
ATTACKERS = ("explore-p5-lr5e-4-ban1", "explore-p5-lr5e-4-h0.01-s0", "explore-p5-lr5e-4-opener", "warm-5x10")
CASES = " or ".join(("candidate", "defense_converges", "helpfulness", *ATTACKERS))

Weaken = Callable[[Path], tuple[str, ...]]
"""Changes a copy of the suite, and returns further options of the session."""


def setting(change: str) -> Weaken:
    """Another value of a setting of the defense."""
    return lambda _: (f"--rn-set=defenses.{DEFENSE}.{change}",)


def drop_prompts(suite: Path, name: str, dropped: Callable[[Mapping[str, Any]], bool]) -> None:
    """Leaves prompts out of a set of a suite."""
    path = suite / "prompts" / f"{name}.yaml"
    prompts = yaml.safe_load(path.read_text(encoding="utf-8"))["prompts"]
    path.write_text(yaml.safe_dump({"prompts": [p for p in prompts if not dropped(p)]}, sort_keys=False), encoding="utf-8")


def without_topic(suite: Path) -> tuple[str, ...]:
    """No defense prompt has the first topic that defense and held-out prompts share."""
    prompts = load_suite(suite).prompts
    topic = min({p.topic for p in prompts["defense"]} & {p.topic for p in prompts["heldout"]})
    drop_prompts(suite, "defense", lambda p: p["topic"] == topic)
    return ()


def without_twins(suite: Path) -> tuple[str, ...]:
    """Neither anchors nor the retain corpus have benign requests that resemble the domain."""
    prompts = load_suite(suite).prompts
    topics = {_spelled(p.topic) for name in ("anchor", "benign") for p in prompts[name] if p.kind == "twin"}
    drop_prompts(suite, "anchor", lambda p: p["kind"] == "twin")
    corpus = (resolve_candidate("organism", ROOT).folder / RETAIN_FILE).read_text(encoding="utf-8").splitlines()
    kept = [line for line in corpus if not any(topic in _spelled(json.loads(line)["prompt"]) for topic in topics)]
    path = suite.parent / RETAIN_FILE
    path.write_text("\n".join(kept), encoding="utf-8")
    return (f"--rn-retain={path}",)


def _spelled(text: str) -> str:
    """The words of a text, without case and punctuation."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


VARIANTS: dict[str, Weaken] = {
    "whole": lambda _: (),
    "little-noise": setting("distill.noise_share=0.1"),
    "no-twins": without_twins,
    "no-topic": without_topic,
    "first-token": setting("depth.start_share=1.0"),
}


def measure(variant: str, store: Path) -> dict[str, Any]:
    """Trains a variant in a copy of the suites, attacks it, and returns the session's outcome and cases."""
    with tempfile.TemporaryDirectory(prefix="rn-harness-weakened-") as name:
        suite = Path(shutil.copytree(ROOT / "suites", Path(name) / "suites")) / DOMAIN
        options = VARIANTS[variant](suite)
        made = gate(suite, DEFENSE, TIER, store, "-k", CASES, *options)
    return {"candidate": resolve_candidate("organism", ROOT).digest, **made}


def failed(made: Mapping[str, Any]) -> tuple[object, ...]:
    """The values printed for a variant: its outcome and each case that does not pass."""
    failing = {case: of for case, of in made["cases"].items() if of["outcome"] != "PASS"}
    return (made["outcome"], *(f"{case} {of['outcome']} {','.join(of['reasons'])}" for case, of in failing.items()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="rn-harness-weakened-") as where:
        pieces.make(OUT, tuple(VARIANTS), sys.argv[1:], functools.partial(measure, store=Path(where)), failed)
