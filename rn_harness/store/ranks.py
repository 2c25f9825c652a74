"""The processes that train one model together, as ``accelerate launch`` or ``torchrun`` start them.

All of them run the same tests in lockstep: each samples and trains its part of a step's rows, and each measures every
checkpoint, so that all know what the first knows. The first alone asks judges, uses the store, writes and speaks. A process that
fails ends all.
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
"""How long a process waits for the others: the first may have to ask a slow judge, or wait for the store."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of these processes.

    Attributes:
        rank: which; the first is 0.
        size: how many there are.
        local: how many of them are on this machine.
        by_launcher: whether the launcher was told to spread the weights (FSDP), which is not how it is done here.
    """

    rank: int = 0
    size: int = 1
    local: int = 1
    by_launcher: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Ranks:
        """As the launcher says; alone where there is none."""
        if not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
            return cls()
        size = int(environment["WORLD_SIZE"])
        local = int(environment.get("LOCAL_WORLD_SIZE", size))
        return cls(int(environment["RANK"]), size, local, environment.get("ACCELERATE_USE_FSDP", "").lower() == "true")

    @property
    def leads(self) -> bool:
        """Whether this is the first, which speaks and writes."""
        return self.rank == 0

    def first(self, make: Callable[[], T]) -> T:
        """What the first makes, for all; it must be called by all, in the same order."""
        if self.size == 1:
            return make()
        distributed = self.connect()
        box: list[Any] = [make() if self.leads else None]
        distributed.broadcast_object_list(box, src=0)
        made: T = box[0]
        return made

    def gather(self, part: T) -> list[T]:
        """What each of them has, in their order; it must be called by all, in the same order."""
        if self.size == 1:
            return [part]
        distributed = self.connect()
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, part)
        return parts

    def connect(self) -> Any:
        """What they talk to each other by: ``torch.distributed``, which is patient."""
        import torch
        from accelerate import PartialState

        if not torch.distributed.is_initialized():
            PartialState(cpu=not torch.cuda.is_available(), timeout=datetime.timedelta(seconds=PATIENCE_S))
        return torch.distributed

    def part(self) -> None:
        """Takes leave of the others, at the end."""
        import sys

        if self.size > 1 and "torch" in sys.modules:
            import torch

            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@functools.cache
def ranks() -> Ranks:
    """This process among those that it was launched with."""
    return Ranks.of(os.environ)
