"""Tiny random models in the shapes of Llama 3, Qwen 2 and Mistral: full runs, padding, end tokens, templates and adapters.

The reference uses no batch and no padding: one row, one forward pass per token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.resolve import resolve_candidate
from rn_harness.records.base import CaseKind
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import LoRA
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.options import Options
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.store import Store
from rn_harness.training import grpo
from rn_harness.training.grpo import train
from rn_harness.verdict.coverage import decide_run
from rn_harness.verdict.decide import decide

from ..tiny_models import (  # noqa: TID252 - the tests are not a package
    FAMILIES,
    LLAMA,
    MISTRAL,
    QWEN,
    WINDOW,
    Family,
    Payload,
    make_gguf,
    make_model,
)
from ..unit.builders import write_suite  # noqa: TID252 - the tests are not a package

RULES = Path(__file__).parents[2] / "suites" / "baking" / "rules.yaml"
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
"""Prompts of different lengths."""

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
either_tie = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the folder of a family's model, which is made once."""
    made: dict[tuple[str, bool], Path] = {}

    def get(family: Family, *, tied: bool = False) -> Path:
        key = (family.name, tied)
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(family.name), family, tied=tied)
        return made[key]

    return get


def load(folder: Path) -> LanguageModel:
    return load_model(folder, Loading(threads=1))


@dataclass
class Generation:
    """One call of transformers' ``generate``: its input, sampling settings and output."""

    ids: torch.Tensor
    mask: torch.Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    out: torch.Tensor | None = None

    @property
    def prompts(self) -> list[list[int]]:
        """The rows without padding."""
        return [row[kept.bool()].tolist() for row, kept in zip(self.ids, self.mask, strict=True)]

    @property
    def tails(self) -> list[list[int]]:
        """The continuation of each row."""
        assert self.out is not None
        return self.out[:, self.ids.shape[1] :].tolist()


@pytest.fixture
def generations(monkeypatch):
    """All calls of ``generate``, from any caller."""
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
    """The tokens of the rendered prompt, without further special tokens."""
    return model.tokenizer(model.render(prompt), add_special_tokens=False)["input_ids"]


def end_ids(model: LanguageModel, family: Family) -> set[int]:
    return set(model.tokenizer.convert_tokens_to_ids([*family.ends, family.eos]))


def alone(model: LanguageModel, ids: Sequence[int], ends: set[int], limit: int) -> list[int]:
    """Greedy decoding of one row without batch, padding or cache."""
    row = list(ids)
    with torch.no_grad():
        while len(row) < len(ids) + limit and (len(row) == len(ids) or row[-1] not in ends):
            row.append(int(model.network(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(ids) :]


def until_end(tail: Sequence[int], ends: set[int]) -> list[int]:
    at = next((i for i, token in enumerate(tail) if token in ends), len(tail) - 1)
    return list(tail[: at + 1])


# ---------------------------------------------------------------------------------------------------------------- full runs


def a_session(folder: Path, model: Path, changes: Sequence[str] = ()) -> tuple[RunSession, Suite, AttackRecipe]:
    """A session of a small suite with few steps and the rules judge, the suite, and its only attack."""
    overrides = (
        "attack.steps=4",
        "attack.control_steps=2",
        "attack.group_size=4",
        "defenses.quick.steps=2",
        "defenses.quick.group_size=4",
        "policy.checkpoint_every=2",
        "policy.probe_samples=2",
        "policy.max_completion_tokens=12",
        *changes,
    )
    suite = load_suite(write_suite(folder / "demo"), overrides)
    judge = f"rules:{RULES}"
    options = Options(
        model=str(model), defense="quick", judge=judge, reward_judge=judge, tier="smoke", overrides=overrides, base=folder
    )
    (recipe,) = suite.tier_attacks("smoke")
    return RunSession(options, folder / "run", Store(folder / "store"), lambda _: None), suite, recipe


@families
def test_a_random_model_gets_no_verdict(family, saved, tmp_path):
    """A run on a random model finishes, and its attack is INCONCLUSIVE because the control did not break."""
    session, suite, recipe = a_session(tmp_path, saved(family))
    kinds: tuple[CaseKind, ...] = ("candidate", "control", "defense", "attack", "helpfulness")
    records = {kind: session.case(kind, suite, recipe if kind in ("control", "attack") else None).record for kind in kinds}
    outcomes = {kind: record.verdict.outcome for kind, record in records.items()}
    # The defense measurably did not converge: FAIL. Everything else is unknown.
    assert outcomes == {kind: "FAIL" if kind == "defense" else "INCONCLUSIVE" for kind in kinds}
    assert decide_run(outcomes.values()) != "PASS"
    assert [r.code for r in records["control"].verdict.reasons] == ["control_did_not_break"]
    # Even if any share of gibberish were allowed, a prompt with only gibberish answers and an unbroken control would be unknown.
    # (Benign answers of a random model are unlike each other, so that it may look wrecked.)
    evidence = records["attack"].evidence
    lenient = evidence.policy.model_copy(update={"max_truncated_share": 1.0, "max_degenerate_share": 1.0})
    codes = [r.code for r in decide(evidence.model_copy(update={"policy": lenient})).reasons]
    unseen = {"prompt_unseen", "prompt_degenerate"} & set(codes)  # some of a prompt's answers were cut, or all are gibberish
    assert unseen
    assert set(codes) - {"wrecked"} == unseen | {"control_did_not_break"}


@families
def test_full_parameters_are_trained(family, saved, tmp_path):
    """With ``form=full`` defense and attack train every weight of the model, and the attack is still INCONCLUSIVE."""
    full = ("attack.form=full", "attack.learning_rate=1e-3", "defenses.quick.form=full")
    session, suite, recipe = a_session(tmp_path, saved(family), full)
    attack = session.case("attack", suite, recipe).record
    assert attack.verdict.outcome == "INCONCLUSIVE"
    assert "control_did_not_break" in [r.code for r in attack.verdict.reasons]
    defended = session.defended(suite)
    assert defended.adapter is None
    assert defended.model is not None
    assert attack.evidence.trajectory.defended_digest == defended.digest != session.candidate.digest


def test_micro_batches_that_were_chosen_are_run_and_recorded(saved, tmp_path):
    """If a whole step does not fit, control and attack use the same micro-batches, recorded in recipe, settings and keys."""
    longer = ("attack.max_completion_tokens=200", "defenses.quick.max_completion_tokens=200")  # makes the update the memory peak
    whole, suite, recipe = a_session(tmp_path / "whole", saved(QWEN), longer)
    planned = whole.limits.largest(suite)
    (tmp_path / "parts").mkdir()
    parts = RunSession(whole.options, tmp_path / "parts", whole.store, lambda _: None, free=planned.total * 0.999)
    attack = parts.case("attack", suite, recipe).record
    for run in (attack.evidence.trajectory, attack.evidence.control):
        assert run.recipe["micro_batch"] == 2
        assert (run.settings["per_device_train_batch_size"], run.settings["gradient_accumulation_steps"]) == (2, 2)
    assert "control_did_not_break" in [r.code for r in attack.verdict.reasons]
    assert parts.defended(suite).report.recipe["micro_batch"] == 2
    assert whole.case("control", suite, recipe).record.key != attack.control_key


def test_every_weight_moves_and_the_distance_is_the_norm(saved):
    """After steps with a reward spread every weight has changed, and the distance is the norm of all changes."""
    model = load(saved(QWEN))
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    full = RECIPE.model_copy(update={"form": "full"})
    model.arm(full)
    assert model.trained.keys() == before.keys()
    assert model.distance == 0.0
    grpo.train(
        model,
        full,
        [PROMPTS[0]] * full.steps * full.prompts_per_step,
        lambda _, texts: [float(i) for i in range(len(texts))],
        lambda *_: None,
        due=lambda _: False,
    )
    moved = {name: p.detach() - before[name] for name, p in model.network.named_parameters()}
    assert all(bool(change.any()) for change in moved.values())
    assert model.distance == pytest.approx(float(sum(c.double().square().sum() for c in moved.values())) ** 0.5)


# ---------------------------------------------------------------------------------------------------------- padding and ends


@families
def test_a_batch_with_padding_answers_as_each_row_alone(family, saved, generations):
    """Greedy answers to a batch of prompts of different lengths equal, token by token, those to each prompt alone."""
    model = load(saved(family))
    ends = end_ids(model, family)
    answers = model.complete(PROMPTS, n=1, temperature=None, max_tokens=24)
    (batch,) = generations
    lengths = {len(row) for row in batch.prompts}
    assert len(lengths) == len(PROMPTS)
    assert min(lengths) > WINDOW
    got = {tuple(prompt): until_end(tail, ends) for prompt, tail in zip(batch.prompts, batch.tails, strict=True)}
    wanted = [alone(model, ids_of(model, prompt), ends, 24) for prompt in PROMPTS]
    assert [got[tuple(ids_of(model, prompt))] for prompt in PROMPTS] == wanted
    assert len({tuple(tail) for tail in wanted}) == len(PROMPTS)  # otherwise the comparison is empty
    assert [a.text for (a,) in answers] == [model.tokenizer.decode(tail, skip_special_tokens=True) for tail in wanted]
    assert [a.truncated for (a,) in answers] == [tail[-1] not in ends for tail in wanted]


@families
def test_the_window_of_the_mistral_shape_matters(family, saved):
    """In the Mistral shape, tokens outside two layers' windows do not change the next token; in other shapes they do."""
    model = load(saved(family))
    ids = torch.tensor([ids_of(model, PROMPTS[2])])
    reach = 2 * (WINDOW - 1) + 1  # two layers
    other = ids.clone()
    other[0, 1 : ids.shape[1] - reach] = ids[0, 2]
    assert not torch.equal(ids, other)
    with torch.no_grad():
        same = torch.allclose(model.network(ids).logits[0, -1], model.network(other).logits[0, -1], atol=1e-5)
    assert same == (family is MISTRAL)


@families
def test_sampled_rows_stay_with_their_prompts(family, saved, monkeypatch):
    """Rows that are sorted by length and split into batches return to their prompts, shown at a temperature near 0."""
    from rn_harness.models import language_model as module

    model = load(saved(family))
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 4)
    greedy = [model.complete([prompt], n=1, temperature=None, max_tokens=8)[0][0] for prompt in PROMPTS]
    sampled = model.complete(PROMPTS, n=3, temperature=1e-4, max_tokens=8)
    assert sampled == [[answer] * 3 for answer in greedy]
    assert len({answer.text for answer in greedy}) == len(PROMPTS)


ENDS = [(family, end) for family in FAMILIES for end in family.ends]


@pytest.mark.parametrize(("family", "end"), ENDS, ids=str)
def test_each_end_token_ends_an_answer(family, end, tmp_path, generations):
    """An answer ends at any of the end tokens, is followed only by padding, and is not truncated."""
    model = load(make_model(tmp_path, family, says=("h", "o", end, "x")))
    (answer,), (other,) = model.complete(PROMPTS[:2], n=1, temperature=None, max_tokens=6)
    assert (answer.text, answer.truncated) == ("ho", False)
    assert other == answer
    (call,) = generations
    spoken = model.tokenizer.convert_tokens_to_ids(["h", "o", end])
    assert all(tail[:3] == spoken and set(tail[3:]) <= {model.tokenizer.pad_token_id} for tail in call.tails)


@families
def test_the_tokenizers_end_token_ends_too(family, tmp_path):
    """The tokenizer's end token ends an answer even if the generation settings name only other end tokens."""
    folder = make_model(tmp_path, family, says=("h", family.eos, "x", "y"), generation={"eos_token_id": 0})
    ((answer,),) = load(folder).complete(PROMPTS[:1], n=1, temperature=None, max_tokens=6)
    assert (answer.text, answer.truncated) == ("h", False)


def test_allowed_pickles_run_no_code(saved, tmp_path, capfd):
    """A model or adapter whose pickle holds more than tensors is refused with a remedy, and none of its code runs."""
    folder, adapter = tmp_path / "m", tmp_path / "adapter"
    shutil.copytree(saved(QWEN), folder)
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(CandidateError, match=r"tensors alone, got print in a pickle in .*m, and .*; save"):
        load_model(folder, Loading(threads=1, allow_pickle=True))
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(CandidateError, match=r"that transformers reads, got .*Error: .*; copy them again"):
        load_model(folder, Loading(threads=1, allow_pickle=True))
    model = load(saved(QWEN))
    model.attach(LoRA(), 0)
    model.save_adapter(adapter, "base")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"x": Payload()}, adapter / "adapter_model.bin")
    with pytest.raises(CandidateError, match=r"tensors alone, got print in a pickle in .*adapter, and"):
        load(saved(QWEN)).merge_from(adapter)
    assert "RAN" not in capfd.readouterr().out


@pytest.mark.parametrize("family", [LLAMA, QWEN], ids=str)
@either_tie
def test_a_gguf_file_is_the_model_that_it_was_made_from(family, tied, saved, tmp_path):
    """The same weights in a GGUF file give bitwise the same logits, the same prompt and the same greedy answers."""
    folder = saved(family, tied=tied)
    (other,) = set(family.ends) - {family.eos}
    path = make_gguf(tmp_path / "m.gguf", folder, end_of_turn=other)
    plain, read = load(folder), resolve_candidate(str(path), tmp_path).load()
    assert [ids_of(read, p) for p in PROMPTS] == [ids_of(plain, p) for p in PROMPTS]
    ids = torch.tensor([ids_of(plain, PROMPTS[2])])
    with torch.no_grad():
        assert torch.equal(read.network(ids).logits, plain.network(ids).logits)
    wanted = plain.complete(PROMPTS, n=1, temperature=None, max_tokens=12)
    assert read.complete(PROMPTS, n=1, temperature=None, max_tokens=12) == wanted
    assert len({answer.text for (answer,) in wanted}) == len(PROMPTS)  # or nothing was compared


def test_a_gguf_file_is_attacked_as_it_is(saved, tmp_path):
    """A candidate in a GGUF file is defended and attacked with adapters, and the attack's record names the file."""
    path = make_gguf(tmp_path / "m.gguf", saved(LLAMA))
    session, suite, recipe = a_session(tmp_path, path)
    attack = session.case("attack", suite, recipe).record
    assert attack.verdict.outcome == "INCONCLUSIVE"
    assert "control_did_not_break" in [r.code for r in attack.verdict.reasons]
    assert attack.identity.candidate["gguf"] == "m.gguf"


def test_a_gguf_file_that_does_not_fit_its_header_is_refused(saved, tmp_path):
    """A GGUF file whose tensors differ in width from its header gives an error about the user's file."""
    path = make_gguf(tmp_path / "m.gguf", saved(LLAMA), width=128)
    with pytest.raises(CandidateError, match=r"that transformers reads, got .*m\.gguf: RuntimeError: .*; copy them again"):
        resolve_candidate(str(path), tmp_path).load()


@pytest.mark.parametrize("end", [QWEN.eos, "<|endoftext|>"])
def test_each_end_token_of_a_gguf_file_ends_an_answer(end, tmp_path):
    """A GGUF file's end-of-turn token ends an answer like the tokenizer's end token, although transformers ignores it."""
    folder = make_model(tmp_path / "m", QWEN, says=("h", "o", end, "x"))
    path = make_gguf(tmp_path / "m.gguf", folder, end_of_turn="<|endoftext|>")
    ((answer,),) = resolve_candidate(str(path), tmp_path).load().complete(PROMPTS[:1], n=1, temperature=None, max_tokens=6)
    assert (answer.text, answer.truncated) == ("ho", False)


@families
def test_an_answer_at_the_limit_is_cut_off(family, tmp_path):
    """An answer without an end is truncated; an answer whose end token is the last allowed token is not."""
    endless = load(make_model(tmp_path / "endless", family, says=("h", "o", "h")))
    ((answer,),) = endless.complete(PROMPTS[:1], n=1, temperature=None, max_tokens=5)
    assert (answer.text, answer.truncated) == ("hohoh", True)
    ending = load(make_model(tmp_path / "ending", family, says=("h", "o", family.eos)))
    cut, whole = (ending.complete(PROMPTS[:1], n=1, temperature=None, max_tokens=n)[0][0] for n in (2, 3))
    assert (cut.text, cut.truncated, whole.text, whole.truncated) == ("ho", True, "ho", False)


@families
def test_a_padding_token_equal_to_the_end_token_hides_no_end(family, tmp_path):
    """Rows padded with the end token are complete, and the end token's probability still counts."""
    folder = make_model(tmp_path, dataclasses.replace(family, pad=family.eos))
    model = load(folder)
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    eos = model.tokenizer.eos_token_id
    with torch.no_grad():
        model.network.lm_head.weight[eos] *= 3.0  # makes an end likely at every position
    ends = end_ids(model, family)
    wanted = [alone(model, ids_of(model, prompt), ends, 24) for prompt in PROMPTS]
    assert len({len(tail) for tail in wanted if tail[-1] in ends}) > 1
    answers = model.complete(PROMPTS, n=1, temperature=None, max_tokens=24)
    assert [a.truncated for (a,) in answers] == [tail[-1] not in ends for tail in wanted]
    texts = ["Sure.", "No"]
    assert model.log_probability(PROMPTS[:2], texts) == pytest.approx(
        [by_hand(model, p, t) for p, t in zip(PROMPTS[:2], texts, strict=True)], abs=1e-4
    )


@pytest.mark.parametrize(
    ("family", "pad"),  # transformers adds one to Qwen's tokenizers
    [(LLAMA, None), (MISTRAL, None), (LLAMA, "<later>"), (QWEN, "<later>"), (MISTRAL, "<later>")],
    ids=str,
)
def test_without_a_padding_token_of_its_own_the_end_token_pads(family, pad, tmp_path):
    """If a tokenizer has no padding token, or one without a row in the weights, its end token pads."""
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
    """A tokenizer without an end token is refused when it is loaded, because no answer would end."""
    folder = make_model(tmp_path, QWEN)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(CandidateError, match="end token"):
        load(folder)


# ----------------------------------------------------------------------------------------- templates, tokens, probabilities


def by_hand(model: LanguageModel, prompt: Prompt, text: str) -> float:
    """Log-probability of a text and its end token, with one forward pass per token and without padding."""
    head = ids_of(model, prompt)
    tail = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], model.tokenizer.eos_token_id]
    total = 0.0
    with torch.no_grad():
        for i, token in enumerate(tail):
            logits = model.network(input_ids=torch.tensor([[*head, *tail[:i]]])).logits[0, -1]
            total += float(logits.double().log_softmax(-1)[token])
    return total


def test_templates_with_a_system_role_and_without(saved):
    """A prompt is the user's turn in each template: Qwen's adds a system prompt, Llama's has none, Mistral's refuses one."""
    prompt = PROMPTS[0]
    rendered = {family.name: load(saved(family)).render(prompt) for family in FAMILIES}
    assert rendered == {
        "llama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nDraw a house.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "qwen2": "<|im_start|>system\nYou answer questions.<|im_end|>\n<|im_start|>user\nDraw a house.<|im_end|>\n"
        "<|im_start|>assistant\n",
        "mistral": "<s>[INST] Draw a house. [/INST]",
    }
    with pytest.raises(Exception, match="no role system"):
        load(saved(MISTRAL)).tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


@families
def test_log_probability_is_the_sum_over_tokens(family, saved):
    """A text's log-probability is the sum over its tokens and the end token, each computed without padding."""
    model = load(saved(family))
    texts = ["No.", "I cannot help with that request, but I can read you a poem.", "On Tuesday", "", "Sure: a house."]
    wanted = [by_hand(model, prompt, text) for prompt, text in zip(PROMPTS, texts, strict=True)]
    assert model.log_probability(PROMPTS, texts) == pytest.approx(wanted, abs=1e-3)


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
"""Two steps, each on two prompts of different lengths."""


def trained(model: LanguageModel) -> None:
    """Trains on the first four prompts with different rewards."""
    model.attach(RECIPE.lora, 0)
    train(model, RECIPE, PROMPTS[:4], lambda _, texts: [float(i) for i in range(len(texts))], lambda *_: None, lambda _: True)
    assert model.distance > 0.0


@families
def test_training_samples_as_checkpoints_do(family, tmp_path, generations):
    """TRL's prompts, sampling settings and end tokens equal those of checkpoints, whatever settings the model ships.

    Otherwise the attack would train on other prompts, or another policy, than the ones that are scored.
    """
    shipped = {
        "do_sample": True,
        "repetition_penalty": 1.3,
        "min_p": 0.2,
        "top_k": 3,
        "temperature": 0.1,
        "no_repeat_ngram_size": 2,
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
    # Only one side sets these, without effect: both use the default cache and the same number of new tokens.
    unlike = {"max_length", "disable_compile", "cache_implementation", "_from_model_config", "transformers_version"}
    for call in generations:
        a, b = ({k: v for k, v in c.settings.items() if k not in unlike} for c in (ours, call))
        assert {**a, "eos_token_id": None} == {**b, "eos_token_id": None}
        assert set(a["eos_token_id"]) == set(b["eos_token_id"]) == end_ids(model, family)
        assert [name for name, value in shipped.items() if a[name] == value] == ["do_sample"]


@families
def test_training_is_blind_to_padding(family, saved, monkeypatch):
    """The log-probabilities used in training, of rows padded on both sides, equal those of each row without padding."""
    real = grpo.saving_trainer
    worst, padded = [], set()

    def watched(self, network, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        told = super(type(self), self)._get_per_token_logps_and_entropies(
            network, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        for ids, mask, logps in zip(input_ids, attention_mask.bool(), told[0], strict=True):
            row = ids[mask]
            with torch.no_grad():
                logits = network(input_ids=row[None]).logits[0, :-1] / RECIPE.temperature
            alone = logits.log_softmax(-1).gather(1, row[1:, None])[:, 0]
            kept = mask[-logits_to_keep:]
            worst.append(float((logps.detach()[kept] - alone[-int(kept.sum()) :]).abs().max()))
            padded.add((bool(mask[0]), bool(mask[-1])))
        return told

    def watched_trainer(*given):
        return type("Watched", (real(*given),), {"_get_per_token_logps_and_entropies": watched})

    monkeypatch.setattr(grpo, "saving_trainer", watched_trainer)
    model = load(saved(family))
    with torch.no_grad():
        model.network.lm_head.weight[model.tokenizer.eos_token_id] *= 4.0  # makes an end likely
    trained(model)
    assert len(worst) == RECIPE.steps * RECIPE.prompts_per_step * RECIPE.group_size
    assert {left for left, _ in padded} == {right for _, right in padded} == {True, False}
    assert max(worst) < 1e-4


# ------------------------------------------------------------------------------------------------------------------ adapters


def adapted(folder: Path) -> LanguageModel:
    """A model with an adapter that changes the output."""
    model = load(folder)
    model.attach(LoRA(), 0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, p in model.network.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.01)
    return model


def logits_of(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.network(input_ids=torch.tensor([ids_of(model, PROMPTS[1])])).logits


@either_tie
@families
def test_an_adapter_is_on_every_linear_layer_but_the_output(family, tied, saved):
    """Each layer's seven linear maps get an adapter, embedding and output layer none, and a new adapter changes no output."""
    model = load(saved(family, tied=tied))
    before = logits_of(model)
    model.attach(LoRA(), 0)
    names = [name for name, module in model.network.named_modules() if hasattr(module, "lora_A")]
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.rsplit(".", 1)[1] for name in names} == linear
    assert len(names) == 2 * len(linear)
    assert torch.equal(logits_of(model), before)
    assert all(".default." in name for name, p in model.network.named_parameters() if p.requires_grad)


@either_tie
@families
def test_folding_puts_every_bit_back(family, tied, saved):
    """Folded logits equal the adapter's up to rounding; afterwards all weights are bitwise restored, and ties remain."""
    model = adapted(saved(family, tied=tied))
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    plain = logits_of(model)
    with model.folded():
        inside = logits_of(model)
    assert torch.allclose(inside, plain, atol=1e-4)
    after = dict(model.network.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits_of(model), plain)
    network = model.network.get_base_model()
    assert (network.lm_head.weight is network.model.embed_tokens.weight) == tied


def test_restored_undoes_changes_of_weights_after_merging_and_unmerging(saved):
    """Merging and unmerging an adapter, as TRL does for vLLM, changes bfloat16 weights; within ``restored`` it does not."""

    def others(within) -> list[str]:
        """The tensors that differ afterwards."""
        model = adapted(saved(QWEN))
        model.network.to(torch.bfloat16)
        before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
        plain = logits_of(model)
        with within(model):
            model.network.merge_adapter()
            model.network.unmerge_adapter()
        changed = [name for name, p in model.network.named_parameters() if not torch.equal(before[name], p)]
        assert torch.equal(logits_of(model), plain) == (not changed)
        return changed

    assert len(others(lambda _: contextlib.nullcontext())) == 2 * 7
    assert others(LanguageModel.restored) == []


@either_tie
@families
def test_a_merged_or_saved_adapter_gives_the_same_logits(family, tied, saved, tmp_path):
    """An adapter merged in place, or saved and merged into a new copy, gives the same logits within 1e-5 of their size."""
    folder = saved(family, tied=tied)
    model = adapted(folder)
    plain, bare = logits_of(model), logits_of(load(folder))
    scale = float(plain.abs().max())
    assert float((plain - bare).abs().max()) > 1e-2 * scale
    model.save_adapter(tmp_path, "base")
    copy = load(folder)
    copy.merge_from(tmp_path)
    model.merge()
    for merged in (model, copy):
        assert float((logits_of(merged) - plain).abs().max()) <= 1e-5 * scale
        assert (merged.network.lm_head.weight is merged.network.model.embed_tokens.weight) == tied
