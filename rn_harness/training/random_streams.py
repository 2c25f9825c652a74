"""What belongs to one attack of a fleet and is one for a whole process: random streams, and the tokens drawn from them.

Whoever goes on finds the streams of torch, Python and numpy as they were when it stopped, and what accelerate was in the middle
of.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from rn_harness.training.lockstep import Seat


@dataclass
class Streams:
    """What belongs to one attack and is one for a whole process: random streams, and what accelerate is in the middle of."""

    cpu: Any
    cards: list[Any]
    python: Any
    numpy: Any
    gradients: dict[str, Any]


def keep() -> Streams:
    """As they stand."""
    import numpy as np
    import torch
    from accelerate.state import GradientState

    return Streams(
        cpu=torch.get_rng_state(),
        cards=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        python=random.getstate(),
        numpy=np.random.get_state(),  # noqa: NPY002
        gradients={key: copy.copy(of) if isinstance(of, list) else of for key, of in GradientState._shared_state.items()},  # noqa: SLF001
    )


def resume(kept: Streams) -> None:
    """Makes them stand as they did."""
    import numpy as np
    import torch
    from accelerate.state import GradientState

    torch.set_rng_state(kept.cpu)
    if kept.cards:
        torch.cuda.set_rng_state_all(kept.cards)
    random.setstate(kept.python)
    np.random.set_state(kept.numpy)  # noqa: NPY002
    GradientState._shared_state.clear()  # noqa: SLF001
    GradientState._shared_state.update(kept.gradients)  # noqa: SLF001


@contextmanager
def drawing(seat: Seat, device: torch.device) -> Iterator[torch.Generator]:
    """A member's random stream on a device, from where it stands; what is drawn moves it on."""
    import torch

    kept: Streams = seat.state
    stream = torch.Generator(device)
    stream.set_state(kept.cards[device.index] if device.type == "cuda" else kept.cpu)
    yield stream
    if device.type == "cuda":
        kept.cards[device.index] = stream.get_state()
    else:
        kept.cpu = stream.get_state()


class Chooser:
    """Chooses one member's tokens, as transformers would alone: by its own settings, from its own random stream.

    Attributes:
        rows: how many, B.
        going: of each row, whether it has not ended (B,).
        taken: tokens so far, until all rows have ended.
        failed: why it can choose no more, as where its own attack has led to no numbers; its companions go on.
    """

    def __init__(self, seat: Seat) -> None:
        import torch
        from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        settings = seat.asked.settings
        ids: torch.Tensor = seat.asked.prompts[0]
        self.rows, self.taken = len(ids), 0
        self.failed: Exception | None = None
        self.going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        self._seat, self._ids, self._limit, self._samples = seat, ids, settings.max_new_tokens, bool(settings.do_sample)
        self._ends, self._pad = torch.tensor(settings.eos_token_id, device=ids.device), settings.pad_token_id
        # In the order in which transformers has them; none of them looks at the tokens so far.
        self._warpers: list[Any] = []
        if settings.temperature not in (None, 1.0):
            self._warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p not in (None, 1.0):
            self._warpers.append(TopPLogitsWarper(settings.top_p))
        if settings.min_p:
            self._warpers.append(MinPLogitsWarper(settings.min_p))

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The next token of each row (B,), from scores (B, V) that count for rows that have not ended; else padding."""
        import torch

        if self.going.any():
            try:
                return self._choose(scores)
            except Exception as error:  # noqa: BLE001 (told to whom it belongs)
                self.failed, self.going = error, torch.zeros_like(self.going)
        return torch.full((self.rows,), self._pad, dtype=self._ids.dtype, device=self._ids.device)

    def _choose(self, scores: torch.Tensor) -> torch.Tensor:
        import torch

        self.taken += 1
        if self._samples:
            for warper in self._warpers:
                scores = warper(self._ids, scores)
            with drawing(self._seat, scores.device) as stream:
                tokens = torch.multinomial(scores.softmax(-1), 1, generator=stream)[:, 0]
        else:
            tokens = scores.argmax(-1)
        chosen: torch.Tensor = tokens.where(self.going, self._pad)
        self.going = self.going & ~torch.isin(chosen, self._ends) & (self.taken < self._limit)
        return chosen


def split(rows: torch.Tensor, choosers: Sequence[Chooser]) -> tuple[torch.Tensor, ...]:
    """Each one's rows."""
    parts: tuple[torch.Tensor, ...] = rows.split([chooser.rows for chooser in choosers])  # type: ignore[no-untyped-call]
    return parts
