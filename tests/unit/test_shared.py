"""Large files: the store, its copies to other stores and the digests of weights take memory that does not grow with them."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rn_harness.models.identity import digest_folder, hash_files
from rn_harness.release import export
from rn_harness.run.executors.exchange import StoreActor
from rn_harness.spec.errors import StoreError
from rn_harness.store import shared
from rn_harness.store.shared import SharedEntry, add_entries
from rn_harness.store.store import Store

from .builders import case_record, evidence

MIB = 2**20
LARGE, PIECE, MOST = 64 * MIB, 2 * MIB, 16 * MIB
"""Bytes of a sparse file of weights, of a piece of it here, and that a process may take at a time."""


def _weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(LARGE)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "empty.txt").touch()


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _send(entry: SharedEntry, actor: StoreActor) -> None:
    """Sends an entry as ``Exchange.send`` does, without a cluster."""
    for name in entry.files:
        for piece in entry.pieces(name):
            actor.receive(entry.kind, "parcel", name, piece)
    actor.add(entry.kind, "parcel", entry.key, entry.files)


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedEntry:
    """A stored model; pieces are small."""
    monkeypatch.setattr(shared, "PIECE_BYTES", PIECE)
    return SharedEntry.of(Store(tmp_path / "here").put("defense", "k", _weights), "defense", "k")


def test_memory_does_not_grow_with_the_weights(tmp_path: Path, entry: SharedEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storing, reading, hashing, copying, sending and exporting weights takes less than a quarter of their size in memory."""
    here, there, actor = Store(tmp_path / "here"), Store(tmp_path / "there"), StoreActor(tmp_path / "third")
    folder = here.root / "defense" / "k"
    record = case_record(evidence("attack"))
    identity = record.identity.model_copy(update={"defended_digest": digest_folder(folder)})
    records, run = [record.model_copy(update={"identity": identity})], Any
    monkeypatch.setattr(export, "render_card", lambda *_, **__: "")
    work: dict[str, Callable[[], object]] = {
        "store": lambda: here.put("defense", "other", _weights),
        "read": lambda: here.get("defense", "k"),
        "hash": lambda: hash_files(folder, fresh=True),
        "copy": lambda: add_entries(there, [entry]),
        "send": lambda: _send(entry, actor),
        "export": lambda: export.export_defended(folder, tmp_path / "export", run, records),
    }
    peaks = {name: _peak(of) for name, of in work.items()}
    assert {name: peak for name, peak in peaks.items() if peak > MOST} == {}
    assert (tmp_path / "export" / "model.safetensors").stat().st_size == LARGE
    for store in (there, actor.store):
        found = store.get("defense", "k")
        assert found is not None
        assert {p.name: p.stat().st_size for p in found.iterdir() if p.name != "entry.json"} == {
            "model.safetensors": LARGE, "config.json": 2, "empty.txt": 0
        }  # fmt: skip


def test_other_contents_than_were_sent_are_no_entry(tmp_path: Path, entry: SharedEntry) -> None:
    """A piece that is altered or lost on its way is an error that names the file, and nothing is stored or left behind."""
    there, actor = Store(tmp_path / "there"), StoreActor(tmp_path / "third")
    for name, wrong in (
        ("config.json", dataclasses.replace(entry, read=lambda of, at: b"" if of == "config.json" else entry.read(of, at))),
        (
            "model.safetensors",
            dataclasses.replace(entry, read=lambda of, at: b"\1" * PIECE if at == PIECE else entry.read(of, at)),
        ),
    ):
        with pytest.raises(StoreError, match=f"must arrive as it was sent, got other contents of {name}; run again"):
            add_entries(there, [wrong])
        with pytest.raises(StoreError, match=f"got other contents of {name}; run again"):
            _send(wrong, actor)
    assert [p for store in (there, actor.store) for p in store.root.glob("defense/*")] == []


def test_an_entry_that_is_there_is_kept(tmp_path: Path, entry: SharedEntry) -> None:
    """Two workers may send one entry: the second parcel is dropped, and the first entry stays as it is."""
    actor = StoreActor(tmp_path / "third")
    _send(entry, actor)
    before = {p: p.stat().st_ino for p in (tmp_path / "third").rglob("*") if p.is_file()}
    _send(entry, actor)
    assert {p: p.stat().st_ino for p in (tmp_path / "third").rglob("*") if p.is_file()} == before
