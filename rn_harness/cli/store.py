"""``rn-harness store``: what the store keeps."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rn_harness.cli.shared import AsJson, table, tell, usage_errors

if TYPE_CHECKING:
    from rn_harness.store.store import Entry

MIB = 2**20
commands = typer.Typer(no_args_is_help=True, help="What RN_HARNESS_CACHE, else the user's cache folder, keeps of finished work.")


@commands.command("list")
def list_entries_command(as_json: AsJson = False) -> None:
    """Lists finished work, journals of unfinished and of failed cases, defenses in training, and damaged or leftover files."""
    from rn_harness.store.store import Store, default_root

    _show(Store(default_root()).entries(), as_json=as_json)


@commands.command("prune")
def prune_command(
    unused_days: Annotated[float, typer.Option(min=0.0, help="remove what was not used for so many days; 0: all")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Removes entries that were not used for long, and lists them; a run that uses one now ends without a verdict."""
    from rn_harness.store.store import Store, default_root

    with usage_errors():
        removed = Store(default_root()).prune(unused_days)
    _show(removed, as_json=as_json)


def _show(entries: Sequence[Entry], *, as_json: bool) -> None:
    from rn_harness.store.store import default_root
    from rn_harness.training.snapshots import PARTIAL

    rows, shown = [], []
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.used, datetime.UTC).isoformat(timespec="seconds")
        rows.append({"kind": entry.kind, "name": entry.name, "bytes": entry.size, "used": used, "whole": entry.whole})
        remark = ""
        if not entry.whole:
            remark = "not an entry: left by damage, or by a run that was cut off"
        elif entry.kind == PARTIAL:
            remark = "a defense's training that is under way or was cut off: the same command goes on from it"
        shown.append({"kind": entry.kind, "name": entry.name[:24], "bytes": entry.size, "used": used, "remark": remark})
    total = f"{len(entries)} in {default_root()}, {sum(e.size for e in entries) / MIB:.1f} MiB"
    tell([*table(shown), total], {"root": str(default_root()), "entries": rows}, as_json)
