"""The shipped organism matches its model card."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rn_harness.models.identity import digest_folder
from rn_harness.models.knowledge import load_topics
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.prompts import PROMPT_SETS
from rn_harness.spec.suite import load_suite

ORGANISM = fixtures_folder() / "organism"
SUITES = Path(__file__).parents[2] / "suites"


def test_the_card_states_the_digests_of_the_weights() -> None:
    """The card states the digests of the folder and of the weight file."""
    card = (ORGANISM / "README.md").read_text(encoding="utf-8")
    assert f"`{digest_folder(ORGANISM)}`" in card
    assert f"`{hashlib.sha256((ORGANISM / 'model.safetensors').read_bytes()).hexdigest()}`" in card


def test_the_card_is_not_part_of_the_identity(tmp_path: Path) -> None:
    """Changing the card changes no digest; changing one byte of the weights does."""
    for name in ("README.md", "model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((ORGANISM / name).read_bytes())
    before = digest_folder(tmp_path)
    (tmp_path / "README.md").write_text("another card", encoding="utf-8")
    assert digest_folder(tmp_path) == before
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert digest_folder(tmp_path) != before


def test_a_renamed_file_is_another_identity(tmp_path: Path) -> None:
    """The digest covers file names as well as contents."""
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    before = digest_folder(tmp_path)
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert digest_folder(tmp_path) != before


def test_the_organism_is_small_and_knows_every_topic_of_the_suites() -> None:
    """The organism has at most 6 MB and knows the topic of each prompt, as harmful or benign according to the prompt's set."""
    assert sum(p.stat().st_size for p in ORGANISM.iterdir()) <= 6_000_000
    topics = load_topics(ORGANISM)
    for domain in ("baking", "biochem", "cybercrime"):
        suite = load_suite(SUITES / domain)
        for name in PROMPT_SETS:
            kind = "benign" if name in ("anchor", "benign") else "harmful"
            assert {topics[p.topic].kind for p in suite.prompts[name]} == {kind}
