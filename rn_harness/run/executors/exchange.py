"""The store of pytest's process as the workers of a Ray cluster reach it: an actor on its node reads and writes it in pieces.

An entry is on a disk as soon as its job has ended, so the node that made it may leave. Nothing of it is in Ray's object store
except the piece that is on its way.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn_harness.store.shared import SharedEntry, add_once, read_piece
from rn_harness.store.store import Store

THREADS = 8
"""Workers that the actor serves at the same time; while it hashes an entry of 15 GB, others must not wait for a minute."""


class StoreActor:
    """Serves a store to other processes."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)

    def holds(self, kind: str, key: str) -> bool:
        """True if the store has this entry whole."""
        return self.store.get(kind, key) is not None

    def read(self, kind: str, key: str, name: str, offset: int) -> bytes:
        """A piece of a file of an entry."""
        return read_piece(self.store.root / kind / key, name, offset)

    def receive(self, kind: str, parcel: str, name: str, piece: bytes) -> None:
        """Appends a piece to a file of a parcel, an entry that is still arriving."""
        path = self._parcel(kind, parcel) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(piece)

    def add(self, kind: str, parcel: str, key: str, files: Mapping[str, str]) -> None:
        """Makes a complete parcel an entry. Raises StoreError if other contents arrived than were sent."""
        arrived = self._parcel(kind, parcel)

        def move(folder: Path) -> None:
            for path in list(arrived.iterdir()):
                path.rename(folder / path.name)

        try:
            add_once(self.store, kind, key, move, files)
        finally:
            shutil.rmtree(arrived, ignore_errors=True)

    def _parcel(self, kind: str, parcel: str) -> Path:
        return self.store.root / kind / f".{parcel}"  # the store counts a name with a dot as remains


@dataclass(frozen=True)
class Exchange:
    """Adds entries to the served store. It is passed to workers."""

    actor: Any

    @classmethod
    def begin(cls, store: Store) -> Exchange:
        """Starts the actor on this node, which has the store's disk."""
        import ray

        remote: Any = ray.remote
        options = {"num_cpus": 0, "max_concurrency": THREADS, "scheduling_strategy": on_this_node()}
        return cls(remote(**options)(StoreActor).remote(store.root))

    def send(self, entry: SharedEntry) -> SharedEntry:
        """Adds an entry of this machine, unless it is there, and returns it as other workers read it."""
        import ray

        kind, key = entry.kind, entry.key
        if not ray.get(self.actor.holds.remote(kind, key)):
            parcel = uuid.uuid4().hex
            for name in entry.files:
                for piece in entry.pieces(name):
                    ray.get(self.actor.receive.remote(kind, parcel, name, piece))  # each before the next: memory is bounded
            ray.get(self.actor.add.remote(kind, parcel, key, dict(entry.files)))
        return dataclasses.replace(entry, read=functools.partial(_fetch, self.actor, kind, key))


def _fetch(actor: Any, kind: str, key: str, name: str, offset: int) -> bytes:
    """A piece of a file from the actor's store."""
    import ray

    piece: bytes = ray.get(actor.read.remote(kind, key, name, offset))
    return piece


def on_this_node() -> Any:
    """The strategy of an actor that has to live where pytest does, so that it survives the loss of any other node."""
    import ray

    return on_node(ray.get_runtime_context().get_node_id())


def on_node(number: str) -> Any:
    """The strategy of work that one node has to do."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(number, soft=False)
