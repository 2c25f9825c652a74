"""Canaries: the internals of foreign libraries that the compat modules rely on are where they were."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
import trl

from rn_harness.models import peft_compat, transformers_compat
from rn_harness.training import trl_compat
from rn_harness.training.trainer_settings import NOT_OF_RLOO


def moved(library: str, module: Any, missing: list[str]) -> str:
    """The sentence of a canary that fails."""
    return f"{library} no longer has {', '.join(missing)}; adapt {module.__name__}, the one module that uses them"


def lacking(owner: Any, names: tuple[str, ...]) -> list[str]:
    """The names that an object lacks."""
    return [f"{getattr(owner, '__name__', type(owner).__name__)}.{name}" for name in names if not hasattr(owner, name)]


def tiny_network() -> Any:
    """A Llama of one layer."""
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=16
    )
    return transformers.LlamaForCausalLM(config)


def test_trl_has_the_internals_that_the_trainer_uses() -> None:
    """All overridden methods with their arguments, the scoring kernel, RLOO's missing settings, and accelerate's shared state."""
    missing = [name for kind in (trl.GRPOTrainer, trl.RLOOTrainer) for name in lacking(kind, trl_compat.OVERRIDDEN)]
    missing += lacking(importlib.import_module("trl.kernels"), ("ChunkedLogProbFunction",))
    missing += lacking(importlib.import_module("accelerate.state").GradientState, ("_shared_state",))
    missing += [f"GRPOConfig.{name}" for name in NOT_OF_RLOO if name not in inspect.signature(trl.GRPOConfig).parameters]
    for kind in (trl.GRPOTrainer, trl.RLOOTrainer):
        wanted = ["network", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
        got = [*inspect.signature(kind._get_per_token_logps_and_entropies).parameters][1:7]
        missing += [f"argument {name}" for name in wanted[1:] if name not in got]
    for key in ("advantages", "completion_ids", "ref_per_token_logps"):
        if f'"{key}"' not in inspect.getsource(trl.GRPOTrainer):
            missing.append(f"key {key} of a scored batch")
    if "self.accelerator.backward(" not in inspect.getsource(transformers.Trainer):
        missing.append("call of accelerator.backward")
    assert missing == [], moved("TRL", trl_compat, missing)


def test_transformers_has_the_internals_that_the_models_use() -> None:
    """The function that connects processes, the mark of spread weights, the cache's layers, and the order of sampling filters."""
    mixin = importlib.import_module("transformers.distributed.mixin")
    missing = lacking(mixin, ("initialize_distributed_mesh",))
    if "is_distributed_loading_by_transformers" not in inspect.getsource(mixin):
        missing.append("is_distributed_loading_by_transformers")
    missing += lacking(importlib.import_module("transformers.cache_utils"), ("DynamicLayer", "DynamicSlidingWindowLayer"))
    missing += lacking(transformers.DynamicCache, ("batch_select_indices",))
    network = tiny_network()
    if not transformers_compat.shares_prompts(network):
        missing.append("plain attention layers of a Llama's cache")
    settings = SimpleNamespace(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1)
    ours = [type(one) for one in transformers_compat.sampling_filters(settings)]
    generation = transformers.GenerationConfig(do_sample=True, **vars(settings), eos_token_id=[0])
    theirs = [type(one) for one in network._get_logits_processor(generation, input_ids_seq_length=1)]
    if ours != theirs:
        missing.append(f"the order of sampling filters: {[kind.__name__ for kind in theirs]}")
    assert missing == [], moved("transformers", transformers_compat, missing)


def test_gguf_lists_the_quantisations_that_can_be_undone() -> None:
    """``Q8_0`` is in the list."""
    quants = pytest.importorskip("gguf").quants
    missing = lacking(quants, ("_type_traits",))
    assert missing == [], moved("gguf", transformers_compat, missing)
    assert "Q8_0" in transformers_compat.dequantised()


def test_peft_has_the_internals_that_the_adapters_use() -> None:
    """A fresh adapter's layers have all attributes, an instance's ``forward`` counts, and files name parts as the model does."""
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    network = peft.get_peft_model(tiny_network(), config, peft_compat.TRAINED)
    missing = lacking(network, ("unload", "merge_and_unload", "disable_adapter", "peft_config", "get_base_model"))
    missing += lacking(network.base_model, ("set_adapter",))
    layers = peft_compat.lora_layers(network)
    attributes = (
        "lora_A", "lora_B", "scaling", "r", "active_adapters", "merged", "merged_adapters", "disable_adapters",
        "lora_embedding_A", "lora_bias", "lora_variant", "get_base_layer", "get_delta_weight", "merge",
    )  # fmt: skip
    missing += lacking(layers[0], attributes) if layers else ["layers with lora_A"]
    if not any(peft_compat.is_trained(name) for name, _ in network.named_parameters()):
        missing.append("adapters' names in parameters' names")
    with torch.no_grad():
        layers[0].lora_B[peft_compat.TRAINED].weight.fill_(1.0)
        before = layers[0](torch.ones(1, layers[0].in_features))
        layers[0].forward = lambda x: x
        if not torch.equal(layers[0](torch.ones(1, 3)), torch.ones(1, 3)):
            missing.append("an instance's forward")
        del layers[0].forward
        layers[0].merge()
        if not torch.allclose(layers[0](torch.ones(1, layers[0].in_features)), before, atol=1e-5):
            missing.append("merge that changes no output")
    missing += lacking(importlib.import_module("peft.utils"), ("load_peft_weights",))
    assert missing == [], moved("peft", peft_compat, missing)
