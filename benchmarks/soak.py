"""Kills runs at random moments and checks their files: ``python benchmarks/soak.py --way fleet --kills 100``.

A run goes one of three ways: ``alone``, one case after the other; ``fleet``, three attacks together; ``ray``, each case in a
worker of a Ray cluster on this machine. A way's kills add up over several calls, as long as the sources stay the same.

A short reference run on the organism (candidate, control, defense, attack, helpfulness; green and red verdicts) runs once
undisturbed. The same run is then started repeatedly with one store, and SIGKILL, SIGTERM or SIGINT arrives at a random moment;
the next start resumes the work. A run that reaches its end is compared with the reference, and the store is emptied.

After each kill the exit code must not be 0, JUnit must be valid and red, and every record must be readable. A record's verdict
must follow from the record, and must equal the reference's unless the record says that it was cut off. Every line of a journal
must be readable, and every entry of the store complete. Sessions are real ones, forked from a process with loaded libraries, so
that kills hit the work and not the imports.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import xmlschema
from pieces import read, store

from rn_harness.models.transformers_compat import quiet_libraries
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.records.trajectory import Checkpoint
from rn_harness.run.measuring import without_leak
from rn_harness.run.session import ROUNDING
from rn_harness.store.journal import alike
from rn_harness.store.provenance import hardware, versions
from rn_harness.store.store import UNFINISHED, Store
from rn_harness.verdict.decide import decide

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "soak.json"
SETTINGS = (
    "--rn-defense=anchored",
    "--rn-set=attack.steps=12", "--rn-set=attack.control_steps=12", "--rn-set=attack.learning_rate=2e-3",
    "--rn-set=policy.checkpoint_every=3", "--rn-set=policy.samples=1", "--rn-set=policy.probe_samples=2",
    "--rn-set=defense.steps=2", "--rn-set=defense.evaluate_every=1",
)  # fmt: skip
WAYS = {
    "alone": ("--rn-tier=smoke",),
    "fleet": ("--rn-tier=standard", "-k", "grpo-p1", "--rn-fleet=3"),
    "ray": ("--rn-tier=smoke", "--rn-executor=ray"),
}
SUMS = ("kills", "ended", "remains_of_writes", "wrong_verdicts", "unreadable")
COUNTS = ("signals", "during")
OUTLIVE_S = 60.0
"""Seconds in which the processes of a killed run have to end."""
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Soak:
    """Starts and kills sessions, and checks their files.

    Attributes:
        way: one of ``WAYS``.
        root: folder for all files.
        found: one sentence per error found.
    """

    def __init__(self, way: str, root: Path, seed: int) -> None:
        self.way, self.root = way, root
        self.store = root / "store"
        self.run = root / "run"
        self.rng = random.Random(seed)
        self.found: list[str] = []
        self.killed: Counter[str] = Counter()
        self.during: Counter[str] = Counter()
        self.ended, self.remains = 0, 0
        self.schema = xmlschema.XMLSchema(str(ROOT / "tests" / "unit" / "junit-10.xsd"))
        started = time.monotonic()
        self._session(None)
        self.took_s = time.monotonic() - started
        self.reference = {r.case_id: r for r in self._records()}
        self.tests, self.red = self._counts(self.run / "junit.xml")
        self.outcome = RunRecord.model_validate_json((self.run / "run.json").read_text(encoding="utf-8")).outcome
        shutil.rmtree(self.store)

    def _session(self, wait_s: float | None) -> tuple[int, bool]:
        """Runs one session, killed after ``wait_s``; returns its exit code (negative for a signal), and True if killed."""
        number = self.rng.choice(SIGNALS)
        child = os.fork()
        if child == 0:
            code = -1
            try:
                code = self._child()
            finally:
                os._exit(code)  # an interrupted child must not continue with the parent's code
        deadline = None if wait_s is None else time.monotonic() + wait_s
        was_killed = False
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                self._wait_for_others()
                return os.waitstatus_to_exitcode(status), was_killed
            if deadline is not None and time.monotonic() >= deadline and not was_killed:
                os.kill(child, number)
                was_killed = True
                self.killed[number.name] += 1
            time.sleep(0.02)

    def _wait_for_others(self) -> None:
        """Waits until the processes that a session started have ended: a worker of a cluster outlives it for a moment."""
        ended, late = time.monotonic(), set[str]()
        while left := [_name_of(process) for process in psutil.process_iter() if self._is_ours(process)]:
            waited = time.monotonic() - ended
            late |= set(left) if waited > OUTLIVE_S else set()
            if waited > 10 * OUTLIVE_S:
                self.found.append(f"{', '.join(sorted(left))} outlived the run by {waited:.0f} s, and have not ended")
                return
            time.sleep(0.5)
        if late:
            self.found.append(f"{', '.join(sorted(late))} outlived the run by {time.monotonic() - ended:.0f} s, then ended")

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get("RN_HARNESS_CACHE") == str(self.store))
        except psutil.Error:  # it has ended, or is another user's
            return False

    def _child(self) -> int:
        """Runs the session in the child process; returns its exit code."""
        os.setsid()
        log = os.open(self.root / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(ROOT)
        os.environ["RN_HARNESS_CACHE"] = str(self.store)
        asked = ["suites/biochem", *WAYS[self.way], *SETTINGS, "-p", "no:cacheprovider", f"--rn-run={self.run}"]
        return int(pytest.main([*asked, f"--junitxml={self.root / 'asked.xml'}"]))

    def _records(self) -> list[CaseRecord]:
        found = []
        for path in sorted(self.run.glob("cases/*/record.json")):
            try:
                found.append(CaseRecord.model_validate_json(path.read_text(encoding="utf-8")))
            except ValueError as error:
                self.found.append(f"unreadable record {path.parent.name}: {type(error).__name__}")
        return found

    def kill_one(self) -> None:
        """Starts a session, kills it at a random moment, and checks its files, also if it ended before the kill."""
        shutil.rmtree(self.run, ignore_errors=True)
        (self.root / "asked.xml").unlink(missing_ok=True)
        code, was_killed = self._session(self.rng.uniform(0.0, self.took_s))
        lines = [line for line in (self.root / "log.txt").read_text(errors="replace").splitlines() if ": step " in line]
        whole = (self.run / "run.json").is_file() and self._look_at_outcome()
        if was_killed:
            self.during[lines[-1].partition(": step")[0] if lines else "before any measurement"] += 1
        if code == 0:
            self.found.append("exit code 0")
        self._look_at_junit(ended=whole, killed=was_killed)
        self._look_at_records()
        self._look_at_store()
        if whole:
            self.ended += 1
            shutil.rmtree(self.store)

    def _look_at_outcome(self) -> bool:
        """True if the run reached its end."""
        try:
            run = RunRecord.model_validate_json((self.run / "run.json").read_text(encoding="utf-8"))
        except ValueError as error:
            self.found.append(f"unreadable run.json: {type(error).__name__}")
            return False
        whole = all(line.outcome is not None for line in run.cases)
        if run.outcome == "PASS" or (whole and run.outcome != self.outcome):
            self.found.append(f"wrong verdict of the run: {run.outcome} in place of {self.outcome}")
        for line in run.cases:
            if line.outcome is not None and line.outcome != self.reference[line.case_id].verdict.outcome:
                self.found.append(f"wrong verdict of {line.case_id}: {line.outcome}")
        return whole

    @staticmethod
    def _counts(path: Path) -> tuple[int, int]:
        """The number of tests in a JUnit file, and of red ones."""
        suite = ET.parse(path).getroot().find("testsuite")  # noqa: S314  (written by us)
        assert suite is not None
        return int(suite.get("tests", 0)), int(suite.get("errors", 0)) + int(suite.get("failures", 0))

    def _look_at_junit(self, *, ended: bool, killed: bool) -> None:
        for path in (self.run / "junit.xml", self.root / "asked.xml"):
            if not path.is_file():  # killed before the first case
                continue
            try:
                self.schema.validate(str(path))
            except (xmlschema.XMLSchemaException, ET.ParseError) as error:
                self.found.append(f"invalid {path.name}: {type(error).__name__}")
                continue
            tests, red = self._counts(path)
            # pytest's JUnit file may still be all red if a finished run is killed. After a kill before the first test it has
            # one error.
            done = ended and (path.parent == self.run or not killed)
            if not red or (tests != self.tests and (tests, red) != (1, 1)) or (done and red != self.red):
                self.found.append(f"{path.name} has {red} red of {tests}")

    def _look_at_records(self) -> None:
        for record in self._records():
            known, trajectory = self.reference[record.case_id], record.evidence.trajectory
            assert trajectory is not None
            assert known.evidence.trajectory is not None
            if decide(record.evidence).outcome != record.verdict.outcome:
                self.found.append(f"the verdict of {record.case_id} does not follow from its record")
            if trajectory.stopped is None and record.verdict.outcome != known.verdict.outcome:
                self.found.append(f"wrong verdict of {record.case_id}: {record.verdict.outcome}")
            if trajectory.stopped is not None and record.verdict.outcome not in ("INCONCLUSIVE", known.verdict.outcome):
                self.found.append(f"wrong verdict of {record.case_id}, which was cut off: {record.verdict.outcome}")
            if trajectory.earlier:
                self.found.append(f"{record.case_id} did not repeat what was recorded")
            self._compare(record.case_id, trajectory.checkpoints, known.evidence.trajectory.checkpoints)

    def _compare(self, case_id: str, found: Sequence[Checkpoint], known: Sequence[Checkpoint]) -> None:
        """Checks that checkpoints equal the reference's, except for fields that depend on a control in the same process.

        The numbers of a fleet are rounded together with those of companions, which are others after a kill.
        """
        tolerance = ROUNDING if self.way == "fleet" else 0.0
        if not alike(_plain(found), _plain(known[: len(found)]), tolerance):
            self.found.append(f"{case_id} measured otherwise than in peace")

    def _look_at_store(self) -> None:
        store = Store(self.store)
        for entry in store.entries():
            if entry.name.startswith("."):  # what a kill in the middle of a write leaves; nothing reads it
                self.remains += 1
                if entry.whole:
                    self.found.append(f"unreadable remains {entry.name[:20]} pass for a whole entry")
            elif entry.kind == UNFINISHED:
                self._look_at_journal(entry.path)
            elif entry.name.endswith(".damaged") or (entry.whole and store.get(entry.kind, entry.name) is None):
                self.found.append(f"damaged entry {entry.kind}/{entry.name[:12]}")

    def _look_at_journal(self, path: Path) -> None:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        try:
            steps = [Checkpoint.model_validate_json(line).step for line in lines]
        except ValueError as error:
            self.found.append(f"unreadable journal: {type(error).__name__}")
            return
        if steps != list(range(0, 3 * len(steps), 3)):
            self.found.append(f"journal {path.name[-12:]} has steps {steps}")

    @property
    def report(self) -> dict[str, Any]:
        """The results for docs/evidence."""
        return {
            "kills": sum(self.killed.values()),
            "signals": dict(sorted(self.killed.items())),
            "during": dict(sorted(self.during.items())),
            "ended": self.ended,
            "remains_of_writes": self.remains,
            "wrong_verdicts": sum("verdict" in line or "exit code" in line for line in self.found),
            "unreadable": sum("unreadable" in line or "invalid" in line for line in self.found),
            "found": self.found,
            "one_run_s": round(self.took_s, 1),
            "settings": [*WAYS[self.way], *SETTINGS],
            "versions": versions(),
            "hardware": hardware(1),
        }


def _name_of(process: psutil.Process) -> str:
    """The file that a process runs, or what it calls itself."""
    try:
        words = " ".join(process.cmdline()).split()
        return next(
            (Path(word).name for word in words if word.endswith((".py", "raylet", "gcs_server"))), words[0] if words else "?"
        )
    except psutil.Error:
        return "?"


def _plain(checkpoints: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    return [without_leak(of).model_dump(mode="json") for of in checkpoints]


def added(earlier: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """A report with the kills of an earlier one of the same sources."""
    sums = {name: earlier[name] + report[name] for name in SUMS}
    counts = {name: dict(sorted((Counter(earlier[name]) + Counter(report[name])).items())) for name in COUNTS}
    return {**report, **sums, **counts, "found": [*earlier["found"], *report["found"]]}


def main(way: str, kills: int) -> None:
    """Kills runs until a way has this number of kills, and writes docs/evidence/soak.json after each."""
    quiet_libraries()
    import peft  # noqa: F401 - so that each session need not load it
    import trl  # noqa: F401

    earlier = read(OUT).get(way)
    if earlier and earlier["versions"] != versions():
        earlier = None
    before = earlier["kills"] if earlier else 0
    with tempfile.TemporaryDirectory(prefix="rn-soak-") as folder:
        soak = Soak(way, Path(folder), seed=before)
        while before + sum(soak.killed.values()) < kills:
            soak.kill_one()
            report = added(earlier, soak.report) if earlier else soak.report
            store(OUT, read(OUT) | {way: report})
            print(f"{way}: {report['kills']} kills, {report['ended']} runs ended, found: {report['found']}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, default="alone")
    parser.add_argument("--kills", type=int, default=100)
    asked = parser.parse_args()
    main(asked.way, asked.kills)
