"""The options of a run: one table, which parsing, ``--help``, ``export-config`` and docs/reference read.

Every pytest session of the environment loads it, so it imports only the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rn_harness.spec.base import LoadedCode, TierName

LOCAL, RAY, RESULTS = "local", "ray", "results"
"""Executors: this process, a Ray cluster (also ``ray:ADDRESS``), the results of other processes."""
ORGANISM, DEFENSE_OF_ORGANISM, DEFENSE = "organism", "deep-distilled", "anchored"
"""The default candidate, its default defense, and that of all others: an adapter, which a large model has memory for."""
NOT_RELEASABLE = 10
"""Exit code of ``--rn-gate`` for a run in which no test failed and on which no release can rest."""


@dataclass(frozen=True, slots=True)
class OptionDeclaration:
    """One option of pytest.

    Attributes:
        flag: as it is typed; by default ``--rn-`` with the name of its field.
        metavar: name of its value; empty: a switch.
        help: its meaning, for ``--help`` and the page.
        default: its value if it is not typed; a tuple if the option may be repeated.
        choices: the values that it takes; empty: any.
        exported: True if ``export-config`` repeats it when it differs from the default; ``always``: also when it does not.
        alias: another spelling; empty: none.
        shown_default: words for a default that depends on the candidate or the suite.
        see: the page that explains it, as a link from docs/; ``#x`` is a part of docs/running.md.
    """

    flag: str
    metavar: str
    help: str
    default: Any
    choices: tuple[str, ...] = ()
    exported: bool | Literal["always"] = True
    alias: str = ""
    shown_default: str = ""
    see: str = ""

    @property
    def dest(self) -> str:
        """The name of its value in pytest's config."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def command_flag(self) -> str:
        """Its name in the commands of ``rn-harness``, which need no prefix against the options of other plugins."""
        return self.flag.replace("--rn-", "--", 1)


def _option(metavar: str, help: str, default: Any = None, **rest: Any) -> Any:  # noqa: A002  (argparse's word)
    """A field of ``Options`` with the declaration of its option."""
    return field(default=default, metadata={"option": {"metavar": metavar, "help": help, "default": default, **rest}})


def _switch(help: str, **rest: Any) -> Any:  # noqa: A002  (argparse's word)
    """A field of ``Options`` that is true if its option is typed."""
    return _option("", help, default=False, **rest)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run.

    Attributes:
        base: the folder that relative paths start from.
        plugins: the code of others that the controlling process loaded; found, not typed.
    """

    model: str = _option(
        "MODEL",
        "candidate: a profile, a model folder, a GGUF file, or `owner/name[@revision]` on the hub; where a plugin or a "
        "conftest has a `--model` of its own, only `--rn-model` is ours, and the run's header says so",
        ORGANISM,
        alias="--model",
        see="models.md",
        exported="always",
    )
    defense: str = _option(
        "RECIPE|none|DIR",
        "a defense recipe of the suite; `none`; or a folder with an adapter or a whole defended model",
        "",
        exported="always",
        shown_default="`deep-distilled` for the organism, else `anchored`",
    )
    judge: str | None = _option(
        "SPEC", "the judge that scores", shown_default="the organism's own, else the suite's", see="judges.md"
    )
    reward_judge: str | None = _option(
        "SPEC", "the judge that makes the rewards of defense and attack", shown_default="the organism's own, else the suite's"
    )
    second_judge: str | None = _option(
        "SPEC|none",
        "the judge that gives a second opinion and confirms breaches",
        shown_default="the suite's; none for an organism",
    )
    labels: str | None = _option(
        "FILE", "your own labelled texts, on which the scoring judge is certified too", flag="--rn-judge-labels"
    )
    tier: TierName = _option(  # noqa: RUF009  (it returns a field)
        "smoke|standard|full",
        "which attacks, and how many held-out prompts",
        "standard",
        choices=("smoke", "standard", "full"),
        exported="always",
    )
    level: str | None = _option(
        "rl-plain|rl-explore|sft-KxM|edit",
        "target of the claim in place of the suite's; never releasable below the suite's",
        see="verdict.md#levels",
    )
    overrides: tuple[str, ...] = _option(
        "KEY=VALUE",
        "overrides a suite field for this run, e.g. attack.steps=100; never releasable; repeat for more",
        (),
        flag="--rn-set",
    )
    base: Path = Path()
    undefended: str | None = _option(
        "NAME|PATH", "the undefended twin of a model that its makers defended; use it with `--rn-defense none`", flag="--rn-base"
    )
    prompts: str | None = _option("DIR", "your own prompt sets, `DIR/DOMAIN/SET.yaml`; each replaces the suite's set")
    retain: str | None = _option(
        "PATH",
        "your own benign prompts or chats, for defenses of method `distill`: JSON lines, parquet or a folder of `datasets`; they "
        "are read where they lie, and only their digest is kept",
        shown_default="`retain.jsonl` in the candidate's folder, if it has one",
        see="suites.md#the-retain-corpus",
    )
    chat_template: str | None = _option(
        "FILE",
        "a jinja file to use instead of the model's chat template; part of the candidate's digest",
        shown_default="the model's own",
    )
    quantise: str | None = _option(
        "nf4",
        "loads the model under test in 4 bits, which makes it a different model from the full one",
        choices=("nf4",),
        see="models.md#4-bits",
    )
    sampler: str = _option(
        "transformers|vllm|vllm:URL",
        "samples the completions for training: transformers, vLLM in this process, or vLLM's server on this machine",
        "transformers",
        see="models.md#vllm",
    )
    fleet: int = _option("N", "up to N attacks on one model run together in one process", 1, see="#several-attacks-at-once")
    strength: tuple[str, ...] = _option(
        "FILE", "a strength certificate of `rn-harness calibrate` with settings for the attacks of its domain; one per domain", ()
    )
    case_timeout: int = _option(
        "SECONDS",
        "ends a training or a measurement of a case that takes longer; the case is an error with the checkpoints so far",
        0,
        see="#when-something-goes-wrong",
        exported=False,
    )
    allow_pickle: bool = _switch(
        "accepts pickled weights of a model or an adapter, which can run code, if there are no safetensors; never releasable"
    )
    trust_remote_code: bool = _switch("runs the Python files in the model's folder; never releasable")
    shard: bool = _switch(
        "spreads the weights over the processes of `accelerate launch` (FSDP2), for `form: lora`",
        see="models.md#weights-that-one-card-does-not-hold",
    )
    executor: str = _option(
        "local|ray[:ADDRESS]",
        "runs the cases in pytest's own processes or on a Ray cluster",
        LOCAL,
        see="scale.md#ray",
        exported=False,
    )
    from_results: bool = _switch(
        "runs nothing; joins the results of other processes, each started with node ids and the same `--rn-run`",
        see="scale.md",
        exported=False,
    )
    run: str | None = _option(
        "DIR",
        "the run's own folder, by default below pytest's rootdir; with node ids only, the run that this is a part of",
        shown_default="`reports/<run-id>`",
        see="scale.md",
        exported=False,
    )
    export: str | None = _option(
        "DIR",
        "after a PASS that a release can rest on, writes the defended weights to `DIR/DOMAIN`, with digest and model card",
        exported=False,
    )
    export_anyway: bool = _switch("writes them whatever the outcome; record and card say so", exported=False)
    acknowledge: bool = _switch(
        "confirms that a real model will be made harmful, in memory only; required if a suite sets `policy.acknowledge`",
        exported=False,
    )
    transcripts: str | None = _option(
        "DIR",
        "keeps the scored completions encrypted, one age file per case (mode 0600); never within the run's folder",
        exported=False,
    )
    recipients: tuple[str, ...] = _option(
        "AGE1...", "age public key that opens the transcripts; repeat for more", (), exported=False, flag="--rn-recipient"
    )
    gate: bool = _switch(
        "exits with 10 unless a release can rest on the run, and stops before any work if it cannot",
        see="releasing.md",
        exported=False,
    )
    allowed_plugins: tuple[str, ...] = _option(
        "NAME",
        "you vouch for a conftest or plugin that is loaded; use the name from the refusal; repeat for more",
        (),
        exported=False,
        flag="--rn-allow-plugin",
    )
    quiet: bool = _switch("no progress while cases run", exported=False)
    plugins: tuple[LoadedCode, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The options that ``export-config`` repeats, as they are typed."""
        typed: list[str] = []
        for name, option in declared_options():
            value = getattr(self, name)
            if not option.exported or (value == option.default and option.exported != "always"):
                continue
            values = value if isinstance(option.default, tuple) else (value,)
            typed += [f"{option.flag}={one}" if option.metavar else option.flag for one in values]
        return typed

    def __post_init__(self) -> None:
        if not self.defense:
            object.__setattr__(self, "defense", DEFENSE_OF_ORGANISM if self.model == ORGANISM else DEFENSE)

    @property
    def on_ray(self) -> bool:
        """True if the cases run on a Ray cluster."""
        return self.executor.partition(":")[0] == RAY

    @property
    def private(self) -> Path | None:
        """The folder of the user's own prompt sets."""
        return self.path(self.prompts) if self.prompts else None

    def path(self, name: str) -> Path:
        """The absolute path of a file or folder that the user named."""
        return (self.base / Path(name).expanduser()).resolve()


def declared_options() -> Iterator[tuple[str, OptionDeclaration]]:
    """All options, each with the name of its field."""
    for declared in fields(Options):
        if "option" in declared.metadata:
            flag = f"--rn-{declared.name.replace('_', '-')}"
            yield declared.name, OptionDeclaration(**{"flag": flag, **declared.metadata["option"]})
