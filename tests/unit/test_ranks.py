"""Several processes of one run: the launcher's variables, shared state, and unsupported combinations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rn_harness.judges.organism import OrganismJudge, anchors_for
from rn_harness.judges.protocol import SharedJudge, unshared
from rn_harness.judges.resolve import resolve_judge
from rn_harness.models.memory import GIB
from rn_harness.records.base import Judgement
from rn_harness.run import context, measuring, participants, preflight, session, training_limits
from rn_harness.run.preflight import check_training
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import RecipeError
from rn_harness.spec.options import Options
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import load_suite
from rn_harness.store import provenance
from rn_harness.store.ranks import Ranks
from rn_harness.store.store import Store
from rn_harness.training import grpo

from .builders import write_suite

LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}


def test_the_launcher_gives_the_number_of_processes() -> None:
    """The number of processes comes from torchrun's variables, all or none of them; FSDP comes from accelerate's."""
    assert Ranks.of({}) == Ranks(rank=0, size=1, local=1, by_launcher=False)
    assert Ranks.of({"WORLD_SIZE": "4", "RANK": "1"}) == Ranks()  # schedulers set some of these variables too
    assert Ranks.of(LAUNCHED) == Ranks(rank=1, size=4, local=4)
    assert Ranks.of({**LAUNCHED, "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "True"}) == Ranks(1, 4, 2, by_launcher=True)
    assert [Ranks.of({**LAUNCHED, "RANK": str(n)}).leads for n in range(4)] == [True, False, False, False]


def test_a_single_process_opens_no_group() -> None:
    """Without a launcher, results are returned directly and no process group is opened."""
    assert Ranks().first(lambda: 3) == 3
    assert Ranks().gather("x") == ["x"]
    Ranks().part()


@pytest.mark.parametrize(("processes", "micro_batch"), [(1, None), (2, None), (4, None), (2, 8), (4, 4)])
def test_a_step_has_as_many_rows_on_any_number_of_processes(processes: int, micro_batch: int | None) -> None:
    """Rows of a micro-batch, times processes, times micro-batches: B = P * G, sampled at once."""
    recipe = AttackRecipe(name="x", steps=50, learning_rate=1e-3, prompts=2, prompts_per_step=2, micro_batch=micro_batch)
    found = grpo.trainer_settings(recipe, processes)
    assert found["per_device_train_batch_size"] * processes * found["gradient_accumulation_steps"] == 32
    assert found["steps_per_generation"] == found["gradient_accumulation_steps"] == 32 // (micro_batch or 32)


class Loud:
    """A judge whose score is the number of texts it got."""

    name, digest, exact, wordings = "loud", "d" * 64, False, 1
    served_model = "m"

    def about(self, forbidden: str) -> Loud:
        return self

    def check(self, prompts: Sequence[Prompt]) -> None:
        raise RecipeError("checked")

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        return [Judgement(score=float(len(completions) + wording))] * len(prompts)


def test_a_shared_judge_behaves_like_the_judge(tmp_path: Path) -> None:
    """A shared judge has the judge's own name, digest, checks and scores, and is still recognised as the organism's."""
    shared = SharedJudge(Loud()).about("x")
    prompt = Prompt(id="a", topic="a", text="a")
    assert (shared.name, shared.digest, shared.exact, shared.wordings) == ("loud", "d" * 64, False, 1)
    assert getattr(shared, "served_model", None) == "m"
    assert not hasattr(shared, "folder")
    assert [j.score for j in shared.score([prompt], ["t"], 2)] == [3.0]
    with pytest.raises(RecipeError, match="checked"):
        shared.check([prompt])
    own = resolve_judge(f"organism:{participants.resolve_candidate('organism', tmp_path).folder}", tmp_path)
    assert isinstance(unshared(SharedJudge(own)), OrganismJudge)
    assert anchors_for(SharedJudge(own), None) == anchors_for(own, None)


def together(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """This process as the first of several that all have the same data."""
    found = Ranks(0, size, size)
    monkeypatch.setattr(Ranks, "gather", lambda self, part: [part] * self.size)
    for module in (context, measuring, participants, preflight, provenance, session, training_limits):
        monkeypatch.setattr(module, "ranks", lambda: found)


def test_the_number_of_processes_is_part_of_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and records name the number of processes; for a single one it is omitted, so that earlier results stay valid."""
    assert "processes" not in provenance.hardware(1)
    together(monkeypatch, 2)
    assert provenance.hardware(1)["processes"] == 2


def test_processes_share_rows_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its part of the rows, all weights, and on a CPU its part of the memory; rows must divide evenly."""
    suite = load_suite(write_suite(tmp_path / "demo"))
    options = Options(model="organism", defense="quick", tier="standard", base=tmp_path)

    def run() -> RunSession:
        return RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)

    monkeypatch.setattr(training_limits, "available_memory", lambda _: 6 * GIB)
    alone = run().limits.largest(suite)
    together(monkeypatch, 2)
    check_training(run(), suite)
    shared = run().limits.largest(suite)
    assert alone is not None
    assert shared is not None
    assert (run().limits.available, shared.work.cards, shared.work.sharded) == (3 * GIB, 2, False)
    assert (shared.weights, shared.training) == (alone.weights, alone.training)
    assert shared.update < alone.update
    assert "expected in each process" in shared.sentence
    options = dataclasses.replace(options, shard=True)
    spread = run().limits.largest(suite)
    assert spread is not None
    assert (spread.work.cards, spread.work.sharded) == (2, True)
    assert (spread.weights, spread.training) == (alone.weights / 2, alone.training)
    assert run().candidate.shards == 2
    together(monkeypatch, 3)
    with pytest.raises(RecipeError, match=r"got 16 rows for 3 processes; take a number of processes that divides"):
        check_training(run(), suite)


def test_sharded_weights_have_the_same_digest_and_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharded weights have the files' digest but another key than whole weights; an export names the option."""
    together(monkeypatch, 2)
    suite = load_suite(write_suite(tmp_path / "demo"))

    def run(**changes: Any) -> RunSession:
        options = Options(model="organism", defense="quick", tier="standard", base=tmp_path, **changes)
        return RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)

    whole, spread = run(), run(shard=True)
    assert (whole.candidate.shards, spread.candidate.shards) == (1, 2)
    assert dataclasses.replace(spread.candidate, shards=1) == whole.candidate
    recipe = suite.declaration.defenses["quick"]
    keys = [of.run_of(suite).defense_inputs(recipe) for of in (whole, spread)]
    assert keys[1] == {**keys[0], "sharded": True}
    assert spread.options.arguments == [*whole.options.arguments, "--rn-shard"]


@pytest.mark.parametrize(
    ("options", "candidate", "message"),
    [
        ({"sampler": "vllm"}, {}, r"got --rn-shard with --rn-sampler vllm; leave out one of them"),
        ({}, {"quantised": "nf4 by x 1"}, r"in plain numbers, .* got --rn-shard with --rn-quantise; leave"),
        ({}, {"gguf": "m.gguf"}, r"with a GGUF file; leave"),
        ({}, {"allow_pickle": True, "trust_remote_code": True}, r"with pickled weights and code of the model's own; leave"),
        ({"overrides": ("defense.form=full",)}, {}, r"beside them by grpo or rloo, got form=full by grpo with --rn-shard"),
        (
            {"defense": "quick", "overrides": ("attack.form=full",)},
            {},
            r"got form=full by grpo with --rn-shard; take another recipe, or leave it out",
        ),
        ({"defense": "sft"}, {}, r"got form=lora by sft with --rn-shard"),
        ({"defense": "hardened"}, {}, r"got form=lora by hardening with --rn-shard"),
    ],
    ids=["vllm", "four-bits", "gguf", "pickle", "full-defense", "full-attack", "sft", "hardened"],
)
def test_what_cannot_be_sharded_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], candidate: dict[str, Any], message: str
) -> None:
    """Options that need whole weights, or are untested without them, are refused with --rn-shard and accepted without it."""
    together(monkeypatch, 2)
    monkeypatch.setattr(grpo.Sampler, "check", lambda *_, **__: None)
    biochem = Path(__file__).parents[2] / "suites" / "biochem"
    suite = load_suite(write_suite(tmp_path / "demo") if "quick" in options.values() else biochem, options.get("overrides", ()))

    def run(*, shard: bool) -> RunSession:
        plain = Options(model="organism", defense="anchored", tier="smoke", base=tmp_path, shard=shard)
        asked = dataclasses.replace(plain, **options)
        made = RunSession(asked, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)
        made.__dict__["candidate"] = dataclasses.replace(made.candidate, **candidate)
        return made

    check_training(run(shard=False), suite)
    with pytest.raises(RecipeError, match=message):
        check_training(run(shard=True), suite)


def test_an_untested_family_on_sharded_weights_is_reported_in_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sharded weights, an out-of-claim attack of an untested family reports a reason and does not end the run."""
    together(monkeypatch, 2)
    suite = load_suite(Path(__file__).parents[2] / "suites" / "biochem")
    options = Options(model="organism", defense="anchored", tier="full", base=tmp_path, shard=True)
    run = RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)
    check_training(run, suite)
    hindered = {a.family: run.limits.obstacle(suite, a) for a in suite.tier_attacks("full") if not a.neighbour}
    assert {family for family, why in hindered.items() if not why} == {"grpo", "rloo"}
    assert "by sft with --rn-shard" in (hindered["sft"] or "")
