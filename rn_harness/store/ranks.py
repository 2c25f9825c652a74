"""The processes that train one model together, as ``accelerate launch`` or ``torchrun`` start them.

All processes run the same tests at the same time. Each samples and trains its share of a step's rows. Each measures every
checkpoint, so that all have the same results. Only rank 0 asks judges, uses the store, and writes files and terminal output. If
one process fails, all end.
"""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE_S = 6 * 3600
"""How long a process waits for the others: rank 0 may have to ask a slow judge, or wait for the store."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of these processes.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local: number of processes on this machine.
        by_launcher: whether the launcher is configured to shard the weights (FSDP), which the harness does not support.
    """

    rank: int = 0
    size: int = 1
    local: int = 1
    by_launcher: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Ranks:
        """Reads the launcher's variables; a single process without a launcher."""
        if not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
            return cls()
        size = int(environment["WORLD_SIZE"])
        local = int(environment.get("LOCAL_WORLD_SIZE", size))
        return cls(int(environment["RANK"]), size, local, environment.get("ACCELERATE_USE_FSDP", "").lower() == "true")

    @property
    def leads(self) -> bool:
        """True for rank 0, which writes files and terminal output."""
        return self.rank == 0

    def first(self, make: Callable[[], T]) -> T:
        """Runs ``make`` on rank 0 and returns its result on all ranks. All must call it, in the same order."""
        if self.size == 1:
            return make()
        distributed = self.connect()
        box: list[Any] = [make() if self.leads else None]
        distributed.broadcast_object_list(box, src=0)
        made: T = box[0]
        return made

    def gather(self, part: T) -> list[T]:
        """Collects ``part`` of every rank, by rank. All must call it, in the same order."""
        if self.size == 1:
            return [part]
        distributed = self.connect()
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, part)
        return parts

    def connect(self) -> Any:
        """Returns ``torch.distributed``, initialised with a timeout of ``PATIENCE_S``."""
        import torch
        from accelerate import PartialState

        if not torch.distributed.is_initialized():
            PartialState(cpu=not torch.cuda.is_available(), timeout=datetime.timedelta(seconds=PATIENCE_S))
        return torch.distributed

    def part(self) -> None:
        """Leaves the process group, at the end."""
        import sys

        if self.size > 1 and "torch" in sys.modules:
            import torch

            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@functools.cache
def ranks() -> Ranks:
    """The rank of this process, from its environment."""
    return Ranks.of(os.environ)
