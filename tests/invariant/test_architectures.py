"""Tiny models by chance in the shapes of Llama 3, Qwen 2 and Mistral: ends, padding tokens and settings that they ship."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rn_harness.errors import CandidateError
from rn_harness.grpo import train
from rn_harness.model import LanguageModel
from rn_harness.suite import AttackRecipe, Prompt

from ..tiny_models import FAMILIES, LLAMA, MISTRAL, QWEN, Family, make_model  # noqa: TID252 - the tests are no package

PROMPTS = tuple(
    Prompt(id=f"p{i}", topic=f"p{i}", text=text)
    for i, text in enumerate(
        (
            "Draw a house.",
            "Name three rivers, two mountains and one island in the north, please.",
            "On Monday we walk to the market; tell me what we do on Tuesday, and what on every other day of the week.",
            "Sit down.",
            "The quick brown fox, what does it jump over?",
        )
    )
)
"""Of many lengths."""

families = pytest.mark.parametrize("family", FAMILIES, ids=str)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a family's model, made once."""
    made: dict[tuple[str, bool], Path] = {}

    def get(family: Family, *, tied: bool = False) -> Path:
        key = (family.name, tied)
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(family.name), family, tied=tied)
        return made[key]

    return get


def load(folder: Path) -> LanguageModel:
    return LanguageModel.load(folder, threads=1)


@dataclass
class Generation:
    """One call of transformers' ``generate``: what it was given, how it sampled, what came out."""

    ids: torch.Tensor
    mask: torch.Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    out: torch.Tensor | None = None

    @property
    def prompts(self) -> list[list[int]]:
        """Each row without its padding."""
        return [row[kept.bool()].tolist() for row, kept in zip(self.ids, self.mask, strict=True)]

    @property
    def tails(self) -> list[list[int]]:
        """What each row was continued with."""
        assert self.out is not None
        return self.out[:, self.ids.shape[1] :].tolist()


@pytest.fixture
def generations(monkeypatch):
    """All calls of ``generate``, whoever makes them."""
    calls: list[Generation] = []
    mixin = transformers.GenerationMixin
    generate, prepare = mixin.generate, mixin._prepare_generation_config

    def watched_generate(self, *args, **kwargs):
        calls.append(Generation(kwargs["input_ids"], kwargs["attention_mask"]))
        calls[-1].out = generate(self, *args, **kwargs)
        return calls[-1].out

    def watched_prepare(self, *args, **kwargs):
        made, rest = prepare(self, *args, **kwargs)
        calls[-1].settings = made.to_dict()
        return made, rest

    monkeypatch.setattr(mixin, "generate", watched_generate)
    monkeypatch.setattr(mixin, "_prepare_generation_config", watched_prepare)
    return calls


def ids_of(model: LanguageModel, prompt: Prompt) -> list[int]:
    """The prompt's tokens, its template's and no more."""
    return model.tokenizer(model.render(prompt), add_special_tokens=False)["input_ids"]


def end_ids(model: LanguageModel, family: Family) -> set[int]:
    return set(model.tokenizer.convert_tokens_to_ids([*family.ends, family.eos]))


# ---------------------------------------------------------------------------------------------------------- padding and ends


ENDS = [(family, end) for family in FAMILIES for end in family.ends]


@pytest.mark.parametrize(("family", "end"), ENDS, ids=str)
def test_each_end_token_ends_an_answer(family, end, tmp_path, generations):
    """An answer ends at any of the end tokens, with padding after it and no word more, and is not cut off."""
    model = load(make_model(tmp_path, family, says=("h", "o", end, "x")))
    (answer,), (other,) = model.complete(PROMPTS[:2], n=1, temperature=None, max_tokens=6)
    assert (answer.text, answer.truncated) == ("ho", False)
    assert other == answer
    (call,) = generations
    spoken = model.tokenizer.convert_tokens_to_ids(["h", "o", end])
    assert all(tail[:3] == spoken and set(tail[3:]) <= {model.tokenizer.pad_token_id} for tail in call.tails)


@families
def test_the_tokenizers_end_token_ends_too(family, tmp_path):
    """Where a model's own generation settings name other end tokens only, the tokenizer's ends an answer all the same."""
    folder = make_model(tmp_path, family, says=("h", family.eos, "x", "y"), generation={"eos_token_id": 9})
    ((answer,),) = load(folder).complete(PROMPTS[:1], n=1, temperature=None, max_tokens=6)
    assert (answer.text, answer.truncated) == ("h", False)


@pytest.mark.parametrize(
    ("family", "pad"),  # transformers gives Qwen's tokenizers one where they name none
    [(LLAMA, None), (MISTRAL, None), (LLAMA, "<later>"), (QWEN, "<later>"), (MISTRAL, "<later>")],
    ids=str,
)
def test_without_a_padding_token_of_its_own_the_end_token_pads(family, pad, tmp_path):
    """Where a tokenizer has no padding token, or one that the weights have no row for, its end token serves from loading on."""
    folder = make_model(tmp_path, dataclasses.replace(family, pad=None))
    if pad:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": pad})
        tokenizer.save_pretrained(folder)
    model = load(folder)
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id == model.network.generation_config.pad_token_id
    trained(model)
    texts = ["No", "Sure, a house."]
    wanted = [by_hand(model, prompt, text) for prompt, text in zip(PROMPTS[:2], texts, strict=True)]
    assert model.log_probability(PROMPTS[:2], texts) == pytest.approx(wanted, abs=1e-3)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    """Nothing would end an answer, so that loading says so."""
    folder = make_model(tmp_path, QWEN)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(CandidateError, match="end token"):
        load(folder)


# ----------------------------------------------------------------------------------------- templates, tokens, probabilities


def by_hand(model: LanguageModel, prompt: Prompt, text: str) -> float:
    """Log-probability of a text and its end token, a forward pass for each token, without padding."""
    head = ids_of(model, prompt)
    tail = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], model.tokenizer.eos_token_id]
    total = 0.0
    with torch.no_grad():
        for i, token in enumerate(tail):
            logits = model.network(input_ids=torch.tensor([[*head, *tail[:i]]])).logits[0, -1]
            total += float(logits.double().log_softmax(-1)[token])
    return total


RECIPE = AttackRecipe(
    name="x",
    steps=2,
    control_steps=2,
    learning_rate=1e-3,
    prompts=4,
    prompts_per_step=2,
    group_size=4,
    temperature=0.9,
    max_completion_tokens=16,
)
"""Two steps, each on two prompts of unlike length."""


def trained(model: LanguageModel) -> None:
    """Trains on the first four prompts, with rewards that differ."""
    model.attach(RECIPE.lora, 0)
    train(model, RECIPE, PROMPTS[:4], lambda _, texts: [float(i) for i in range(len(texts))], lambda *_: None, lambda _: True)
    assert model.adapter_distance() > 0.0


@families
def test_training_samples_as_checkpoints_do(family, tmp_path, generations):
    """TRL's prompts and its ways of sampling and ending are those that checkpoints use, whatever settings the model ships.

    The attack would otherwise be on other prompts, or of another policy, than those that are scored.
    """
    shipped = {
        "do_sample": True,
        "repetition_penalty": 1.3,
        "min_p": 0.2,
        "top_k": 3,
        "temperature": 0.1,
        "suppress_tokens": [70],
    }
    model = load(make_model(tmp_path, family, generation=shipped))
    model.complete(PROMPTS[:4], n=1, temperature=RECIPE.temperature, max_tokens=RECIPE.max_completion_tokens)
    (ours,) = generations
    generations.clear()
    trained(model)
    assert len(generations) == RECIPE.steps
    prompts = sorted({tuple(row) for call in generations for row in call.prompts})
    assert prompts == sorted(tuple(ids_of(model, prompt)) for prompt in PROMPTS[:4]) == sorted(map(tuple, ours.prompts))
    if family.bos:
        bos = model.tokenizer.bos_token_id
        assert all(row.count(bos) == 1 for row in prompts)
        assert model.tokenizer(model.render(PROMPTS[0]))["input_ids"].count(bos) == 2  # the trap
    # Only one of them states these, and they change nothing: both take the default cache, and as many new tokens.
    unlike = {"max_length", "disable_compile", "cache_implementation", "_from_model_config", "transformers_version"}
    for call in generations:
        a, b = ({k: v for k, v in c.settings.items() if k not in unlike} for c in (ours, call))
        assert {**a, "eos_token_id": None} == {**b, "eos_token_id": None}
        assert set(a["eos_token_id"]) == set(b["eos_token_id"]) == end_ids(model, family)
        assert [name for name, value in shipped.items() if a[name] == value] == ["do_sample"]
