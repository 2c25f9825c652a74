"""``rn-harness utility``: what the defense costs elsewhere. Floor 5 (edge)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rn_harness.cli.shared import AsJson, tell, usage_errors


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(utility)


def utility(
    tasks: Annotated[str, typer.Option(help="tasks or groups of lm-evaluation-harness, by commas, e.g. mmlu,ifeval")],
    out: Annotated[Path, typer.Option(help="JSON file for the numbers; no sample is kept")],
    model: Annotated[str, typer.Option(help="undefended candidate, as for pytest --model")] = "organism",
    defended: Annotated[
        Path | None,
        typer.Option("--rn-defense", "--weights", help="folder of the defended weights: an adapter, or a whole model"),
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="folder with tasks of your own; their code is run")] = None,
    chat_template: Annotated[bool, typer.Option(help="ask through the model's chat template")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="samples of each task; default: all")] = None,
    batch: Annotated[int, typer.Option(min=1, help="requests at once")] = 8,
    online: Annotated[bool, typer.Option("--online", help="fetch the tasks' data from the hub first")] = False,
    as_json: AsJson = False,
) -> None:
    """Runs tasks of lm-evaluation-harness on the undefended and on the defended model. Needs the extra `utility`."""
    from rn_harness.candidate import resolve_candidate
    from rn_harness.store import write_text
    from rn_harness.utility import Settings, fetch, measure_utility, utility_document, utility_lines

    for name, folder in (("--rn-defense", defended), ("--include-path", include_path), ("--out", out.parent)):
        if folder is not None and not folder.is_dir():
            raise typer.BadParameter(f"{name} must name a folder that exists, got {folder}; correct the path")
    settings = Settings(
        tasks=tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip())),
        include_path=include_path,
        chat_template=chat_template,
        limit=limit,
        batch=batch,
    )
    with usage_errors():
        candidate = resolve_candidate(model, Path.cwd())
        if online:
            fetch(settings)
        measures = measure_utility(candidate, defended, settings)
    document = utility_document(candidate, defended, settings, measures)
    write_text(out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    tell(utility_lines(measures), document, as_json)
