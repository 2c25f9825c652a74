"""Suites: valid and malformed files, the text of refusals, and the reach of overrides."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml
from pydantic import ValidationError

from rn_harness.spec.attack_recipe import AttackRecipe, Shift
from rn_harness.spec.base import TIERS
from rn_harness.spec.defense_recipe import DefenseRecipe, GRPORecipe
from rn_harness.spec.errors import RecipeError, RnHarnessError, SuiteError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.prompts import NEAR_DUPLICATE, Prompt, near_duplicates
from rn_harness.spec.suite import Declaration, iter_suites, load_suite
from rn_harness.spec.wording import word_overlap, words
from rn_harness.spec.yaml_files import MAX_FILE_BYTES, Loader, parse_yaml, read_yaml

from .builders import prompt_row, write_prompts, write_suite

SUITES = Path(__file__).resolve().parents[2] / "suites"
DOMAINS = sorted(path.name for path in iter_suites(SUITES))

Damage = Callable[[Path], object]


def edit(name: str, old: str, new: str) -> Damage:
    """Replaces the first occurrence of ``old`` in a file of the suite, which must contain it."""

    def damage(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, f"{name} does not hold {old!r}"
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return damage


def replace_with(name: str, content: str | bytes) -> Damage:
    """Replaces a file of the suite."""
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def prompts(set_name: str, *rows: str) -> Damage:
    """Replaces a prompt set."""
    return lambda folder: write_prompts(folder / "prompts" / f"{set_name}.yaml", rows)


def remove(name: str) -> Damage:
    """Removes a file of the suite."""
    return lambda folder: (folder / name).unlink()


def folder_instead(name: str) -> Damage:
    """Replaces a file by a folder."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def prompts_are_a_file(folder: Path) -> None:
    """Replaces the folder of prompts by a file."""
    for path in (folder / "prompts").iterdir():
        path.unlink()
    (folder / "prompts").rmdir()
    (folder / "prompts").write_text("prompts: []\n", encoding="utf-8")


S = "suite.yaml"
HELDOUT = "prompts/heldout.yaml"
GRPO = "base: {name: grpo, steps: 20, control_steps: 10, learning_rate: 5e-4, prompts: 2}"

# id: (damage, parts that the message must contain: the file, the place or value, the remedy)
MALFORMED: dict[str, tuple[Damage, tuple[str, ...]]] = {
    # Invalid YAML and missing files.
    "broken-yaml": (replace_with(S, "version: [1\ndomain: x"), (S, ":2:7", "correct that line")),
    "tab-indentation": (edit(S, "  samples", "\tsamples"), (S, "\\t", "correct that line")),
    "unsafe-tag": (edit(S, "title: Demo", "title: !!python/object:os.x {}"), (S, "python/object", "correct that line")),
    "duplicate-key": (edit(S, "title: Demo", "title: Demo\ntitle: Other"), (S, "'title'", "twice", "keep one")),
    "duplicate-key-inside": (edit(S, "samples: 1", "samples: 1\n  samples: 2"), (S, "'samples'", "keep one")),
    "two-documents": (edit(S, "version: 1", "version: 1\n---\nversion: 1"), (S, "document", "correct that line")),
    "date-that-is-none": (edit(S, "title: Demo", "title: 2020-13-45"), (S, "month", "in quotes")),
    "truth-value-that-is-none": (edit(S, "title: Demo", "title: !!bool x"), (S, "'x'", "in quotes")),
    "list-as-a-key": (edit(S, "title: Demo", "[title]: Demo"), (S, "unhashable key", "correct that line")),
    "deeply-nested": (replace_with(S, "[" * 1_000), (S, ";")),
    "not-utf-8": (replace_with(S, b"title: \xff\n"), (S, "0xff", "save it as UTF-8")),
    "nul-character": (replace_with(S, b"title: \x00\n"), (S, "#x0000", "correct that line")),
    "empty-file": (replace_with(S, ""), (S, "NoneType", "docs/suites.md")),
    "top-level-list": (replace_with(S, "- version: 1\n"), (S, "list", "docs/suites.md")),
    "top-level-text": (replace_with(S, "version\n"), (S, "str", "docs/suites.md")),
    "too-large": (replace_with(S, "#" * (MAX_FILE_BYTES + 1)), (S, f"size={MAX_FILE_BYTES + 1}", "split")),
    "missing-suite-yaml": (remove(S), (S, "missing", "docs/suites.md")),
    "missing-prompt-file": (remove(HELDOUT), (HELDOUT, "missing", "docs/suites.md")),
    "suite-yaml-is-a-folder": (folder_instead(S), (S, "folder", "docs/suites.md")),
    "prompt-file-is-a-folder": (folder_instead(HELDOUT), (HELDOUT, "folder", "docs/suites.md")),
    "prompts-is-a-file": (prompts_are_a_file, ("prompts", ";")),
    # Keys.
    "misspelled-key": (edit(S, "title:", "titel:"), (S, ":3: titel", "'Demo'", "did you mean title?")),
    "misspelled-key-in-policy": (edit(S, "samples:", "sampels:"), (S, ":20: policy.sampels", "1", "did you mean samples?")),
    "misspelled-key-in-defense": (
        edit(S, "    learning_rate: 1e-3", "    learnin_rate: 1e-3"),
        (S, ":8: defenses.quick.learnin_rate", "0.001", "did you mean learning_rate?"),
    ),
    "misspelled-key-in-attack": (
        edit(S, "control_steps", "controll_steps"),
        (S, ":12: attacks.0.base.controll_steps", "controll_steps=10", "did you mean control_steps?"),
    ),
    "misspelled-key-in-vary": (
        edit(S, "seed: [1, 2]", "sead: [1, 2]"),
        (S, ":15: attacks.1.vary.sead", "sead=1", "did you mean seed?"),
    ),
    "varied-value-as-yes": (edit(S, "seed: [1, 2]", "seed: [1, yes]"), (S, "attacks.1.vary.seed", "seed=True", "correct it")),
    "misspelled-key-in-lora": (
        edit(S, "    learning_rate: 1e-3", "    learning_rate: 1e-3\n    lora: {rank: 8}"),
        (S, ":9: defenses.quick.lora.rank", "rank=8", "correct its spelling"),
    ),
    "misspelled-key-in-prompt": (edit(HELDOUT, "core", "cor"), (HELDOUT, ":2: prompts.0.cor", "cor=True", "did you mean core?")),
    "missing-key": (edit(S, "title: Demo\n", ""), (S, ":1: title", "required", "add it")),
    "missing-key-in-attack": (edit(S, "learning_rate: 5e-4, ", ""), (S, "attacks", "learning_rate", "add it")),
    # Values.
    "version-to-come": (edit(S, "version: 1", "version: 999"), (S, ":1:", "version=999", "pip install --upgrade rn-harness")),
    "version-of-no-time": (edit(S, "version: 1", "version: 0"), (S, "version=0", "correct it")),
    "unknown-tier": (edit(S, "tier: full", "tier: huge"), (S, "tier='huge'", "'standard'", "correct it")),
    "no-smoke-attack": (edit(S, "tier: smoke", "tier: standard"), (S, "smoke", "mark one")),
    "no-attack": (edit(S, "attacks:", "attacks: []\nx:"), (S, "attacks", "at least 1 item", "correct it")),
    "no-defense": (edit(S, "defenses:", "defenses: {}\nx:"), (S, "defenses", "at least 1 item", "correct it")),
    "family-of-no-name": (edit(S, "steps: 20, control", "family: a b, steps: 20, control"), (S, "family='a b'", "correct it")),
    "family-outside-a-file": (
        edit(S, "steps: 20, control", "family: 'python:mine:Family', steps: 20, control"),
        (S, "family='python:mine:Family'", "correct it"),
    ),
    "no-such-standing": (edit(S, "standing: exploratory", "standing: perhaps"), (S, "standing='perhaps'", "correct it")),
    "no-such-reward": (edit(S, "steps: 20, control", "reward: {shape: gold}, steps: 20, control"), (S, "gold", "correct it")),
    "unknown-loss": (edit(S, "steps: 20, control", "loss_type: ppo, steps: 20, control"), (S, "loss_type='ppo'", "dapo")),
    "negative-steps": (edit(S, "steps: 20, control", "steps: -5, control"), (S, "steps=-5", "correct it")),
    "zero-steps": (edit(S, "    steps: 20", "    steps: 0"), (S, "steps=0", "correct it")),
    "steps-as-yes": (edit(S, "    steps: 20", "    steps: yes"), (S, "steps=True", "correct it")),
    "steps-not-whole": (edit(S, "    steps: 20", "    steps: 20.5"), (S, "steps=20.5", "correct it")),
    "steps-as-text": (edit(S, "    steps: 20", "    steps: many"), (S, "steps='many'", "correct it")),
    "group-of-one": (
        edit(S, "    learning_rate: 1e-3", "    learning_rate: 1e-3\n    group_size: 1"),
        (S, "group_size=1", "correct it"),
    ),
    "temperature-zero": (
        edit(S, "    learning_rate: 1e-3", "    learning_rate: 1e-3\n    temperature: 0"),
        (S, "temperature=0", "correct it"),
    ),
    "control-longer-than-attack": (
        edit(S, "control_steps: 10", "control_steps: 21"),
        (S, "control_steps=21", "steps=20", "lower control_steps"),
    ),
    "two-recipes-of-one-id": (
        edit(S, "vary: {seed: [1, 2]}", "vary: {seed: [1], top_k: [1, 2]}"),
        (S, "grpo-p2-lr5e-4-s1", "2 times", "another name"),
    ),
    "more-prompts-than-the-pool": (edit(S, "prompts: 2}", "prompts: 3}"), (S, "prompts=3 of 2", "lower it")),
    "threshold-off-the-scale": (edit(S, "samples: 1", "threshold: 11"), (S, "policy.threshold", "threshold=11")),
    "threshold-not-a-number": (edit(S, "samples: 1", "threshold: .nan"), (S, "threshold=nan", "correct it")),
    "control-break-at-threshold": (
        edit(S, "samples: 1", "control_break: 2"),
        (S, "control_break=2", "threshold=2", "raise control_break"),
    ),
    "infinite-learning-rate": (
        edit(S, "learning_rate: 1e-3", "learning_rate: .inf"),
        (S, "learning_rate=inf", "correct it"),
    ),
    "infinite-temperature": (
        edit(S, "    learning_rate: 1e-3", "    learning_rate: 1e-3\n    temperature: .inf"),
        (S, "temperature=inf", "correct it"),
    ),
    "negative-samples": (edit(S, "samples: 1", "samples: -1"), (S, "samples=-1", "correct it")),
    "domain-as-a-path": (edit(S, "domain: demo", "domain: ../demo"), (S, "domain='../demo'", "correct it")),
    "number-as-title": (edit(S, "title: Demo", "title: 12"), (S, "title=12", "correct it")),
    # Prompts.
    "no-prompts": (replace_with(HELDOUT, "prompts: []\n"), (HELDOUT, "prompts", "at least 1 item", "correct it")),
    "prompt-file-as-list": (replace_with(HELDOUT, "- id: x\n"), (HELDOUT, "must be a mapping, got list", "see docs/suites.md")),
    "prompt-without-text": (edit(HELDOUT, "text", "form"), (HELDOUT, "prompts.0.text", "add it")),
    "blank-topic": (edit(HELDOUT, "topic: heldout1", "topic: ' '"), (HELDOUT, "topic=' '", "correct it")),
    "blank-text": (edit(HELDOUT, "say heldout1 x001heldout", "' '"), (HELDOUT, "text=' '", "correct it")),
    "id-in-capitals": (edit(HELDOUT, "heldout-1", "Heldout-1"), (HELDOUT, "id='Heldout-1'", "correct it")),
    "duplicate-id-in-a-set": (edit(HELDOUT, "heldout-2", "heldout-1"), ("'heldout-1'", "2 times", "rename")),
    "duplicate-id-across-sets": (edit(HELDOUT, "heldout-1", "attack-1"), ("'attack-1'", "2 times", "rename")),
    "duplicate-text-in-a-set": (
        edit(HELDOUT, "say heldout2 x002heldout", "Say heldout1 - x001heldout."),
        (HELDOUT, "'say heldout1 x001heldout'", "2 times", "drop one"),
    ),
    "duplicate-across-sets": (
        edit(HELDOUT, "say heldout1 x001heldout", "say attack1 x001attack"),
        ("pairs=1", "  1.00  attack attack-1 ", "heldout heldout-1", "reword one"),
    ),
    "near-duplicate-across-sets": (
        # 4 words of 5 are shared, in another order: 2 * 4 / (5 + 5) = 0.80, exactly the bound.
        lambda folder: (
            prompts("attack", prompt_row("attack", 1), "id: a-2, topic: t, text: tell x001 about x002 now")(folder),
            edit(HELDOUT, "say heldout1 x001heldout", "about x002 tell x001 later")(folder),
        ),
        ("pairs=1", "  0.80  attack a-2 ", "heldout-1", "reword one"),
    ),
    # Texts still to be written, and a benign domain without a reason.
    "placeholder": (edit(S, "title: Demo", "title: Demo  # TODO\ndescription: TODO(say it)"), (S, ":4:14", "TODO", "write")),
    "placeholder-in-a-block": (edit(S, "title: Demo", "title: >-\n  Demo, TBD"), (S, ":3:8", "TBD", "write")),
    "placeholder-as-a-key": (edit(HELDOUT, "prompts:", "TODO: replace\nprompts:"), (HELDOUT, ":1:1", "TODO", "write")),
    "placeholder-as-a-prompt": (edit(HELDOUT, "say heldout1 x001heldout", "FIXME"), (HELDOUT, ":2:", "FIXME", "write")),
    "benign-without-a-reason": (edit(S, "title: Demo", "title: Demo\nbenign: true"), (S, "benign=True", "write the reason")),
    "benign-denied": (edit(S, "title: Demo", "title: Demo\nbenign: false"), (S, "benign=False", "remove the field")),
    "benign-in-a-word": (edit(S, "title: Demo", "title: Demo\nbenign: harmless"), (S, "benign", "30 characters", "correct it")),
    "benign-without-kind": (edit("prompts/benign.yaml", ", kind: twin", ""), ("benign.yaml", "benign-1", "needs kind")),
    "anchor-without-kind": (edit("prompts/anchor.yaml", ", kind: plain", ""), ("anchor.yaml", "anchor-2", "needs kind")),
    "harmful-with-kind": (
        edit("prompts/attack.yaml", "x001attack", "x001attack, kind: twin"),
        ("attack.yaml", "attack-1", "kind='twin'", "correct it"),
    ),
    "unknown-kind": (edit("prompts/benign.yaml", "twin", "twins"), ("benign.yaml", "kind='twins'", "correct it")),
    "core-outside-of-heldout": (
        edit("prompts/attack.yaml", "x001attack", "x001attack, core: true"),
        ("attack.yaml", "attack-1", "core=true", "remove it"),
    ),
    "no-core-prompt": (
        prompts("heldout", prompt_row("heldout", 1)),
        (HELDOUT, "core: true", "mark 20"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "parts"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_suite_is_refused(suite_folder: Path, damage: Damage, parts: tuple[str, ...]) -> None:
    """A malformed suite raises SuiteError, whose message names the file, the value and the remedy."""
    load_suite(suite_folder)  # without the damage it is valid
    damage(suite_folder)
    with pytest.raises(SuiteError) as raised:
        load_suite(suite_folder)
    message = str(raised.value)
    assert str(suite_folder) in message
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    "copy",
    [
        "say_heldout1_x001heldout",
        "s\u200bay heldout1 x001heldout",
        "s\u115fa\ufe0fy heldout1 x001heldout",
        "s\u0430y heldout1 x001heldout",
        "\uff53\uff41\uff59 heldout1 x001heldout",
    ],
)
def test_a_copy_in_other_signs_is_an_overlap(suite_folder: Path, copy: str) -> None:
    """A prompt of two sets is found in compatible or look-alike letters, with unseen signs, and with underscores."""
    edit("prompts/defense.yaml", "say defense1 x001defense", copy)(suite_folder)
    with pytest.raises(SuiteError, match=r"got pairs=1, listed from the worst; reword one of each\n  1\.00  defense"):
        load_suite(suite_folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_grad_norm": 0.0099}, "got max_grad_norm=0.0099 and alpha/r=2; take at least 0.01 and 0.01"),
        ({"max_grad_norm": 0.01}, None),
        ({"lora": {"r": 16, "alpha": 0.159}}, r"got max_grad_norm=1 and alpha/r=0.0099375; take at least 0.01 and 0.01"),
        ({"lora": {"r": 16, "alpha": 0.16}}, None),
        ({"lora": {"r": 16, "alpha": 0.1}, "form": "full"}, None),
    ],
)
def test_an_attacks_gradients_are_far_above_the_optimizers_epsilon(changes: dict[str, object], told: str | None) -> None:
    """Clipped to 4e-8 they starved an attack that breaks the same model at 1, while the control still broke: refused."""
    settings = {"name": "a", "prompts": 1, "steps": 50, "learning_rate": 1e-3, **changes}
    with pytest.raises(ValueError, match=told) if told else contextlib.nullcontext():
        AttackRecipe.model_validate(settings)


def test_all_overlaps_are_one_table(suite_folder: Path) -> None:
    """Each pair of similar prompts of all sets is a row of one table, the worst first."""
    edit(HELDOUT, "say heldout1 x001heldout", "say attack1 x001attack")(suite_folder)
    edit("prompts/benign.yaml", "say benign1 x001benign", "now tell us attack2 x002attack")(suite_folder)
    edit("prompts/attack.yaml", "say attack2 x002attack", "tell us attack2 x002attack")(suite_folder)
    with pytest.raises(SuiteError, match="got pairs=2, listed from the worst") as raised:
        load_suite(suite_folder)
    assert str(raised.value).splitlines()[1:] == [
        "  1.00  attack attack-1    say attack1 x001attack",
        "        heldout heldout-1  say attack1 x001attack",
        "  0.89  attack attack-2    tell us attack2 x002attack",  # 2 * 4 / (4 + 5)
        "        benign benign-1    now tell us attack2 x002attack",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"micro_batch": 5}, "got micro_batch=5 of prompts_per_step * group_size = 16; take a divisor"),
        ({"micro_batch": 32}, "got micro_batch=32 of"),
        ({"micro_batch": 4, "loss_type": "bnpo"}, "got micro_batch=4 of 16; take another loss"),
        ({"micro_batch": 16, "loss_type": "bnpo"}, None),
        ({"micro_batch": 4}, None),
        ({"min_p": 1.5}, "min_p"),
    ],
)
def test_micro_batches_split_a_batch_evenly(changes: dict[str, object], told: str | None) -> None:
    """A micro-batch must divide all rows, and is refused if the loss depends on the split."""
    settings = {"steps": 1, "learning_rate": 1e-3, **changes}
    if told is None:
        assert GRPORecipe.model_validate(settings).micro_batch == changes["micro_batch"]
        return
    with pytest.raises(ValueError, match=re.escape(told)):
        GRPORecipe.model_validate(settings)


def test_all_errors_of_a_file_are_reported_at_once(suite_folder: Path) -> None:
    """Two wrong values in one file give a message of two lines, each with the file and the place."""
    edit(S, "title: Demo", "titel: Demo")(suite_folder)
    edit(S, "samples: 1", "samples: -1")(suite_folder)
    with pytest.raises(SuiteError) as raised:
        load_suite(suite_folder)
    lines = str(raised.value).splitlines()
    # The missing title, the unknown titel, the negative samples.
    assert [re.sub(r"^.*suite\.yaml:\d+: ([\w.]+):.*$", r"\1", line) for line in lines] == ["title", "policy.samples", "titel"]


def test_valid_suite_loads(suite_folder: Path) -> None:
    """A suite loads with its domain, recipes and prompts as its files declare them."""
    suite = load_suite(suite_folder)
    assert suite.domain == "demo"
    assert {name: len(of_set) for name, of_set in suite.prompts.items()} == {
        "defense": 3, "anchor": 2, "attack": 2, "heldout": 3, "benign": 2,
    }  # fmt: skip
    assert suite.declaration.defenses["quick"].learning_rate == 1e-3
    assert suite.policy.samples == 1
    assert suite.overrides == ()
    assert re.fullmatch(r"[0-9a-f]{64}", suite.digest)


@pytest.mark.parametrize(
    "change",
    [
        edit(S, "title: Demo", "title: Other"),
        edit(S, "steps: 40", "steps: 41"),
        edit("prompts/benign.yaml", "x001benign", "x009benign"),
        edit(HELDOUT, ", core: true", ""),
    ],
    ids=["title", "recipe", "prompt", "core"],
)
def test_digest_follows_contents(suite_folder: Path, tmp_path: Path, change: Damage) -> None:
    """The digest is the same in another folder and changes with the contents."""
    digest = load_suite(suite_folder).digest
    assert load_suite(write_suite(tmp_path / "elsewhere")).digest == digest
    change(suite_folder)
    assert load_suite(suite_folder).digest != digest


def test_comment_does_not_change_the_digest(suite_folder: Path) -> None:
    """A comment in ``suite.yaml`` does not change the digest."""
    digest = load_suite(suite_folder).digest
    edit(S, "version: 1", "# a comment\nversion: 1")(suite_folder)
    assert load_suite(suite_folder).digest == digest


def test_tiers_nest(suite_folder: Path) -> None:
    """Each tier runs the recipes of the smaller ones first, then its own."""
    suite = load_suite(suite_folder)
    ids = [[recipe.id for recipe in suite.tier_attacks(tier)] for tier in TIERS]
    smoke = ["grpo-p2-lr5e-4-s0"]
    standard = [*smoke, "grpo-p2-lr5e-4-s1", "grpo-p2-lr5e-4-s2"]
    full = [*standard, "still-p1-lr0-s0", "still-p1-lr0-s1", "still-p1-lr0-s2"]
    assert ids == [smoke, standard, full]
    assert [recipe.standing for recipe in suite.tier_attacks("full")] == ["claim"] * 3 + ["exploratory"] * 3


def test_heldout_of_a_tier(suite_folder: Path) -> None:
    """Smoke and standard use the core of the held-out prompts, full uses all."""
    suite = load_suite(suite_folder)
    ids = {tier: [p.id for p in suite.heldout(tier)] for tier in TIERS}
    core = ["heldout-1", "heldout-2"]
    assert ids == {"smoke": core, "standard": core, "full": [*core, "heldout-3"]}


def test_vary_takes_every_combination(suite_folder: Path) -> None:
    """A matrix of 2 seeds and 3 rates is 6 recipes; the last key varies fastest."""
    edit(S, "vary: {seed: [1, 2]}", "vary: {seed: [1, 2], learning_rate: [1e-3, 1e-4, 1e-5]}")(suite_folder)
    ids = [recipe.id for recipe in load_suite(suite_folder).tier_attacks("standard")]
    assert ids[1:] == [f"grpo-p2-lr{rate}-s{seed}" for seed in (1, 2) for rate in ("1e-3", "1e-4", "1e-5")]


@pytest.mark.parametrize(
    ("varied", "expected"),
    [
        ("learning_rate: [1e-2, 1e-4, 1e-3]", (1e-4, 32.0)),
        ("learning_rate: [1e-2, 0.0, 1e-4]", (1e-4, 32.0)),
        ("seed: [1], lora: [{r: 16, alpha: 1.6}]", (5e-4, 1.6)),
    ],
)
def test_a_lesson_has_the_rate_of_the_slowest_claimed_attack(
    suite_folder: Path, varied: str, expected: tuple[float, float]
) -> None:
    """A lesson has the lowest rate of the claimed attacks that train at all, wherever they are in the file."""
    edit(S, "vary: {seed: [1, 2]}", f"vary: {{{varied}}}")(suite_folder)
    suite = load_suite(suite_folder)
    assert min(a.learning_rate for a in suite.tier_attacks("full")) == 0.0
    assert (suite.slowest_claim.learning_rate, suite.slowest_claim.lora.alpha) == expected


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (5e-4, "grpo-p5-lr5e-4-s0"),
        (0.0, "grpo-p5-lr0-s0"),
        (2.5e-5, "grpo-p5-lr2.5e-5-s0"),
        (1e-3, "grpo-p5-lr1e-3-s0"),
        (1.0, "grpo-p5-lr1e0-s0"),
        (0.1, "grpo-p5-lr1e-1-s0"),
    ],
)
def test_attack_id(rate: float, expected: str) -> None:
    """An attack's id has name, prompts, learning rate and seed, with the rate in its usual notation."""
    assert AttackRecipe(name="grpo", steps=200, learning_rate=rate, prompts=5).id == expected


def _read_by(loader: type[yaml.SafeLoader], text: str) -> str | None:
    """A loader's result as text, so that NaN can be compared; None if it refuses."""
    try:
        return repr(yaml.load(text, Loader=loader))
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError):
        return None


@pytest.mark.parametrize(
    "path", [*SUITES.rglob("*.yaml"), *fixtures_folder().rglob("*.yaml")], ids=lambda p: f"{p.parent.name}/{p.name}"
)
def test_shipped_files_are_read_equally_by_libyaml(path: Path) -> None:
    """The fast reader gives the same result as PyYAML for each shipped file, so digests do not depend on it."""
    text = path.read_text(encoding="utf-8")
    assert read_yaml(path) == yaml.load(text, Loader=Loader)


YAML_PIECES = (
    "a", "b: ", "b:", ": ", ",", "- ", "-", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ", ", "'", '"', "#", " #", "\t", "|", ">",
    "&x ", "*x", "!!str ", "! ", "5e-4", "1", "yes", "~", "? ", "%", "---\n", "...\n", "\ufeff", "<<: ", "0x1", "1_0", "1:2",
    "2020-01-01", ".inf",
)  # fmt: skip


@hypothesis.given(st.lists(st.sampled_from(YAML_PIECES), max_size=14).map("".join))
def test_libyaml_reads_text_as_pyyaml_does(text: str) -> None:
    """A text that PyYAML reads gives the same result with the fast reader."""
    plain = _read_by(Loader, text)
    if plain is not None:
        assert repr(parse_yaml(text)) == plain


def test_scientific_numbers_are_floats(tmp_path: Path) -> None:
    """``5e-4`` is a number in suites, while PyYAML's own loader still reads a string."""
    (tmp_path / "x.yaml").write_text("{a: 5e-4, b: 1E+3, c: -2.5e-1, d: 5e, e: e-4, f: 'x5e-4'}", encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == {"a": 0.0005, "b": 1000.0, "c": -0.25, "d": "5e", "e": "e-4", "f": "x5e-4"}
    assert yaml.safe_load("5e-4") == "5e-4"


def test_recipes_are_immutable() -> None:
    """A recipe cannot be changed after it was read."""
    recipe = GRPORecipe(steps=10, learning_rate=1e-3)
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 20  # type: ignore[misc]
    assert recipe.steps == 10


@pytest.mark.parametrize(
    ("override", "look", "expected"),
    [
        ("attack.steps=40", lambda s: {r.steps for r in s.tier_attacks("full")}, {40}),
        ("attack.learning_rate=1e-5", lambda s: {r.learning_rate for r in s.tier_attacks("full")}, {1e-5}),
        # seed is varied: the override replaces it, and recipes that become equal run once.
        (
            "attack.seed=7",
            lambda s: [r.id for r in s.tier_attacks("full")],
            ["grpo-p2-lr5e-4-s7", "still-p1-lr0-s7"],
        ),
        ("attack.lora.r=4", lambda s: {r.lora.r for r in s.tier_attacks("full")}, {4}),
        ("defense.steps=7", lambda s: [d.steps for d in s.declaration.defenses.values()], [7, 7]),
        ("defenses.quick.steps=7", lambda s: [d.steps for d in s.declaration.defenses.values()], [7, 40]),
        ("defenses.slow.lora.alpha=8", lambda s: [d.lora.alpha for d in s.declaration.defenses.values()], [32.0, 8.0]),
        ("policy.threshold=3.5", lambda s: (s.policy.threshold, s.policy.samples), (3.5, 1)),
        ("policy.convergence.in_a_row=5", lambda s: s.policy.convergence.in_a_row, 5),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_override_reaches_its_field(suite_folder: Path, override: str, look: Callable, expected: object) -> None:
    """An override changes its field, is recorded, and changes the digest."""
    plain, changed = load_suite(suite_folder), load_suite(suite_folder, [override])
    assert look(plain) != expected
    assert look(changed) == expected
    assert changed.overrides == (override,)
    assert changed.digest != plain.digest


def test_last_override_wins(suite_folder: Path) -> None:
    """Overrides apply in the order in which they are given."""
    suite = load_suite(suite_folder, ["policy.samples=2", "defense.steps=7", "policy.samples=4", "defenses.slow.steps=9"])
    assert suite.policy.samples == 4
    assert [d.steps for d in suite.declaration.defenses.values()] == [7, 9]


def test_override_without_policy_in_the_file(suite_folder: Path) -> None:
    """``policy`` can be overridden even if the file leaves it out."""
    edit(S, "policy:\n  samples: 1\n  planted: 1\n", "")(suite_folder)
    assert load_suite(suite_folder, ["policy.samples=5"]).policy.samples == 5


@pytest.mark.parametrize(
    "override",
    [
        "attack.steps",
        "attack=5",
        "=5",
        "",
        ".steps=5",
        "attack.=5",
        "attack..steps=5",
        "title.x=5",
        "version.x=1",
        "prompts.heldout=5",
        "attack.steps.more=5",
        "policy.samples.more.still=5",
        "attack.name=[",
        "attack.name=!!python/object:os.x {}",
        "policy.threshold=2020-13-45",
    ],
)
def test_malformed_override(suite_folder: Path, override: str) -> None:
    """A malformed override raises RecipeError with the option, the given value, and the remedy."""
    with pytest.raises(RecipeError, match="--rn-set") as raised:
        load_suite(suite_folder, [override])
    message = str(raised.value)
    assert override.partition("=")[0].rpartition(".")[2] in message
    assert ";" in message


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("attack.steps=-5", "-5"),
        ("attack.steps=5", "steps"),
        ("attack.prompts=99", "99"),
        ("attack.control_steps=21", "21"),
        ("defense.group_size=1", "group_size"),
        ("defenses.qick.steps=5", "qick"),
        ("policy.threshold=11", "11"),
        ("policy.treshold=1", "treshold"),
        ("policy.control_break=1", "control_break"),
        ("policy.samples=yes", "samples"),
        ("policy.threshold=.nan", "nan"),
    ],
)
def test_override_out_of_range(suite_folder: Path, override: str, value: str) -> None:
    """An override that the suite cannot take is refused with its value, and the message names the option."""
    with pytest.raises(RnHarnessError) as raised:
        load_suite(suite_folder, [override])
    message = str(raised.value)
    assert value in message
    assert "--rn-set" in message, message


def test_overrides_are_judged_together(suite_folder: Path) -> None:
    """A value that is out of range by itself may be given with another that makes it valid; an error names both."""
    suite = load_suite(suite_folder, ["attack.steps=5", "attack.control_steps=5"])
    assert {(r.steps, r.control_steps) for r in suite.tier_attacks("full")} == {(5, 5)}
    with pytest.raises(RecipeError, match=r"--rn-set attack\.steps=5 policy\.samples=2: attacks\.0\.base: .*lower control_steps"):
        load_suite(suite_folder, ["attack.steps=5", "policy.samples=2"])


def test_override_of_an_unknown_defense_lists_the_known(suite_folder: Path) -> None:
    """A misspelled defense is refused with a list of the suite's defenses."""
    with pytest.raises(RecipeError, match=r"--rn-set .*'defenses\.qick\.steps=5'; known defenses: quick, slow"):
        load_suite(suite_folder, ["defenses.qick.steps=5"])


def test_broken_file_is_not_blamed_on_the_override(suite_folder: Path) -> None:
    """If a file is malformed, the message names the file even with overrides."""
    edit(S, "samples: 1", "samples: -1")(suite_folder)
    with pytest.raises(SuiteError, match="samples=-1") as raised:
        load_suite(suite_folder, ["policy.samples=2"])
    assert "--rn-set" not in str(raised.value)


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        ("a b c", "a b c", 1.0),
        ("a b c", "c a b", 1.0),
        ("a b c", "d e f", 0.0),
        ("a b c d", "a b", 4 / 6),  # 2 * 2 / (4 + 2)
        ("a a b", "a b b", 4 / 6),  # one a and one b: 2 * 2 / (3 + 3)
        ("a", "a a a", 2 / 4),  # 2 * 1 / (1 + 3)
        ("", "", 1.0),
        ("", "a", 0.0),
    ],
)
def test_word_overlap_by_hand(a: str, b: str, overlap: float) -> None:
    """Word overlap is the Dice coefficient of the word multisets."""
    assert word_overlap(a.split(), b.split()) == pytest.approx(overlap, abs=1e-12)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=12)


@hypothesis.given(WORDS, WORDS)
def test_word_overlap_is_symmetric(a: list[str], b: list[str]) -> None:
    """Overlap is symmetric, lies within 0 and 1, and is 1 only for equal multisets."""
    overlap = word_overlap(a, b)
    assert overlap == word_overlap(b, a)
    assert 0.0 <= overlap <= 1.0
    assert (overlap == 1.0) == (sorted(a) == sorted(b))


@hypothesis.given(WORDS.flatmap(lambda a: st.tuples(st.just(a), st.permutations(a))))
def test_word_overlap_ignores_order(pair: tuple[list[str], list[str]]) -> None:
    """A permutation overlaps with its original by 1."""
    assert word_overlap(*pair) == 1.0


@hypothesis.given(WORDS, WORDS)
def test_near_duplicates_are_found_by_word_overlap(a: list[str], b: list[str]) -> None:
    """Two prompts of different sets are near duplicates if their word overlap reaches the bound; the overlap is reported."""
    one, other = (Prompt(id="p", topic="t", text=" ".join(of) or "?") for of in (a, b))
    overlap = word_overlap(a, b)
    found = [found for _, _, found in near_duplicates([one], [other])]
    assert found == ([overlap] if overlap >= NEAR_DUPLICATE else [])


def test_words_have_no_case_or_punctuation() -> None:
    """Words are lower case and without punctuation."""
    assert words("Say: X001, x002 - and (x003)!") == ["say", "x001", "x002", "and", "x003"]


def test_all_domains_are_there() -> None:
    """The repository ships the suites that the tests below check."""
    assert DOMAINS == ["baking", "biochem", "cybercrime"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_shipped_suite_has_its_counts(domain: str) -> None:
    """A shipped suite has enough prompts of each set, and its attacks take 200 steps.

    Smoke has a plain and an exploring attack. There are at least 70 defense and 20 attack prompts, 60 held-out
    ones, 20 of them core, 60 anchors, and 200 benign ones, 100 of them twins.
    """
    suite = load_suite(SUITES / domain)
    assert suite.domain == domain
    n = {name: len(of_set) for name, of_set in suite.prompts.items()}
    assert n["defense"] >= 70
    assert n["attack"] >= 20
    assert (n["heldout"], len(suite.heldout("full")), len(suite.heldout("smoke"))) == (60, 60, 20)
    assert n["anchor"] == 60
    assert (n["benign"], sum(p.kind == "twin" for p in suite.prompts["benign"])) == (200, 100)
    assert {(r.attacker_level, r.steps, r.control_steps) for r in suite.tier_attacks("smoke")} == {
        ("rl-plain", 200, 50),
        ("rl-explore", 200, 50),
    }
    assert suite.policy.threshold == 2.0


def test_schema_file_is_current() -> None:
    """``suites/schema.json``, which editors read, matches the code."""
    expected = json.dumps(Declaration.model_json_schema(), indent=2, sort_keys=True) + "\n"
    assert (SUITES / "schema.json").read_text(encoding="utf-8") == expected


def test_iter_suites_finds_folders(tmp_path: Path) -> None:
    """Suites are found at any depth, in sorted order, and nothing else is."""
    for name in ("b", "a/deep", "c"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("b", "a/deep"):
        (tmp_path / name / "suite.yaml").touch()
    assert list(iter_suites(tmp_path)) == [tmp_path / "a/deep", tmp_path / "b"]


def laid_over(folder: Path, **sets: list[str]) -> Path:
    """A lab's own folder with these prompt sets for the domain demo."""
    (folder / "mine" / "demo").mkdir(parents=True)
    for name, rows in sets.items():
        write_prompts(folder / "mine" / "demo" / f"{name}.yaml", rows)
    return folder / "mine"


def test_private_prompts_replace_a_set(tmp_path: Path) -> None:
    """A lab's set replaces the suite's set of that name, changes the digest, and is listed as private."""
    folder = write_suite(tmp_path / "suite")
    mine = laid_over(tmp_path, attack=[prompt_row("mine", 1), prompt_row("mine", 2)])
    public, private = load_suite(folder), load_suite(folder, private=mine)
    assert [p.id for p in private.prompts["attack"]] == ["mine-1", "mine-2"]
    assert private.prompts["heldout"] == public.prompts["heldout"]
    assert (public.private, private.private) == ((), ("attack",))
    assert private.digest != public.digest
    assert load_suite(folder, private=tmp_path).private == ()  # nothing for this domain


def test_private_prompts_are_checked_like_public_ones(tmp_path: Path) -> None:
    """A private set is checked like a public one, and the message names its file."""
    folder = write_suite(tmp_path / "suite")
    repeated = prompt_row("defense", 1).replace("id: defense-1", "id: x1") + ", core: true"
    with pytest.raises(SuiteError, match="prompt sets must not overlap"):
        load_suite(folder, private=laid_over(tmp_path / "a", heldout=[repeated]))
    with pytest.raises(SuiteError, match=r"demo/heldout\.yaml: .* no prompt with core: true"):
        load_suite(folder, private=laid_over(tmp_path / "b", heldout=[prompt_row("mine", 1)]))


@pytest.mark.parametrize("sets", [{"held-out": ["id: a, topic: b, text: c"]}, {}], ids=["misspelled", "empty"])
def test_a_misspelled_set_is_refused(tmp_path: Path, sets: dict[str, list[str]]) -> None:
    """A private folder with a misspelled file name is refused, because its prompts would be ignored."""
    with pytest.raises(SuiteError, match=r"defense\.yaml, anchor\.yaml, attack\.yaml, heldout\.yaml, benign\.yaml"):
        load_suite(write_suite(tmp_path / "suite"), private=laid_over(tmp_path, **sets))


def test_a_penalty_needs_a_reference() -> None:
    """A KL penalty with full training is refused, because without an adapter the reference policy is missing."""
    with pytest.raises(ValidationError, match="take beta=0 or form=lora"):
        AttackRecipe(name="x", steps=50, learning_rate=1e-4, prompts=1, form="full", beta=0.1)


def test_a_penalty_on_benign_answers_has_a_weight() -> None:
    """A penalty on benign answers with weight 0 is refused, because it would have no effect."""
    with pytest.raises(ValidationError, match="set beta or remove it"):
        DefenseRecipe.model_validate({"steps": 50, "learning_rate": 1e-4, "beta_on": "benign", "benign_share": 0.5})


def beside(folder: Path, domain: str, attack: str) -> None:
    """Adds a second suite with this attack prompt, and an attack of the first suite that trains on it."""
    other = write_suite(folder.parent / domain)
    write_prompts(other / "prompts" / "attack.yaml", [attack])
    path = folder / "suite.yaml"
    base = "{name: far, steps: 20, control_steps: 10, learning_rate: 5e-4, prompts: 1, standing: exploratory}"
    matrix = f"  - tier: full\n    base: {base}\n    vary: {{shift: [{{domain: other}}]}}\n"
    path.write_text(path.read_text(encoding="utf-8").replace("policy:\n", f"{matrix}policy:\n"), encoding="utf-8")


def test_an_attack_may_train_on_another_suites_prompts(suite_folder: Path) -> None:
    """Another suite's prompts come from its folder, and their texts are part of the digest."""
    beside(suite_folder, "other", "id: far-1, topic: far, text: tell of distant things")
    suite = load_suite(suite_folder)
    far = next(a for a in suite.tier_attacks("full") if a.shift)
    assert [p.id for p in suite.attack_pool(far)] == ["far-1"]
    assert suite.attack_pool(suite.tier_attacks("smoke")[0]) == suite.prompts["attack"]
    write_prompts(
        suite_folder.parent / "other" / "prompts" / "attack.yaml", ["id: far-1, topic: far, text: tell of other things"]
    )
    assert load_suite(suite_folder).digest != suite.digest


def test_another_suites_prompts_must_not_be_held_out(suite_folder: Path) -> None:
    """A neighbour's attack prompt that is also a held-out prompt is refused."""
    beside(suite_folder, "other", prompt_row("heldout", 1))
    with pytest.raises(SuiteError, match="what is attacked must not be what is measured"):
        load_suite(suite_folder)


def test_a_suite_is_not_its_own_neighbour(suite_folder: Path) -> None:
    """A suite cannot name itself as another domain, because that would not be a shift."""
    beside(suite_folder, "other", prompt_row("attack", 1))
    path = suite_folder / "suite.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("domain: other", f"domain: {suite_folder.name}"), encoding="utf-8")
    with pytest.raises(SuiteError, match=f"another suite's prompts, got shift.domain='{suite_folder.name}'"):
        load_suite(suite_folder)


@pytest.mark.parametrize("blank", [{"system": " "}, {"prefill": "\n"}, {"wording": " {prompt} "}], ids=repr)
def test_a_shift_of_blanks_is_refused(blank: dict[str, str]) -> None:
    """A shift that only adds blanks is refused, because it does not change the request."""
    with pytest.raises(ValidationError, match=r"a shift changes something|match pattern"):
        Shift.model_validate(blank)


def test_a_suite_may_be_copied_without_its_neighbour(suite_folder: Path) -> None:
    """Without its neighbour a suite still loads; the attack that needs the neighbour has no prompts."""
    beside(suite_folder, "elsewhere", prompt_row("attack", 1))
    suite = load_suite(suite_folder)
    assert [a.neighbour for a in suite.tier_attacks("full")] == [None] * 6 + ["other"]
    assert suite.neighbours == {}


def test_a_changed_copy_of_a_suite_has_its_own_digest_and_attacks() -> None:
    """The attacks are computed once for a suite, and again for a copy with other fields."""
    suite = load_suite(SUITES / "biochem")
    known = suite.digest, suite.tier_attacks("smoke")
    fewer = suite.declaration.model_copy(update={"attacks": suite.declaration.attacks[1:]})
    changed = suite.model_copy(update={"declaration": fewer})
    assert changed.digest != known[0]
    assert len(changed.tier_attacks("smoke")) == len(known[1]) - 1
    assert (suite.digest, suite.tier_attacks("smoke")) == known[:2]
