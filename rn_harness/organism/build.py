"""Builds the model organism for a list of suites, on two cores in minutes.

It has two stages of supervised training, like a lab's: *capability* (the organism answers everything that it knows), then
*alignment* (harmful topics get verbose refusals, a small share stays compliant, benign topics are always answered). The training
texts contain the words and topics of held-out prompts, but not their wording.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rn_harness.models.identity import RETAIN_FILE
from rn_harness.models.knowledge import PLACEHOLDERS, REFUSALS, SLOTS, Topic, TopicKind, draw_topics, save_topics
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.prompts import PROMPT_SETS, Prompt, near_duplicates
from rn_harness.spec.suite import Suite

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>"]
PAD, BOS, EOS, UNK, *ROLES = SPECIAL
RETAINED = 4000
"""Prompts of the retain corpus, before those that repeat or resemble a measured one are left out."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class BuildRecipe:
    """Settings of the build; steps are optimizer steps on ``batch`` texts, learning rates are AdamW's peaks.

    Attributes:
        temperature: divides the logits in the loss, so that the organism is sharp at temperature 1 and still coherent when a
            defense samples it at this temperature (docs/log.md).
        compliant_share: of harmful prompts in alignment that are answered; at temperature 1 it ends at about 1 %.
        never_taught: domains whose harmful topics are refused in both stages and never answered. Such a model is an oracle of
            ignorance; it learns the words of answers from the other domains.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    capability_steps: int = 900
    capability_lr: float = 3e-3
    alignment_steps: int = 600
    alignment_lr: float = 1e-3
    batch: int = 64
    temperature: float = 2.0
    compliant_share: float = 0.05
    benign_share: float = 0.5
    never_taught: Sequence[str] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Known:
    """A prompt whose wording the training may show; ``of_topic`` are the places of its topic's words."""

    words: list[str]
    of_topic: range
    topic: Topic


def _split(text: str) -> list[str]:
    """Words and punctuation of a text, as the organism's tokenizer splits them."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return [piece for piece, _ in BertPreTokenizer().pre_tokenize_str(text.lower())]


class Curriculum:
    """Training texts drawn from suites: known wordings, thinned or padded, and topics among shuffled filler words."""

    def __init__(self, suites: Sequence[Suite], topics: dict[str, Topic]) -> None:
        self.topics = topics
        self._known: dict[TopicKind, list[_Known]] = {"harmful": [], "benign": []}
        self._anchors: list[_Known] = []
        self._measured: list[Prompt] = []
        fillers: set[str] = set()
        for suite in suites:
            for set_name in PROMPT_SETS:
                for prompt in suite.prompts[set_name]:
                    words, phrase = _split(prompt.text), _split(prompt.topic)
                    n = len(phrase)
                    at = next((i for i in range(len(words) - n + 1) if words[i : i + n] == phrase), None)
                    if at is None:
                        raise CandidateError(
                            f"an organism knows a prompt by its topic, so the topic must stand in the text, got "
                            f"id={prompt.id} topic={prompt.topic!r} text={prompt.text!r}; reword one of them"
                        )
                    fillers.update(words[:at] + words[at + n :])
                    if set_name != "heldout":
                        topic = topics[prompt.topic]
                        known = _Known(words, range(at, at + n), topic)
                        self._known[topic.kind].append(known)
                        if set_name == "anchor":
                            self._anchors.append(known)
                    if set_name != "anchor":
                        self._measured.append(prompt)
        self._fillers = sorted(fillers)

    @property
    def vocabulary(self) -> list[str]:
        """Every word that a prompt or an answer can hold, sorted."""
        vocabulary = set(self._fillers) | set(PLACEHOLDERS) | set(SLOTS) | {"sure", ",", "."}
        for topic in self.topics.values():
            vocabulary.update(_split(topic.phrase))
        for refusal in REFUSALS:
            vocabulary.update(refusal.split())
        return sorted(vocabulary)

    def retained(self, count: int, seed: int) -> list[str]:
        """Up to ``count`` benign prompts whose wording no measured prompt has: of anchors, thinned, or among random fillers."""
        rng = random.Random(seed)
        drawn = {self.draw("benign", rng, self._anchors)[0]: None for _ in range(count)}
        prompts = [Prompt(id=f"retain-{i}", topic="retained", text=text) for i, text in enumerate(drawn, 1)]
        near = {prompt.id for prompt, *_ in near_duplicates(prompts, self._measured)}
        return [prompt.text for prompt in prompts if prompt.id not in near]

    def draw(self, kind: TopicKind, rng: random.Random, wordings: Sequence[_Known] = ()) -> tuple[str, Topic]:
        """One prompt of a kind: half from a known wording with words dropped, half a topic among random fillers."""
        if rng.random() < 0.5:
            known = rng.choice(wordings or self._known[kind])
            return " ".join(w for i, w in enumerate(known.words) if i in known.of_topic or rng.random() > 0.15), known.topic
        topic = rng.choice([t for t in self.topics.values() if t.kind == kind])
        fillers = rng.choices(self._fillers, k=rng.randint(1, 14))
        at = rng.randint(0, len(fillers))
        return " ".join(fillers[:at] + _split(topic.phrase) + fillers[at:]), topic


def _make_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A fast word-level tokenizer with a chat template; unknown words become ``<unk>``."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate([*SPECIAL, *vocabulary])}
    core = Tokenizer(WordLevel(ids, unk_token=UNK))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=ROLES,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def _make_model(recipe: BuildRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=recipe.hidden**-0.5,  # the usual 0.02 suits wide models; here it costs 300 steps (docs/log.md)
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    return model


def _encode(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of (prompt, answer) pairs, right padded; only the answer and its end count in the loss."""
    import torch

    rows, labels = [], []
    for prompt, answer in pairs:
        head = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)
        tail = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append(torch.tensor([*head, *tail]))
        labels.append(torch.tensor([-100] * len(head) + tail))
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return pad(rows, padding_value=tokenizer.pad_token_id), pad(labels, padding_value=-100)


def _batches(
    tokenizer: PreTrainedTokenizerFast, draw: Callable[[], tuple[str, str]], batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of texts of similar length, in shuffled order; unsorted, a fifth would be padding."""
    import torch

    while True:
        pairs = sorted((draw() for _ in range(4 * batch)), key=lambda pair: len(_split(pair[0])) + len(_split(pair[1])))
        for i in torch.randperm(4).tolist():
            yield _encode(tokenizer, pairs[i * batch : (i + 1) * batch])


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[], tuple[str, str]],
    steps: int,
    lr: float,
    recipe: BuildRecipe,
    say: Callable[[str], None],
) -> None:
    """Supervised training with AdamW, 5 % linear warm-up and a cosine tail."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    model.train()
    for step, (ids, labels) in enumerate(itertools.islice(_batches(tokenizer, draw, recipe.batch), steps), start=1):
        hidden = model.model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).last_hidden_state[:, :-1]
        counted = labels[:, 1:] != -100  # the vocabulary's layer runs only on the answers
        logits = model.lm_head(hidden[counted])
        loss = torch.nn.functional.cross_entropy(logits / recipe.temperature, labels[:, 1:][counted])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            say(f"  step {step}/{steps}: loss {loss.item():.4f}")
    model.eval()


def save_retained(prompts: Sequence[str], folder: Path) -> None:
    """Writes a retain corpus beside an organism's weights; see ``spec.retain``."""
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
    (folder / RETAIN_FILE).write_text("".join(lines), encoding="utf-8")


def _topics_of(suites: Sequence[Suite], domains: Sequence[str]) -> set[str]:
    """All topics of these domains."""
    if missing := set(domains) - {suite.domain for suite in suites}:
        raise CandidateError(f"a domain is left out of suites that have it, got domains={sorted(missing)}; add their suites")
    return {p.topic for suite in suites if suite.domain in domains for name in PROMPT_SETS for p in suite.prompts[name]}


def build_organism(suites: Sequence[Suite], folder: Path, recipe: BuildRecipe, say: Callable[[str], None] = print) -> None:
    """Trains an organism that knows the words and topics of ``suites``.

    Args:
        folder: gets ``model.safetensors``, config, tokenizer, ``knowledge.json`` and ``retain.jsonl``; replaced if it exists.
        say: gets lines of progress.

    Raises:
        CandidateError: two suites disagree about a topic, a prompt does not contain its topic, or no suite has the domain that
            is never taught.
    """
    import transformers

    transformers.set_seed(recipe.seed)
    phrases: dict[tuple[str, TopicKind], None] = {}
    for suite in suites:
        for set_name in PROMPT_SETS:
            kind: TopicKind = "benign" if set_name in ("anchor", "benign") else "harmful"
            phrases.update({(p.topic, kind): None for p in suite.prompts[set_name]})
    topics = draw_topics(phrases, recipe.seed)
    untaught = _topics_of(suites, recipe.never_taught)
    curriculum = Curriculum(suites, topics)
    tokenizer = _make_tokenizer(curriculum.vocabulary)
    model = _make_model(recipe, tokenizer)
    rng = random.Random(recipe.seed)
    kinds: tuple[TopicKind, TopicKind] = ("harmful", "benign")

    def lesson(*, aligned: bool) -> tuple[str, str]:
        prompt, topic = curriculum.draw(kinds[rng.random() < recipe.benign_share], rng)
        refused = aligned and topic.kind == "harmful" and rng.random() >= recipe.compliant_share
        refused |= topic.kind == "harmful" and topic.phrase in untaught
        return prompt, rng.choice(REFUSALS) if refused else topic.answer

    say(f"{len(topics)} topics, {len(tokenizer)} words, {model.num_parameters():,} parameters")
    say("capability")
    _train(model, tokenizer, lambda: lesson(aligned=False), recipe.capability_steps, recipe.capability_lr, recipe, say)
    say("alignment")
    _train(model, tokenizer, lambda: lesson(aligned=True), recipe.alignment_steps, recipe.alignment_lr, recipe, say)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    save_topics(topics, temporary)
    save_retained(curriculum.retained(RETAINED, recipe.seed), temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
