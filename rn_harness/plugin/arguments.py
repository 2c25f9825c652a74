"""The options in pytest: added to its parser, read from its config, and checked against each other."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn_harness.spec.extras import missing
from rn_harness.spec.fixtures import SUITES, suites_folder
from rn_harness.spec.options import LOCAL, RAY, RESULTS, Options, declared_options

if TYPE_CHECKING:
    import pytest


def declare(parser: pytest.Parser) -> None:
    """Adds the options to pytest's."""
    group = parser.getgroup("rn-harness", "rn-harness: does an open-weight model withstand malicious fine-tuning?")
    for _, option in declared_options():
        settings: dict[str, Any] = {"dest": option.dest, "default": option.default, "help": option.help}
        if not option.metavar:
            settings["action"] = "store_true"
        else:
            settings["metavar"] = option.metavar
            if isinstance(option.default, tuple):
                settings |= {"action": "append", "default": []}
            elif isinstance(option.default, int):
                settings["type"] = int
            if option.choices:
                settings["choices"] = option.choices
        if shown := option.shown_default or (option.metavar and option.default):
            settings["help"] += f" (default: {shown})"
        if option.alias:
            settings["help"] += f"; also {option.alias}"
        group.addoption(option.flag, **settings)


def foreign_aliases(config: pytest.Config) -> list[str]:
    """Our aliases that a plugin or a conftest has declared as its own options."""
    nothing = object()
    aliases = [option.alias for _, option in declared_options() if option.alias]
    return [alias for alias in aliases if config.getoption(alias, nothing) is not nothing]


def own_spellings(config: pytest.Config, args: Sequence[str]) -> list[str]:
    """Replaces each alias that nobody else has declared by our flag, and returns all arguments.

    We declare no alias: another plugin or a conftest that declares the same option later would fail.
    """
    taken = foreign_aliases(config)
    flags = {option.alias: option.flag for _, option in declared_options() if option.alias not in ("", *taken)}
    typed = ((arg, *arg.partition("=")) for arg in args)
    return [flags[name] + equals + value if name in flags else arg for arg, name, equals, value in typed]


def hint_at_options(parser: pytest.Parser, unknown: Sequence[str]) -> None:
    """Adds to pytest's error for unknown arguments the near option of ours, or how to install pytest-xdist for ``-n``."""
    flags = {spelling: o.flag for _, o in declared_options() for spelling in (o.flag, o.command_flag)}
    for typed in (argument.partition("=")[0] for argument in unknown):
        if typed.startswith(("-n", "--numprocesses", "--dist")) and importlib.util.find_spec("xdist") is None:
            parser.extra_info["hint"] = str(missing("xdist", "-n"))
        elif typed.startswith("--") and (near := difflib.get_close_matches(typed, flags, n=1, cutoff=0.75)):
            parser.extra_info["hint"] = f"did you mean {flags[near[0]]}?"


def read(config: pytest.Config) -> Options:
    """The options that the user typed."""
    values = {name: config.getoption(option.dest) for name, option in declared_options()}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if values["from_results"]:
        values["executor"] = RESULTS
    return Options(**values, base=config.invocation_params.dir)


def find_shipped(config: pytest.Config) -> None:
    """Lets ``--pyargs rn_harness.suites.NAME`` name a shipped suite, which is a folder and no package."""
    if config.option.pyargs:
        named = {SUITES: suites_folder(), **{f"{SUITES}.{folder.name}": folder for folder in suites_folder().glob("*/")}}
        config.args[:] = [str(named.get(argument, argument)) for argument in config.args]


def junit_in_run(config: pytest.Config) -> str | None:
    """A sentence if ``--junitxml`` names a file in the folder of this run or of an earlier one; None if it does not."""
    if not (named := config.getoption("xmlpath", None)):
        return None
    from rn_harness.records.run import RUN

    options = read(config)
    own = options.path(options.run) if options.run else None
    if not any(folder == own or (folder / RUN).is_file() for folder in Path(named).expanduser().resolve().parents):
        return None
    return (
        f"a run's folder keeps its own junit.xml and nothing that is written later, got --junitxml {named}; drop --junitxml, or "
        "name another folder"
    )


def clashes(config: pytest.Config, *, shared: bool) -> list[str]:
    """A sentence for each pair of options that exclude each other; ``shared``: workers of pytest-xdist share the tests."""
    from rn_harness.store.ranks import ranks

    options, processes = read(config), ranks()
    executor = config.getoption("rn_executor")
    ray = executor.partition(":")[0] == RAY
    joins, fleet, together = options.from_results, options.fleet > 1, processes.size > 1
    try:
        reruns_by_file = config.getini("reruns")
    except ValueError:  # no plugin declares it
        reruns_by_file = None
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION") or "no"
    found = {
        f"attacks train in the model's own numbers, got ACCELERATE_MIXED_PRECISION={precision}; unset it, or launch with "
        "--mixed_precision no": precision != "no",
        "a verdict is never re-rolled, got --reruns; run suites without it": config.getoption("reruns", None) or reruns_by_file,
        "each case is run once, got --dist each; use another --dist": config.getoption("dist", "no") == "each",
        "a fleet runs attacks together in one process, workers of pytest-xdist take a case each, got --rn-fleet and -n; take "
        "--rn-fleet on a card, -n on a CPU": fleet and shared,
        f"{processes.size} processes train one model together, or workers of pytest-xdist take a case each, got both; leave out "
        "-n, or accelerate launch": together and shared,
        "accelerate would spread the weights when training begins, after they were measured, and transformers would not know "
        "that its samplers have to wait for each other, got ACCELERATE_USE_FSDP=true; launch with --multi_gpu and pass "
        "--rn-shard, which loads them so": together and processes.by_launcher,
        "--rn-shard spreads the weights over the processes of accelerate launch, got one process; launch several (--multi_gpu "
        "--num_processes N), or leave it out": options.shard and not together and not joins,
        f"processes of one run share a store and a machine, got {processes.local} of {processes.size} here; launch them on one": (
            processes.local != processes.size
        ),
        "--rn-from-results joins the parts of a run, got no --rn-run; name the folder that each part was given": (
            joins and not options.run
        ),
        "--rn-from-results runs nothing that workers could share, got -n; leave it out": joins and shared,
        "parts of a run take each attack alone, got --rn-from-results with --rn-fleet; leave it out, of the parts too": (
            joins and fleet
        ),
        f"--rn-case-timeout is a number of seconds, got {options.case_timeout}; 0 is no limit": options.case_timeout < 0,
        "the attacks of a fleet share their time, got --rn-case-timeout with --rn-fleet; leave one of them out": (
            options.case_timeout > 0 and fleet
        ),
        f"--rn-executor must be local, ray or ray:ADDRESS, got {executor!r}": not ray and executor != LOCAL,
        f"--rn-from-results runs nothing, got --rn-executor {executor}; leave one of them out": joins and ray,
        f"Ray runs as many cases at a time as its machines have room for, got -n with --rn-executor {executor}; leave out -n": (
            ray and shared
        ),
        f"Ray takes each attack alone, got --rn-fleet with --rn-executor {executor}; leave one of them out": ray and fleet,
        f"Ray begins processes of its own, got accelerate launch with --rn-executor {executor}; leave one of them out": (
            ray and together
        ),
    }
    return [sentence for sentence, applies in found.items() if applies]
