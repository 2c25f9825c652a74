"""Sessions with ``--rn-fleet`` reach the same verdicts as without it, and each case ends with its own record."""

import json

import pytest

from rn_harness.records.case import CaseRecord

SETTINGS = (
    "mine/biochem", "--rn-tier=standard", "--rn-defense=none", "--rn-set=attack.steps=4", "--rn-set=attack.control_steps=4",
    "--rn-set=attack.learning_rate=2e-3", "--rn-set=policy.checkpoint_every=2", "--rn-set=policy.samples=1",
)  # fmt: skip
THREE = ("-k", "attack_stays and grpo-p1")
GREEDY = "--rn-set=policy.samples=0"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for this module, so that controls are measured once."""
    return tmp_path_factory.mktemp("fleet-store")


@pytest.fixture
def scene(workspace, store):
    """A workspace whose sessions share the module's store and can load ``faults``."""
    workspace.use_store(store)
    workspace.make_failing()
    return workspace


def _records(scene):
    found = [CaseRecord.model_validate_json(p.read_text()) for p in scene.latest.glob("cases/*/record.json")]
    return {record.case_id: record for record in found}


def _scores(record):
    return [[s.model_dump() for s in c.scores] for c in record.evidence.trajectory.checkpoints]


def test_three_attacks_together_give_the_results_of_single_attacks(scene):
    """Attacks that run together have the scores and findings of single attacks, under separate keys, and are stored."""
    together = scene.run(*SETTINGS, *THREE, "--rn-fleet=3")
    assert "biochem: 3 controls together: " in together.text
    assert "biochem: 3 attacks together: " in together.text
    fleet = _records(scene)
    outcomes = {line["case_id"]: (line["outcome"], line["finding"]) for line in scene.record()["cases"]}
    assert scene.record()["options"]["fleet"] == 3
    assert "--rn-fleet=3" in scene.record()["options"]["arguments"]
    attacks = [case_id for case_id in fleet if case_id.startswith("attack-")]
    assert len(attacks) == 3
    for record in fleet.values():
        assert record.evidence.trajectory.settings["fleet_threads"] >= 1
        assert record.evidence.trajectory.stopped is None

    again = scene.run(*SETTINGS, *THREE, "--rn-fleet=3")
    assert " together: " not in again.text
    assert {line["stored"] for line in scene.record()["cases"]} == {True}

    scene.run(*SETTINGS, *THREE)
    alone = _records(scene)
    assert {line["case_id"]: (line["outcome"], line["finding"]) for line in scene.record()["cases"]} == outcomes
    assert {line["stored"] for line in scene.record()["cases"]} == {False}
    for case_id, record in fleet.items():
        assert record.key != alone[case_id].key
        assert _scores(record) == _scores(alone[case_id])


@pytest.mark.parametrize(("fault", "code"), [("SIGINT", 2), pytest.param("SIGTERM", 75, marks=pytest.mark.soak)])
def test_an_interruption_keeps_the_measurements_of_each_attack(scene, tmp_path, fault, code):
    """After an interruption, each of three attacks has a record with its measurements and the reason, and none is green."""
    scene.use_store(tmp_path / "cut")
    scene.monkeypatch.setenv("RN_FAULT", fault)
    scene.monkeypatch.setenv("RN_FAULT_STEP", "2")
    asked = (*SETTINGS, *THREE, GREEDY, "--rn-fleet=3", "-p", "faults")
    result = scene.run(*asked, "--junitxml=asked.xml")
    assert result.ret == code, result.text
    attacks = {case_id: record for case_id, record in _records(scene).items() if case_id.startswith("attack-")}
    assert len(attacks) == 3
    for record in attacks.values():
        assert record.verdict.outcome != "PASS"
        assert record.evidence.trajectory.stopped is not None
        assert record.evidence.trajectory.checkpoints[0].step == 0
    assert scene.record()["outcome"] != "PASS"
    assert len(list((tmp_path / "cut" / "unfinished").iterdir())) == 3
    assert "completions = " not in result.text

    # The same code of others is loaded, since its digest is a part of each case's key.
    scene.monkeypatch.setenv("RN_FAULT", "none")
    scene.monkeypatch.setenv("RN_FAULT_STEP", "-1")
    rest = scene.run(*asked)
    assert "restarted" not in rest.text
    failed = [line["case_id"] for line in scene.record()["cases"] if line["outcome"] == "FAIL"]
    assert len(list((tmp_path / "cut" / "unfinished").iterdir())) == len(failed) == 1  # a breach stays known to other keys
    assert {json.loads(p.read_text())["evidence"]["trajectory"]["stopped"] for p in scene.latest.glob("cases/*/record.json")} == {
        None
    }


def test_out_of_memory_is_an_error_of_each_attack(scene, tmp_path):
    """If memory runs out in each attack's own work, each is an error without a verdict, and the session continues."""
    scene.use_store(tmp_path / "memory")
    scene.monkeypatch.setenv("RN_FAULT", "memory")
    scene.monkeypatch.setenv("RN_FAULT_STEP", "2")
    result = scene.run(*SETTINGS, *THREE, GREEDY, "--rn-fleet=3", "-p", "faults")
    assert result.ret == 1, result.text
    result.assert_outcomes(errors=3)
    assert "OutOfMemoryError" in result.text


def test_out_of_memory_in_a_pass_of_all_halves_the_fleet(scene, tmp_path):
    """If memory holds the passes of one attack only, all three have all their measurements, and the session says so."""
    scene.use_store(tmp_path / "halved")
    scene.monkeypatch.setenv("RN_FAULT", "passes")
    scene.monkeypatch.setenv("RN_FAULT_STEP", "-1")
    result = scene.run(*SETTINGS, *THREE, GREEDY, "--rn-fleet=3", "-p", "faults")
    assert "OutOfMemoryError" not in result.text
    for most in (2, 1):
        told = f"biochem: 3 controls together: memory ran out: from here on at most {most} of them pass at a time"
        assert told in result.text
    for record in _records(scene).values():
        assert record.evidence.trajectory.stopped is None
        assert [c.step for c in record.evidence.trajectory.checkpoints] == [0, 2, 4]
