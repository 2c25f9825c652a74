"""Coherent records: run, times, inputs and judges of a record agree with each other and with the suite's declaration."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rn_harness.records.case import CaseRecord
from rn_harness.records.certificate import session_id
from rn_harness.records.run import RunRecord
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.verdict.coherence import impossible_times, incoherent, oldest, scattered, undeclared

from .builders import certificate
from .finished_run import finished_run

OTHER = "9" * 64
ELSEWHERE = "f" * 32
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, RunRecord, dict[str, CaseRecord]]:
    """A suite, a run of it, and the records of its cases by kind."""
    run = finished_run(tmp_path_factory.mktemp("made"))
    paths = run.folder.glob("cases/*/record.json")
    records = [CaseRecord.model_validate_json(path.read_text(encoding="utf-8")) for path in paths]
    return run.suite, run.record, {r.evidence.kind: r for r in records}


Made = tuple[Suite, RunRecord, dict[str, CaseRecord]]


def changed(record: CaseRecord, change: Change) -> CaseRecord:
    """The record after a manual change; its key follows from its inputs."""
    said = record.model_dump(mode="json")
    change(said)
    return CaseRecord.model_validate(said)


def test_a_case_of_another_run_is_found(made: Made) -> None:
    """A case of another run is not accepted as part of this run, even with the same configuration."""
    _, _, records = made
    assert scattered(list(records.values())) == []
    foreign = changed(records["attack"], lambda said: said.update(run_id=ELSEWHERE))
    assert f"run of {foreign.case_id}" in scattered([*(r for k, r in records.items() if k != "attack"), foreign])


def test_a_changed_input_is_found(made: Made) -> None:
    """A changed input gives another key than the run's record has for the case, and the rest of the record contradicts it."""
    _, _, records = made
    only_the_suite_knows = {"forbidden", "neighbour"}
    for record in records.values():
        assert incoherent(record) == []
        for name, value in record.inputs.items():
            other = {"x": "y"} if isinstance(value, dict) else OTHER
            forged = record.model_copy(update={"inputs": {**record.inputs, name: other}})
            assert forged.key != record.key, name
            assert bool(incoherent(forged)) is (name not in only_the_suite_knows), name


def test_a_session_id_follows_from_the_judges_certificate(made: Made) -> None:
    """The judge's session id is the hash of its answers to known texts, so another certificate means another session."""
    _, _, records = made
    record = records["attack"]
    own = session_id(record.evidence.certificates)

    def named(session: str) -> CaseRecord:
        def change(said: dict[str, Any]) -> None:
            said["inputs"]["sessions"].update(judge=session, reward=session)

        return changed(record, change)

    assert incoherent(named(own)) == []
    assert any("gave other answers to known texts" in text for text in incoherent(named(OTHER)))


def test_a_reward_judges_certificates_are_its_own(made: Made) -> None:
    """A record must contain the certificates of its unseen reward judge; those of another judge do not count."""
    _, _, records = made
    theirs = certificate(digest=OTHER)

    def change(said: dict[str, Any], digest: str) -> None:
        said["identity"]["reward"] = {"name": "r", "digest": digest}
        said["inputs"]["reward"] = said["evidence"]["trajectory"]["reward_digest"] = digest
        said["inputs"]["sessions"]["reward"] = session_id([theirs])
        said["known"] = {"reward": [theirs.model_dump(mode="json")]}

    record = records["candidate"]
    assert incoherent(changed(record, lambda said: change(said, OTHER))) == []
    found = incoherent(changed(record, lambda said: change(said, "8" * 64)))
    assert "its certificates of the reward judge are another judge's" in found
    silent = changed(record, lambda said: (change(said, OTHER), said.update(known={}))[0])
    assert any("list of judges that no digest covers" in text for text in incoherent(silent))


def edited(folder: Path, suite: Suite, file: str, before: str, after: str) -> Suite:
    """The suite loaded with one file edited; the file is restored afterwards."""
    path = suite.folder / file
    text = path.read_text(encoding="utf-8")
    assert before in text, (folder, before)
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    try:
        return load_suite(suite.folder)
    finally:
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "before", "after", "kind", "why"),
    [
        ("prompts/heldout.yaml", "text: say heldout1 ", "text: tell heldout1 ", "attack", "other heldout prompts were used"),
        ("prompts/benign.yaml", "text: say benign1 ", "text: tell benign1 ", "helpfulness", "other benign prompts were used"),
        ("prompts/attack.yaml", "text: say attack1 ", "text: tell attack1 ", "control", "other attack prompts were used"),
        ("prompts/anchor.yaml", "text: say anchor1 ", "text: tell anchor1 ", "attack", "other anchor prompts were used"),
        ("prompts/defense.yaml", "text: say defense1 ", "text: tell defense1 ", "defense", "other defense prompts were used"),
        ("suite.yaml", "Words of a demo", "Sentences of a demo", "candidate", "something else is forbidden"),
        ("suite.yaml", "steps: 200", "steps: 210", "attack", "other settings than the suite declares: steps"),
        ("suite.yaml", "learning_rate: 5e-4", "learning_rate: 6e-4", "attack", "its attack is none that the suite declares"),
        ("suite.yaml", "learning_rate: 1e-3", "learning_rate: 2e-3", "helpfulness", "its defense was made with other settings"),
    ],
)
def test_a_record_is_compared_with_what_the_suites_files_declare(
    made: Made, tmp_path: Path, file: str, before: str, after: str, kind: str, why: str
) -> None:
    """Prompts, forbidden subject and recipes are compared with the suite's files, whichever digest the record names."""
    suite, _, records = made
    assert undeclared(records[kind], suite, "standard") == []
    other = edited(tmp_path, suite, file, before, after)
    claimed = changed(records[kind], lambda said: said["identity"]["suite"].update(digest=other.digest))
    found = undeclared(claimed, other, "standard")
    assert any(why in text for text in found), found
    assert "it is of another suite" not in found


def test_a_suites_digest_is_that_of_what_it_holds_now(made: Made) -> None:
    """Replacing prompts in memory changes the suite's digest."""
    suite, _, _ = made
    held = suite.prompts["heldout"]
    replaced = suite.model_copy(update={"prompts": {**suite.prompts, "heldout": held[:1]}})
    assert replaced.digest != suite.digest


def _shift(place: str, field: str, **by: float) -> Change:
    def change(said: dict[str, Any]) -> None:
        at = said
        for part in filter(None, place.split(".")):
            at = at[part]
        at[field] = (datetime.datetime.fromisoformat(at[field]) + datetime.timedelta(**by)).isoformat(timespec="seconds")

    return change


def _set(field: str, value: str) -> Change:
    return lambda said: said.update({field: value})


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        ("attack", _shift("", "ended", hours=-1), "before it started at"),
        ("attack", _shift("", "started", days=-2000), "before its run, which started at"),
        ("attack", _shift("", "ended", days=1), "after its run, which ended at"),
        ("attack", _shift("measured", "started", days=-1), "it was measured at"),
        ("attack", _shift("measured", "ended", days=1), "its measurement ended at"),
        ("attack", _shift("measured", "ended", days=-1), "before it started at"),
        ("defense", _shift("evidence.report.measured", "started", days=-1), "its defense was trained at"),
        ("attack", _set("started", "yesterday"), "'yesterday' is no time with a zone"),
        ("attack", _set("ended", "2026-11-29T12:00:00"), "is no time with a zone"),
    ],
)
def test_impossible_times_are_found(made: Made, kind: str, change: Change, why: str) -> None:
    """A case must lie within its run, and so must its measurement unless another run made it."""
    _, run, records = made
    assert impossible_times(records[kind], run.started, run.ended) == []
    found = impossible_times(changed(records[kind], change), run.started, run.ended)
    assert any(why in text for text in found), found


def test_a_stored_case_is_as_old_as_its_measurement(made: Made) -> None:
    """A stored measurement may precede the run; it determines the case's age."""
    _, run, records = made

    def change(said: dict[str, Any]) -> None:
        said["measured"].update(run_id=ELSEWHERE)
        _shift("measured", "started", days=-9)(said)
        _shift("measured", "ended", days=-9)(said)

    stored = changed(records["attack"], change)
    assert impossible_times(stored, run.started, run.ended) == []
    assert stored.measured is not None
    assert oldest(stored) == (datetime.datetime.fromisoformat(stored.measured.started), stored.measured.started)
