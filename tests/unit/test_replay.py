"""Replay: which cases are chosen, which inputs have to be the same, and which scores count as the same."""

from __future__ import annotations

import collections
import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rn_harness.cli import app
from rn_harness.records.case import CaseRecord, Evidence
from rn_harness.records.trajectory import Trajectory
from rn_harness.release.integrity import RunEvidence
from rn_harness.release.verification import Verification, verify
from rn_harness.run import replay
from rn_harness.run.replay import RecordedCase, RunReplay, choose, conditions, differences, recorded_cases, replay_case
from rn_harness.spec.attack_recipe import Search
from rn_harness.spec.errors import JudgeGoneError
from rn_harness.spec.options import Options

from . import builders
from .finished_run import FinishedRun, finished_run

DIGEST = "5" * 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run that a release can rest on; tests do not change it."""
    return finished_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def evidence(made: FinishedRun) -> RunEvidence:
    """The evidence of that run."""
    found = verify(made.folder, weights=made.weights, suites=[made.suite.folder])
    assert found.can_be_replayed
    assert found.evidence is not None
    return found.evidence


@pytest.fixture(scope="module")
def cases(made: FinishedRun, evidence: RunEvidence) -> list[RecordedCase]:
    """The cases of that run that can be measured again."""
    return list(recorded_cases(evidence, made.suite))


def _named(cases: list[RecordedCase], kind: str) -> RecordedCase:
    return next(case for case in cases if case.task.kind == kind)


# ------------------------------------------------------------------------------------------------------------- the choice


def test_every_case_can_be_measured_again_and_an_attack_brings_its_control(cases: list[RecordedCase]) -> None:
    """A run's cases can be measured again: candidate, defense, helpfulness and attacks, each attack with its control."""
    assert [case.task.kind for case in cases] == ["candidate", "defense", "helpfulness", "attack"]
    attack = _named(cases, "attack")
    assert attack.control is not None
    assert attack.control.case_id == "control-grpo-p2-lr5e-4-s0"


def test_a_case_costs_the_time_of_its_attempts(cases: list[RecordedCase]) -> None:
    """The cost of a case is the time of its finished attempts, of its control too; a stored case has taken none in its run."""
    attack = _named(cases, "attack")
    assert attack.control is not None
    done, cut = ({"started": "t", "wall_s": 40.0, "outcome": outcome} for outcome in ("done", "cut"))
    tried = attack.record.provenance.model_validate({"tree": None, "attempts": [cut, done]})
    timed = dataclasses.replace(
        attack,
        record=attack.record.model_copy(update={"provenance": tried, "wall_s": 0.1}),
        control=attack.control.model_copy(update={"wall_s": 2.0, "provenance": tried.model_copy(update={"attempts": ()})}),
    )
    assert timed.seconds == 42.0


def _with_trajectory(evidence: RunEvidence, change: Callable[[Evidence], dict[str, Any]]) -> RunEvidence:
    records = {
        name: record.model_copy(update={"evidence": record.evidence.model_copy(update=change(record.evidence))})
        for name, record in evidence.records.items()
    }
    return dataclasses.replace(evidence, records=records)


def test_a_case_that_did_not_end_by_itself_is_not_chosen(made: FinishedRun, evidence: RunEvidence) -> None:
    """A case that was cut off, whose judge failed or that has no measurement cannot be repeated, so it is left out."""

    def gone(**fault: Any) -> Callable[[Evidence], dict[str, Any]]:
        def change(of: Evidence) -> dict[str, Any]:
            return {"trajectory": of.trajectory and of.trajectory.model_copy(update=fault)} if of.kind == "attack" else {}

        return change

    kinds = [
        [case.task.kind for case in recorded_cases(_with_trajectory(evidence, change), made.suite)]
        for change in (
            gone(stopped="memory ran out"),
            gone(judge_gone="no answer"),
            lambda of: {"trajectory": None} if of.kind == "attack" else {},
            lambda of: {"control": of.control and of.control.model_copy(update={"stopped": "memory ran out"})},
        )
    ]
    assert kinds == [["candidate", "defense", "helpfulness"]] * 4


def test_a_pass_is_replayed_although_a_judge_failed(made: FinishedRun, evidence: RunEvidence) -> None:
    """A judge's failure in a probe that does not decide leaves a PASS. A forger must not take such a case out of the choice."""
    failed = builders.UNREWARDED.banned.model_copy(update={"failed": 1})

    def change(of: Evidence) -> dict[str, Any]:
        probes = of.trajectory and of.trajectory.probes and of.trajectory.probes.model_copy(update={"banned": failed})
        return {"trajectory": of.trajectory and of.trajectory.model_copy(update={"probes": probes})}

    kinds = [case.task.kind for case in recorded_cases(_with_trajectory(evidence, change), made.suite)]
    assert kinds == ["candidate", "defense", "helpfulness", "attack"]


def test_an_attack_that_searched_for_its_settings_is_not_chosen(
    made: FinishedRun, evidence: RunEvidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings that a search finds depend on every digit, so such an attack is not replayed."""
    (task,) = (t for t in replay.all_cases(made.suite, made.suite.tier_attacks("standard")) if t.kind == "attack")
    assert task.attack is not None
    searched = dataclasses.replace(task, attack=task.attack.model_copy(update={"search": Search(trials=2, steps=10)}))
    (name,) = (name for name, record in evidence.records.items() if record.case_id == task.case_id)
    renamed = evidence.records[name].model_copy(update={"case_id": searched.case_id})
    of_both = dataclasses.replace(evidence, records={**evidence.records, name: renamed})
    for tasks, left in (([searched], 0), ([task], 1)):
        monkeypatch.setattr(replay, "all_cases", lambda *_, tasks=tasks: tasks)
        assert len(list(recorded_cases(of_both if tasks == [searched] else evidence, made.suite))) == left


def _standing(case: RecordedCase, standing: str, *, covered: bool) -> RecordedCase:
    of = case.record.evidence.model_copy(update={"standing": standing, "within_claim": covered})
    return dataclasses.replace(case, record=case.record.model_copy(update={"evidence": of}))


def test_claim_attacks_are_the_likeliest(cases: list[RecordedCase]) -> None:
    """Cases are drawn by weight: claim attacks 8, exploratory attacks that the claim covers 4, all others 1."""
    attack = _named(cases, "attack")
    assert attack.weight == 8.0
    assert _standing(attack, "exploratory", covered=True).weight == 4.0
    assert _standing(attack, "exploratory", covered=False).weight == 1.0
    assert _standing(attack, "out_of_claim", covered=False).weight == 1.0
    assert [case.weight for case in cases if case is not attack] == [1.0] * 3
    draws = 3000
    first = collections.Counter(choose(cases, 1, str(seed), DIGEST)[0].task.kind for seed in range(draws))
    for case in cases:  # of 8 + 3 parts; four standard deviations
        share = case.weight / 11
        assert abs(first[case.task.kind] / draws - share) < 4 * math.sqrt(share * (1 - share) / draws)


def test_the_choice_follows_from_seed_and_run(cases: list[RecordedCase]) -> None:
    """The same seed and run give the same choice; another seed, or one changed byte of the run, gives an independent one."""

    def order(seed: str, digest: str) -> list[str]:
        return [case.task.name for case in choose(cases, 4, seed, digest)]

    assert order("a", DIGEST) == order("a", DIGEST)
    assert len(choose(cases, 99, "a", DIGEST)) == len(cases)
    assert len({tuple(order(str(seed), DIGEST)) for seed in range(40)}) > 4
    assert len({tuple(order("a", f"{n:064x}")) for n in range(40)}) > 4


def test_the_seed_is_drawn_after_the_run_was_read(made: FinishedRun, evidence: RunEvidence) -> None:
    """Each replay draws a new seed from the system's randomness, and is given evidence that was already read."""
    one, other = (RunReplay(evidence=evidence, suites=[made.suite], options=Options(), weights=made.weights) for _ in range(2))
    assert one.seed != other.seed
    assert len(one.seed) == 32
    named = dataclasses.replace(one, seed="mine")
    assert named.chosen(2) == choose(named.cases, 2, "mine", evidence.run_digest)


# ------------------------------------------------------------------------------------------------------------- the inputs


@pytest.mark.parametrize(
    ("part", "name", "value", "why"),
    [
        ("hardware", "processor", "B", "hardware.processor is B here and A in the record"),
        ("hardware", "threads", 2, "hardware.threads is 2 here and 1 in the record"),
        ("versions", "torch", "9", "versions.torch is 9 here and 2 in the record"),
        ("hardware", "device", "H100", "a card sums in varying order"),
        ("sessions", "judge", "7", "a judge on a server, or of your own code, may answer differently"),
    ],
)
def test_bits_are_demanded_only_of_the_same_machine(part: str, name: str, value: object, why: str) -> None:
    """Bits have to agree only on the same processor and versions, with judges that cannot change; else a reason is given."""
    recorded = {
        "judge": "j",
        "hardware": {"device": "cpu", "processor": "A", "threads": 1},
        "versions": {"torch": "2"},
        "sessions": {"judge": None},
        "recipe": {"micro_batch": None, "seed": 1},
    }
    assert conditions(recorded, recorded) == ((), [])
    inexact, foreign = conditions(recorded, {**recorded, part: {**recorded[part], name: value}})  # type: ignore[dict-item]
    assert any(why in reason for reason in inexact)
    assert foreign == []


def test_another_measurement_is_not_compared(cases: list[RecordedCase], monkeypatch: pytest.MonkeyPatch) -> None:
    """A case whose judge, weights, prompts or recipe here differ from its record's is refused before anything is measured."""
    case = _named(cases, "attack")
    for name in ("judge", "candidate", "defended"):
        here = {**case.record.inputs, name: "another", "hardware": {"device": "cpu"}}
        replayed = replay_case(_session(case, here), case)
        assert replayed.refusal is not None
        assert (replayed.refusal.code, name in replayed.refusal.sentence) == ("replay_foreign", True)
    smaller = {**case.record.inputs, "recipe": {**case.record.inputs["recipe"], "micro_batch": 8}}
    assert conditions(case.record.inputs, smaller)[1] == []  # less memory: the same update, rounded differently


def _session(case: RecordedCase, here: dict[str, Any], record: CaseRecord | Exception | None = None) -> Any:
    """A session of a verifier with these inputs, that measures this record; it may measure nothing if there is none."""

    class Run:
        def case_inputs(self, _: object) -> dict[str, Any]:
            return here

        def as_run(self, attack: object) -> object:
            return attack

    class Session:
        def run_of(self, _: object) -> Run:
            return Run()

        def case(self, *_: object) -> Any:
            assert record is not None
            if isinstance(record, Exception):
                raise record
            return type("Case", (), {"record": record})

    return Session()


def test_a_case_that_cannot_be_measured_again_is_refused(cases: list[RecordedCase]) -> None:
    """An error in a replay, or a judge that fails, refuses the case: unknown is never safe. No completion is quoted."""
    case = _named(cases, "attack")
    record, run = case.record, case.record.evidence.trajectory
    failed = record.evidence.model_copy(update={"trajectory": run and run.model_copy(update={"judge_gone": "no answer"})})
    for problem, said in (
        (JudgeGoneError("the judge is gone"), "JudgeGoneError: the judge is gone"),
        (ValueError("a harmful text"), "ValueError (its message is withheld"),
        (record.model_copy(update={"evidence": failed}), "no judge could score it here"),
    ):
        replayed = replay_case(_session(case, _on_cpu(record.inputs), problem), case)
        assert replayed.refusal is not None
        assert replayed.refusal.code == "replay_failed"
        assert said in replayed.refusal.sentence
        assert "harmful" not in replayed.refusal.sentence
    same = replay_case(_session(case, _on_cpu(record.inputs), record), case)
    assert same.refusal is None
    assert "the same scores at 27 checkpoints, bit by bit" in same.line  # 21 of the attack, 6 of its control


def _on_cpu(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, "sessions": inputs.get("sessions", {})}


def test_a_run_without_cases_to_repeat_is_refused(evidence: RunEvidence, made: FinishedRun) -> None:
    """If no case can be measured again, the replay refuses the run instead of confirming nothing."""
    empty = RunReplay(evidence=evidence, suites=[made.suite], options=Options(), weights=made.weights)
    (replayed,) = empty.run([], lambda _: None)
    assert replayed.refusal is not None
    assert replayed.refusal.code == "replay_failed"


# ------------------------------------------------------------------------------------------------------------- the scores


def _changed(of: Evidence, change: Callable[[Trajectory], Trajectory]) -> Evidence:
    assert of.trajectory is not None
    return of.model_copy(update={"trajectory": change(of.trajectory)})


def _found(recorded: Evidence, again: Evidence, *, exact: bool = True) -> list[str]:
    return list(differences(recorded, again, exact=exact))


def test_one_other_score_is_seen_on_a_cpu() -> None:
    """Bit by bit, a hair's difference in one score of one checkpoint, or in one number of a training, is a difference."""
    of = builders.evidence("attack")
    assert _found(of, of) == []
    (hair,) = _found(of, _changed(of, lambda run: builders.with_score(run, 3, 0, 1e-9)))
    assert "1 checkpoints have other scores, the first is step 30 of checkpoints.jsonl, with means 0.00 and 0.00" in hair
    assert _found(of, _changed(of, lambda run: builders.with_window(run, 4, reward_mean=0.125))) != []
    assert of.control is not None
    control = of.model_copy(update={"control": builders.with_score(of.control, 2, 0, 9.0)})
    assert any("of control" in why for why in _found(of, control))
    shorter = _changed(of, lambda run: run.model_copy(update={"checkpoints": run.checkpoints[:-1]}))
    assert any("with means 0.00 and none" in why for why in _found(of, shorter))
    probed, another = builders.evidence("candidate"), builders.UNREWARDED.plain.model_copy(update={"mean": 0.1})
    probes = builders.UNREWARDED.model_copy(update={"plain": another})
    assert _found(probed, _changed(probed, lambda run: run.model_copy(update={"probes": probes}))) == [
        "the reward probes or the lesson have other numbers"
    ]
    other = builders.certificate(scores=builders.anchor_scores(harmful=9.5))
    assert "a judge's certificate has other scores" in _found(of, of.model_copy(update={"certificates": (other,)}))


def test_leaks_that_need_the_control_are_not_compared() -> None:
    """A leak measured on the control's answers may be missing if another process ran the control, and does not count."""
    of = builders.evidence("attack")

    def without(run: Trajectory) -> Trajectory:
        return builders.with_checkpoint(run, 0, run.checkpoints[0].model_copy(update={"leak_per_token": -3.0}))

    assert _found(of, _changed(of, without)) == []


@pytest.mark.parametrize("exact", [True, False])
def test_a_breach_that_the_record_lacks_is_always_a_difference(*, exact: bool) -> None:
    """If the replay sees a breach and the record has none, the case is refused, however small the difference of the means."""
    of = builders.evidence("attack")
    found = _found(of, _changed(of, lambda run: builders.with_score(run, 7, 0, 9.0)), exact=exact)
    assert any("the record says PASS, measured again it is FAIL" in why for why in found)


@pytest.mark.parametrize(("by", "same"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("which", ["first", "highest"])
def test_the_tolerance_is_one_point(which: str, by: float, *, same: bool) -> None:
    """Where bits may differ, the first and the highest mean of each trajectory may differ by one point."""
    of = builders.evidence("attack")
    assert of.control is not None
    means = [c.mean or 0.0 for c in of.control.checkpoints]
    assert (means[0], max(means)) == (0.0, 8.0)
    run = of.control
    for i, mean in enumerate(means):
        value = by if which == "first" and i == 0 else min(mean, 8.0 - by) if which == "highest" else mean
        scores = [s.model_copy(update={"score": value}) for s in run.checkpoints[i].scores]
        run = builders.with_scores(run, i, scores)
    found = [why for why in _found(of, of.model_copy(update={"control": run}), exact=False) if "mean score" in why]
    assert ([why.split()[1] for why in found] == []) == same
    assert all(f"the {which} mean score of control" in why for why in found)


def test_other_restrained_attacks_are_a_difference() -> None:
    """A record without the restrained attacks that the replay needed, or with others, is refused."""
    of = builders.evidence("attack")
    assert of.trajectory is not None
    assert of.control is not None
    restrained = builders.restrained_attack(1, of.trajectory, of.control, lambda run: run)
    more = of.model_copy(update={"restrained": (restrained,)})
    assert _found(of, more) != []
    assert any("restrained-1-attack.jsonl" in why for why in _found(of, more, exact=False))


# ------------------------------------------------------------------------------------------------------- the command line


def _verify(made: FinishedRun, *more: str) -> Result:
    given = ["verify", str(made.folder), "--weights", str(made.weights)]
    return CliRunner().invoke(app, [*given, *more])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replay", "1", "--model", "organism"], "name both by --model and --suite"),
        (["--replay", "1", "--suite", "SUITE"], "name both by --model and --suite"),
        (["--replay", "0", "--model", "organism", "--suite", "SUITE"], "greater than or equal to 1"),
        (["--model", "organism"], "--model goes with --replay"),
        (["--replay-seed", "1"], "--replay-seed goes with --replay"),
        (["--second-judge", "none"], "--second-judge goes with --replay"),
        (["--acknowledge"], "--acknowledge goes with --replay"),
        (["--replay", "1", "--model", "nowhere/at-all", "--suite", "SUITE"], "nowhere/at-all"),
    ],
)
def test_a_replay_that_cannot_be_done_ends_with_2(made: FinishedRun, options: list[str], said: str) -> None:
    """A replay without the verifier's own model and suite, or with a model that is not there, is not started: exit code 2."""
    done = _verify(made, *(str(made.suite.folder) if option == "SUITE" else option for option in options))
    assert (done.exit_code, said in " ".join(done.output.replace("│", " ").split())) == (2, True), done.output


def test_nothing_is_measured_for_a_run_that_does_not_match(
    made: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that does not hold together, or of other weights or another suite, is refused without a replay."""
    monkeypatch.setattr(RunReplay, "run", lambda *_: pytest.fail("something was measured"))
    (tmp_path / "weights").mkdir()
    torn = finished_run(tmp_path)
    (torn.folder / "junit.xml").write_text("", encoding="utf-8")
    shutil.copytree(made.suite.folder, tmp_path / "other" / "demo")
    (tmp_path / "other" / "demo" / "suite.yaml").write_text(
        (made.suite.folder / "suite.yaml").read_text(encoding="utf-8").replace("prompts: 2", "prompts: 1"), encoding="utf-8"
    )
    replayed = ("--replay", "2", "--model", "organism")
    for run, suite in ((torn, torn.suite.folder), (made, tmp_path / "other" / "demo")):
        done = _verify(run, *replayed, "--suite", str(suite))
        assert (done.exit_code, "not replayed" in done.output) == (1, True), done.output
    other = dataclasses.replace(made, weights=tmp_path / "other")
    done = _verify(other, *replayed, "--suite", str(made.suite.folder))
    assert (done.exit_code, "not replayed" in done.output) == (1, True), done.output


def test_a_verification_without_a_suite_cannot_be_replayed(made: FinishedRun) -> None:
    """Cases are measured only by a suite of the verifier."""
    assert not verify(made.folder, weights=made.weights).can_be_replayed
    assert not Verification(()).can_be_replayed


def test_choice_and_cost_are_shown_before_the_replay(made: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed, run, chosen cases and their cost are on stderr before anything is measured; a difference makes the exit code 1."""
    shown: list[str] = []

    def run(self: RunReplay, cases: list[RecordedCase], _: object) -> list[replay.ReplayedCase]:
        shown.extend(self.plan(cases))
        refusal = replay.Refusal("replay_differs", "other scores")
        return [replay.ReplayedCase(name=case.task.name, refusal=refusal) for case in cases]

    monkeypatch.setattr(RunReplay, "run", run)
    more = ("--suite", str(made.suite.folder), "--replay", "2", "--replay-seed", "s", "--model", "organism")
    done = _verify(made, *more)
    assert done.exit_code == 1
    assert shown[0].startswith("replay: seed s, run.json ")
    assert "4 of the run's 5 cases can be measured again" in shown[0]
    assert shown[-1].startswith("replay: about ")
    assert shown[-1].endswith(" s on the run's machine")
    assert [line for line in done.stderr.splitlines() if line.startswith("replay:")] == shown
    assert "refused [replay_differs] other scores" in done.stdout
    assert "not verified: 2 refusals" in done.stdout
