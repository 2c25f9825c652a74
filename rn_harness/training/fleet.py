"""A fleet: several attacks on one model in one process, each with its own adapter, optimizer and random streams.

TRL trains each attack as it would without the others. The expensive work is shared: the rows of all attacks are sampled, passed
forward and passed backward together, through common weights and separate adapters. Rows of one attack never influence those of
another, so its result does not depend on the other attacks, except for rounding.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rn_harness.models.batches import completion_states, padded
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.memory import ROWS_AT_ONCE
from rn_harness.models.peft_compat import named_lora_layers
from rn_harness.models.transformers_compat import known_deprecations, shares_prompts
from rn_harness.spec.errors import RecipeError, TrainingError
from rn_harness.training.coroutines import Coroutine, CoroutineScheduler
from rn_harness.training.stacked_adapters import StackedAdapters
from rn_harness.training.token_choice import TokenChooser, capture, restore, rows_of

if TYPE_CHECKING:
    import torch

    from rn_harness.models.batches import Tokens
    from rn_harness.spec.defense_recipe import LoRA

T = TypeVar("T")
STRETCHED = frozenset({"dynamic", "longrope"})
"""transformers' names of position rules that depend on the longest row of a pass."""


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
    """Asks for the gradients of a loss."""

    loss: torch.Tensor


class Member(LanguageModel):
    """One attack's model: its own layers around weights that all share. It trains only an adapter.

    Attributes:
        coroutine: in which its attack runs.
        adapter_layers: with its adapter, by the names of the layers that they are around; empty before it is armed.
    """

    def __init__(self, model: LanguageModel, coroutine: Coroutine, threads: int) -> None:
        super().__init__(_copy_modules(model.network), model.tokenizer)
        self.coroutine, self.engine = coroutine, {"fleet_threads": threads}
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

    def passing(self, weight: torch.Tensor) -> torch.Tensor:
        """Passes a weight of the adapter through that module."""
        passed: torch.Tensor = self._passes(weight)
        return passed

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Runs its body: an adapter cannot be folded into shared weights."""
        yield

    def backward(self, backward: Callable[..., None], loss: torch.Tensor, **_: Any) -> None:
        """Waits until all losses of the fleet go backward in one graph; each adapter gets its own gradients."""
        self.coroutine.ask(BackwardRequest(loss))

    def completion_states(self, network: Any, prompts: Tokens, completions: Tokens) -> torch.Tensor:
        """See ``batches.completion_states``."""
        import torch

        states: torch.Tensor = self.coroutine.ask(StatesRequest(prompts, completions, torch.is_grad_enabled()))
        return states

    def _log_probability(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        if self._passes is None:
            return super()._log_probability(pairs)
        import torch

        pad, device = self.tokenizer.pad_token_id, self.network.device
        heads = padded([h for h, _ in pairs], pad, device, left=True)
        tails = padded([t for _, t in pairs], pad, device, left=False)
        with torch.no_grad():
            states = self.completion_states(None, heads, tails)
            logits = self.network.get_output_embeddings()(states).float()
            logp_BT = logits.log_softmax(-1).gather(2, tails[0][:, :, None])[:, :, 0]
        return [float(logp_BT[row, : len(t)].sum()) for row, (_, t) in enumerate(pairs)]

    def _generate(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any = None, **settings: Any
    ) -> torch.Tensor:
        """Replaces transformers' ``generate``, for the arguments that we and TRL pass."""
        known = copy.deepcopy(self.network.generation_config)
        given = generation_config.to_diff_dict() if generation_config is not None else {}
        known.update(**{key: value for key, value in {**given, **settings}.items() if value is not None})
        rows: torch.Tensor = self.coroutine.ask(SamplingRequest((input_ids, attention_mask), known))
        return rows


def _copy_modules(network: Any) -> Any:
    """The network with new modules and the same weights."""
    shared = {id(tensor): tensor for tensors in (network.parameters(), network.buffers()) for tensor in tensors}
    return copy.deepcopy(network, shared)


def _rope_types(network: Any) -> set[str]:
    """The position rules of a network; some have one for each kind of layer."""
    given = getattr(network.config.get_text_config(), "rope_parameters", None) or {}
    return {rule["rope_type"] for rule in (given, *given.values()) if isinstance(rule, dict) and rule.get("rope_type")}


class Fleet:
    """Runs several attacks on one model, whose weights they share and do not change, with so many CPU threads.

    Raises RecipeError if the model's weights or its architecture do not allow it.
    """

    def __init__(self, model: LanguageModel, threads: int) -> None:
        if model.quantised or not shares_prompts(model.network):
            raise RecipeError(
                "a fleet passes rows with other adapters through plain weights and attention alone, got "
                f"{type(model.network).__name__}{' in 4 bits' if model.quantised else ''}; leave out --rn-fleet"
            )
        if stretched := _rope_types(model.network) & STRETCHED:
            raise RecipeError(
                "rows of a fleet must not depend on each other, and this model's positions are turned by the longest row of a "
                f"pass, got rope_type={', '.join(sorted(stretched))}; leave out --rn-fleet"
            )
        self._model, self._threads = model, threads
        self._network = _copy_modules(model.network)
        self._members: dict[int, Member] = {}
        self._adapters: StackedAdapters | None = None
        self._hooked = False
        self._served: collections.Counter[int] = collections.Counter()
        self._scheduler = CoroutineScheduler(self._serve, capture, restore)

    def run(self, tasks: Sequence[Callable[[LanguageModel], T]]) -> list[T | Exception]:
        """Runs tasks, each with its member, to arm it with an adapter; see ``CoroutineScheduler.run``."""
        import torch

        def on_member(task: Callable[[LanguageModel], T]) -> Callable[[Coroutine], T]:
            def run(coroutine: Coroutine) -> T:
                self._members[coroutine.number] = Member(self._model, coroutine, self._threads)
                return task(self._members[coroutine.number])

            return run

        before = torch.get_num_threads()
        try:
            with known_deprecations():
                return self._scheduler.run([on_member(task) for task in tasks])
        finally:
            torch.set_num_threads(before)

    def _serve(self, waiting: Sequence[Coroutine]) -> list[Coroutine]:
        """Serves requests of one kind: losses first, since their graphs take memory; sampling last, when all others wait."""
        import torch

        torch.set_num_threads(self._threads)
        # The attacks that were served least come first, so that all stay together.
        waiting = sorted(waiting, key=lambda one: self._served[one.number])
        by_kind = {
            kind: [one for one in waiting if isinstance(one.request, kind)]
            for kind in (BackwardRequest, StatesRequest, SamplingRequest)
        }
        if asking := by_kind[BackwardRequest]:
            torch.autograd.backward([one.request.loss for one in asking])
        elif asking := by_kind[StatesRequest]:
            learning = asking[0].request.grad
            asking = [one for one in asking if one.request.grad == learning]
            asking = asking if learning else _at_once(asking)  # the memory plan covers rows with gradients
            self._go_forward(asking, learning)
        else:
            asking = _at_once(by_kind[SamplingRequest])
            self._sample(asking)
        self._served.update(one.number for one in asking)
        return asking

    def _go_forward(self, asking: Sequence[Coroutine], learning: bool) -> None:
        import torch

        prompts = _stacked([one.request.prompts for one in asking], left=True)
        completions = _stacked([one.request.completions for one in asking], left=False)
        sizes = [len(one.request.prompts[0]) for one in asking]
        owners = torch.arange(len(asking), device=prompts[0].device).repeat_interleave(torch.tensor(sizes).to(prompts[0].device))
        with torch.set_grad_enabled(learning), self._adapted(asking) as adapters:
            states = completion_states(self._network, prompts, completions, owners, adapters.set_owners)
        for one, part in zip(asking, states.split(sizes), strict=True):  # type: ignore[no-untyped-call]
            one.answer(part[:, : one.request.completions[0].shape[1]])

    def _sample(self, asking: Sequence[Coroutine]) -> None:
        """Samples token by token, with a cache of keys and values; rows that have ended are dropped when they are many."""
        import torch

        ids, mask = _stacked([one.request.prompts for one in asking], left=True)
        choosers = [TokenChooser(one) for one in asking]
        live = torch.arange(len(ids), device=ids.device)  # the rows that are still computed
        owners = torch.arange(len(asking)).repeat_interleave(torch.tensor([c.rows for c in choosers])).to(ids.device)
        tokens = torch.empty(len(ids), 0, dtype=ids.dtype, device=ids.device)
        given, positions, cache = ids, (mask.cumsum(1) - 1).clamp(min=0), None
        with torch.no_grad(), self._adapted(asking, sampling=True) as adapters:
            while True:
                adapters.set_owners(owners[live])
                out = self._network(
                    input_ids=given, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                    logits_to_keep=1,
                )  # fmt: skip
                scores = out.logits[:, -1].float().new_zeros(len(ids), out.logits.shape[-1])
                scores[live] = out.logits[:, -1].float()
                chosen = torch.cat([chooser(part) for chooser, part in zip(choosers, rows_of(scores, choosers), strict=True)])
                tokens = torch.cat([tokens, chosen[:, None]], 1)
                going = torch.cat([chooser.going for chooser in choosers])
                if self._scheduler.stopped or not going.any():  # an interruption does not wait for a long answer
                    break
                cache, mask = out.past_key_values, torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                positions = positions[:, -1:] + 1
                kept = going[live]
                if 2 * int(kept.sum()) <= len(live):
                    cache.batch_select_indices(kept.nonzero()[:, 0])
                    live, mask, positions = live[kept], mask[kept], positions[kept]
                given = chosen[live][:, None]
        for one, chooser, part in zip(asking, choosers, rows_of(tokens, choosers), strict=True):
            if chooser.failed:
                one.fail(chooser.failed)
            else:
                one.answer(torch.cat([one.request.prompts[0], part[:, : chooser.taken]], 1))

    @contextmanager
    def _adapted(self, asking: Sequence[Coroutine], *, sampling: bool = False) -> Iterator[StackedAdapters]:
        """Runs passes of the shared network in which each member's rows use its adapter."""
        adapters = self._adapters = StackedAdapters([self._members[one.number] for one in asking], sampling=sampling)
        if not self._hooked:
            for name in adapters.layers:
                self._network.get_submodule(name).register_forward_hook(partial(self._adapt, name))
            self._hooked = True
        try:
            yield adapters
        finally:
            self._adapters = None

    def _adapt(self, name: str, _layer: Any, given: tuple[Any, ...], output: Any) -> Any:
        """Hook after a layer of the shared network."""
        assert self._adapters is not None
        return self._adapters.add(name, given[0], output)


def _at_once(asking: Sequence[Coroutine]) -> list[Coroutine]:
    """The first of them, up to ``ROWS_AT_ONCE`` rows."""
    chunk: list[Coroutine] = []
    rows = 0
    for one in asking:
        rows += len(one.request.prompts[0])
        if chunk and rows > ROWS_AT_ONCE:
            break
        chunk.append(one)
    return chunk


def _stacked(parts: Sequence[Tokens], *, left: bool) -> Tokens:
    """All rows, padded to one length on the left or on the right."""
    import torch
    from torch.nn.functional import pad

    width = max(ids.shape[1] for ids, _ in parts)

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        fill = width - tensor.shape[1]
        return pad(tensor, (fill, 0) if left else (0, fill))

    return torch.cat([wide(ids) for ids, _ in parts]), torch.cat([wide(mask) for _, mask in parts])
