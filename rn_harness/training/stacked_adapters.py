"""The adapters of several attacks on one model, applied to the rows of a common pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rn_harness.models.peft_compat import trained_part
from rn_harness.spec.errors import RecipeError

if TYPE_CHECKING:
    import torch


class AdapterOwner(Protocol):
    """A model with an adapter; ``adapter_layers`` are by the names of the layers that they are around."""

    @property
    def adapter_layers(self) -> Mapping[str, Any]: ...

    def passing(self, weight: torch.Tensor) -> torch.Tensor:
        """Passes a weight of the adapter through a module that only this model's passes run."""
        ...


class StackedAdapters:
    """The adapters of some members of a fleet, for passes in which each member's rows are contiguous.

    For sampling they compute in the weights' precision, as sampling without a fleet does; else in 32 bits, as peft does for
    training and probabilities. ``layers`` names the layers with an adapter, ``sizes`` the rows of each member in the pass.
    """

    def __init__(self, members: Sequence[AdapterOwner], *, sampling: bool) -> None:
        self._members, self._sampling = members, sampling
        self.layers = members[0].adapter_layers.keys()
        self.sizes: list[int] = []
        self._stacks: dict[str, tuple[Any, Any]] = {}

    def set_owners(self, owners: torch.Tensor) -> None:
        """Sets the owners of the next pass's rows: (B,) numbers of members in ascending order."""
        import torch

        self.sizes = torch.bincount(owners, minlength=len(self._members)).tolist()

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """A layer's output (B, L, out) plus the adapters' ``s B A x``, each member's for its own rows."""
        import torch

        if x.dim() != 3 or len(x) != sum(self.sizes):  # a layer of experts gets tokens of unknown rows
            raise RecipeError(
                f"a fleet passes rows (B, L, {x.shape[-1]}) to each layer with an adapter, got {tuple(x.shape)} for "
                f"{sum(self.sizes)} rows in {name}; leave out --rn-fleet"
            )
        A, B = self._stack(name, x.dtype)
        parts = x.to(A.dtype)
        if len(set(self.sizes)) == 1:
            low = torch.bmm(parts.reshape(len(self.sizes), -1, x.shape[-1]), A)
            if low.dtype == y.dtype:
                return torch.baddbmm(y.reshape(len(self.sizes), -1, y.shape[-1]), low, B).view_as(y)
            return (y + torch.bmm(low, B).view_as(y)).to(y.dtype)
        rows = zip(parts.split(self.sizes), A, B, strict=True)  # type: ignore[no-untyped-call]
        return (y + torch.cat([part @ a @ b for part, a, b in rows])).to(y.dtype)

    def _stack(self, name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, in, r) and (K, r, out), the second with the scale; all padded with zeros to the largest rank."""
        import torch
        from torch.nn.functional import pad

        if name not in self._stacks:
            parts = [trained_part(member.adapter_layers[name]) for member in self._members]
            lacking = [max(part.rank for part in parts) - part.rank for part in parts]
            first = [member.passing(part.A) for member, part in zip(self._members, parts, strict=True)]
            second = [part.scale * part.B for part in parts]
            A = torch.stack([pad(a, (0, 0, 0, more)) for a, more in zip(first, lacking, strict=True)])
            B = torch.stack([pad(b, (0, more)) for b, more in zip(second, lacking, strict=True)])
            A, B = A.transpose(1, 2).contiguous(), B.transpose(1, 2).contiguous()
            self._stacks[name] = (A.to(dtype), B.to(dtype)) if self._sampling else (A, B)
        return self._stacks[name]
