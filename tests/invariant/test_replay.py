"""``rn-harness verify --replay`` on real runs: honest ones are accepted, and consistently forged ones are refused."""

import functools
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rn_harness.cli import app
from rn_harness.models.identity import digest_folder
from rn_harness.release.verification import verify
from rn_harness.run.replay import RunReplay

from .forged_runs import FORGERIES, Lab, short_suite

SOAK = pytest.mark.soak
IN_SHORT = ("breach-lowered", "attack-never-run")
"""Forgeries of the short run of these tests; all of them run with --soak."""
OTHER_ROUNDING = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
ELSEWHERE = """
from rn_harness.store import provenance
provenance._processor = lambda: "another processor"
from rn_harness.cli import main
main()
"""


@pytest.fixture(scope="module")
def forger(tmp_path_factory):
    """A lab whose adapters are one that changes nothing."""
    root = tmp_path_factory.mktemp("lab")
    made = Lab(root, short_suite(root / "biochem"), root / "store")
    made.adapter("null")
    return made


@pytest.fixture(scope="module")
def defended(forger, lab):
    """The same lab with an adapter that holds, and one that also wrecks harmless answers."""
    (forger.root / "strong").symlink_to(lab.defense[0])
    forger.adapter("wrecked", lambda name, tensor: tensor * 3 if "lora_B" in name else tensor, of="strong")
    whole = lab.defended()
    whole.save(forger.root / "whole")
    return forger


@pytest.fixture(scope="module")
def honest(forger):
    """An honest run of a model without a defense: the attack breaks it, and the run is FAIL."""
    return forger.run("honest", forger.root / "null")


def asked(forger, handed, *more):
    """The command of a release job."""
    given = ("verify", handed.folder, "--weights", handed.weights, "--suite", forger.suite, "--model", "organism")
    return [*map(str, (*given, "--json", *more))]


def replayed(forger, handed, *more):
    """The document of a verification with a replay, and the codes of its refusals beyond those without one."""
    before = {r.code for r in verify(handed.folder, weights=handed.weights, suites=[forger.suite]).refusals}
    done = CliRunner().invoke(app, asked(forger, handed, *more))
    document = json.loads(done.stdout)
    assert done.exit_code == (1 if document["refusals"] else 0), done.output
    return document, {r["code"] for r in document["refusals"]} - before


@pytest.fixture
def measured_once(monkeypatch, request):
    """Replays of one session of these tests measure the same weights once, unless it is a long one."""
    kept = request.config.stash.setdefault(KEPT, {})
    real = RunReplay._session

    def session(self, domain, *rest):
        return kept.setdefault(digest_folder(self.weights / domain), real(self, domain, *rest))

    if not request.config.getoption("--soak"):
        monkeypatch.setattr(RunReplay, "_session", session)


KEPT = pytest.StashKey()


def test_an_honest_run_is_accepted(forger, honest, measured_once, monkeypatch, tmp_path):
    """A replay of all cases of an honest run, FAIL as it is, finds the same bits, and nothing of any store is used."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path / "cache"))
    document, codes = replayed(forger, honest, "--replay", "9")
    assert codes == set()
    assert document["outcome"] == "FAIL"
    cases = {case["name"]: case for case in document["replay"]}
    assert [name.split()[1].split("-")[0] for name in sorted(cases)] == ["attack", "candidate", "defense", "helpfulness"]
    for case in cases.values():
        assert (case["refusal"], case["inexact"]) == (None, [])
        assert all(recorded == again for *_, recorded, again in case["digests"])
    attack = next(case for name, case in cases.items() if "attack" in name)
    assert [(run, step) for run, step, *_ in attack["digests"]] == [
        (run, step) for run in ("checkpoints.jsonl", "control") for step in (0, 3, 6)
    ]
    assert not (tmp_path / "cache").exists()


def is_long(name):
    return () if name in IN_SHORT else (SOAK,)


@pytest.mark.parametrize("name", [pytest.param(name, marks=is_long(name)) for name in FORGERIES])
def test_a_forged_run_is_refused(forger, honest, measured_once, request, name):
    """A run that was forged consistently passes all other checks, and a replay of its cases refuses it."""
    if name not in IN_SHORT:
        request.getfixturevalue("defended")
    forged = FORGERIES[name].make(forger, name)
    assert verify(forged.folder, weights=forged.weights, suites=[forger.suite]).can_be_replayed
    document, codes = replayed(forger, forged, "--replay", "9")
    assert codes == {"replay_differs"}
    if name in IN_SHORT:
        assert document["outcome"] == "PASS"


@SOAK
@pytest.mark.parametrize("number", range(10))
def test_an_honest_run_is_accepted_whatever_is_chosen(defended, honest, number):
    """Honest runs of weights that break, an adapter that holds and a whole model that holds are accepted, ten times in ten."""
    handed = (honest, held(defended, "strong"), held(defended, "whole"))[number % 3]
    document, codes = replayed(defended, handed, "--replay", "2")
    assert codes == set()
    assert len(document["replay"]) == 2
    assert document["outcome"] == ("PASS" if number % 3 else "FAIL")


@functools.cache
def held(forger, weights):
    """An honest run of weights that hold: an adapter, or the whole model with it."""
    return forger.run(f"{weights}-run", forger.root / weights)


@SOAK
@pytest.mark.parametrize("name", ["honest", "held", "breach-lowered"])
def test_another_machine_compares_within_the_tolerance(defended, honest, tmp_path, name):
    """On a processor that rounds otherwise an honest run is accepted and a forged one refused, and bits do differ there."""
    handed = {"honest": lambda: honest, "held": lambda: held(defended, "strong")}.get(
        name, lambda: FORGERIES[name].make(defended, f"{name}-elsewhere")
    )()
    command = [sys.executable, "-c", ELSEWHERE, *asked(defended, handed, "--replay", "9")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **OTHER_ROUNDING})
    document = json.loads(done.stdout)
    assert any(recorded != again for case in document["replay"] for *_, recorded, again in case["digests"])
    assert all("another processor" in case["inexact"][0] for case in document["replay"])
    refused = {r["code"] for r in document["refusals"] if r["code"].startswith("replay")}
    assert refused == ({"replay_differs"} if name == "breach-lowered" else set())
