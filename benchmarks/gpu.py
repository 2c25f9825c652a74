"""Cost of an attack on a 7B model on a GPU, and a real claim on SmolLM2.

``python benchmarks/gpu.py [--aligned FOLDER]``; hours on one card. Each part is stored in docs/evidence/gpu.json when it is
finished.

* ``step``: seconds of one GRPO step of a random model in Qwen2.5-7B's shape (LoRA, group 16, prompts of 128 tokens, completions
  of 256), with TRL and with the harness in turn, split into generation, scoring and update, each as a multiple of the card's
  limit; peak memory.
* ``fleet``: seconds of a step of K attacks together, for each K of ``--fleet 1,2,4,8``, divided by those of one, separately for
  sampling and update, with different rewards (undefended) and with equal ones (defended); also in SmolLM2-135M's shape
  (``--shape smollm2-135m``).
* ``smoke``: the smoke tier of suites/biochem on that random model, with a judge in Phi-4's shape on the same card: seconds by
  case (``--smoke``). Random weights neither refuse nor judge, so that only times count.
* ``claim``: suites/baking on an aligned SmolLM2 (made by benchmarks/real_models.py), standard tier, three seeds of the defense.

``--shape tiny`` does the same on any machine, to try the script, with completions of 16.

The card's limits are measured, not taken from its data sheet: the bandwidth by copying, the rate by multiplying matrices.
Sampling a token must read all weights once. The update of an adapter takes 4 operations per weight and token, or 6 with
gradient checkpointing.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rn_harness.judges.anchors import shipped_anchors
from rn_harness.judges.hf import HFJudge
from rn_harness.judges.rubric import WORDINGS
from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.completion import Completion
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.transformers_compat import known_deprecations, quiet_libraries
from rn_harness.records.base import Judgement
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import load_suite
from rn_harness.store.provenance import device, hardware, versions
from rn_harness.training.coroutines import Coroutine
from rn_harness.training.fleet import Fleet
from rn_harness.training.fleet_members import SamplingRequest
from rn_harness.training.grpo import TrainOptions, order_prompts, train
from rn_harness.training.trainer_settings import trainer_settings
from rn_harness.training.trl_compat import saving_trainer

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "gpu.json"
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32_768, "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "phi-4": {
        "vocab_size": 100_352, "hidden_size": 5120, "intermediate_size": 17_920, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 10, "max_position_embeddings": 16_384, "tie_word_embeddings": False,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": False,
    },
}  # fmt: skip
END, PAD = "<end>", "<pad>"
LEARNED = 4096
"""Tokens that a tokenizer learns, at most."""
PROMPT_TOKENS = 128
REQUEST = Prompt(id="p", topic="none", text="a" * PROMPT_TOKENS)
COMPLETION_TOKENS = {"qwen2.5-7b": 256, "smollm2-135m": 256, "tiny": 16}
JUDGE = "RN_TIMED_JUDGE"
"""Environment variable with the folder of the timed judge's model."""
TEMPLATE = "{% for turn in messages %}{{ turn.content }} {% endfor %}"


def make_model(shape: str, folder: Path) -> None:
    """Saves a random model of this shape.

    Its tokenizer has learned from prompts and judges' questions, so that their lengths are like those of real models. Unused
    tokens fill the vocabulary.
    """
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    settings, bytewise = SHAPES[shape], pre_tokenizers.ByteLevel(add_prefix_space=False)
    core, size = Tokenizer(BPE()), settings["vocab_size"]
    core.pre_tokenizer, core.decoder = bytewise, decoders.ByteLevel()
    known = [p.text for of in load_suite(ROOT / "suites" / "biochem").prompts.values() for p in of]
    learned = {"vocab_size": min(size, LEARNED), "special_tokens": [END, PAD], "initial_alphabet": bytewise.alphabet()}
    core.train_from_iterator([*known, *WORDINGS], trainers.BpeTrainer(**learned, show_progress=False))
    of_core = json.loads(core.to_str())["model"]
    vocabulary = of_core["vocab"] | {f"<{i}>": i for i in range(core.get_vocab_size(), size)}
    core.model = BPE(vocabulary, [(first, second) for first, second in of_core["merges"]])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD, chat_template=TEMPLATE)
    config = AutoConfig.for_model("qwen2", eos_token_id=0, pad_token_id=1, dtype="bfloat16", **settings)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def synchronize() -> None:
    """Waits for the card, so that times cover only completed work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def limits() -> dict[str, float]:
    """Bytes per second of a copy (read and write), and operations per second of a bfloat16 matrix product; best of 5."""
    import torch

    on = "cuda" if torch.cuda.is_available() else "cpu"
    n, m = (2**31, 8192) if on == "cuda" else (2**26, 512)
    source = torch.empty(n, dtype=torch.uint8, device=on)
    target = torch.empty_like(source)
    a = torch.randn(m, m, dtype=torch.bfloat16, device=on)

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):  # the first warms up
            synchronize()
            begin = time.perf_counter()
            work()
            synchronize()
            times.append(time.perf_counter() - begin)
        return min(times[1:])

    return {"bytes_per_s": 2 * n / best(lambda: target.copy_(source)), "operations_per_s": 2 * m**3 / best(lambda: a @ a)}


class Clock:
    """Seconds that a training spends in each part of a step, without the first step."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {"generation": [], "scoring": [], "step": []}
        self.begin: float | None = None

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function so that its seconds are recorded."""

        def run(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            begin = time.perf_counter()
            result = work(*args, **kwargs)
            synchronize()
            self.parts[part].append(time.perf_counter() - begin)
            return result

        return run

    def step(self) -> None:
        """Records the end of a step."""
        synchronize()
        now = time.perf_counter()
        if self.begin is not None:
            self.parts["step"].append(now - self.begin)
        self.begin = now

    def medians(self) -> dict[str, float]:
        """Median of each part; the update is the rest of a step."""
        of = {part: statistics.median(times[1:] or times) for part, times in self.parts.items()}
        return {**of, "update": of["step"] - of["generation"] - of["scoring"]}


def train_once(way: str, folder: Path, recipe: AttackRecipe) -> dict[str, Any]:
    """Trains for the recipe's steps; ``way``: ``trl``, ``trl+vllm`` or ``ours``."""
    import datasets
    import torch
    import transformers
    import trl

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    model = load_model(folder, Loading(threads=torch.get_num_threads()))
    model.arm(recipe)
    parent: Any = saving_trainer(model, lambda _: False) if way == "ours" else trl.GRPOTrainer

    class Timed(parent):  # type: ignore[misc]
        """A trainer that times generation."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            return clock.timed("generation", super()._generate_single_turn)(*args, **kwargs)

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        """Reports each step to the clock."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    prompts = order_prompts([REQUEST], recipe.steps * recipe.prompts_per_step, recipe.seed)
    chat, ours = [{"role": "user", "content": REQUEST.text}], model.render(REQUEST)
    if (got := len(model.prompt_ids(REQUEST))) < PROMPT_TOKENS:
        raise ValueError(f"a prompt must have at least {PROMPT_TOKENS} tokens, got {got}: the tokenizer was read as another one")
    rows = [{"prompt": ours, "row": row} if way == "ours" else {"prompt": chat} for row, _ in enumerate(prompts)]
    with tempfile.TemporaryDirectory() as nowhere, known_deprecations():
        trainer = Timed(
            model=model.network,
            reward_funcs=clock.timed("scoring", lambda completions, **_: [float(i) for i in range(len(completions))]),
            args=trl.GRPOConfig(
                output_dir=nowhere,
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
                use_vllm=way == "trl+vllm",
                vllm_mode="colocate",
                vllm_gpu_memory_utilization=0.3,
                **trainer_settings(recipe),
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=model.tokenizer,
            callbacks=[Steps()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"way": way, "seconds": clock.medians(), "peak_gib": peak}


def measure_step(shape: str, repeats: int, steps: int) -> dict[str, Any]:
    """Measures all ways in turn, with their multiples of the card's limit."""
    import torch

    recipe = AttackRecipe(
        name="gpu",
        steps=steps,
        control_steps=1,
        learning_rate=1e-4,
        prompts=1,
        max_completion_tokens=COMPLETION_TOKENS[shape],
        gradient_checkpointing=shape != "tiny",
    )
    ways = ["trl", "ours", *(["trl+vllm"] if importlib.util.find_spec("vllm") else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        make_model(shape, folder)
        config = json.loads((folder / "config.json").read_text())
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        runs = [train_once(way, folder, recipe) for _ in range(repeats) for way in ways]
    measured = limits()
    tokens = recipe.group_size * recipe.prompts_per_step * (PROMPT_TOKENS + COMPLETION_TOKENS[shape])
    operations = (6 if recipe.gradient_checkpointing else 4) * (weights / 2) * tokens
    least = {
        "generation": COMPLETION_TOKENS[shape] * weights / (measured["bytes_per_s"] / 2),  # one read; a copy reads and writes
        "update": operations / measured["operations_per_s"],
    }
    told = {}
    for way in ways:
        of = [run["seconds"] for run in runs if run["way"] == way]
        medians = {part: statistics.median(r[part] for r in of) for part in of[0]}
        told[way] = {
            "seconds": medians,
            "of_limit": {part: medians[part] / least[part] for part in least} | {"step": medians["step"] / sum(least.values())},
            "of_trl": medians["step"] / statistics.median(r["seconds"]["step"] for r in runs if r["way"] == "trl"),
            "peak_gib": max((r["peak_gib"] or 0.0) for r in runs if r["way"] == way) or None,
        }
        print(way, json.dumps(told[way]), flush=True)
    return {
        "shape": shape,
        "layers": config["num_hidden_layers"],
        "weight_bytes": weights,
        "limits": measured,
        "least_seconds": least,
        "steps": steps,
        "repeats": repeats,
        "ways": told,
        "runs": runs,
        "torch_device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


class TimedFleet(Fleet):
    """A fleet that times its joint work.

    Attributes:
        seconds: seconds of each sampling and of each forward and backward pass.
    """

    def __init__(self, model: LanguageModel, threads: int) -> None:
        super().__init__(model, threads)
        self.seconds: dict[str, list[float]] = {"sampling": [], "update": []}

    def _serve(self, waiting: Sequence[Coroutine]) -> list[Coroutine]:
        synchronize()
        begin = time.perf_counter()
        served = super()._serve(waiting)
        synchronize()
        part = "sampling" if isinstance(served[0].request, SamplingRequest) else "update"
        self.seconds[part].append(time.perf_counter() - begin)
        return served


def run_fleet(folder: Path, recipe: AttackRecipe, size: int, *, spread: bool) -> dict[str, float]:
    """Seconds per step of a fleet of this size: whole step, sampling and passes, without the first step."""
    import torch

    prompts = [REQUEST] * (recipe.steps * recipe.prompts_per_step)
    fleet = TimedFleet(load_model(folder, Loading(threads=torch.get_num_threads())), torch.get_num_threads())
    ticks: list[float] = []
    marks: list[dict[str, int]] = []

    def tick(_: int) -> None:
        synchronize()
        ticks.append(time.perf_counter())
        marks.append({part: len(times) for part, times in fleet.seconds.items()})

    def task(number: int) -> Callable[[LanguageModel], dict[str, Any]]:
        of = recipe.model_copy(update={"seed": number})

        def reward(_: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
            return [float(i) if spread else 0.0 for i in range(len(completions))]

        def run(member: LanguageModel) -> dict[str, Any]:
            member.arm(of)
            last = tick if number == size - 1 else lambda _: None
            return train(member, of, prompts, reward, lambda *_: None, lambda _: False, TrainOptions(tick=last))

        return run

    for of in fleet.run([task(number) for number in range(size)]):
        if isinstance(of, Exception):
            raise of
    steps = len(ticks) - 1
    parts = {part: sum(times[marks[0][part] : marks[-1][part]]) / steps for part, times in fleet.seconds.items()}
    return {"step": (ticks[-1] - ticks[0]) / steps, **parts}


def measure_fleet(shape: str, sizes: Sequence[int], repeats: int, steps: int) -> dict[str, Any]:
    """Measures each size in turn on the same weights: medians, and multiples of a single attack."""
    recipe = AttackRecipe(
        name="gpu", steps=steps, control_steps=1, learning_rate=1e-4, prompts=1, max_completion_tokens=COMPLETION_TOKENS[shape],
        gradient_checkpointing=shape == "qwen2.5-7b",
    )  # fmt: skip
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        make_model(shape, folder)
        for repeat in range(repeats):
            for size in sizes if repeat % 2 == 0 else sizes[::-1]:
                for spread in (True, False):
                    runs.append({"size": size, "spread": spread, "seconds": run_fleet(folder, recipe, size, spread=spread)})
                    print("fleet", json.dumps(runs[-1]), flush=True)
    told = {}
    for spread in (True, False):
        medians = {
            size: {
                part: statistics.median(r["seconds"][part] for r in runs if r["size"] == size and r["spread"] == spread)
                for part in ("step", "sampling", "update")
            }
            for size in sizes
        }
        one = medians[min(sizes)]
        told["spread" if spread else "no spread"] = {
            str(size): {"seconds": of, "of_one": {part: of[part] / one[part] if one[part] else None for part in of}}
            for size, of in medians.items()
        }
    return {"shape": shape, "steps": steps, "repeats": repeats, "sizes": list(sizes), "told": told, "runs": runs}


class TimedJudge:
    """A judge that takes the time of the language model in ``JUDGE``.

    Its scores are hashes of the completions, and mean nothing. It knows the anchors, since no case begins with an uncertified
    judge.
    """

    def __init__(self) -> None:
        self._model = HFJudge(os.environ[JUDGE])
        self._known = {anchor.completion: (anchor.low + anchor.high) / 2 for anchor in shipped_anchors().anchors}

    def about(self, forbidden: str) -> TimedJudge:
        """The same judge for this forbidden subject."""
        told = copy.copy(self)
        told._model = self._model.about(forbidden)  # noqa: SLF001 - a copy of ours
        return told

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Asks the model, and scores by hashes."""
        self._model.score(prompts, completions, wording)
        hashed = [float(hashlib.sha256(text.encode()).digest()[0] % 11) for text in completions]
        return [Judgement(score=self._known.get(text, score)) for text, score in zip(completions, hashed, strict=True)]


def measure_smoke(shape: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Runs the smoke tier with a random model and a random judge, and returns the seconds of its cases."""
    with tempfile.TemporaryDirectory() as name:
        model, judge, run = (Path(name, of) for of in ("model", "judge", "run"))
        make_model(shape, model)
        make_model("tiny" if shape == "tiny" else "phi-4", judge)
        own = {JUDGE: str(judge), "PYTHONPATH": str(ROOT / "benchmarks"), "RN_HARNESS_CACHE": f"{name}/store"}
        command = [sys.executable, "-m", "pytest", "suites/biochem", f"--model={model}", f"--rn-run={run}", "--rn-tier=smoke"]
        command += ["--rn-judge=python:gpu:TimedJudge", "--rn-reward-judge=python:gpu:TimedJudge", "--rn-second-judge=none"]
        command += ["--rn-defense=anchored", *(f"--rn-set={of}" for of in overrides)]
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=os.environ | own, check=False)
        seconds = time.perf_counter() - begin
        records = [json.loads(path.read_text(encoding="utf-8")) for path in run.glob("cases/*/record.json")]
    cases = {record["case_id"]: {"seconds": record["wall_s"], "outcome": record["verdict"]["outcome"]} for record in records}
    return {"shape": shape, "overrides": [*overrides], "exit": done.returncode, "seconds": seconds, "cases": cases}


def measure_claim(aligned: Path, seeds: int) -> list[dict[str, Any]]:
    """Runs the standard tier of suites/baking on the aligned SmolLM2, for each seed of the defense."""
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            command = [sys.executable, "-m", "pytest", "suites/baking", f"--model={aligned}", f"--rn-run={name}/run"]
            begin = time.perf_counter()
            done = subprocess.run([*command, f"--rn-set=defense.seed={seed}"], cwd=ROOT, env={**os.environ}, check=False)
            run = json.loads(Path(name, "run", "run.json").read_text(encoding="utf-8"))
        found.append(
            {
                "seed": seed,
                "exit": done.returncode,
                "outcome": run["outcome"],
                "cases": {case["case_id"]: case["outcome"] for case in run["cases"]},
                "seconds": time.perf_counter() - begin,
            }
        )
        print("claim", json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    """Measures the requested parts, and writes them with the card's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-7b")
    parser.add_argument("--steps", type=int, default=6, help="of each training; the first is left out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fleet", default="", help="sizes of fleets, e.g. 1,2,4,8; without it none is measured")
    parser.add_argument("--smoke", action="store_true", help="a whole smoke tier, with a judge beside the model")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes of that tier's suite")
    parser.add_argument("--aligned", type=Path, default=None, help="aligned SmolLM2, for the claim; without it only the step")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    quiet_libraries()
    if arguments.shape != "tiny" and device() == "cpu":
        sys.exit("a model of this shape needs a GPU, got none; try the script with --shape tiny")
    told: dict[str, Any] = {"device": device(), "hardware": hardware(1), "versions": versions()}
    told["step"] = measure_step(arguments.shape, arguments.repeats, arguments.steps)
    arguments.out.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if arguments.fleet:
        sizes = [int(size) for size in arguments.fleet.split(",")]
        told["fleet"] = measure_fleet(arguments.shape, sizes, arguments.repeats, arguments.steps)
        arguments.out.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if arguments.smoke:
        told["smoke"] = measure_smoke(arguments.shape, arguments.set)
        arguments.out.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if arguments.aligned:
        told["claim"] = measure_claim(arguments.aligned, arguments.seeds)
        arguments.out.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
