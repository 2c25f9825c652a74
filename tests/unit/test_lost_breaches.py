"""A breach that was measured is never lost, whatever ends the attempt, and whatever the next one does otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rn_harness.records.base import Scored
from rn_harness.records.certificate import Certificate
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.run import measuring
from rn_harness.run.case import Defended
from rn_harness.run.context import RunContext
from rn_harness.run.measuring import Measuring
from rn_harness.run.participants import SuiteJudges
from rn_harness.run.session import RunSession
from rn_harness.run.suite_run import SuiteRun
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.provenance import hardware
from rn_harness.store.store import Store

from . import builders
from .builders import write_suite
from .test_session import Judge, Killed, a_session

DEFENDED = "d" * 64


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return load_suite(write_suite(tmp_path / "demo"))


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """A judge on a server, and a defended model without weights."""
    served = Judge(digest=builders.JUDGE)
    served.served_model = "judge-1"  # type: ignore[attr-defined]  # as a judge on a server has
    monkeypatch.setattr(RunSession, "judges", lambda *_: SuiteJudges(served, served, None))
    monkeypatch.setattr(SuiteRun, "certificates", (builders.certificate(),))
    candidate = a_session(tmp_path).candidate
    defended = Defended(candidate, "quick", digest=DEFENDED, report=builders.defense_report())
    monkeypatch.setattr(SuiteRun, "defended", defended)
    return served


def otherwise() -> Certificate:
    """The certificate of a judge that scored one of the known texts half a point lower today."""
    first = builders.certificate()
    text = first.scores[0]
    looks = tuple(look.model_copy(update={"score": (look.score or 0) - 0.5}) for look in text.looks)
    return builders.certificate(scores=(text.model_copy(update={"looks": looks}), *first.scores[1:]))


def doubted(run: Trajectory, doubt: str) -> Trajectory:
    """The trajectory with scores above the threshold that further looks contradict, or with harmful answers in training."""
    if doubt == "training":
        return builders.with_window(run, 1, above_share=0.9, reward_mean=8.0)
    run = run.model_copy(update={"checkpoints": tuple(map(disputed, run.checkpoints))})
    return builders.with_window(run, 1, unrewarded_share=0.1, failed_share=0.1) if doubt == "failed reward" else run


def disputed(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a score above the threshold that further looks contradict."""
    first, *others = checkpoint.scores
    first = first.model_copy(update={"score": 5.0, "again": (Scored(score=0.0),) * 5})
    return checkpoint.model_copy(update={"scores": (first, *others)})


def attacked(monkeypatch: pytest.MonkeyPatch, breach: int | None, killed: bool, doubt: str = "") -> None:
    """The next attempts at an attack score 9 at step ``breach`` and 0 elsewhere, are ``killed`` there, and leave a ``doubt``."""

    def measure(self: Measuring) -> Trajectory:
        attack = self.task.attack
        assert attack is not None
        recipe = {**attack.model_dump(mode="json"), "steps": self.task.steps}
        if self.task.kind == "control":
            control = builders.trajectory(self.task.steps, lambda step: 8.0 * (step > 0), recipe=recipe)
            return control.model_copy(update={"defended_digest": None})
        run = builders.trajectory(self.task.steps, lambda step: 9.0 * (step == breach), recipe=recipe)
        run = doubted(run, doubt) if doubt else run
        for checkpoint in run.checkpoints:
            self.journal.add(checkpoint.model_dump_json())
            if killed and checkpoint.step == breach:
                raise Killed
        return measuring._with_earlier(run, self.journal)

    monkeypatch.setattr(Measuring, "measure", measure)


def change(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Makes the judge or the processor a little different, so that cases have other keys."""
    if what == "judge":
        monkeypatch.setattr(SuiteRun, "certificates", (otherwise(),))
    if what == "processor":
        monkeypatch.setattr("rn_harness.run.context.hardware", lambda threads: hardware(threads) | {"processor": "another"})


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("changed", ["nothing", "judge", "processor"])
def test_a_breach_of_an_attack_counts_for_later_attempts(
    tmp_path: Path, suite: Suite, judge: Judge, monkeypatch: pytest.MonkeyPatch, changed: str, killed: bool
) -> None:
    """A breach counts if the attempt was killed or has failed, and the next judge or processor is a little different."""
    (recipe,) = [a for a in suite.tier_attacks("smoke") if a.claim][:1]
    attacked(monkeypatch, 10, killed)
    if killed:
        with pytest.raises(Killed):
            a_session(tmp_path).case("attack", suite, recipe)
    else:
        assert a_session(tmp_path).case("attack", suite, recipe).record.verdict.outcome == "FAIL"
    change(monkeypatch, changed)
    attacked(monkeypatch, None, killed=False)
    for _ in range(2):  # the second one comes from the store
        verdict = a_session(tmp_path).case("attack", suite, recipe).record.verdict
        assert verdict.outcome == "FAIL"
        assert verdict.reasons[0].step == 10


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("changed", ["judge", "processor"])
def test_a_stored_pass_hides_no_later_breach(
    tmp_path: Path, suite: Suite, judge: Judge, monkeypatch: pytest.MonkeyPatch, changed: str, killed: bool
) -> None:
    """A stored PASS becomes a FAIL once an attempt under another judge or processor has a breach, killed or not."""
    (recipe,) = [a for a in suite.tier_attacks("smoke") if a.claim][:1]
    attacked(monkeypatch, None, killed=False)
    assert a_session(tmp_path).case("attack", suite, recipe).record.verdict.outcome == "PASS"
    with monkeypatch.context() as other:
        change(other, changed)
        attacked(other, 10, killed)
        with pytest.raises(Killed) if killed else nullcontext():
            a_session(tmp_path).case("attack", suite, recipe)
    case = a_session(tmp_path).case("attack", suite, recipe)
    assert (case.stored, case.record.verdict.outcome, case.record.verdict.reasons[0].step) == (True, "FAIL", 10)
    assert case.record.evidence.trajectory is not None
    assert [checkpoint.step for checkpoint in case.record.evidence.trajectory.earlier] == ([10] if killed else [])


@pytest.mark.parametrize("changed", ["judge", "processor"])
@pytest.mark.parametrize(
    ("doubt", "code"), [("scores", "disputed"), ("failed reward", "disputed"), ("training", "breach_in_training")]
)
def test_doubts_of_a_finished_attempt_count_for_others(
    tmp_path: Path, suite: Suite, judge: Judge, monkeypatch: pytest.MonkeyPatch, changed: str, doubt: str, code: str
) -> None:
    """Doubtful scores, and harm in training, leave a case unknown under a judge or processor that differs a little, too."""
    (recipe,) = [a for a in suite.tier_attacks("smoke") if a.claim][:1]
    for doubtful in (doubt, ""):
        attacked(monkeypatch, None, killed=False, doubt=doubtful)
        verdict = a_session(tmp_path).case("attack", suite, recipe).record.verdict
        assert verdict.outcome == "INCONCLUSIVE"
        assert code in {reason.code for reason in verdict.reasons}
        change(monkeypatch, changed)


def test_a_breach_of_an_attempt_that_ended_meanwhile_counts(
    tmp_path: Path, suite: Suite, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt during which another one, on another processor, has failed is FAIL, although it measured nothing itself."""
    (recipe,) = [a for a in suite.tier_attacks("smoke") if a.claim][:1]
    attacked(monkeypatch, None, killed=False)
    clean = Measuring.measure

    def slow(self: Measuring) -> Trajectory:
        if self.task.kind == "attack":
            with monkeypatch.context() as other:
                change(other, "processor")
                attacked(other, 10, killed=False)
                assert a_session(tmp_path).case("attack", suite, recipe).record.verdict.outcome == "FAIL"
        return clean(self)

    monkeypatch.setattr(Measuring, "measure", slow)
    assert a_session(tmp_path).case("attack", suite, recipe).record.verdict.outcome == "FAIL"


def test_a_clean_attempt_leaves_no_journal(tmp_path: Path, suite: Suite, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal of a whole case without a breach is removed, and one of another case is not read."""
    attacked(monkeypatch, None, killed=False)
    (recipe,) = [a for a in suite.tier_attacks("smoke") if a.claim][:1]
    store = Store(tmp_path / "store")
    store.journal("f" * 64, 0.0, "e" * 64).add(builders.trajectory(10, lambda _: 9.0).checkpoints[0].model_dump_json())
    assert a_session(tmp_path).case("attack", suite, recipe).record.verdict.outcome == "PASS"
    assert [path.name[:4] for path in (tmp_path / "store" / "unfinished").iterdir()] == ["eeee"]


REWARDED = builders.UNREWARDED.model_copy(update={"plain": builders.NOTHING.model_copy(update={"mean": 8.0, "maximum": 9.0})})


@pytest.mark.parametrize(
    ("cut", "code"),
    [(Killed, "breach"), (MemoryError, "breach"), (REWARDED, "probe")],
    ids=["killed", "out-of-memory", "out-of-memory-after-the-probes"],
)
def test_a_breach_of_the_defenses_case_counts(
    tmp_path: Path, suite: Suite, judge: Judge, monkeypatch: pytest.MonkeyPatch, cut: Any, code: str
) -> None:
    """A breach of the defended model counts if its case is cut off before probes and lesson; an error ends it with a FAIL, which
    has the probes if they were measured. It fails again from the store under a judge that differs a little."""
    base = builders.trajectory(0, recipe={}, prompt_ids=(), defended_digest=DEFENDED, probes=builders.UNREWARDED)
    clean = builders.taught_by(suite, builders.in_forms(base, suite.policy))
    broken = builders.trajectory(0, lambda _: 9.0, recipe={}, prompt_ids=(), defended_digest=DEFENDED)
    first = clean if cut is REWARDED else builders.in_forms(broken, suite.policy)
    measured: Iterator[Any] = iter([first.checkpoints[0], clean.checkpoints[0]])
    ends: Iterator[Any] = iter([cut if cut is REWARDED else cut(), builders.UNREWARDED])

    def probes(*_: Any) -> Any:
        if isinstance(found := next(ends), BaseException):
            raise found
        return found

    def lesson(*_: Any) -> Any:
        if cut is REWARDED:
            raise MemoryError
        return clean.lesson

    prompts = [[SimpleNamespace(id=name) for name in ids] for ids in (base.heldout_ids, base.benign_ids)]
    panel = SimpleNamespace(policy=suite.policy, judge=judge, second=None, heldout=prompts[0], benign=prompts[1])
    for owner, name, value in (
        (RunContext, "model", lambda *_: SimpleNamespace(network=None, rendered=lambda _: None)),
        (SuiteRun, "candidate_lesson", object()),
        (SuiteRun, "panel", panel),
        (measuring, "output_layer", lambda _: ()),
        (measuring, "measure_checkpoint", lambda *_, **__: next(measured)),
        (measuring, "measure_probes", probes),
        (measuring, "give_lesson", lesson),
        (measuring, "prompts_digest", lambda _: "p"),
        (dataclasses, "replace", lambda of, **_: of),
    ):
        monkeypatch.setattr(owner, name, value)
    if cut is Killed:
        with pytest.raises(Killed):
            a_session(tmp_path).case("defense", suite)
    record = a_session(tmp_path).case("defense", suite).record
    assert record.verdict.outcome == "FAIL"
    assert record.verdict.reasons[0].code == code
    trajectory = record.evidence.trajectory
    assert trajectory is not None
    assert (trajectory.stopped is None, len(trajectory.earlier)) == ((True, 1) if cut is Killed else (False, 0))
    change(monkeypatch, "judge")
    again = a_session(tmp_path).case("defense", suite)
    assert (again.stored, again.record.verdict.outcome, again.record.verdict.reasons[0].code) == (True, "FAIL", code)
