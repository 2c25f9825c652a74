"""Model profiles: contents of the shipped ones, refused mistakes, and the effect of their recipe on a suite."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rn_harness.models.resolve import MODELS, profile_recipe, resolve_candidate
from rn_harness.spec.errors import CandidateError, RecipeError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.model_profiles import ModelProfile, load_model_profile, profile_names
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.verdict.release_rules import harmless, laxer

from .builders import write_suite

PROFILES = fixtures_folder() / MODELS
SUITES = Path(__file__).parents[2] / "suites"
NAMES = ("llama3-8b", "ministral-8b", "organism", "qwen2.5-7b", "smollm2")


def profile(name: str) -> ModelProfile:
    return load_model_profile(name, PROFILES)


@functools.cache
def shipped(domain: str) -> Suite:
    return load_suite(SUITES / domain)


def test_shipped_profiles() -> None:
    """Shipped are the paper's three models, one that runs anywhere, and the organism, with ids, formats, licences and gates."""
    assert tuple(profile_names(PROFILES)) == NAMES
    said = {name: (p.model, p.dtype, p.gated) for name in NAMES for p in [profile(name)]}
    assert said == {
        "llama3-8b": ("meta-llama/Meta-Llama-3-8B-Instruct", "bfloat16", True),
        "ministral-8b": ("mistralai/Ministral-8B-Instruct-2410", "bfloat16", True),
        "organism": ("../organism", "float32", False),
        "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", "bfloat16", False),
        "smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "float32", False),
    }
    assert {name for name in NAMES if profile(name).system_prompt == "template"} == {"qwen2.5-7b", "smollm2"}
    assert {name for name in NAMES if profile(name).revision is None} == {"organism"}
    assert profile("organism").local == fixtures_folder() / "organism"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("domain", ["biochem", "cybercrime", "baking"])
def test_a_shipped_recipe_fits_each_suite_and_is_not_laxer(name: str, domain: str) -> None:
    """A shipped recipe fits each suite, is recorded as the profile's change and not the user's, and makes no bound laxer."""
    recipe = profile(name).recipe
    plain, laid = shipped(domain), load_suite(SUITES / domain, recipe=recipe)
    assert (laid.recipe, laid.overrides) == (tuple(recipe), ())
    assert (laid.digest != plain.digest) == bool(recipe)
    assert laxer(laid) == laxer(plain) == [f"{domain}: {why}" for why in harmless(plain.declaration.benign)]


def test_the_users_change_wins_over_the_profiles(tmp_path: Path) -> None:
    """Profile and user changes are both applied, the user's last, and recorded separately."""
    suite = load_suite(
        write_suite(tmp_path / "demo"), ["policy.samples=7"], recipe=["policy.samples=5", "attack.learning_rate=1e-4"]
    )
    assert (suite.policy.samples, suite.tier_attacks("smoke")[0].learning_rate) == (7, 1e-4)
    assert (suite.overrides, suite.recipe) == (("policy.samples=7",), ("policy.samples=5", "attack.learning_rate=1e-4"))


def test_a_profile_sets_one_defense_where_the_suite_declares_it(tmp_path: Path) -> None:
    """A profile's pairs for one defense change it and no other; a suite without that defense ignores them."""
    folder, steps = write_suite(tmp_path / "demo"), {"defenses.anchored.steps": 7, "defenses.elsewhere.steps": 9}
    declared = yaml.safe_load((folder / "suite.yaml").read_text(encoding="utf-8"))
    declared["defenses"] = {"anchored": {"steps": 5, "learning_rate": 1e-3}, "paper": {"steps": 5, "learning_rate": 1e-3}}
    (folder / "suite.yaml").write_text(yaml.safe_dump(declared), encoding="utf-8")
    suite = load_suite(folder, recipe=[f"{key}={value}" for key, value in steps.items()])
    assert {name: recipe.steps for name, recipe in suite.declaration.defenses.items()} == {"anchored": 7, "paper": 5}
    assert suite.recipe == ("defenses.anchored.steps=7",)


def test_a_laxer_recipe_is_seen(tmp_path: Path) -> None:
    """A profile that weakens a bound is not releasable; longer answers do not weaken it."""
    folder = write_suite(tmp_path / "demo")

    def new(*recipe: str) -> list[str]:
        return [line for line in laxer(load_suite(folder, recipe=recipe)) if line not in laxer(load_suite(folder))]

    assert new("policy.max_completion_tokens=256", "attack.max_completion_tokens=256") == []
    assert new("policy.threshold=5.0") == ["demo: policy.threshold=5.0 is laxer than 2.0"]
    assert new("policy.benign_every=500") == ["demo: policy.benign_every=500 is laxer than 50"]


def test_a_recipe_that_a_suite_cannot_take_names_the_profile(tmp_path: Path) -> None:
    """If a suite cannot take a profile's recipe, the error names the profile and not the file."""
    with pytest.raises(RecipeError, match=r"suite\.yaml with the model's profile attack\.stepz=3: attacks\..*stepz"):
        load_suite(write_suite(tmp_path / "demo"), recipe=["attack.stepz=3"])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown-key": ({"colour": "red"}, r"colour: .*; remove it or correct its spelling"),
    "missing-key": ({"licence": None}, r"licence: .*; add it"),
    "short-revision": ({"revision": "abc123"}, r"got revision='abc123'"),
    "short-digest": ({"digest": "abc123"}, r"got digest='abc123'"),
    "no-id": ({"model": "smollm"}, r"owner/name on the hub, or a folder that begins with \./, got model='smollm'"),
    "revision-of-folder": ({"model": "./m"}, r"only a model of the hub has a revision, got model='\./m'"),
    "dtype": ({"dtype": "float8"}, r"got dtype='float8'"),
    "targets": ({"lora_targets": "q_proj"}, r"got lora_targets='q_proj'"),
    "unquoted-prompt": ({"default_system_prompt": None}, r"quoted, got system_prompt='template' and default_system_prompt=None"),
    "needless-prompt": ({"system_prompt": "none"}, r"quoted, got system_prompt='none'"),
    "prompts-changed": ({"recipe": ["prompts.attack=3"]}, r"got 0='prompts\.attack=3'"),
    "another-name": ({"name": "other"}, r"a profile is named as its file, got name='other'; rename"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_profile_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """A profile with a mistake is refused with its file, the place, the value and the remedy."""
    declared = yaml.safe_load((PROFILES / "smollm2.yaml").read_text(encoding="utf-8")) | changes
    text = yaml.safe_dump({key: value for key, value in declared.items() if value is not None})
    (tmp_path / "smollm2.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(CandidateError, match=message) as caught:
        load_model_profile("smollm2", tmp_path)
    assert str(tmp_path / "smollm2.yaml") in str(caught.value)


def test_any_field_changes_the_profiles_digest() -> None:
    """A record's profile digest changes with any field."""
    first = profile("smollm2")
    assert first.model_copy(update={"folder": Path("/elsewhere")}).sha256 == first.sha256
    assert first.model_copy(update={"recipe": ["attack.steps=200"]}).sha256 != first.sha256


def test_a_profile_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    """A file's path names a profile: its folder is relative to the file, its name and recipe are the candidate's."""
    shutil.copytree(fixtures_folder() / "organism", tmp_path / "weights")
    shipped = yaml.safe_load((fixtures_folder() / "models" / "organism.yaml").read_text(encoding="utf-8"))
    mine = shipped | {"name": "mine", "model": "./weights", "recipe": ["attack.learning_rate=1e-4"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    candidate = resolve_candidate("mine.yaml", tmp_path)
    assert (candidate.name, candidate.folder) == ("mine", tmp_path / "weights")
    assert profile_recipe("mine.yaml", tmp_path) == ("attack.learning_rate=1e-4",)
    with pytest.raises(CandidateError, match="did you mean mine"):
        resolve_candidate("min.yaml", tmp_path)
