"""Sabotages of prompt sets, such as held-out prompts that the defense or the attack has seen, or an empty set."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rn_harness.records.case import Evidence
from rn_harness.spec.scaffold import write_suite as new_suite
from rn_harness.spec.suite import load_suite
from rn_harness.spec.wording import words

from ..unit import builders  # noqa: TID252 - the tests are not a package
from .battery import Declared, Scene
from .lab import SUITES

PROMPTS = Declared("prompts")
OVERLAP = "prompt sets must not overlap"
Sets = dict[str, list[dict[str, Any]]]


@functools.cache
def _set(name: str) -> str:
    return (SUITES / "biochem" / "prompts" / f"{name}.yaml").read_text(encoding="utf-8")


def _read(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = yaml.safe_load(_set(name))["prompts"]
    return loaded


def _loaded(scene: Scene, change: Callable[[Sets], None]) -> Evidence:
    """Clean evidence, if the biochem suite can be loaded with these prompt sets."""
    folder = scene.folder / "biochem"
    (folder / "prompts").mkdir(parents=True)
    shutil.copy(SUITES / "biochem" / "suite.yaml", folder)
    sets = {name: _read(name) for name in ("defense", "anchor", "attack", "heldout", "benign")}
    change(sets)
    for name, prompts in sets.items():
        _write(folder / "prompts" / f"{name}.yaml", prompts)
    load_suite(folder)
    return builders.evidence("attack")


def _write(path: Path, prompts: list[dict[str, Any]]) -> None:
    path.write_text(yaml.safe_dump({"prompts": prompts}), encoding="utf-8")


def _like(of: str, change: Callable[[str], str], *, shortest: bool = False) -> Callable[[Sets], None]:
    """Derives a held-out prompt from a prompt of another set."""

    def apply(sets: Sets) -> None:
        source = min(sets[of], key=lambda p: len(words(p["text"]))) if shortest else sets[of][0]
        sets["heldout"][0] |= {"text": change(source["text"]), "topic": source["topic"]}

    return apply


@PROMPTS.by("a held-out prompt equal to an attack prompt", "refused", "SuiteError", OVERLAP)
def heldout_in_attack(scene: Scene) -> Evidence:
    return _loaded(scene, _like("attack", lambda text: text))


@PROMPTS.by("a held-out prompt equal to a defense prompt", "refused", "SuiteError", OVERLAP)
def heldout_in_defense(scene: Scene) -> Evidence:
    return _loaded(scene, _like("defense", lambda text: text))


@PROMPTS.by("the same in capitals, without punctuation", "refused", "SuiteError", OVERLAP)
def heldout_in_capitals(scene: Scene) -> Evidence:
    return _loaded(scene, _like("attack", lambda text: " ".join(words(text)).upper()))


@PROMPTS.by("the same, its words in another order", "refused", "SuiteError", OVERLAP)
def heldout_in_another_order(scene: Scene) -> Evidence:
    return _loaded(scene, _like("attack", lambda text: " ".join(reversed(words(text)))))


def _first_word_changed(text: str) -> str:
    first, *rest = words(text)
    return " ".join([f"{first}x", *rest])


@PROMPTS.by("an attack prompt paraphrased by one word", "refused", "SuiteError", OVERLAP)
def heldout_paraphrased(scene: Scene) -> Evidence:
    return _loaded(scene, _like("attack", _first_word_changed))


@PROMPTS.by("the shortest defense prompt paraphrased by one word", "refused", "SuiteError", OVERLAP)
def shortest_paraphrased(scene: Scene) -> Evidence:
    return _loaded(scene, _like("defense", _first_word_changed, shortest=True))


@PROMPTS.by("a defense prompt that is an attack prompt", "refused", "SuiteError", OVERLAP)
def defense_in_attack(scene: Scene) -> Evidence:
    return _loaded(scene, lambda sets: sets["defense"][0].update(text=sets["attack"][0]["text"]))


@PROMPTS.by("one held-out text twice, under two ids", "refused", "SuiteError", "a text must stand once in its set")
def heldout_twice(scene: Scene) -> Evidence:
    return _loaded(scene, lambda sets: sets["heldout"][0].update(text=sets["heldout"][1]["text"]))


@PROMPTS.by("one id for two prompts", "refused", "SuiteError", "prompt ids must be unique in a suite")
def id_twice(scene: Scene) -> Evidence:
    return _loaded(scene, lambda sets: sets["heldout"][0].update(id=sets["attack"][0]["id"]))


@PROMPTS.by("an empty held-out set", "refused", "SuiteError", "heldout.yaml:1: prompts: List should have at least 1 item")
def heldout_empty(scene: Scene) -> Evidence:
    return _loaded(scene, lambda sets: sets["heldout"].clear())


@PROMPTS.by("an empty attack set", "refused", "SuiteError", "attack.yaml:1: prompts: List should have at least 1 item")
def attack_empty(scene: Scene) -> Evidence:
    return _loaded(scene, lambda sets: sets["attack"].clear())


@PROMPTS.by("fewer attack prompts than a recipe asks for", "refused", "SuiteError", "at most as many prompts as the pool holds")
def attack_too_small(scene: Scene) -> Evidence:
    return _loaded(scene, lambda sets: sets.update(attack=sets["attack"][:4]))


@PROMPTS.by("no held-out prompt of the core", "refused", "SuiteError", "got no prompt with core: true")
def no_core(scene: Scene) -> Evidence:
    return _loaded(scene, lambda sets: [p.pop("core", None) for p in sets["heldout"]])


@PROMPTS.by("suite.yaml cut off in the middle of a line", "refused", "SuiteError", "suite.yaml")
def suite_cut_off(scene: Scene) -> Evidence:
    folder = scene.folder / "biochem"
    shutil.copytree(SUITES / "biochem", folder)
    path = folder / "suite.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index("learning_rate: 5e-4") + len("learning_ra")], encoding="utf-8")
    load_suite(folder)
    return builders.evidence("attack")


@PROMPTS.by("two attack recipes of one id, so that their cases have one key", "refused", "SuiteError", "two recipes of one id")
def two_recipes_of_one_id(scene: Scene) -> Evidence:
    folder = builders.write_suite(scene.folder / "demo")
    path = folder / "suite.yaml"
    text = path.read_text(encoding="utf-8")
    twin = "  - tier: smoke\n    base: {name: grpo, steps: 40, control_steps: 10, learning_rate: 5e-4, prompts: 2}\n"
    path.write_text(text.replace("attacks:\n", f"attacks:\n{twin}"), encoding="utf-8")
    load_suite(folder)
    return builders.evidence("attack")


def _declared(scene: Scene, old: str, new: str) -> Evidence:
    """Clean evidence, if a small suite can be loaded with this change of its declaration."""
    folder = builders.write_suite(scene.folder / "demo")
    path = folder / "suite.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    load_suite(folder)
    return builders.evidence("attack")


@PROMPTS.by("what is forbidden is still the placeholder of `new-suite`", "refused", "SuiteError", "got a placeholder, TODO")
def forbidden_unwritten(scene: Scene) -> Evidence:
    return _declared(scene, "forbidden: ", "forbidden: >-\n  TODO ")


@PROMPTS.by("the prompts are still those of `new-suite`", "refused", "SuiteError", "got a placeholder, TODO")
def prompts_unwritten(scene: Scene) -> Evidence:
    folder = new_suite("fraud", scene.folder)
    path = folder / "suite.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("TODO", "Written"), encoding="utf-8")
    load_suite(folder)
    return builders.evidence("attack")


@PROMPTS.by("a domain is declared benign, and nobody says why", "refused", "SuiteError", "a domain is harmless for a reason")
def benign_without_a_reason(scene: Scene) -> Evidence:
    return _declared(scene, "title:", "benign: true\ntitle:")
