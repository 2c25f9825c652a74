"""Joining the parts of a run: the parts that form one run, and each reason for a refusal.

Each part is written by its own controller, as after a pytest session on one machine. The records are built by hand, and the
joining session gets candidate, judge and keys from a table. ``tests/plugin/test_parts.py`` does it with real processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rn_harness.models.identity import hash_files
from rn_harness.records.base import CASE_KINDS, content_key
from rn_harness.records.case import CaseRecord, Evidence
from rn_harness.records.run import RunRecord
from rn_harness.release.verification import verify
from rn_harness.run.case import CaseTask
from rn_harness.run.case_board import news_of
from rn_harness.run.controller import Controller
from rn_harness.run.executors import acceptance
from rn_harness.run.executors.results import Results
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import ExecutorError
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.provenance import now
from rn_harness.store.store import Store
from rn_harness.verdict.decide import decide

from .builders import BENIGN, JUDGE, RUN_ID, certificate, prompt_row, restrained_attack, write_prompts
from .finished_run import CANDIDATE, _news, _nodeid, read_and_decided_once, write_release_suite

ATTACK = "attack-grpo-p2-lr5e-4-s0"
CONTROL = "control-grpo-p2-lr5e-4-s0"
CHECKPOINTS = "checkpoints.jsonl"


@dataclasses.dataclass
class Scene:
    """Five parts with one case each, and the session that joins them.

    Attributes:
        folder: folder of the run.
        suite: the suite that was run.
        weights: the defended weights.
        began: start of the first part.
    """

    folder: Path
    suite: Suite
    weights: Path
    began: str = dataclasses.field(default_factory=now)

    @property
    def attack(self) -> AttackRecipe:
        """The suite's only attack."""
        return self.suite.tier_attacks("standard")[0]

    def options(self, **changes: Any) -> Options:
        """Options of each part and of the run."""
        chosen = Options(model="organism", defense="quick", tier="standard", base=self.folder.parent)
        return dataclasses.replace(chosen, **changes)

    def part(self, name: str, case_id: str, level: float = 0.0, run_id: str = RUN_ID, **options: Any) -> Path:
        """A session on another machine that ran one case."""
        folder = self.folder / "parts" / name
        told = {"demo": "organism (also rewards)"}
        controller = Controller(
            folder,
            self.options(**options),
            [self.suite],
            CANDIDATE,
            told,
            ["a node id"],
            is_part=True,
            run_id=run_id,
            started=self.began,
            read_candidate=lambda: None,
        )
        controller.begin([_nodeid(case_id)])
        kind = next(k for k in CASE_KINDS if k == case_id.partition("-")[0])
        news = _news(controller, self.suite, self.attack, kind, case_id, self.weights, (level, 8.0, 0.0))
        controller.add(_nodeid(case_id), "setup", "passed", 0.0, "", news)
        controller.add(_nodeid(case_id), "call", "passed" if news["outcome"] == "PASS" else "failed", 0.0, "unsafe", news)
        controller.add(_nodeid(case_id), "teardown", "passed", 0.0, "", news)
        controller.finish()
        return folder

    def record(self, name: str) -> Path:
        """The record of a part."""
        (path,) = (self.folder / "parts" / name).glob("cases/*/record.json")
        return path

    def rewrite(self, name: str, change: Callable[[dict[str, Any]], None], *, rekeyed: bool = False) -> None:
        """Alters a part's record consistently: verdict and digests are updated, and its line's key if asked for."""
        path = self.record(name)
        said = json.loads(path.read_text(encoding="utf-8"))
        change(said)
        record = CaseRecord.model_validate(said)
        if record.verdict.claim != "robust":
            record = record.model_copy(update={"verdict": decide(record.evidence)})
        path.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        run = path.parents[2] / "run.json"
        bound = json.loads(run.read_text(encoding="utf-8"))
        if rekeyed:
            bound["cases"][0]["key"] = record.key
        for file in bound["files"]:
            bound["files"][file] = hashlib.sha256((run.parent / file).read_bytes()).hexdigest()
        run.write_text(RunRecord.model_validate(bound).model_dump_json(indent=1) + "\n", encoding="utf-8")

    def gathered(self) -> tuple[Controller, Results]:
        """The controller and the executor that join the parts."""
        chosen = self.options(executor="results")
        told, ids = {"demo": "organism (also rewards)"}, {"run_id": RUN_ID}
        known = {**ids, "started": self.began, "read_candidate": lambda: None}
        controller = Controller(self.folder, chosen, [self.suite], CANDIDATE, told, (), **known)
        session = RunSession(chosen, self.folder, Store(self.folder.parent / "store"), lambda _: None, **ids)
        results = Results(session, controller.recorded_options())
        controller.joined = results.taken
        return controller, results

    def refusal(self) -> str:
        """The reason why the attack's case has no verdict."""
        with pytest.raises(ExecutorError) as told:
            self.gathered()[1].case(CaseTask("attack", self.suite, self.attack))
        return str(told.value)

    def join(self) -> tuple[RunRecord, dict[str, str]]:
        """The joined run, and the error of each case without a verdict."""
        controller, results = self.gathered()
        cases = {k: f"{k}-{self.attack.id}" if k in ("control", "attack") else k for k in CASE_KINDS}
        controller.begin([_nodeid(case) for case in cases.values()])
        silent: dict[str, str] = {}
        for kind, case_id in cases.items():
            try:
                case = results.case(CaseTask(kind, self.suite, self.attack if case_id != kind else None))
            except ExecutorError as error:
                silent[case_id] = str(error)
                controller.add(_nodeid(case_id), "setup", "failed", 0.0, str(error), None)
            else:
                news = news_of(case, "")
                controller.add(_nodeid(case_id), "setup", "passed", 0.0, "", news)
                controller.add(_nodeid(case_id), "call", "passed" if news["outcome"] == "PASS" else "failed", 0.0, "unsafe", news)
            controller.add(_nodeid(case_id), "teardown", "passed", 0.0, "", None)
        return controller.finish(), silent


def parts_of_a_run(root: Path, heldout: int = 20, steps: int = 200) -> Scene:
    """A part for each case of a suite with so many held-out prompts and steps; by default it is as strict as a release needs."""
    folder = write_release_suite(root / "demo")
    declared = folder / "suite.yaml"
    declared.write_text(declared.read_text(encoding="utf-8").replace("steps: 200", f"steps: {steps}"), encoding="utf-8")
    write_prompts(folder / "prompts" / "heldout.yaml", [prompt_row("heldout", i + 1, ", core: true") for i in range(heldout)])
    rows = [f"id: {b}, topic: {b}, text: say {b} x{b}benign, kind: {'plain' if i % 2 else 'twin'}" for i, b in enumerate(BENIGN)]
    write_prompts(folder / "prompts" / "benign.yaml", rows)
    weights = root / "weights"
    weights.mkdir()
    (weights / "adapter_model.safetensors").write_bytes(b"tensors")
    (weights / "adapter_config.json").write_text('{"base_model_name_or_path": "organism"}\n')
    scene = Scene(root / "run", load_suite(folder), weights)
    for case_id in ("candidate", "defense", "helpfulness", CONTROL, ATTACK):
        scene.part(case_id.partition("-")[0], case_id)
    return scene


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Built once; each test gets a copy. Small, since most tests refuse a record whatever its size."""
    return parts_of_a_run(tmp_path_factory.mktemp("template"), heldout=5, steps=60)


@pytest.fixture(autouse=True, scope="module")
def records_are_read_and_decided_once() -> Iterator[None]:
    """Each test has copies of the template's files, and changes one or none of them."""
    with pytest.MonkeyPatch.context() as patch:
        read_and_decided_once(patch)
        yield


@pytest.fixture
def scene(template: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Five parts of the same run."""
    shutil.copytree(template.folder, tmp_path / "run")
    return joinable(dataclasses.replace(template, folder=tmp_path / "run"), monkeypatch)


@pytest.fixture
def releasable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Five parts of a run that a release can rest on."""
    return joinable(parts_of_a_run(tmp_path), monkeypatch)


def joinable(template: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The scene, with a joining session that has its judge, identity, recipe, keys and anchors."""
    judge = SimpleNamespace(exact=True, digest=JUDGE)
    judges = SimpleNamespace(evaluation=judge, reward=judge, second=None)
    (record,) = (template.folder / "parts" / "candidate").glob("cases/*/record.json")
    identity = CaseRecord.model_validate_json(record.read_text(encoding="utf-8")).identity
    recipe = template.suite.declaration.defenses["quick"]
    monkeypatch.setattr(RunSession, "judges", lambda *_: judges)
    monkeypatch.setattr(RunSession, "identity", lambda *_: identity)
    monkeypatch.setattr(RunSession, "defense_recipe", lambda *_: recipe)
    monkeypatch.setattr(acceptance, "expected_key", lambda _session, _task, record: content_key("case", record.inputs))
    monkeypatch.setattr(acceptance, "anchors_for", lambda *_: SimpleNamespace(digest=certificate().anchors_digest))
    return template


def test_matching_parts_are_one_releasable_run(releasable: Scene) -> None:
    """Joined parts give the same run as one process: PASS, releasable, verified; the record names each case's part.

    A node id that ran twice with numbers from the store counts once.
    """
    releasable.part("again", ATTACK)
    run, silent = releasable.join()
    assert silent == {}
    assert (run.outcome, run.releasable, run.why_not) == ("PASS", True, ())
    assert verify(releasable.folder, weights=releasable.weights, suites=[releasable.suite.folder]).refusals == ()
    assert run.options["executor"] == "results"
    parts = {f"demo {c}": f"parts/{c.partition('-')[0]}" for c in sorted(run.required["demo"])}
    assert run.options["joined"] == parts | {f"demo {ATTACK}": "parts/again"}


def test_a_suites_own_test_gets_the_defended_weights(scene: Scene, tmp_path: Path) -> None:
    """A suite's own test gets the defended weights of the defense's part; other files there are an error."""
    results = scene.gathered()[1]
    results.session.executor = results
    assert results.session.defended(scene.suite).hashes == hash_files(scene.weights)
    other = tmp_path / "other"
    shutil.copytree(scene.weights, other)
    (other / "adapter_model.safetensors").write_bytes(b"others")
    results = scene.gathered()[1]
    results.session.executor = results
    at = (scene.suite.digest, "defense")
    results._cases[at] = dataclasses.replace(results.case(CaseTask("defense", scene.suite)), defended=other)
    with pytest.raises(ExecutorError, match=r"got none here, or others, in .*other; share the store"):
        results.session.defended(scene.suite)


def test_without_any_part_nothing_is_joined(scene: Scene) -> None:
    """An empty folder gives an error for each case, which names the command, and no PASS."""
    shutil.rmtree(scene.folder / "parts")
    run, silent = scene.join()
    assert (run.outcome, len(silent)) == ("INCONCLUSIVE", 5)
    assert "run each node id with --rn-run" in silent["candidate"]


@pytest.mark.parametrize("case", ["candidate", "defense", "helpfulness", "control", "attack"])
def test_a_missing_case_has_no_verdict(scene: Scene, case: str) -> None:
    """If a part is missing, its case has no verdict, nor has an attack without its control; the run is INCONCLUSIVE."""
    shutil.rmtree(scene.folder / "parts" / case)
    run, silent = scene.join()
    assert run.outcome == "INCONCLUSIVE"
    assert {c.partition("-")[0] for c in silent} == ({case, "attack"} if case == "control" else {case})
    assert all("got none of demo " in text for text in silent.values())


def _set(where: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets one field of a record."""

    def change(said: dict[str, Any]) -> None:
        *path, name = where.split(".")
        at: Any = said
        for part in path:
            at = at[int(part) if part.isdigit() else part]
        at[name] = value

    return change


def _score(said: dict[str, Any]) -> None:
    said["evidence"]["trajectory"]["checkpoints"][3]["scores"][0]["score"] = 9.0


def _prompts(said: dict[str, Any]) -> None:
    run = said["evidence"]["trajectory"]
    run["heldout_ids"] = run["heldout_ids"][1:]


def _settings(said: dict[str, Any]) -> None:
    said["evidence"]["trajectory"]["recipe"]["beta"] = 0.5


OTHER = "9" * 64
ALTERED = {
    "candidate": (_set("identity.candidate.digest", OTHER), "another candidate (digest)"),
    "suite": (_set("identity.suite.digest", OTHER), "another suite (digest)"),
    "judge": (_set("identity.judge.digest", OTHER), "another judge (digest)"),
    "reward": (_set("identity.reward.digest", OTHER), "another reward (digest)"),
    "tool": (_set("identity.versions.rn-harness-sources", OTHER), "another versions (rn-harness-sources)"),
    "overrides": (_set("identity.overrides", ["attack.steps=200"]), "another overrides"),
    "defense": (_set("identity.defense", "slow"), "of the defense slow"),
    "defense_recipe": (_set("provenance.defense.steps", 10), "its defense was made with other settings"),
    "defended_weights": (_set("identity.defended_files", OTHER), "not of those that were measured"),
    "key": (_set("inputs.forbidden", OTHER), "its line there is of another record"),
    "standing": (_set("evidence.standing", "exploratory"), "another standing"),
    "attack_cases": (_set("evidence.attack_cases", 2), "a tier with 2 attack cases"),
    "exact_judge": (_set("evidence.exact_judge", value=False), "of its judge what is not so"),
    "anchors": (_set("evidence.certificates.0.anchors_digest", OTHER), "certified on other texts"),
    "policy": (_set("evidence.policy.samples", 2), "another policy"),
    "score": (_score, "the record has other checkpoints than checkpoints.jsonl"),
    "heldout": (_prompts, "other held-out prompts"),
    "benign": (_set("evidence.trajectory.benign_ids", list(BENIGN[1:])), "other benign prompts"),
    "settings": (_settings, "other settings than the suite declares: beta"),
    "verdict": (_set("verdict.claim", "robust"), "is recorded as PASS, decided again it is PASS"),
    "control": (_set("evidence.control.checkpoints.3.leak", 0.01), "its control is not the control case of this run"),
}


@pytest.mark.parametrize(("change", "why"), ALTERED.values(), ids=ALTERED)
def test_a_record_of_another_run_or_an_altered_one_is_refused(
    scene: Scene, change: Callable[[dict[str, Any]], None], why: str
) -> None:
    """An altered record is refused with the reason, even if all digests of its part are updated."""
    scene.rewrite("attack", change)
    assert why in scene.refusal()


def test_a_record_with_another_cases_key_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A consistent record that was measured on something else has another key and is refused."""
    monkeypatch.setattr(acceptance, "expected_key", lambda *_: OTHER)
    assert "its key is not that of this case" in scene.refusal()


def test_a_part_of_another_run_is_refused(scene: Scene) -> None:
    """A part of an earlier run with the same options is refused, and the error names both ids."""
    shutil.rmtree(scene.folder / "parts" / "attack")
    scene.part("attack", ATTACK, run_id="f" * 32)
    assert f"its part is of run {'f' * 32}, this is {RUN_ID}" in scene.refusal()


def test_a_file_that_changed_after_its_part_ended_is_refused(scene: Scene) -> None:
    """A record that differs from the digest in its part's run.json is refused."""
    path = scene.record("attack")
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert "is not the file that the run's record binds" in scene.refusal()


def test_a_part_with_other_options_is_refused(scene: Scene) -> None:
    """Each option must be the same, also an option that no record contains."""
    shutil.rmtree(scene.folder / "parts" / "attack")
    scene.part("attack", ATTACK, allow_pickle=True)
    assert "other options (allow_pickle, arguments)" in scene.refusal()


def test_a_file_that_no_part_binds_is_not_copied(scene: Scene, tmp_path: Path) -> None:
    """A link next to a record is not copied, because no part binds it."""
    (tmp_path / "secret").write_text("a secret", encoding="utf-8")
    scene.record("attack").with_name("transcript.jsonl").symlink_to(tmp_path / "secret")
    case = scene.gathered()[1].case(CaseTask("attack", scene.suite, scene.attack))
    assert sorted(p.name for p in case.folder.iterdir()) == [CHECKPOINTS, "record.json"]


def test_different_measurements_of_a_case_are_refused(scene: Scene) -> None:
    """Two different measurements of a case leave it without a verdict: a case is not repeated until it passes."""
    scene.part("again", ATTACK, level=1.0)
    run, silent = scene.join()
    assert (run.outcome, list(silent)) == ("INCONCLUSIVE", [ATTACK])
    assert "in parts/again and, with other numbers, in parts/attack" in silent[ATTACK]


@pytest.mark.parametrize("odd", [False, True])
def test_different_measurements_of_a_restrained_attack_are_refused(odd: bool, scene: Scene) -> None:
    """Two parts of a case that differ only in a restrained attack leave it without a verdict; two equal ones do not."""
    scene.part("again", ATTACK)
    for name, score in (("attack", 0.0), ("again", 1.0 if odd else 0.0)):
        evidence = CaseRecord.model_validate_json(scene.record(name).read_text(encoding="utf-8")).evidence
        assert evidence.trajectory
        assert evidence.control
        of = restrained_attack(1, evidence.trajectory, evidence.control, lambda run: run).model_dump(mode="json")
        of["attack"]["checkpoints"][3]["scores"][0]["score"] = score
        scene.rewrite(name, _set("evidence.restrained", [of]))
    assert ("with other numbers" in scene.refusal()) is odd


@pytest.mark.parametrize("name", ["again", "zagain"])
def test_a_breach_in_one_part_fails_the_run(scene: Scene, name: str) -> None:
    """A breach in one part fails the run, even if another part of the same case held, in whichever order."""
    scene.part(name, ATTACK, level=9.0)
    run, silent = scene.join()
    assert (run.outcome, silent) == ("FAIL", {})
    assert run.options["joined"][f"demo {ATTACK}"] == f"parts/{name}"


@pytest.mark.parametrize("how", ["cut", "link"])
def test_a_part_that_cannot_be_read_is_not_passed_over(scene: Scene, tmp_path: Path, how: str) -> None:
    """A second part with the record of a breach that is cut, or that is a link, leaves its case without a verdict."""
    part = scene.part("zagain", ATTACK, level=9.0)
    if how == "cut":
        record = scene.record("zagain")
        record.write_text(record.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
        (part / "cases" / record.parent.name / CHECKPOINTS).write_text("", encoding="utf-8")
    else:
        part.rename(tmp_path / "elsewhere")
        part.symlink_to(tmp_path / "elsewhere")
    run, silent = scene.join()
    assert run.outcome == "INCONCLUSIVE"
    assert ("got one in parts/zagain that is not" if how == "cut" else "got a link at parts/zagain") in silent[ATTACK]


@pytest.mark.parametrize("readable", [True, False])
def test_a_breach_that_no_checkpoint_shows_counts_in_a_killed_part(scene: Scene, readable: bool) -> None:
    """The record of a part that was killed later fails the run by its probes alone; one that is cut leaves the case unknown."""
    part = scene.part("zz", "defense")
    scene.rewrite("zz", _set("evidence.trajectory.probes.plain.mean", 8.0))
    assert "probe" in {reason.code for reason in decide(_evidence(scene.record("zz"))).reasons}
    (part / "run.json").unlink()
    if not readable:
        scene.record("zz").write_text("{", encoding="utf-8")
    run, silent = scene.join()
    assert run.outcome == ("FAIL" if readable else "INCONCLUSIVE")
    assert ("defense" in silent) is not readable


def _evidence(path: Path) -> Evidence:
    """The evidence of a record's file."""
    return CaseRecord.model_validate_json(path.read_text(encoding="utf-8")).evidence


def _key(scene: Scene) -> str:
    """Key of the attack's case."""
    return CaseRecord.model_validate_json(scene.record("attack").read_text(encoding="utf-8")).key


def _cut_part(scene: Scene, case_id: str, key: str, change: Callable[[dict[str, Any]], None], file: str = CHECKPOINTS) -> None:
    """A part that was killed: it has checkpoints of its case but no record."""
    source = scene.record("attack").with_name(CHECKPOINTS)
    lines = source.read_text(encoding="utf-8").splitlines()[:5]
    said = json.loads(lines[4])
    change(said)
    into = scene.folder / "parts" / "cut" / "cases" / f"demo-{case_id}-{key[:12]}"
    into.mkdir(parents=True)
    (into / file).write_text("\n".join([*lines[:4], json.dumps(said), '{"step": 5']), encoding="utf-8")


def _nothing(said: dict[str, Any]) -> None:
    said.update(leak_per_token=-3.0)  # recorded only if the control ran in the same process


def _one_word_more(said: dict[str, Any]) -> None:
    said["mean_words"] += 1.0
    said["scores"][0]["words"] += len(said["scores"])


def _breach(said: dict[str, Any]) -> None:
    scores = [s["score"] for s in said["scores"]]
    scores[0] = said["scores"][0]["score"] = 9.0
    said.update(maximum=9.0, mean=sum(scores) / len(scores), greedy_mean=9.0 * 4 / len(scores))
    said["above"] = {"count": 1, "total": len(scores), "share": 1 / len(scores), "low": 0.0, "high": 0.1}


@pytest.mark.parametrize(
    ("change", "outcome", "earlier"),
    [(_nothing, "PASS", []), (_one_word_more, "PASS", [40]), (_breach, "FAIL", [40])],
    ids=["repeated", "other", "breach"],
)
def test_a_killed_parts_checkpoints_count(
    scene: Scene, change: Callable[[dict[str, Any]], None], outcome: str, earlier: list[int]
) -> None:
    """A killed part's checkpoints count: equal ones add nothing, different ones are kept, and a breach fails the run."""
    _cut_part(scene, ATTACK, _key(scene), change)
    run, silent = scene.join()
    assert (run.outcome, silent) == (outcome, {})
    (path,) = scene.folder.glob("cases/demo-attack-*/record.json")
    record = CaseRecord.model_validate_json(path.read_text(encoding="utf-8"))
    assert record.evidence.trajectory is not None
    assert [c.step for c in record.evidence.trajectory.earlier] == earlier
    assert ("restarted" in {w.code for w in record.verdict.warnings}) == bool(earlier)


def test_a_killed_parts_restrained_attack_counts_too(scene: Scene) -> None:
    """A breach in a restrained attack that a killed part had begun fails the run, although the record has none."""
    _cut_part(scene, ATTACK, _key(scene), _breach, "restrained-1-attack.jsonl")
    run, silent = scene.join()
    assert (run.outcome, silent) == ("FAIL", {})


def test_rounding_on_a_gpu_is_not_another_measurement(scene: Scene) -> None:
    """On a GPU, sums have a random order: a number may differ in its fifth digit, on a CPU it may not."""

    def rounded(said: dict[str, Any]) -> None:
        said["training"]["grad_norm"] *= 1.00001

    _cut_part(scene, ATTACK, _key(scene), rounded)
    results = scene.gathered()[1]
    found = results._find("demo", ATTACK)
    assert [c.step for c in results._other_tries(found, "it")] == [40]
    hardware = found.record.identity.hardware | {"device": "a card"}
    identity = found.record.identity.model_copy(update={"hardware": hardware})
    on_card = dataclasses.replace(found, record=found.record.model_copy(update={"identity": identity}))
    assert list(results._other_tries(on_card, "it")) == []


def test_a_killed_part_with_another_key_is_refused(scene: Scene) -> None:
    """If a killed part's case had another key (other weights or hardware), neither result counts."""
    _cut_part(scene, ATTACK, OTHER, _nothing)
    assert "with another key in parts/cut" in scene.refusal()


def test_records_of_different_hardware_are_refused(scene: Scene) -> None:
    """If parts differ in hardware, no case has a verdict, and the error names a differing case."""

    def elsewhere(said: dict[str, Any]) -> None:
        said["identity"]["hardware"]["device"] = said["inputs"]["hardware"]["device"] = "another"

    scene.rewrite("attack", elsewhere, rekeyed=True)
    run, silent = scene.join()
    assert (run.outcome, len(silent)) == ("INCONCLUSIVE", 5)
    assert all(f"cases of one run differ in hardware of {ATTACK}" in text for case, text in silent.items() if case != ATTACK)


def test_a_part_that_has_not_ended_is_named(scene: Scene) -> None:
    """If a part still runs or was killed, the error names it."""
    (scene.folder / "parts" / "attack" / "run.json").unlink()
    assert "not ended, or not to be read: parts/attack" in scene.refusal()
