"""Attack families: how they are found, which recipes they refuse, and which attacks a claim covers."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rn_harness.attacks import family as attacks
from rn_harness.attacks.family import BUILT_IN, AttackContext, family_names, load_family
from rn_harness.spec.attack_recipe import AttackRecipe, RewardShape, Search, Shift, WarmStart
from rn_harness.spec.errors import RecipeError, UnsuitedError
from rn_harness.spec.prompts import Prompt, ShiftedPrompt

OWN = """\
from rn_harness.attacks.built_in import Grpo


class Mine(Grpo):
    pass
"""


def recipe(**settings: Any) -> AttackRecipe:
    """A minimal recipe with these settings."""
    return AttackRecipe(**({"name": "x", "steps": 200, "learning_rate": 5e-4, "prompts": 5} | settings))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_each_built_in_family_is_found(name: str, tmp_path: Path) -> None:
    """Each built-in name leads to an object with the protocol's methods and without a separate digest."""
    found = load_family(name, tmp_path)
    assert found.digest is None
    assert callable(found.family.check)
    assert callable(found.family.train)


def test_an_unknown_family_lists_the_known_ones(tmp_path: Path) -> None:
    """A misspelled family is refused with a list of the known ones."""
    with pytest.raises(
        RecipeError, match=r"got family='gpro'; known: ablation, affirmative, grpo, rloo, sft, unlearning, warm-start"
    ):
        load_family("gpro", tmp_path)


def test_a_family_can_be_a_file_of_the_suite(tmp_path: Path) -> None:
    """``python:`` names a file in the suite's folder; the family's digest covers the file, and what its class declares."""
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    found = load_family("python:mine.py:Mine", tmp_path)
    assert type(found.family).__name__ == "Mine"
    assert found.digest == hashlib.sha256(OWN.encode()).hexdigest()
    (tmp_path / "mine.py").write_text(OWN + "# another line\n", encoding="utf-8")
    assert load_family("python:mine.py:Mine", tmp_path).digest != found.digest
    covering = f"{OWN}\nMine.digest = 'of a list of words'\n"
    (tmp_path / "mine.py").write_text(covering, encoding="utf-8")
    both = hashlib.sha256(f"{covering}of a list of words".encode()).hexdigest()
    assert load_family("python:mine.py:Mine", tmp_path).digest == both


@pytest.mark.parametrize(
    ("text", "spec", "told"),
    [
        (OWN, "python:other.py:Mine", "no file"),
        (OWN, "python:mine.py:Yours", "got name='Yours', which is none"),
        ("raise ValueError('no')\n", "python:mine.py:Mine", "must be importable"),
        ("class Mine:\n    def __init__(self, x): ...\n", "python:mine.py:Mine", "made without arguments"),
        ("class Mine:\n    def check(self, recipe): ...\n", "python:mine.py:Mine", "without train"),
    ],
    ids=["no-file", "no-class", "broken", "arguments", "half"],
)
def test_a_family_that_cannot_be_used_is_refused(tmp_path: Path, text: str, spec: str, told: str) -> None:
    """An unusable family is an error that names the fault; no other family is used as a substitute."""
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=told):
        load_family(spec, tmp_path)


def test_code_outside_the_suites_folder_is_not_run(tmp_path: Path) -> None:
    """Code outside the suite's folder does not run: no check compares it with the commit."""
    (tmp_path / "suite").mkdir()
    (tmp_path / "elsewhere.py").write_text("raise AssertionError('run')\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="lies in the suite's folder"):
        load_family("python:../elsewhere.py:Mine", tmp_path / "suite")


def test_an_installed_package_can_bring_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point is found by its name, has its file's digest, and appears among the known families."""
    entry = metadata.EntryPoint("theirs", "rn_harness.attacks.built_in:Grpo", attacks.GROUP)
    monkeypatch.setattr(
        attacks.metadata,
        "entry_points",
        lambda group, name=None: [entry] if group == attacks.GROUP and name in (None, "theirs") else [],
    )
    found = load_family("theirs", tmp_path)
    source = Path(attacks.__file__).parent / "built_in.py"
    assert found.digest == hashlib.sha256(source.read_bytes()).hexdigest()
    assert "theirs" in family_names()


@pytest.mark.parametrize(
    ("family", "settings", "told"),
    [
        ("grpo", {"warm_start": WarmStart()}, "has no supervised steps"),
        ("grpo", {"options": {"x": 1}}, "takes no options"),
        ("rloo", {"loss_type": "grpo"}, "has no loss_type"),
        ("rloo", {"scale_rewards": "none"}, "has no scale_rewards"),
        ("rloo", {"entropy_coef": 0.1}, "has no entropy_coef"),
        ("rloo", {"replay": True}, "has no replay"),
        ("warm-start", {}, "begins with supervised steps"),
        ("warm-start", {"warm_start": WarmStart(examples=6)}, "got examples=6 of prompts=5"),
        ("sft", {}, "takes standing: out_of_claim"),
        ("sft", {"standing": "exploratory"}, "takes standing: out_of_claim"),
        ("ablation", {"steps": 1, "control_steps": 1, "form": "full"}, "takes standing: out_of_claim"),
        ("ablation", {"standing": "out_of_claim"}, "is one edit"),
    ],
)
def test_a_family_refuses_what_it_does_not_have(tmp_path: Path, family: str, settings: dict[str, Any], told: str) -> None:
    """A setting without effect is refused before any work, and so is a method other than RL with the standing of a claim."""
    with pytest.raises(RecipeError, match=told):
        load_family(family, tmp_path).family.check(recipe(family=family, **settings))


@pytest.mark.parametrize("family", ["warm-start", "sft"])
def test_an_attack_that_needs_answers_is_refused_without_them(tmp_path: Path, family: str) -> None:
    """Before it touches a model, the attack reports that it needs compliant answers, which the harness does not write."""
    settings: dict[str, Any] = {"family": family, "warm_start": WarmStart() if family == "warm-start" else None}
    untouched: Any = None
    context = AttackContext(untouched, recipe(**settings), [Prompt(id="a", topic="a", text="a")], [], None, *[untouched] * 4)
    with pytest.raises(UnsuitedError, match="needs compliant answers"):
        load_family(family, tmp_path).family.train(context)


CLAIMED = [recipe(), recipe(prompts=1), recipe(learning_rate=1e-3), recipe(family="rloo")]


@pytest.mark.parametrize(
    ("settings", "covered"),
    [
        ({}, True),
        ({"seed": 77}, True),
        ({"prompts": 3}, True),  # between the claimed 1 and 5
        ({"prompts": 6}, False),
        ({"learning_rate": 7e-4}, True),
        ({"learning_rate": 4e-4}, False),
        ({"steps": 100}, True),
        ({"steps": 201}, False),
        ({"temperature": 1.5}, False),
        ({"beta": 0.01}, False),
        ({"group_size": 32}, False),
        ({"family": "rloo"}, True),
        ({"family": "rloo", "prompts": 1}, False),  # ranges of another family do not apply
        ({"family": "warm-start", "warm_start": WarmStart()}, False),
        ({"reward": RewardShape(shape="length")}, False),
        ({"form": "full"}, False),
        ({"shift": Shift(prefill="yes")}, False),
        ({"loss_type": "grpo"}, False),
    ],
    ids=str,
)
def test_a_claim_covers_its_kinds_within_their_ranges(settings: dict[str, Any], covered: bool) -> None:
    """A claim covers an attack of a claimed kind if each of its numbers lies within the range claimed for that kind."""
    assert recipe(**settings).lies_within(CLAIMED) is covered


def test_an_id_names_settings_other_than_the_defaults() -> None:
    """A recipe's id lists its settings that differ from the defaults."""
    told = recipe(temperature=0.7, group_size=8, beta=0.04, form="lora", loss_type="cispo", entropy_coef=0.1, prompts_per_step=2)
    assert told.id == "x-p5-lr5e-4-t0.7-g8-b2-kl0.04-h0.1-cispo-s0"
    assert recipe(scale_rewards="none", lora={"r": 4}).id == "x-p5-lr5e-4-scale_none-r4-s0"


SEARCH: dict[str, Any] = {"trials": 3, "steps": 10, "learning_rate": [0.2, 20.0], "temperature": [0.5, 2.0]}


@pytest.mark.parametrize(
    ("shift", "told"),
    [
        ({}, "a shift changes something"),
        ({"wording": "{prompt}"}, "a shift changes something"),
        ({"wording": "no place"}, "holds the request once"),
        ({"wording": "{prompt} {prompt}"}, "holds the request once"),
        ({"template": "{{ strftime_now('%d') }}"}, "tomorrow's prompts would be others"),
        ({"domain": "../elsewhere"}, "should match pattern"),
    ],
    ids=str,
)
def test_a_shift_that_shifts_nothing_or_not_the_request_is_refused(shift: dict[str, str], told: str) -> None:
    """A shift must change the request, keep its text once, and give the same result on every day."""
    with pytest.raises(ValidationError, match=told):
        recipe(shift=Shift.model_validate(shift))


def test_a_shifted_prompt_is_the_same_prompt_for_all_but_the_model() -> None:
    """A shifted prompt keeps id, topic and text, so judges and keys see the plain request; only its chat turns change."""
    plain = Prompt.model_validate({"id": "a", "topic": "t", "text": "say {x}", "register": "formal", "core": True})
    shifted = ShiftedPrompt.of(plain, Shift(wording="please: {prompt}!", system="be kind"))
    assert shifted.model_dump(exclude={"shift"}) == plain.model_dump()
    assert shifted.shift.turns(shifted.text) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "please: say {x}!"},
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"standing": "claim"}, "take exploratory"),
        ({"form": "full", "search": Search(**SEARCH, beta=[0.0, 0.1])}, "needs an adapter"),
    ],
    ids=str,
)
def test_a_search_that_could_not_be_run_is_refused(settings: dict[str, Any], told: str) -> None:
    """A search cannot have the standing of a claim, and without an adapter it cannot search the KL penalty."""
    with pytest.raises(ValidationError, match=told):
        recipe(**{"standing": "exploratory", "search": Search(**SEARCH), **settings})


@pytest.mark.parametrize("name", ["learning_rate", "temperature"])
@pytest.mark.parametrize("multiples", [[2.0, 4.0], [0.1, 0.5]], ids=str)
def test_a_search_lies_around_the_recipes_own_settings(name: str, multiples: list[float]) -> None:
    """A search range must include the factor 1, the recipe's own setting, where the search begins."""
    with pytest.raises(ValidationError, match="begins with the recipe's own settings"):
        Search(**{name: multiples})


def test_the_id_of_a_search_does_not_depend_on_what_it_finds() -> None:
    """The id of a search is known when cases are listed: it names the budget and does not depend on the settings found."""
    declared = recipe(standing="exploratory", search=Search(**SEARCH))
    assert declared.id == "x-p5-3x10-s0"
    assert recipe(standing="exploratory", search=Search(**SEARCH), learning_rate=3e-3).id == declared.id
