"""A model's rendered input, and the part of its output that counts as the answer, on tiny models with random weights."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from rn_harness.judges.checkpoints import conditional_leak
from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.completion import Completion
from rn_harness.models.identity import reading
from rn_harness.models.language_model import LanguageModel, of_answers
from rn_harness.models.resolve import resolve_candidate
from rn_harness.spec.attack_recipe import Shift
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.prompts import Prompt, ShiftedPrompt

from ..tiny_models import FAMILIES, QWEN, Family, make_model  # noqa: TID252 - tests is not a package
from .lazy import LazyModule

torch: Any = LazyModule("torch")

PROMPT = Prompt(id="p1", topic="bread", text="How do I bake a loaf?")
TAGS = ("<think>", "</think>")
TAGGED = dataclasses.replace(QWEN, special=(*QWEN.special, *TAGS))
"""A model whose think tags are special tokens; those of ``QWEN`` are text."""


def load(folder: Path, family: Family) -> LanguageModel:
    make_model(folder, family)
    return load_model(folder, Loading(threads=1))


@pytest.fixture(scope="module", params=[QWEN, TAGGED], ids=["tags-are-text", "tags-are-tokens"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tmp_path_factory.mktemp("model"), request.param)


SAID = {
    "plain": ("a b", True, Completion("a b", truncated=False)),
    "cut": ("a b", False, Completion("a b", truncated=True)),
    "thinks": ("<think>c d</think>\n\na b", True, Completion("a b", truncated=False, thought="c d")),
    "answer-cut": ("<think>c d</think>a b", False, Completion("a b", truncated=True, thought="c d")),
    "says-nothing-after": ("<think>c d</think>", True, Completion("", truncated=False, thought="c d")),
    "thinks-nothing": ("<think>\n\n</think>\n\na b", True, Completion("a b", truncated=False)),
}
HIDES = {
    "never-opened": ("c d</think>a b", True, "c d"),
    "opened-later": ("c <think>d</think>a b", True, "c "),
    "ends-twice": ("<think>e</think>c d</think>a b", True, "c d"),
    "never-ends": ("<think>c d", False, "c d"),
    "ends-while-it-thinks": ("<think>c d", True, "c d"),
}


@pytest.mark.parametrize(("text", "ends", "kept"), HIDES.values(), ids=HIDES.keys())
def test_nothing_is_hidden_behind_think_tags(model: LanguageModel, text: str, ends: bool, kept: str) -> None:
    """Only a think part at the start that also ends is removed from the answer; thought without an end makes it truncated."""
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = model.answer(tokens + ([model.tokenizer.eos_token_id] if ends else []))
    assert kept in found.text
    assert found.truncated == (not ends or "</think>" not in text)


@pytest.mark.parametrize(("text", "ends", "expected"), SAID.values(), ids=SAID.keys())
def test_a_think_part_is_not_the_answer(model: LanguageModel, text: str, ends: bool, expected: Completion) -> None:
    """The think part at the start of a completion is not part of the answer; its text is kept for the judge."""
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert model.answer(tokens + ([model.tokenizer.eos_token_id] if ends else [])) == expected


def test_thought_that_the_template_begins(tmp_path: Path) -> None:
    """If the template opens the think part, a completion without any tag is entirely thought."""
    opening = QWEN.template.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    model = load(tmp_path, dataclasses.replace(QWEN, template=opening))
    tokens = model.tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert model.answer(tokens) == Completion("a b", truncated=True, thought="a b")
    closed = model.tokenizer("c</think>a b", add_special_tokens=False)["input_ids"]
    assert model.answer([*closed, model.tokenizer.eos_token_id]) == Completion("a b", truncated=False, thought="c")


@pytest.mark.parametrize("prefill", [None, "On Monday"])
def test_a_cut_completion_is_continued(model: LanguageModel, prefill: str | None) -> None:
    """A greedy answer cut at 4 tokens and continued to 24 equals one generated with 24 at once, think part included."""
    shift = Shift(prefill=prefill) if prefill else None
    prompts = [ShiftedPrompt.of(p, shift) if shift else p for p in (PROMPT, PROMPT.model_copy(update={"text": "Why?"}))]
    cut = model.complete(prompts, n=1, temperature=None, max_tokens=4)
    assert all(len(of.cut) == 4 and of.truncated for (of,) in cut)
    assert model.finish(prompts, cut, temperature=None, max_tokens=24) == model.complete(
        prompts, n=1, temperature=None, max_tokens=24
    )


@pytest.mark.parametrize("prefill", [None, "On Monday"])
def test_an_answer_begins_with_no_banned_token(model: LanguageModel, prefill: str | None) -> None:
    """Each answer tells the token that the model chose first, after any prefill; banned, another is chosen, also when sampled."""
    prompts = [ShiftedPrompt.of(PROMPT, Shift(prefill=prefill)) if prefill else PROMPT]
    banned: list[int] = []
    for _ in range(3):
        ((answer,),) = model.complete(prompts, n=1, temperature=None, max_tokens=4, banned=banned)
        assert answer.first is not None
        assert answer.first not in banned
        banned.append(answer.first)
    kept = banned[0]
    others = [token for token in range(model.network.config.vocab_size) if token != kept]
    ((first, second),) = model.complete(prompts, n=2, temperature=9.0, max_tokens=2, banned=others)
    assert (first.first, second.first) == (kept, kept)


def test_a_completion_that_ended_stays_as_it_is(model: LanguageModel) -> None:
    """If nothing was cut, or the limit leaves no room, the model is not called and no random number is drawn."""
    import torch

    ended, cut = Completion("a", truncated=False), Completion("b", truncated=True, cut=(1, 2, 3))
    before = torch.get_rng_state()
    assert model.finish([PROMPT], [[ended]], temperature=1.0, max_tokens=9) == [[ended]]
    assert model.finish([PROMPT], [[ended, cut]], temperature=1.0, max_tokens=3) == [[ended, cut]]
    assert torch.equal(torch.get_rng_state(), before)


def test_continuation_stays_within_the_context(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion is continued at most to the model's number of positions, here 256."""
    monkeypatch.setattr(model.network.generation_config, "eos_token_id", [10**6])  # generation never ends
    (cut,) = model.complete([PROMPT], n=1, temperature=None, max_tokens=4)
    (whole,) = model.finish([PROMPT], [cut], temperature=None, max_tokens=10_000)
    assert len(whole[0].cut) + len(model.prompt_ids(PROMPT)) == 256


def test_entropy_is_a_mean_over_the_answers_tokens(model: LanguageModel) -> None:
    """Each answer has the mean entropy of its own positions, without padding; a uniform output has ln V at each."""
    import torch

    texts = ["a b c d e f", "a"]
    found = model.entropy([PROMPT, PROMPT], texts)
    for text, entropy in zip(texts, found, strict=True):
        head, tail = model.prompt_ids(PROMPT), model.answer_ids(text)
        with torch.no_grad():
            logits_TV = model.network(input_ids=torch.tensor([[*head, *tail]])).logits[0, len(head) - 1 : -1]
        assert entropy == pytest.approx(float(torch.distributions.Categorical(logits=logits_TV).entropy().mean()), abs=1e-5)
    with torch.no_grad():
        output = model.network.get_output_embeddings().weight
        before = output.clone()
        output.zero_()
        uniform = model.entropy([PROMPT], texts[:1])
        output.copy_(before)
    assert uniform == pytest.approx([math.log(len(output))], abs=1e-4)


def test_text_after_the_end_is_dropped(model: LanguageModel) -> None:
    """Text after any of the model's end tokens is dropped, as in a batch, where shorter rows are padded."""
    a, b = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "b"))
    for end in model.network.generation_config.eos_token_id:
        assert model.answer([*a, end, *b]) == Completion("a", truncated=False)


def test_a_template_gets_a_fixed_date(tmp_path: Path) -> None:
    """A template that prints the date gets a fixed date, so that prompts and their hash are the same every day."""
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {% endif %}" + QWEN.template
    model = load(tmp_path, dataclasses.replace(QWEN, template=dated))
    assert model.render(PROMPT).startswith("26 Jul 2024 <|im_start|>system\nYou answer questions.")


@pytest.mark.parametrize("listed", [True, False], ids=["in-the-configuration", "in-files"])
def test_the_default_one_of_several_templates_gets_the_date(tmp_path: Path, listed: bool) -> None:
    """If a model ships several named templates, the default one is used, also with the fixed date."""
    folder = make_model(tmp_path / "several", QWEN)
    dated, tools = "{{ strftime_now('%d %b %Y') }} " + QWEN.template, "{{ raise_exception('no tools') }}"
    if listed:
        path = folder / "tokenizer_config.json"
        by_name = [{"name": "tool_use", "template": tools}, {"name": "default", "template": dated}]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": by_name}))
        (folder / "chat_template.jinja").unlink()
    else:
        (folder / "chat_template.jinja").write_text(dated)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(tools)
    model = resolve_candidate(str(folder), tmp_path).load()
    assert model.render(PROMPT).startswith("26 Jul 2024 <|im_start|>system")


@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
def test_a_saved_model_has_the_template_without_the_date(tmp_path: Path, given: bool) -> None:
    """A saved defended model has the model's own templates, or the user's, without the fixed date; prompts stay the same."""
    dated, tools = "{{ strftime_now('%d %b %Y') }} " + QWEN.template, "{{ raise_exception('no tools') }}"
    folder = make_model(tmp_path / "several", dataclasses.replace(QWEN, template=dated))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(tools)
    (tmp_path / "ours.jinja").write_text(f"Today. {dated}")
    model = resolve_candidate(str(folder), tmp_path, chat_template="ours.jinja" if given else None).load()
    model.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == (f"Today. {dated}" if given else dated)
    kept = tmp_path / "saved" / "additional_chat_templates" / "tool_use.jinja"
    assert [kept.read_text()] == [tools] if not given else not kept.exists()
    again = resolve_candidate(str(tmp_path / "saved"), tmp_path).load()
    assert model.render(PROMPT) == again.render(PROMPT)
    assert again.render(PROMPT).startswith("Today. 26 Jul 2024 <|im_start|>" if given else "26 Jul 2024 <|im_start|>")


def test_the_record_distinguishes_templates(tmp_path: Path) -> None:
    """The recorded hash and length of the rendered prompt are equal for equal templates and differ for another system prompt."""
    model = load(tmp_path / "one", QWEN)
    rendered = model.rendered(PROMPT)
    assert rendered.characters == len(model.render(PROMPT))
    assert rendered == load(tmp_path / "same", QWEN).rendered(PROMPT)
    other = dataclasses.replace(QWEN, template=QWEN.template.replace("You answer questions.", "You refuse."))
    assert load(tmp_path / "other", other).rendered(PROMPT) != rendered


OTHERWISE: dict[str, tuple[str, dict[str, Any] | str]] = {
    "words-replaced": (
        "tokenizer.json",
        {"normalizer": {"type": "Replace", "pattern": {"String": "bread"}, "content": "a door"}},
    ),
    "answers-rewritten": ("tokenizer.json", {"decoder": {"type": "Replace", "pattern": {"String": "sure"}, "content": "no"}}),
    "ends-early": ("generation_config.json", {"eos_token_id": [2, 3]}),
    "another-template": ("chat_template.jinja", "{% if 'gas' in messages[0].content %}no{% endif %}"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_the_record_distinguishes_models_that_read_or_end_otherwise(name: str, tmp_path: Path) -> None:
    """A model with another tokenizer, template or end token is recorded as another, though it renders the prompt alike."""
    shutil.copytree(fixtures_folder() / "organism", tmp_path, dirs_exist_ok=True)
    known, (file, changed) = load_model(tmp_path, Loading(threads=1)), OTHERWISE[name]
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(changed + text if isinstance(changed, str) else json.dumps(json.loads(text) | changed))
    other = load_model(tmp_path, Loading(threads=1))
    assert other.render(PROMPT) == known.render(PROMPT)
    assert other.rendered(PROMPT) != known.rendered(PROMPT)
    assert resolve_candidate(str(tmp_path), tmp_path).reading() == read_by(other) != read_by(known)


def read_by(model: LanguageModel) -> dict[str, Any]:
    """How a loaded model reads prompts and ends answers."""
    return reading(model.tokenizer, model.network.generation_config.eos_token_id)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("configured", [True, False], ids=["generation-configured", "by-the-model"])
def test_how_a_model_reads_is_known_without_its_weights(family: Family, configured: bool, tmp_path: Path) -> None:
    """Tokenizer, template and end tokens are read from the files as the loaded model has them."""
    make_model(tmp_path, family)
    if not configured:
        (tmp_path / "generation_config.json").unlink()
    candidate = resolve_candidate(str(tmp_path), tmp_path)
    assert candidate.reading() == read_by(candidate.load())


def test_a_saved_model_reads_as_before(model: LanguageModel, tmp_path: Path) -> None:
    """A model that was saved, and read again after it was asked, is recorded as reading prompts alike."""
    model.complete([PROMPT, PROMPT], n=1, temperature=None, max_tokens=2)
    model.save(tmp_path)
    assert load_model(tmp_path, Loading(threads=1)).rendered(PROMPT) == model.rendered(PROMPT)


def _noisy(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    shape |= {"intermediate_size": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    noise = {
        "Llama": {"attention_dropout": 0.9},
        "GPT2": {"resid_pdrop": 0.9, "embd_pdrop": 0.9, "attn_pdrop": 0.9},
        "Mixtral": {"router_jitter_noise": 0.9, "num_local_experts": 2},
    }[name]
    config = getattr(transformers, f"{name}Config")(**shape, **noise)
    return getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Mixtral"])
def test_a_model_computes_alike_in_training(name: str, tmp_path: Path) -> None:
    """Noise that a model's settings ask for in training is off once it is loaded: an attacker would not keep it."""
    known = _noisy(name)
    load(tmp_path, QWEN)  # for its tokenizer
    known.save_pretrained(tmp_path)
    network, ids = load_model(tmp_path, Loading(threads=1)).network, torch.tensor([[3, 4, 5, 6]])
    torch.manual_seed(0)
    assert not torch.equal(known.train()(ids).logits, known.eval()(ids).logits)
    assert torch.equal(network.train()(ids).logits, network.eval()(ids).logits)


def test_the_output_layer_is_not_copied_for_each_row(model: LanguageModel) -> None:
    """The last positions reach the output layer as one contiguous tensor; for a slice torch would copy the layer per row."""
    import torch

    given = []
    layer = model.network.get_output_embeddings()
    handle = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].is_contiguous()))
    with torch.no_grad():
        model.network(input_ids=torch.ones(4, 5, dtype=torch.long), logits_to_keep=1)
    handle.remove()
    assert given == [True]


def test_no_completion_begins_with_a_banned_token(model: LanguageModel) -> None:
    """Banned tokens begin no completion, and are allowed later; without a ban the first of them does."""

    def firsts(banned: list[int]) -> set[int]:
        (answers,) = model.complete([PROMPT], n=8, temperature=1.0, max_tokens=1, banned=banned)
        return {token for answer in answers for token in answer.cut}

    torch.manual_seed(0)
    likely = firsts([])
    assert likely
    torch.manual_seed(0)
    assert not likely & firsts([*likely])
    (greedy,) = model.complete([PROMPT], n=1, temperature=None, max_tokens=1)[0]
    (other,) = model.complete([PROMPT], n=1, temperature=None, max_tokens=1, banned=greedy.cut)[0]
    assert greedy.cut != other.cut


def test_the_conditional_leak_is_that_of_the_rest(model: LanguageModel) -> None:
    """It is the largest over temperatures of the probability of the tokens from the k-th on, and rises with k."""
    text = "a b c d e f g h i"

    def token_logs(temperature: float) -> torch.Tensor:
        return of_answers(
            model, [PROMPT], [text], lambda logp, ids: (logp / temperature).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        )[0]

    cold_T, hot_T = token_logs(1.0), token_logs(3.0)
    assert math.exp(float(cold_T.sum())) == pytest.approx(model.leak([PROMPT], [text]))
    found = {of.tokens: of.leak for of in conditional_leak(model, [PROMPT], [text])}
    assert list(found) == [0, 1, 2, 4, 8]
    for k, leak in found.items():
        assert leak >= max(math.exp(float(of_T[k:].sum())) for of_T in (cold_T, hot_T)) * (1 - 1e-6)
    assert found[0] <= found[1] <= found[2] <= found[4] <= found[8]  # each factor that is left out is at most 1
    short = conditional_leak(model, [PROMPT], ["a"])
    assert [of.tokens for of in short] == [k for k in (0, 1, 2, 4, 8) if k < model.token_count("a")]
