"""The command line ``rn-harness store``: what is kept, and its removal. Floor 5 (edge)."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from rn_harness.errors import StoreError
from rn_harness.store import Entry, Store, default_root

app = typer.Typer(no_args_is_help=True, help="What RN_HARNESS_CACHE, else the user's cache folder, keeps of finished work.")
AsJson = Annotated[bool, typer.Option("--json", help="as JSON")]
MIB = 2**20


def _show(entries: Sequence[Entry], *, as_json: bool) -> None:
    rows = [
        {
            "kind": entry.kind,
            "name": entry.name,
            "bytes": entry.size,
            "used": datetime.datetime.fromtimestamp(entry.used, datetime.UTC).isoformat(timespec="seconds"),
            "whole": entry.whole,
        }
        for entry in entries
    ]
    if as_json:
        typer.echo(json.dumps({"root": str(default_root()), "entries": rows}))
        return
    for row in rows:
        note = "" if row["whole"] else "  not an entry: left by damage, or by a run that was cut off"
        typer.echo(f"{row['kind']:<12} {str(row['name'])[:24]:<24} {row['bytes']:>12} bytes  used {row['used']}{note}")
    typer.echo(f"{len(entries)} in {default_root()}, {sum(e.size for e in entries) / MIB:.1f} MiB")


@app.command("list")
def list_entries(as_json: AsJson = False) -> None:
    """Lists finished work, journals of unfinished cases, and what damage left."""
    _show(Store(default_root()).entries(), as_json=as_json)


@app.command()
def prune(
    unused_days: Annotated[float, typer.Option(min=0.0, help="remove what was not used for so many days; 0: all")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Removes what was not used for long, and lists it; a run that uses it at this moment ends without a verdict."""
    try:
        removed = Store(default_root()).prune(unused_days)
    except StoreError as error:
        raise typer.BadParameter(str(error)) from None
    _show(removed, as_json=as_json)
