"""Cost of a run, with comparisons: ``python benchmarks/performance.py [part ...]`` writes docs/evidence/performance.md's tables.

Parts: ``overhead`` (an attack compared with a bare TRL script), ``checkpoints``, ``suite`` (a session compared with the same
cases as scripts), ``startup``, ``cache``, ``memory``, ``growth``, ``workers``, ``profile``. Each is measured five times. Each
repeat is a piece of docs/evidence/performance.json, stored when it is finished; a stored piece is measured again only with
``--again``. Both sides of a comparison take turns, each in a new process with one thread. Processor time, children included,
is compared, because wall time depends on other work of the machine.
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

from rn_harness.models.resolve import resolve_candidate
from rn_harness.store.provenance import source_digest

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "performance.json"
PAGE = ROOT / "docs" / "evidence" / "performance.md"
BUILD = ROOT / "build" / "performance"
DOMAIN = "biochem"
SUITE = f"suites/{DOMAIN}"
REPEATS = 5
STEPS = 60
"""Steps of measured attacks; the time of 200 is extrapolated from the pace of their second half."""
CHECKPOINTS_DUE = 20
"""Checkpoints after the initial one; every fifth measures benign prompts, as in an attack of 200 steps."""
TINY = ("attack.steps=2", "attack.control_steps=2", "policy.checkpoint_every=2", "policy.samples=1")
SMALL_SETS = {"heldout": 6, "benign": 10}
"""Prompts kept of a set in measurements where only the number of cases or suites matters."""
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
"""A conftest.py that records the process's time and memory after each test."""


@dataclass(frozen=True)
class Used:
    """Resources used by a process and its children.

    Attributes:
        wall_s, cpu_s: seconds.
        peak_mib: peak memory of the largest process.
        code: exit code.
        output: printed text.
    """

    wall_s: float
    cpu_s: float
    peak_mib: int
    code: int
    output: str

    @property
    def told(self) -> dict[str, Any]:
        """The numbers for a stored piece."""
        return {"wall_s": round(self.wall_s, 3), "cpu_s": round(self.cpu_s, 3), "peak_mib": self.peak_mib}


def store_folder() -> Path:
    """The store for the current sources, because any change of code may change results."""
    return BUILD / source_digest()[:12] / "store"


def start(command: Sequence[str], folder: Path = ROOT, store: Path | None = None, probed: Path | None = None) -> Used:
    """Runs a command with one thread and with byte code kept as for any user; ``PROBE`` writes to ``probed``."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    known = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
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
    """Runs one side of a comparison (benchmarks/sides.py).

    Raises:
        RuntimeError: the process failed.
    """
    used = start([sys.executable, str(ROOT / "benchmarks" / "sides.py"), task, json.dumps(asked)])
    if used.code:
        raise RuntimeError(f"{task} {asked} ended with {used.code}:\n{used.output}")
    inside: dict[str, Any] = json.loads(used.output.splitlines()[-1])
    return inside | {"process": used.told}


def pytest_run(
    suite: str | Path, *arguments: str, store: Path | None = None, codes: Sequence[int] = (0,), probed: Path | None = None
) -> Used:
    """Runs one session with a new run folder.

    Raises:
        RuntimeError: the exit code is not one of ``codes``.
    """
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(suite), f"--rn-run={name}/run", *arguments]
        used = start(command, store=store, probed=probed)
    if used.code not in codes:
        raise RuntimeError(f"{' '.join(command)} ended with {used.code}:\n{used.output}")
    return used


def in_turn(repeat: int, ways: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Runs each way once, in reverse order in every second repeat."""
    order = list(ways) if repeat % 2 else list(ways)[::-1]
    made = {name: ways[name]() for name in order}
    return {name: made[name] for name in ways}


def adapter() -> str:
    """The folder of the default defense, which is trained once."""
    return str(side("defended")["adapter"])


# --- parts -------------------------------------------------------------------------------------------------------------


def overhead(repeat: int) -> dict[str, Any]:
    """Attacks on the defended and the undefended organism, measured by the harness before the first and after the last step."""
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
    """21 checkpoints in an attack on the undefended organism, and the same attack by TRL without checkpoints."""
    every = STEPS // CHECKPOINTS_DUE
    return in_turn(
        repeat,
        {
            "bare": lambda: side("bare", adapter=None, steps=STEPS, seed=repeat - 1),
            "ours": lambda: side("ours", adapter=None, steps=STEPS, every=every, benign=5 * every, seed=repeat - 1),
        },
    )


def suite(repeat: int) -> dict[str, Any]:
    """A session from nothing with the defense ``anchored``, and the same cases as consecutive bare scripts."""
    return in_turn(repeat, {"bare": lambda: side("bare-suite", overrides=[]), "ours": whole_session})


def whole_session(*arguments: str) -> dict[str, Any]:
    """The standard tier from nothing, with the defense that the bare scripts have; explorers break it."""
    with tempfile.TemporaryDirectory() as store:
        return pytest_run(SUITE, "--rn-quiet", "--rn-defense=anchored", *arguments, store=Path(store), codes=(0, 1)).told


def workers(repeat: int) -> dict[str, Any]:
    """A session from nothing in one process, and with two workers."""
    return in_turn(repeat, {"one": whole_session, "two": lambda: whole_session("-n", "2")})


def served(repeat: int) -> dict[str, Any]:
    """An attack with a slow judge, on a server and locally."""
    asked = {"steps": STEPS, "every": 10}
    ways = {"at once": lambda: side("judged", served=False, **asked), "later": lambda: side("judged", served=True, **asked)}
    return in_turn(repeat, ways)


def startup(repeat: int) -> dict[str, Any]:
    """A session of one unrelated test, with and without the plugin, and a listing of all shipped suites' tests."""
    quiet = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_nothing.py").write_text("def test_nothing(): pass\n", encoding="utf-8")
        ways = {
            "with": lambda: start(quiet, folder).told,
            "without": lambda: start([*quiet, "-p", "no:rn_harness"], folder).told,
            "collect": lambda: start([*quiet, "suites", "--collect-only"]).told,
        }
        in_turn(repeat, ways)  # writes the byte code
        return {
            "rounds": [in_turn(i, {name: ways[name] for name in ("with", "without")}) for i in range(STARTS)],
            "collect": [ways["collect"]() for _ in range(COLLECTS)],
        }


def cache(_: int) -> dict[str, Any]:
    """The standard tier from a filled store, and the run that filled it, if it ran here."""
    filled = store_folder().parent / "filled"
    first = None
    if not filled.exists():
        first = pytest_run(SUITE, "--rn-quiet", store=store_folder()).told
        filled.touch()
    return {"first": first, "second": pytest_run(SUITE, "--rn-quiet", store=store_folder()).told}


def small_suite(folder: Path, number: int, cases: int, *, whole: bool = False) -> Path:
    """A copy of the suite with attacks of two steps.

    Args:
        folder: folder for the copy.
        number: number of the suite, for its name and its seeds; suites share no case.
        cases: number of attacks, which differ in their seed.
        whole: True to keep all prompts.
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
    """Runs a session over small suites from a stored defense; returns the resources used after each case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(suites):
            small_suite(folder / "suites", i, cases)
        (folder / "suites" / "conftest.py").write_text(PROBE, encoding="utf-8")
        probed = folder / "probed.jsonl"
        changes = [f"--rn-set={change}" for change in TINY]
        # A control of two steps does not break the organism: each case runs completely and is INCONCLUSIVE.
        selected = ["--rn-tier=smoke", f"--rn-defense={adapter()}", "-k", "attack_stays", f"--rootdir={folder}", "--rn-quiet"]
        store = folder / "store"
        pytest_run(folder / "suites", *selected, *changes, store=store, codes=(1,), probed=probed)
        return [json.loads(line) for line in probed.read_text(encoding="utf-8").splitlines()]


def memory(_: int) -> dict[str, Any]:
    """Time and memory after each case of a session with many small cases."""
    return {"after_case": small_session(1, CASES)}


def growth(_: int) -> dict[str, Any]:
    """Seconds by number of held-out prompts and of suites; other parts have them by steps, checkpoints and cases."""
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
    """Shares of an attack's time."""
    asked = {"steps": STEPS, "every": STEPS}
    return {"undefended": side("profile", adapter=None, **asked), "defended": side("profile", adapter=adapter(), **asked)}


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    part.__name__: part for part in (overhead, checkpoints, suite, startup, cache, memory, growth, workers, served, profile)
}


def main() -> None:
    """Measures the missing pieces of the named parts, and writes the tables of the page."""
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
    """Sort key of pieces: the order of their parts, then their number."""
    part, repeat = name.split()
    return list(PARTS).index(part), int(repeat)


if __name__ == "__main__":
    main()
