"""Rows of token ids, padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def padded(rows: Sequence[Sequence[int]], pad: int, device: Any, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, L) of B rows, padded on the left or on the right, and their mask."""
    import torch

    width = max(map(len, rows))
    fills = [width - len(row) for row in rows]
    ids = [[*[pad] * n, *row] if left else [*row, *[pad] * n] for row, n in zip(rows, fills, strict=True)]
    masks = [[0] * n + [1] * (width - n) if left else [1] * (width - n) + [0] * n for n in fills]
    return torch.tensor(ids, device=device), torch.tensor(masks, device=device)
