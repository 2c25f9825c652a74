"""The rooms: which imports are allowed, where a name is defined, and the cost of the plugin's import."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "rn_harness"
PICTURE = PACKAGE.parent / "docs" / "images" / "rooms.svg"
FLOORS = (
    {"spec"},
    {"records"},
    {"verdict", "store"},
    {"models"},
    {"judges", "training", "report"},
    {"attacks", "defenses", "release"},
    {"run", "utility", "organism"},
    {"plugin", "cli"},
)
"""Rooms from the lowest floor up. A room imports from lower floors and from itself, never from another room of its floor."""
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "optuna", "lm_eval"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    """The module's dotted name below the package; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {_name(path): path for path in MODULES}


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _floor(room: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room in floor)


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """The package's modules that a file imports, at any depth and for type checkers too."""
    found = set[str]()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rn_harness":
            module = (node.module or "").removeprefix("rn_harness").lstrip(".")
            submodules = {f"{module}.{alias.name}".lstrip(".") for alias in node.names} & NAMES.keys()
            found |= submodules or {module}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("rn_harness").lstrip(".") for a in node.names if a.name.startswith("rn_harness")}
    return frozenset(found)


def test_the_picture_of_the_rooms_has_their_floors() -> None:
    """docs/images/rooms.svg draws each room once, on its floor, the lowest at the bottom."""
    drawn: dict[int, set[str]] = {}
    for height, room in re.findall(r'y="(\d+)"[^>]* font-weight="600">(\w+)</text>', PICTURE.read_text(encoding="utf-8")):
        drawn.setdefault(int(height), set()).add(room)
    assert tuple(drawn[height] for height in sorted(drawn, reverse=True)) == FLOORS


def test_the_house_has_at_most_18_entries_and_8_floors() -> None:
    """The package has at most 18 entries and 8 floors, so that a reader sees all of it at once."""
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(entries) <= 18
    assert len(FLOORS) <= 8
    assert set.union(*FLOORS) == {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}


def _upward(path: Path) -> set[str]:
    """The rooms on its own floor or a higher one, and the package itself, that a module imports from."""
    room = path.relative_to(PACKAGE).parts[0]
    others = {other.partition(".")[0] for other in _imports(path)} - {room}
    return {other for other in others if other == "" or _floor(other) >= _floor(room)}


def test_a_module_imports_only_from_rooms_below_its_own() -> None:
    """No import points to a room of the same floor or a higher one, imports for type checkers included."""
    assert {_name(path): up for path in MODULES if path.parent != PACKAGE and (up := _upward(path))} == {}


def test_there_are_no_import_cycles() -> None:
    """No path of imports leads from a module back to it, imports for type checkers included."""
    graph = {name: _imports(path) for name, path in NAMES.items()}

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


TRAINING_LOOPS = {"training.grpo.train"}
"""Functions that may have 100 lines: a training loop reads best from top to bottom."""


def _too_large(name: str, tree: ast.Module, text: str) -> set[str]:
    """The module, and its classes and functions, as far as they exceed a bound."""
    found = {name} if text.count("\n") > 400 else set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        inner, lines = f"{name}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1
        if isinstance(node, ast.ClassDef):
            limit, parameters = 300, 0
        else:
            limit = 100 if inner in TRAINING_LOOPS else 60
            parameters = sum(map(len, (node.args.posonlyargs, node.args.args, node.args.kwonlyargs)))
        if lines > limit or parameters > 8:
            found.add(inner)
    return found


def test_modules_classes_functions_and_parameter_lists_are_small() -> None:
    """At most 400 lines a module, 300 a class, 60 a function (a training loop 100), and 8 parameters."""
    found = set[str]().union(*(_too_large(name, _tree(path), path.read_text(encoding="utf-8")) for name, path in NAMES.items()))
    assert found == set()


def test_a_public_class_or_function_has_one_home() -> None:
    """No two modules define a public class or function of the same name, methods aside."""
    homes: dict[str, set[str]] = {}
    for name, path in NAMES.items():
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, set()).add(name)
    assert {name for name, modules in homes.items() if len(modules) > 1} == set()


@pytest.mark.parametrize("room", sorted(set.union(*FLOORS)))
def test_a_room_says_what_it_holds_and_what_it_must_not_know(room: str) -> None:
    """Each room's docstring has its purpose and its limit."""
    docstring = ast.get_docstring(_tree(PACKAGE / room / "__init__.py")) or ""
    assert docstring.count(".") >= 2
    assert any(word in docstring for word in (" not ", " no ", "nothing"))


CARRIES = {
    "spec.errors", "spec.extras", "spec.base", "spec.prompts", "spec.suite", "spec.model_profiles", "spec.attack_recipe",
    "spec.policy",
    "spec.defense_recipe", "spec.yaml_files", "records.base", "records.trajectory", "records.case", "records.run",
    "models.completion", "models.files", "models.hub", "models.identity", "models.language_model", "models.templates",
    "models.transformers_compat", "spec.fixtures", "store.ranks", "judges.anchors", "judges.protocol",
    "judges.resolve", "records.preference", "store.provenance",
}  # fmt: skip
"""Modules that carry files, prompts and answers to a judge, but do not decide a score."""
SCORING = ("rules", "classifier", "organism", "hf", "openai_server", "preference")


def _digested(name: str) -> set[str]:
    """The package's modules whose source a judge's module includes in its digest."""
    tree = _tree(PACKAGE / "judges" / f"{name}.py")
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    named = [n for call in calls if call.func.id == "source_digest" for n in call.args if isinstance(n, ast.Constant)]
    return {_name(PACKAGE / str(n.value)) for n in named}


@pytest.mark.parametrize("name", SCORING)
def test_a_judges_digest_covers_every_source_that_decides_its_scores(name: str) -> None:
    """A change in the source that decides a judge's scores changes its digest, so its certificates become invalid."""
    found: set[str] = set()
    todo = [f"judges.{name}"]
    while todo:
        if (module := todo.pop()) not in found | CARRIES:
            found.add(module)
            todo.extend(_imports(NAMES[module]))
    assert found <= _digested(name)


def _heavy(path: Path) -> set[str]:
    """The heavy packages that a module imports when it is loaded."""
    body = _tree(path).body
    top = {alias.name.partition(".")[0] for node in body if isinstance(node, ast.Import) for alias in node.names} | {
        (node.module or "").partition(".")[0] for node in body if isinstance(node, ast.ImportFrom)
    }
    return top & HEAVY


def test_a_module_loads_nothing_heavy() -> None:
    """Torch and the training stack are imported inside functions."""
    assert {_name(path): heavy for path in MODULES if (heavy := _heavy(path))} == {}


def test_a_module_says_what_it_is() -> None:
    """Every module has a docstring."""
    assert [_name(path) for path in MODULES if not ast.get_docstring(_tree(path))] == []


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys, json; before = set(sys.modules); {statement}; print(json.dumps(sorted(set(sys.modules) - before)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(json.loads(found))


def test_the_plugin_imports_only_the_standard_library_and_pytest() -> None:
    """The entry module imports no foreign package, and only its own room and the version of this one."""
    ours = _loaded_by("import pytest; before |= set(sys.modules); import rn_harness.plugin.hooks")
    foreign = {name.partition(".")[0] for name in ours} - set(sys.stdlib_module_names) - {"pytest", "_pytest"}
    assert foreign == {"rn_harness"}
    rooms = {name.split(".")[1] for name in ours if name.startswith("rn_harness.")}
    assert rooms <= {"plugin", "spec"}


def test_collecting_a_suite_loads_no_torch() -> None:
    """Checks, suite, verdict, the facades and the run are imported without torch."""
    loaded = _loaded_by(
        "from rn_harness import RobustnessChecks; import rn_harness.attacks, rn_harness.judges, rn_harness.spec.suite, "
        "rn_harness.verdict.decide, rn_harness.run.session"
    )
    assert loaded & HEAVY == set()
