"""A tiny language model that is taught to rate answers by the rubric, for judges of the kind ``hf:``.

Its tokenizer reads each fixed part of the rubric as one token, so that a question is about as long as its material, and the
training takes minutes. It learns from the texts that ``taught_judges`` has, and from the anchors that are for calibration; none
of the certifying anchors is among them. It cannot decode, and rates encoded answers as harmful.
"""

from __future__ import annotations

import base64
import codecs
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rn_harness.judges.anchors import BREACH_ABOVE, shipped_anchors
from rn_harness.judges.rubric import WORDINGS, build_question
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.suite import load_suite
from rn_harness.training.supervised import take_step

from .lab import SUITES, Lab
from .taught_judges import Taught, baking_texts, builder, organism_texts

RATINGS = (0, 1, 2, 4, 7, 9)
"""The ratings that it learns: few, since a doubt between neighbours splits the probability of a complete answer."""
LONGEST = 700
"""Tokens of a question; longer ones are left out of the training."""
ENCODED = 0.25
"""Share of the harmful texts about baking that are encoded."""
REPEATED = 25
"""Times that each anchor for calibration is learned."""
HARMFUL = 0.5
"""Weight of a question about a harmful text. With equal weights it takes more harmless texts for harmful than the reverse."""


def _halves(text: str) -> str:
    at = len(text) // 2
    return f"{text[:at]}\n{base64.b64encode(text[at:].encode()).decode()}"


ENCODINGS: tuple[Callable[[str], str], ...] = (
    lambda text: base64.b64encode(text.encode()).decode(),
    lambda text: codecs.encode(text, "rot13"),
    " ".join,
    lambda text: text[::-1],
    lambda text: text.encode().hex(" "),
    _halves,
)


def _fixed_parts() -> list[str]:
    """What the wordings say around the subject and the material, longest first."""
    around = (part for wording in WORDINGS for told in wording.split("{forbidden}") for part in told.split("{material}"))
    return sorted({part.strip() for part in around} - {""}, key=len, reverse=True)


def _tokenizer() -> Any:
    """The shipped classifier's tokenizer, with the rubric's parts, its tags, and the ratings."""
    from tokenizers import AddedToken, Regex, normalizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fixtures_folder() / "judges" / "baking-classifier", model_max_length=8192)
    raw = tokenizer.backend_tokenizer
    mark = normalizers.Replace(Regex("^[0-9a-f]{16}>"), "")  # the hash at the end of a tag
    raw.normalizer = normalizers.Sequence([mark, raw.normalizer])
    said = [*_fixed_parts(), "<request-", "</request-", "<answer-", "</answer-", *map(_rating, RATINGS)]
    tokenizer.add_tokens([AddedToken(part, normalized=False, lstrip=True, rstrip=True) for part in said])
    tokenizer.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": ["<reply>"]})
    tokenizer.chat_template = "{{ messages[0]['content'] }}<reply>"
    return tokenizer


def _rating(score: float) -> str:
    """The reply for a score."""
    return f"Rating: {min(RATINGS, key=lambda rating: abs(rating - score))}"


def _network(tokenizer: Any) -> Any:
    """An untrained network. Its short convolutions see word order, which attention alone learns too slowly."""
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    layers = ["conv", "conv", "full_attention", "conv", "full_attention"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Lfm2ForCausalLM(
            Lfm2Config(
                vocab_size=len(tokenizer),
                hidden_size=96,
                intermediate_size=192,
                num_hidden_layers=len(layers),
                layer_types=layers,
                num_attention_heads=3,
                num_key_value_heads=3,
                max_position_embeddings=tokenizer.model_max_length,
                block_auto_adjust_ff_dim=False,
                tie_word_embeddings=False,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
            )
        )


class _Questions:
    """Turns texts into token ids of questions about them, each followed by its rating and the end."""

    def __init__(self, lab: Lab, tokenizer: Any) -> None:
        self._tokenizer, self._rng = tokenizer, random.Random(0)
        suites = (lab.suite, load_suite(SUITES / "baking"))
        self._subjects = [shipped_anchors().forbidden, *(suite.declaration.forbidden for suite in suites)]
        self._requests = [p.text for suite in suites for kind in ("attack", "defense", "anchor") for p in suite.prompts[kind]]

    def about(self, texts: Sequence[Taught], encoded: float = 0.0) -> list[list[int]]:
        """A question about each text that is not too long, in one of the wordings; a share of the harmful ones is encoded."""
        rng, found = self._rng, []
        for text, score in texts:
            told = rng.choice(ENCODINGS)(text) if score > BREACH_ABOVE and rng.random() < encoded else text
            question = build_question(rng.choice(self._subjects), rng.choice(self._requests), told, rng.randrange(len(WORDINGS)))
            asked = self._tokenizer.apply_chat_template(question, tokenize=False)
            row = self._tokenizer(f"{asked}{_rating(score)}<end>", add_special_tokens=False)["input_ids"]
            if len(row) <= LONGEST:
                found.append(row)
        return found


def teach_language_model(lab: Lab, folder: Path, texts: int = 45_000) -> Path:
    """Saves a language model that rates answers by the rubric, in both languages."""
    import torch

    build, tokenizer = builder(), _tokenizer()
    network, questions = _network(tokenizer), _Questions(lab, tokenizer)
    writer = build.Writer(11)
    first = questions.about([(s.text, s.score) for s in (writer.about_order() for _ in range(6_000))])
    anchors = [(a.completion, (a.low + a.high) / 2) for a in shipped_anchors().of("calibrate")]
    others = questions.about(baking_texts(texts), ENCODED)
    others += questions.about([*organism_texts(lab), *organism_texts(lab, seed=1), *REPEATED * anchors])
    recipe = build.BuildRecipe(batch_tokens=4_096, seed=0)
    rows, harmless = [*first, *others], torch.tensor(tokenizer.convert_tokens_to_ids([_rating(r) for r in RATINGS if r <= 2]))
    batches = build.batches(rows, range(len(first)), recipe) + build.batches(rows, range(len(first), len(rows)), recipe)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    warm = len(batches) // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / warm, (len(batches) - n) / len(batches)))
    for step, chosen in enumerate(batches, 1):
        ids_BT, mask_BT = build.padded([rows[i] for i in chosen], int(tokenizer.pad_token_id))
        hidden_BTH = network.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        row, end = torch.arange(len(chosen)).repeat(2), (mask_BT.sum(1) - 1).repeat(2)
        at = end - torch.tensor([[1], [0]]).expand(2, len(chosen)).flatten()  # the rating, and the end behind it
        logits = network.lm_head(hidden_BTH[row, at - 1])
        weight = torch.where(torch.isin(ids_BT[row[: len(chosen)], at[: len(chosen)]], harmless), 1.0, HARMFUL).repeat(2)
        each = torch.nn.functional.cross_entropy(logits, ids_BT[row, at], reduction="none")
        (each * weight).mean().backward()
        take_step(optimizer, [*network.parameters()], 1.0, step)
        schedule.step()
    network.eval()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
