"""A fleet: several attacks on one model in one process, each with its own adapter, optimizer and random streams.

TRL trains each attack as it would without the others. The expensive work is shared: the rows of all attacks are sampled, passed
forward and passed backward together, through common weights and separate adapters. Rows of one attack never influence those of
another, so its result does not depend on the other attacks, except for rounding.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rn_harness.models.batches import completion_states
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.memory import ROWS_AT_ONCE
from rn_harness.models.peft_compat import trained_part
from rn_harness.models.resident import copy_modules
from rn_harness.models.transformers_compat import known_deprecations, shares_prompts, stretched_positions
from rn_harness.spec.errors import RecipeError
from rn_harness.training.coroutines import Coroutine, CoroutineScheduler
from rn_harness.training.fleet_members import BackwardRequest, Member, SamplingRequest, StatesRequest, TokenChooser
from rn_harness.training.trl_compat import process_state, set_process_state

if TYPE_CHECKING:
    import torch

    from rn_harness.models.batches import Tokens

T = TypeVar("T")


class StackedAdapters:
    """The adapters of some members of a fleet, for passes in which each member's rows are contiguous.

    For sampling they compute in the weights' precision, as sampling without a fleet does; else in 32 bits, as peft does for
    training and probabilities. ``layers`` names the layers with an adapter, ``sizes`` the rows of each member in the pass.
    """

    def __init__(self, members: Sequence[Member], *, sampling: bool) -> None:
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
            first = [member.run_by()(part.A) for member, part in zip(self._members, parts, strict=True)]
            second = [part.scale * part.B for part in parts]
            A = torch.stack([pad(a, (0, 0, 0, more)) for a, more in zip(first, lacking, strict=True)])
            B = torch.stack([pad(b, (0, more)) for b, more in zip(second, lacking, strict=True)])
            A, B = A.transpose(1, 2).contiguous(), B.transpose(1, 2).contiguous()
            self._stacks[name] = (A.to(dtype), B.to(dtype)) if self._sampling else (A, B)
        return self._stacks[name]


@dataclass(slots=True, eq=False)
class _Pass:
    """One member's part of a forward pass with gradients, until its backward pass.

    Attributes:
        request: of the member, by which the pass can be repeated.
        answer: the hidden states that the member got. The graph of its loss ends there.
        states: the same with the graph of the whole pass behind them; None: memory ran out, and the pass has to be repeated.
    """

    request: StatesRequest
    answer: torch.Tensor
    states: torch.Tensor | None


class Fleet:
    """Runs several attacks on one model, whose weights they share and do not change, with so many CPU threads.

    If memory runs out in a pass of several members, it is repeated for half of them while the others wait. From there on no pass
    has more members; ``say`` gets their number. Raises RecipeError if the model's weights or its architecture do not allow it.
    """

    def __init__(self, model: LanguageModel, threads: int, say: Callable[[int], None] = lambda _: None) -> None:
        if model.quantised or not shares_prompts(model.network):
            raise RecipeError(
                "a fleet passes rows with other adapters through plain weights and attention alone, got "
                f"{type(model.network).__name__}{' in 4 bits' if model.quantised else ''}; leave out --rn-fleet"
            )
        if stretched := stretched_positions(model.network):
            raise RecipeError(
                "rows of a fleet must not depend on each other, and this model's positions are turned by the longest row of a "
                f"pass, got rope_type={', '.join(sorted(stretched))}; leave out --rn-fleet"
            )
        self._model, self._threads, self._say = model, threads, say
        self._most: int | None = None
        self._passes: dict[int, list[_Pass]] = collections.defaultdict(list)
        self._network = copy_modules(model.network)
        self._members: dict[int, Member] = {}
        self._adapters: StackedAdapters | None = None
        self._hooked = False
        self._served: collections.Counter[int] = collections.Counter()
        self._scheduler = CoroutineScheduler(self._serve, process_state, set_process_state)

    def run(self, tasks: Sequence[Callable[[LanguageModel], T]]) -> list[T | Exception]:
        """Runs tasks, each with its member, to arm it with an adapter; see ``CoroutineScheduler.run``."""
        import torch

        def on_member(task: Callable[[LanguageModel], T], coroutine: Coroutine) -> T:
            member = self._members[coroutine.number] = Member(self._model, coroutine, self._threads)
            return task(member)

        before = torch.get_num_threads()
        try:
            with known_deprecations():
                return self._scheduler.run([partial(on_member, task) for task in tasks])
        finally:
            torch.set_num_threads(before)

    def _serve(self, waiting: Sequence[Coroutine]) -> list[Coroutine]:
        """Serves requests of one kind: losses first, since their graphs take memory; sampling last, when all others wait."""
        import torch

        torch.set_num_threads(self._threads)
        # The attacks that were served least come first, so that all stay together.
        waiting = sorted(waiting, key=lambda one: self._served[one.number])

        def that_ask(kind: type) -> list[Coroutine]:
            return [one for one in waiting if isinstance(one.request, kind)]

        serve: Callable[[Sequence[Coroutine]], None]
        if asking := that_ask(BackwardRequest):
            serve = self._go_backward
        elif asking := that_ask(StatesRequest):
            learning = asking[0].request.grad
            asking = [one for one in asking if one.request.grad == learning]
            asking = asking if learning else _at_once(asking)  # the memory plan covers rows with gradients
            serve = self._go_forward
        else:
            asking, serve = _at_once(that_ask(SamplingRequest)), self._sample
        asking = self._within_memory(serve, asking)
        self._served.update(one.number for one in asking)
        return asking

    def _within_memory(self, serve: Callable[[Sequence[Coroutine]], None], asking: list[Coroutine]) -> list[Coroutine]:
        """Serves as many of these as memory holds, and returns them. If it does not hold the first, that one fails alone."""
        import torch

        while True:
            asking = asking[: self._most]
            try:
                serve(asking)
            except torch.OutOfMemoryError as error:
                if len(asking) == 1:
                    asking[0].error = error
                    return asking
            else:
                return asking
            # Here the exception is gone, and with it all that the failed pass held.
            for one in itertools.chain.from_iterable(self._passes.values()):
                one.states = None
            self._most = -(-len(asking) // 2)
            self._say(self._most)

    def _go_forward(self, asking: Sequence[Coroutine]) -> None:
        learning = asking[0].request.grad
        for one, states in zip(asking, self._states([(one, one.request) for one in asking], learning), strict=True):
            one.answer = states
            if learning:
                one.answer = states.detach().requires_grad_()
                self._passes[one.number].append(_Pass(one.request, one.answer, states))

    def _go_backward(self, asking: Sequence[Coroutine]) -> None:
        """Goes on where the losses of members ended. No gradient is changed if memory runs out."""
        import torch

        passes = [(one, of) for one in asking for of in self._passes[one.number] if of.answer.grad is not None]
        if lost := [(one, of) for one, of in passes if of.states is None]:
            again = self._states([(one, of.request) for one, of in lost], learning=True)
            for (_, of), states in zip(lost, again, strict=True):
                of.states = states
        trained = [p for one in asking for p in self._members[one.number].trained.values()]
        if passes:
            ends: Any = [of.states for _, of in passes]
            gradients = [of.answer.grad for _, of in passes]
            given = torch.autograd.grad(ends, trained, gradients, allow_unused=True)
            for p, gradient in zip(trained, given, strict=True):
                if gradient is not None:
                    p.grad = gradient if p.grad is None else p.grad + gradient
        for one in asking:
            del self._passes[one.number]

    def _states(self, asked: Sequence[tuple[Coroutine, StatesRequest]], learning: bool) -> list[torch.Tensor]:
        """The hidden states of each request, computed in one pass."""
        import torch

        prompts = _stacked([of.prompts for _, of in asked], left=True)
        completions = _stacked([of.completions for _, of in asked], left=False)
        sizes = [len(of.prompts[0]) for _, of in asked]
        owners = torch.arange(len(asked), device=prompts[0].device).repeat_interleave(torch.tensor(sizes).to(prompts[0].device))
        with torch.set_grad_enabled(learning), self._adapted([one for one, _ in asked]) as adapters:
            states = completion_states(self._network, prompts, completions, owners, adapters.set_owners)
        parts = zip(states.split(sizes), asked, strict=True)  # type: ignore[no-untyped-call]
        return [part[:, : of.completions[0].shape[1]] for part, (_, of) in parts]

    def _sample(self, asking: Sequence[Coroutine]) -> None:
        """Samples token by token, with a cache of keys and values; rows that have ended are dropped when they are many."""
        import torch

        ids, mask = _stacked([one.request.prompts for one in asking], left=True)
        choosers = [TokenChooser(one) for one in asking]
        sizes = [chooser.rows for chooser in choosers]
        live = torch.arange(len(ids), device=ids.device)  # the rows that are still computed
        owners = torch.arange(len(asking)).repeat_interleave(torch.tensor(sizes)).to(ids.device)
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
                chosen = torch.cat([chooser(part) for chooser, part in zip(choosers, scores.split(sizes), strict=True)])
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
        for one, chooser, part in zip(asking, choosers, tokens.split(sizes), strict=True):  # type: ignore[no-untyped-call]
            chooser.close()
            if chooser.failed:
                one.error = chooser.failed
            else:
                one.answer = torch.cat([one.request.prompts[0], part[:, : chooser.taken]], 1)

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
    """The first of them, up to ``ROWS_AT_ONCE`` rows; at least one."""
    totals = itertools.accumulate(len(one.request.prompts[0]) for one in asking)
    return [one for one, rows in zip(asking, totals, strict=True) if rows <= ROWS_AT_ONCE] or [asking[0]]


def _stacked(parts: Sequence[Tokens], *, left: bool) -> Tokens:
    """All rows, padded to one length on the left or on the right."""
    import torch
    from torch.nn.functional import pad

    width = max(ids.shape[1] for ids, _ in parts)

    def wide(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        fills = [width - tensor.shape[1] for tensor in tensors]
        return torch.cat([pad(t, (fill, 0) if left else (0, fill)) for t, fill in zip(tensors, fills, strict=True)])

    return wide([ids for ids, _ in parts]), wide([mask for _, mask in parts])
