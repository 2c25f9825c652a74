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

from rn_harness.cli.shared import read_run
from rn_harness.report.pages import write_views
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
        require_run()


EACH = """
import json, sys
from pathlib import Path
from rn_harness.cli import main
from rn_harness.cli.shared import read_run
from rn_harness.report.figures import trajectory_svg

run, commands = json.loads(sys.argv[1])
for words in commands:
    sys.argv[1:] = words
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("ended:", words[0], code, "with matplotlib" if "matplotlib" in sys.modules else "", flush=True)
attack = next(r for r in read_run(Path(run), complete=True).records.values() if r.evidence.kind == "attack")
print("drawn:", trajectory_svg("x", attack)[:4], "matplotlib" in sys.modules)
"""


def test_the_core_reads_and_verifies_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the core alone, help, version, lists, show, report, compare and verify work; doctor and training name their extra.

    A report of stored figures does not load matplotlib, which takes a second, and is identical; the core can draw figures too.
    """
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path / "store"))
    made = finished_run(tmp_path)
    run, evidence = str(made.folder), read_run(made.folder, complete=True)
    (page, _) = write_views(made.folder, evidence.run, evidence.records.values())
    drawn = page.read_bytes()
    page.unlink()
    commands = [
        ["--help"], ["--version"], ["list", "profiles"], ["show", run], ["report", run], ["compare", run, run],
        ["verify", run, "--weights", str(made.weights)], ["doctor"],
    ]  # fmt: skip
    trains = ["utility", "--out", str(tmp_path / "out.json"), "--tasks", "mmlu"]
    done = without_extras(tmp_path, "-c", EACH, json.dumps([run, [*commands, trains]]))
    ended = [line.rstrip() for line in done.stdout.splitlines() if line.startswith("ended: ")]
    assert "ended: report 0" in ended, done.stdout + done.stderr
    codes = {"doctor": 1, "utility": 2}
    assert [line.removesuffix(" with matplotlib") for line in ended] == [
        f"ended: {command[0]} {codes.get(command[0], 0)}" for command in [*commands, trains]
    ]
    assert "no    model: looking at the model needs the extra run, got no module transformers; pip install" in done.stdout
    assert "verified (not signed" in done.stdout
    assert page.read_bytes() == drawn
    assert "drawn: <svg True" in done.stdout
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


TWICE = """
import sys, pytest

run = ["suites/biochem", "-q", "-p", "no:cacheprovider"]
print("collected:", int(pytest.main([*run, "--collect-only"])))
sys.exit(pytest.main(run))
"""


def test_the_core_collects_a_suite_and_refuses_to_run_it(tmp_path: Path) -> None:
    """Collection needs no torch; a run ends with a usage error that names the extra."""
    done = without_extras(tmp_path, "-c", TWICE)
    assert "collected: 0" in done.stdout, done.stderr
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "running a suite needs the extra run" in done.stderr
    assert "Traceback" not in done.stderr
