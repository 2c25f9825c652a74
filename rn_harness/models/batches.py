"""Rows of token ids: padded to one length, and passed through a network with what they share computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Tokens = tuple[torch.Tensor, torch.Tensor]


def padded(rows: Sequence[Sequence[int]], pad: int, device: Any, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, L) of B rows, padded on the left or on the right, and their mask."""
    import torch

    width = max(map(len, rows))
    fills = [width - len(row) for row in rows]
    ids = [[*[pad] * n, *row] if left else [*row, *[pad] * n] for row, n in zip(rows, fills, strict=True)]
    masks = [[0] * n + [1] * (width - n) if left else [1] * (width - n) + [0] * n for n in fills]
    return torch.tensor(ids, device=device), torch.tensor(masks, device=device)


def padded_after(rows: Sequence[list[int]], pad: int, network: PreTrainedModel) -> tuple[Tokens, Any]:
    """Token ids (B, L) of B rows and their mask, and a cache with the pass of the tokens that all rows begin with.

    The padding stands between those tokens and the others of a row. In exact arithmetic a network that goes on from the cache
    gives what it gives for whole rows that are padded on the left.

    Args:
        rows: none empty.
        pad: token id.
        network: whose layers keep all keys and values, see ``transformers_compat.keeps_all_keys``.
    """
    import torch
    from transformers import DynamicCache

    shared = min(common_prefix(rows), min(map(len, rows)) - 1)
    ids, mask = padded([row[shared:] for row in rows], pad, network.device, left=True)
    begin = torch.tensor([[*rows[0][:shared]]], device=network.device)
    cache = DynamicCache(config=network.config)
    if shared:
        backbone: Any = network.base_model
        backbone(input_ids=begin, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(rows))
    return (torch.cat([begin.expand(len(rows), -1), ids], 1), torch.cat([mask.new_ones(len(rows), shared), mask], 1)), cache


def common_prefix(rows: Sequence[list[int]]) -> int:
    """The number of tokens that all rows begin with."""
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def completion_states(
    network: PreTrainedModel,
    prompts: Tokens,
    completions: Tokens,
    owners: torch.Tensor | None = None,
    begin: Callable[[torch.Tensor], None] = lambda _: None,
) -> torch.Tensor:
    """The last hidden states before each token of B completions (B, T, H), with gradients; rows of one prompt share its pass.

    A group's G rows have one prompt: its keys and values are computed once and not G times. In exact arithmetic the result
    equals that of the whole rows.

    Args:
        network: without a wrapper; ``transformers_compat.shares_prompts`` holds for it.
        prompts, completions: token ids (B, L), padded on the left, and (B, T), padded on the right, each with their mask.
        owners: number of each row's owner (B,), in ascending order; rows of two owners share no pass. None: one owner.
        begin: called with the owners of a pass's rows before it.
    """
    import torch

    (prompt_ids, prompt_mask), (ids, mask) = prompts, completions
    owners = torch.zeros_like(prompt_ids[:, 0]) if owners is None else owners
    unique, row_of = torch.unique(torch.cat([owners[:, None], prompt_ids, prompt_mask], 1), dim=0, return_inverse=True)
    unique_ids, unique_mask = unique[:, 1:].chunk(2, 1)
    backbone: Any = network.base_model
    positions = (unique_mask.cumsum(1) - 1).clamp(min=0)
    begin(unique[:, 0])
    out = backbone(input_ids=unique_ids, attention_mask=unique_mask, position_ids=positions, use_cache=True)
    hidden = out.last_hidden_state[row_of, -1:]
    if ids.shape[1] == 1:
        return cast("torch.Tensor", hidden)
    cache = out.past_key_values
    cache.batch_select_indices(row_of)
    begin(owners)
    following = backbone(
        input_ids=ids[:, :-1],
        attention_mask=torch.cat([prompt_mask, mask[:, :-1]], 1),
        position_ids=prompt_mask.sum(1, keepdim=True) + torch.arange(ids.shape[1] - 1, device=ids.device),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([hidden, following.last_hidden_state], 1)


def completion_log_probabilities(
    states: torch.Tensor,
    output: Any,
    completions: Tokens,
    score: Callable[[torch.Tensor, Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both numbers of ``score`` for each token of B completions, with gradients; 0 on padding.

    ``states`` (B, T, H) are from ``completion_states``, so the ``output`` layer sees no prompt tokens. ``score`` takes hidden
    states (N, H), the output layer and target ids (N,), and returns two numbers (N,) each.
    """
    ids, mask = completions
    wanted = mask.bool()
    one, other = score(states[wanted], output, ids[wanted])
    return one.new_zeros(mask.shape).masked_scatter(wanted, one), other.new_zeros(mask.shape).masked_scatter(wanted, other)
