"""Weights sharded over two processes (FSDP2, gloo on the CPU) give the results of whole weights, adapters included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..tiny_models import LLAMA, QWEN, Family, make_model  # noqa: TID252 - the tests are not a package
from .together import launch

SCRIPT = "two_shards.py"


def results(folder: Path, out: Path, how: str, processes: int, shards: int) -> list[dict[str, Any]]:
    """The measurements of each process."""
    done = launch(SCRIPT, processes, folder, out, shards, how)
    assert done.returncode == 0, done.stderr
    name = f"{how}-{processes}-{shards}"
    return [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in range(processes)]


def adapter(out: Path, name: str) -> np.ndarray:
    with np.load(out / f"{name}.npz") as stored:
        return np.concatenate([stored[of].ravel() for of in sorted(stored)])


@pytest.mark.parametrize(("family", "how"), [pytest.param(QWEN, "float32", marks=pytest.mark.soak), (LLAMA, "bfloat16")])
def test_sharded_weights_give_the_results_of_whole_weights(tmp_path: Path, family: Family, how: str) -> None:
    """A defense and an attack by two processes give bitwise the numbers and adapter file of whole weights.

    Both processes measure the same values. Their training samples differ in length, and neither waits for the other for ever.
    """
    folder = make_model(tmp_path / "model", family, tied=family is QWEN)
    whole, spread = (results(folder, tmp_path, how, 2, shards) for shards in (1, 2))
    assert spread == whole
    assert spread[0] == spread[1]
    assert spread[0]["defense"][-1]["distance"] > 0.1  # the adapter was trained
    assert spread[0]["attack"][0]["answers"] == spread[0]["defended"]["answers"] != spread[0]["undefended"]["answers"]
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / f"{how}-2-2" / file).read_bytes() == (tmp_path / f"{how}-2-1" / file).read_bytes()


def test_two_processes_with_sharded_weights_give_the_results_of_one(tmp_path: Path) -> None:
    """On the same completions, two processes with sharded weights give the adapter and probabilities of one, up to rounding."""
    folder = make_model(tmp_path / "model", QWEN)
    (alone,), together = results(folder, tmp_path, "told", 1, 1), results(folder, tmp_path, "told", 2, 2)
    one, first, second = (adapter(tmp_path, name) for name in ("told-1-1-0", "told-2-2-0", "told-2-2-1"))
    assert np.array_equal(first, second)
    assert alone["undefended"] == together[0]["undefended"]  # before any training
    assert alone["said"] == together[0]["said"] == together[1]["said"]  # although the second process computed other answers
    # AdamW's first steps follow the gradient's sign, which rounding may flip near 0.
    assert np.mean(np.abs(one - first) < 1e-5) > 0.99
    for stage in ("defense", "attack"):
        for measured, of_one in zip(together[0][stage], alone[stage], strict=True):
            assert measured["distance"] == pytest.approx(of_one["distance"], rel=1e-3)
            assert measured["leak"] == pytest.approx(of_one["leak"], rel=1e-3)


def test_processes_that_train_apart_are_seen(tmp_path: Path) -> None:
    """If the processes' adapters differ, measuring is an error, because the score would belong to neither."""
    done = launch(SCRIPT, 2, make_model(tmp_path / "model", QWEN), tmp_path, 2, "apart")
    assert done.returncode != 0
    assert "all processes must hold one adapter, bit by bit, got 2 at step 1" in done.stderr


def test_an_architecture_without_a_plan_is_refused(tmp_path: Path) -> None:
    """An architecture without a sharding plan is refused before any computation, because one pass would gather all weights."""
    done = launch(SCRIPT, 2, make_model(tmp_path / "model", QWEN), tmp_path, 2, "shapeless")
    assert done.returncode != 0
    assert "FSDPQwen2ForCausalLM, of whose 2 layers transformers has no plan; leave out --rn-shard" in done.stderr
