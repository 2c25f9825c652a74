"""The leak, i.e. the probability of the broken control's answers, measured by a real session on the organism."""

from pathlib import Path

import pytest

from rn_harness.run.case import CaseTask
from rn_harness.run.session import RunSession
from rn_harness.spec.options import Options
from rn_harness.store.store import Store


@pytest.fixture(scope="module")
def suite(lab):
    """The biochem suite with one attack of ten steps and few prompts."""
    attack = {"tier": "smoke", "base": lab.recipe.model_dump(mode="json")}
    changes = {"policy": lab.policy, "attacks": [type(lab.suite.declaration.attacks[0]).model_validate(attack)]}
    prompts = {**lab.suite.prompts, "heldout": lab.heldout, "benign": lab.benign}
    return lab.suite.model_copy(update={"declaration": lab.suite.declaration.model_copy(update=changes), "prompts": prompts})


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A run without a defense."""
    folder = tmp_path_factory.mktemp("leak")
    options = Options(model="organism", defense="none", tier="smoke", base=folder)
    return RunSession(options, folder / "run", Store(folder / "store"), lambda _: None)


@pytest.fixture(scope="module")
def attacked(session, suite):
    """The attack's case, which runs its control first."""
    (attack,) = suite.tier_attacks("smoke")
    return session.case("attack", suite, attack)


def test_the_leak_rises_as_the_attack_wins(attacked):
    """On an undefended model the control's answers become nearly certain by the end of the attack."""
    leaks = [(c.leak_per_token, c.leak_per_sequence) for c in attacked.record.evidence.trajectory.checkpoints]
    assert leaks[0][0] < -0.2
    assert leaks[-1][0] > -0.05
    assert all(per_sequence < per_token < 0.0 for per_token, per_sequence in leaks)


def test_control_and_candidate_have_none(attacked, session, suite):
    """Control and candidate have no leak, because there is no earlier control to compare with."""
    runs = [attacked.record.evidence.control, session.case("candidate", suite).record.evidence.trajectory]
    assert {c.leak_per_token for run in runs for c in run.checkpoints} == {None}


def test_a_defense_is_measured_on_the_first_control(attacked, session, suite):
    """The defense case measures the leak with the answers of the control that this process ran."""
    defense = session.case("defense", suite).record.evidence.trajectory.checkpoints[0]
    assert defense.leak_per_token == pytest.approx(attacked.record.evidence.trajectory.checkpoints[0].leak_per_token)


def test_a_stored_control_gives_no_leak(attacked, session, suite, tmp_path):
    """A control from the store gives no leak, because answers are kept only in memory."""
    later = RunSession(session.options, tmp_path, session.store, lambda _: None)
    (attack,) = suite.tier_attacks("smoke")
    assert later.case("control", suite, attack).stored
    assert later.case("defense", suite).record.evidence.trajectory.checkpoints[0].leak_per_token is not None  # stored as well
    assert later.run_of(suite).answers_of_control(CaseTask("attack", suite, attack)) is None


def test_no_answer_is_written(attacked, session, lab):
    """No file of the run or the store contains a word that occurs only in the control's answers."""
    slots = {word for p in lab.heldout for word in lab.judge.topic(p).recipe}
    assert len(slots) > 4
    for folder in (session.folder, Path(session.store.root)):
        for path in folder.rglob("*"):
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="ignore")
                assert not any(f" {word} " in text for word in slots), path
