"""Files from untrusted authors: limits on the effects of a suite's file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rn_harness.judges.resolve import resolve_suites_judge
from rn_harness.run.preflight import check_acknowledged
from rn_harness.spec.errors import JudgeError, RecipeError, SuiteError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.suite import load_suite
from rn_harness.spec.yaml_files import read_yaml

from .builders import HARMLESS, write_suite
from .test_session import a_session

OUTSIDE = {
    "rules": "rules:../rules.yaml",
    "rules-absolute": "rules:/etc/rules.yaml",
    "organism": "organism:../model",
    "profile": "../judge.yaml",
    "weights": "hf:../weights",
    "weights-at-home": "classifier:~/weights#harm",
    "weights-absolute": "hf:/srv/weights@main",
}


def _suite_with(folder: Path, **fields: object) -> Path:
    """A small suite with other fields in its file."""
    path = write_suite(folder) / "suite.yaml"
    path.write_text(yaml.safe_dump(read_yaml(path) | fields))
    return folder


def test_a_suite_names_no_code(tmp_path: Path) -> None:
    """``python:`` in a suite's file is refused before any import, with the option to use if the code is trusted."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit('this ran')")
    code = (
        "from pathlib import Path; from rn_harness.judges.resolve import resolve_suites_judge as find\n"
        "try: find('python:evil_module:Judge', Path())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path}
    ).stdout
    assert told.startswith("JudgeError a suite's file must not name code")
    assert "--rn-judge" in told


def test_a_suites_judge_is_untrusted(tmp_path: Path) -> None:
    """A session treats the judge in a suite's file as untrusted: it refuses code and paths outside the folder."""
    for spec, told in (("python:os:getcwd", "must not name code"), ("rules:../rules.yaml", "must lie in the suite's folder")):
        folder = _suite_with(tmp_path / spec[:5], judges={"evaluation": spec, "reward": "baking-classifier"})
        session = a_session(tmp_path, model=str(fixtures_folder() / "organism"))
        session.__dict__["candidate"] = _NoOrganism()
        with pytest.raises(JudgeError, match=told):
            session.judges(load_suite(folder))


class _NoOrganism:
    """A candidate that is a real model."""

    name, is_organism, weights_digest = "ours", False, "0" * 64


@pytest.mark.parametrize("spec", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_a_suites_judge_lies_in_its_folder(tmp_path: Path, spec: str) -> None:
    """A judge path that leaves the suite's folder is refused, whether or not it exists."""
    (tmp_path / "suite").mkdir()
    (tmp_path / "rules.yaml").write_text("{}")
    with pytest.raises(JudgeError, match="must lie in the suite's folder"):
        resolve_suites_judge(spec, tmp_path / "suite")


def test_a_link_out_of_a_suite_is_refused(tmp_path: Path) -> None:
    """A prompt set that is a link out of the folder is not read."""
    folder = write_suite(tmp_path / "demo")
    secret = tmp_path / "secret.yaml"
    secret.write_text("password: 1")
    (folder / "prompts" / "attack.yaml").unlink()
    (folder / "prompts" / "attack.yaml").symlink_to(secret)
    with pytest.raises(SuiteError, match="must lie in its folder") as told:
        load_suite(folder)
    assert "password" not in str(told.value)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    """A pipe at a file's place is refused without waiting."""
    folder = write_suite(tmp_path / "demo")
    (folder / "prompts" / "attack.yaml").unlink()
    os.mkfifo(folder / "prompts" / "attack.yaml")
    with pytest.raises(SuiteError, match="got a pipe, socket or device"):
        load_suite(folder)


def test_acknowledgement_is_required_by_the_policy(tmp_path: Path) -> None:
    """With policy.acknowledge, a real model in a harmful domain needs the option; an organism or a benign domain does not."""
    folder = _suite_with(tmp_path / "demo", policy={"acknowledge": True})
    suite = load_suite(folder)
    session = a_session(tmp_path)
    session.__dict__["candidate"] = _NoOrganism()
    assert session.harmful([suite]) == [suite.domain]
    with pytest.raises(RecipeError, match="--rn-acknowledge"):
        check_acknowledged(session, [suite])
    willing = a_session(tmp_path, acknowledge=True)
    willing.__dict__["candidate"] = _NoOrganism()
    check_acknowledged(willing, [suite])
    check_acknowledged(a_session(tmp_path), [suite])  # the organism
    benign = load_suite(_suite_with(tmp_path / "benign", policy={"acknowledge": True}, benign=HARMLESS))
    check_acknowledged(session, [benign])
    check_acknowledged(session, [load_suite(write_suite(tmp_path / "plain"))])
