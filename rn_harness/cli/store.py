"""``rn-harness store``: lists and removes stored results."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from rn_harness.cli.shared import AsJson, tell, usage_errors

if TYPE_CHECKING:
    from rn_harness.store.store import Entry

MIB = 2**20
commands = typer.Typer(no_args_is_help=True, help="What RN_HARNESS_CACHE, else the user's cache folder, keeps of finished work.")


@commands.command("list")
def list_entries_command(as_json: AsJson = False) -> None:
    """Lists finished work, journals of unfinished cases, defenses in training, and damaged or leftover files."""
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
    lines = [
        f"{entry.kind:<12} {entry.name[:24]:<24} {entry.size:>12} bytes  used {row['used']}{_note(entry)}"
        for entry, row in zip(entries, rows, strict=True)
    ]
    lines.append(f"{len(entries)} in {default_root()}, {sum(e.size for e in entries) / MIB:.1f} MiB")
    tell(lines, {"root": str(default_root()), "entries": rows}, as_json)


def _note(entry: Entry) -> str:
    """A remark on an entry that is not finished work; else empty."""
    from rn_harness.training.snapshots import PARTIAL

    if not entry.whole:
        return "  not an entry: left by damage, or by a run that was cut off"
    if entry.kind == PARTIAL:
        return "  a defense's training that is under way or was cut off: the same command goes on from it"
    return ""
