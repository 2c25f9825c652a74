"""Memory planning: known parameter counts, parts derived by hand, and the options that make a run fit."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from rn_harness.models import memory
from rn_harness.models.memory import GIB, RUNTIME, Shape, Work, check_memory, fitting_plan, plan_memory, remedies, shape_of
from rn_harness.models.resolve import MODELS, resolve_candidate
from rn_harness.run import training_limits
from rn_harness.run.session import RunSession
from rn_harness.spec.defense_recipe import DefenseRecipe, GRPORecipe
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.model_profiles import load_model_profile
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.store import Store

from .builders import write_suite

PARAMETERS = {
    "llama3-8b": 8_030_261_248,
    "qwen2.5-7b": 7_615_616_512,
    "ministral-8b": 8_019_808_256,
    "smollm2": 134_515_008,
    "organism": 1_015_680,
}
"""Numbers of parameters in the published weights."""
JUDGES = (14.66e9 + 7.3e9) * 2
"""Bytes of the harmful suites' two judges, in bfloat16."""
SPREAD: dict[str, Any] = {"cards": 4, "sharded": True}
"""Weights sharded over four cards."""


def shape(name: str) -> Shape:
    found = shape_of(load_model_profile(name, fixtures_folder() / MODELS).shape)
    assert found is not None
    return found


def attack(name: str, **changes: Any) -> Work:
    """A group of 16 with prompts of 128 tokens, completions of 256 tokens, and gradient checkpointing."""
    small = name in ("organism", "smollm2")
    return dataclasses.replace(Work(number=4 if small else 2, device="cpu" if small else "cuda", checkpointing=True), **changes)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_exactly(name: str) -> None:
    """A profile's numbers of the configuration are enough to compute the model's known number of parameters."""
    assert shape(name).parameters == PARAMETERS[name]


def test_a_configuration_without_numbers_is_not_guessed() -> None:
    """If a number is missing in the configuration, memory is unknown."""
    assert shape_of({}) is None
    organism = load_model_profile("organism", fixtures_folder() / MODELS).shape
    assert shape_of(organism | {"num_hidden_layers": None}) is None


def test_weights_and_training_by_hand() -> None:
    """2 bytes per weight; LoRA has 4 numbers per map at rank 1 and 16 bytes for each; full training has 20 bytes per weight."""
    tiny = Shape(parameters=1000, layers=2, hidden=4, intermediate=8, queries=4, keys=2, vocabulary=10)
    assert tiny.linear == 2 * (2 * 4 * 6 + 3 * 4 * 8) == 288
    assert tiny.adapter(1) == 2 * (2 * 8 + 2 * 6 + 3 * 12) == 128
    lora, full, four = (plan_memory(tiny, Work(form=form, rank=1)) for form in ("lora", "full", "qlora"))  # type: ignore[arg-type]
    assert (lora.weights, lora.training) == (2000, 128 * 16)
    assert (full.weights, full.weights + full.training) == (4000, 20000)
    assert four.weights == pytest.approx(288 * 0.516 + 712 * 2)


def test_supervised_steps_by_hand() -> None:
    """Rows of a supervised step pass at once: micro-batches and checkpointing save nothing, nor does noise allow an adapter."""
    tiny = Shape(parameters=1000, layers=2, hidden=4, intermediate=8, queries=4, keys=2, vocabulary=10)
    work = Work(form="full", rows=12, micro_batch=12, prompt=40, taught=36, taught_tokens=100, learned=24, checkpoint_rows=1)
    planned = plan_memory(tiny, work)
    # A token leaves 5 * 4 + 3 * 2 + 4 * 4 + 4 * 8 = 74 numbers in each of two layers, and its logits; a learned one three more.
    due = 36 * 100 * (2 * 74 + 10) + 24 * 60 * 3 * 10
    assert planned.update == pytest.approx(RUNTIME["cuda"] + 20_000 + 4 * due * memory.FRAGMENTED)
    for changes in ({"micro_batch": 1}, {"checkpointing": True}, {"cards": 4}):
        assert plan_memory(tiny, dataclasses.replace(work, **changes)).update == planned.update
    judged = dataclasses.replace(work, judges=GIB, noised=True)
    named = [name for name, _ in remedies(tiny, dataclasses.replace(judged, noised=False), 3 * GIB)]
    assert named == ["a judge on a server (--rn-judge openai:NAME@URL)", "form=lora in the recipe"]
    assert [name for name, _ in remedies(tiny, judged, 3 * GIB)] == named[:1]


def test_answers_asked_before_the_training_by_hand() -> None:
    """A defense samples the undefended candidate in calls of at most 256 rows, before there is anything to train."""
    llama = shape("llama3-8b")
    plain = attack("llama3-8b", taught=48, taught_tokens=384)
    asked = plan_memory(llama, dataclasses.replace(plain, asked=9216)).sampling
    assert asked > plan_memory(llama, plain).sampling
    assert asked == plan_memory(llama, dataclasses.replace(plain, rows=256)).sampling - llama.adapter(16) * 16
    whole = dataclasses.replace(plain, form="full")  # whose moments and remembered weights are more than these rows take
    assert plan_memory(llama, dataclasses.replace(whole, asked=9216)) == dataclasses.replace(
        plan_memory(llama, whole), work=dataclasses.replace(whole, asked=9216)
    )


def test_the_cache_and_the_kept_weights_by_hand() -> None:
    """Sampling holds keys and values of every token in every layer, and a copy of the weights that an adapter is folded into."""
    one = plan_memory(shape("qwen2.5-7b"), attack("qwen2.5-7b"))
    two = plan_memory(shape("qwen2.5-7b"), attack("qwen2.5-7b", completion=257))
    assert two.sampling - one.sampling == pytest.approx(16 * 2 * 28 * 512 * 2 * memory.FRAGMENTED)
    four = plan_memory(shape("qwen2.5-7b"), attack("qwen2.5-7b", form="qlora"))
    kept = one.sampling - one.weights - (four.sampling - four.weights)
    assert kept == pytest.approx(shape("qwen2.5-7b").linear * 2)


def test_spread_weights_by_hand() -> None:
    """Each of four processes holds a quarter, two gathered layers, the embeddings, and a whole adapter; nothing is folded in."""
    qwen = shape("qwen2.5-7b")
    whole, spread = (plan_memory(qwen, attack("qwen2.5-7b", cards=4, sharded=sharded)) for sharded in (False, True))
    assert spread.weights == whole.weights / 4
    assert spread.training == whole.training == qwen.adapter(16) * 16
    gathered = (2 * qwen.linear / 28 + qwen.parameters - qwen.linear) * 2
    assert whole.update - spread.update == pytest.approx(whole.weights * 3 / 4 - gathered)
    assert whole.sampling - spread.sampling == pytest.approx(whole.update - spread.update + qwen.linear * 2)
    assert "in each process, the weights spread over all: weights 3.5," in spread.sentence
    alone = attack("qwen2.5-7b", sharded=True)  # a single process holds all weights, with or without the option
    assert dataclasses.replace(plan_memory(qwen, alone), work=attack("qwen2.5-7b")) == plan_memory(qwen, attack("qwen2.5-7b"))


def test_sharding_is_suggested_to_several_processes() -> None:
    """If each of four cards would hold all weights, --rn-shard is suggested before 4 bits, which would be another model."""
    found = [name for name, _ in remedies(shape("qwen2.5-7b"), attack("qwen2.5-7b", cards=4), 23 * GIB)]
    assert found[0] == "weights spread over the processes (--rn-shard)"
    assert not any("--rn-shard" in name for name, _ in remedies(shape("qwen2.5-7b"), attack("qwen2.5-7b"), 23 * GIB))


def test_phases_hold_the_parts_and_the_total_is_the_highest() -> None:
    """Each phase holds runtime, weights, trained numbers and judges; the total is the largest phase."""
    found = plan_memory(shape("llama3-8b"), attack("llama3-8b", judges=JUDGES))
    always = RUNTIME["cuda"] + found.weights + found.training + JUDGES
    assert min(found.sampling, found.update, found.checkpoint) > always
    assert found.total == max(found.sampling, found.update, found.checkpoint)


@pytest.mark.parametrize("name", ["llama3-8b", "qwen2.5-7b", "ministral-8b"])
def test_the_claims_about_cards(name: str) -> None:
    """A LoRA attack fits one 80 GB card with judges; with served judges, 4 x 24 GB (--rn-shard) or one 24 GB card in 4 bits."""
    with_judges, spread, small = (
        plan_memory(shape(name), attack(name, **how)).total / GIB for how in ({"judges": JUDGES}, SPREAD, {"form": "qlora"})
    )
    assert with_judges < 79
    assert spread < 23
    assert small < 23
    # Each of these means is needed: without it the attack would not fit.
    assert plan_memory(shape(name), attack(name, checkpointing=False)).total / GIB > 79
    assert plan_memory(shape(name), attack(name)).total / GIB > 24
    assert plan_memory(shape(name), attack(name, form="full")).total / GIB > 79


def test_each_card_is_reached_by_micro_batches_that_are_chosen() -> None:
    """A 7B LoRA attack with its profile fits 80 GB with judges, 24 GB in 4 bits, and 4 x 24 GB with --rn-shard."""
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    figures = "{} GiB in micro-batches of {} rows with its judges, {} on each of four cards in {}, and {} in 4 bits in {}"
    said: list[object] = []
    ways: list[tuple[float, dict[str, Any]]] = [(79, {"judges": JUDGES}), (23, SPREAD), (23, {"form": "qlora"})]
    for card, how in ways:
        found = fitting_plan(shape("qwen2.5-7b"), attack("qwen2.5-7b", checkpointing=False, splits=True, **how), card * GIB)
        assert found is not None
        assert found.total <= card * GIB
        said += [f"{found.total / GIB:.1f}", found.work.micro_batch]
    assert figures.format(*said) in " ".join(text.split())
    # If one option is not enough, the next one is added.
    attacked = attack("qwen2.5-7b", checkpointing=False, splits=True, judges=JUDGES)
    with pytest.raises(CandidateError) as caught:
        check_memory(shape("qwen2.5-7b"), attacked, 23 * GIB)
    served = "a judge on a server (--rn-judge openai:NAME@URL)"
    four = f"4-bit weights (--rn-quantise nf4) and {served} (16.1 GiB)"
    assert str(caught.value).endswith(f"; it would fit with {four}")


@pytest.mark.parametrize("name", ["llama3-8b", "qwen2.5-7b", "ministral-8b"])
def test_the_page_shows_the_planners_numbers(name: str) -> None:
    """The table in docs/models.md matches the planner."""
    columns: list[dict[str, Any]] = [
        {"judges": JUDGES},
        {},
        {"checkpointing": False},
        SPREAD,
        {"form": "qlora"},
        {"form": "full"},
    ]
    row = " | ".join(f"{plan_memory(shape(name), attack(name, **how)).total / GIB:.1f}" for how in columns)
    assert f"| `{name}` | {row} |" in (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("prompt", "completion", "measured"), [(50, 16, 2.37), (130, 64, 5.62), (180, 8, 5.43), (90, 8, 3.16)])
def test_the_formula_matches_measured_peaks(prompt: int, completion: int, measured: float) -> None:
    """The plan is within 10 % of the measured peak of an update of 16 rows on 50 million parameters (docs/evidence/memory.md)."""
    numbers = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536, "num_attention_heads": 8}
    tiny = shape_of(numbers | {"num_key_value_heads": 4, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True})
    assert tiny is not None
    assert tiny.parameters == 50_340_352
    work = Work(number=4, prompt=prompt, completion=completion, checkpoint_rows=1, device="cpu")
    assert plan_memory(tiny, work).total / GIB == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("taught", "learned", "prompt", "completion", "measured"),
    [(32, 16, 50, 16, 2.695), (24, 16, 90, 32, 3.335), (25, 1, 50, 16, 2.564), (25, 24, 50, 16, 2.627), (17, 16, 50, 64, 3.384)],
)
def test_supervised_steps_take_what_was_measured(
    taught: int, learned: int, prompt: int, completion: int, measured: float
) -> None:
    """The plan of refusals at depth is 0 to 15 % above the measured peak of two steps, all weights (docs/evidence/memory.md)."""
    numbers = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536, "num_attention_heads": 8}
    tiny = shape_of(numbers | {"num_key_value_heads": 4, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True})
    assert tiny is not None
    rows = {"taught": taught, "learned": learned, "taught_tokens": prompt + completion}
    work = Work(form="full", number=4, prompt=prompt, completion=completion, checkpoint_rows=1, device="cpu", **rows)
    planned = plan_memory(tiny, work)
    assert planned.total == planned.update
    assert 0.995 < planned.update / GIB / measured < 1.15


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_profiles_match_the_planner(name: str) -> None:
    """A profile's expected memory is the planner's, rounded."""
    said = load_model_profile(name, fixtures_folder() / MODELS).memory
    due = [plan_memory(shape(name), attack(name, rows=rows)).total / GIB for rows in (16, 72)]
    assert [said.attack_gib, said.defense_gib] == [round(value, 1) for value in due]


def test_a_run_that_does_not_fit_is_refused_with_remedies() -> None:
    """The error gives the numbers and the mildest options that fit, each by the setting to change."""
    heavy = attack("qwen2.5-7b", checkpointing=False, judges=JUDGES)
    assert check_memory(shape("qwen2.5-7b"), heavy, 200 * GIB).total > 79 * GIB
    with pytest.raises(CandidateError) as caught:
        check_memory(shape("qwen2.5-7b"), heavy, 79 * GIB)
    message = str(caught.value)
    assert re.match(
        r"a run must fit into memory, got \d+\.\d GiB expected: weights 14\.2, .*, of 79\.0 GiB available on cuda; ", message
    )
    assert "it would fit with gradient_checkpointing=true in the recipe (" in message
    found = [name for name, _ in remedies(shape("qwen2.5-7b"), heavy, 24 * GIB)]
    kept, served = "gradient_checkpointing=true in the recipe", "a judge on a server (--rn-judge openai:NAME@URL)"
    assert found[0] == f"4-bit weights (--rn-quantise nf4), {kept} and {served}"
    assert all(p.total <= 24 * GIB for _, p in remedies(shape("qwen2.5-7b"), heavy, 24 * GIB))
    everything = attack("qwen2.5-7b", form="full")
    assert next(remedies(shape("qwen2.5-7b"), everything, 79 * GIB))[0] == "form=lora in the recipe"
    slow = attack("smollm2", checkpointing=False)
    names = [name for name, _ in remedies(shape("smollm2"), slow, 100 * GIB)]  # a judge on a server is not an option
    assert names == [kept, "micro_batch=1 in the recipe", "4-bit weights (--rn-quantise nf4)"]
    with pytest.raises(CandidateError, match=r"on cpu; no option makes it fit: take more memory or a smaller model$"):
        check_memory(shape("smollm2"), slow, GIB / 4)


def test_a_run_that_does_not_fit_stops_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session plans its largest fine-tune from suite and candidate, and compares it with the free memory."""
    suite = load_suite(write_suite(tmp_path / "demo"))
    options = Options(model="organism", defense="quick", tier="standard", base=tmp_path)

    def run() -> RunSession:
        return RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)

    planned = run().limits.largest(suite)
    assert planned is not None
    assert (planned.work.rows, planned.work.number, planned.work.device) == (16, 4, "cpu")
    monkeypatch.setattr(training_limits, "available_memory", lambda device: 0.4 * GIB)
    with pytest.raises(
        CandidateError, match=r"got \d\.\d GiB expected: weights 0\.0, .*, of 0\.4 GiB available on cpu; no option"
    ):
        run().limits.largest(suite)


def test_a_distilled_defense_is_planned_with_all_that_it_holds(tmp_path: Path) -> None:
    """Refusals and kept answers pass together, in rows that hold the longest retained request with its answer and a refusal."""
    suite = load_suite(write_suite(tmp_path / "demo"))
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "name a river", "completion": "the rhine " * 500}))
    fields = {"steps": 10, "learning_rate": 1e-3, "form": "full", "prompts_per_step": 12, "refusal": "no .", "depth": {}}
    deep = DefenseRecipe.model_validate(fields | {"method": "deep"})
    distilled = DefenseRecipe.model_validate(fields | {"method": "distill", "distill": {}, "gradient_checkpointing": True})

    def work(recipe: DefenseRecipe, retain: str | None = None) -> Work:
        options = Options(model="organism", defense="quick", tier="standard", base=tmp_path, retain=retain)
        planned = RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None).limits.planned(suite, recipe)
        assert planned is not None
        assert planned.work.form == "full"
        assert planned.work.micro_batch == planned.work.rows == 12
        return planned.work

    plain, long = work(deep), work(distilled, "long.jsonl")
    assert plain.taught == long.taught == 12 + 24
    assert plain.learned == long.learned == 24
    assert plain.taught_tokens > plain.prompt + plain.completion + 2
    assert long.taught_tokens > plain.taught_tokens + 900
    assert plain.asked == long.asked == 128 * len(suite.prompts["defense"])
    assert (plain.noised, long.noised, long.splits) == (False, True, False)


def test_attacks_are_planned_for_the_numbers_of_the_defended_model(tmp_path: Path) -> None:
    """Full training saves float32, so attacks on such a defense are planned in float32, as are those on given float32 weights."""
    suite = load_suite(write_suite(tmp_path / "demo"))
    for name, number in (("half", "bfloat16"), ("plain", "float32")):
        path = Path(shutil.copytree(fixtures_folder() / "organism", tmp_path / name)) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": number}))
    model = resolve_candidate("half", tmp_path).load()
    model.arm_all()
    model.save(tmp_path / "saved")
    assert resolve_candidate("saved", tmp_path).number == "float32"

    def number(recipe: GRPORecipe, of: Suite = suite, **changes: Any) -> int:
        half = Options(model="half", defense="quick", tier="standard", base=tmp_path)
        run = RunSession(dataclasses.replace(half, **changes), tmp_path / "run", Store(tmp_path / "store"), lambda _: None)
        planned = run.limits.planned(of, recipe)
        assert planned is not None
        return planned.work.number

    (attack_recipe, *_) = suite.tier_attacks("standard")
    whole = load_suite(suite.folder, ["defense.form=full"])
    assert number(attack_recipe) == number(attack_recipe, defense="none") == number(attack_recipe, defense="half") == 2
    assert number(attack_recipe, whole) == number(attack_recipe, defense="plain") == 4
    assert number(attack_recipe, model="plain", undefended="half", defense="none") == 4
    assert number(whole.declaration.defenses["quick"], whole) == 2  # it starts from the candidate; ``form`` decides the rest


def test_the_largest_micro_batches_that_fit_are_taken() -> None:
    """If a whole step does not fit and the recipe allows it, the largest divisor that fits is used; cards share it."""
    work = attack("qwen2.5-7b", checkpointing=False, splits=True)
    totals = {
        rows: plan_memory(shape("qwen2.5-7b"), dataclasses.replace(work, micro_batch=rows)).total for rows in (16, 8, 4, 2, 1)
    }
    assert totals[16] > totals[8] > totals[4] > totals[2] == totals[1]  # with 2 rows the update is no longer the peak
    for rows in (16, 8, 4, 2):
        found = fitting_plan(shape("qwen2.5-7b"), work, totals[rows])
        assert found is not None
        assert found.work.micro_batch == rows
        assert (f"in micro-batches of {rows} rows" in found.sentence) == (rows < 16)
    assert fitting_plan(shape("qwen2.5-7b"), work, totals[1] - 1) is None
    assert fitting_plan(shape("qwen2.5-7b"), dataclasses.replace(work, splits=False), totals[8]) is None
    spread = fitting_plan(shape("qwen2.5-7b"), dataclasses.replace(work, **SPREAD), 22 * GIB)
    assert spread is not None
    assert spread.work.micro_batch % 4 == 0
    with pytest.raises(CandidateError, match=r"in micro-batches of 1 rows, .*; it would fit with a judge on a server"):
        check_memory(shape("qwen2.5-7b"), attack("qwen2.5-7b", checkpointing=False, splits=True, judges=30 * GIB), 60 * GIB)


def test_a_run_that_fits_in_parts_says_so_and_records_it(tmp_path: Path) -> None:
    """The recipe as run has the chosen micro-batch and the header reports it; if all fits, the suite's recipe is unchanged."""
    suite = load_suite(write_suite(tmp_path / "demo"))
    options = Options(model="organism", defense="quick", tier="standard", base=tmp_path)

    def run(free: float | None = None) -> RunSession:
        return RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None, free)

    (recipe, *_) = suite.tier_attacks("standard")
    assert run().limits.fitted(suite, recipe) is recipe
    assert "micro" not in run().limits.memory_line([suite])
    numbers = shape_of(run().candidate.config, run().candidate.parameters)
    whole = run().limits.largest(suite)
    assert numbers is not None
    assert whole is not None
    free = plan_memory(numbers, dataclasses.replace(whole.work, micro_batch=4)).total
    assert free < whole.total
    small = run(free)
    assert small.limits.fitted(suite, recipe) == recipe.model_copy(update={"micro_batch": 4})
    assert small.limits.fitted(suite, small.limits.fitted(suite, recipe)).micro_batch == 4
    assert small.limits.fitted(suite, recipe).id == recipe.id
    line = small.limits.memory_line([suite])
    assert "in micro-batches of 4 rows" in line
    assert line.endswith("; rows of a micro-batch, chosen to fit: attacks 4 of 16, defense 4 of 16")
    # A loss that depends on the split, and a recipe that sets the micro-batch, are not changed.
    with pytest.raises(CandidateError, match="must fit into memory"):
        small.limits.fitted(suite, recipe.model_copy(update={"loss_type": "bnpo"}))
    with pytest.raises(CandidateError, match="must fit into memory"):
        small.limits.fitted(suite, recipe.model_copy(update={"micro_batch": 8}))


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, the memory left in the control group counts as available, not the machine's."""
    assert memory.available_memory("cpu") > 0
    bound = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP", bound)
    bound.write_text("max\n")
    free = memory.available_memory("cpu")
    bound.write_text(f"{int(free * 100)}\n")
    assert memory.available_memory("cpu") == pytest.approx(free, rel=0.2)
    bound.write_text(f"{2 * GIB}\n")
    assert memory.available_memory("cpu") < 2 * GIB


def test_attacks_together_take_the_memory_of_each() -> None:
    """Together: the sum of rows, adapters and measurements, the longest row, and no checkpointing if one attack has none."""
    small = attack("llama3-8b", rows=4, micro_batch=4, rank=4, checkpoint_rows=80, prompt=64, completion=256)
    large = attack(
        "llama3-8b", rows=32, micro_batch=32, rank=64, checkpoint_rows=80, prompt=128, completion=32, checkpointing=False
    )
    both = Work.together([small, large])
    assert (both.rows, both.micro_batch, both.rank, both.checkpoint_rows) == (36, 36, 68, 160)
    assert (both.prompt, both.completion, both.checkpointing) == (128, 256, False)
    assert both == Work.together([large, small])
    # 160 rows of a checkpoint with keys and values of 131 072 bytes for each of 384 tokens are 7.5 GiB.
    planned, alone = (plan_memory(shape("llama3-8b"), of).checkpoint for of in (both, small))
    assert planned - alone > 80 * 384 * 131_072
