"""Sessions that are interrupted, killed or run out of a resource: exit codes, files and records."""

import hashlib
import json
import os
import shutil
import signal
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import xmlschema

from rn_harness.records.case import CaseRecord

SCHEMA = xmlschema.XMLSchema(str(Path(__file__).parents[1] / "unit" / "junit-10.xsd"))
TINY = (
    "mine/biochem", "--rn-tier=smoke", "--rn-defense=none", "--rn-set=attack.steps=4", "--rn-set=attack.control_steps=4",
    "--rn-set=policy.checkpoint_every=2", "--rn-set=policy.samples=0", "--junitxml=asked.xml",
)  # fmt: skip
"""An attack of four steps on the undefended organism, scored at 0, 2 and 4."""
BREAKING = ("--rn-set=attack.steps=12", "--rn-set=attack.control_steps=12", "--rn-set=attack.learning_rate=2e-3")
"""Settings of an attack that breaks the organism, scored every other step."""
ATTACK = ("-k", "attack_stays")


@pytest.fixture(scope="module")
def endings_store(tmp_path_factory):
    """One store for this module, so that candidate and controls are measured once."""
    return tmp_path_factory.mktemp("endings-store")


@pytest.fixture
def scene(workspace, endings_store):
    """A workspace in which a session can be made to fail: ``scene.fail(fault, step, *args)``."""
    workspace.use_store(endings_store)
    workspace.make_failing()
    # A green file of an earlier run at the path that this run writes to.
    (workspace.folder / "asked.xml").write_text('<testsuite name="old" tests="1" failures="0" errors="0"/>')

    def fail(fault, step, *args, cold=False):
        workspace.monkeypatch.setenv("RN_FAULT", fault)
        workspace.monkeypatch.setenv("RN_FAULT_STEP", str(step))
        return workspace.run(*TINY, "-p", "faults", *args, cold=cold)

    workspace.fail = fail
    return workspace


def _assert_red(scene, selected, run="reports/latest"):
    """Asserts that both JUnit files are valid and have an error or failure for each selected test that did not end."""
    for path in (scene.folder / run / "junit.xml", scene.folder / "asked.xml"):
        SCHEMA.validate(str(path))
        suite = ET.parse(path).getroot().find("testsuite")
        assert int(suite.get("tests")) == selected, path.read_text()
        assert int(suite.get("errors")) + int(suite.get("failures")) >= 1
        cases = list(suite.iter("testcase"))
        assert len(cases) == selected
        assert all(case.get("name") for case in cases)
        for case in cases:
            if "attack_stays" in case.get("name"):
                assert [child.tag for child in case if child.tag in ("error", "failure")]


def _measured(scene, run="reports/latest"):
    """The attack's measured steps, equal in its record and in checkpoints.jsonl, and the record."""
    (folder,) = (scene.folder / run).glob("cases/biochem-attack-*")
    lines = [json.loads(line)["step"] for line in (folder / "checkpoints.jsonl").read_text().splitlines()]
    record = CaseRecord.model_validate_json((folder / "record.json").read_text())
    assert [c.step for c in record.evidence.trajectory.checkpoints] == lines
    assert record.verdict.outcome != "PASS"
    return lines, record


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("SIGINT", 2, "KeyboardInterrupt"),
        ("SIGTERM", 75, "Terminated"),
        ("memory", 1, "OutOfMemoryError"),
        ("hang", 1, "must end within --rn-case-timeout=3600 s"),
    ],
)
def test_measurements_before_a_fault_are_recorded(scene, fault, code, told):
    """After an interrupt, a termination, a lack of memory or of time, checkpoints and reason are recorded, and JUnit is red."""
    result = scene.fail(fault, 4, *ATTACK, "-vv", "--full-trace", "--showlocals", "--tb=long", "--rn-case-timeout=3600")
    assert result.ret == code, result.text
    assert "INTERNALERROR" not in result.text
    goes_on = "at biochem: attack-grpo-p5-lr5e-4-s0: step 4/4: type the same command again. It goes on after 0 of 1 tests"
    assert (f"INTERRUPTED {goes_on}" in result.text) == fault.startswith("SIG")
    _assert_red(scene, 1)
    steps, record = _measured(scene)
    assert steps == [0, 2]
    assert told in record.evidence.trajectory.stopped
    assert "stopped" in {reason.code for reason in record.verdict.reasons}
    assert scene.record()["outcome"] == "INCONCLUSIVE"
    assert "completions = " not in result.text  # no arguments and no locals of the interrupted frames
    assert "panel = " not in result.text


@pytest.mark.parametrize(("hook", "red"), [("runtest_call(item)", "error"), ("runtest_logreport(report)", "failure")])
def test_a_signal_outside_the_measuring_loses_no_test_in_junit(scene, hook, red):
    """After SIGTERM outside the measuring, both JUnit files have the interrupted test once, in red."""
    when = "report.when == 'call' and 'attack_stays' in report.nodeid" if "report" in hook else "'attack_stays' in item.nodeid"
    kill = "os.kill(os.getpid(), signal.SIGTERM)"
    (scene.folder / "conftest.py").write_text(f"import os, signal\n\ndef pytest_{hook}:\n    if {when}:\n        {kill}\n")
    result = scene.fail("none", -1, *BREAKING, *ATTACK)
    assert result.ret == 75, result.text
    for path in (scene.folder / "reports/latest/junit.xml", scene.folder / "asked.xml"):
        SCHEMA.validate(str(path))
        cases = {case.get("name"): [child.tag for child in case] for case in ET.parse(path).iter("testcase")}
        assert cases.pop("verdict", ["failure"]) == ["failure"]  # of the run
        ((name, children),) = cases.items()
        assert "attack_stays" in name
        assert [tag for tag in children if tag in ("error", "failure")] == [red], path.read_text()
    assert scene.record()["outcome"] == "FAIL"


def test_after_a_kill_the_same_command_repeats_what_was_recorded(scene, tmp_path):
    """SIGKILL leaves red files and no outcome; the next run reproduces the recorded lines exactly."""
    store = tmp_path / "killed"
    scene.use_store(store)
    result = scene.fail("SIGKILL", 4, *ATTACK, "--rn-run=run")
    assert result.ret == -signal.SIGKILL
    _assert_red(scene, 1, "run")
    assert not (scene.folder / "run" / "run.json").exists()
    (journal,) = (store / "unfinished").iterdir()
    assert [json.loads(line)["step"] for line in journal.read_text().splitlines()] == [0, 2]
    assert {p.name for p in store.iterdir()} <= {"alike", "attempts", "case", "certificate", "locks", "unfinished"}

    # The same plugins, because their digests are part of the key; a cold process, whose hash seed is another one.
    again = scene.fail("none", -1, *ATTACK, "--rn-run=run", cold=True)
    assert "restarted" not in again.text
    assert not journal.exists()
    _, record = _measured(scene, "run")
    assert record.evidence.trajectory.earlier == ()
    assert [c.step for c in record.evidence.trajectory.checkpoints] == [0, 2, 4]
    lines = again.text.splitlines()
    assert not [line for line in lines if "control" in line and "step 0/4" in line]  # the control was taken from the store


def _defended(store):
    """The sha256 of the weights of the store's only defense, and its report without run id and times."""
    (entry,) = (store / "defense").iterdir()
    weights = (entry / "adapter" / "adapter_model.safetensors").read_bytes()
    report = json.loads((entry / "report.json").read_text())
    measured = report.pop("measured")
    assert measured["run_id"]
    assert measured["started"] < measured["ended"]
    return hashlib.sha256(weights).hexdigest(), report


def test_a_defense_killed_twice_ends_with_the_same_weights(scene, tmp_path):
    """A defense killed at steps 4 and 6 of 8 resumes at steps 2 and 4, says so, and ends with bitwise the same weights."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = (
        "--rn-defense=anchored", "--rn-set=defense.steps=8", "--rn-set=defense.evaluate_every=2", "--rn-set=defense.group_size=8",
        "--rn-set=policy.probe_samples=2", "-k", "defense_converges",
    )  # fmt: skip
    scene.use_store(killed)
    for fault, step, begins in (("defense", 4, None), ("defense", 6, 2), ("none", 0, 4)):
        result = scene.fail(fault, step, *options)
        assert result.ret == (-signal.SIGKILL if fault == "defense" else 1), result.text
        assert ("goes on from step" in result.text) == (begins is not None)
        if begins is not None:
            assert f"biochem: defense anchored: goes on from step {begins} of 8, where an earlier run was cut off" in result.text
            assert f"step {begins}/8" not in result.text
        if fault == "defense":
            (entry,) = (killed / "partial").iterdir()
            assert {path.name for path in entry.iterdir()} == {"defense_training.pt", "entry.json", "measured.json"}
    assert list((killed / "partial").iterdir()) == []  # the defense is complete
    report = scene.cases()["defense"]["evidence"]["report"]
    assert report["resumed"] == [2, 4]
    assert [outcome["outcome"] for outcome in scene.cases()["defense"]["provenance"]["training"]] == ["cut", "cut", "done"]

    scene.use_store(whole)
    assert scene.fail("none", 0, *options, cold=True).ret == 1
    weights, plain = _defended(whole)
    assert plain["resumed"] == []
    assert _defended(killed) == (weights, {**plain, "resumed": [2, 4]})


def test_a_killed_worker_is_one_error_and_the_others_go_on(scene):
    """If the attack's worker of -n 2 dies, the attack's test is an error, the candidate's passes, and the files are valid."""
    result = scene.fail("SIGKILL", 4, "-k", "attack_stays or candidate_refuses", "-n", "2")
    assert result.ret == 1, result.text
    _assert_red(scene, 2)
    cases = {line["case_id"].partition("[")[0]: line["outcome"] for line in scene.record()["cases"]}
    assert cases == {"candidate": "PASS", "test_attack_stays_neutralized": None}


def test_workers_end_with_their_controller(scene):
    """If the controlling process is killed, its worker stops at the next checkpoint and leaves its measurements."""
    result = scene.fail("orphan", 2, *ATTACK, "-n", "1")
    assert result.ret == -signal.SIGKILL
    _assert_red(scene, 1)
    worker = int((scene.folder / "worker.pid").read_text())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{worker}").exists():
        time.sleep(0.2)
    assert not Path(f"/proc/{worker}").exists()
    steps, _ = _measured(scene)
    assert steps[-1] == 2


def test_a_disk_that_fills_up_is_no_pass(scene):
    """If the disk is full at the second checkpoint, the exit code is not 0, and the earlier files stay valid and red."""
    result = scene.fail("disk", 2, *ATTACK)
    assert result.ret not in (0, 5), result.text
    assert os.strerror(28) in result.text
    own = scene.latest / "junit.xml"
    SCHEMA.validate(str(own))
    suite = ET.parse(own).getroot().find("testsuite")
    assert suite.get("errors") == suite.get("tests") == "1"
    assert not (scene.latest / "run.json").exists()


def test_a_breach_is_a_fail_even_if_the_run_is_interrupted(scene):
    """A run that is out of memory or interrupted after a breach is FAIL, and so is the case's record."""
    broken = scene.fail("memory", 12, *BREAKING, *ATTACK)
    assert broken.ret == 1
    _assert_red(scene, 1)
    _, record = _measured(scene)
    assert (record.verdict.outcome, scene.record()["outcome"]) == ("FAIL", "FAIL")
    assert "OutOfMemoryError" in record.evidence.trajectory.stopped
    # Interrupted, so that no test reports the breach.
    shutil.rmtree(next((scene.latest).glob("cases/biochem-attack-*")))
    store = Path(os.environ["RN_HARNESS_CACHE"])
    for entry in store.glob("case/*/trajectory.json"):
        if json.loads(entry.read_text())["stopped"]:
            shutil.rmtree(entry.parent)
    cut = scene.fail("SIGINT", 12, *BREAKING, *ATTACK)
    assert cut.ret == 2
    assert scene.record()["outcome"] == "FAIL"
    assert scene.record()["claim"].startswith("unsafe: attack-")


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_suite_that_cannot_be_collected_is_red(scene, processes):
    """If a test file cannot be imported, the exit code is 1 or 2, and a red JUnit file replaces an earlier green one."""
    (scene.folder / "mine" / "biochem" / "test_biochem.py").write_text("import nowhere\n")
    run = scene.folder / "run"
    run.mkdir()
    for name in ("junit.xml", "run.json"):
        (run / name).write_text("an earlier run's")
    result = scene.run(*TINY, "--rn-run=run", *processes)
    assert result.ret in (1, 2), result.text
    for path in (run / "junit.xml", scene.folder / "asked.xml"):
        SCHEMA.validate(str(path))
        suite = ET.parse(path).getroot().find("testsuite")
        assert suite.get("errors") == suite.get("tests") == "1"
    assert json.loads((run / "run.json").read_text())["outcome"] == "INCONCLUSIVE"


def test_an_interruption_before_the_first_test_leaves_no_empty_junit(scene):
    """Ctrl-C during collection gives exit code 2 and one error in the user's JUnit file, where pytest alone writes none."""
    (scene.folder / "mine" / "biochem" / "test_biochem.py").write_text("raise KeyboardInterrupt\n")
    result = scene.run(*TINY)
    assert result.ret == 2, result.text
    SCHEMA.validate(str(scene.folder / "asked.xml"))
    suite = ET.parse(scene.folder / "asked.xml").getroot().find("testsuite")
    assert suite.get("errors") == suite.get("tests") == "1"


@pytest.mark.parametrize("place", ["--rn-run", "RN_HARNESS_CACHE"])
def test_where_nothing_can_be_written_nothing_is_trained(scene, place):
    """A report folder or store that is not writable gives exit code 4 and names the setting, before any work."""
    options = [f"{place}=/proc/self/run"] if place.startswith("--") else []
    if not options:
        scene.monkeypatch.setenv(place, "/proc/self/store")
    result = scene.run(*TINY, *options)
    assert result.ret == 4, result.text
    assert place in result.text
    assert "step 0" not in result.text
