"""The command line ``rn-harness``: options, words and exit codes; no logic.

One module a group of commands. Each imports what it works with inside its functions, so that help and completions are there at
once.
"""

from __future__ import annotations

import traceback
from typing import Annotated

import typer

from rn_harness.cli.evidence import register as register_evidence
from rn_harness.cli.judges import register as register_judges
from rn_harness.cli.machine import register as register_machine
from rn_harness.cli.release import register as register_release
from rn_harness.cli.store import register as register_store
from rn_harness.cli.suites import register as register_suites
from rn_harness.cli.utility import register as register_utility
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
for register in (
    register_release, register_evidence, register_suites, register_machine, register_judges, register_utility, register_store,
):  # fmt: skip
    register(app)


def main() -> None:
    """The entry point; what goes wrong is told without its message, which may quote a completion."""
    try:
        app()
    except Exception as error:  # noqa: BLE001  (told, and never swallowed)
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{safe_message(error)}, raised at {where.filename}:{where.lineno}"
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            text = str(missing(error.name, "this command"))
        typer.echo(text, err=True)
        raise SystemExit(2) from None
