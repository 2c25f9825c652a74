"""The output layer of a model, which no adapter of an attack trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def output_layer(network: PreTrainedModel) -> list[torch.Tensor]:
    """Copies of its weight (V, D) and, if it has one, its bias (V,)."""
    layer: Any = network.get_output_embeddings()
    own = [p for p in (layer.weight, layer.bias) if p is not None]
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in own]


@contextmanager
def with_output_layer(network: PreTrainedModel, other: Sequence[torch.Tensor]) -> Iterator[bool]:
    """Computes a network's outputs by another model's output layer for a while; yields False if its own is the same."""
    import torch

    layer: Any = network.get_output_embeddings()
    own = output_layer(network)
    if len(own) == len(other) and all(map(torch.equal, own, other)) and not hasattr(layer, "base_layer"):  # of an adapter
        yield False
        return

    def replaced(_: Any, given: tuple[torch.Tensor, ...], __: Any) -> torch.Tensor:
        hidden = given[0]
        return torch.nn.functional.linear(hidden, *(p.to(hidden) for p in other))

    handle = layer.register_forward_hook(replaced)
    try:
        yield True
    finally:
        handle.remove()
