"""The benchmark for a GPU runs on any machine with a tiny model, so that it works when a card is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


SHORT = (
    "attack.steps=4", "attack.control_steps=4", "attack.max_completion_tokens=8", "defense.steps=2", "defense.evaluate_every=1",
    "policy.checkpoint_every=2", "policy.max_completion_tokens=8", "policy.probe_samples=2", "policy.samples=1",
)  # fmt: skip


def measured(out: Path, *arguments: str) -> dict[str, Any]:
    """The numbers that a dry run with these arguments writes."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--shape=tiny", "--steps=2", "--repeats=1", f"--out={out}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stored: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return stored


@pytest.mark.soak
def test_a_whole_smoke_tier_is_timed_with_a_judge_beside_the_model(tmp_path: Path) -> None:
    """The dry run of the smoke tier trains all seven cases under a judge that is certified, and stores the seconds of each."""
    smoke = measured(tmp_path / "gpu.json", "--smoke", *(f"--set={of}" for of in SHORT))["smoke"]
    assert len(smoke["cases"]) == 7
    assert all(0.1 < of["seconds"] < smoke["seconds"] for of in smoke["cases"].values())
    assert {"attack-grpo-p5-lr5e-4-s0", "control-explore-p5-lr5e-4-ban1-s0", "defense"} < {*smoke["cases"]}


def test_the_benchmark_of_a_card_runs_with_a_tiny_model(tmp_path: Path) -> None:
    """A dry run measures a step of TRL and of ours, and fleets with equal and different rewards, and writes all of it."""
    stored = measured(tmp_path / "gpu.json", "--fleet=1,2")
    assert {way: of["seconds"]["step"] > 0.0 for way, of in stored["step"]["ways"].items()} == {"trl": True, "ours": True}
    assert [(run["size"], run["spread"]) for run in stored["fleet"]["runs"]] == [(1, True), (1, False), (2, True), (2, False)]
