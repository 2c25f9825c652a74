"""What a model is given, and what counts as its answer, on tiny models with weights by chance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rn_harness.model import Completion, LanguageModel
from rn_harness.suite import Prompt

from ..tiny_models import QWEN, Family, make_model  # noqa: TID252 - the tests are no package

PROMPT = Prompt(id="p1", topic="bread", text="How do I bake a loaf?")
TAGS = ("<think>", "</think>")
TAGGED = dataclasses.replace(QWEN, special=(*QWEN.special, *TAGS))
"""Its think tags are tokens, special ones."""
TOLD = dataclasses.replace(QWEN, template=QWEN.template + "{# what it thought ends with </think> #}")
"""Its template knows them as text."""


def load(folder: Path, family: Family) -> LanguageModel:
    make_model(folder, family)
    return LanguageModel.load(folder, threads=1)


@pytest.fixture(scope="module", params=[TOLD, TAGGED], ids=["tags-are-text", "tags-are-tokens"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tmp_path_factory.mktemp("model"), request.param)


SAID = {
    "plain": ("a b", True, Completion("a b", truncated=False)),
    "cut": ("a b", False, Completion("a b", truncated=True)),
    "thinks": ("<think>c d</think>\n\na b", True, Completion("a b", truncated=False, thought=True)),
    "begun-by-the-template": ("c d</think>a b", True, Completion("a b", truncated=False, thought=True)),
    "thinks-twice": ("<think>c</think>d<think>e</think>a", True, Completion("a", truncated=False, thought=True)),
    "answer-cut": ("<think>c d</think>a b", False, Completion("a b", truncated=True, thought=True)),
    "still-thinks": ("<think>c d", False, Completion("", truncated=True, thought=True)),
    "ends-while-it-thinks": ("<think>c d", True, Completion("", truncated=True, thought=True)),
    "says-nothing-after": ("<think>c d</think>", True, Completion("", truncated=False, thought=True)),
}


@pytest.mark.parametrize(("text", "ends", "expected"), SAID.values(), ids=SAID.keys())
def test_a_think_part_is_no_answer(model: LanguageModel, text: str, ends: bool, expected: Completion) -> None:
    """What stands before the last end of thought is dropped; thought that does not end leaves no answer and counts as cut off."""
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.answer(tokens + ([model.tokenizer.eos_token_id] if ends else []), PROMPT) == expected


def test_a_model_that_does_not_think_hides_nothing(tmp_path: Path) -> None:
    """Where neither template nor vocabulary know think tags, what stands before one is judged like all else."""
    model = load(tmp_path, QWEN)
    tokens = model.tokenizer("<think>c d</think>a b", add_special_tokens=False)["input_ids"]
    expected = Completion("<think>c d</think>a b", truncated=False)
    assert model.answer([*tokens, model.tokenizer.eos_token_id], PROMPT) == expected


def test_thought_that_the_template_begins(tmp_path: Path) -> None:
    """Where the template opens the think part, a completion without any tag is all thought."""
    opening = QWEN.template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    model = load(tmp_path, dataclasses.replace(QWEN, template=opening + "{# </think> #}"))
    tokens = model.tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert model.answer(tokens, PROMPT) == Completion("", truncated=True, thought=True)
    closed = model.tokenizer("c</think>a b", add_special_tokens=False)["input_ids"]
    assert model.answer([*closed, model.tokenizer.eos_token_id], PROMPT) == Completion("a b", truncated=False, thought=True)


def test_what_follows_the_end_is_dropped(model: LanguageModel) -> None:
    """Rows of a batch are filled up after their end; any of the model's end tokens is one."""
    a, b = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "b"))
    for end in model.network.generation_config.eos_token_id:
        assert model.answer([*a, end, *b], PROMPT) == Completion("a", truncated=False)


def test_a_template_is_told_one_date(tmp_path: Path) -> None:
    """A template that prints today's date gets the same date every day: tomorrow's prompts are the same, and so is their hash."""
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {% endif %}" + QWEN.template
    model = load(tmp_path, dataclasses.replace(QWEN, template=dated))
    assert model.render(PROMPT).startswith("26 Jul 2024 <|im_start|>system\nYou answer questions.")


def test_the_record_tells_templates_apart(model: LanguageModel, tmp_path: Path) -> None:
    """Hash and length of what the model is given: the same for the same template, another for another system prompt."""
    rendered = model.rendered(PROMPT)
    assert rendered.characters == len(model.render(PROMPT))
    assert rendered == load(tmp_path / "same", QWEN).rendered(PROMPT)
    other = dataclasses.replace(QWEN, template=QWEN.template.replace("You answer questions.", "You refuse."))
    assert load(tmp_path / "other", other).rendered(PROMPT) != rendered
