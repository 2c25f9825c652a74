"""``rn-harness list``, ``plan``, ``doctor``, ``init`` and ``new-suite``, before a run, and ``run``."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rn_harness.cli.shared import AsJson, SessionOptions, find_suite, settings_command, table, tell, usage_errors

if TYPE_CHECKING:
    from rn_harness.run.estimate import RunEstimate

commands = typer.Typer()
Tier = Literal["smoke", "standard", "full"]
PYTESTS_OWN = "--quiet"
"""The option of pytest that is called like one of ours without its prefix."""
Listed = Literal["suites", "cases", "profiles", "judges"]


@commands.command("list")
def list_command(
    what: Annotated[Listed, typer.Argument(help="suites, cases of suites, profiles of models, or specs of judges")],
    suites: Annotated[
        Path | None,
        typer.Option(
            parser=find_suite, metavar="SUITE", help="a suite, or a folder with suites; default: suites, else the shipped ones"
        ),
    ] = None,
    tier: Annotated[Tier, typer.Option(help="of the cases, as for --rn-tier")] = "standard",
    as_json: AsJson = False,
) -> None:
    """Lists suites, cases, profiles or judges, by name; nothing is loaded."""
    with usage_errors():
        rows = {
            "suites": lambda: _suites(suites),
            "cases": lambda: _cases(suites, tier),
            "profiles": _profiles,
            "judges": _judges,
        }[what]()
    tell(table(rows), rows, as_json)


def _load(named: Path | None) -> list[Any]:
    from rn_harness.spec.fixtures import suites_folder
    from rn_harness.spec.suite import iter_suites, load_suite

    here = Path("suites")
    folder = named or (here if here.is_dir() else suites_folder())
    found = [load_suite(path) for path in iter_suites(folder)]
    if not found:
        raise typer.BadParameter(f"a folder with suites is required, got none in {folder}; rn-harness new-suite NAME begins one")
    return found


def _suites(folder: Path | None) -> list[dict[str, Any]]:
    return [
        {"domain": s.domain, "folder": str(s.folder), "sha256": s.digest, "title": s.declaration.title} for s in _load(folder)
    ]


def _cases(folder: Path | None, tier: Tier) -> list[dict[str, Any]]:
    from rn_harness.verdict.release_rules import required_cases

    return [{"domain": s.domain, "case": case} for s in _load(folder) for case in required_cases(s, tier)]


def _profiles() -> list[dict[str, Any]]:
    from rn_harness.models.resolve import MODELS
    from rn_harness.spec.fixtures import fixtures_folder
    from rn_harness.spec.model_profiles import load_model_profile, profile_names

    folder = fixtures_folder() / MODELS
    loaded = ((name, load_model_profile(name, folder)) for name in profile_names(folder))
    return [{"name": name, "model": p.model, "licence": p.licence} for name, p in loaded]


def _judges() -> list[dict[str, Any]]:
    from rn_harness.judges.own import own_names
    from rn_harness.judges.protocol import FORMS
    from rn_harness.judges.resolve import judge_profile_names, load_profile

    shipped = {name: load_profile(name) for name in judge_profile_names()}
    rows = [{"spec": name, "licence": p.licence, "judge": f"{p.kind}:{p.model}"} for name, p in shipped.items()]
    rows += [{"spec": name, "licence": "-", "judge": "of an installed package"} for name in own_names()]
    return rows + [{"spec": form, "licence": "-", "judge": meaning} for form, meaning in FORMS.items()]


@dataclass(frozen=True, kw_only=True)
class PlanOptions(SessionOptions):
    """The options of ``rn-harness plan``."""

    suites: Annotated[list[Path], typer.Argument(parser=find_suite, metavar="SUITE", help="a suite, or a folder with suites")]
    tier: Annotated[Tier, typer.Option(help="which cases, as for --rn-tier")] = "standard"
    defense: Annotated[str, typer.Option(help="as for --rn-defense")] = ""
    earlier: Annotated[Path, typer.Option(help="earlier runs, or one, by which time is estimated")] = Path("reports")
    slots: Annotated[int, typer.Option(min=1, help="cases that run at a time, as on a cluster; with --device: its cards")] = 1
    device: Annotated[
        Literal["h100"] | None,
        typer.Option(help="compute the time on this card from its data sheet; nothing was measured on one"),
    ] = None
    dollars: Annotated[float | None, typer.Option(min=0, help="of a card and hour, with --device; default: an assumed price")] = (
        None
    )


@settings_command(commands, "plan", PlanOptions)
def plan_command(asked: PlanOptions) -> None:
    """Lists a run's cases, with the memory, time and device hours that they need; nothing is loaded or run."""
    from rn_harness.run.cost import CARDS
    from rn_harness.run.estimate import computed_run, estimate_run, judge_tokens
    from rn_harness.spec.suite import iter_suites, load_suite
    from rn_harness.store.provenance import device

    with usage_errors():
        recipe = asked.recipe
        loaded = [load_suite(path, recipe=recipe) for folder in asked.suites for path in iter_suites(folder)]
        if not loaded:
            folders = ", ".join(map(str, asked.suites))
            raise typer.BadParameter(f"a suite's folder is required, got {folders}; rn-harness list suites")
        session = asked.session(asked.run_options(defense=asked.defense, tier=asked.tier))
        if asked.device:
            made = computed_run(session, loaded, CARDS[asked.device], asked.slots)
        else:
            made = estimate_run(session, loaded, asked.earlier)
        tiers: tuple[Tier, ...] = (asked.tier, *(() if asked.tier == "full" else ("full",)))
        read = {tier: judge_tokens(session, loaded, tier) for tier in tiers}
    seconds, wall = made.seconds, made.seconds_on(asked.slots)
    document = {
        "cases": [dataclasses.asdict(c) for c in made.cases],
        "memory": list(made.memory),
        "seconds": seconds,
        "slots": asked.slots,
        "wall_seconds": wall,
        "device_hours": None if seconds is None else round(seconds / 3600, 3),
        "device": device(),
        "rests_on": list(made.runs),
        "judge_tokens": {tier: {role: round(n) for role, n in of.items()} for tier, of in read.items()},
        "computed": _on_card(made, asked),
    }
    tell([*_plan_lines(made, asked, device()), *_judge_lines(read)], document, asked.as_json)


def _judge_lines(read: Mapping[Tier, Mapping[Any, float]]) -> Iterator[str]:
    for tier, of in read.items():
        if of:
            roles = ", ".join(f"{role} {n / 1e6:.0f}" for role, n in of.items())
            yield f"judges read about {sum(of.values()) / 1e6:.0f} million tokens in tier {tier}: {roles}"


def _on_card(made: RunEstimate, asked: PlanOptions) -> dict[str, Any] | None:
    """A computed run as numbers; None if its time is not computed."""
    from rn_harness.run.cost import DOLLARS

    if (hours := made.on_card) is None:
        return None
    return {
        "cards": hours.cards,
        "card_hours": round(hours.busy / 3600, 3),
        "wall_hours": round(hours.wall / 3600, 3),
        "dollars": round(hours.dollars(DOLLARS if asked.dollars is None else asked.dollars), 2),
        "saturates": hours.saturated,
        "hours": {term: round(s / 3600, 4) for term, s in hours.largest},
    }


def _card_lines(made: RunEstimate, asked: PlanOptions) -> Iterator[str]:
    from rn_harness.run.case_cost import SHRINKS
    from rn_harness.run.cost import CARDS

    computed, card = _on_card(made, asked), CARDS[asked.device or ""]
    if computed is None:
        return
    yield (
        f"time: {computed['card_hours']:.1f} card hours, {computed['wall_hours']:.1f} by the clock on {computed['cards']} x "
        f"{card.name}, {computed['dollars']:.0f} dollars; computed from its data sheet, nothing was measured on one"
    )
    yield f"first saturated: {computed['saturates']}"
    for term, hours in [*computed["hours"].items()][:5]:
        yield f"  {hours:.2f} h {term}: less by {SHRINKS[term]}"


def _plan_lines(made: RunEstimate, asked: PlanOptions, device: str) -> Iterator[str]:
    from rn_harness.spec.restraint import BETAS

    for c in made.cases:
        time = "time not known" if c.seconds is None else f"about {c.seconds:.0f} s"
        yield f"{c.domain} {c.case_id}: {time}; {c.demand.sentence}"
    yield from (f"memory {sentence}" for sentence in made.memory)
    seconds, earlier = made.seconds, asked.earlier
    if made.on_card:
        yield from _card_lines(made, asked)
    elif seconds is None:
        yield f"time: not known: no run in {earlier} has all kinds of cases on this model; pass --earlier, or run tier smoke"
    else:
        basis = f"medians of {len(made.runs)} earlier runs in {earlier}: {', '.join(made.runs)}"
        yield f"time: about {seconds / 60:.0f} minutes, {seconds / 3600:.2f} hours of {device}; {basis}"
    yield f"not included: up to {len(BETAS)} restrained attacks, each with a control, after one that destroys the model"
    wall = made.seconds_on(asked.slots)
    if wall is not None and asked.slots > 1 and not made.on_card:
        yield f"with {asked.slots} cases at a time: about {wall / 60:.0f} minutes, longest first, each after what it waits for"


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(SessionOptions):
    """The options of ``rn-harness doctor``."""

    suite: Annotated[
        Path | None, typer.Option(parser=find_suite, metavar="SUITE", help="what is to be run; default: biochem")
    ] = None
    defense: Annotated[str, typer.Option(help="as for --rn-defense")] = ""
    reports: Annotated[Path, typer.Option(help="where runs are written to; or one run, to estimate by")] = Path("reports")


@settings_command(commands, "doctor", DoctorOptions)
def doctor_command(asked: DoctorOptions) -> None:
    """Says what a run of a model needs, in memory, hours by tier, judges and hub, and looks for it on this machine.

    Exits with 1 if something is missing.
    """
    from rn_harness.run.preflight import readiness
    from rn_harness.spec.suite import load_suite

    with usage_errors():
        loaded = load_suite(asked.suite or find_suite("biochem"), recipe=asked.recipe)
        checks = list(readiness(asked.session(asked.run_options(defense=asked.defense)), loaded, asked.reports))
    marks = {"ready": "ok   ", "missing": "no   ", "told": "     "}
    missing = [c for c in checks if c.state == "missing"]
    lines = [f"{marks[c.state]} {c.name}: {c.sentence}" for c in checks]
    lines.append("ready" if not missing else f"not ready: {', '.join(c.name for c in missing)}")
    tell(lines, {"ready": not missing, "checks": [dataclasses.asdict(c) for c in checks]}, asked.as_json)
    raise typer.Exit(1 if missing else 0)


@commands.command("run", context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def run_command(
    context: typer.Context,
    suite: Annotated[
        str, typer.Argument(metavar="SUITE [OPTIONS OF PYTEST]", help="a suite's folder, or the name of a shipped one")
    ],
) -> None:
    """Runs a suite by pytest: prints the command, and ends with its exit code. Further arguments are pytest's."""
    from rn_harness.spec.fixtures import PACKAGE, SUITES, suites_folder
    from rn_harness.spec.model_profiles import hint

    folder = find_suite(suite)
    if not Path(str(folder).partition("::")[0]).exists():
        names = sorted(shipped.name for shipped in suites_folder().glob("*/"))
        raise typer.BadParameter(f"a suite's folder or name is required, got {suite}; {hint(suite, names)}")
    named = ["--pyargs", f"{SUITES}.{suite}"] if folder.is_relative_to(PACKAGE) else [str(folder)]
    words = [*named, *_spelled(context.args)]
    typer.echo(shlex.join(["pytest", *words]))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "pytest", *words])  # noqa: S606  # nosec B606 # no shell


def _spelled(words: Sequence[str]) -> list[str]:
    """The words as pytest spells them: ``--tier`` is its ``--rn-tier``, but ``--quiet`` is an option of its own."""
    from rn_harness.spec.options import declared_options

    flags = {o.command_flag: o.flag for _, o in declared_options() if o.command_flag not in (o.alias, PYTESTS_OWN)}
    parts = (word.partition("=") for word in words)
    return [flags.get(name, name) + equals + value for name, equals, value in parts]


@commands.command("init")
def init_command(
    name: Annotated[str, typer.Argument(help="of a shipped suite: rn-harness list suites")],
    into: Annotated[Path, typer.Option(help="folder that the suite's folder goes to")] = Path("suites"),
    as_json: AsJson = False,
) -> None:
    """Copies a shipped suite, to edit it."""
    from rn_harness.spec.scaffold import copy_suite

    with usage_errors():
        folder = copy_suite(name, into)
    tell([f"{folder} is there: edit it, then: pytest {folder}"], {"folder": str(folder)}, as_json)


@commands.command("new-suite")
def new_suite_command(
    name: Annotated[str, typer.Argument(help="of the domain: lower case, digits, _")],
    into: Annotated[Path, typer.Option(help="folder that the suite's folder goes to")] = Path("suites"),
    as_json: AsJson = False,
) -> None:
    """Begins a suite; its files mark the texts to write before it loads."""
    from rn_harness.spec.scaffold import write_suite

    with usage_errors():
        folder = write_suite(name, into)
    lines = [
        f"{folder} is there; write each text that says TODO, and replace the prompts: until then it does not load",
        f"then: python -m rn_harness.organism build --suite {folder} --out organism-{name}",
        f"and: pytest {folder} --model organism-{name}",
    ]
    tell(lines, {"folder": str(folder)}, as_json)
