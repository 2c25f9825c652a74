"""The verdict under sabotage: no sabotage is PASS, each is reported as itself, and clean runs pass (docs/evidence/battery.md)."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from . import grammar
from .battery import AREAS, BEGIN, END, Clean, Sabotage, Scene, carry_out, check_section, observe, page
from .clean_judges import OF_JUDGES
from .clean_runs import CLEAN as OTHERS
from .grammar import Cell, Subject, broken_rules, params
from .grammar_runs import HOOKS as AROUND
from .grammar_training import HOOKS as WITHIN
from .grammar_training import bench
from .lab import Lab
from .sabotaged_games import GAMES
from .sabotaged_judges import JUDGES
from .sabotaged_kinds import KINDS
from .sabotaged_models import MODELS
from .sabotaged_prompts import PROMPTS
from .sabotaged_records import RECORDS
from .sabotaged_releases import RELEASES
from .sabotaged_runs import RUNS
from .sabotaged_training import TRAINING

CLEAN: list[Clean] = [*OTHERS, *OF_JUDGES]
SABOTAGES: list[Sabotage] = [*TRAINING, *JUDGES, *KINDS, *MODELS, *GAMES, *PROMPTS, *RECORDS, *RUNS, *RELEASES]
PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "battery.md"


def _params(of: list[Sabotage]) -> list[object]:
    """One test case per sabotage; of those in one area that lead to the same reason, the second and later ones are soak tests."""
    first = {(s.area, s.code): s.id for s in reversed(of)}
    return [pytest.param(s, id=s.id, marks=() if first[s.area, s.code] == s.id else pytest.mark.soak) for s in of]


@pytest.fixture
def scene(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scene:
    """The scene of one sabotage or clean run."""
    return Scene(lab, monkeypatch, tmp_path)


@pytest.mark.parametrize("sabotage", _params(SABOTAGES))
def test_a_sabotage_is_seen(sabotage: Sabotage, scene: Scene) -> None:
    """A sabotage leads to the declared outcome, which is never PASS, and its reason."""
    if sabotage.area in ("training", "judges", "models", "games"):
        scene.lab.make_all()
    seen = carry_out(sabotage, scene)
    assert seen.outcome != "PASS"
    assert seen.outcome == sabotage.outcome, seen
    assert any(code == sabotage.code and sabotage.seen in text for code, text in seen.reasons), seen


@pytest.mark.parametrize("cell", params(hook for hook in (*WITHIN, *AROUND) if hook in WITHIN or hook.component == "store"))
def test_a_cell_within_the_measurement_obeys_the_rules(cell: Cell, scene: Scene) -> None:
    """No fault of training, measuring, judging or storing lets a broken defense pass."""
    seen, result, tap = grammar.carry_out(cell, scene)
    assert broken_rules(cell, seen, result, tap) == [], seen


def test_without_a_fault_the_honest_defense_passes_and_the_broken_one_fails(scene: Scene) -> None:
    """The recorded attacks that cells start from are PASS on the honest subject and FAIL on the others."""
    on = bench(scene.lab)
    subjects: tuple[Subject, ...] = ("honest", "broken", "quiet")
    found = [observe(on.evidence(on.of(s).trajectory, on.control.trajectory)).outcome for s in subjects]
    assert found == ["PASS", "FAIL", "FAIL"]


@pytest.mark.parametrize("clean", [pytest.param(c, id=c.id, marks=pytest.mark.soak if c.soak else ()) for c in CLEAN])
def test_a_clean_run_passes(clean: Clean, scene: Scene) -> None:
    """Clean runs are PASS; a harness that always says INCONCLUSIVE passes every sabotage and fails here."""
    seen = observe(clean.make(scene))
    assert seen.outcome == "PASS", seen
    assert any(clean.says in text for _, text in seen.reasons), seen


def test_the_battery_is_large_enough() -> None:
    """There are at least 60 sabotages in all areas and 20 clean runs, with unique ids."""
    assert len(SABOTAGES) >= 60
    assert len(CLEAN) >= 20
    assert {s.area for s in SABOTAGES} == set(AREAS)
    ids = collections.Counter([s.id for s in SABOTAGES] + [c.id for c in CLEAN])
    assert [name for name, count in ids.items() if count > 1] == []
    assert {s.outcome for s in SABOTAGES} == {"FAIL", "INCONCLUSIVE", "refused"}


def test_the_page_shows_the_battery(pytestconfig: pytest.Config) -> None:
    """docs/evidence/battery.md has the table of the declarations; ``make validity`` writes it."""
    rewrite = pytestconfig.getoption("--rewrite-reference")
    check_section(PAGE, BEGIN, END, page(SABOTAGES, CLEAN), rewrite=rewrite)
