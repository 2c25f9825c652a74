"""Judge profiles: the contents of the shipped ones, and the errors and remedies for mistakes in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rn_harness.judges.openai_server import OpenAIJudge
from rn_harness.judges.resolve import JudgeProfile, judge_profile_names, load_profile, resolve_judge
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.yaml_files import read_declared

SUITES = Path(__file__).parents[2] / "suites"
CANDIDATE_FAMILIES = {"llama", "qwen", "mistral", "ministral"}
GOOD = {
    "name": "mine",
    "kind": "hf",
    "model": "owner/name",
    "licence": "MIT",
    "family": "other",
    "why": "It is the one that our laboratory trusts.",
}


def write(folder: Path, **changes: object) -> str:
    """Writes a profile and returns its name; None removes a key."""
    declared = {key: value for key, value in (GOOD | changes).items() if value is not None}
    (folder / f"{declared['name']}.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    return str(declared["name"])


@pytest.mark.parametrize("name", judge_profile_names())
def test_shipped_profile_is_of_no_candidates_family(name: str) -> None:
    """Each shipped profile loads, gives its purpose, and is of another family than the paper's candidates."""
    profile = load_profile(name)
    assert profile.name == name
    assert profile.family not in CANDIDATE_FAMILIES
    assert profile.spec.startswith(f"{profile.kind}:{profile.where}")


def test_default_judges_differ() -> None:
    """The two default judges of the harmful suites are models of two families, and neither is gated."""
    evaluation, reward = load_profile("phi-4"), load_profile("olmo-2-7b")
    assert evaluation.model != reward.model
    assert evaluation.family != reward.family
    assert (evaluation.gated, reward.gated) == (False, False)
    for domain in ("biochem", "cybercrime"):
        judges = yaml.safe_load((SUITES / domain / "suite.yaml").read_text(encoding="utf-8"))["judges"]
        assert judges == {"evaluation": "phi-4", "reward": "olmo-2-7b", "second": "olmo-2-7b"}


def test_memory_is_computed() -> None:
    """14.66e9 parameters of 2 bytes are 29.32e9 bytes, which is 27.3 GiB of 2**30."""
    assert load_profile("phi-4").memory_gib == 27.3


def test_specs(tmp_path: Path) -> None:
    """A profile's spec is the text a user would write, with revision, label or server, and absolute local paths."""
    commit = "0123456789" * 4
    assert load_profile(write(tmp_path), tmp_path).spec == "hf:owner/name"
    assert load_profile(write(tmp_path, revision=commit), tmp_path).spec == f"hf:owner/name@{commit}"
    local = load_profile(write(tmp_path, kind="classifier", model="./weights", label="harm", calibration="c.json"), tmp_path)
    assert local.spec == f"classifier:{tmp_path.resolve()}/weights#harm"
    assert local.calibration_file == tmp_path.resolve() / "c.json"
    server = load_profile(write(tmp_path, kind="openai", model="m", base_url="http://h:1/v1"), tmp_path)
    assert server.spec == "openai:m@http://h:1/v1"
    assert load_profile(write(tmp_path, kind="rules", model="../r.yaml"), tmp_path).where == str(
        tmp_path.parent.resolve() / "r.yaml"
    )


def test_a_profile_of_ones_own_is_named_by_its_path(tmp_path: Path) -> None:
    """A file's path is a spec, resolved from the given folder; the file's server limits are used."""
    write(tmp_path, kind="openai", model="m", base_url="http://h:1/v1", server={"budget": 7, "request_limit_s": 2.5})
    judge = resolve_judge("mine.yaml", tmp_path)
    assert isinstance(judge, OpenAIJudge)
    assert (judge.name, judge._limits.budget, judge._limits.request_limit_s) == ("mine", 7, 2.5)
    with pytest.raises(JudgeError, match=r"got name='min'; did you mean mine\?"):
        resolve_judge("min.yaml", tmp_path)


WRONG = {
    "limits-without-server": ({"server": {"budget": 7}}, r"only a server has limits, got kind='hf'"),
    "unknown-key": ({"colour": "red"}, r"colour: .*; remove it or correct its spelling"),
    "missing-key": ({"why": None}, r"why: .*; add it"),
    "kind": ({"kind": "vllm"}, r"got kind='vllm'"),
    "short-revision": ({"revision": "abc123"}, r"got revision='abc123'"),
    "number-as-text": ({"max_new_tokens": "many"}, r"got max_new_tokens='many'"),
    "no-hub-id": ({"model": "phi4"}, r"owner/name on the hub, or a folder that begins with \./, got model='phi4'"),
    "classifier-without-label": ({"kind": "classifier"}, r"names the label that counts.* got kind='classifier' and label=None"),
    "label-without-classifier": ({"label": "x"}, r"got kind='hf' and label='x'"),
    "server-without-url": ({"kind": "openai"}, r"got kind='openai' and base_url=None"),
    "url-without-server": ({"base_url": "http://h"}, r"got kind='hf' and base_url='http://h'"),
    "calibrated-model": ({"calibration": "c.json"}, r"only a classifier is calibrated, got kind='hf'"),
    "rules-from-hub": ({"kind": "rules"}, r"begins with \./ or \.\./, got model='owner/name'"),
    "revision-of-folder": ({"model": "./m", "revision": "a" * 40}, r"only a model of the hub has a revision"),
    "memory-alone": ({"memory_gib": 1.0}, r"memory_gib is computed from parameters_b"),
    "memory-wrong": ({"memory_gib": 1.0, "parameters_b": 7.0}, r"got 1\.0 for 7\.0 x 1e9; give 13\.0"),
    "why-empty": ({"why": "good"}, r"got why='good'"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_profile_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """A profile with a mistake is refused with file, place, value and remedy."""
    name = write(tmp_path, **changes)
    with pytest.raises(JudgeError, match=message) as caught:
        load_profile(name, tmp_path)
    assert str(tmp_path / f"{name}.yaml") in str(caught.value)


def test_misspelled_name_gets_near_ones() -> None:
    """An unknown profile name is refused with near matches, or with all names if there are none."""
    with pytest.raises(JudgeError, match=r"got name='phi4'; did you mean phi-4\?"):
        load_profile("phi4")
    with pytest.raises(JudgeError, match=r"got name='zzz'; known: .*phi-4"):
        load_profile("zzz")


def test_name_is_the_files(tmp_path: Path) -> None:
    """A profile copied under another name is refused, so that one name never means two judges."""
    write(tmp_path)
    (tmp_path / "mine.yaml").rename(tmp_path / "yours.yaml")
    with pytest.raises(JudgeError, match=r"yours\.yaml: a profile is named as its file, got name='mine'"):
        load_profile("yours", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "must be a mapping, got list"), ("a: [1\n", "must be plain YAML"), ("a: 1\na: 2\n", "stands there twice")],
    ids=["list", "broken", "twice"],
)
def test_unreadable_file_is_a_judge_error(tmp_path: Path, text: str, message: str) -> None:
    """A file that is not a YAML mapping is a judge error that names the file."""
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(JudgeError, match=message):
        read_declared(path, JudgeProfile)
    with pytest.raises(JudgeError, match=r"is required and is missing; see docs/judges\.md"):
        read_declared(tmp_path / "none.yaml", JudgeProfile)


def test_profiles_label_is_the_classifiers() -> None:
    """The shipped classifier has the label that its profile names."""
    profile = load_profile("baking-classifier")
    config = json.loads((fixtures_folder() / "judges" / "baking-classifier" / "config.json").read_text(encoding="utf-8"))
    assert profile.label in config["id2label"].values()
