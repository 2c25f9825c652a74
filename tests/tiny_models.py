"""Tiny random models in the shapes of real families, and a way to make such a model give chosen tokens.

Nothing is downloaded, and only a tokenizer is trained, on a few sentences. The chat templates are ours, in each family's style.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SENTENCES = (
    "The quick brown fox jumps over the lazy dog and sits down.",
    "Tell me how to draw a small house with four windows, please.",
    "Name three rivers, two mountains and one island in the north.",
    "I cannot help with that request, but I can read you a poem.",
    "On Monday we walk to the market; on Tuesday we stay at home.",
)
"""Training texts of the tokenizers."""

WINDOW = 8
"""Attention window of the Mistral shape in tokens, shorter than the shortest prompt."""

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}"
    "<|start_header_id|>{{ turn.role }}<|end_header_id|>\n\n{{ turn.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou answer questions.<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}"
    "{% if turn.role == 'user' %}[INST] {{ turn.content }} [/INST]"
    "{% elif turn.role == 'assistant' %} {{ turn.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no role ' + turn.role) }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """How a family's models and tokenizers look.

    Attributes:
        name: transformers' ``model_type``.
        template: chat template.
        special: special tokens.
        bos, eos, pad: special tokens that open a text, end it, and pad; None if the family has none.
        ends: tokens that end an answer according to the generation settings shipped with the model.
        shape: configuration settings that are specific to the family.
    """

    name: str
    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str | None
    ends: tuple[str, ...]
    shape: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Name used in test ids."""
        return self.name


LLAMA = Family(
    "llama",
    LLAMA_TEMPLATE,
    ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad=None,
    ends=("<|end_of_text|>", "<|eot_id|>"),
    shape={"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
)
QWEN = Family(
    "qwen2",
    QWEN_TEMPLATE,
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    bos=None,
    eos="<|im_end|>",
    pad="<|endoftext|>",
    ends=("<|im_end|>", "<|endoftext|>"),
)
MISTRAL = Family(
    "mistral",
    MISTRAL_TEMPLATE,
    ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    bos="<s>",
    eos="</s>",
    pad="</s>",
    ends=("</s>",),
    shape={"sliding_window": WINDOW},
)
FAMILIES = (LLAMA, QWEN, MISTRAL)


def _tokenizer(family: Family, vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(family.special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if family.bos:  # both the tokenizer and the template add bos
        opening = (family.bos, core.token_to_id(family.bos))
        core.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[opening])
    named = {"bos_token": family.bos, "eos_token": family.eos, "pad_token": family.pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        additional_special_tokens=list(family.special),
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in named.items() if token},
    )


def make_model(
    folder: Path,
    family: Family,
    *,
    tied: bool = False,
    says: Sequence[str] | None = None,
    generation: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Saves a model of two layers with grouped-query attention and a byte-level BPE tokenizer of 400 tokens.

    Args:
        folder: where the model is saved.
        family: family whose shape the model has.
        tied: True if the embedding is also the output layer.
        says: tokens that the model generates greedily after any prompt, see ``say``; None for random weights.
        generation: generation settings shipped with the model in addition to its special tokens.
        seed: seed of the weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer(family, 400)
    config = AutoConfig.for_model(
        family.name,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,  # large enough that early tokens of a prompt change the answer
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **family.shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config)
    if says is not None:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
        last = tokenizer(prompt, add_special_tokens=False)["input_ids"][-1]
        say(network, [last, *tokenizer.convert_tokens_to_ids(list(says))])
    settings = {
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(list(family.ends)),
    }
    network.generation_config = GenerationConfig(**{**settings, **(generation or {})})
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def say(network: Any, chain: Sequence[int], instead: int | None = None) -> None:
    """Makes a model with an untied output layer generate each token of a chain greedily after the token before it.

    The layers add nothing, each token of the chain has its own direction, and the output layer maps it to the next token.

    Args:
        network: model whose weights are overwritten.
        chain: token ids; no token is followed by two different ones. ``a b a`` repeats for ever.
        instead: token that is second choice at each position; None if all other tokens are equally likely.
    """
    import torch

    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        network.model.embed_tokens.weight.zero_()
        network.lm_head.weight.zero_()
        direction = {token: i for i, token in enumerate(dict.fromkeys(chain))}
        for token, i in direction.items():
            network.model.embed_tokens.weight[token, i] = 1.0
        for before, after in itertools.pairwise(chain):
            if instead is not None:
                network.lm_head.weight[instead, direction[before]] = 0.5
            network.lm_head.weight[after, direction[before]] = 1.0


class Payload:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Code that runs if the pickle is loaded without safeguards."""
        return (print, ("RAN",))


def make_gguf(path: Path, folder: Path, *, end_of_turn: str | None = None, width: int | None = None) -> Path:
    """Writes a tiny model as one float32 GGUF file in the layout of llama.cpp's converter, with Llama's heads interleaved.

    Args:
        path: file to write.
        folder: model in the shape of Llama or Qwen 2, as saved by ``make_model``.
        end_of_turn: token that ends a turn, in addition to the tokenizer's end token; None for no such token.
        width: width that the header declares; None for the width of the tensors.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, vocabulary = network.config, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width or config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if i in special else kinds.NORMAL for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if end_of_turn:
        writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(end_of_turn))
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in network.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer, numbers = name.split(".")[-2], tensor
        if config.model_type == "llama" and layer in heads:
            numbers = tensor.view(heads[layer], 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), numbers.to(torch.float32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
