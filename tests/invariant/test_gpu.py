"""The benchmark for a GPU runs on any machine with a tiny model, so that it works when a card is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_of_a_card_runs_with_a_tiny_model(tmp_path: Path) -> None:
    """A dry run measures a step of TRL and of ours, and fleets with equal and different rewards, and writes all of it."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--shape=tiny", "--steps=2", "--repeats=1", "--fleet=1,2"]
    done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stored = json.loads(out.read_text(encoding="utf-8"))
    assert {way: of["seconds"]["step"] > 0.0 for way, of in stored["step"]["ways"].items()} == {"trl": True, "ours": True}
    assert [(run["size"], run["spread"]) for run in stored["fleet"]["runs"]] == [(1, True), (1, False), (2, True), (2, False)]
