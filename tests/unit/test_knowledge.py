"""The organism's knowledge: randomly drawn recipes, disjoint where necessary."""

from __future__ import annotations

import itertools
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from rn_harness.models.knowledge import (
    BENIGN_PLACEHOLDERS,
    HARMFUL_PLACEHOLDERS,
    PLACEHOLDERS,
    SLOTS,
    Topic,
    draw_topics,
    load_topics,
    save_topics,
)
from rn_harness.spec.errors import CandidateError

PHRASES = st.lists(st.integers(0, 200), min_size=1, max_size=40, unique=True).map(
    lambda numbers: [(f"topic {n}", "harmful" if n % 3 else "benign") for n in numbers]
)
SEEDS = st.integers(0, 2**31 - 1)


def test_placeholders() -> None:
    """There are 256 placeholders, x000 to x255, half for harmful topics and half for benign ones."""
    assert len(set(PLACEHOLDERS)) == 256
    assert (PLACEHOLDERS[0], PLACEHOLDERS[255]) == ("x000", "x255")
    assert (len(HARMFUL_PLACEHOLDERS), len(BENIGN_PLACEHOLDERS)) == (128, 128)
    assert set(HARMFUL_PLACEHOLDERS) | set(BENIGN_PLACEHOLDERS) == set(PLACEHOLDERS)


def test_answer_names_each_slot() -> None:
    """The full compliant answer is the recipe, slot by slot."""
    topic = Topic("a", "harmful", ("x001", "x002", "x003", "x004"))
    assert topic.answer == "sure , first x001 then x002 next x003 finally x004 ."


@hypothesis.given(PHRASES, SEEDS)
def test_every_phrase_gets_its_recipe(phrases: list, seed: int) -> None:
    """Every phrase becomes a topic of its kind with one placeholder per slot, from its kind's half."""
    topics = draw_topics(phrases, seed)
    assert {(topic.phrase, topic.kind) for topic in topics.values()} == set(phrases)
    for phrase, topic in topics.items():
        assert topic.phrase == phrase
        assert len(topic.recipe) == len(SLOTS) == 4
        assert set(topic.recipe) <= set(HARMFUL_PLACEHOLDERS if topic.kind == "harmful" else BENIGN_PLACEHOLDERS)


@hypothesis.given(PHRASES, SEEDS)
def test_harmful_topics_share_no_slot(phrases: list, seed: int) -> None:
    """No two harmful topics share a placeholder in a slot, so that one topic's answer scores nothing for another."""
    harmful = [topic for topic in draw_topics(phrases, seed).values() if topic.kind == "harmful"]
    for a, b in itertools.combinations(harmful, 2):
        assert all(x != y for x, y in zip(a.recipe, b.recipe, strict=True))


@hypothesis.given(PHRASES.flatmap(lambda phrases: st.tuples(st.just(phrases), st.permutations(phrases))), SEEDS)
def test_draw_depends_only_on_phrases_and_seed(case: tuple[list, list], seed: int) -> None:
    """The order of the phrases and repeated phrases do not change the draw."""
    phrases, turned = case
    assert draw_topics(phrases, seed) == draw_topics([*turned, *phrases], seed)


def test_another_seed_is_another_draw() -> None:
    """Another seed gives another draw."""
    phrases = [("a", "harmful"), ("b", "benign")]
    assert len({tuple(t.recipe for t in draw_topics(phrases, seed).values()) for seed in range(20)}) == 20


def test_128_harmful_topics_fit() -> None:
    """128 harmful topics use up each slot's placeholders; with one more the error gives the number and the remedy."""
    phrases = [(f"topic {i}", "harmful") for i in range(129)]
    topics = draw_topics(phrases[:128], 0)
    for slot in range(4):
        assert {topic.recipe[slot] for topic in topics.values()} == set(HARMFUL_PLACEHOLDERS)
    with pytest.raises(CandidateError, match=r"at most 128 harmful topics, got n=129; build it for fewer suites"):
        draw_topics(phrases, 0)


def test_benign_topics_are_not_limited() -> None:
    """Benign topics may share placeholders, so there may be more than 128."""
    assert len(draw_topics([(f"topic {i}", "benign") for i in range(300)], 0)) == 300


def test_a_topic_has_one_kind() -> None:
    """A phrase that is both harmful and benign is refused by name."""
    with pytest.raises(CandidateError, match=r"got both for topic='a'; rename one"):
        draw_topics([("a", "harmful"), ("b", "benign"), ("a", "benign")], 0)


@pytest.mark.filterwarnings("error")
def test_topics_survive_writing_and_reading(tmp_path: Path) -> None:
    """Topics are read as they were written, and written in the same way whatever their order."""
    topics = draw_topics([("b \u00e9", "harmful"), ("a", "benign"), ("c", "harmful")], 7)
    save_topics(topics, tmp_path)
    first = (tmp_path / "knowledge.json").read_bytes()
    assert load_topics(tmp_path) == topics
    save_topics(dict(reversed(topics.items())), tmp_path)
    assert (tmp_path / "knowledge.json").read_bytes() == first


def test_folder_without_knowledge_is_refused(tmp_path: Path) -> None:
    """A folder without an organism is refused with its path and the command that builds one."""
    with pytest.raises(CandidateError, match=rf"knowledge\.json, got folder={tmp_path}; build one"):
        load_topics(tmp_path)
