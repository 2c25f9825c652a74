"""The choice of tokens for one attack of a fleet, from its own random stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rn_harness.models.random_streams import random_state, set_random_state
from rn_harness.models.transformers_compat import sampling_filters
from rn_harness.training.trl_compat import gradient_state, set_gradient_state

if TYPE_CHECKING:
    import torch

    from rn_harness.training.coroutines import Coroutine


def capture() -> dict[str, Any]:
    """The process's state that belongs to one attack: random generators, and accelerate's gradient accumulation."""
    return {**random_state(), "gradients": gradient_state()}


def restore(state: dict[str, Any]) -> None:
    """Sets the process's state."""
    set_random_state(state)
    set_gradient_state(state["gradients"])


@contextmanager
def _generator(state: dict[str, Any], device: torch.device) -> Iterator[torch.Generator]:
    """A generator that continues an attack's random stream on a device; the state gets its new position."""
    import torch

    generator = torch.Generator(device)
    generator.set_state(state["cards"][device.index] if device.type == "cuda" else state["torch"])
    yield generator
    if device.type == "cuda":
        state["cards"][device.index] = generator.get_state()
    else:
        state["torch"] = generator.get_state()


class TokenChooser:
    """Chooses one attack's tokens as transformers would: by the attack's settings, from its random stream.

    Attributes:
        rows: how many, B.
        going: the rows that have not ended (B,).
        taken: tokens so far, until all rows have ended.
        failed: the error that ended its choices, as when its attack led to infinite numbers; other attacks continue.
    """

    def __init__(self, attack: Coroutine) -> None:
        import torch

        settings = attack.request.settings
        ids: torch.Tensor = attack.request.prompts[0]
        self.rows, self.taken = len(ids), 0
        self.failed: Exception | None = None
        self.going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        self._attack, self._ids, self._limit = attack, ids, settings.max_new_tokens
        self._ends, self._pad = torch.tensor(settings.eos_token_id, device=ids.device), settings.pad_token_id
        self._samples, self._filters = bool(settings.do_sample), sampling_filters(settings)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The next token of each row (B,), from scores (B, V); rows that have ended get padding."""
        import torch

        if self.going.any():
            try:
                return self._choose(scores)
            except Exception as error:  # noqa: BLE001 (raised in its attack)
                self.failed, self.going = error, torch.zeros_like(self.going)
        return torch.full((self.rows,), self._pad, dtype=self._ids.dtype, device=self._ids.device)

    def _choose(self, scores: torch.Tensor) -> torch.Tensor:
        import torch

        self.taken += 1
        if self._samples:
            for change in self._filters:
                scores = change(self._ids, scores)
            with _generator(self._attack.state, scores.device) as generator:
                tokens = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
        else:
            tokens = scores.argmax(-1)
        chosen: torch.Tensor = tokens.where(self.going, self._pad)
        self.going = self.going & ~torch.isin(chosen, self._ends) & (self.taken < self._limit)
        return chosen


def rows_of(tensor: torch.Tensor, choosers: Sequence[TokenChooser]) -> tuple[torch.Tensor, ...]:
    """Each chooser's rows of a tensor."""
    parts: tuple[torch.Tensor, ...] = tensor.split([chooser.rows for chooser in choosers])  # type: ignore[no-untyped-call]
    return parts
