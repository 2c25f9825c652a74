"""A fleet: several attacks on one model in one process, each with its own adapter, optimizer and random streams.

TRL trains each of them as it would alone. What costs most is done for all at once: the rows of all attacks are sampled, passed
forward and passed backward together, through weights that they share and adapters that they do not. Rows of one attack never
touch those of another, so that its result does not depend on its companions, but for rounding.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rn_harness.models.language_model import (
    ROWS_AT_ONCE,
    TRAINED,
    LanguageModel,
    completion_states,
    known_deprecations,
    shares_prompts,
)
from rn_harness.spec.errors import RecipeError, TrainingError
from rn_harness.training.lockstep import Lockstep, Seat
from rn_harness.training.random_streams import Chooser, keep, resume, split

if TYPE_CHECKING:
    import torch

    from rn_harness.spec.defense_recipe import LoRA

T = TypeVar("T")
Tokens = tuple["torch.Tensor", "torch.Tensor"]
"""Token ids and their mask, (B, L) each."""
STRETCHED = frozenset({"dynamic", "longrope"})
"""What transformers calls rules for positions that change with the longest row."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampling:
    """Asks for completions of B rows; answered with their token ids (B, L + T), prompts included."""

    prompts: Tokens
    settings: Any


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Asks for the hidden states (B, T, H) that tell the tokens of B completions."""

    prompts: Tokens
    completions: Tokens
    grad: bool


@dataclass(frozen=True, slots=True, eq=False)
class Backward:
    """Asks for the gradients of a loss."""

    loss: torch.Tensor


class Member(LanguageModel):
    """One of the models of a fleet: layers of its own around weights that all share; an adapter is all that it trains.

    Attributes:
        seat: where it waits for the others.
        adapter_layers: with its adapter, by the names of the layers that they are around; none before it is armed.
    """

    def __init__(self, model: LanguageModel, seat: Seat, threads: int) -> None:
        super().__init__(_twin(model.network), model.tokenizer)
        self.seat, self.engine = seat, {"fleet_threads": threads}
        self.adapter_layers: dict[str, Any] = {}
        self._passes: Any = None

    def attach(self, lora: LoRA, seed: int) -> None:
        """See ``LanguageModel``; from here on its passes are those of the fleet."""
        import torch

        super().attach(lora, seed)
        self._passes = torch.nn.Identity()
        layers = self.network.get_base_model().named_modules()
        self.adapter_layers = {name: layer for name, layer in layers if hasattr(layer, "lora_A")}
        self.network.generate = self._generate

    def arm_all(self) -> None:
        """Raises TrainingError: the weights are shared."""
        raise TrainingError("members of a fleet share their weights, got an attack that trains all of them; run it alone")

    def run_by(self) -> Any:
        """What each pass of the fleet in which this member's adapter takes part goes through."""
        return self._passes

    def passing(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the adapter on its way into a pass."""
        passed: torch.Tensor = self._passes(weight)
        return passed

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Runs its body: into shared weights nothing can be folded."""
        yield

    def backward(self, backward: Callable[..., None], loss: torch.Tensor, **_: Any) -> None:
        """All losses of the fleet go backward at once: their graphs are one, and the gradients of each adapter are its own."""
        self.seat.ask(Backward(loss))

    def completion_states(self, network: Any, prompts: Tokens, completions: Tokens) -> torch.Tensor:
        """See ``model.completion_states``."""
        import torch

        states: torch.Tensor = self.seat.ask(States(prompts, completions, torch.is_grad_enabled()))
        return states

    def _log_probability(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        if self._passes is None:
            return super()._log_probability(pairs)
        import torch

        pad, device = self.tokenizer.pad_token_id, self.network.device
        before, after = max(len(h) for h, _ in pairs), max(len(t) for _, t in pairs)

        def padded(tokens: list[int], width: int, *, left: bool) -> tuple[list[int], list[int]]:
            fill = width - len(tokens)
            ids, mask = [pad] * fill, [0] * fill
            return (ids + tokens, mask + [1] * len(tokens)) if left else (tokens + ids, [1] * len(tokens) + mask)

        heads = [torch.tensor(of, device=device) for of in zip(*(padded(h, before, left=True) for h, _ in pairs), strict=True)]
        tails = [torch.tensor(of, device=device) for of in zip(*(padded(t, after, left=False) for _, t in pairs), strict=True)]
        with torch.no_grad():
            states = self.completion_states(None, (heads[0], heads[1]), (tails[0], tails[1]))
            logits = self.network.get_output_embeddings()(states).float()
            logp_BT = logits.log_softmax(-1).gather(2, tails[0][:, :, None])[:, :, 0]
        return [float(logp_BT[row, : len(t)].sum()) for row, (_, t) in enumerate(pairs)]

    def _generate(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any = None, **settings: Any
    ) -> torch.Tensor:
        """As transformers' ``generate``, for what we and TRL ask of it."""
        known = copy.deepcopy(self.network.generation_config)
        given = generation_config.to_diff_dict() if generation_config is not None else {}
        known.update(**{key: value for key, value in {**given, **settings}.items() if value is not None})
        rows: torch.Tensor = self.seat.ask(Sampling((input_ids, attention_mask), known))
        return rows


def _twin(network: Any) -> Any:
    """The network with modules of its own, and the same weights."""
    shared = {id(tensor): tensor for of in (network.parameters(), network.buffers()) for tensor in of}
    return copy.deepcopy(network, shared)


def _rope_types(network: Any) -> set[str]:
    """By which rules positions turn queries and keys; some models have one for each kind of layer."""
    given = getattr(network.config.get_text_config(), "rope_parameters", None) or {}
    return {of["rope_type"] for of in (given, *given.values()) if isinstance(of, dict) and of.get("rope_type")}


class Fleet:
    """Runs several attacks on one model.

    Args:
        model: whose weights they share; they stay as they are.
        threads: CPU threads of what is done for all at once.

    Raises:
        RecipeError: the model's weights or its architecture do not allow it.
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
        self._network = _twin(model.network)
        self._members: dict[int, Member] = {}
        self._adapters: _Adapters | None = None
        self._hooked = False
        self._served: collections.Counter[int] = collections.Counter()
        self._lockstep = Lockstep(self._serve, keep, resume)

    def run(self, tasks: Sequence[Callable[[LanguageModel], T]]) -> list[T | Exception]:
        """What each came to, in their order: its result, or the exception that ended it, which ends no other.

        Args:
            tasks: each is given its member, to be armed with an adapter.

        Raises:
            BaseException: an interruption.
        """
        import torch

        def seated(task: Callable[[LanguageModel], T]) -> Callable[[Seat], T]:
            def run(seat: Seat) -> T:
                self._members[seat.number] = Member(self._model, seat, self._threads)
                return task(self._members[seat.number])

            return run

        before = torch.get_num_threads()
        try:
            with known_deprecations():
                return self._lockstep.run([seated(task) for task in tasks])
        finally:
            torch.set_num_threads(before)

    def _serve(self, waiting: Sequence[Seat]) -> list[Seat]:
        """Losses first, since their graphs take memory; sampling last: by then whoever had something to learn is there."""
        import torch

        torch.set_num_threads(self._threads)
        # Whoever lags comes first, so that all stay together.
        waiting = sorted(waiting, key=lambda seat: self._served[seat.number])
        by_kind = {kind: [s for s in waiting if isinstance(s.asked, kind)] for kind in (Backward, States, Sampling)}
        if asking := by_kind[Backward]:
            torch.autograd.backward([seat.asked.loss for seat in asking])
        elif asking := by_kind[States]:
            learning = asking[0].asked.grad
            asking = [seat for seat in asking if seat.asked.grad == learning]
            asking = asking if learning else _at_once(asking)  # what learns was planned for, see memory
            self._go_forward(asking, learning)
        else:
            asking = _at_once(by_kind[Sampling])
            self._sample(asking)
        self._served.update(seat.number for seat in asking)
        return asking

    def _go_forward(self, asking: Sequence[Seat], learning: bool) -> None:
        import torch

        prompts = _stacked([seat.asked.prompts for seat in asking], left=True)
        completions = _stacked([seat.asked.completions for seat in asking], left=False)
        sizes = [len(seat.asked.prompts[0]) for seat in asking]
        owners = torch.arange(len(asking), device=prompts[0].device).repeat_interleave(torch.tensor(sizes).to(prompts[0].device))
        with torch.set_grad_enabled(learning), self._adapted(asking) as adapters:
            states = completion_states(self._network, prompts, completions, owners, adapters.rows_of)
        for seat, of in zip(asking, states.split(sizes), strict=True):  # type: ignore[no-untyped-call]
            seat.answer(of[:, : seat.asked.completions[0].shape[1]])

    def _sample(self, asking: Sequence[Seat]) -> None:
        """Token by token, with a cache of keys and values; rows that have ended are left out as soon as they are many."""
        import torch

        ids, mask = _stacked([seat.asked.prompts for seat in asking], left=True)
        choosers = [Chooser(seat) for seat in asking]
        live = torch.arange(len(ids), device=ids.device)  # the rows that are still computed
        owners = torch.arange(len(asking)).repeat_interleave(torch.tensor([c.rows for c in choosers])).to(ids.device)
        tokens = torch.empty(len(ids), 0, dtype=ids.dtype, device=ids.device)
        given, positions, cache = ids, (mask.cumsum(1) - 1).clamp(min=0), None
        with torch.no_grad(), self._adapted(asking, sampling=True) as adapters:
            while True:
                adapters.rows_of(owners[live])
                out = self._network(
                    input_ids=given, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                    logits_to_keep=1,
                )  # fmt: skip
                scores = out.logits[:, -1].float().new_zeros(len(ids), out.logits.shape[-1])
                scores[live] = out.logits[:, -1].float()
                chosen = torch.cat([chooser(of) for chooser, of in zip(choosers, split(scores, choosers), strict=True)])
                tokens = torch.cat([tokens, chosen[:, None]], 1)
                going = torch.cat([chooser.going for chooser in choosers])
                if self._lockstep.stopped or not going.any():  # whoever stops a process does not wait for a long answer
                    break
                cache, mask = out.past_key_values, torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                positions = positions[:, -1:] + 1
                kept = going[live]
                if 2 * int(kept.sum()) <= len(live):
                    cache.batch_select_indices(kept.nonzero()[:, 0])
                    live, mask, positions = live[kept], mask[kept], positions[kept]
                given = chosen[live][:, None]
        for seat, chooser, of in zip(asking, choosers, split(tokens, choosers), strict=True):
            if chooser.failed:
                seat.fail(chooser.failed)
            else:
                seat.answer(torch.cat([seat.asked.prompts[0], of[:, : chooser.taken]], 1))

    @contextmanager
    def _adapted(self, asking: Sequence[Seat], *, sampling: bool = False) -> Iterator[_Adapters]:
        """Runs passes of the shared network, each part of its rows with one member's adapter."""
        adapters = self._adapters = _Adapters([self._members[seat.number] for seat in asking], sampling=sampling)
        if not self._hooked:
            for name in adapters.layers:
                self._network.get_submodule(name).register_forward_hook(partial(self._adapt, name))
            self._hooked = True
        try:
            yield adapters
        finally:
            self._adapters = None

    def _adapt(self, name: str, _layer: Any, given: tuple[Any, ...], came: Any) -> Any:
        """After a layer of the shared network."""
        assert self._adapters is not None
        return self._adapters.add(name, given[0], came)


class _Adapters:
    """The adapters of some members, for passes in which the rows of each stand together.

    Args:
        members: whose they are.
        sampling: they compute in what the weights are, as alone; else in 32 bits, as peft does where something is learned or
            a probability told.

    Attributes:
        layers: names of the layers that have one.
        sizes: rows of each member in the pass.
    """

    def __init__(self, members: Sequence[Member], *, sampling: bool) -> None:
        self._layers = [member.adapter_layers for member in members]
        self._members, self._sampling = members, sampling
        self.layers = self._layers[0].keys()
        self.sizes: list[int] = []
        self._stacks: dict[str, tuple[Any, Any]] = {}

    def rows_of(self, owners: torch.Tensor) -> None:
        """Takes whose the rows of the next pass are, (B,) numbers that do not fall."""
        import torch

        self.sizes = torch.bincount(owners, minlength=len(self._members)).tolist()

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """A layer's output (B, L, out) with the adapters' part, ``s B A x``, each member's for its own rows."""
        import torch

        if x.dim() != 3 or len(x) != sum(self.sizes):  # as of experts, who see some tokens of some rows: nobody knows whose
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
        """(K, in, r) and (K, r, out), the second with the scale; to the largest rank, beyond their own with zeros."""
        import torch
        from torch.nn.functional import pad

        if name not in self._stacks:
            of = [layers[name] for layers in self._layers]
            lacking = [max(layer.r[TRAINED] for layer in of) - layer.r[TRAINED] for layer in of]
            first = [m.passing(layer.lora_A[TRAINED].weight) for m, layer in zip(self._members, of, strict=True)]
            second = [layer.scaling[TRAINED] * layer.lora_B[TRAINED].weight for layer in of]
            A = torch.stack([pad(a, (0, 0, 0, more)) for a, more in zip(first, lacking, strict=True)])
            B = torch.stack([pad(b, (0, more)) for b, more in zip(second, lacking, strict=True)])
            A, B = A.transpose(1, 2).contiguous(), B.transpose(1, 2).contiguous()
            self._stacks[name] = (A.to(dtype), B.to(dtype)) if self._sampling else (A, B)
        return self._stacks[name]


def _at_once(asking: Sequence[Seat]) -> list[Seat]:
    """The first of them, as many as have their rows done at once."""
    chunk: list[Seat] = []
    rows = 0
    for seat in asking:
        rows += len(seat.asked.prompts[0])
        if chunk and rows > ROWS_AT_ONCE:
            break
        chunk.append(seat)
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
