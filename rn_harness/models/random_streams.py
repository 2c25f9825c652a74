"""The process's random generators: their state, a separate stream for a measurement, and how answers are drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


def random_state() -> dict[str, Any]:
    """The generators' states in plain numbers and tensors: ``python``, ``numpy``, ``torch``, and ``cards``, one a card."""
    import numpy as np
    import torch

    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  (the stream that libraries draw from)
    return {
        "python": random.getstate(),
        "numpy": [name, [int(key) for key in keys], *rest],
        "torch": torch.get_rng_state(),
        "cards": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Sets the generators to a state."""
    import numpy as np
    import torch

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cards"]:
        torch.cuda.set_rng_state_all(state["cards"])


@contextmanager
def own_random_stream(*seeds: int) -> Iterator[None]:
    """Runs its body on a stream drawn by these seeds, so that a measurement does not change the training that it observes."""
    import torch

    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed + 1) % (2**31 - 1)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(mixed)
        yield


def sampling(temperature: float | None, banned: Sequence[int] = (), top_k: int = 0) -> dict[str, Any]:
    """Arguments of ``generate``, which draws from torch's global random stream.

    It is greedy at a temperature of None; a ``top_k`` of 0 draws from all tokens. No completion begins with a banned token.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature is not None:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": 1.0}
    return {**sampling, "begin_suppress_tokens": list(banned)} if banned else sampling
