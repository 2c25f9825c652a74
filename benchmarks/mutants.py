"""Mutation testing of the verdict: which changes of its code escape its tests? ``python benchmarks/mutants.py [module ...]``.

A mutant is a module of rn_harness/verdict with one change: another comparison, a dropped condition, another constant, a shorter
list, another return value. Unit tests are collected once. For each mutant a forked process changes the code in memory and runs
the tests that reach the changed lines, up to the first failure. Wording is not changed: strings, and choices between strings.

Results are stored in docs/evidence/mutants.json after each module; docs/evidence/mutants.md shows them. ``--minutes`` bounds a
module; its mutants are run in a seeded order, and the next call goes on where it ended. ``--seconds`` bounds the tests of one
mutant, the fastest first. ``--survivors`` runs only those that survived, for example after a new test. A survivor's ``why`` is
written by hand and kept: the reason why no test has to see it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import inspect
import os
import pickle
import random
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pieces
import pytest
from _pytest.runner import runtestprotocol

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "mutants.json"
PAGE = ROOT / "docs" / "evidence" / "mutants.md"
BEGIN, END = "<!-- written by benchmarks/mutants.py -->", "<!-- end of the mutants -->"
VERDICT = ROOT / "rn_harness" / "verdict"
TESTS = (
    "verdict", "edges", "release_rules", "confirmation", "certificates", "aided", "think_parts", "explorers", "signatures",
    "helpfulness", "levels", "coverage", "rewards", "restrained", "coherence", "forms", "hardening",
    "probe", "suite_anchors",
)  # fmt: skip
"""Unit tests that call the verdict, without those that start processes or make whole runs."""
SEED, SLOWEST_S, PATIENCE_S = 0, 1.0, 60
"""Seed of the order. In seconds of a processor: the longest test that is used, and the time after which a mutant is killed,
since it does not end."""
LATE = ("scipy.stats", "sacrebleu.metrics.chrf", "torch", "model_signing")
"""Libraries that the harness imports late. They are imported before any process is forked, and not by each."""
COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
RETURNED: dict[str, tuple[str, ...]] = {"bool": ("True", "False"), "str": ("''",), "int": ("0",), "float": ("0.0",)}
NOWHERE = (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.expr_context, ast.arg, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)


@dataclass(frozen=True)
class Place:
    """One node of a module.

    Attributes:
        parent: node that holds it.
        field: of the parent.
        index: in the field, if it is a list.
        top: statement of the module that holds it.
        lines: of the innermost statement, without its block.
    """

    parent: ast.AST
    field: str
    index: int | None
    top: ast.stmt
    lines: range

    @property
    def node(self) -> ast.AST:
        """The node itself."""
        held = getattr(self.parent, self.field)
        node: ast.AST = held if self.index is None else held[self.index]
        return node


@dataclass(frozen=True)
class Mutant:
    """One change: ``new`` in this place, or the place's node removed from its list."""

    place: Place
    new: ast.AST | None

    def told(self) -> dict[str, Any]:
        """The change in words of Python."""
        place = self.place
        old, text = place.node, ast.unparse(place.node)
        within = text if self.new is not None or isinstance(old, ast.stmt) else f"{text} in {ast.unparse(place.parent)}"
        name = place.top.name if isinstance(place.top, ast.FunctionDef) else ast.unparse(place.top).split(":")[0].split(" =")[0]
        return {"in": name, "line": place.lines[0], "was": within, "becomes": ast.unparse(self.new) if self.new else "nothing"}

    def apply(self) -> None:
        """Changes the tree."""
        place = self.place
        if place.index is None:
            setattr(place.parent, place.field, self.new)
        elif self.new is None:
            del getattr(place.parent, place.field)[place.index]
        else:
            getattr(place.parent, place.field)[place.index] = self.new
        ast.fix_missing_locations(place.top)


def places(node: ast.AST, top: ast.stmt, lines: range) -> Iterator[Place]:
    """Every place below a node where a change alters more than wording."""
    if isinstance(node, NOWHERE) or (isinstance(node, ast.IfExp) and (_is_text(node.body) or _is_text(node.orelse))):
        return
    for field, held in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list"}:
            continue
        for index, child in enumerate(held) if isinstance(held, list) else [(None, held)]:
            # Whether a zip is strict only matters for records that no reader lets in.
            if isinstance(child, ast.AST) and not (isinstance(child, ast.keyword) and child.arg == "strict"):
                inside = _header(child) if isinstance(child, ast.stmt) else lines
                yield Place(node, field, index, top, inside)
                yield from places(child, top, inside)


def _header(statement: ast.stmt) -> range:
    """Lines of a statement without its block."""
    block = getattr(statement, "body", None)
    end = (block[0].lineno - 1 if isinstance(block, list) else statement.end_lineno) or statement.lineno
    return range(statement.lineno, max(end, statement.lineno) + 1)


def _is_text(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def mutants(tree: ast.Module) -> list[Mutant]:
    """All mutants of a module, in a seeded order."""
    found: list[Mutant] = []
    for top in tree.body:
        is_alias = isinstance(top, ast.Assign) and isinstance(top.value, ast.Subscript)
        if isinstance(top, ast.FunctionDef | ast.Assign | ast.AnnAssign) and not is_alias:
            found += [mutant for place in places(top, top, _header(top)) for mutant in _at(place)]
    random.Random(SEED).shuffle(found)
    return found


def _at(place: Place) -> Iterator[Mutant]:
    """The mutants that change one node."""
    node, parent = place.node, place.parent
    is_test = isinstance(parent, ast.If | ast.IfExp) and place.field == "test"
    if is_test:
        yield from (Mutant(place, _parsed(text)) for text in ("True", "False"))
    if not (is_test and _is_yes_or_no(node)):  # the opposite of a test is seen wherever True and False are
        yield from (Mutant(place, new) for new in _variants(node))
    if isinstance(parent, ast.comprehension) and place.field == "ifs":
        yield Mutant(place, None)
    fixed = isinstance(place.top, ast.Assign | ast.AnnAssign) and isinstance(parent, ast.Tuple | ast.List)
    if place.field == "elts" and (isinstance(parent, ast.Set) or fixed):
        yield Mutant(place, None)
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and not _is_text(node.value)):
        yield Mutant(place, ast.Pass())
    if isinstance(node, ast.Return) and isinstance(place.top, ast.FunctionDef) and place.top.returns and node.value:
        yield from (Mutant(place, ast.Return(value)) for value in _returned(ast.unparse(place.top.returns), node.value))


def _is_yes_or_no(node: ast.AST) -> bool:
    """True for a condition without a bound: ``not``, or a comparison other than by order."""
    orders = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    compared = isinstance(node, ast.Compare) and not any(isinstance(op, orders) for op in node.ops)
    return compared or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def _returned(annotation: str, value: ast.expr) -> list[ast.expr]:
    """Other results of a function with this annotation."""
    if annotation.startswith("list["):
        texts: tuple[str, ...] = ("[]",)
    else:
        texts = ("None",) if annotation.endswith("| None") else RETURNED.get(annotation, ())
    return [_parsed(text) for text in texts if text != ast.unparse(value)]


def _variants(node: ast.AST) -> list[ast.AST]:
    """The nodes that may replace a node wherever it is."""
    made: list[ast.AST] = []
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            swapped = [[COMPARED[type(o)]() if i == j else o for j, o in enumerate(ops)] for i in range(len(ops))]
            made = [ast.Compare(left, changed, others) for changed in swapped]
        case ast.BoolOp(op=op, values=values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            fewer = [[*values[:i], *values[i + 1 :]] for i in range(len(values))]
            made = [ast.BoolOp(other, values), *(ast.BoolOp(op, few) if len(few) > 1 else few[0] for few in fewer)]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            made = [operand]
        case ast.BinOp(left=left, op=ast.Add(), right=right) if not _is_text(node):
            number = any(isinstance(n, ast.Constant | ast.Call) for n in (left, right))
            made = [ast.BinOp(left, ast.Sub(), right)] if number else [left, right]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in COMPUTED:
            made = [ast.BinOp(left, COMPUTED[type(op)](), right)]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in CALLED:
            made = [ast.Call(ast.Name(CALLED[name], ast.Load()), args, keywords)]
        case ast.Constant(value=bool() as truth):
            made = [ast.Constant(not truth)]
        case ast.Constant(value=int() | float() as number):
            made = [ast.Constant(number * 1.5 if isinstance(number, float) and number else number + 1)]
    return made


def change(module: Any, mutant: Mutant) -> None:
    """Changes a loaded module, and the names that others have imported from it."""
    mutant.apply()
    tree: ast.Module = ast.parse("from __future__ import annotations")
    top = mutant.place.top
    if isinstance(top, ast.FunctionDef):
        tree.body.append(top)
        space = dict(vars(module))
        exec(compile(tree, str(module.__file__), "exec"), space)  # noqa: S102 - our own code, with one change
        old, new = (inspect.unwrap(each[top.name]) for each in (vars(module), space))
        assert isinstance(old, FunctionType)
        old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
        return
    # What follows may be computed from it.
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    tree.body += [top, *(s for s in body if isinstance(s, ast.Assign | ast.AnnAssign) and s.lineno > top.lineno)]
    before = dict(vars(module))
    exec(compile(tree, str(module.__file__), "exec"), vars(module))  # noqa: S102
    for other in [m for name, m in sys.modules.items() if name.startswith(("rn_harness", "tests"))]:
        for name, value in vars(module).items():
            if name in before and vars(other).get(name) is before[name] is not value:
                setattr(other, name, value)


def forked(work: Callable[[], Any], patience_s: int = PATIENCE_S) -> Any:
    """The result of ``work`` in a forked process; ``"crashed"`` if it did not end well, or not in time."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (patience_s, patience_s))
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(work(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return pickle.loads(told) if told else "crashed"  # noqa: S301 - from our own process


class Mutation:
    """A pytest plugin that runs the collected tests on mutants, instead of once.

    Args:
        modules: names of the verdict's modules.
        minutes: bound of the time of each.
        seconds: bound of the time of a mutant's tests, as they took without a change.
        survivors: True to run only the mutants that survived.
    """

    def __init__(self, modules: Sequence[str], minutes: float, seconds: float, *, survivors: bool) -> None:
        self.modules, self.minutes, self.seconds, self.survivors = modules, minutes, seconds, survivors
        self.kills: Counter[tuple[str, str]] = Counter()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Runs all tests once to see which lines they reach, then the mutants of each module."""
        for late in LATE:
            importlib.import_module(late)
        seconds, reached = forked(lambda: _baseline(session.items), 600)
        print(f"{len(session.items)} tests, {sum(seconds.values()):.0f} s", flush=True)
        for name in self.modules:
            begin = time.perf_counter()
            made = self._module(name, pieces.read(OUT).get(name, {}), session.items, seconds, reached)
            stored = dict(sorted((pieces.read(OUT) | {name: made}).items()))  # reasons may have been written meanwhile
            pieces.store(OUT, stored)
            pieces.put(PAGE, BEGIN, END, table(stored))
            told = f"{name}: {made['killed']} of {made['run']} killed, {made['mutants']} in all"
            print(f"{told}, {time.perf_counter() - begin:.0f} s", flush=True)
        return True

    def _module(
        self,
        name: str,
        before: dict[str, Any],
        items: Sequence[pytest.Item],
        seconds: dict[str, float],
        reached: dict[tuple[str, int], set[str]],
    ) -> dict[str, Any]:
        """Runs the mutants of one module; ``before`` is its stored piece, which counts if the source is the same."""
        module = sys.modules[f"rn_harness.verdict.{name}"]
        source = (VERDICT / f"{name}.py").read_bytes()
        digest, every = hashlib.sha256(source).hexdigest(), mutants(ast.parse(source))
        whys = {(s["in"], s["was"], s["becomes"]): s["why"] for s in before.get("survivors", ()) if s["why"]}
        same = before.get("sha256") == digest
        first = before["run"] if same else 0
        by_name = {item.nodeid: item for item in items}
        lived: list[int] = [s["number"] for s in before["survivors"]] if same else []
        again, end = (lived, first) if self.survivors else ([], len(every))
        begin, done = time.perf_counter(), first
        warm, other = ([item for item in items if f"test_{name}.py" in item.nodeid] or items)[:2]
        # Fixtures of the module's own tests are made once, and not by each process.
        runtestprotocol(warm, log=False, nextitem=other)
        assert forked(lambda: _killer(module, None, [other, warm, items[-1]])) is None, "a test fails without a change"
        for number in again or range(first, end):
            if time.perf_counter() - begin > 60 * self.minutes:
                break
            mutant = every[number]
            tests = {test for line in mutant.place.lines for test in reached.get((name, line), ())}
            if not isinstance(mutant.place.top, ast.FunctionDef):  # import reaches it
                tests = {test for (of, _), reaching in reached.items() if of == name for test in reaching}
            where = f"{name}.{mutant.told()['in']}"
            chosen = self._first(name, where, tests, seconds)
            killer = forked(lambda m=mutant, c=chosen: _killer(module, m, [by_name[t] for t in c]))  # type: ignore[misc]
            if killer is None:
                lived = lived if again else [*lived, number]
            else:
                self.kills[where, killer] += 1
                self.kills[name, killer] += 1
                lived = [n for n in lived if n != number]
            done = max(done, number + 1)
        runtestprotocol(warm, log=False, nextitem=None)  # ends its fixtures
        told = [every[n].told() | {"number": n} for n in sorted(lived)]
        survivors = [t | {"why": whys.get((t["in"], t["was"], t["becomes"]), "")} for t in told]
        return {"sha256": digest, "mutants": len(every), "run": done, "killed": done - len(lived), "survivors": survivors}

    def _first(self, module: str, where: str, tests: Iterable[str], seconds: Mapping[str, float]) -> list[str]:
        """The tests to run on a mutant of a function, within the bound.

        Those that killed others of it come first, then others of its module, then the module's own tests, then the fastest.
        """

        def place(test: str) -> tuple[float, ...]:
            return -self.kills[where, test], -self.kills[module, test], f"test_{module}.py" not in test, seconds[test]

        order = sorted(tests, key=place)
        spent = list(accumulate(seconds[test] for test in order))
        return [test for test, until in zip(order, spent, strict=True) if until <= self.seconds]


def _killer(module: Any, mutant: Mutant | None, tests: Sequence[pytest.Item]) -> str | None:
    """The first test that fails on a mutant, or without a change; None if it survives."""
    if mutant is not None:
        change(module, mutant)
    return next((name for name, failed in _run(tests) if failed), None)


def _run(tests: Sequence[pytest.Item]) -> Iterator[tuple[str, bool]]:
    """Runs tests, and tells which failed."""
    for first in tests[:1]:
        first.session._setupstate.teardown_exact(first)  # noqa: SLF001 - warm fixtures that the first test does not need
    for item, following in pairwise([*tests, None]):
        assert item is not None
        reports = runtestprotocol(item, log=False, nextitem=following)
        yield item.nodeid, any(r.failed for r in reports)


def _baseline(items: Sequence[pytest.Item]) -> tuple[dict[str, float], dict[tuple[str, int], set[str]]]:
    """The time of each test, and the tests that reach each line of the verdict, by module and line."""
    reached: dict[tuple[str, int], set[str]] = defaultdict(set)
    current: list[str] = []
    names = {str(path): path.stem for path in VERDICT.glob("*.py")}

    def trace(frame: FrameType, _event: str, _: Any) -> Any:
        if (name := names.get(frame.f_code.co_filename)) is None:
            return None
        reached[name, frame.f_lineno].add(current[0])
        return trace

    seconds: dict[str, float] = {}
    for item, following in pairwise([*items, None]):
        assert item is not None
        current[:] = [item.nodeid]
        begin = time.process_time()
        sys.settrace(trace)
        reports = runtestprotocol(item, log=False, nextitem=following)
        sys.settrace(None)
        assert not any(r.failed for r in reports), item.nodeid
        seconds[item.nodeid] = time.process_time() - begin
    slow = {name for name, took in seconds.items() if took > SLOWEST_S}
    return seconds, {line: tests - slow for line, tests in reached.items()}


def table(stored: Mapping[str, Any]) -> str:
    """The table of the page: each module's mutants, and how many were run, killed and explained."""
    total: Counter[str] = Counter()
    lines = ["| module | mutants | run | killed | survived | explained |", "|---|---|---|---|---|---|"]
    for name, piece in stored.items():
        lived = piece["survivors"]
        counts = {key: piece[key] for key in ("mutants", "run", "killed")}
        counts |= {"survived": len(lived), "explained": sum(bool(each["why"]) for each in lived)}
        total.update(counts)
        lines.append(f"| `{name}` | {' | '.join(map(str, counts.values()))} |")
    return "\n".join([*lines, f"| all | {' | '.join(map(str, total.values()))} |"])


def main() -> None:
    """Parses the command line and runs the mutants of the named modules, or of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=[p.stem for p in sorted(VERDICT.glob("*.py")) if p.stem != "__init__"])
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--survivors", action="store_true")
    asked = parser.parse_args()
    files = [str(path) for name in TESTS if (path := ROOT / "tests" / "unit" / f"test_{name}.py").exists()]
    with tempfile.TemporaryDirectory(prefix="rn-mutants-") as folder:
        options = ["-q", "-s", "-p", "no:cacheprovider", f"--basetemp={folder}/tests", f"--rootdir={ROOT}"]
        plugin = Mutation(asked.modules, asked.minutes, asked.seconds, survivors=asked.survivors)
        sys.exit(pytest.main([*options, *files], plugins=[plugin]))


if __name__ == "__main__":
    main()
