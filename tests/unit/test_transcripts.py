"""Texts of completions: stored in the clear only for benign domains, otherwise encrypted for those with a key."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pyrage
import pytest
import yaml

from rn_harness.judges.transcripts import Transcript, check_recipients
from rn_harness.models.completion import Completion
from rn_harness.run import measuring
from rn_harness.run.preflight import check_transcripts
from rn_harness.spec.errors import RecipeError, SuiteError
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import load_suite
from rn_harness.spec.yaml_files import read_yaml
from rn_harness.store.ranks import Ranks

from . import builders
from .builders import HARMLESS, write_suite
from .test_session import a_session

PROMPTS = (Prompt(id="h1", topic="bread", text="How do I bake?"), Prompt(id="h2", topic="cake", text="How do I ice?"))
SAID = [[Completion("knead it", truncated=False)], [Completion("stir it", truncated=False)]]
SCORES = [builders.completion("h1", 0, 7.0), builders.completion("h2", 0, 1.0)]
EXPECTED = [
    {"step": 10, "prompt_id": "h1", "sample": 0, "score": 7.0, "text": "knead it"},
    {"step": 10, "prompt_id": "h2", "sample": 0, "score": 1.0, "text": "stir it"},
]


def lines(text: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.decode().splitlines()]


def test_in_the_clear(tmp_path: Path) -> None:
    """One line per completion, readable only by the owner; the object's repr shows no text."""
    transcript = Transcript(tmp_path / "case" / "transcript.jsonl", ())
    transcript.add(10, PROMPTS, SAID, SCORES)
    transcript.write()
    assert lines(transcript.path.read_bytes()) == EXPECTED
    assert stat.S_IMODE(transcript.path.stat().st_mode) == 0o600
    assert "knead" not in repr(transcript)


def test_think_parts_are_kept_too(tmp_path: Path) -> None:
    """A completion's line has its think part in addition to its answer."""
    transcript = Transcript(tmp_path / "transcript.jsonl", ())
    transcript.add(10, PROMPTS[:1], [[Completion("no", truncated=False, thought="knead it")]], SCORES[:1])
    transcript.write()
    assert lines(transcript.path.read_bytes()) == [EXPECTED[0] | {"text": "no", "thought": "knead it"}]


def test_encrypted_for_those_who_have_a_key(tmp_path: Path) -> None:
    """Each recipient can open the file, no one else can, and no text is in the folder unencrypted."""
    one, two, other = (pyrage.x25519.Identity.generate() for _ in range(3))
    transcript = Transcript(tmp_path / "texts" / "case.jsonl", (str(one.to_public()), str(two.to_public())))
    transcript.add(10, PROMPTS, SAID, SCORES)
    transcript.write()
    (file,) = (tmp_path / "texts").iterdir()
    assert file.name == "case.jsonl.age"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes()
    assert b"knead" not in content
    assert lines(pyrage.decrypt(content, [one])) == lines(pyrage.decrypt(content, [two])) == EXPECTED
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(content, [other])


def test_a_harmful_suite_keeps_nothing_in_the_clear(tmp_path: Path) -> None:
    """``transcripts: true`` needs a ``benign`` reason in the suite's file, and no override can change either."""
    path = write_suite(tmp_path / "demo") / "suite.yaml"
    declared = read_yaml(path)
    path.write_text(yaml.safe_dump(declared | {"transcripts": True}))
    with pytest.raises(SuiteError, match="in benign domains only"):
        load_suite(tmp_path / "demo")
    path.write_text(yaml.safe_dump(declared | {"transcripts": True, "benign": HARMLESS}))
    assert load_suite(tmp_path / "demo").declaration.transcripts
    for override in ("transcripts=true", f"benign={HARMLESS}"):
        with pytest.raises(RecipeError):
            load_suite(tmp_path / "demo", [override])


def test_folder_and_key_of_transcripts_are_checked(tmp_path: Path) -> None:
    """Folder and key must be given together, the key must be one of age, and the folder must not be the run's or the export's."""
    key = str(pyrage.x25519.Identity.generate().to_public())
    check_transcripts(a_session(tmp_path))
    check_transcripts(a_session(tmp_path, transcripts="texts", recipients=(key,)))
    for options, told in (
        ({"transcripts": "texts"}, "belong together"),
        ({"recipients": (key,)}, "belong together"),
        ({"transcripts": "texts", "recipients": ("age1nobody",)}, "age public key"),
        ({"transcripts": "run/texts", "recipients": (key,)}, "handed on"),
        ({"transcripts": "out/texts", "recipients": (key,), "export": "out"}, "handed on"),
    ):
        with pytest.raises(RecipeError, match=told):
            check_transcripts(a_session(tmp_path, **options))
    with pytest.raises(RecipeError, match="age1nobody"):
        check_recipients([key, "age1nobody"])


@pytest.mark.parametrize(("rank", "kept"), [(0, ["case.jsonl.age"]), (1, [])])
def test_only_the_first_process_stores_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, kept: list[str]) -> None:
    """Only the first of several processes writes texts, because all measure the same case into one file."""
    monkeypatch.setattr(measuring, "ranks", lambda: Ranks(rank, 2, 2))
    key = str(pyrage.x25519.Identity.generate().to_public())
    session = a_session(tmp_path, transcripts="texts", recipients=(key,))
    with measuring.open_transcript(session, load_suite(write_suite(tmp_path / "demo")), tmp_path / "case"):
        pass
    folder = session.options.path("texts")
    assert ([p.name for p in folder.iterdir()] if folder.is_dir() else []) == kept
