"""Entries on their way from one store to another. Weights travel in pieces, so that no process holds a file of them in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rn_harness.store.store import Store, read_manifest

PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SharedEntry:
    """An entry of one store, to be added to another.

    Attributes:
        kind, key: its address.
        files: sha256 of each file, by path.
        read: returns the piece of a file that begins at an offset, at most ``PIECE_BYTES``; empty at the end.
    """

    kind: str
    key: str
    files: Mapping[str, str]
    read: Callable[[str, int], bytes] = field(repr=False, compare=False)

    @classmethod
    def of(cls, folder: Path, kind: str, key: str) -> SharedEntry:
        """The entry in a folder of a store on this machine."""
        return cls(kind, key, read_manifest(folder)["files"], functools.partial(read_piece, folder))

    def pieces(self, name: str) -> Iterator[bytes]:
        """A file's contents in order; one empty piece for an empty file."""
        offset = 0
        while (piece := self.read(name, offset)) or not offset:
            yield piece
            if len(piece) < PIECE_BYTES:
                return
            offset += len(piece)

    def write(self, folder: Path) -> None:
        """Writes the files into a folder."""
        for name in self.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for piece in self.pieces(name):
                    file.write(piece)


def read_piece(folder: Path, name: str, offset: int) -> bytes:
    """The piece of a file in a folder that begins at an offset."""
    with (folder / name).open("rb") as file:
        file.seek(offset)
        return file.read(PIECE_BYTES)


def add_once(store: Store, kind: str, key: str, write: Callable[[Path], None], sent: Mapping[str, str]) -> None:
    """Adds an entry that ``write`` fills, unless it exists. Raises StoreError if other contents arrive than were sent."""
    with store.locked(kind, key):
        if store.get(kind, key) is None:
            store.put(kind, key, write, expected=sent)


def add_entries(store: Store, entries: Iterable[SharedEntry]) -> None:
    """Adds entries of another store, as ``add_once`` does."""
    for entry in entries:
        add_once(store, entry.kind, entry.key, entry.write, entry.files)
