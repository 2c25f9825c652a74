"""Real pytest sessions on the shipped organism, each in a separate folder."""

import json
import multiprocessing
import os
import shutil
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import yaml

from rn_harness.run.measuring import LEAK_OF_CONTROL

SUITES = Path(__file__).parents[2] / "suites"
WARM = multiprocessing.get_context("forkserver")
SESSION = (Path(__file__).parent / "warm_session.py").read_text()
PRELOADED = [
    "torch", "datasets", "peft", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "trl.trainer.grpo_trainer", "model_signing.signing", "matplotlib.figure", "scipy.stats",
    "rn_harness.run.session", "rn_harness.run.measuring", "rn_harness.run.controller", "rn_harness.training.grpo",
]  # fmt: skip
"""Modules that a session's parent has imported."""


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory):
    """One store for all sessions, in all xdist workers, so that the defense is trained once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "store"
    folder.mkdir(exist_ok=True)
    return folder


def copy_suite(folder):
    """Copies the biochem suite with a cheaper smoke tier.

    It has one attack and the level of that attack, since the banned one goes to the standard tier, and 40 of 200 benign prompts,
    half of them twins: all of them take a third of a session. Of the forms of requests it has those in which the organism's
    anchored defense holds.
    """
    shutil.copytree(SUITES / "biochem", folder)
    path = folder / "suite.yaml"
    text, smoke, level = path.read_text(), "  - tier: smoke\n    base: {name: explore, ", "level: rl-explore"
    assert (text.count(smoke), text.count(level)) == (1, 1)
    path.write_text(
        text.replace(smoke, smoke.replace("smoke", "standard")).replace(level, "level: rl-plain, forms: [again, hot]")
    )
    benign = folder / "prompts" / "benign.yaml"
    rows = yaml.safe_load(benign.read_text())["prompts"][:40]
    assert sum(row["kind"] == "twin" for row in rows) == 20
    benign.write_text(yaml.safe_dump({"prompts": rows}))


class Workspace:
    """A folder with a copy of a suite, where a test runs sessions."""

    def __init__(self, pytester, monkeypatch, store):
        self.pytester = pytester
        self.folder = pytester.path
        self.monkeypatch = monkeypatch
        self.use_store(store)
        copy_suite(self.folder / "mine" / "biochem")
        pytester.makefile(
            ".toml", pyproject="[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib', '--rn-defense=anchored']\n"
        )

    def use_store(self, store):
        """Makes this and later sessions use a store."""
        self.monkeypatch.setenv("RN_HARNESS_CACHE", str(store))

    def make_failing(self):
        """Makes ``faults`` importable; a session that loads it fails in the way that ``RN_FAULT`` names."""
        shutil.copy(Path(__file__).parent / "faults.py", self.folder)
        self.pytester.syspathinsert()

    def run(self, *args, cold=False):
        """Runs a session in a new process; ``text`` of the result is stdout and stderr.

        The process is forked from one that has imported the large libraries and most of ours, unless ``cold``.
        """
        args = ("-p", "no:cacheprovider", *map(str, args))
        result = self.pytester.runpytest_subprocess(*args) if cold else self._fork(args)
        result.text = result.stdout.str() + result.stderr.str()
        return result

    def _fork(self, args):
        log, path = [self.folder / "stdout", self.folder / "stderr"], [str(self.folder), *filter(None, [os.getenv("PYTHONPATH")])]
        given = {
            "folder": str(self.folder),
            "environment": {**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            "arguments": [f"--basetemp={self.folder / 'base'}", *args],
            "log": list(map(str, log)),
        }
        began, process = time.monotonic(), WARM.Process(target=exec, args=(SESSION, given))
        process.start()
        process.join()
        out, errors = (file.read_text().splitlines() for file in log)
        print(*out, *errors, sep="\n")  # noqa: T201 - pytest shows it if the test fails
        return pytest.RunResult(process.exitcode, out, errors, time.monotonic() - began)

    @property
    def latest(self):
        """The folder of the newest run."""
        return self.folder / "reports" / "latest"

    def record(self):
        """The newest run's record."""
        return json.loads((self.latest / "run.json").read_text())

    @staticmethod
    def measured(folder):
        """A run's record; key, outcome and trajectory of each case; and the case records, both by case id.

        Fields that depend on which process ran the control are set to None.
        """
        run = json.loads((folder / "run.json").read_text())
        records = {line["case_id"]: json.loads((folder / line["record"]).read_text()) for line in run["cases"]}
        for record in records.values():
            for checkpoint in record["evidence"]["trajectory"]["checkpoints"]:
                checkpoint.update(dict.fromkeys(LEAK_OF_CONTROL))
        return (
            run,
            {case: (r["key"], r["verdict"]["outcome"], r["evidence"]["trajectory"]) for case, r in records.items()},
            records,
        )

    def cases(self):
        """The newest run's case records, by case id."""
        found = [json.loads(path.read_text()) for path in self.latest.glob("cases/*/record.json")]
        return {record["case_id"]: record for record in found}


@pytest.fixture(scope="session", autouse=True)
def _warm():
    WARM.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()  # before a test changes the environment


@pytest.fixture
def workspace(pytester, monkeypatch, shared_store):
    """A folder with a copy of the biochem suite and the session's store."""
    return Workspace(pytester, monkeypatch, shared_store)


@pytest.fixture
def fresh_store(tmp_path):
    """An empty store."""
    folder = tmp_path / "fresh-store"
    folder.mkdir()
    return folder
