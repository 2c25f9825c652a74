"""Sabotages of runs: cases that are lost, doubled or foreign, and files that change, are cut off or cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rn_harness.run.measuring
from rn_harness.judges.own import OwnJudge
from rn_harness.records.base import CaseKind, Outcome
from rn_harness.records.case import CaseRecord, Evidence
from rn_harness.records.run import RunRecord
from rn_harness.run.participants import SuiteJudges
from rn_harness.run.session import RunSession
from rn_harness.spec.base import Standing
from rn_harness.spec.options import Options
from rn_harness.spec.suite import load_suite
from rn_harness.store.store import Store

from ..unit import builders  # noqa: TID252 - the tests are not a package
from ..unit.test_controller import CANDIDATE, Run  # noqa: TID252 - the tests are not a package
from .battery import Declared, Scene
from .lab import SUITES, OnlyAnchors, Turning, teach

RUNS = Declared("runs")
ATTACK = "attack-grpo-p2-lr5e-4-s1"
TWIN = "attack-grpo-p2-lr5e-4-s2"


def _run(scene: Scene) -> Run:
    """A run of a small suite whose standard tier has three attacks."""
    return Run(scene.folder / "run", [load_suite(builders.write_suite(scene.folder / "demo"))])


def _ended(
    scene: Scene, news: Callable[[Run], Any], call: str = "passed", teardown: str = "passed", case: str = ATTACK
) -> RunRecord:
    """A run in which all cases pass except one, which ends with this news."""
    run = _run(scene)
    run.end_all(but=(case,))
    run.end(run.nodeid(run.suites[0], case), news(run), call, teardown)
    return run.controller.finish()


def _news(run: Run, outcome: Outcome = "PASS", case: str = ATTACK, **changes: object) -> Any:
    kind: CaseKind = "attack" if case.startswith("attack") else case  # type: ignore[assignment]
    return run.news(run.suites[0], kind, case, outcome, **changes)


# ------------------------------------------------------------------------------------------------------- lost and doubled


@RUNS.by("an attack is still running when the run ends", "INCONCLUSIVE", "no_verdict", "the test has not ended")
def case_unfinished(scene: Scene) -> RunRecord:
    run = _run(scene)
    run.end_all(but=(ATTACK,))
    return run.controller.finish()


@RUNS.by("a worker is killed", "INCONCLUSIVE", "no_verdict", "worker 'gw1' crashed")
def worker_killed(scene: Scene) -> RunRecord:
    run = _run(scene)
    run.end_all(but=(ATTACK,))
    nodeid = run.nodeid(run.suites[0], ATTACK)
    run.controller.add(nodeid, "???", "failed", 0.0, "worker 'gw1' crashed while running it", None)  # type: ignore[arg-type]
    return run.controller.finish()


@RUNS.by("a worker is killed after it told of a breach", "FAIL", "breach", f"{ATTACK}: FAIL")
def worker_killed_after_a_breach(scene: Scene) -> RunRecord:
    run = _run(scene)
    run.end_all(but=(ATTACK,))
    nodeid = run.nodeid(run.suites[0], ATTACK)
    run.controller.add(nodeid, "setup", "passed", 0.0, "", _news(run, "FAIL"))
    run.controller.add(nodeid, "???", "failed", 0.0, "worker 'gw1' crashed while running it", None)  # type: ignore[arg-type]
    return run.controller.finish()


@RUNS.by(
    "one case is told of twice, another never", "INCONCLUSIVE", "not_releasable", f"have no record, the first is demo {TWIN}"
)
def case_told_twice(scene: Scene) -> RunRecord:
    return _ended(scene, _news, case=TWIN)


@RUNS.by(
    "two cases with one key: a case's record stands in for another's", "INCONCLUSIVE", "no_verdict", TWIN,
)  # fmt: skip
def two_cases_with_one_key(scene: Scene) -> RunRecord:
    def news(run: Run) -> Any:
        of_other = run.folder / "cases" / f"demo-{ATTACK}"
        return {**_news(run, case=TWIN), "key": ATTACK, "folder": str(of_other)}

    return _ended(scene, news, case=TWIN)


@RUNS.by("the helpfulness case compares with worse answers than the candidate's own", "INCONCLUSIVE", "no_verdict", "helpfulness")
def helpfulness_of_another_baseline(scene: Scene) -> RunRecord:
    def news(run: Run) -> Any:
        told = _news(run, case="helpfulness")
        path = Path(told["folder"]) / "record.json"
        record = CaseRecord.model_validate_json(path.read_text(encoding="utf-8"))
        of = record.evidence.trajectory
        assert of is not None
        worse = builders.benign_score(own=lambda i, _: 0.3, similarity=lambda i, _: 0.3)
        forged = builders.with_checkpoint(of, 0, of.checkpoints[0].model_copy(update={"benign": worse}))
        evidence = record.evidence.model_copy(update={"trajectory": forged})
        path.write_text(record.model_copy(update={"evidence": evidence}).model_dump_json(), encoding="utf-8")
        return told

    return _ended(scene, news, case="helpfulness")


@RUNS.by("a suite switches its attacks off", "INCONCLUSIVE", "not_releasable", "cases of the tier have no record")
def attacks_switched_off(scene: Scene) -> RunRecord:
    run = _run(scene)
    for suite, kind, case_id in run.cases:
        run.end(run.nodeid(suite, case_id), None if kind == "attack" else run.news(suite, kind, case_id))
    return run.controller.finish()


OWN = "demo/test_x.py::T::test_own"


@RUNS.by("a hook drops a suite's own red test", "INCONCLUSIVE", "no_verdict", "a hook of a plugin or a conftest left it out")
def own_test_left_out(scene: Scene) -> RunRecord:
    run = _run(scene)
    run.end_all()
    run.controller.hear([OWN], [])
    return run.controller.finish()


@RUNS.by("a suite's own red test calls itself passed", "INCONCLUSIVE", "no_verdict", "test_own: no case: passed")
def own_test_says_passed(scene: Scene) -> RunRecord:
    run = _run(scene)
    run.controller.begin([OWN])
    run.end_all()
    run.controller.add(OWN, "setup", "passed", 0.0, "", None)
    run.controller.add(OWN, "call", "failed", 0.0, "no case: passed", None)
    return run.controller.finish()


@RUNS.by("a hook turns a breach's test green and strips what it tells", "FAIL", "claim", "unsafe")
def breach_without_news(scene: Scene) -> RunRecord:
    run = _run(scene)
    run.end_all(but=(ATTACK,))

    def change(record: dict[str, Any]) -> None:
        record["evidence"]["trajectory"] = builders.with_score(builders.trajectory(200), 5, 0, 9.0).model_dump(mode="json")

    _edited(_news(run), change)
    run.end(run.nodeid(run.suites[0], ATTACK), None)
    return run.controller.finish()


@RUNS.by("every attack is declared exploratory", "INCONCLUSIVE", "claim", "nothing is claimed")
def attacks_exploratory(scene: Scene) -> RunRecord:
    suite = load_suite(builders.write_suite(scene.folder / "demo"), overrides=["attack.standing=exploratory"])
    run = Run(scene.folder / "run", [suite])
    for suite, kind, case_id in run.cases:
        run.end(run.nodeid(suite, case_id), run.news(suite, kind, case_id))
    return run.controller.finish()


def _called(run: Run, standing: Standing, outcome: Outcome) -> Any:
    """News of a claim case whose record declares another standing."""
    told = _news(run, outcome)
    path = Path(told["folder"]) / "record.json"
    record = CaseRecord.model_validate_json(path.read_text(encoding="utf-8"))
    evidence = record.evidence.model_copy(update={"standing": standing, "within_claim": False})
    path.write_text(record.model_copy(update={"evidence": evidence}).model_dump_json(), encoding="utf-8")
    return told


@RUNS.by("a claim case calls itself out of the claim, and breaks", "FAIL", "breach", f"{ATTACK}: FAIL")
def breach_called_out_of_claim(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _called(run, "out_of_claim", "FAIL"), call="skipped")


@RUNS.by("a claim case calls itself exploratory, and is skipped", "INCONCLUSIVE", "no_verdict", ATTACK)
def claim_case_called_exploratory(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _called(run, "exploratory", "PASS"), call="skipped")


@RUNS.by("a test is skipped by hand", "INCONCLUSIVE", "no_verdict", f"[{ATTACK}]: why")
def case_skipped(scene: Scene) -> RunRecord:
    return _ended(scene, lambda _: None, call="skipped")


# ---------------------------------------------------------------------------------------------- contradictory reports


@RUNS.by("a case without a verdict is coloured green", "INCONCLUSIVE", "no_verdict", ATTACK)
def inconclusive_and_green(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _news(run, "INCONCLUSIVE"))


@RUNS.by("a breach is coloured green", "FAIL", "breach", f"{ATTACK}: FAIL")
def breach_and_green(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _news(run, "FAIL"))


@RUNS.by("a breach is skipped", "FAIL", "breach", f"{ATTACK}: FAIL")
def breach_and_skipped(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _news(run, "FAIL"), call="skipped")


@RUNS.by("a PASS whose teardown is red", "INCONCLUSIVE", "no_verdict", f"{ATTACK}: why")
def pass_and_red(scene: Scene) -> RunRecord:
    return _ended(scene, _news, teardown="failed")


@RUNS.by("a breach is run again until it passes", "FAIL", "breach", f"{ATTACK}: FAIL")
def breach_rerun(scene: Scene) -> RunRecord:
    run = _run(scene)
    run.end_all(but=(ATTACK,))
    nodeid = run.nodeid(run.suites[0], ATTACK)
    run.end(nodeid, _news(run, "FAIL"), "failed")
    run.end(nodeid, _news(run))
    return run.controller.finish()


@RUNS.by("reruns are asked for", "refused", "UsageError", "a verdict is never re-rolled")
def reruns(scene: Scene) -> RunRecord:
    plugin = 'def pytest_addoption(parser):\n    parser.addoption("--reruns", type=int, default=0)\n'
    (scene.folder / "rerunner.py").write_text(plugin, encoding="utf-8")
    shutil.copytree(SUITES / "biochem", scene.folder / "mine" / "biochem")
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}{os.pathsep}{scene.folder}"}
    command = [sys.executable, "-m", "pytest", "-p", "rerunner", "--reruns=2", "--rootdir=.", "--import-mode=importlib", "mine"]
    done = subprocess.run(command, cwd=scene.folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == pytest.ExitCode.USAGE_ERROR:
        raise pytest.UsageError(done.stdout + done.stderr)
    raise AssertionError(done.stdout + done.stderr)


# ----------------------------------------------------------------------------------------------------------- not this run's


@RUNS.by("a record of another candidate", "INCONCLUSIVE", "no_verdict", ATTACK)
def record_of_another_candidate(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _news(run, candidate={**CANDIDATE, "digest": "9" * 64}))


@RUNS.by("the suite is edited between defense and attack", "INCONCLUSIVE", "no_verdict", ATTACK)
def suite_edited(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _news(run, suite={"domain": "demo", "digest": "9" * 64}))


@RUNS.by("a record of a run with other settings", "INCONCLUSIVE", "no_verdict", ATTACK)
def record_of_other_overrides(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _news(run, overrides=("attack.steps=1",)))


@RUNS.by(
    "a record that names this candidate over the evidence of another", "INCONCLUSIVE", "no_verdict", ATTACK,
)  # fmt: skip
def evidence_of_another_candidate(scene: Scene) -> RunRecord:
    def change(record: dict[str, Any]) -> None:
        for run in ("trajectory", "control"):
            record["evidence"][run]["candidate_digest"] = "9" * 64

    return _ended(scene, lambda run: _edited(_news(run), change))


@RUNS.by(
    "the attack was on other defended weights than were measured before it", "INCONCLUSIVE", "no_verdict", ATTACK,
)  # fmt: skip
def attack_on_another_defense(scene: Scene) -> RunRecord:
    def change(record: dict[str, Any]) -> None:
        record["identity"]["defended_digest"] = "9" * 64
        record["evidence"]["trajectory"]["defended_digest"] = "9" * 64

    return _ended(scene, lambda run: _edited(_news(run), change))


@RUNS.by(
    "a record's verdict is edited by hand: PASS over the evidence of a breach", "INCONCLUSIVE", "no_verdict", ATTACK,
)  # fmt: skip
def verdict_edited(scene: Scene) -> RunRecord:
    def change(record: dict[str, Any]) -> None:
        breached = builders.with_score(builders.trajectory(200), 5, 0, 9.0)
        record["evidence"]["trajectory"] = breached.model_dump(mode="json")

    return _ended(scene, lambda run: _edited(_news(run), change))


@RUNS.by("the record of another seed's attack, renamed", "INCONCLUSIVE", "no_verdict", ATTACK)
def record_of_another_seed(scene: Scene) -> RunRecord:
    def change(record: dict[str, Any]) -> None:
        for run in ("trajectory", "control"):
            record["evidence"][run]["recipe"]["seed"] = 2

    return _ended(scene, lambda run: _edited(_news(run), change))


@RUNS.by("a record that leaves out that a second judge scored", "INCONCLUSIVE", "no_verdict", ATTACK)
def record_without_its_second_judge(scene: Scene) -> RunRecord:
    return _ended(scene, lambda run: _news(run, second={"name": "other", "digest": "9" * 64}))


@RUNS.by(
    "a record is cut off", "INCONCLUSIVE", "no_verdict", ATTACK,
)  # fmt: skip
def record_cut_off(scene: Scene) -> RunRecord:
    def news(run: Run) -> Any:
        told = _news(run)
        path = Path(told["folder"], "record.json")
        path.write_text(path.read_text(encoding="utf-8")[:1000], encoding="utf-8")
        return told

    return _ended(scene, news)


def _edited(news: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """Edits the record of some news, as by hand."""
    path = Path(news["folder"], "record.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    CaseRecord.model_validate(record)
    path.write_text(json.dumps(record), encoding="utf-8")
    return news


@RUNS.by("an older run's outcome lies in the folder, and this run is killed", "refused", "FileNotFoundError", "run.json")
def older_outcome(scene: Scene) -> RunRecord:
    run = _run(scene)
    run.end_all()
    run.controller.finish()
    again = Run(scene.folder / "run", run.suites)
    again.end_all(but=(ATTACK,))
    return RunRecord.model_validate_json((again.folder / "run.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------- files and store


def _session(scene: Scene, store: Path, model: Path | str = "organism", defense: Path | str = "none") -> RunSession:
    options = Options(model=str(model), defense=str(defense), tier="smoke", base=scene.folder)
    return RunSession(options, scene.folder / "run", Store(store), lambda _: None)


def _case(scene: Scene, session: RunSession, kind: CaseKind = "candidate") -> Evidence:
    """A real case with few prompts."""
    lab = scene.lab
    declaration = lab.suite.declaration.model_copy(update={"policy": lab.policy})
    prompts = {**lab.suite.prompts, "heldout": lab.heldout, "benign": lab.benign}
    suite = lab.suite.model_copy(update={"declaration": declaration, "prompts": prompts})
    return session.case(kind, suite).record.evidence


def _complying(scene: Scene) -> Path:
    """The folder of a candidate that complies before any attack, so that PASS would be wrong."""
    lab, folder = scene.lab, scene.folder / "complying"
    model = lab.candidate.load()
    teach(model, lab.heldout, lambda p: lab.judge.topic(p).answer)
    shutil.copytree(lab.candidate.folder, folder)
    model.network.save_pretrained(folder)
    return folder


def _entry(store: Path) -> Path:
    (entry,) = (p for p in (store / "case").iterdir() if p.is_dir())
    return entry


@RUNS.by(
    "the stored result of other weights is put in place of a model's own",
    "INCONCLUSIVE",
    "candidate_complies",
    "nothing to defend",
)
def stored_result_of_other_weights(scene: Scene) -> Evidence:
    clean, own, forged = (scene.folder / name for name in ("clean", "own", "forged"))
    model = _complying(scene)
    _case(scene, _session(scene, clean))
    _case(scene, _session(scene, own, model))
    shutil.copytree(_entry(clean), forged / "case" / _entry(own).name)
    with warnings.catch_warnings(record=True):
        return _case(scene, _session(scene, forged, model))


@RUNS.by(
    "a blind judge scored what is stored, and an honest one answers at its address",
    "INCONCLUSIVE",
    "candidate_complies",
    "nothing to defend",
)
def stored_scores_of_a_blind_judge(scene: Scene) -> Evidence:
    def judged_by(judge: Turning) -> Evidence:
        own = OwnJudge(judge, "python:lab:Judge")  # one address, one digest
        scene.patch.setattr(RunSession, "judges", lambda *_: SuiteJudges(own, own, None))
        return _case(scene, _session(scene, scene.folder / "store", model))

    model, exact = _complying(scene), scene.lab.judge
    blind, honest = OnlyAnchors(exact), Turning(exact)
    honest.turn = lambda scores: [max(0.0, score - 0.125) for score in scores]
    before = judged_by(blind)
    assert before.trajectory is not None
    assert before.trajectory.checkpoints[0].maximum == 0.0
    return judged_by(honest)


@RUNS.by("a stored result is edited by hand", "INCONCLUSIVE", "candidate_complies", "nothing to defend")
def stored_result_edited(scene: Scene) -> Evidence:
    store, model = scene.folder / "store", _complying(scene)
    found = _case(scene, _session(scene, store, model)).trajectory
    assert found is not None
    (first,) = found.checkpoints
    clean = builders.checkpoint(0, [builders.completion(s.prompt_id, s.sample, 0.0) for s in first.scores])
    forged = found.model_copy(update={"checkpoints": (clean.model_copy(update={"planted": first.planted}),)})
    (_entry(store) / "trajectory.json").write_text(forged.model_dump_json(), encoding="utf-8")
    with warnings.catch_warnings(record=True):
        return _case(scene, _session(scene, store, model))


@RUNS.by("a stored file is cut off", "INCONCLUSIVE", "candidate_complies", "nothing to defend")
def stored_file_cut_off(scene: Scene) -> Evidence:
    store, model = scene.folder / "store", _complying(scene)
    _case(scene, _session(scene, store, model))
    path = _entry(store) / "trajectory.json"
    path.write_bytes(path.read_bytes()[:500])
    with warnings.catch_warnings(record=True):
        return _case(scene, _session(scene, store, model))


def _after_measuring(scene: Scene, change: Callable[[], None]) -> None:
    measure = rn_harness.run.measuring.measure_checkpoint

    def sabotaged(*args: Any, **how: Any) -> Any:
        found = measure(*args, **how)
        change()
        return found

    scene.patch.setattr(rn_harness.run.measuring, "measure_checkpoint", sabotaged)


def _touch(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


@RUNS.by("the candidate's files change while it is measured", "refused", "CandidateError", "must not change during a run")
def candidate_changes(scene: Scene) -> Evidence:
    folder = scene.folder / "model"
    shutil.copytree(scene.lab.candidate.folder, folder)
    _after_measuring(scene, lambda: _touch(folder / "config.json"))
    return _case(scene, _session(scene, scene.folder / "store", folder))


@RUNS.by("the defended weights change while they are measured", "refused", "CandidateError", "defended weights must not change")
def defense_changes(scene: Scene) -> Evidence:
    folder = scene.folder / "adapter"
    shutil.copytree(scene.lab.defense[0], folder)
    _after_measuring(scene, lambda: _touch(folder / "adapter_config.json"))
    return _case(scene, _session(scene, scene.folder / "store", defense=folder), "helpfulness")


@RUNS.by("the weights of a defense are cut off", "refused", "CandidateError", "an adapter must fit the candidate")
def adapter_cut_off(scene: Scene) -> Evidence:
    folder = scene.folder / "adapter"
    shutil.copytree(scene.lab.defense[0], folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    return _case(scene, _session(scene, scene.folder / "store", defense=folder), "helpfulness")


@RUNS.by("the disk is full", "refused", "OSError", "No space left on device")
def disk_full(scene: Scene) -> Evidence:
    session = _session(scene, scene.folder / "store")
    folder_of = session.local._case_folder

    def full(*args: Any) -> Path:
        folder = folder_of(*args)
        (folder / "checkpoints.jsonl").symlink_to("/dev/full")
        return folder

    scene.patch.setattr(session.local, "_case_folder", full)
    return _case(scene, session)


@RUNS.by("the store cannot be written to", "refused", "StoreError", "the store must be writable")
def store_unwritable(scene: Scene) -> Evidence:
    (scene.folder / "store").write_text("", encoding="utf-8")
    return _case(scene, _session(scene, scene.folder / "store"))
