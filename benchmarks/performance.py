"""What a run costs, and against what: ``python benchmarks/performance.py [part ...]`` writes docs/performance.md's tables.

Parts: ``overhead`` (an attack against a bare TRL script), ``checkpoints``, ``suite`` (a session against the same cases as
scripts), ``startup``, ``cache``, ``memory``, ``growth``, ``workers``, ``profile``. Each is measured five times, and each repeat
is a piece of docs/evidence/performance.json that is stored when it ends: what is stored is not measured again unless
``--again`` is given. Both sides of a comparison take turns, each in a fresh process of one thread; judged by processor time,
children included, since wall time also measures what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import performance_tables
import pieces
import yaml

from rn_harness.models.candidate import resolve_candidate
from rn_harness.store.provenance import source_digest

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
BUILD = ROOT / "build" / "performance"
DOMAIN = "biochem"
SUITE = f"suites/{DOMAIN}"
REPEATS = 5
STEPS = 60
"""Of the attacks that are measured; what 200 would take is told from the pace of their second half."""
CHECKPOINTS_DUE = 20
"""Checkpoints after the one before the first step; benign prompts are due at every fifth, as in an attack of 200 steps."""
TINY = ("attack.steps=2", "attack.control_steps=2", "policy.checkpoint_every=2", "policy.samples=1")
SMALL_SETS = {"heldout": 6, "benign": 10}
"""Prompts that are left of a set where only the number of cases or suites matters."""
CASES, SUITES, COLLECTED = 40, 8, (1, 2, 4, 8, 16)
PROMPTS = (5, 10, 20, 40, 60)
STARTS, COLLECTS = 5, 3
PROBE = """
import json, os, resource, time

def pytest_runtest_logreport(report):
    if report.when == "teardown":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        row = {"cpu_s": round(time.process_time(), 3), "peak_mib": round(peak, 1), "resident_mib": round(resident, 1)}
        with open(os.environ["PROBED"], "a") as file:
            file.write(json.dumps(row) + "\\n")
"""
"""A conftest.py that writes down, after each test, what the process has used."""


@dataclass(frozen=True)
class Used:
    """What a process and its children used.

    Attributes:
        wall_s, cpu_s: seconds.
        peak_mib: of the largest of them.
        code: its exit code.
        output: what it printed.
    """

    wall_s: float
    cpu_s: float
    peak_mib: int
    code: int
    output: str

    @property
    def told(self) -> dict[str, Any]:
        """Its numbers."""
        return {"wall_s": round(self.wall_s, 3), "cpu_s": round(self.cpu_s, 3), "peak_mib": self.peak_mib}


def store_folder() -> Path:
    """The store of these sources: another line of code is another result."""
    return BUILD / source_digest()[:12] / "store"


def start(command: Sequence[str], folder: Path = ROOT, store: Path | None = None, probed: Path | None = None) -> Used:
    """Runs a command to its end: one thread, byte code kept as for any user; ``probed`` is where ``PROBE`` writes."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    known = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPYCACHEPREFIX": str(BUILD / "bytecode"),
        "RN_HARNESS_CACHE": str(store or store_folder()),
        "PROBED": str(probed),
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=kept | known, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    return Used(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024, process.returncode, said)


def side(task: str, **asked: Any) -> dict[str, Any]:
    """One side of a comparison (benchmarks/sides.py).

    Raises:
        RuntimeError: it failed.
    """
    used = start([sys.executable, str(ROOT / "benchmarks" / "sides.py"), task, json.dumps(asked)])
    if used.code:
        raise RuntimeError(f"{task} {asked} ended with {used.code}:\n{used.output}")
    inside: dict[str, Any] = json.loads(used.output.splitlines()[-1])
    return inside | {"process": used.told}


def pytest_run(
    suite: str | Path, *arguments: str, store: Path | None = None, codes: Sequence[int] = (0,), probed: Path | None = None
) -> Used:
    """One session with a run folder of its own.

    Raises:
        RuntimeError: it ended otherwise than with one of ``codes``.
    """
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(suite), f"--rn-run={name}/run", *arguments]
        used = start(command, store=store, probed=probed)
    if used.code not in codes:
        raise RuntimeError(f"{' '.join(command)} ended with {used.code}:\n{used.output}")
    return used


def in_turn(repeat: int, ways: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Each way once, every second repeat in the other order."""
    order = list(ways) if repeat % 2 else list(ways)[::-1]
    made = {name: ways[name]() for name in order}
    return {name: made[name] for name in ways}


def adapter() -> str:
    """Folder of the default defense, made once."""
    return str(side("defended")["adapter"])


# --- parts -------------------------------------------------------------------------------------------------------------


def overhead(repeat: int) -> dict[str, Any]:
    """An attack on the defended organism and on the undefended, measured by us before the first step and after the last."""
    found = {}
    for name, weights in (("defended", adapter()), ("undefended", None)):
        found[name] = in_turn(
            repeat,
            {
                "bare": lambda: side("bare", adapter=weights, steps=STEPS, seed=repeat - 1),  # noqa: B023
                "ours": lambda: side("ours", adapter=weights, steps=STEPS, every=STEPS, seed=repeat - 1),  # noqa: B023
            },
        )
    return found


def checkpoints(repeat: int) -> dict[str, Any]:
    """21 checkpoints within an attack on the undefended organism, and the same attack by TRL without any."""
    every = STEPS // CHECKPOINTS_DUE
    return in_turn(
        repeat,
        {
            "bare": lambda: side("bare", adapter=None, steps=STEPS, seed=repeat - 1),
            "ours": lambda: side("ours", adapter=None, steps=STEPS, every=every, benign=5 * every, seed=repeat - 1),
        },
    )


def suite(repeat: int) -> dict[str, Any]:
    """A session from nothing, and the same cases one after another as bare scripts."""

    def session() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as store:
            return pytest_run(SUITE, "--rn-quiet", store=Path(store)).told

    return in_turn(repeat, {"bare": lambda: side("bare-suite", overrides=[]), "ours": session})


def workers(repeat: int) -> dict[str, Any]:
    """A session from nothing in one process, and by two workers."""

    def session(*arguments: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as store:
            return pytest_run(SUITE, "--rn-quiet", *arguments, store=Path(store)).told

    return in_turn(repeat, {"one": session, "two": lambda: session("-n", "2")})


def served(repeat: int) -> dict[str, Any]:
    """An attack whose judge is slow, on a server and not."""
    asked = {"steps": STEPS, "every": 10}
    ways = {"at once": lambda: side("judged", served=False, **asked), "later": lambda: side("judged", served=True, **asked)}
    return in_turn(repeat, ways)


def startup(repeat: int) -> dict[str, Any]:
    """A session of one test that is none of ours, with the plugin and without; and a list of all shipped suites' tests."""
    quiet = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_nothing.py").write_text("def test_nothing(): pass\n", encoding="utf-8")
        ways = {
            "with": lambda: start(quiet, folder).told,
            "without": lambda: start([*quiet, "-p", "no:rn_harness"], folder).told,
            "collect": lambda: start([*quiet, "suites", "--collect-only"]).told,
        }
        in_turn(repeat, ways)  # byte code is written once
        return {
            "rounds": [in_turn(i, {name: ways[name] for name in ("with", "without")}) for i in range(STARTS)],
            "collect": [ways["collect"]() for _ in range(COLLECTS)],
        }


def cache(_: int) -> dict[str, Any]:
    """The standard tier from a store that has all of it; the run that filled it, where it was made here."""
    filled = store_folder().parent / "filled"
    first = None
    if not filled.exists():
        first = pytest_run(SUITE, "--rn-quiet", store=store_folder()).told
        filled.touch()
    return {"first": first, "second": pytest_run(SUITE, "--rn-quiet", store=store_folder()).told}


def small_suite(folder: Path, number: int, cases: int, *, whole: bool = False) -> Path:
    """A copy of the suite with so many attacks of two steps.

    Args:
        folder: that it is put into.
        number: of the suite, for its name and its seeds: no two have a case in common.
        cases: attacks, which differ in their seed.
        whole: whether it keeps all of its prompts.
    """
    domain = f"domain{number}"
    copy = folder / domain
    shutil.copytree(ROOT / SUITE, copy)
    (copy / f"test_{DOMAIN}.py").rename(copy / f"test_{domain}.py")
    declared = yaml.safe_load((copy / "suite.yaml").read_text(encoding="utf-8"))
    base = {"name": "grpo", "steps": 2, "control_steps": 2, "learning_rate": 5e-4, "prompts": 5}
    declared |= {
        "domain": domain,
        "attacks": [{"tier": "smoke", "base": base, "vary": {"seed": [*range(number * cases, (number + 1) * cases)]}}],
    }
    (copy / "suite.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    for name, count in () if whole else SMALL_SETS.items():
        path = copy / "prompts" / f"{name}.yaml"
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["prompts"][:count]
        path.write_text(yaml.safe_dump({"prompts": rows}), encoding="utf-8")
    return copy


def small_session(suites: int, cases: int) -> list[dict[str, Any]]:
    """A session over so many small suites with so many cases each, from nothing but the defense: what it used after each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(suites):
            small_suite(folder / "suites", i, cases)
        (folder / "suites" / "conftest.py").write_text(PROBE, encoding="utf-8")
        probed = folder / "probed.jsonl"
        changes = [f"--rn-set={change}" for change in TINY]
        # A control of two steps breaks nothing: each case is made in full, and then has no verdict.
        selected = ["--rn-tier=smoke", f"--rn-defense={adapter()}", "-k", "attack_stays", f"--rootdir={folder}", "--rn-quiet"]
        store = folder / "store"
        pytest_run(folder / "suites", *selected, *changes, store=store, codes=(1,), probed=probed)
        return [json.loads(line) for line in probed.read_text(encoding="utf-8").splitlines()]


def memory(_: int) -> dict[str, Any]:
    """A session of many small cases: time and memory after each."""
    return {"after_case": small_session(1, CASES)}


def growth(_: int) -> dict[str, Any]:
    """Seconds by number of held-out prompts and of suites; those by steps, checkpoints and cases stand in other parts."""
    quiet = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only"]
    with tempfile.TemporaryDirectory() as name:
        folder, collected = Path(name), {}
        for i in range(COLLECTED[-1]):
            small_suite(folder, i, 1, whole=True)
        for number in COLLECTED:
            named = [str(folder / f"domain{i}") for i in range(number)]
            listed = [start([*quiet, *named, f"--rootdir={folder}"]).cpu_s for _ in range(COLLECTS)]
            collected[number] = round(statistics.median(listed), 3)
    return {
        "prompts": side("measurements", prompts=PROMPTS)["cpu_s"],
        "after_suite": small_session(SUITES, 1),
        "collected": collected,
    }


def profile(_: int) -> dict[str, Any]:
    """Where the time of an attack goes."""
    asked = {"steps": STEPS, "every": STEPS}
    return {"undefended": side("profile", adapter=None, **asked), "defended": side("profile", adapter=adapter(), **asked)}


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    part.__name__: part for part in (overhead, checkpoints, suite, startup, cache, memory, growth, workers, served, profile)
}


def main() -> None:
    """Measures what is missing of the parts that are named, and writes the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; without one all")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--again", action="store_true", help="measure what is stored, too")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - PARTS.keys()
    if unknown:
        parser.error(f"a part is one of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    digest = resolve_candidate("organism", ROOT).digest
    every = [f"{part} {repeat}" for part in PARTS for repeat in range(1, arguments.repeats + 1)]
    stored = {name for name, piece in pieces.read(OUT).items() if piece["candidate"] == digest}
    asked = [n for n in every if n.split()[0] in (arguments.parts or PARTS) and (arguments.again or n not in stored)]

    def measure(name: str) -> dict[str, Any]:
        part, repeat = name.split()
        load = os.getloadavg()[0]
        return {"candidate": digest, "load_before": round(load, 2), "measured": PARTS[part](int(repeat))}

    if asked:
        BUILD.mkdir(parents=True, exist_ok=True)
        pieces.make(OUT, sorted({*every, *stored}, key=order), asked, measure, lambda made: [f"load {made['load_before']}"])
    performance_tables.write(PAGE, pieces.read(OUT))


def order(name: str) -> tuple[int, int]:
    """Pieces as their parts stand, and by their number."""
    part, repeat = name.split()
    return list(PARTS).index(part), int(repeat)


if __name__ == "__main__":
    main()
