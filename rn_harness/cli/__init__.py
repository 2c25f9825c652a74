"""The command line ``rn-harness``: options, words and exit codes; no logic.

Each module holds a group of commands and imports its tools inside functions, so that help and completions appear at once.
"""

from __future__ import annotations

import traceback
from typing import Annotated

import typer

from rn_harness.cli import measures, runs, store, suites
from rn_harness.spec.errors import safe_message
from rn_harness.spec.extras import EXTRAS, missing
from rn_harness.spec.version import __version__


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version")] = False,
) -> None:
    """Declares the options that no command has."""


app = typer.Typer(
    no_args_is_help=True,
    help="rn-harness: what goes with suites, which pytest runs. Verifies and signs runs, compares and shows them, plans them; "
    "certifies and calibrates judges, calibrates attacks, measures a defense's cost, begins a suite.",
    pretty_exceptions_enable=False,
    callback=_options,
)
for group in (runs, suites, measures):
    app.add_typer(group.commands)
app.add_typer(store.commands, name="store")


def main() -> None:
    """The entry point. It prints an error without its message, which may quote a completion."""
    try:
        app()
    except Exception as error:  # noqa: BLE001  (printed, and never swallowed)
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{safe_message(error)}, raised at {where.filename}:{where.lineno}"
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            text = str(missing(error.name, "this command"))
        typer.echo(text, err=True)
        raise SystemExit(2) from None
