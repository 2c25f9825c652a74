"""One model that stays loaded between cases, so that a hundred cases read its files once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rn_harness.models.language_model import LanguageModel

if TYPE_CHECKING:
    import torch

BITS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}
"""Torch's integers with as many bytes as a number."""


class ResidentModel:
    """The last model that was loaded. Each case gets its own modules, settings and tokenizer around the same weights.

    RL with an adapter does not change the weights, and whatever folds an adapter in restores them bit by bit. Attacks that train
    all weights do change them. So their bits are summed up before each use, and the files are read again if a sum is another one.
    Gradients of a training that was cut off are dropped.
    The model before is dropped first, so that this never holds two.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._model: LanguageModel | None = None
        self._sums: list[tuple[Any, ...]] = []

    def copy(self, key: object, load: Callable[[], LanguageModel]) -> LanguageModel:
        """A model as ``load`` gives it.

        Args:
            key: identity of its weights and of all that loads them differently.
            load: reads the files. Weights in 4 bits or spread over processes are read each time.
        """
        if self._model is None or key != self._key or self._sums != weight_sums(self._model.network):
            self._model = None
            loaded = load()
            if loaded.quantised or loaded.sharded:
                return loaded
            self._key, self._model, self._sums = key, loaded, weight_sums(loaded.network)
        self._model.network.zero_grad()
        made = LanguageModel(copy_modules(self._model.network), copy.deepcopy(self._model.tokenizer))
        made.templates, made.engine = self._model.templates, dict(self._model.engine)
        return made


def copy_modules(network: Any) -> Any:
    """The network with new modules and the same weights."""
    shared = {id(tensor): tensor for tensors in (network.parameters(), network.buffers()) for tensor in tensors}
    return copy.deepcopy(network, shared)


def weight_sums(network: torch.nn.Module) -> list[tuple[Any, ...]]:
    """Number format, shape and sums of the bits of each tensor: they differ after nearly any change of a number.

    The sums of rows and columns count by their places, so that numbers which only moved are seen too.
    """
    import torch

    def placed(sums: torch.Tensor) -> int:
        return int((sums * torch.arange(1, len(sums) + 1, device=sums.device)).sum())

    found = []
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        bits = tensor.detach().contiguous().view(getattr(torch, BITS[tensor.element_size()]))
        table = bits.flatten(0, -2) if bits.dim() > 1 else bits.reshape(-1, 1)
        sums = (placed(table.sum(way, dtype=torch.int64)) for way in (0, 1))
        found.append((tensor.dtype, tuple(tensor.shape), *sums))
    return found
