"""The examples for CI systems: their form by the systems' own schemas, and each of their shell steps by a dry run."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from rn_harness import plugin
from rn_harness.cli import app

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"
OURS = ("rn-harness", "pytest")
THEIRS = ("pip", "hf", "umask", "printf", "rm")


def steps(name: str) -> list[str]:
    """The shell steps of an example, in order."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    if name == "Jenkinsfile":
        return re.findall(r"^\s*sh '(.*)'$", text, flags=re.MULTILINE)
    document = yaml.safe_load(text)
    if name == "github.yml":
        return [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    jobs = [job for job in document.values() if isinstance(job, dict) and "script" in job]
    return [*document["default"]["before_script"], *(line for job in jobs for line in job["script"])]


def commands(name: str) -> Iterator[list[str]]:
    """The words of each command."""
    for step in steps(name):
        for line in step.splitlines():
            yield shlex.split(line.partition(" #")[0])


ALL = ("github.yml", "gitlab.yml", "Jenkinsfile")


@pytest.mark.parametrize(("name", "schema"), [("github.yml", "github-workflows"), ("gitlab.yml", "gitlab-ci")])
def test_an_example_is_what_its_system_takes(name: str, schema: str) -> None:
    """Valid against the schema that the system's makers publish, as check-jsonschema carries it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(EXAMPLES / name)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ALL)
def test_every_shell_step_is_shell(name: str) -> None:
    """bash reads each step, and runs nothing of it."""
    found = steps(name)
    assert len(found) >= 6
    for step in found:
        done = subprocess.run(["bash", "-n"], check=False, input=step, capture_output=True, text=True)
        assert done.returncode == 0, (step, done.stderr)


@pytest.mark.parametrize("name", ALL)
def test_every_command_of_ours_has_the_options_that_it_is_given(name: str) -> None:
    """A command or an option that was renamed would break a pipeline on the day of a release."""
    known: Any = get_command(app)
    tree = ast.parse(Path(plugin.__file__).read_text(encoding="utf-8"))
    of_pytest = {
        str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant) and str(node.value).startswith("--")
    }
    for program, *words in commands(name):
        assert program in (*OURS, *THEIRS)
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if program == "rn-harness":
            of_command = {flag for parameter in known.commands[words[0]].params for flag in parameter.opts}
            assert options <= of_command, words
        elif program == "pytest":
            assert options <= of_pytest, words


@pytest.mark.parametrize("name", ALL)
def test_an_example_gates_in_the_right_order(name: str) -> None:
    """Evaluate with the gate, sign, verify, and only then publish; the job that evaluates signs nothing."""
    text = [" ".join(words) for words in commands(name)]
    order = [next(i for i, line in enumerate(text) if part in line) for part in ("--rn-gate", " sign ", " verify ", "hf upload")]
    assert order == sorted(order)


def test_the_container_file_is_linted() -> None:
    """hadolint finds nothing in it; it is not built here."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None
    done = subprocess.run([hadolint, str(EXAMPLES / "Containerfile")], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
