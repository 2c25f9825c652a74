"""``rn-harness show``, ``compare``, ``export-config`` and ``report``: finished runs."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from rn_harness.cli.shared import AsJson, RunFolder, read_run, tell, usage_errors

commands = typer.Typer()


@commands.command("show")
def show_command(
    run: RunFolder,
    case: Annotated[str | None, typer.Argument(help="a case's id, or the end of it; default: the whole run")] = None,
    as_json: AsJson = False,
) -> None:
    """Shows a run as the terminal did, or every checkpoint of one of its cases."""
    from rn_harness.report.terminal import checkpoint_lines, summary_lines

    evidence = read_run(run)
    if case is None:
        lines = list(summary_lines(evidence.run, list(evidence.records.values()), str(run)))
        tell(lines, evidence.run.model_dump(mode="json"), as_json)
        return
    named = {f"{r.identity.suite['domain']}/{r.case_id}": r for r in evidence.records.values()}
    found = {name: r for name, r in named.items() if name.endswith(case)}
    exact = {name: r for name, r in found.items() if case in (name, r.case_id)} or found
    if len(exact) != 1:
        problem = f"{len(exact)} that end so" if exact else "none that ends so"
        raise typer.BadParameter(f"one case is shown, got {case!r}, {problem}; the run has: {', '.join(exact or named)}")
    (record,) = exact.values()
    tell(checkpoint_lines(record), record.model_dump(mode="json"), as_json)


@commands.command("compare")
def compare_command(before: RunFolder, after: RunFolder, as_json: AsJson = False) -> None:
    """Lists the changes from one run to another. Exits with 1 if something got worse."""
    from rn_harness.release.comparison import compare_runs

    changes = compare_runs(read_run(before), read_run(after))
    worse = [c for c in changes if c.worse]
    lines = [f"{'worse  ' if c.worse else 'changed'} {c.what}: {c.before} -> {c.after}" for c in changes]
    lines.append(f"{len(changes)} changes, {len(worse)} for the worse" if changes else "nothing changed")
    tell(lines, {"regressions": len(worse), "changes": [dataclasses.asdict(c) for c in changes]}, as_json)
    raise typer.Exit(1 if worse else 0)


@commands.command("export-config")
def export_config_command(run: RunFolder, as_json: AsJson = False) -> None:
    """Prints the command that repeats a run, and the conditions that must be the same."""
    evidence = read_run(run)
    record = evidence.run
    folders = dict.fromkeys(line.nodeid.partition("::")[0].rpartition("/")[0] or "." for line in record.cases)
    command = shlex.join(["pytest", *folders, *record.options.get("arguments", ())])
    versions = next((r.identity.versions for r in evidence.records.values()), {})
    same = {
        "candidate": record.candidate.get("digest"),
        **{f"suite {domain}": digest for domain, digest in record.suites.items()},
        **versions,
    }
    lines = [*(f"# {name}: {value}" for name, value in same.items()), command]
    tell(lines, {"command": command, "same": same}, as_json)


@commands.command("report")
def report_command(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="where the views go; default: the run's folder")] = None,
    inspect: Annotated[Path | None, typer.Option(help="folder for a log of each case that Inspect opens; needs an extra")] = None,
    as_json: AsJson = False,
) -> None:
    """Makes report.html and summary.md again from a run's records, without a model."""
    from rn_harness.report.inspect_log import write_inspect_logs
    from rn_harness.report.pages import write_views

    evidence = read_run(run, complete=True)
    records = list(evidence.records.values())
    try:
        with usage_errors():
            written = write_views(out or run, evidence.run, records)
            written += write_inspect_logs(inspect, evidence.run, records) if inspect else []
    except OSError as error:
        raise typer.BadParameter(str(error)) from None
    tell(map(str, written), list(map(str, written)), as_json)
