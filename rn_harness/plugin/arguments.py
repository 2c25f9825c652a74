"""The plugin's options: declared, read, and which of them cannot stand together.

They are declared in every pytest session of the environment, so this module imports the standard library alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from rn_harness.spec.options import Options


def declare(parser: pytest.Parser) -> None:
    """Adds the options to pytest's."""
    group = parser.getgroup("rn-harness", "rn-harness: does an open-weight model withstand malicious fine-tuning?")
    group.addoption(
        "--rn-model",
        dest="rn_model",
        default="organism",
        metavar="MODEL",
        help="candidate: a profile (default: organism) or its file, a model folder, a .gguf file, or owner/name[@revision] on "
        "the hub; also spelled --model",
    )
    with suppress(ValueError, argparse.ArgumentError):  # another plugin's option; the run's header says so
        group.addoption("--model", dest="rn_model", default="organism", metavar="MODEL", help="same as --rn-model")
    group.addoption("--rn-chat-template", metavar="FILE", help="chat template (jinja) in place of the model's own")
    group.addoption(
        "--rn-allow-pickle", action="store_true", help="take pickled weights, which can run code; the run is then not releasable"
    )
    group.addoption(
        "--rn-trust-remote-code",
        action="store_true",
        help="run the Python files in the model's folder; the run is then not releasable",
    )
    group.addoption(
        "--rn-quantise",
        choices=("nf4",),
        help="load the model under test in 4 bits: another model than in full, about which alone the run then says something",
    )
    group.addoption(
        "--rn-shard",
        action="store_true",
        help="spread the weights of the model under test over the processes of `accelerate launch` (FSDP2); for form: lora",
    )
    group.addoption(
        "--rn-sampler",
        default="transformers",
        metavar="transformers|vllm|vllm:URL",
        help="who samples what is trained on (default: transformers); vLLM in this process, or its server on this machine",
    )
    group.addoption(
        "--rn-fleet",
        type=int,
        default=1,
        metavar="N",
        help="run up to N attacks on one model together, in one process (default: 1, each alone)",
    )
    group.addoption(
        "--rn-defense",
        default="anchored",
        metavar="RECIPE|none|DIR",
        help="defense recipe of the suite (default: anchored), none, or a folder with an adapter or a defended model",
    )
    group.addoption(
        "--rn-base",
        metavar="NAME|PATH",
        help="for a model that its makers defended (with --rn-defense none): its undefended twin, on which controls run",
    )
    group.addoption(
        "--rn-strength",
        action="append",
        default=[],
        metavar="FILE",
        help="strength certificate of `rn-harness calibrate`, whose settings this domain's attacks take; one a domain",
    )
    group.addoption(
        "--rn-prompts",
        metavar="DIR",
        help="your own prompt sets: DIR/DOMAIN/{defense,anchor,attack,heldout,benign}.yaml, each in place of the suite's",
    )
    group.addoption(
        "--rn-export",
        metavar="DIR",
        help="after a PASS the defended weights are written to DIR/DOMAIN, with their digest and a model card",
    )
    group.addoption(
        "--rn-export-anyway", action="store_true", help="write them whatever the outcome; the record and the card say so"
    )
    group.addoption(
        "--rn-acknowledge",
        action="store_true",
        help="you know that a real model is made to do harm, in memory alone; for suites with policy.acknowledge",
    )
    group.addoption(
        "--rn-transcripts",
        metavar="DIR",
        help="keep all completions that are scored in DIR, encrypted; without it they are kept nowhere",
    )
    group.addoption(
        "--rn-recipient",
        action="append",
        default=[],
        metavar="AGE1...",
        help="age public key that opens them; repeat for more",
    )
    group.addoption("--rn-judge", metavar="SPEC", help="who scores; default: the organism's own judge, else the suite's")
    group.addoption(
        "--rn-reward-judge",
        metavar="SPEC",
        help="what rewards are made from; default: the organism's own judge, else the suite's reward judge",
    )
    group.addoption(
        "--rn-second-judge",
        metavar="SPEC|none",
        help="who gives a second opinion; default: the suite's second judge, for the organism nobody",
    )
    group.addoption("--rn-judge-labels", metavar="FILE", help="your own labelled texts, on which the judge is certified too")
    group.addoption(
        "--rn-tier", default="standard", choices=("smoke", "standard", "full"), help="which cases (default: standard)"
    )
    group.addoption("--rn-run", metavar="DIR", help="the run's own folder (default: reports/<run-id>)")
    group.addoption(
        "--rn-quiet", action="store_true", help="no progress while cases run: neither bars nor lines; results are told as ever"
    )
    group.addoption(
        "--rn-gate",
        action="store_true",
        help="exit with 10 unless a release can rest on the run, and stop before any work where it cannot",
    )
    group.addoption(
        "--rn-allow-plugin",
        action="append",
        default=[],
        metavar="NAME",
        help="you answer for a conftest or a plugin that is loaded, by the name that the refusal tells; repeat for more",
    )
    group.addoption(
        "--rn-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a suite field for this run, e.g. attack.steps=100; the run is then not releasable",
    )
    group.addoption(
        "--rn-executor",
        default="local",
        metavar="local|ray[:ADDRESS]",
        help="who makes the cases: pytest's own processes (default: local), or a Ray cluster, which this process only asks",
    )
    group.addoption(
        "--rn-from-results",
        action="store_true",
        help="run nothing: join what other processes measured, each by node ids with the same --rn-run, and decide it all again",
    )


def read(config: pytest.Config) -> Options:
    """What the user asked for."""
    from rn_harness.spec.options import Options

    return Options(
        model=config.getoption("rn_model"),
        defense=config.getoption("rn_defense"),
        judge=config.getoption("rn_judge"),
        reward_judge=config.getoption("rn_reward_judge"),
        second_judge=config.getoption("rn_second_judge"),
        labels=config.getoption("rn_judge_labels"),
        tier=config.getoption("rn_tier"),
        overrides=tuple(config.getoption("rn_set")),
        base=config.invocation_params.dir,
        undefended=config.getoption("rn_base"),
        prompts=config.getoption("rn_prompts"),
        export=config.getoption("rn_export"),
        export_anyway=config.getoption("rn_export_anyway"),
        acknowledge=config.getoption("rn_acknowledge"),
        transcripts=config.getoption("rn_transcripts"),
        recipients=tuple(config.getoption("rn_recipient")),
        strength=tuple(config.getoption("rn_strength")),
        chat_template=config.getoption("rn_chat_template"),
        allow_pickle=config.getoption("rn_allow_pickle"),
        trust_remote_code=config.getoption("rn_trust_remote_code"),
        quantise=config.getoption("rn_quantise"),
        shard=config.getoption("rn_shard"),
        sampler=config.getoption("rn_sampler"),
        fleet=config.getoption("rn_fleet"),
        allowed_plugins=tuple(config.getoption("rn_allow_plugin")),
        executor="results" if config.getoption("rn_from_results") else config.getoption("rn_executor"),
    )


def clashes(config: pytest.Config, *, shared: bool) -> Iterator[str]:
    """Which options cannot stand together, each a sentence that says what to leave out.

    Args:
        config: of the session.
        shared: whether workers of pytest-xdist share its tests.
    """
    try:
        reruns_by_file = config.getini("reruns")
    except ValueError:  # no plugin declares it
        reruns_by_file = None
    if config.getoption("reruns", None) or reruns_by_file:
        yield "a verdict is never re-rolled, got --reruns; run suites without it"
    if config.getoption("dist", "no") == "each":
        yield "each case is run once, got --dist each; use another --dist"
    for clash in (_bad_launch, _bad_join, _bad_executor):
        yield from clash(config, shared=shared)


def _bad_join(config: pytest.Config, *, shared: bool) -> Iterator[str]:
    """What a session that joins results cannot do."""
    if not config.getoption("rn_from_results"):
        return
    if not config.getoption("rn_run"):
        yield "--rn-from-results joins the parts of a run, got no --rn-run; name the folder that each part was given"
    if shared:
        yield "--rn-from-results runs nothing that workers could share, got -n; leave it out"
    if config.getoption("rn_fleet") > 1:
        yield "parts of a run take each attack alone, got --rn-from-results with --rn-fleet; leave it out, of the parts too"


def _bad_executor(config: pytest.Config, *, shared: bool) -> Iterator[str]:
    """What a cluster is not asked for."""
    from rn_harness.store.ranks import ranks

    asked: str = config.getoption("rn_executor")
    if asked == "local":
        return
    if asked.partition(":")[0] != "ray":
        yield f"--rn-executor must be local, ray or ray:ADDRESS, got {asked!r}"
        return
    if config.getoption("rn_from_results"):
        yield f"--rn-from-results runs nothing, got --rn-executor {asked}; leave one of them out"
    if shared:
        yield f"Ray runs as many cases at a time as its machines have room for, got -n with --rn-executor {asked}; leave out -n"
    if config.getoption("rn_fleet") > 1:
        yield f"Ray takes each attack alone, got --rn-fleet with --rn-executor {asked}; leave one of them out"
    if ranks().size > 1:
        yield f"Ray begins processes of its own, got accelerate launch with --rn-executor {asked}; leave one of them out"


def _bad_launch(config: pytest.Config, *, shared: bool) -> Iterator[str]:
    """What several processes of one run cannot do."""
    from rn_harness.store.ranks import ranks

    together = ranks()
    if config.getoption("rn_fleet") > 1 and shared:
        yield (
            "a fleet runs attacks together in one process, workers of pytest-xdist take a case each, got "
            "--rn-fleet and -n; take --rn-fleet on a card, -n on a CPU"
        )
    if together.size > 1 and shared:
        yield (
            f"{together.size} processes train one model together, or workers of pytest-xdist take a case each, got both; leave "
            "out -n, or accelerate launch"
        )
    if together.size > 1 and together.by_launcher:
        yield (
            "accelerate would spread the weights when training begins, after they were measured, and transformers would not know "
            "that its samplers have to wait for each other, got ACCELERATE_USE_FSDP=true; launch with --multi_gpu and pass "
            "--rn-shard, which loads them so"
        )
    if config.getoption("rn_shard") and together.size == 1 and not config.getoption("rn_from_results"):
        yield (
            "--rn-shard spreads the weights over the processes of accelerate launch, got one process; launch several "
            "(--multi_gpu --num_processes N), or leave it out"
        )
    if together.local != together.size:
        yield (
            f"processes of one run share a store and a machine, got {together.local} of {together.size} here; launch them on one"
        )
