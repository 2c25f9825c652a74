"""Tiny language models with a fixed reply, built on the spot without training or download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..tiny_models import say  # noqa: TID252 - tests is not a package

TEMPLATE = (
    "{% for turn in messages %}<user> {{ turn['content'] }} <end> {% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
SPECIAL = ("<pad>", "<unk>", "<end>", "<user>", "<reply>")
WORDS = ("Rating:", "0", "1", "7", "10", "11", "-1", "nan", "no", "sure", "I", "cannot", "<think>", "</think>", "forbidden")


def make_judge(
    folder: Path,
    reply: Sequence[str] | None,
    *,
    template: str | None = TEMPLATE,
    context: int = 4096,
    seed: int = 0,
    penalty: float = 50.0,
) -> Path:
    """Saves a causal language model with a word-level tokenizer.

    With a reply its layers add nothing, each word's vector encodes only that word, and the output layer maps each word to its
    successor in ``<reply> reply <end>``: greedy decoding gives exactly the reply, whatever the question.

    Args:
        folder: where the model is saved.
        reply: words of the reply, each one of ``WORDS`` and none twice; None for random weights.
        template: its chat template; None for a model without one.
        context: maximum number of tokens.
        seed: seed of the random weights.
        penalty: repetition penalty in the model's generation settings.
    """
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<reply>"],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(ids),
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=context,
                tie_word_embeddings=False,
                pad_token_id=ids["<pad>"],
                bos_token_id=None,
                eos_token_id=ids["<end>"],
            )
        )
    if reply is not None:
        chain = [ids[word] for word in ("<reply>", *reply, "<end>")]
        say(network, chain, instead=ids["nan"])  # the second choice, if a penalty excludes the first
    # Some models ship these settings: sampling, and a penalty that excludes the question's words. Neither may be used.
    network.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=penalty, pad_token_id=ids["<pad>"], eos_token_id=ids["<end>"]
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
