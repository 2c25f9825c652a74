"""``rn-harness utility``: what the defense costs elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rn_harness.cli.shared import AsJson, tell, usage_errors

if TYPE_CHECKING:
    from rn_harness.models.candidate import Candidate
    from rn_harness.utility.pairwise import Question


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(utility)


def utility(
    out: Annotated[Path, typer.Option(help="JSON file for the numbers; no sample is kept")],
    tasks: Annotated[str, typer.Option(help="tasks or groups of lm-evaluation-harness, by commas, e.g. mmlu,ifeval")] = "",
    model: Annotated[str, typer.Option(help="undefended candidate, as for pytest --model")] = "organism",
    defended: Annotated[
        Path | None,
        typer.Option("--rn-defense", "--weights", help="folder of the defended weights: an adapter, or a whole model"),
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="folder with tasks of your own; their code is run")] = None,
    chat_template: Annotated[bool, typer.Option(help="ask through the model's chat template")] = True,
    limit: Annotated[int | None, typer.Option(min=1, help="samples of each task, and prompts; default: all")] = None,
    batch: Annotated[int, typer.Option(min=1, help="requests at once")] = 8,
    online: Annotated[bool, typer.Option("--online", help="fetch the tasks' data from the hub first")] = False,
    preference: Annotated[str | None, typer.Option(metavar="SPEC", help="judge that compares the two models' answers")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="what they answer: a suite's folder, or a JSON file of instructions")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="your own labelled pairs, on which that judge is certified too")] = None,
    margin: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of the prompts that may be lost on balance")] = 0.1,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="limit of an answer; default: the suite's, else 512")] = None,
    as_json: AsJson = False,
) -> None:
    """What the defense costs elsewhere: tasks of lm-evaluation-harness (extra `utility`), and which answers a judge prefers.

    Exits with 1 if the judge is not certified for preference: there is no number then.
    """
    from rn_harness.models.resolve import resolve_candidate
    from rn_harness.store.store import write_text
    from rn_harness.utility.pairwise import answer_document, answer_lines, measure_preference
    from rn_harness.utility.tasks import DefendedFolder, Settings, fetch, measure_utility, utility_document, utility_lines

    named = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not named and preference is None:
        raise typer.BadParameter("something must be measured, got neither --tasks nor --preference; name one of them")
    for name, path in (("--prompts", prompts), ("--pairs", pairs), ("--max-tokens", max_tokens)):
        if path is not None and preference is None:
            raise typer.BadParameter(f"{name} goes with --preference, got none; name a judge, or drop it")
    for name, folder in (("--rn-defense", defended), ("--include-path", include_path), ("--out", out.parent)):
        if folder is not None and not folder.is_dir():
            raise typer.BadParameter(f"{name} must name a folder that exists, got {folder}; correct the path")
    settings = Settings(tasks=named, include_path=include_path, chat_template=chat_template, limit=limit, batch=batch)
    answer = None
    with usage_errors():
        candidate = resolve_candidate(model, Path.cwd())
        if preference is not None:
            if defended is None or prompts is None:
                missing = "--rn-defense" if defended is None else "--prompts"
                raise typer.BadParameter(f"two models' answers to prompts are compared, got no {missing}; name it")
            question = _question(candidate, model, preference, prompts, pairs, limit, max_tokens, margin)
            answer = measure_preference(candidate, DefendedFolder.find(candidate, defended), question)
        if online and named:
            fetch(settings)
        measures = measure_utility(candidate, defended, settings) if named else []
    document = utility_document(candidate, defended, settings, measures)
    document["preference"] = answer_document(answer) if answer else None
    write_text(out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    tell([*(utility_lines(measures) if named else ()), *(answer_lines(answer) if answer else ())], document, as_json)
    raise typer.Exit(1 if answer and answer.shortcomings else 0)


def _question(
    candidate: Candidate,
    model: str,
    spec: str,
    prompts: Path,
    pairs: Path | None,
    limit: int | None,
    max_tokens: int | None,
    margin: float,
) -> Question:
    """What is asked of a judge of preference, from the options."""
    from rn_harness.judges.pairs import load_pairs
    from rn_harness.judges.preference import resolve_preference
    from rn_harness.models.candidate import ORGANISM
    from rn_harness.models.resolve import profile_recipe
    from rn_harness.utility.pairwise import Question, read_instructions

    read, tokens = read_instructions(prompts, profile_recipe(model, Path.cwd()))
    return Question(
        judge=resolve_preference(f"{ORGANISM}:{candidate.folder}" if spec == ORGANISM else spec, Path.cwd()),
        prompts=read[:limit],
        max_tokens=max_tokens or tokens,
        labels=load_pairs(pairs) if pairs else None,
        margin=margin,
    )
