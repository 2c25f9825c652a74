"""A fleet's members: the model of each attack, its requests, and the choice of its tokens from its own random stream."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rn_harness.models.batches import padded
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.peft_compat import named_lora_layers
from rn_harness.models.resident import copy_modules
from rn_harness.models.transformers_compat import sampling_filters
from rn_harness.spec.errors import TrainingError
from rn_harness.training.coroutines import Coroutine

if TYPE_CHECKING:
    import torch

    from rn_harness.models.batches import Tokens
    from rn_harness.spec.defense_recipe import LoRA


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRequest:
    """Asks for completions of B rows; the answer is their token ids (B, L + T), prompts included."""

    prompts: Tokens
    settings: Any


@dataclass(frozen=True, slots=True, eq=False)
class StatesRequest:
    """Asks for the hidden states (B, T, H) before the tokens of B completions."""

    prompts: Tokens
    completions: Tokens
    grad: bool


@dataclass(frozen=True, slots=True, eq=False)
class BackwardRequest:
    """Asks for the gradients of the adapter; the answers to its requests for states have theirs already."""


class Member(LanguageModel):
    """One attack's model: its own layers around weights that all share. It trains only an adapter.

    ``adapter_layers`` are by the names of the layers that they are around; empty before it is armed.
    """

    def __init__(self, model: LanguageModel, coroutine: Coroutine, threads: int) -> None:
        super().__init__(copy_modules(model.network), model.tokenizer)
        self._coroutine, self.engine, self.elsewhere = coroutine, {"fleet_threads": threads}, coroutine.elsewhere
        self.adapter_layers: dict[str, Any] = {}
        self._passes: Any = None

    def attach(self, lora: LoRA, seed: int) -> None:
        """See ``LanguageModel``; from here on the fleet computes its passes."""
        import torch

        super().attach(lora, seed)
        self._passes = torch.nn.Identity()
        self.adapter_layers = named_lora_layers(self.network)
        self.network.generate = self._generate

    def arm_all(self) -> None:
        """Raises TrainingError: the weights are shared."""
        raise TrainingError("members of a fleet share their weights, got an attack that trains all of them; run it alone")

    def run_by(self) -> Any:
        """A module that each pass of the fleet with this member's adapter runs."""
        return self._passes

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Runs its body: an adapter cannot be folded into shared weights."""
        yield

    def backward(self, backward: Callable[..., None], loss: torch.Tensor, **_: Any) -> None:
        """Goes backward to the fleet's states, and waits until all members go on from there in one pass."""
        loss.backward()  # type: ignore[no-untyped-call]
        self._coroutine.ask(BackwardRequest())

    def completion_states(self, network: Any, prompts: Tokens, completions: Tokens) -> torch.Tensor:
        """See ``batches.completion_states``."""
        import torch

        states: torch.Tensor = self._coroutine.ask(StatesRequest(prompts, completions, torch.is_grad_enabled()))
        return states

    def log_probabilities(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
        """See ``LanguageModel``."""
        if self._passes is None:
            return super().log_probabilities(pairs)
        pad, device = self.tokenizer.pad_token_id, self.network.device
        heads = padded([h for h, _ in pairs], pad, device, left=True)
        tails = padded([t for _, t in pairs], pad, device, left=False)
        states = self.completion_states(None, heads, tails)
        logp_BTV = self.network.get_output_embeddings()(states).float().log_softmax(-1)
        return [logp_TV[: len(t)] for logp_TV, (_, t) in zip(logp_BTV, pairs, strict=True)]

    def _generate(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any = None, **settings: Any
    ) -> torch.Tensor:
        """Replaces transformers' ``generate``, for the arguments that we and TRL pass."""
        known = copy.deepcopy(self.network.generation_config)
        given = generation_config.to_diff_dict() if generation_config is not None else {}
        known.update(**{key: value for key, value in {**given, **settings}.items() if value is not None})
        rows: torch.Tensor = self._coroutine.ask(SamplingRequest((input_ids, attention_mask), known))
        return rows


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
        self._ids, self._limit = ids, settings.max_new_tokens
        self._ends, self._pad = torch.tensor(settings.eos_token_id, device=ids.device), settings.pad_token_id
        self._samples, self._filters = bool(settings.do_sample), sampling_filters(settings)
        # The attack's random stream goes on from here; each card has one.
        state, on_card = attack.state, ids.device.type == "cuda"
        self._streams: Any = state["cards"] if on_card else state
        self._place: Any = ids.device.index if on_card else "torch"
        self._generator = torch.Generator(ids.device)
        self._generator.set_state(self._streams[self._place])

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
            tokens = torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[:, 0]
        else:
            tokens = scores.argmax(-1)
        chosen: torch.Tensor = tokens.where(self.going, self._pad)
        self.going = self.going & ~torch.isin(chosen, self._ends) & (self.taken < self._limit)
        return chosen

    def close(self) -> None:
        """Moves the attack's random stream behind the numbers that were drawn; not before all rows have ended."""
        self._streams[self._place] = self._generator.get_state()
