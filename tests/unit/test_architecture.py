"""The floors: who may import whom, and what the plugin's import costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rn_harness"
FLOORS = (
    {"errors", "extras", "measures", "suite", "options", "records", "schemas", "release", "lockstep", "later"},
    {"rewards", "statistics", "validity", "verdict", "certificates", "confirmation", "signatures"}
    | {"helpfulness", "preference", "coverage", "gate", "coherence", "held", "keys"}
    | {"judges.calibration", "judges.normalise"},
    {"anchors", "candidate", "profiles", "weights", "hub", "memory", "model", "grpo", "supervised", "ranks"}
    | {"store", "provenance", "organism", "judges", "statement", "signing", "transcripts", "resumption", "utility"}
    | {"pairs", "fleet", "streams", "loaded", "run_ids"},
    {"evaluate", "defense", "hardening", "attack", "attacks", "search", "certification", "pairwise"},
    {"lineup", "capacity", "session", "preflight", "executors", "export", "strength", "controller", "checks", "report"}
    | {"integrity", "verification", "comparison", "planning", "readiness", "scaffold"},
    {"plugin", "arguments", "collection", "cli", "organism.__main__"},
)
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "optuna", "lm_eval"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _floor(name: str) -> int:
    found = [i for i, floor in enumerate(FLOORS) if name in floor]
    return found[0] if found else next(i for i, floor in enumerate(FLOORS) if name.partition(".")[0] in floor)


def _imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, at any depth, but for type checkers' eyes only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    return {
        (node.module or "").removeprefix("rn_harness").lstrip(".")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node not in hidden and (node.module or "").startswith("rn_harness.")
    }


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_imports_only_from_lower_floors_or_its_own(path: Path) -> None:
    """No import points upwards; a new module has to be given a floor."""
    name = _name(path)
    if not name:
        assert _imports(path) == set()
        return
    upwards = [other for other in _imports(path) if _floor(other) > _floor(name)]
    assert upwards == []


def test_there_are_no_import_cycles() -> None:
    """Following imports from any module never leads back to it."""
    graph = {_name(path): _imports(path) for path in MODULES}

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo.extend(graph.get(name, ()))
        return seen

    assert [name for name in graph if name in reachable(name)] == []


CARRIES = {"errors", "extras", "records", "suite", "profiles", "candidate", "hub", "model", "anchors", "pairs", "preference"}
CARRIES |= {"judges", "provenance"}
"""What judges take from these carries files, prompts and answers, and decides no score."""
SCORING = ("rules", "classifier", "organism", "rubric", "hf", "openai_server", "preference")


def _digested(name: str) -> set[str]:
    """Modules of ours whose source a judge's module puts into its digest."""
    tree = ast.parse((PACKAGE / "judges" / f"{name}.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    named = [n for call in calls if call.func.id == "source_digest" for n in call.args if isinstance(n, ast.Constant)]
    found = {_name(PACKAGE / str(n.value)) for n in named}
    return found | (_digested("rubric") if any(call.func.id == "rubric_digest" for call in calls) else set())


@pytest.mark.parametrize("name", SCORING)
def test_a_judges_digest_covers_all_of_ours_that_its_scores_hang_on(name: str) -> None:
    """A judge whose reading of a text changes, wherever that is written, is another judge: its certificates end."""
    found: set[str] = set()
    todo = [f"judges.{name}"]
    while todo:
        if (module := todo.pop()) not in found | CARRIES:
            found.add(module)
            todo.extend(_imports(PACKAGE / f"{module.replace('.', '/')}.py"))
    assert found <= _digested(name)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_says_its_floor_and_loads_nothing_heavy(path: Path) -> None:
    """The first lines name the floor; torch and its friends are imported inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree) or ""
    name = _name(path)
    if name:
        assert f"Floor {_floor(name)}" in docstring
    top = {alias.name.partition(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names} | {
        (node.module or "").partition(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)
    }
    assert top & HEAVY == set()


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys, json; before = set(sys.modules); {statement}; print(json.dumps(sorted(set(sys.modules) - before)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(json.loads(found))


def test_the_plugin_imports_the_standard_library_and_pytest_alone() -> None:
    """Beyond what pytest itself loads, the entry module adds no foreign package and none of ours."""
    ours = _loaded_by("import pytest; before |= set(sys.modules); import rn_harness.plugin")
    foreign = {name.partition(".")[0] for name in ours} - set(sys.stdlib_module_names) - {"pytest", "_pytest"}
    assert foreign == {"rn_harness"}
    assert {name for name in ours if name.startswith("rn_harness")} == {"rn_harness", "rn_harness.plugin"}


def test_collecting_a_suite_loads_no_torch() -> None:
    """Checks, suite and verdict are there without torch."""
    loaded = _loaded_by("import rn_harness.checks, rn_harness.suite, rn_harness.verdict, rn_harness.session")
    assert loaded & HEAVY == set()
