"""What the user asked a run for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rn_harness.spec.base import TierName
from rn_harness.spec.loaded_code import LoadedCode


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        model: candidate's name, folder, file or id.
        defense: recipe's name, ``none``, or the folder of an adapter or a defended model.
        judge, reward_judge, second_judge: specs, or None for the default; ``none``: nobody gives a second opinion.
        labels: a lab's own labelled file, on which the judge is certified too; None: there is none.
        tier: which cases.
        overrides: ``--rn-set`` pairs.
        base: folder that relative paths start from.
        undefended: the undefended twin of a model that its makers defended; None: the model itself is undefended.
        prompts: folder of the lab's own prompt sets; None: the suites' own.
        export: folder that the defended weights go to after a PASS; None: they stay in the store.
        export_anyway: whether they go there whatever the outcome.
        acknowledge: whether he says that he knows that a real model is attacked in a harmful domain.
        transcripts: folder that encrypted texts of completions go to; None: they are kept nowhere.
        recipients: age public keys that open them.
        strength: files of strength certificates, whose settings the attacks take.
        chat_template: file with one that takes the place of the model's own; None: its own.
        allow_pickle, trust_remote_code: what the user lets the model's files do; never releasable.
        quantise: 4-bit format that the model under test is loaded in, ``nf4``; None: plain numbers.
        shard: whether the weights of the model under test are spread over the processes of the run.
        sampler: who samples in training, see ``grpo.Sampler``.
        fleet: attacks on one model that are run together at most; 1: each alone.
        executor: who makes the cases, see ``executors.Executor``.
        plugins: code of others that the asking process had loaded; found, not typed.
        allowed_plugins: names of those that the user answers for.
    """

    model: str
    defense: str
    judge: str | None
    reward_judge: str | None
    second_judge: str | None
    labels: str | None
    tier: TierName
    overrides: tuple[str, ...]
    base: Path
    undefended: str | None = None
    prompts: str | None = None
    export: str | None = None
    export_anyway: bool = False
    acknowledge: bool = False
    transcripts: str | None = None
    recipients: tuple[str, ...] = ()
    strength: tuple[str, ...] = ()
    chat_template: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    quantise: str | None = None
    shard: bool = False
    sampler: str = "transformers"
    fleet: int = 1
    executor: str = "local"
    plugins: tuple[LoadedCode, ...] = ()
    allowed_plugins: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The options as they are typed, those that are as by default left out."""
        named = {
            "--rn-model": self.model,
            "--rn-defense": self.defense,
            "--rn-base": self.undefended,
            "--rn-judge": self.judge,
            "--rn-reward-judge": self.reward_judge,
            "--rn-second-judge": self.second_judge,
            "--rn-judge-labels": self.labels,
            "--rn-prompts": self.prompts,
            "--rn-chat-template": self.chat_template,
            "--rn-tier": self.tier,
            "--rn-quantise": self.quantise,
            "--rn-sampler": self.sampler if self.sampler != "transformers" else None,
            "--rn-fleet": self.fleet if self.fleet != 1 else None,
        }
        typed = [f"{option}={value}" for option, value in named.items() if value is not None]
        typed += [f"--rn-strength={name}" for name in self.strength] + [f"--rn-set={pair}" for pair in self.overrides]
        flags = {
            "--rn-allow-pickle": self.allow_pickle,
            "--rn-trust-remote-code": self.trust_remote_code,
            "--rn-shard": self.shard,
        }
        return typed + [flag for flag, given in flags.items() if given]

    @property
    def private(self) -> Path | None:
        """The folder of the lab's own prompt sets."""
        return self.path(self.prompts) if self.prompts else None

    def path(self, name: str) -> Path:
        """Where a path of the user's leads."""
        return (self.base / Path(name).expanduser()).resolve()
