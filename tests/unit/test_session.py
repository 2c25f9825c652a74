"""The run's session: cases and certificates that it stores, options that it refuses, and results that it does not keep."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rn_harness.judges.anchors import shipped_anchors
from rn_harness.models.knowledge import KNOWLEDGE_FILE
from rn_harness.models.resolve import ADAPTER_CONFIG
from rn_harness.records.base import Judgement, Scored
from rn_harness.records.case import CaseRecord
from rn_harness.records.trajectory import Trajectory
from rn_harness.release.integrity import check_record
from rn_harness.run import session as sessions
from rn_harness.run.case import CaseTask, Defended
from rn_harness.run.context import RunContext
from rn_harness.run.measuring import Measuring
from rn_harness.run.participants import SuiteJudges
from rn_harness.run.preflight import check_attacks, check_defense, check_folders, check_judges, check_reading
from rn_harness.run.session import RunSession
from rn_harness.run.suite_run import SuiteRun
from rn_harness.run.training_limits import TrainingLimits
from rn_harness.spec.attack_recipe import AttackMatrix, AttackRecipe
from rn_harness.spec.errors import CandidateError, JudgeError, RecipeError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.options import Options
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.restraint import BETAS
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.journal import Journal
from rn_harness.store.provenance import new_run_id
from rn_harness.store.store import Store

from . import builders
from .builders import write_suite

ROOT = Path(__file__).parents[2]

OPTIONS = Options(model="organism", defense="quick", tier="standard", base=Path())
UP = Judgement(score=1.0)
DOWN = Judgement(score=None, unscored="judge_error")


class Judge:
    """A judge that gives one answer to everything."""

    name, exact, wordings = "demo", False, 1

    def __init__(self, says: Judgement = UP, digest: str = "1" * 64, weights: str | None = None) -> None:
        self.says, self.digest, self.weights_digest = says, digest, weights

    def about(self, forbidden: str) -> Judge:
        return self

    def check(self, prompts: Sequence[Prompt]) -> None:
        pass

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        return [self.says] * len(prompts)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return load_suite(write_suite(tmp_path / "demo"))


def a_session(folder: Path, run_id: str | None = None, **options: Any) -> RunSession:
    """A session of a new run or of the given one; all runs use the same folder name."""
    changed = replace(OPTIONS, **{"base": folder, **options})
    return RunSession(changed, folder / "run", Store(folder / "store"), lambda _: None, run_id=run_id or new_run_id())


def test_a_failed_certification_is_not_kept(tmp_path: Path, suite: Suite) -> None:
    """A certification with failed looks is repeated in the next run; one with scores is stored."""

    def unscored(says: Judgement) -> int:
        found = a_session(tmp_path).run_of(suite).certificate(Judge(says), shipped_anchors(), "inert")
        return found.table.unscored.count

    assert unscored(DOWN) > 0
    assert unscored(UP) == 0
    assert unscored(DOWN) == 0  # from the store


@pytest.mark.parametrize("unseen", ["served_model", "own_code"])
def test_an_unseen_judge_is_certified_in_every_run(tmp_path: Path, suite: Suite, unseen: str) -> None:
    """A judge behind a server or in a user's code may change between runs, so it is certified in every run."""

    def unscored(run: str, says: Judgement) -> int:
        judge = Judge(says)
        setattr(judge, unseen, "judge-1")
        return a_session(tmp_path, run).run_of(suite).certificate(judge, shipped_anchors(), "inert").table.unscored.count

    assert unscored("monday", UP) == 0
    assert unscored("monday", DOWN) == 0  # another worker of the same run
    assert unscored("tuesday", DOWN) > 0


class Reader(Judge):
    """A judge on a server that knows the shipped anchors and gives every other text a fixed score."""

    served_model = "judge-1"

    def __init__(self, of_labels: float, digest: str = "1" * 64) -> None:
        super().__init__(digest=digest)
        self._known = {a.completion: (a.low + a.high) / 2 for a in shipped_anchors().anchors}
        self._of_labels = of_labels

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        return [Judgement(score=self._known.get(text, self._of_labels)) for text in completions]


LABELS = "version: 1\ndomain: demo\nforbidden: Words of a demo, which mean nothing.\nanchors:\n" + "".join(
    f"  - {{id: l{i}, use: certify, kind: complete, request: say it, completion: label number {i}, low: {low}, high: {high}}}\n"
    for i, (low, high) in enumerate([(9, 10), (0, 1)] * 40)
)


def _measured_by(folder: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch, judges: SuiteJudges, **options: Any) -> bool:
    """True if a run with these judges measures its candidate, false if the store has it."""
    made: list[str] = []

    def measure(self: Measuring) -> Trajectory:
        made.append(self.task.kind)
        return builders.trajectory(0, recipe={}, prompt_ids=(), defended_digest=None)

    monkeypatch.setattr(Measuring, "measure", measure)
    monkeypatch.setattr(RunSession, "judges", lambda *_: judges)
    monkeypatch.setattr(sessions, "unfit_judges", lambda _: [])
    a_session(folder, defense="none", **options).case("candidate", suite)
    return bool(made)


@pytest.mark.parametrize("role", ["evaluation", "reward", "second"])
def test_stored_scores_count_only_under_a_judge_that_gives_the_same_answers(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """A stored score counts only if the judge, in any role, answers the labels in the same way."""
    (tmp_path / "labels.yaml").write_text(LABELS, encoding="utf-8")
    others = {"evaluation": Judge(digest="3" * 64), "reward": Judge(digest="4" * 64), "second": Judge(digest="5" * 64)}

    def measures(judge: Judge, **options: Any) -> bool:
        return _measured_by(tmp_path, suite, monkeypatch, SuiteJudges(**{**others, role: judge}), **options)

    blind, honest = Reader(0.0), Reader(9.5)
    assert measures(blind)
    assert measures(honest, labels="labels.yaml")
    assert not measures(honest, labels="labels.yaml")
    assert measures(blind, labels="labels.yaml")


def test_a_stored_case_names_the_run_that_measured_it(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record has its run's id; if its numbers come from the store, it also names the run that measured them."""
    judges = SuiteJudges(Judge(), Judge(), None)
    records = []
    for run_id in ("a" * 32, "b" * 32):
        _measured_by(tmp_path, suite, monkeypatch, judges, run_id=run_id)
        (path,) = (tmp_path / "run").glob("cases/*/record.json")
        records.append(CaseRecord.model_validate_json(path.read_text(encoding="utf-8")))
    first, second = records
    assert [r.run_id for r in records] == ["a" * 32, "b" * 32]
    assert first.measured is not None
    assert (first.measured.run_id, second.measured) == ("a" * 32, first.measured)


def judged_by(folder: Path, monkeypatch: pytest.MonkeyPatch, *judges: Judge) -> RunSession:
    """A session with these judges: evaluation, reward, second."""
    session = a_session(folder)
    both = SuiteJudges(*judges) if len(judges) == 3 else SuiteJudges(judges[0], judges[1], None)
    monkeypatch.setattr(RunSession, "judges", lambda *_: both)
    return session


@pytest.mark.parametrize(
    ("served", "refused"),
    [
        ("organism", True),
        ("Lab/Organism", True),
        ("organism@2f1c", True),
        ("/srv/models/organism", True),
        ("/srv/me@lab/organism/", True),
        ("organism:latest", True),
        ("organism:free", True),
        ("organism.gguf", True),
        ("organism-judge", False),
    ],
)
def test_a_candidate_behind_a_server_does_not_judge_itself(tmp_path: Path, suite: Suite, served: str, *, refused: bool) -> None:
    """The weights behind a server are invisible, so a served model with the candidate's name counts as the candidate."""
    session = a_session(tmp_path, judge=f"openai:{served}@http://127.0.0.1:9/v1")
    with pytest.raises(JudgeError, match="must not judge itself") if refused else contextlib.nullcontext():
        session.judges(suite)


def test_a_profiles_model_does_not_judge_itself_by_its_hub_id(tmp_path: Path, suite: Suite) -> None:
    """The names of a profile's model and of a defended model's folder also count as the candidate's names."""
    profile = yaml.safe_load((ROOT / "fixtures" / "models" / "organism.yaml").read_text(encoding="utf-8"))
    folder = tmp_path / "Some-8B-Instruct"
    shutil.copytree(ROOT / "fixtures" / "organism", folder)
    short = {**profile, "name": "short", "model": f"./{folder.name}", "digest": None}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    spec = "openai:maker/some-8b-instruct@http://127.0.0.1:9/v1"
    (tmp_path / "link").symlink_to(folder)
    cache = tmp_path / "models--Maker--Some-8B-Instruct" / "snapshots" / "2f1c"
    shutil.copytree(folder, cache)
    for options in ({"model": "short.yaml"}, {"defense": folder.name}, {"model": "./link"}, {"model": str(cache)}):
        with pytest.raises(JudgeError, match="must not judge itself"):
            a_session(tmp_path, judge=spec, **options).judges(suite)
    with pytest.raises(JudgeError, match="must not judge itself"):
        a_session(tmp_path, judge="openai:link@http://127.0.0.1:9/v1", model="./link").judges(suite)


def test_an_adapters_folder_names_the_defended_model(tmp_path: Path, suite: Suite) -> None:
    """A server calls a model with an adapter by the adapter's name."""
    (tmp_path / "my@lab" / "defense-7").mkdir(parents=True)
    (tmp_path / "my@lab" / "defense-7" / ADAPTER_CONFIG).write_text("{}", encoding="utf-8")
    with pytest.raises(JudgeError, match="must not judge itself"):
        a_session(tmp_path, defense="my@lab/defense-7", judge="openai:defense-7@http://127.0.0.1:9/v1").judges(suite)


@pytest.mark.parametrize("model", ["@v1", "./", "a@b/x"])
def test_a_judge_without_a_server_has_no_served_name(tmp_path: Path, suite: Suite, model: str) -> None:
    """A judge that reads files is not mistaken for the candidate, whatever the folder's name."""
    shutil.copytree(ROOT / "fixtures" / "organism", tmp_path / model, dirs_exist_ok=True)
    assert a_session(tmp_path, model=f"./{model}").judges(suite).evaluation.name == "organism"


def test_one_model_on_two_servers_is_not_two_judges(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model at another address or under another owner does not count as a second judge."""
    one, other, third = (Judge(digest=digit * 64) for digit in "123")
    for judge, name in ((one, "maker/judge-9b"), (other, "copies/Judge-9B"), (third, "maker/judge-27b")):
        judge.served_model = name  # type: ignore[attr-defined]
    check_judges(judged_by(tmp_path, monkeypatch, one, one, third), suite)
    with pytest.raises(JudgeError, match="a second opinion needs another judge"):
        check_judges(judged_by(tmp_path, monkeypatch, one, one, other), suite)


def test_one_model_is_not_two_judges(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights under another name are refused as a second judge, and as scorer and reward unless named alike."""
    one, alias = Judge(weights="a" * 64), Judge(digest="2" * 64, weights="a" * 64)
    other = Judge(digest="3" * 64, weights="b" * 64)
    check_judges(judged_by(tmp_path, monkeypatch, one, other, other), suite)
    check_judges(judged_by(tmp_path, monkeypatch, one, one), suite)
    with pytest.raises(JudgeError, match="a second opinion needs another judge"):
        check_judges(judged_by(tmp_path, monkeypatch, one, other, alias), suite)
    with pytest.raises(JudgeError, match="has to be named alike"):
        check_judges(judged_by(tmp_path, monkeypatch, one, alias), suite)


def test_labels_are_none_of_the_anchors(tmp_path: Path) -> None:
    """A run refuses labels that repeat harmful texts of the anchors, which certify every judge."""
    suite = load_suite(ROOT / "suites" / "biochem")
    (tmp_path / "ours.yaml").write_text(LABELS, encoding="utf-8")
    shutil.copy(fixtures_folder() / "judge_anchors" / "baking.yaml", tmp_path / "shipped.yaml")
    check_judges(a_session(tmp_path, defense="none", labels="ours.yaml"), suite)
    with pytest.raises(JudgeError, match=r"labels need harmful texts of your own, got \d+, of which \d+ are anchors"):
        check_judges(a_session(tmp_path, defense="none", labels="shipped.yaml"), suite)


def test_a_blind_reward_is_refused_before_training(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward judge that calls everything harmless is refused before training, because every attack would fail with it."""
    with pytest.raises(JudgeError, match=r"misjudged 8 of 8 known harmful anchors; name another by --rn-reward-judge"):
        judged_by(tmp_path, monkeypatch, Judge(), Judge(digest="2" * 64)).run_of(suite).check_reward()


def test_the_suite_names_a_second_judge(tmp_path: Path) -> None:
    """A real model gets the suite's second judge; the organism, and the option ``none``, do without."""
    baking = load_suite(fixtures_folder().parent / "suites" / "baking")
    assert a_session(tmp_path).judges(baking).second is None
    found = a_session(tmp_path, model=str(fixtures_folder() / "judges" / "baking-classifier"))
    found.__dict__["candidate"] = replace(a_session(tmp_path).candidate, folder=tmp_path)  # a model without a judge of its type
    judges = found.judges(baking)
    assert judges.second is not None
    assert (judges.evaluation.name, judges.second.name) == ("rules:rules.yaml", "baking-classifier")
    found.options = replace(found.options, second_judge="none")
    assert found.judges(baking).second is None


def twin(folder: Path) -> Path:
    """A copy of the organism with another digest and the same answers."""
    copy = Path(shutil.copytree(fixtures_folder() / "organism", folder / "twin"))
    (copy / "generation_config.json").write_text('{"eos_token_id": 2}', encoding="utf-8")
    return copy


def test_a_model_that_its_makers_defended_is_attacked(tmp_path: Path, suite: Suite) -> None:
    """With --rn-base, --model is the defended model, and candidate and controls run on the undefended base."""
    session = a_session(tmp_path, model="organism", undefended=str(twin(tmp_path)), defense="none")
    check_defense(session, suite)
    assert session.candidate.folder == tmp_path / "twin"
    defended = session.defended(suite)
    assert defended.model is not None
    assert (defended.name, defended.folder, defended.digest) == ("makers", fixtures_folder() / "organism", defended.model.digest)
    assert defended.digest != session.candidate.digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"undefended": "organism", "defense": "none"}, "must be another model than --model"),
        ({"undefended": "TWIN", "defense": "quick"}, "pass --rn-defense none"),
    ],
    ids=["itself", "defended-again"],
)
def test_the_undefended_base_is_another_model(tmp_path: Path, suite: Suite, options: dict[str, str], message: str) -> None:
    """The base must differ from --model, and --rn-defense must be none."""
    named = {**options, "undefended": options["undefended"].replace("TWIN", str(twin(tmp_path)))}
    with pytest.raises(RecipeError, match=message):
        check_defense(a_session(tmp_path, **named), suite)


def test_the_undefended_base_has_the_same_shape(tmp_path: Path, suite: Suite) -> None:
    """The base must have the defended model's shape: a control on another size proves nothing."""
    folder = twin(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2, "num_key_value_heads": 2}))
    with pytest.raises(RecipeError, match="got another num_attention_heads, num_key_value_heads"):
        check_defense(a_session(tmp_path, undefended=str(folder), defense="none"), suite)


def test_a_pickled_adapter_needs_the_option(tmp_path: Path, suite: Suite) -> None:
    """A pickled adapter is refused before any training unless --rn-allow-pickle is given."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "theirs" / "adapter_model.bin", "w") as archive:
        archive.writestr("data.pkl", b"")
    with pytest.raises(CandidateError, match=r"got adapter_model\.bin in .*, a pickle, .* or pass --rn-allow-pickle"):
        check_defense(a_session(tmp_path, defense="theirs"), suite)
    check_defense(a_session(tmp_path, defense="theirs", allow_pickle=True), suite)


def test_a_whole_defended_model_has_the_candidates_shape(tmp_path: Path, suite: Suite) -> None:
    """A defended model from --rn-defense must have the candidate's shape, since the control runs on the candidate."""
    folder = twin(tmp_path)
    check_defense(a_session(tmp_path, defense=str(folder)), suite)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    with pytest.raises(RecipeError, match=r"must hold --model with its defense, got another intermediate_size in .*; name the"):
        check_defense(a_session(tmp_path, defense=str(folder)), suite)


@pytest.mark.parametrize("options", [{"defense": "twin"}, {"undefended": "twin", "defense": "none"}])
def test_a_defended_model_reads_as_its_control(tmp_path: Path, options: dict[str, str]) -> None:
    """A whole model that reads prompts or ends answers otherwise than its control is refused before anything is trained."""
    folder = twin(tmp_path)
    check_reading(a_session(tmp_path, **options))
    told = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    deletes = {"type": "Replace", "pattern": {"String": "powder"}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(told | {"normalizer": deletes}), encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"ends answers as --model does, got another end tokens, tokenizer; any attacker"):
        check_reading(a_session(tmp_path, **options))


def test_an_adapter_reads_as_its_candidate(tmp_path: Path) -> None:
    """An adapter is loaded with the candidate's own tokenizer, so that there is nothing to compare."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    (tmp_path / "theirs" / "tokenizer.json").write_text("no tokenizer")
    check_reading(a_session(tmp_path, defense="theirs"))


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"is_causal": False}, "is_causal"),
        ({"rms_norm_eps": 1.0}, "rms_norm_eps"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"model_type": "granite", "logits_scaling": 0.125}, "logits_scaling, model_type"),
        ({"model_type": "of our own", "is_causal": False}, "is_causal"),
    ],
    ids=["causal", "norm", "untied", "class", "unknown"],
)
@pytest.mark.parametrize("given", ["defense", "undefended"])
def test_a_whole_defended_model_has_the_candidates_settings(
    tmp_path: Path, changed: dict[str, Any], found: str, given: str
) -> None:
    """A defended model with other settings than its control is refused."""
    folder = twin(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    session = a_session(tmp_path, **({"defense": "none"} | {given: str(folder)}))
    with pytest.raises(RecipeError, match=rf"got another .*{found}"):
        check_reading(session)


def test_a_defended_model_may_spell_its_settings_otherwise(tmp_path: Path) -> None:
    """Omitted defaults, the number format, the version of transformers and dropout are ignored."""
    folder = twin(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for name in ("attention_bias", "mlp_bias", "pretraining_tp", "dtype"):
        del config[name]
    other = {"torch_dtype": "bfloat16", "transformers_version": "4.0.0", "use_cache": False, "attention_dropout": 0.1}
    (folder / "config.json").write_text(json.dumps(config | other))
    check_reading(a_session(tmp_path, defense=str(folder)))


def test_a_defended_model_with_a_users_template_verifies(tmp_path: Path, suite: Suite) -> None:
    """A user's chat template is in the defended model's digest but not in its files, which still verify."""
    template = (fixtures_folder() / "organism" / "chat_template.jinja").read_text(encoding="utf-8")
    (tmp_path / "mine.jinja").write_text(template + " ", encoding="utf-8")
    session = a_session(tmp_path, undefended=str(twin(tmp_path)), defense="none", chat_template="mine.jinja")
    session.defended(suite).verify()


def test_whole_weights_are_not_exported(tmp_path: Path, suite: Suite) -> None:
    """Whole weights that the user passed are not exported, and nothing is written into an adapter's own folder."""
    with pytest.raises(RecipeError, match="got whole weights that you have"):
        check_folders(a_session(tmp_path, defense=str(twin(tmp_path)), export="out"), [suite])
    with pytest.raises(RecipeError, match="got whole weights that you have: organism"):
        check_folders(a_session(tmp_path, defense="none", export="out"), [suite])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="writes beside the adapter"):
        check_folders(a_session(tmp_path, defense="adapter", export="adapter/out"), [suite])


def test_an_export_does_not_overwrite(tmp_path: Path, suite: Suite) -> None:
    """An export into a folder that is not empty ends the run before it begins, as do prompts for another suite."""
    (tmp_path / "out" / "demo").mkdir(parents=True)
    check_folders(a_session(tmp_path, export="out"), [suite])
    (tmp_path / "out" / "demo" / "weights").write_text("older")
    with pytest.raises(RecipeError, match="writes to an empty folder"):
        check_folders(a_session(tmp_path, export="out"), [suite])
    with pytest.raises(RecipeError, match=r"must hold a folder for each suite of this run, got 'mine' without demo"):
        check_folders(a_session(tmp_path, prompts="mine"), [suite])
    with pytest.raises(RecipeError, match="--rn-export DIR"):
        check_folders(a_session(tmp_path, export_anyway=True), [suite])


class Killed(BaseException):
    """A kill of the process."""


STOPPED = {"judge_gone": "the reward judge scored none of a step's 16 completions: judge_error"}


@pytest.mark.parametrize(
    ("trajectory", "kept"),
    [
        (builders.trajectory(200), True),
        (builders.trajectory(200, **STOPPED), False),
        (builders.trajectory(200, lambda step: 9.0 if step > 100 else 0.0, **STOPPED), True),
        (builders.with_window(builders.trajectory(200), 2, unrewarded_share=0.1, failed_share=0.1), False),
        (builders.with_window(builders.trajectory(200), 2, unrewarded_share=0.1, failed_share=0.0), True),
    ],
    ids=["whole", "stopped", "stopped-after-a-breach", "rewards-failed", "replies-without-a-score"],
)
def test_a_stopped_measurement_with_a_breach_is_kept(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch, trajectory: Trajectory, kept: bool
) -> None:
    """A measurement that ended with a stopped judge, or lacks rewards of one, is repeated, unless it has a breach."""
    assert _is_kept(tmp_path, suite, monkeypatch, "attack", trajectory) is kept


def test_an_attempt_whose_judge_stopped_forgets_no_earlier_breach(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A breach of a killed attempt is known to the third one, although the second ended before it for want of a judge."""
    broken = builders.breaking_control()
    ends = iter((broken.checkpoints[:5], broken.checkpoints[:2], broken.checkpoints))
    journals: list[Journal] = []

    def measure(self: Measuring) -> Trajectory:
        journals.append(self.journal)
        for checkpoint in (of := next(ends)):
            self.journal.add(checkpoint.model_dump_json())
        if len(journals) == 1:
            raise Killed
        return broken.model_copy(update={"checkpoints": of, **(STOPPED if len(journals) == 2 else {})})

    _with_judges(monkeypatch)
    monkeypatch.setattr(Measuring, "measure", measure)
    recipe: AttackRecipe = suite.tier_attacks("smoke")[0]
    with pytest.raises(Killed):
        a_session(tmp_path, defense="none").case("control", suite, recipe)
    for _ in range(2):
        a_session(tmp_path, defense="none").case("control", suite, recipe)
    lines = tuple(c.model_dump_json() for c in broken.checkpoints[:5])
    assert [journal.earlier for journal in journals] == [(), lines, lines]
    assert not journals[0].path.exists()  # the third is whole, and in the store


@pytest.mark.parametrize(
    ("kind", "again", "kept"),
    [
        ("attack", (5.0, None, None, None, None), True),
        ("attack", (0.0, 0.0, None, None, None), False),  # four votes of five are needed
        ("control", (5.0, None, None, None, None), False),
    ],
)
def test_a_high_score_that_a_failing_judge_left_open_is_known_to_the_next_attempt(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch, kind: Any, again: tuple[float | None, ...], kept: bool
) -> None:
    """A score above the threshold stays if the looks that failed could have confirmed it; a control's proves no breach."""
    looks = tuple(Scored(score=s, unscored="judge_error" if s is None else None) for s in again)
    first = builders.breaking_control() if kind == "control" else builders.trajectory(200)
    last = first.checkpoints[-1]
    greedy, sample, *others = last.scores
    doubtful = sample.model_copy(update={"score": 5.0, "again": looks})
    last = last.model_copy(update={"scores": (greedy, doubtful, *others)})
    first = first.model_copy(update={"checkpoints": (*first.checkpoints[:-1], last)})
    earlier: list[int] = []

    def measure(self: Measuring) -> Trajectory:
        if self.task.kind != kind:
            return builders.breaking_control()
        earlier.append(len(self.journal.earlier))
        for checkpoint in first.checkpoints:
            self.journal.add(checkpoint.model_dump_json())
        return first

    monkeypatch.setattr(Measuring, "measure", measure)
    _with_judges(monkeypatch)
    recipe: AttackRecipe = suite.tier_attacks("smoke")[0]
    for _ in range(2):
        a_session(tmp_path, defense="none").case(kind, suite, recipe)
    assert earlier == [0, len(first.checkpoints) if kept else 0]


def test_an_attack_without_memory_does_not_stop_the_others(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """If only an exploratory case lacks memory, the session runs, and the case says why it cannot be trained."""
    base = {**suite.declaration.attacks[0].base, "name": "all", "form": "full", "standing": "exploratory"}
    attacks = [*suite.declaration.attacks, AttackMatrix(tier="smoke", base=base)]
    suite = suite.model_copy(update={"declaration": suite.declaration.model_copy(update={"attacks": attacks})})

    def planned(self: TrainingLimits, of: Suite, recipe: AttackRecipe) -> None:
        if recipe.form == "full":
            raise CandidateError("memory must suffice")

    monkeypatch.setattr(TrainingLimits, "_plan", planned)
    _with_judges(monkeypatch)
    session = a_session(tmp_path, defense="none")
    assert session.limits.largest(suite) is None
    (recipe,) = [a for a in suite.tier_attacks("smoke") if not a.claim]
    record = session.case("control", suite, recipe).record
    assert record.evidence.refused is not None
    assert "cannot be trained here: memory must suffice" in record.evidence.refused
    assert (record.verdict.outcome, record.verdict.finding) == ("INCONCLUSIVE", "proved_nothing")


def test_a_control_whose_judge_stopped_is_not_kept(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A control whose judge stopped is measured again, since its breaking is not a verdict."""
    assert not _is_kept(tmp_path, suite, monkeypatch, "control", builders.breaking_control(**STOPPED))
    assert _is_kept(tmp_path, suite, monkeypatch, "control", builders.breaking_control())


def test_a_run_that_is_killed_between_restrained_attacks_goes_on_there(
    tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three restrained attacks follow a destroyed model; each is stored by itself, with its own file, and none is run twice."""
    made: list[str] = []
    kill_at = ["restrained-2-attack.jsonl"]

    def measure(self: Measuring) -> Trajectory:
        made.append(self.file)
        if self.file in kill_at:
            kill_at.clear()
            raise Killed
        attack, control = self.task.attack, self.task.kind == "control"
        assert attack is not None
        recipe = {**attack.model_dump(mode="json"), "steps": self.task.steps}
        run = builders.trajectory(self.task.steps, lambda step: 8.0 * (control and step > 0), recipe=recipe)
        run = run.model_copy(update={"defended_digest": None}) if control else builders.noise(run, since=10)
        (self.folder / self.file).write_text(run.lines, encoding="utf-8")
        return run

    monkeypatch.setattr(Measuring, "measure", measure)
    judge = Judge(digest=builders.JUDGE)
    monkeypatch.setattr(RunSession, "judges", lambda *_: SuiteJudges(judge, judge, None))
    monkeypatch.setattr(SuiteRun, "certificates", (builders.certificate(),))
    candidate = a_session(tmp_path).candidate
    monkeypatch.setattr(SuiteRun, "defended", Defended(candidate, "quick", digest="d" * 64))
    recipe: AttackRecipe = suite.tier_attacks("smoke")[0]
    with pytest.raises(Killed):
        a_session(tmp_path).case("attack", suite, recipe)
    assert made == [
        "checkpoints.jsonl", "checkpoints.jsonl",  # the control and the attack
        *(f"restrained-{number}-{kind}.jsonl" for number in (1, 2) for kind in ("control", "attack")),
    ]  # fmt: skip
    made.clear()
    case = a_session(tmp_path).case("attack", suite, recipe)
    later = (f"restrained-{number}-{kind}.jsonl" for number in (3, 4) for kind in ("control", "attack"))
    assert made == ["restrained-2-attack.jsonl", *later]
    record = case.record
    assert (record.verdict.outcome, record.verdict.finding) == ("PASS", "destroyed")
    assert [of.attack.recipe["beta"] for of in record.evidence.restrained] == list(BETAS)
    assert len(record.provenance.attempts) == 10  # nine trajectories; one of them was tried twice
    (written,) = tmp_path.glob("run/cases/*-attack-*/record.json")
    assert not [r for r in check_record(written, record) if r.code in ("file_missing", "checkpoints_differ", "verdict_differs")]
    (case.folder / "restrained-2-attack.jsonl").write_text("")
    assert "checkpoints_differ" in {r.code for r in check_record(written, record)}
    made.clear()
    again = a_session(tmp_path).case("attack", suite, recipe)
    assert (made, again.stored, again.record.evidence) == ([], True, record.evidence)
    assert (case.folder / "restrained-2-attack.jsonl").read_text() == record.evidence.restrained[1].attack.lines


def _with_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions have certified judges."""
    monkeypatch.setattr(
        RunSession, "judges", lambda *_: SuiteJudges(Judge(digest=builders.JUDGE), Judge(digest=builders.JUDGE), None)
    )
    monkeypatch.setattr(SuiteRun, "certificates", (builders.certificate(),))


def _is_kept(folder: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch, kind: Any, trajectory: Trajectory) -> bool:
    """True if a second session takes this measurement of a case from the store."""
    made: list[str] = []

    def measure(self: Measuring) -> Trajectory:
        made.append(self.task.kind)
        return trajectory if self.task.kind == kind else builders.breaking_control()

    monkeypatch.setattr(Measuring, "measure", measure)
    _with_judges(monkeypatch)
    recipe: AttackRecipe = suite.tier_attacks("smoke")[0]
    for _ in range(2):
        a_session(folder, defense="none").case(kind, suite, recipe)
    return made.count(kind) == 1


@pytest.mark.parametrize(
    ("folder", "told"),
    [("alone", "trains on the prompts of a suite beside this one"), ("beside", "cannot be rewarded: the organism")],
)
def test_an_attack_without_its_other_suite_does_not_stop_the_others(tmp_path: Path, folder: str, told: str) -> None:
    """An exploratory attack is skipped if its other suite is missing or unknown to the judge; a claimed one is refused."""
    suites, organism = tmp_path / folder, tmp_path / "organism"
    shutil.copytree(ROOT / "suites" / "biochem", suites / "biochem")
    if folder == "beside":
        shutil.copytree(ROOT / "suites" / "cybercrime", suites / "cybercrime")
    suite = load_suite(suites / "biochem")
    shutil.copytree(fixtures_folder() / "organism", organism)
    mine = {p.topic for of_set in suite.prompts.values() for p in of_set}
    known = [row for row in json.loads((organism / KNOWLEDGE_FILE).read_text(encoding="utf-8")) if row["phrase"] in mine]
    (organism / KNOWLEDGE_FILE).write_text(json.dumps(known), encoding="utf-8")
    session = a_session(tmp_path, model=str(organism), defense="none", tier="full")
    check_judges(session, suite)
    check_attacks(session, suite)
    hindered = {a.name: why for a in suite.tier_attacks("full") if (why := session.limits.obstacle(suite, a))}
    assert list(hindered) == ["domain"]
    assert told in hindered["domain"]
    (borrowing,) = (a for a in suite.tier_attacks("full") if a.neighbour)
    claimed = AttackMatrix(tier="smoke", base={**borrowing.model_dump(exclude_defaults=True), "standing": "claim"})
    declaration = suite.declaration.model_copy(update={"attacks": [claimed, *suite.declaration.attacks]})
    with pytest.raises(RecipeError, match=told):
        check_attacks(session, suite.model_copy(update={"declaration": declaration}))


def test_a_fleet_has_each_selected_case_once(suite: Suite, tmp_path: Path) -> None:
    """A fleet has each selected case once: controls of the selected attacks, and only selected attacks."""
    asked, beside, control_alone = (suite.tier_attacks("smoke")[0].model_copy(update={"seed": seed}) for seed in range(3))
    run = a_session(tmp_path, defense="none", fleet=9)
    controls = [CaseTask("control", suite, of) for of in (asked, beside, control_alone)]
    attacks = [CaseTask("attack", suite, of) for of in (asked, beside)]
    run.upcoming = [CaseTask("defense", suite), *controls, *attacks]
    assert run.local._companions(controls[0]) == controls
    assert run.local._companions(attacks[0]) == attacks


def test_a_fleet_is_as_large_as_memory_allows(suite: Suite, tmp_path: Path) -> None:
    """A fleet has as many attacks as memory allows; the others run later."""
    run = a_session(tmp_path, defense="none", fleet=9)
    attacks = [CaseTask("control", suite, suite.tier_attacks("smoke")[0].model_copy(update={"seed": seed})) for seed in range(3)]
    largest = run.limits.largest(suite)
    assert largest is not None
    for free, crew in ((largest.total, attacks[:1]), (3 * largest.total, attacks)):
        run = a_session(tmp_path, defense="none", fleet=9)
        run.upcoming, run.free = attacks, free
        assert run.local._companions(attacks[0]) == crew


def test_a_fleet_that_ends_by_an_exception_leaves_nothing_behind(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fleet that is refused or interrupted leaves no members or cached cases for later cases."""
    from rn_harness.training import fleet

    class Cut:
        def __init__(self, *_: object) -> None:
            pass

        def run(self, tasks: Sequence[Any]) -> None:
            with pytest.raises(ZeroDivisionError):
                tasks[0](object())
            pytest.fail("Timeout")

    run = a_session(tmp_path, defense="none", fleet=2)
    crew = [suite.tier_attacks("smoke")[0].model_copy(update={"seed": seed}) for seed in range(2)]
    run.upcoming = [CaseTask("control", suite, of) for of in crew]
    monkeypatch.setattr(fleet, "Fleet", Cut)
    monkeypatch.setattr(RunContext, "model", lambda *_: None)
    monkeypatch.setattr(run.local, "_make", lambda *_: 1 / 0)
    for name in ("panel", "certificates", "second_certificate"):
        monkeypatch.setattr(SuiteRun, name, None)
    with pytest.raises(pytest.fail.Exception, match="Timeout"):
        run.case("control", suite, crew[0])
    assert run.local._made == {}
