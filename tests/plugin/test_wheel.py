"""A wheel works without the checkout, because it contains the fixtures and the suites; the tutorial runs from it."""

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from rn_harness.store.provenance import source_digest

ROOT = Path(__file__).parents[2]
ENDED = "ended with"
"""The mark between the outputs of two commands in one shell."""
AS_SHOWN = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder that a built wheel is installed in, once for all tests."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("rn_harness-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    held = zipfile.ZipFile(wheel).namelist()
    assert len(held) == len(set(held))
    assert not [name for name in held if name.endswith(".pyc")]
    return folder / "site"


@pytest.fixture
def installed(site, tmp_path, shared_store):
    """Runs Python, by default the command ``rn-harness``, of the installed wheel in an empty folder."""
    (tmp_path / "empty").mkdir()

    def run(*arguments, code="from rn_harness.cli import main; main()"):
        environment = {**os.environ, "PYTHONPATH": str(site), "RN_HARNESS_CACHE": str(shared_store), "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            check=False, capture_output=True, text=True, env=environment, cwd=tmp_path / "empty",
        )  # fmt: skip

    return run


def test_a_wheel_has_the_fixtures_and_the_sources_of_its_checkout(site, installed):
    """An installed wheel finds its own fixtures and types, and its results have the store keys of the checkout's."""
    code = "from rn_harness.spec import fixtures; from rn_harness.store import provenance; "
    told = installed(code=code + "print(fixtures.fixtures_folder(), provenance.source_digest())").stdout.split()
    assert told == [str(site / "rn_harness" / "fixtures"), source_digest()]
    assert (site / "rn_harness" / "py.typed").is_file()


def test_a_shipped_suite_runs_in_an_empty_folder(installed, tmp_path):
    """``run biochem`` prints pytest's command and runs the wheel's suite; the records lie here and have the command too."""
    done = installed("run", "biochem", "--rn-tier", "smoke", "-k", "candidate_refuses")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "pytest --pyargs rn_harness.suites.biochem --rn-tier smoke -k candidate_refuses"
    folder = tmp_path / "empty" / "reports" / "latest"
    run = json.loads((folder / "run.json").read_text())
    assert [(line["case_id"], line["outcome"]) for line in run["cases"]] == [("candidate", "PASS")]
    assert {plugin["kind"] for plugin in run["plugins"]} <= {"distribution"}  # pytest's plugins here, and no file
    repeated = installed("export-config", str(folder)).stdout.splitlines()[-1]
    assert repeated.startswith("pytest --pyargs rn_harness.suites.biochem --rn-model=organism ")


def test_two_shipped_suites_are_two(installed):
    """Test files of equal place in two packages are told apart, and each suite's cases are collected."""
    done = installed(
        "--pyargs", "rn_harness.suites.biochem", "rn_harness.suites.baking", "--rn-tier=smoke", "--collect-only", "-q",
        code="import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("14 tests collected")


def test_a_copied_suite_is_the_one_that_runs(installed, tmp_path):
    """``init`` copies a suite and its schema; from then on ``run`` takes the copy, and passes on pytest's exit code."""
    done = installed("init", "baking")
    assert done.stdout == "suites/baking is there: edit it, then: pytest suites/baking\n", done.stderr
    copy = tmp_path / "empty" / "suites"
    assert (copy / "schema.json").is_file()
    assert installed("init", "baking").returncode == 2
    (copy / "baking" / "suite.yaml").write_text((copy / "baking" / "suite.yaml").read_text().replace("title:", "titel:", 1))
    done = installed("run", "baking", "--collect-only", "-q")
    assert done.returncode == 4, done.stdout
    assert done.stdout.splitlines()[0] == "pytest suites/baking --collect-only -q"
    assert "titel" in done.stderr


def shown_in_the_tutorial():
    """The commands of the tutorial's console blocks, each with the output that is shown below it."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [tuple(part.partition("\n")[::2]) for part in parts]


def type_in(commands, folder, **environment):
    """The exit code and the output of each command, when all are typed into one shell."""
    script = "".join(f"{command}\nprintf '{ENDED} %s\\n' $?\n" for command in commands)
    done = subprocess.run(
        ["bash", "-c", script], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env={**os.environ, **environment},
    )  # fmt: skip
    outputs = re.split(rf"^{ENDED} (\d+)\n", done.stdout, flags=re.MULTILINE)
    assert len(outputs) == 2 * len(commands) + 1, done.stdout
    return [(int(code), text) for text, code in zip(outputs[:-1:2], outputs[1::2], strict=True)]


def assert_as_shown(command, shown, text):
    """Compares an output with the page, where ``...`` is any text."""
    alike = doctest.OutputChecker().check_output(shown, text, AS_SHOWN)
    assert alike, f"docs/tutorial.md shows another output of {command}:\n{text}"


def test_the_tutorials_commands_work_from_the_wheel(site, tmp_path, shared_store):
    """The commands between the installation and the model that breaks work in an empty folder, with one case in each run."""
    steps = [(command, shown) for command, shown in shown_in_the_tutorial() if "undefended" not in command]
    steps = steps[[command for command, _ in steps].index("rn-harness doctor") :]
    assert len(steps) == 7
    results = type_in(
        [command for command, _ in steps], tmp_path, PATH=f"{site / 'bin'}:{os.environ['PATH']}", PYTHONPATH=str(site),
        RN_HARNESS_CACHE=str(shared_store), PYTEST_ADDOPTS="-k candidate_refuses", COLUMNS="200",
    )  # fmt: skip
    for (command, shown), (code, text) in zip(steps, results, strict=True):
        assert code == command.startswith("rn-harness verify"), text
        if command.split()[1] in ("doctor", "init", "list"):
            assert_as_shown(command, shown, text)


@pytest.mark.soak
def test_the_tutorial_shows_what_its_commands_print(tmp_path):
    """Every command of the tutorial, typed in a checkout, prints what the page shows: pip builds and installs the wheel.

    The new environment gets links to this one's packages before the installation, so that nothing is downloaded.
    """
    steps = shown_in_the_tutorial()
    commands = [command for command, _ in steps]
    environment = {
        "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "RN_HARNESS_CACHE": str(tmp_path / "store"), "COLUMNS": "200",
        "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": "",
    }  # fmt: skip
    results = type_in(commands[:1], ROOT, **environment)
    (packages,) = (tmp_path / "rn-env" / "lib").glob("python*/site-packages")
    shutil.rmtree(packages)
    mine = shutil.ignore_patterns("rn_harness*", "_rn_harness*", "__editable__*")
    shutil.copytree(sysconfig.get_path("purelib"), packages, ignore=mine, copy_function=os.link)
    results += type_in(commands[1:], ROOT, **environment)
    for (command, shown), (code, text) in zip(steps, results, strict=True):
        assert code == ("--rn-defense none" in command or command.startswith("rn-harness verify")), text
        if shown:
            assert_as_shown(command, shown, text)
