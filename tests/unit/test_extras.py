"""Extras: the core is light, and one error names the install command for any missing module."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rn_harness.spec.errors import MissingExtraError
from rn_harness.spec.extras import EXTRAS, RUN, require, require_run

from .finished_run import finished_run

ROOT = Path(__file__).parents[2]
BLOCKED = sorted(EXTRAS)
BLOCKER = f"""
import importlib.machinery

found = importlib.machinery.PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {BLOCKED!r} else found(name, path, target)

importlib.machinery.PathFinder.find_spec = classmethod(find_spec)
"""


def without_extras(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in an interpreter that cannot import any extra's module."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}",
        "RN_HARNESS_CACHE": str(folder / "store"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # pytest-xdist's plugin belongs to an extra
        "PYTEST_PLUGINS": "rn_harness.plugin.hooks",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120
    )


def test_every_extra_is_declared() -> None:
    """Each extra that an error names exists in pyproject.toml and installs the module."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for module, extra in EXTRAS.items():
        packages = {re.split(r"[><=\[]", line)[0].replace("-", "_") for line in declared[extra]}
        assert packages & {module, {"xdist": "pytest_xdist"}.get(module, module)}, module


def test_the_core_brings_no_module_of_an_extra() -> None:
    """The core's dependencies and the extras' are disjoint, so that a job that only verifies installs no torch."""
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert {re.split(r"[><=\[]", line)[0].replace("-", "_") for line in core} & EXTRAS.keys() == set()


def test_a_missing_module_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the purpose, the module and the install command."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"a judge needs the extra openai, got no module openai; pip install .*\[op"):
        require("openai", "a judge")


@pytest.mark.parametrize("module", RUN)
def test_a_run_needs_all_of_its_modules(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any missing module of the training stack ends a run before it begins."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"got no module {module}; pip install .*\[run\]"):
        require_run("a run")


EACH = """
import json, sys
from rn_harness.cli import main

for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("ended:", words[0], code, flush=True)
"""


def test_the_core_reads_and_verifies_runs(tmp_path: Path) -> None:
    """With the core alone, help, version, lists, show, report, compare and verify work, and the doctor says what is missing."""
    made = finished_run(tmp_path)
    run = str(made.folder)
    commands = [
        ["--help"], ["--version"], ["list", "profiles"], ["show", run], ["report", run], ["compare", run, run],
        ["verify", run, "--weights", str(made.weights)], ["doctor"],
    ]  # fmt: skip
    done = without_extras(tmp_path, "-c", EACH, json.dumps(commands))
    ended = [line for line in done.stdout.splitlines() if line.startswith("ended: ")]
    assert ended == [f"ended: {command[0]} {int(command[0] == 'doctor')}" for command in commands], done.stdout + done.stderr
    assert "no    model: looking at the model needs the extra run, got no module transformers; pip install" in done.stdout
    assert "verified (not signed" in done.stdout


def test_the_core_collects_a_suite_and_refuses_to_run_it(tmp_path: Path) -> None:
    """Collection needs no torch; a run ends with a usage error that names the extra."""
    collected = without_extras(tmp_path, "-m", "pytest", "suites/biochem", "--collect-only", "-q", "-p", "no:cacheprovider")
    assert collected.returncode == 0, collected.stderr
    run = without_extras(tmp_path, "-m", "pytest", "suites/biochem", "-q", "-p", "no:cacheprovider")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "running a suite needs the extra run" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_command_that_trains_names_the_extra(tmp_path: Path) -> None:
    """A command that trains ends with the install command and without a traceback."""
    code = "from rn_harness.cli import main; main()"
    done = without_extras(tmp_path, "-c", code, "utility", "--out", str(tmp_path / "out.json"), "--tasks", "mmlu")
    assert done.returncode == 2
    assert "pip install" in done.stderr
