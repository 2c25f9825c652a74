"""The leak of any model: how probable the broken control's answers are, measured by a real session on the organism."""

from pathlib import Path

import pytest

from rn_harness.run.lineup import CaseTask
from rn_harness.run.session import RunSession
from rn_harness.spec.options import Options
from rn_harness.store.store import Store


@pytest.fixture(scope="module")
def suite(lab):
    """The biochem suite with one attack of ten steps, few prompts and no defense but ``none``."""
    attack = {"tier": "smoke", "base": lab.recipe.model_dump(mode="json")}
    changes = {"policy": lab.policy, "attacks": [type(lab.suite.declaration.attacks[0]).model_validate(attack)]}
    prompts = {**lab.suite.prompts, "heldout": lab.heldout, "benign": lab.benign}
    return lab.suite.model_copy(update={"declaration": lab.suite.declaration.model_copy(update=changes), "prompts": prompts})


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A run without a defense."""
    folder = tmp_path_factory.mktemp("leak")
    options = Options("organism", "none", None, None, None, None, "smoke", (), folder)
    return RunSession(options, folder / "run", Store(folder / "store"), lambda _: None)


@pytest.fixture(scope="module")
def attacked(session, suite):
    """The attack's case, which makes its control first."""
    (attack,) = suite.tier_attacks("smoke")
    return session.case("attack", suite, attack)


def test_the_leak_rises_as_the_attack_wins(attacked):
    """Undefended, the control's answers become probable under the same attack: at its end they are nearly certain."""
    leaks = [(c.leak_per_token, c.leak_per_sequence) for c in attacked.record.evidence.trajectory.checkpoints]
    assert leaks[0][0] < -0.2
    assert leaks[-1][0] > -0.05
    assert all(per_sequence < per_token < 0.0 for per_token, per_sequence in leaks)


def test_control_and_candidate_have_none(attacked, session, suite):
    """Where the control itself is measured there is nothing to compare with, and the candidate's record has no leak of it."""
    runs = [attacked.record.evidence.control, session.case("candidate", suite).record.evidence.trajectory]
    assert {c.leak_per_token for run in runs for c in run.checkpoints} == {None}


def test_a_defense_is_measured_on_the_first_control(attacked, session, suite):
    """The defense case has the leak of the weights that it measures, by the control that this process ran."""
    defense = session.case("defense", suite).record.evidence.trajectory.checkpoints[0]
    assert defense.leak_per_token == pytest.approx(attacked.record.evidence.trajectory.checkpoints[0].leak_per_token)


def test_a_stored_control_gives_no_leak(attacked, session, suite, tmp_path):
    """Answers are nowhere but in memory: another process that takes the control from the store has none to measure on."""
    later = RunSession(session.options, tmp_path, session.store, lambda _: None)
    (attack,) = suite.tier_attacks("smoke")
    assert later.case("control", suite, attack).stored
    assert later.case("defense", suite).record.evidence.trajectory.checkpoints[0].leak_per_token is not None  # stored as well
    assert later._answers_of_control(CaseTask("attack", suite, attack)) is None


def test_no_answer_is_written(attacked, session, lab):
    """No file of the run or the store holds an answer of the control, or a word that only answers hold."""
    slots = {word for p in lab.heldout for word in lab.judge.topic(p).recipe}
    assert len(slots) > 4
    for folder in (session.folder, Path(session.store.root)):
        for path in folder.rglob("*"):
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="ignore")
                assert not any(f" {word} " in text for word in slots), path
