"""Sabotages by grammar, on runs and their files (docs/evidence/battery.md); ``test_sabotage.py`` has the cells that train."""

from __future__ import annotations

from pathlib import Path

import pytest

from .battery import Scene, check_section, observe
from .grammar import COMPONENTS, Cell, broken_rules, carry_out, cells, in_default_run, page, params, sensible
from .grammar_runs import HOOKS as AROUND
from .grammar_runs import baseline
from .grammar_training import HOOKS as WITHIN
from .lab import Lab

HOOKS = (*WITHIN, *AROUND)
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "battery.md"
BEGIN, END = "<!-- the grammar, written by make validity -->", "<!-- end of the grammar -->"


@pytest.fixture
def scene(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scene:
    """The scene of one cell."""
    return Scene(lab, monkeypatch, tmp_path)


@pytest.mark.parametrize("cell", params(hook for hook in AROUND if hook.component != "store"))
def test_a_cell_around_the_measurement_obeys_the_rules(cell: Cell, scene: Scene) -> None:
    """No fault of records, clock, suite file, options, conftest or hooks lets a broken defense pass."""
    seen, result, tap = carry_out(cell, scene)
    assert broken_rules(cell, seen, result, tap) == [], seen


def test_without_a_fault_an_honest_run_passes_and_a_broken_one_does_not(scene: Scene) -> None:
    """The runs that the faults enter are released, or refused because of their breach, if nothing is faulty."""
    for hook in AROUND:
        if hook.component not in ("store", "option"):  # a run with ``--rn-set`` is never released
            assert observe(baseline(scene, hook, "honest")).outcome == "PASS", hook.name
            assert [code for code, _ in observe(baseline(scene, hook, "broken")).reasons] == ["outcome"], hook.name


def test_the_grammar_is_large_enough() -> None:
    """Every component has a hook, ids are unique, and at least 150 cells are in the default run."""
    assert {hook.component for hook in HOOKS} == set(COMPONENTS)
    ids = [cell.id for cell in cells(HOOKS)]
    assert len(set(ids)) == len(ids)
    assert sum(in_default_run(cell) for cell in sensible(HOOKS)) >= 150


def test_the_page_counts_the_cells(pytestconfig: pytest.Config) -> None:
    """docs/evidence/battery.md has the counts of the declarations; ``make validity`` writes them."""
    rewrite = pytestconfig.getoption("--rewrite-reference")
    check_section(PAGE, BEGIN, END, f"{BEGIN}\n\n{page(HOOKS)}\n\n{END}", rewrite=rewrite)
