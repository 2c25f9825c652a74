"""Coherent records: run, times, inputs and judges of a record agree with each other and with the suite's declaration."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rn_harness.records.benign import BenignScore
from rn_harness.records.case import Attempt, CaseRecord
from rn_harness.records.certificate import session_id
from rn_harness.records.run import RunRecord
from rn_harness.records.trajectory import Measurement, Rendered
from rn_harness.spec.attack_recipe import SEARCHED, Search, Shift
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.verdict.coherence import (
    _sets_of,
    impossible_times,
    incoherent,
    moment,
    oldest,
    open_fields,
    run_provenance,
    scattered,
    strange_controls,
    told_judges,
    undeclared,
)

from .builders import UNREWARDED, certificate, trajectory
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


def edited_record(record: CaseRecord, **values: Any) -> CaseRecord:
    """The record with fields replaced by their paths, e.g. ``evidence__kind``, without validation."""

    def replaced(of: Any, way: list[str], value: Any) -> Any:
        if not way:
            return value
        first, *rest = way
        if isinstance(of, dict):
            return {**of, first: replaced(of.get(first), rest, value)}
        return of.model_copy(update={first: replaced(getattr(of, first), rest, value)})

    for path, value in values.items():
        record = replaced(record, path.split("__"), value)
    return record


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
        ("suite.yaml", "learning_rate: 5e-4", "learning_rate: 6e-4", "defense", "its lesson had other settings"),
        (
            "prompts/attack.yaml",
            "text: say attack1 ",
            "text: tell attack1 ",
            "defense",
            "its lesson had other settings",
        ),
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


def told_of(found: list[str]) -> list[str]:
    """The names in contradictions, and other findings as they are."""
    return [text.partition(" in one place")[0].rpartition(" is ")[0].removeprefix("its ") or text for text in found]


CONTRADICTIONS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("candidate", {"measured": None}, ["word on when it was measured"]),
    ("helpfulness", {"evidence__control": trajectory(0)}, ["control"]),
    ("attack", {"evidence__control": None}, ["control"]),
    ("attack", {"evidence__control__settings": {}}, ["list of settings"]),
    ("defense", {"evidence__report_due": False}, ["report"]),
    ("helpfulness", {"evidence__report_due": True}, ["report", "duty to report"]),
    ("defense", {"provenance__defense": {}}, ["defense's recipe"]),
    ("helpfulness", {"evidence__second_certificate": certificate()}, ["second judge's certificate"]),
    ("helpfulness", {"identity__defended_files": None}, ["list of defended files"]),
    ("helpfulness", {"evidence__subject": "other"}, ["defense"]),
    ("candidate", {"evidence__subject": "quick", "identity__defense": "quick"}, ["lack of a defense"]),
    ("control", {"evidence__subject": "quick", "identity__defense": "quick"}, ["lack of a defense"]),
    ("control", {"case_id": "control-x"}, ["case id"]),
    ("candidate", {"case_id": "x"}, ["case id"]),
    ("candidate", {"evidence__trajectory__candidate_digest": OTHER}, ["candidate"]),
    ("helpfulness", {"evidence__trajectory__defended_digest": OTHER}, ["defended weights"]),
    ("candidate", {"evidence__trajectory__judge_digest": OTHER}, ["judge"]),
    ("candidate", {"evidence__trajectory__reward_digest": OTHER}, ["reward's judge"]),
    ("candidate", {"evidence__trajectory__second_digest": OTHER}, ["second judge"]),
    ("candidate", {"evidence__standing": "exploratory"}, ["standing"]),
    ("candidate", {"evidence__refused": "x"}, ["word on whether it can be run"]),
    ("control", {"evidence__trajectory__settings__max_steps": 9}, ["number of training steps"]),
    ("candidate", {"evidence__trajectory__prompt_ids": ["a"]}, ["training"]),
    ("candidate", {"evidence__trajectory__settings": {"a": 1}}, ["training"]),
    ("candidate", {"evidence__trajectory__recipe": {"name": "x"}}, ["input recipe", "training"]),
    ("control", {"evidence__trajectory__recipe": {}}, ["input recipe", "case id"]),
    ("control", {"evidence__kind": "helpfulness"}, ["input case", "input recipe", "kind", "case id"]),
    ("candidate", {"evidence__kind": "control"}, ["input case", "kind", "case id", "probes"]),
    ("candidate", {"evidence__trajectory__probes": None}, ["probes"]),
    ("defense", {"evidence__trajectory__probes": None}, ["probes"]),
    ("helpfulness", {"evidence__trajectory__probes": UNREWARDED}, ["probes"]),
    ("candidate", {"identity__candidate": {"name": "x"}}, ["its candidate has no name or digest"]),
    ("candidate", {"identity__judge": {"name": "x"}}, ["its judge has no name or digest"]),
    ("candidate", {"identity__reward": {"digest": "x"}}, ["its reward's judge has no name or digest"]),
    ("candidate", {"identity__second": {"name": "x"}}, ["its second judge has no name or digest"]),
    ("candidate", {"identity__suite": {"domain": "x"}}, ["its suite has no domain or digest"]),
    ("candidate", {"inputs__sessions": None}, ["list of judges' sessions"]),
    ("candidate", {"known": {"second": ()}}, [
        "list of judges that no digest covers", "its certificates of the second judge are another judge's"
    ]),
    ("candidate", {"inputs__sessions__second": "x"}, [
        "list of judges that no digest covers",
        "its second gave other answers to known texts than the session that its key names",
    ]),
    ("control", {"inputs__search": 4}, ["input search"]),
    ("control", {"inputs__search": 4, "evidence__trajectory__settings": {}}, []),  # it ended early
    ("candidate", {"inputs__search": 4}, ["input search"]),
    ("control", {"evidence__trajectory__settings__search": {"trials": 4}}, ["input search"]),
    ("control", {"inputs__recipe": None}, ["input recipe"]),
    ("control", {"inputs__recipe__control_steps": 9}, ["input recipe"]),
    ("candidate", {"inputs__plugins": ["x"]}, ["input plugins"]),
    ("candidate", {"evidence__certificates": []}, ["input anchors"]),
    ("defense", {"evidence__report__prompts__more": "x"}, ["list of the defense's sets of prompts"]),
    ("defense", {"evidence__report__prompts__heldout": "x"}, ["held-out prompts of the defense"]),
    ("defense", {"evidence__report__measured": None}, ["word on when its defense was trained"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "found"), CONTRADICTIONS, ids=lambda of: "-".join(of) if isinstance(of, dict) else "")
def test_each_contradiction_within_a_record_is_named(made: Made, kind: str, values: dict[str, Any], found: list[str]) -> None:
    """A field that contradicts another one is named, and no other is."""
    _, _, records = made
    assert told_of(incoherent(edited_record(records[kind], **values))) == found


def test_a_record_with_a_second_judge_and_labels_is_coherent(made: Made) -> None:
    """A second judge is named alike in all places, and the anchors are those of the inert certificate, in whatever order."""
    _, _, records = made
    labels = certificate().model_copy(update={"source": "labels", "anchors_digest": "b" * 64})
    values = {
        "identity__second": {"name": "s", "digest": OTHER}, "inputs__second": OTHER, "evidence__trajectory__second_digest": OTHER,
        "evidence__second_certificate": certificate(OTHER), "evidence__certificates": (labels, certificate()),
    }  # fmt: skip
    assert incoherent(edited_record(records["candidate"], **values)) == []


SHARED: list[tuple[str, dict[str, Any]]] = [
    ("run", {"run_id": ELSEWHERE}),
    ("judges' sessions", {"inputs__sessions": {}}),
    ("answers of judges that no digest covers", {"known": {"second": ()}}),
    ("candidate", {"identity__candidate__name": "x"}),
    ("judges", {"identity__second": {"name": "x"}}),
    ("suite", {"identity__benign": "x"}),
    ("overrides", {"identity__overrides": ["x"]}),
    ("versions", {"identity__versions": {}}),
    ("hardware", {"identity__hardware": {}}),
    ("policy", {"evidence__policy__threshold": 3.0}),
    ("exactness of the judge", {"evidence__exact_judge": False}),
    ("certificates", {"evidence__certificates": []}),
    ("held-out prompts", {"evidence__trajectory__heldout_ids": ["x"]}),
    ("benign prompts", {"evidence__trajectory__benign_ids": ["x"]}),
    ("defense's recipe", {"provenance__defense": {}}),
    ("defense", {"identity__defense": "x"}),
    ("defended weights", {"identity__defended_files": OTHER}),
    ("rendering of prompts", {"evidence__trajectory__rendered": Rendered(sha256=OTHER, characters=9)}),
]


@pytest.mark.parametrize(("what", "values"), SHARED, ids=[what for what, _ in SHARED])
def test_the_record_that_differs_from_all_others_is_named(made: Made, what: str, values: dict[str, Any]) -> None:
    """The records of a run share all that they depend on; the one that differs is named, wherever it is in the list."""
    _, _, records = made
    others = [record for kind, record in records.items() if kind != "helpfulness"]
    odd = edited_record(records["helpfulness"], **values)
    assert scattered([odd, *others]) == scattered([*others, odd]) == [f"{what} of helpfulness"]


@pytest.mark.parametrize("number", ["own", "chance"])
def test_all_cases_are_compared_with_the_same_undefended_answers(made: Made, number: str) -> None:
    """A process that asked another model in the candidate's place compares the defense with other answers than the rest."""
    _, _, records = made
    others = [record for kind, record in records.items() if kind != "helpfulness"]
    of = records["helpfulness"].evidence.trajectory
    assert of is not None
    (first,) = of.checkpoints
    assert first.benign is not None
    *answers, last = first.benign.answers

    def odd(by: float | None) -> CaseRecord:
        answer = last.model_copy(update={number: getattr(last, number) + (by or 0.0)})
        score = None if by is None else BenignScore(answers=(*answers, answer))
        checkpoints = (first.model_copy(update={"benign": score}),)
        return edited_record(records["helpfulness"], evidence__trajectory__checkpoints=checkpoints)

    told = ["undefended answers to benign prompts of helpfulness"]
    for by, found in ((0.01, told), (1e-12, []), (None, [])):
        assert scattered([odd(by), *others]) == scattered([*others, odd(by)]) == found
    unmeasured = edited_record(records["helpfulness"], evidence__trajectory__checkpoints=())
    assert scattered([unmeasured, *others]) == []


def test_shifted_requests_may_be_rendered_otherwise(made: Made) -> None:
    """Prompts are rendered alike in all cases of one shift; a case of another shift has a rendering of its own."""
    _, _, records = made
    rendered = {"evidence__trajectory__rendered": Rendered(sha256=OTHER, characters=9)}
    for shift, found in ((None, ["rendering of prompts of control"]), ({"system": "x"}, [])):
        odd = edited_record(records["control"], **rendered, evidence__trajectory__recipe__shift=shift)
        told = scattered([records["candidate"], records["helpfulness"], records["attack"], odd])
        assert [text.rpartition("-grpo")[0] or text for text in told] == found


def test_a_shift_is_the_same_whatever_the_order_of_its_fields(made: Made) -> None:
    """Two cases of one shift are rendered alike, also if their records list its fields in another order."""
    _, _, records = made
    fields = {"system": "x", "prefill": "y"}
    shifted, turned = (
        edited_record(records["control"], evidence__trajectory__recipe__shift=shift, evidence__trajectory__rendered=rendered)
        for shift, rendered in ((fields, None), (dict(reversed(fields.items())), Rendered(sha256=OTHER, characters=9)))
    )
    assert scattered([shifted, turned]) == [f"rendering of prompts of {shifted.case_id}"]


def test_the_number_of_attack_cases_is_that_of_the_claims_records(made: Made) -> None:
    """Bounds are corrected for the number of claimed attacks, which is counted, and is one without any."""
    _, _, records = made
    two = [edited_record(record, evidence__attack_cases=2) for record in records.values()]
    assert scattered(two) == ["number of attack cases, which are 1"]
    assert scattered([records["candidate"], records["control"]]) == []
    exploratory = edited_record(records["attack"], evidence__standing="exploratory")
    assert scattered([exploratory, records["candidate"]]) == []
    assert scattered([records["attack"], records["attack"]]) == ["number of attack cases, which are 2"]
    assert scattered([records["attack"], exploratory]) == []
    odd = edited_record(records["helpfulness"], evidence__attack_cases=2)
    told = ["number of attack cases of helpfulness", "number of attack cases, which are 1"]
    assert scattered([records["candidate"], records["attack"], odd]) == told
    assert scattered([records["attack"], edited_record(records["candidate"], evidence__trajectory=None)]) == []


def test_controls_of_attacks_are_the_controls_cases(made: Made) -> None:
    """An attack is named if its control is missing, or is of another key, standing or measurement; a refused one has none."""
    _, _, records = made
    attack, control = records["attack"], records["control"]
    assert strange_controls([attack, control, records["candidate"]]) == []
    assert strange_controls([attack]) == [attack.case_id]
    for values in (
        {"inputs__forbidden": "x"}, {"evidence__standing": "exploratory"}, {"evidence__within_claim": False},
        {"evidence__trajectory__steps": 9},
    ):  # fmt: skip
        assert strange_controls([attack, edited_record(control, **values)]) == [attack.case_id]
    assert strange_controls([edited_record(attack, evidence__refused="x")]) == []


def clock(minutes: float) -> str:
    """A time of the day in 2026."""
    start = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
    return (start + datetime.timedelta(minutes=minutes)).isoformat()


def attempted(started: float, ended: float | None = None) -> Attempt:
    """An attempt from one minute past the hour to another, or one that was cut off."""
    return Attempt(started=clock(started), ended=None if ended is None else clock(ended))


def test_a_runs_provenance_is_that_of_its_records(made: Made) -> None:
    """Digests are of all judges and weights by domain, recipes of all cases as run, and attempts at all work are counted."""
    _, _, records = made
    second, timed_attempt = {"name": "s", "digest": OTHER}, Attempt(started=clock(0), device_s=0.12345)
    last = edited_record(records["defense"], identity__second=second, provenance__training=[attempted(0), timed_attempt])
    told: dict[str, Any] = {"tool": "1", "candidate": "c", "suites": {"demo": "e", "more": "f"}, "versions": {"v": "1"}}
    given = [records["candidate"], records["control"], last]
    of = run_provenance(given, **told, trees={"demo": None})
    assert of.digests == {
        "candidate": "c", "suite.demo": "e", "suite.more": "f", "judge.demo": "1" * 64, "reward.demo": "1" * 64,
        "second.demo": OTHER, "defended.demo": records["defense"].identity.defended_digest,
    }  # fmt: skip
    control = records["control"]
    assert control.evidence.trajectory is not None
    recipes = {"defense": records["defense"].provenance.defense, control.case_id: control.evidence.trajectory.recipe}
    assert of.recipes == {"demo": recipes, "more": {}}
    # Three measurements of 3.5 s, and two trainings, of which one has a time.
    assert (of.attempts, of.device_s, of.hardware, of.versions) == (5, 10.623, {"device": "cpu", "threads": 1}, {"v": "1"})
    unrun = edited_record(control, evidence__trajectory=None)
    assert run_provenance([unrun], **told, trees={}).recipes == {"demo": {}, "more": {}}
    nothing = run_provenance([], **told, trees={})
    assert (nothing.attempts, nothing.device_s, nothing.hardware) == (0, 0.0, {})


def test_judges_are_told_by_name() -> None:
    """A judge that also rewards is named once; another reward's judge and a second one by their names."""
    judge, other = {"name": "a", "digest": "1"}, {"name": "b", "digest": "2"}
    assert told_judges(judge, judge, None) == "a (also rewards)"
    assert told_judges(judge, other, other) == "a, reward b, second b"


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"evidence__policy__threshold": 3.0}, ["it was measured by another policy"]),
        ({"identity__suite__digest": OTHER}, ["it is of another suite"]),
        ({"inputs__forbidden": "x"}, ["its judges were told that something else is forbidden"]),
        ({"case_id": "control-x"}, ["its attack is none that the suite declares",
         "other anchor prompts were used than the suite has", "other attack prompts were used than the suite has"]),
        ({"evidence__trajectory__recipe__micro_batch": 4}, []),  # the machine's
        ({"evidence__trajectory": None}, []),  # it could not be run
        ({"evidence__trajectory__recipe__more": 1}, ["it was run with other settings than the suite declares: more"]),
        ({"evidence__trajectory__recipe__group_size": 4, "evidence__trajectory__recipe__beta": 1.0},
         ["it was run with other settings than the suite declares: beta, group_size"]),
        ({"provenance__defense": {}, "identity__defense": "x"}, ["its defense is none that the suite declares"]),
        ({"provenance__defense": None, "identity__defense": "x"}, []),  # weights of the lab's own
        ({"provenance__defense": None, "identity__defense": "quick"}, []),
    ],
)  # fmt: skip
def test_a_control_is_compared_with_its_suite(made: Made, values: dict[str, Any], found: list[str]) -> None:
    """Each difference from what the suite declares is named, and fields that the machine may set are left out."""
    suite, _, records = made
    assert undeclared(edited_record(records["control"], **values), suite, "standard") == found


@pytest.mark.parametrize("own", ["attack", "defense"])
def test_a_micro_batch_that_the_suite_declares_is_compared(made: Made, own: str) -> None:
    """A declared size of a micro batch is a setting like any other."""
    suite, _, records = made
    declared = suite.declaration
    if own == "attack":
        matrices = [m.model_copy(update={"base": {**m.base, "micro_batch": 4}}) for m in declared.attacks]
        given = suite.model_copy(update={"declaration": declared.model_copy(update={"attacks": matrices})})
        told = "it was run with other settings than the suite declares: micro_batch"
    else:
        quick = {"quick": declared.defenses["quick"].model_copy(update={"micro_batch": 4})}
        given = suite.model_copy(update={"declaration": declared.model_copy(update={"defenses": quick})})
        told = "its defense was made with other settings than the suite declares: micro_batch"
    assert told in undeclared(records["attack"], given, "standard")
    chosen = edited_record(records["attack"], provenance__defense__micro_batch=4)
    assert undeclared(chosen, suite, "standard") == []  # the machine's, where none is declared


def test_the_machine_and_a_search_may_set_some_fields(made: Made) -> None:
    """A micro batch that is not declared is open, and so are the fields that a search finds; an unknown neighbour has no pool."""
    suite, _, _ = made
    (attack,) = suite.tier_attacks("standard")
    assert open_fields(attack) == ("micro_batch",)
    assert open_fields(attack.model_copy(update={"micro_batch": 4})) == ()
    assert open_fields(attack.model_copy(update={"search": Search(), "micro_batch": 4})) == SEARCHED
    assert len(_sets_of(suite, "standard", attack)["attack"]) == 2
    abroad = attack.model_copy(update={"shift": Shift(domain="elsewhere")})
    assert _sets_of(suite, "standard", abroad)["attack"] == ()
    known = suite.model_copy(update={"neighbours": {"elsewhere": SimpleNamespace(prompts=suite.prompts["attack"][:1])}})
    assert len(_sets_of(known, "standard", abroad)["attack"]) == 1


def test_a_case_without_training_has_no_prompts_of_one(made: Made) -> None:
    """A candidate's case that names attack prompts names a set that it cannot have."""
    suite, _, records = made
    more = edited_record(records["candidate"], evidence__trajectory__prompts__attack=OTHER)
    assert undeclared(more, suite, "standard") == ["other attack prompts were used than the suite has"]


def timed(record: CaseRecord, **times: Any) -> CaseRecord:
    """The record, whose case and measurement took from 10 to 20 minutes past the hour, without attempts, and then changed."""
    plain = {"started": clock(10), "ended": clock(20), "measured__started": clock(10), "measured__ended": clock(20)}
    return edited_record(record, **(plain | {"provenance__attempts": ()} | times))


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ({}, []),
        ({"started": clock(-5)}, []),  # clocks differ by up to five minutes
        ({"started": clock(-5.1)}, ["it started at"]),
        ({"started": clock(20)}, []),
        ({"started": clock(20.1)}, ["it ended at"]),  # by one clock
        ({"ended": clock(65)}, []),
        ({"ended": clock(65.1)}, ["it ended at"]),
        ({"measured__ended": clock(25)}, []),
        ({"measured__ended": clock(25.1)}, ["it was measured until"]),
        ({"measured__started": clock(-5)}, []),
        ({"measured__started": clock(-5.1)}, ["it was measured at"]),
        ({"measured__started": clock(-99), "measured__run_id": ELSEWHERE}, []),
        ({"provenance__attempts": [attempted(1, 66)]}, ["an attempt ended at"]),
        ({"provenance__training": [attempted(1, 0)]}, ["an attempt ended at"]),
        ({"provenance__training": [attempted(70)]}, ["an attempt ended at"]),
        ({"provenance__training": [attempted(-99)]}, []),
        ({"provenance__training": [Attempt(started="x")]}, ["'x' is no time with a zone"]),
    ],
)
def test_times_of_a_case_lie_within_its_run(made: Made, times: dict[str, Any], found: list[str]) -> None:
    """A run from 0 to 60 minutes past the hour: a case, its measurement and its attempts lie within it, by clocks that differ."""
    _, _, records = made
    told = impossible_times(timed(records["candidate"], **times), clock(0), clock(60))
    assert len(told) == len(found)
    assert all(text.startswith(of) for text, of in zip(told, found, strict=True)), told


def test_a_moment_has_a_zone() -> None:
    """A time without a zone, or a text that is none, is no moment."""
    assert (moment("yesterday"), moment("2026-01-01T12:00:00")) == (None, None)
    assert moment("2026-01-01T12:00:00+00:00") == datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


def test_a_case_is_as_old_as_its_oldest_work(made: Made) -> None:
    """A training is older than the measurement; one that was resumed is as old as its first attempt, others as their report."""
    _, _, records = made
    trained = Measurement(run_id=ELSEWHERE, started=clock(5), ended=clock(9))

    def age(**times: Any) -> str | None:
        tried = {"evidence__report__measured": trained, "provenance__training": [attempted(1), attempted(0)]}
        of = oldest(timed(records["defense"], **tried, **times))
        return of[1] if of else None

    assert age(evidence__report__resumed=[10]) == clock(1)
    assert age(evidence__report__resumed=[]) == clock(5)
    assert age(evidence__report=None) == clock(10)
    assert age(evidence__report=None, measured=None) is None
