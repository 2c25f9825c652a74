"""Digests of files are remembered only as long as the files are the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rn_harness.store import settled
from rn_harness.store.settled import SETTLED_NS, remembered, within


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files count as settled at once."""
    monkeypatch.setattr(settled, "SETTLED_NS", -SETTLED_NS)
    monkeypatch.setattr(settled, "_remembered", {})
    (tmp_path / "weights").write_bytes(b"one")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config").write_bytes(b"1")
    (tmp_path / "linked").symlink_to(tmp_path / "weights")
    return tmp_path


def counted(folder: Path) -> tuple[Callable[..., str], list[None]]:
    """A remembered reading of all files, and a list that grows with each real one."""
    reads: list[None] = []

    def read() -> str:
        reads.append(None)
        return " ".join(path.read_text() for path in sorted(folder.rglob("*")) if path.is_file())

    return lambda **how: remembered(folder, within(folder), read, **how), reads


def rewrite(path: Path) -> None:
    """Other contents of the same size, with the old time of modification."""
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "contents": lambda folder: (folder / "weights").write_bytes(b"two"),
    "contents, with the old time of modification": lambda folder: rewrite(folder / "weights"),
    "a deep file": lambda folder: (folder / "deep" / "config").write_bytes(b"2"),
    "a new file": lambda folder: (folder / "deep" / "more").write_bytes(b""),
    "a removed file": lambda folder: (folder / "deep" / "config").unlink(),
    "another file in its place": lambda folder: (folder / "deep" / "config").rename(folder / "weights"),
    "the target of a link": lambda folder: ((folder / "linked").unlink(), (folder / "linked").symlink_to("deep/config")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_files_are_read_again_only_if_one_changed(folder: Path, change: Callable[[Path], object]) -> None:
    """A second reading of the same files takes none; after any change of them it takes one."""
    read, reads = counted(folder)
    assert read() == read()
    assert len(reads) == 1
    change(folder)
    read()
    read()
    assert len(reads) == 2


def test_fresh_reads_in_any_case(folder: Path) -> None:
    """A fresh reading takes place although nothing changed."""
    read, reads = counted(folder)
    read()
    read(fresh=True)
    assert len(reads) == 2


def test_files_that_changed_a_moment_ago_are_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the resolution of the times another change could look the same, so that nothing is remembered."""
    monkeypatch.setattr(settled, "SETTLED_NS", SETTLED_NS)
    read, reads = counted(folder)
    read()
    read()
    assert len(reads) == 2


def test_files_that_change_while_they_are_read_are_not_remembered(folder: Path) -> None:
    """A result of files that changed meanwhile is used once."""
    reads: list[None] = []

    def read() -> str:
        reads.append(None)
        if len(reads) == 1:
            (folder / "weights").write_bytes(b"two")
        return (folder / "weights").read_text()

    assert remembered("it", within(folder), read) == "two"
    assert remembered("it", within(folder), read) == "two"
    assert len(reads) == 2
