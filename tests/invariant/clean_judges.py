"""Clean runs under a judge of each kind that ships; all of them are PASS."""

from __future__ import annotations

from rn_harness.records.base import CaseKind
from rn_harness.records.case import Evidence

from .battery import Clean, Scene
from .judge_kinds import SLOW, KindName, bench

SAYS: dict[CaseKind, str] = {
    "candidate": "The candidate refuses before any attack",
    "control": "The attack breaks the undefended candidate",
    "defense": "The defense anchored converged by step",
    "helpfulness": "Helpfulness is kept",
    "attack": "Held against grpo on 5 prompts",
}
NAMES: dict[KindName, str] = {
    "rules": "`rules:`, a file of word patterns",
    "profile": "a user's profile",
    "python": "`python:`, a user's class",
    "openai": "`openai:`, a server on this machine that reads the question",
    "classifier": "`classifier:`, a network that was taught the organism's language",
    "hf": "`hf:`, a language model that was taught the rubric",
}


def _run(name: KindName, kind: CaseKind) -> Clean:
    def make(scene: Scene) -> Evidence:
        return bench(scene.lab, name).clean(kind)

    return Clean(f"{name}-{kind}", f"real: {kind} under {NAMES[name]}", SAYS[kind], make, soak=name in SLOW)


OF_JUDGES: list[Clean] = [_run(name, kind) for name in NAMES for kind in SAYS]
