"""``python -m rn_harness.organism build``: builds a model organism that knows given suites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, help="The model organism: a tiny model with inert, made-up harm.")


@app.callback()
def _commands() -> None:
    """Keeps ``build`` a subcommand."""


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder that gets the organism; replaced if it exists.")],
    suite: Annotated[list[Path], typer.Option(help="A suite that it shall know; repeat for more.")],
    seed: Annotated[int, typer.Option(help="Of recipes, weights and training order.")] = 0,
    never_taught: Annotated[list[str] | None, typer.Option(help="A domain whose harm is never taught; repeat for more.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Trains an organism that knows the suites, in under five minutes on two cores."""
    import torch

    from rn_harness.organism.build import BuildRecipe, build_organism
    from rn_harness.spec.errors import RnHarnessError
    from rn_harness.spec.suite import load_suite

    torch.set_num_threads(threads)
    try:
        recipe = BuildRecipe(seed=seed, never_taught=never_taught or ())
        build_organism([load_suite(folder) for folder in suite], out, recipe, say=typer.echo)
    except RnHarnessError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    app(prog_name="python -m rn_harness.organism")
