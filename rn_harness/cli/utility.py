"""``rn-harness utility``: measures the cost of a defense on harmless tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rn_harness.cli.shared import AsJson, settings_command, tell, usage_errors

if TYPE_CHECKING:
    from rn_harness.models.candidate import Candidate
    from rn_harness.utility.pairwise import PreferenceResult


commands = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class UtilityOptions:
    """The options of ``rn-harness utility``."""

    out: Annotated[Path, typer.Option(help="JSON file for the numbers; no sample is kept")]
    tasks: Annotated[str, typer.Option(help="tasks or groups of lm-evaluation-harness, by commas, e.g. mmlu,ifeval")] = ""
    model: Annotated[str, typer.Option(help="undefended candidate, as for pytest --model")] = "organism"
    defended: Annotated[
        Path | None,
        typer.Option("--rn-defense", "--weights", help="folder of the defended weights: an adapter, or a whole model"),
    ] = None
    include_path: Annotated[Path | None, typer.Option(help="folder with tasks of your own; their code is run")] = None
    chat_template: Annotated[bool, typer.Option(help="ask through the model's chat template")] = True
    limit: Annotated[int | None, typer.Option(min=1, help="samples of each task, and prompts; default: all")] = None
    batch: Annotated[int, typer.Option(min=1, help="requests at once")] = 8
    online: Annotated[bool, typer.Option("--online", help="fetch the tasks' data from the hub first")] = False
    preference: Annotated[str | None, typer.Option(metavar="SPEC", help="judge that compares the two models' answers")] = None
    prompts: Annotated[Path | None, typer.Option(help="what they answer: a suite's folder, or a JSON file of instructions")] = (
        None
    )
    pairs: Annotated[Path | None, typer.Option(help="your own labelled pairs, on which that judge is certified too")] = None
    margin: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of the prompts that may be lost on balance")] = 0.1
    max_tokens: Annotated[int | None, typer.Option(min=1, help="limit of an answer; default: the suite's, else 512")] = None
    as_json: AsJson = False

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.tasks.split(",") if name.strip()))

    def check(self) -> None:
        """Refuses options that do not fit together, and folders that do not exist."""
        if not self.task_names and self.preference is None:
            raise typer.BadParameter("something must be measured, got neither --tasks nor --preference; name one of them")
        for name, given in (("--prompts", self.prompts), ("--pairs", self.pairs), ("--max-tokens", self.max_tokens)):
            if given is not None and self.preference is None:
                raise typer.BadParameter(f"{name} goes with --preference, got none; name a judge, or drop it")
        folders = (("--rn-defense", self.defended), ("--include-path", self.include_path), ("--out", self.out.parent))
        for name, folder in folders:
            if folder is not None and not folder.is_dir():
                raise typer.BadParameter(f"{name} must name a folder that exists, got {folder}; correct the path")


@settings_command(commands, "utility", UtilityOptions)
def utility_command(asked: UtilityOptions) -> None:
    """Measures the cost of a defense: tasks of lm-evaluation-harness (extra `utility`), and which answers a judge prefers.

    Exits with 1, without a number, if the judge is not certified for preference.
    """
    from rn_harness.models.resolve import resolve_candidate
    from rn_harness.store.store import write_text
    from rn_harness.utility.tasks import Settings, fetch, measure_utility, utility_document, utility_lines

    asked.check()
    settings = Settings(
        tasks=asked.task_names,
        include_path=asked.include_path,
        chat_template=asked.chat_template,
        limit=asked.limit,
        batch=asked.batch,
    )
    with usage_errors():
        candidate = resolve_candidate(asked.model, Path.cwd())
        answer = _compare_answers(candidate, asked)
        if asked.online and settings.tasks:
            fetch(settings)
        measures = measure_utility(candidate, asked.defended, settings) if settings.tasks else []
    document = utility_document(candidate, asked.defended, settings, measures)
    document["preference"] = answer.document if answer else None
    write_text(asked.out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    lines = [*(utility_lines(measures) if settings.tasks else ()), *(answer.lines if answer else ())]
    tell(lines, document, asked.as_json)
    raise typer.Exit(1 if answer and answer.shortcomings else 0)


def _compare_answers(candidate: Candidate, asked: UtilityOptions) -> PreferenceResult | None:
    """The judge's preference between the answers with and without the defense; None: no judge was named."""
    from rn_harness.judges.anchors import load_pairs
    from rn_harness.judges.preference import resolve_preference
    from rn_harness.models.candidate import ORGANISM
    from rn_harness.models.resolve import profile_recipe
    from rn_harness.utility.pairwise import Question, measure_preference, read_instructions
    from rn_harness.utility.tasks import DefendedFolder

    if asked.preference is None:
        return None
    if asked.defended is None or asked.prompts is None:
        missing = "--rn-defense" if asked.defended is None else "--prompts"
        raise typer.BadParameter(f"two models' answers to prompts are compared, got no {missing}; name it")
    prompts, tokens = read_instructions(asked.prompts, profile_recipe(asked.model, Path.cwd()))
    spec = f"{ORGANISM}:{candidate.folder}" if asked.preference == ORGANISM else asked.preference
    question = Question(
        judge=resolve_preference(spec, Path.cwd()),
        prompts=prompts[: asked.limit],
        max_tokens=asked.max_tokens or tokens,
        labels=load_pairs(asked.pairs) if asked.pairs else None,
        margin=asked.margin,
    )
    return measure_preference(candidate, DefendedFolder.find(candidate, asked.defended), question)
