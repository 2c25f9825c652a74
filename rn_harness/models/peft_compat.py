"""LoRA layers and wrappers as peft builds them, and arithmetic on them that peft does not offer.

No other module relies on any of these (peft 0.21). ``tests/unit/test_compat.py`` tries each one in ``PRIVATE_NAMES`` and fails
with a sentence when an upgrade moves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # to catch it
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rn_harness.models.files import more_than_numbers
from rn_harness.models.random_streams import own_random_stream
from rn_harness.models.transformers_compat import four_bit_layers, is_sharded, known_deprecations
from rn_harness.spec.defense_recipe import LoRA
from rn_harness.spec.errors import CandidateError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LAYER_NAMES = (
    "lora_A", "lora_B", "scaling", "r", "active_adapters", "merged", "merged_adapters", "disable_adapters", "lora_embedding_A",
    "lora_bias", "lora_variant", "get_base_layer", "get_delta_weight", "merge",
)  # fmt: skip
"""Names of a layer with adapters; the first four hold a value for each adapter."""
PRIVATE_NAMES = {
    **{f"LoraLayer.{name}": "compute with adapters" for name in LAYER_NAMES},
    "LoraLayer.forward, which an instance may replace": "sample without peft's casts and extra products",
    "LoraLayer.merge, which changes no output": "sample from folded weights",
    "names of parameters, which hold the adapter's between dots": "find the adapter that is trained",
    "PeftModel.base_model.set_adapter of several names": "train an adapter on top of a defense's",
    "PeftModel.disable_adapter": "measure the weights below",
    "PeftModel.unload": "take an adapter off",
    "PeftModel.merge_and_unload": "fold an adapter in",
    "PeftModel.peft_config": "save a defense's adapter",
    "PeftModel.get_base_model": "find the layers with adapters",
    "PeftModel.from_pretrained and load_peft_weights, which lose parts in silence": "refuse an adapter that does not fit",
}
"""Each private name or undocumented behaviour, with its purpose."""
MOST_OFF, MOST_OFF_SHORT, LOOKED_AT = 0.01, 0.15, 256
"""Most that folding an adapter in may change logits, as a share of their spread, in float32 and in shorter numbers; tokens at
which they are compared.

Honest adapters changed them by at most 0.00001 in float32, and by 0.02 to 0.07 in bfloat16. There rounding alone changes the
logits of a model of 30 layers by 0.08, as a comparison with float32 shows."""
TIED = "it adapts one of two tied embeddings, which both would change"
DEFENSE, TRAINED = "defense", "default"
"""Adapters' names: that of a defense on 4-bit weights, which cannot be folded in, and that which is trained."""


class LowRank(NamedTuple):
    """One adapter of one layer: it adds ``scale B A x``."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float
    rank: int


def lora_layers(network: Any) -> list[Any]:
    """The layers with adapters."""
    return [module for module in network.modules() if hasattr(module, "lora_A")]


def named_lora_layers(network: Any) -> dict[str, Any]:
    """The layers with adapters, by their names in the network without its wrapper."""
    return {name: layer for name, layer in network.get_base_model().named_modules() if hasattr(layer, "lora_A")}


def trained_part(layer: Any) -> LowRank:
    """The adapter of a layer that is trained."""
    A, B = layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight
    return LowRank(A, B, layer.scaling[TRAINED], layer.r[TRAINED])


def trained_scales(network: Any) -> set[float]:
    """The factors by which the adapter that is trained counts in its layers; empty without one."""
    return {layer.scaling[TRAINED] for layer in lora_layers(network) if TRAINED in layer.scaling}


def is_trained(name: str) -> bool:
    """True for the name of a parameter of the adapter that is trained."""
    return f".{TRAINED}." in name


def adds_nothing(trained: dict[str, Any]) -> bool:
    """True if an adapter with these parameters changes no output: all its second factors are zero."""
    return not any(p.any() for name, p in trained.items() if "lora_A" not in name)


def without_wrapper(network: Any) -> Any:
    """The network below peft's wrapper, with its adapters."""
    from peft import PeftModel

    return network.get_base_model() if isinstance(network, PeftModel) else network


class AdapterModel:
    """A network of transformers, possibly wrapped by peft, whose adapters are put on, folded in, saved and loaded."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.network: Any = network

    @property
    def sharded(self) -> bool:
        """True if the weights are spread over processes; adapters are not, each process has them whole."""
        return is_sharded(self.network)

    @property
    def quantised(self) -> bool:
        """True if its linear maps are in 4 bits, into which no adapter can be folded without rounding."""
        return any(True for _ in four_bit_layers(self.network))

    def attach(self, lora: LoRA, seed: int) -> None:
        """Puts a fresh adapter on all linear layers, drawn by the seed, which changes no output and is all that is trainable.

        A defense's adapter on 4-bit weights stays active and frozen.
        """
        from peft import LoraConfig, PeftModel, get_peft_model

        config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        with own_random_stream(seed), known_deprecations():
            if not isinstance(self.network, PeftModel):
                self.network = get_peft_model(self.network, config, TRAINED)
                return
            self.network.add_adapter(TRAINED, config)
        self.network.base_model.set_adapter([DEFENSE, TRAINED])
        for name, p in self.network.named_parameters():
            p.requires_grad_(is_trained(name))

    def detach(self) -> None:
        """Takes the adapter off, without folding it in."""
        self.network = self.network.unload()

    def merge(self) -> None:
        """Folds the adapters into the weights for good, and drops the wrapper."""
        if not self.sharded:
            self.network = self.network.merge_and_unload().eval()
            return
        from torch.distributed.tensor import distribute_tensor

        # Each process adds the adapters to its part of the weights, as peft does to the whole.
        layers = [layer for layer in lora_layers(self.network) if not layer.merged]
        if not all(_is_plain(layer) for layer in layers):
            raise CandidateError(
                "an adapter that is folded into weights which are spread over processes must be plain LoRA, got one with a bias "
                "or a variant of it; leave out --rn-shard"
            )
        for layer in layers:
            weight = layer.get_base_layer().weight
            for name in layer.active_adapters:
                change = layer.get_delta_weight(name).detach()
                weight.data += distribute_tensor(change, weight.device_mesh, weight.placements, src_data_rank=None)
        self.network = self.network.unload().eval()

    def merge_from(self, folder: Path) -> None:
        """Loads a defense's adapter from a folder and folds it into the weights; on 4-bit weights it stays an adapter.

        Raises CandidateError if the adapter does not fit this network, its file is a pickle of more than numbers, or the folded
        network computes something else than the network with its adapter: an attack on it says nothing of the adapter.
        """
        import torch
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
        from safetensors import SafetensorError

        embeddings = _embeddings(self.network)
        tied = _are_tied(embeddings)
        try:
            with known_deprecations():
                self.network = PeftModel.from_pretrained(self.network, folder, DEFENSE, local_files_only=True)
                placed = get_peft_model_state_dict(self.network, adapter_name=DEFENSE, save_embedding_layers=False)
                given = load_peft_weights(str(folder), device="cpu")
        except UnpicklingError as error:
            raise more_than_numbers(folder, error) from None
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise _unfitting(folder, type(error).__name__) from error
        if lost := sorted(name for name in placed.keys() ^ given.keys() if "lora_" in name):
            raise _unfitting(folder, f"{len(lost)} parts are in one of the two alone, the first is {lost[0]}")
        self.network.eval()
        if self.network.peft_config[DEFENSE].is_prompt_learning:
            raise _unfoldable(folder, "it is a learned prompt, and leaves the weights as they are")
        adapted = any(
            now is not before for now, before in zip(_embeddings(self.network.get_base_model()), embeddings, strict=True)
        )
        if self.quantised:
            if tied and adapted:
                raise _unfoldable(folder, TIED)
            return
        before = None if self.sharded else _logits(self.network)
        try:
            self.merge()
        except CandidateError:
            raise
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise _unfoldable(folder, f"peft cannot fold it in, {type(error).__name__}") from error
        if tied and adapted and _are_tied(_embeddings(self.network)):
            raise _unfoldable(folder, TIED)
        formats = {tensor.dtype for tensor in self.network.parameters()}
        most = MOST_OFF if formats == {torch.float32} else MOST_OFF_SHORT
        if before is not None and not (off := float((_logits(self.network) - before).std() / before.std())) <= most:
            raise _unfoldable(folder, f"logits change by {off:.2g} of their spread, more than the {most:g} of rounding")

    def save_adapter(self, folder: Path, base: str) -> None:
        """Writes the trained adapter of a *defense* for the model ``base``; no code writes attacked weights.

        Equal weights have equal digests: peft would write the base's path on this machine, and the target modules in an order
        that changes from process to process.
        """
        config = self.network.peft_config[TRAINED]
        config.base_model_name_or_path = base
        config.target_modules = sorted(config.target_modules)
        # Without these parameters peft would gather all weights that are spread.
        adapter = {name: p.detach() for name, p in self.network.named_parameters() if is_trained(name)}
        # "auto" would ask the hub about embeddings; with a KL penalty TRL leaves another adapter on the network.
        self.network.save_pretrained(folder, save_embedding_layers=False, state_dict=adapter, selected_adapters=[TRAINED])
        (folder / "README.md").unlink(missing_ok=True)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Runs its body with adapters folded into the weights, so that sampling costs no extra products.

        The weights are restored bit by bit, so nothing drifts. Probabilities agree with the unfolded network's up to rounding.

        Adapters stay unfolded on weights of less than float32 and on weights spread over processes: the change that a few steps
        make is smaller than half of a short number's last digit, so the sampled policy would not be the trained one. There the
        adapter's two products are computed in the weights' own precision, without peft's casts.
        """
        import torch

        # Adapters that are off add nothing. An embedding may be the output layer too, so nothing is folded into it.
        layers = lora_layers(self.network)
        active = [layer for layer in layers if not (layer.merged or layer.disable_adapters or layer.lora_embedding_A)]
        foldable = [] if self.sharded else [layer for layer in active if layer.get_base_layer().weight.dtype == torch.float32]
        unfolded = [layer for layer in active if layer not in foldable and _is_plain(layer)]
        moved = [layer for layer in foldable if not _is_plain(layer) or any(B.weight.any() for B in layer.lora_B.values())]
        with _restored(moved):
            for layer in moved:
                layer.merge()
            for layer in foldable:
                layer.forward = layer.get_base_layer().__call__  # with its hooks
            for layer in unfolded:
                layer.forward = _without_casts(layer)
            try:
                yield
            finally:
                for layer in (*foldable, *unfolded):
                    del layer.forward

    def restored(self) -> AbstractContextManager[None]:
        """A context that may fold adapters into the weights, and restores the weights bit by bit.

        TRL subtracts an adapter's change after it has sent weights to vLLM, and rounding would make them drift over many steps.
        """
        return _restored([layer for layer in lora_layers(self.network) if not layer.merged])


def _embeddings(network: Any) -> tuple[Any, Any]:
    """The layers of the input and of the output embeddings, with what adapts them."""
    return network.get_input_embeddings(), network.get_output_embeddings()


def _are_tied(embeddings: tuple[Any, Any]) -> bool:
    """True if both are one tensor."""
    return embeddings[0].weight is embeddings[1].weight


def _logits(network: Any) -> torch.Tensor:
    """Logits (B, T, V), float32, after ``LOOKED_AT`` tokens from all parts of the vocabulary, in rows of 64."""
    import torch

    ids = torch.linspace(0, network.config.get_text_config().vocab_size - 1, LOOKED_AT, device=network.device).long()
    with torch.no_grad():
        logits: torch.Tensor = network(input_ids=ids.view(-1, 64)).logits.float()
    return logits


def _unfitting(adapter: Path, why: str) -> CandidateError:
    return CandidateError(
        f"an adapter must fit the candidate, got adapter={adapter}: {why}; pass the base that it was trained on as --model, or "
        "copy the adapter again"
    )


def _unfoldable(adapter: Path, why: str) -> CandidateError:
    return CandidateError(
        f"an adapter must compute the same when it is folded in, since that model is attacked, got adapter={adapter}: {why}; "
        "merge it yourself, and pass and release the whole model"
    )


@contextmanager
def _restored(layers: Sequence[Any]) -> Iterator[None]:
    """Runs its body, then restores the weights of these layers bit by bit, with no adapter folded in."""
    weights = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()


def _without_casts(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward pass of a linear layer with its present adapters, all in the layer's own precision.

    The products of several adapters equal those of one whose rank is the sum of theirs. An adapter that changes nothing is left
    out: its rank could round the products of the others differently.
    """
    import torch

    base = layer.get_base_layer()
    number = getattr(base, "compute_dtype", None) or base.weight.dtype
    active = [name for name in layer.active_adapters if name in layer.lora_A and layer.lora_B[name].weight.any()]
    if not active:
        return cast("Callable[[torch.Tensor], torch.Tensor]", base.__call__)
    A = torch.cat([layer.lora_A[name].weight.detach().to(number) for name in active])
    scaled = [layer.scaling[name] * layer.lora_B[name].weight.detach() for name in active]
    B = torch.cat(scaled, 1).to(number).t().contiguous()

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = base(x)
        return torch.addmm(y.flatten(0, -2), torch.nn.functional.linear(x, A).flatten(0, -2), B).view_as(y)

    return forward


def _is_plain(layer: Any) -> bool:
    """True if a layer's adapters are two products each and no more, as all of ours are; a user's defense may be more."""
    return not layer.lora_variant and not any(layer.lora_bias.values())


def adapter_distance(network: Any) -> float:
    """L2 norm of the trained adapter's change of the weights, ``sqrt(sum ||s B A||^2)``."""
    import torch

    total = 0.0
    for layer in lora_layers(network):
        if TRAINED in layer.lora_A:
            A, B, scale, _ = trained_part(layer)
            A, B = A.detach().double(), B.detach().double()
            total += scale**2 * float(torch.sum((B.T @ B) * (A @ A.T)))  # tr(B'B AA') = ||BA||^2
    return math.sqrt(max(total, 0.0))
