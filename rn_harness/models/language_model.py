"""A loaded language model that can be trained, merged with adapters, and saved."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # to catch it
from typing import TYPE_CHECKING, Any

from rn_harness.models import peft_compat, shared_prompts
from rn_harness.models.files import more_than_numbers
from rn_harness.models.random_streams import own_random_stream
from rn_harness.models.sampling import SamplingModel
from rn_harness.models.transformers_compat import four_bit_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rn_harness.models.shared_prompts import Tokens
    from rn_harness.spec.defense_recipe import GRPORecipe, LoRA

UNCHANGING = ""
"""Digest of an adapter that changes no output."""


class LanguageModel(SamplingModel):
    """A causal language model with its tokenizer, on the first GPU or, without one, on the CPU.

    Attributes:
        templates: the chat template to save with the weights, or several by name; None: the tokenizer's. The tokenizer's own
            may have a fixed date in it.
        engine: settings of the computation, for the record of a training; empty if only the model itself computes.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(network, tokenizer)
        self.templates: Any = None
        self.engine: dict[str, int] = {}
        self._start: dict[str, torch.Tensor] = {}

    @property
    def quantised(self) -> bool:
        """True if its linear maps are in 4 bits, into which no adapter can be folded without rounding."""
        return any(True for _ in four_bit_layers(self.network))

    # --- Training ----------------------------------------------------------------------------------------------------------

    def arm(self, recipe: GRPORecipe) -> None:
        """Makes a fresh adapter trainable, or all weights, as the recipe says, in float32."""
        if recipe.form == "lora":
            self.attach(recipe.lora, recipe.seed)
            return
        self.arm_all()

    def arm_all(self) -> None:
        """Makes all weights trainable, in float32, and remembers their present values."""
        self.network.float().requires_grad_()  # in bfloat16 the steps of a small learning rate would be rounded away
        for name, p in self.network.named_parameters():
            if name in self._start:
                self._start[name].copy_(p.detach())  # no second copy, not even for a moment
            else:
                self._start[name] = p.detach().clone()

    def attach(self, lora: LoRA, seed: int) -> None:
        """Puts a fresh adapter on all linear layers, drawn by the seed; its start changes no output.

        A defense's adapter on 4-bit weights stays, frozen, and the fresh one is added to it.
        """
        with own_random_stream(seed):
            self.network = peft_compat.add_adapter(self.network, lora)

    def detach(self) -> None:
        """Takes the adapter off, without folding it in."""
        self.network = self.network.unload()

    def disarm(self) -> None:
        """Makes nothing trainable, and drops the remembered weights."""
        self.network.requires_grad_(requires_grad=False)
        self._start = {}

    def put_back(self) -> None:
        """Restores all remembered weights bit by bit."""
        for name, p in self.network.named_parameters():
            p.data.copy_(self._start[name])

    @contextmanager
    def own_weights(self) -> Iterator[None]:
        """Runs its body with the remembered weights and no adapter; changes of them are remembered.

        Afterwards an adapter is back, and trained weights are as far from the remembered ones as before.
        """
        if (without_adapter := peft_compat.without_adapter(self.network)) is not None:
            with without_adapter:  # weights under an adapter are the remembered ones
                yield
            return
        import torch

        changed = [p.detach().clone() for p in self.network.parameters()]
        for p, before in zip(changed, self._start.values(), strict=True):
            p.sub_(before)
        self.put_back()
        yield
        with torch.no_grad():
            for p, change, start in zip(self.network.parameters(), changed, self._start.values(), strict=True):
                start.copy_(p)
                p.add_(change)

    @property
    def trained(self) -> dict[str, Any]:
        """The parameters that training moves, by name: the adapter's, or all; none of a model that was not armed."""
        parameters = self.network.named_parameters()
        return {name: p for name, p in parameters if name in self._start or peft_compat.is_trained(name)}

    @property
    def distance(self) -> float:
        """L2 norm of the weights' change since the model was armed."""
        if not self._start:
            return peft_compat.adapter_distance(self.network)
        squares = (float((p.detach() - self._start[name]).double().square().sum()) for name, p in self.trained.items())
        return math.sqrt(sum(squares))

    def adapter_digest(self) -> str | None:
        """SHA-256 of the trained adapter's bytes; ``UNCHANGING`` if it changes no output, None if there is none."""
        import torch

        trained = self.trained
        if self._start or not trained:
            return None
        if peft_compat.adds_nothing(trained):
            return UNCHANGING
        digest = hashlib.sha256()
        for p in trained.values():
            digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def run_by(self) -> Any:
        """A module that each forward pass of the trained model runs, and passes of other models do not."""
        return self.network.get_input_embeddings() if self._start else peft_compat.lora_layers(self.network)[0]

    def completion_states(self, network: Any, prompts: Tokens, completions: Tokens) -> torch.Tensor:
        """See ``shared_prompts.completion_states``; ``network`` is this model's without a wrapper."""
        return shared_prompts.completion_states(network, prompts, completions)

    def backward(self, backward: Callable[..., None], loss: torch.Tensor, **arguments: Any) -> None:
        """Computes the gradients of a loss by ``backward``."""
        backward(loss, **arguments)

    # --- Adapters and files --------------------------------------------------------------------------------------------------

    def merge(self) -> None:
        """Folds the adapter into the weights and drops the wrapper."""
        self.network = peft_compat.merged(self.network, sharded=self.sharded).eval()

    def merge_from(self, adapter: Path) -> None:
        """Loads a defense's adapter from a folder and folds it into the weights; on 4-bit weights it stays an adapter."""
        try:
            self.network = peft_compat.load_adapter(self.network, adapter)
        except UnpicklingError as error:
            raise more_than_numbers(adapter, error) from None
        if self.quantised:
            self.network.eval()
        else:
            self.merge()

    def save_adapter(self, folder: Path, base: str) -> None:
        """Writes the adapter of a *defense*, see ``peft_compat.save_adapter``; no code writes attacked weights."""
        peft_compat.save_adapter(self.network, self.trained, folder, base)
        (folder / "README.md").unlink(missing_ok=True)

    def save(self, folder: Path) -> None:
        """Writes the whole model of a *defense*, with its tokenizer and templates; no code writes attacked weights."""
        self.network.save_pretrained(folder)
        used = self.tokenizer.chat_template
        self.tokenizer.chat_template = self.templates or used
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.chat_template = used
        (folder / "README.md").unlink(missing_ok=True)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Runs its body with the adapter folded into the weights, see ``peft_compat.folded``."""
        with peft_compat.folded(peft_compat.lora_layers(self.network), sharded=self.sharded):
            yield

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Runs its body, which may fold adapters into the weights, and restores the weights bit by bit.

        TRL subtracts an adapter's change after it has sent weights to vLLM, and rounding would make them drift over many steps.
        """
        with peft_compat.restored([layer for layer in peft_compat.lora_layers(self.network) if not layer.merged]):
            yield
