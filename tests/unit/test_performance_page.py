"""docs/evidence/performance.md matches the measurements."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE, PIECES = ROOT / "docs" / "evidence" / "performance.md", ROOT / "docs" / "evidence" / "performance.json"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/performance_tables.py."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # the scripts import each other
    spec = importlib.util.spec_from_file_location("performance_tables", ROOT / "benchmarks" / "performance_tables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "performance_tables", module)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_of_the_committed_pieces(tables: ModuleType, tmp_path: Path) -> None:
    """Each table of the page is the benchmark's output for the stored repeats, so no number was typed by hand."""
    page = tmp_path / PAGE.name
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    tables.write(page, json.loads(PIECES.read_text(encoding="utf-8")))
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_a_known_exponent_is_found(tables: ModuleType) -> None:
    """Seconds proportional to the square of a size give the exponent 2, and a target that is met exactly is met."""
    exponent, low, high = tables._line(tables._logarithms([(x, 3.0 * x**2) for x in (1, 2, 4, 8)]))
    assert exponent == pytest.approx(2.0)
    assert low == pytest.approx(high)
    # 60 steps took 16 s and the last 30 of them 3 s: 200 take 16 + 140 * 0.1.
    assert tables._long({"cpu_s_after_step": {"30": 13.0, "60": 16.0}}) == pytest.approx(30.0)
    assert (tables.met(0.7, 0.7), tables.met(0.71, 0.7)) == ("met", "**missed**")
