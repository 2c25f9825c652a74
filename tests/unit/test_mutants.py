"""benchmarks/mutants.py: its changes, their effect on loaded code, and the stored survivors."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''
BOUNDS = ("one", "two")


def found(values, bound=2):
    """Those above a bound, if there are more than one, and none is negative."""
    if any(v < 0 for v in values) or not values:
        return []
    told = f"{1 + 1} values"
    return [v for v in values if v > bound]
'''


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module."""
    folder = ROOT / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec = importlib.util.spec_from_file_location("mutants_of_the_verdict", folder / "mutants.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)  # its dataclasses look there
        spec.loader.exec_module(module)
        yield module


def test_each_kind_of_change_is_made_and_none_of_wording(bench: Any) -> None:
    """Comparisons, conditions, constants, lists and filters are changed; text and what is in it is not."""
    told = [m.told() for m in bench.mutants(ast.parse(SOURCE))]
    changes = {(t["was"], t["becomes"]) for t in told}
    assert {
        ("v > bound", "v >= bound"), ("v < 0", "v <= 0"), ("2", "3"), ("0", "1"), ("not values", "values"),
        ("any((v < 0 for v in values))", "all((v < 0 for v in values))"),
        ("any((v < 0 for v in values)) or not values", "any((v < 0 for v in values))"),
        ("any((v < 0 for v in values)) or not values", "False"),
        ("'one' in ('one', 'two')", "nothing"),
    } <= changes  # fmt: skip
    assert not any("1 + 1" in was for was, _ in changes)
    assert told == [m.told() for m in bench.mutants(ast.parse(SOURCE))]


def test_a_change_is_seen_wherever_the_name_was_imported(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The changed function and the changed constant are those that other modules have imported before."""
    path = tmp_path / "toy.py"
    path.write_text(SOURCE, encoding="utf-8")
    toy, user = types.ModuleType("rn_harness_toy"), types.ModuleType("rn_harness_toy_user")
    toy.__file__ = str(path)
    exec(compile(SOURCE, str(path), "exec"), vars(toy))
    user.found, user.BOUNDS = toy.found, toy.BOUNDS
    for module in (toy, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def mutate(was: str, becomes: str) -> None:
        every = bench.mutants(ast.parse(SOURCE))
        bench.change(toy, next(m for m in every if (m.told()["was"], m.told()["becomes"]) == (was, becomes)))

    assert user.found([1, 2, 3]) == [3]
    mutate("v > bound", "v >= bound")
    assert user.found([1, 2, 3]) == [2, 3]
    mutate("2", "3")
    assert user.found([1, 2, 4]) == [4]
    mutate("'one' in ('one', 'two')", "nothing")
    assert user.BOUNDS == ("two",)


def test_a_crash_counts_as_killed(bench: Any) -> None:
    """A forked process gives its result back, and one that dies is no survivor."""
    assert bench.forked(lambda: None) is None
    assert bench.forked(lambda: 1 / 0) == "crashed"


def test_the_page_shows_how_many_survivors_are_explained(bench: Any) -> None:
    """The table of docs/evidence/mutants.md, with the survivors that are open, follows from the stored results."""
    stored = json.loads(bench.OUT.read_text(encoding="utf-8"))
    page = bench.PAGE.read_text(encoding="utf-8")
    assert page.partition(bench.BEGIN)[2].partition(bench.END)[0].strip() == bench.table(stored)
