"""How much memory a run takes, before anything is loaded: arithmetic on a configuration's numbers.

The formulas are in docs/evidence/memory.md, with measurements. Bytes throughout; GiB are 2**30 bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rn_harness.spec.errors import CandidateError

Form = Literal["lora", "full", "qlora"]
GIB = 2**30
ROWS_AT_ONCE = 256
"""Rows of one sampling call, at most; bounds the memory of the key-value cache."""
QUANTISED = 0.516
"""Bytes of a 4-bit number with its share of the doubly quantised constants (arXiv 2305.14314: 0.127 bits)."""
TRAINED = 16
"""Bytes of a trained number: itself, its gradient and AdamW's two moments, each in float32."""
REMEMBERED = 4
"""Bytes of a number more if all weights are trained: its value before the training is kept."""
SIMULATED = 16
"""Bytes of a number that simulated attackers train: its value by them, kept aside, a second gradient, two moments."""
RUNTIME = {"cpu": 0.7 * GIB, "cuda": 1.0 * GIB}
"""Memory of the libraries before anything is loaded."""
FRAGMENTED = 1.1
"""Activations over what they would take without gaps."""
TILE = (4096, 32_768)
"""Tokens and words of the float32 tiles in which TRL 1.16 computes logits; they never stand in memory whole."""
TILES = {"cpu": 9, "cuda": 4}
"""Tiles at the peak of an update: measured on a CPU, an upper estimate for a card, where one kernel does most of the work."""
LEARNED = 3
"""Copies of learned answers' float32 logits at the peak of a supervised step, which computes no tiles; measured on a CPU."""
CGROUP = Path("/sys/fs/cgroup/memory.max")
"""A container's own bound, which the system's figure does not know."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's numbers: parameters, L layers, widths H and F, vocabulary V.

    ``queries`` and ``keys`` are the widths of all query heads together and of all key heads.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int

    @property
    def linear(self) -> int:
        """Parameters of the layers' linear maps, which adapters are put on and 4 bits are for."""
        return self.layers * self.hidden * (2 * (self.queries + self.keys) + 3 * self.intermediate)

    def adapter(self, rank: int) -> int:
        """Parameters of an adapter of this rank on all linear maps."""
        attention = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


def shape_of(config: Mapping[str, Any], parameters: int | None = None) -> Shape | None:
    """The shape that a config.json declares; None where it does not name the numbers, whose memory then is not known.

    Without ``parameters`` from the weights' headers they are counted from the configuration, as for a Llama, Qwen2 or Mistral.
    """
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    values = [config.get(name) for name in names]
    if not all(isinstance(value, int) and value > 0 for value in values):
        return None
    layers, hidden, intermediate, heads, vocabulary = (int(value) for value in values if value)
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    shape = Shape(parameters or 0, layers, hidden, intermediate, queries, keys, vocabulary)
    if parameters is not None:
        return shape
    tables = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    biased = config.get("attention_bias") or config.get("model_type") == "qwen2"
    biases = layers * (queries + 2 * keys) if biased else 0
    return dataclasses.replace(shape, parameters=shape.linear + tables + (2 * layers + 1) * hidden + biases)


@dataclass(frozen=True, slots=True)
class Work:
    """A training on a model.

    Attributes:
        form: an adapter, all weights, or an adapter on 4-bit weights is trained.
        number: bytes of a number of the weights, 4 or 2.
        rows: completions that one step samples together, B.
        prompt, completion: tokens of each, at most.
        micro_batch: rows of one forward and backward pass, on all cards together.
        splits: a micro-batch may have fewer rows if so many do not fit.
        checkpointing: activations are computed again in the backward pass.
        checkpoint_rows: completions that a measurement samples together.
        whole, whole_rows: most tokens of a cut completion that is continued, and the rows of one such call.
        taught, taught_tokens: rows of a supervised step, which pass at once, and tokens of such a row, at most; 0: plain RL.
        learned: those of these rows whose whole answers are learned.
        asked: completions of the candidate that are sampled for a defense before it is trained.
        noised: the recipe adds noise to the weights, so that an adapter is no remedy.
        simulated: attackers are simulated, with another optimizer and a copy of the weights.
        judges: bytes of the judges' weights in the same memory.
        sampler: bytes of a separate sampler with a copy of the weights; 0: the model samples itself.
        cards: that share the rows.
        sharded: each card has a part of the weights (FSDP2); else all of them (DDP).
    """

    form: Form = "lora"
    number: int = 2
    rows: int = 16
    prompt: int = 128
    completion: int = 256
    micro_batch: int = 16
    splits: bool = False
    checkpointing: bool = False
    rank: int = 16
    checkpoint_rows: int = 80
    whole: int = 0
    whole_rows: int = 32
    taught: int = 0
    taught_tokens: int = 0
    learned: int = 0
    asked: int = 0
    noised: bool = False
    simulated: bool = False
    judges: float = 0.0
    sampler: float = 0.0
    cards: int = 1
    sharded: bool = False
    device: Literal["cpu", "cuda"] = "cuda"

    @property
    def spread(self) -> bool:
        """True if each process has a part of the weights; adapters, their gradients and moments are whole in each."""
        return self.sharded and self.cards > 1

    @classmethod
    def together(cls, attacks: Sequence[Work]) -> Work:
        """Attacks on one model together: rows of all in one pass, an adapter for each, room for the longest in each row."""
        summed = ("rows", "micro_batch", "rank", "checkpoint_rows", "whole_rows")
        changed: dict[str, Any] = {name: sum(getattr(one, name) for one in attacks) for name in summed}
        changed |= {name: max(getattr(one, name) for one in attacks) for name in ("prompt", "completion", "whole")}
        return dataclasses.replace(attacks[0], splits=False, checkpointing=all(one.checkpointing for one in attacks), **changed)


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory of a run, in bytes, on each card.

    Attributes:
        work: the training.
        weights, training: of the candidate; the trained numbers with their gradients and moments.
        sampling, update, checkpoint: the peak of each phase, all of the above included.
    """

    work: Work
    weights: float
    training: float
    sampling: float
    update: float
    checkpoint: float

    @property
    def total(self) -> float:
        """The highest of the phases."""
        return max(self.sampling, self.update, self.checkpoint)

    @property
    def sentence(self) -> str:
        """For a header."""
        each = " in each process" if self.work.cards > 1 else ""
        each += ", the weights spread over all" if self.work.spread else ""
        beside = f", vLLM {self.work.sampler / GIB:.1f}" if self.work.sampler else ""
        rows = f" in micro-batches of {self.work.micro_batch} rows" if self.work.micro_batch < self.work.rows else ""
        return (
            f"{self.total / GIB:.1f} GiB expected{each}: weights {self.weights / GIB:.1f}, trained {self.training / GIB:.1f}, "
            f"judges {self.work.judges / GIB:.1f}{beside}; peak of sampling {self.sampling / GIB:.1f}, "
            f"update {self.update / GIB:.1f}{rows}, checkpoint {self.checkpoint / GIB:.1f}"
        )


def plan_memory(shape: Shape, work: Work) -> Plan:
    """The memory that a training on a model takes."""
    number = 4 if work.form == "full" else work.number
    tables = shape.parameters - shape.linear
    weights = (shape.linear * QUANTISED if work.form == "qlora" else shape.linear * number) + tables * number
    whole = shape.parameters * (TRAINED - number + REMEMBERED)
    training = whole if work.form == "full" else shape.adapter(work.rank) * TRAINED
    training += shape.parameters * SIMULATED if work.simulated else 0
    # An adapter is folded into plain weights while it samples, and the weights are kept to be put back; but into no shards.
    kept = shape.linear * number if work.form == "lora" and not work.spread else 0
    share = 1 / work.cards if work.spread else 1
    gathered = (2 * shape.linear / shape.layers + tables) * number if work.spread else 0
    always = RUNTIME[work.device] + weights * share + training + gathered + work.judges + work.sampler

    def generating(rows: int, completion: int = work.completion) -> float:
        rows = -(-rows // work.cards)
        cache = rows * (work.prompt + completion) * 2 * shape.layers * shape.keys * number
        prefill = rows * work.prompt * (6 * shape.hidden + 3 * shape.intermediate) * number
        return (cache + prefill + 2 * rows * shape.vocabulary * 4) * FRAGMENTED + kept

    # One token leaves in one layer: queries, keys and values, rotated, spread over their groups, and attention's output;
    # residuals and norms; gate, up, activated, product. Norms and the adapter's inputs are in float32.
    saved = (5 * shape.queries + 3 * shape.keys + 4 * shape.hidden + 4 * shape.intermediate) * number
    if number < 4:
        saved += 4 * (7 * shape.hidden + shape.queries + shape.intermediate)

    def reinforcing() -> float:
        rows = -(-min(work.micro_batch, work.rows) // work.cards)
        tokens = rows * (work.prompt + work.completion)
        inputs = shape.layers * tokens * shape.hidden * number
        activations = inputs + 2 * tokens * saved if work.checkpointing else shape.layers * tokens * saved
        scored = tokens if work.device == "cpu" else rows * work.completion  # on a card the prompt's positions are left out
        return activations + min(scored, TILE[0]) * min(shape.vocabulary, TILE[1]) * 4 * TILES[work.device]

    def teaching() -> float:
        tokens, learned = work.taught * work.taught_tokens, work.learned * (work.taught_tokens - work.prompt)
        return tokens * shape.layers * saved + (tokens + LEARNED * learned) * shape.vocabulary * 4

    measured = min(work.checkpoint_rows, ROWS_AT_ONCE)
    return Plan(
        work=work,
        weights=weights * share,
        training=training,
        sampling=max(always + generating(work.rows), always - training + generating(min(work.asked, ROWS_AT_ONCE))),
        update=always + max(reinforcing() if work.simulated or not work.taught else 0.0, teaching()) * FRAGMENTED,
        checkpoint=always + max(generating(measured), generating(min(work.whole_rows, measured), work.whole)),
    )


def fitting_plan(shape: Shape, work: Work, available: float) -> Plan | None:
    """The plan of a training that fits into ``available`` bytes on each card, or None.

    A micro-batch that does not fit is split, if it may be, into the largest ones that do.
    """
    fewer = (rows for rows in range(work.micro_batch - 1, 0, -1) if work.rows % rows == 0 and rows % work.cards == 0)
    for rows in (work.micro_batch, *(fewer if work.splits else ())):
        planned = plan_memory(shape, dataclasses.replace(work, micro_batch=rows))
        if planned.total <= available:
            return planned
    return None


def remedies(shape: Shape, work: Work, available: float) -> Iterator[tuple[str, Plan]]:
    """Options under which a training fits into ``available`` bytes, the mildest first, each with its plan."""
    changes: dict[str, dict[str, Any]] = {
        "gradient_checkpointing=true in the recipe": {"checkpointing": True},
        "micro_batch=1 in the recipe": {"micro_batch": 1},
        "a judge on a server (--rn-judge openai:NAME@URL)": {"judges": 0.0},
        "form=lora in the recipe": {"form": "lora"},
        "4-bit weights (--rn-quantise nf4)": {"form": "qlora", "sharded": False},
        "weights spread over the processes (--rn-shard)": {"sharded": True},
    }
    kept, single, served, lora, four, spread = changes
    options: list[tuple[str, ...]] = [(kept,), (single,), (served,), (kept, served)]
    if work.simulated or work.noised:  # which train all weights, whatever the form says
        pass
    elif work.form == "full":
        options += [(lora,), (lora, kept, served)]
    else:
        options += [(spread,), (spread, kept), (spread, served), (spread, kept, served)] if work.cards > 1 else []
        options += [(four,), (four, kept), (four, served), (four, kept, served), (four, kept, served, single)]
    fitting: list[set[str]] = []
    idle = (kept, single) if work.taught and not work.simulated else ()  # supervised steps pass their rows whole
    for option in options:
        # A setting that is on already does not help, and options that include a fitting one are needless.
        useful = (name for name in option if name not in idle)
        needed = [name for name in useful if any(getattr(work, key) != to for key, to in changes[name].items())]
        if not needed or (work.splits and single in needed) or any(found <= set(needed) for found in fitting):
            continue
        merged = {key: to for name in needed for key, to in changes[name].items()}
        if changed := fitting_plan(shape, dataclasses.replace(work, **merged), available):
            fitting.append(set(needed))
            yield f"{', '.join(needed[:-1])} and {needed[-1]}".removeprefix(" and "), changed


def check_memory(shape: Shape, work: Work, available: float) -> Plan:
    """See ``fitting_plan``; raises CandidateError if no plan fits, with the numbers, and the options that would fit."""
    if found := fitting_plan(shape, work, available):
        return found
    planned = plan_memory(shape, dataclasses.replace(work, micro_batch=work.cards) if work.splits else work)
    fitting = [f"{name} ({p.total / GIB:.1f} GiB)" for name, p in remedies(shape, work, available)][:3]
    remedy = f"it would fit with {', or with '.join(fitting)}" if fitting else ""
    raise CandidateError(
        f"a run must fit into memory, got {planned.sentence}, of {available / GIB:.1f} GiB available on {work.device}; "
        + (remedy or "no option makes it fit: take more memory or a smaller model")
    )


def card_memory() -> float:
    """Bytes of the current card, free or not."""
    import torch

    return float(torch.cuda.mem_get_info()[1])


def available_memory(device: Literal["cpu", "cuda"]) -> float:
    """Bytes that are free now: of the system within this process's control group, or of the current card."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    import psutil

    free = float(psutil.virtual_memory().available)
    bound = CGROUP.read_text(encoding="ascii").strip() if CGROUP.is_file() else "max"
    return free if bound == "max" else min(free, float(bound) - psutil.Process().memory_info().rss)
