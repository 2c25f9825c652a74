"""Provenance: the state of the suite's working tree and the attempts at a result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rn_harness.records.base import content_key
from rn_harness.store.provenance import attempt, attempts, clear_outcome, take_card, uncommitted, working_tree
from rn_harness.store.store import Store

KEY = content_key("case", {"of": "a test"})


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite's folder in a repository with one commit."""
    folder = tmp_path / "tree" / "suites" / "demo"
    folder.mkdir(parents=True)
    (folder / "suite.yaml").write_text("version: 1\n")
    (tmp_path / "tree" / "other.txt").write_text("a\n")
    git(tmp_path, "init", "-q", "tree")
    git(tmp_path / "tree", "add", "-A")
    git(tmp_path / "tree", "commit", "-qm", "first")
    return folder


def test_a_settled_tree_is_named_by_its_commit(suite: Path) -> None:
    """A tree without changes since its commit is named by the commit and is not dirty."""
    tree = working_tree(suite)
    assert tree is not None
    assert (tree.commit, tree.dirty) == (git(suite, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize(
    ("path", "dirty"), [("suites/demo/suite.yaml", True), ("other.txt", True), ("suites/demo/new.yaml", True), ("new.txt", False)]
)
def test_a_changed_tree_is_dirty(suite: Path, path: str, dirty: bool) -> None:
    """A changed tracked file anywhere, or an untracked one in the suite's folder, makes the tree dirty."""
    (suite.parents[1] / path).write_text("changed\n")
    tree = working_tree(suite)
    assert tree is not None
    assert tree.dirty == dirty


def test_a_strangers_repository_runs_nothing(suite: Path, tmp_path: Path) -> None:
    """A file-system monitor that the repository's own settings name is not started."""
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    git(suite, "config", "core.fsmonitor", str(trap))
    assert working_tree(suite) is not None
    assert not (tmp_path / "sprung").exists()


def test_a_change_that_git_ignores_is_found(suite: Path) -> None:
    """Files marked as unchanged in git and files excluded from git also make the tree dirty if they differ."""
    assert uncommitted(suite) == []
    git(suite, "update-index", "--assume-unchanged", "suite.yaml")
    (suite / "suite.yaml").write_text("version: 2\n", encoding="utf-8")
    (suite.parents[1] / ".git" / "info" / "exclude").write_text("extra.yaml\n", encoding="utf-8")
    (suite / "extra.yaml").write_text("more: 1\n", encoding="utf-8")
    assert uncommitted(suite) == ["suites/demo/extra.yaml", "suites/demo/suite.yaml"]


def test_without_git_the_tree_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder outside a repository and a machine without git have no tree."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert working_tree(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert working_tree(tmp_path / ".") is None


def test_each_attempt_is_recorded_with_its_end(tmp_path: Path) -> None:
    """A failed attempt is recorded as cut, one whose judge failed as such, and the last one as done."""
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="broke"), attempt(store, KEY):
        raise ValueError("broke")
    with attempt(store, KEY) as trial:
        trial.outcome = "judge_failed"
    with attempt(store, KEY):
        pass
    tried = attempts(store, KEY)
    assert [a.outcome for a in tried] == ["cut", "judge_failed", "done"]
    assert all(a.ended is not None and a.wall_s is not None and a.device_s is not None for a in tried)


def test_a_killed_attempt_stays_recorded(tmp_path: Path) -> None:
    """After a kill, the record from before the work remains: it has a start but no end, and counts as cut."""
    store = Store(tmp_path)
    with attempt(store, KEY):
        (noted,) = attempts(store, KEY)
    assert (noted.outcome, noted.ended) == ("cut", None)


def test_work_without_attempts_has_an_empty_list(tmp_path: Path) -> None:
    """A result without recorded attempts has an empty list."""
    assert attempts(Store(tmp_path), KEY) == ()


@pytest.mark.parametrize(
    ("given", "cards", "taken"),
    [
        (None, 0, [None, None, None]),
        (None, 1, [None, None, None]),
        (None, 2, ["0", "1", "0"]),
        ("", 4, ["", "", ""]),
        ("3", 4, ["3", "3", "3"]),
        ("3,GPU-a", 4, ["3", "GPU-a", "3"]),
        ("3,1,-1,2", 4, ["3", "1", "3"]),
    ],
)
def test_workers_share_the_cards_visible_to_their_caller(given: str | None, cards: int, taken: list[str]) -> None:
    """Each worker gets one of the caller's visible cards and sees no other; with no card or one, nothing changes."""
    for worker, expected in enumerate(taken):
        environment = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
        take_card(worker, environment, lambda: cards)
        assert environment.get("CUDA_VISIBLE_DEVICES") == expected


@pytest.mark.parametrize(
    ("run", "kept"),
    [
        ('{"outcome": "PASS"}', "PASS"),
        ('{"outcome": "FAIL"}', "FAIL"),
        ("{", "unreadable"),
        ('{"outcome": "INCONCLUSIVE"}', None),
    ],
)
def test_a_decided_run_is_never_replaced(tmp_path: Path, run: str, kept: str | None) -> None:
    """A folder's decided run is moved to the next free number, all but its parts; only an undecided one loses its outcome."""
    folder = tmp_path / "run"
    (folder / "parts" / "one").mkdir(parents=True)
    (folder / "cases").mkdir()
    (folder / "run.json").write_text(run)
    (folder / "junit.xml").write_text("<old/>")
    (folder / "report.html").write_text("old")
    (tmp_path / "run-1").mkdir()
    moved = clear_outcome(folder)
    assert moved == (kept and (tmp_path / "run-2", kept))
    assert not (folder / "run.json").exists()
    assert not (folder / "junit.xml").exists()
    assert not (folder / "report.html").exists()
    assert (folder / "parts" / "one").is_dir()
    assert (folder / "cases").is_dir() == (kept is None)
    if moved:
        assert sorted(path.name for path in moved[0].iterdir()) == ["cases", "junit.xml", "report.html", "run.json"]
        assert (moved[0] / "run.json").read_text() == run
