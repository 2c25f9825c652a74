"""Parts that commands share: options, printing of an answer, and errors that end with exit code 2."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from rn_harness.spec.errors import RnHarnessError
from rn_harness.spec.fixtures import suites_folder

if TYPE_CHECKING:
    from rn_harness.release.integrity import RunEvidence
    from rn_harness.report.progress import Progress
    from rn_harness.run.session import RunSession
    from rn_harness.spec.options import Options

S = TypeVar("S")
AsJson = Annotated[bool, typer.Option("--json", help="for machines: JSON on standard output")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, e.g. reports/latest")]


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """The options of the commands that look at a model and its judges as a run would."""

    model: Annotated[str, typer.Option(help="candidate, as for --model")] = "organism"
    judge: Annotated[str | None, typer.Option(help="as for --rn-judge")] = None
    reward_judge: Annotated[str | None, typer.Option(help="as for --rn-reward-judge")] = None
    second_judge: Annotated[str | None, typer.Option(help="as for --rn-second-judge")] = None
    as_json: AsJson = False

    def run_options(self, **others: Any) -> Options:
        """The options of a run with this model and these judges."""
        from rn_harness.spec.options import Options

        same = {name: getattr(self, name) for name in ("model", "judge", "reward_judge", "second_judge")}
        return Options(base=Path.cwd(), **same, **others)

    @property
    def recipe(self) -> tuple[str, ...]:
        """The settings that the model's profile gives to a suite's recipes."""
        from rn_harness.models.resolve import profile_recipe

        return profile_recipe(self.model, Path.cwd())

    def session(
        self, options: Options, folder: Path | None = None, say: Callable[[Progress], None] = lambda _: None
    ) -> RunSession:
        """A session of a run with these options, which uses the store."""
        from rn_harness.run.session import RunSession
        from rn_harness.store.store import Store, default_root

        return RunSession(options, folder or Path.cwd(), Store(default_root()), say)


def settings_command(app: typer.Typer, name: str, settings: type[S]) -> Callable[[Callable[[S], None]], Callable[[S], None]]:
    """Registers a function of one settings object as a command whose options are the fields of its dataclass.

    typer reads a function's signature, so a command of fifteen options would otherwise be a function of fifteen parameters.
    """
    hints = get_type_hints(settings, include_extras=True)
    parameters = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if option.default is MISSING else option.default,
            annotation=hints[option.name],
        )
        for option in fields(settings)  # type: ignore[arg-type]  # a dataclass
    ]

    def decorate(run: Callable[[S], None]) -> Callable[[S], None]:
        def command(**values: Any) -> None:
            run(settings(**values))

        command.__doc__ = run.__doc__
        vars(command)["__signature__"] = inspect.Signature(parameters)
        app.command(name)(command)
        return run

    return decorate


def find_suite(named: str) -> Path:
    """A suite by its folder, by its name in ``./suites``, or by the name of a shipped one; else the path as it is."""
    places = (Path(named), Path("suites", named), suites_folder() / named)
    return next((place for place in places if place.is_dir()), Path(named))


def table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Rows as columns, below the names of their values."""
    from rn_harness.report.terminal import columns

    return columns([list(row) for row in rows[:1]] + [[str(cell) for cell in row.values()] for row in rows])


def tell(lines: Iterable[str], document: Any, as_json: bool) -> None:
    """Prints an answer as lines for people, or as one JSON document."""
    typer.echo(json.dumps(document, indent=1, allow_nan=False) if as_json else "\n".join(lines))


def say(progress: Progress) -> None:
    """Writes progress to standard error."""
    if progress.state is not None:
        typer.echo(progress.line, err=True)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Ends an error of ours, or of a file, with exit code 2 and its sentence."""
    try:
        yield
    except (RnHarnessError, OSError) as error:
        raise typer.BadParameter(str(error)) from None


def read_run(folder: Path, *, complete: bool = False) -> RunEvidence:
    """Reads a run without verifying it; ``complete`` requires a readable record of each case that has one."""
    from rn_harness.release.integrity import read_evidence

    evidence, refusals = read_evidence(folder)
    if evidence is None:
        raise typer.BadParameter(
            f"a run's folder must hold run.json, got {folder}: {refusals[0].sentence}; see reports/ for runs"
        )
    lost = [line.case_id for line in evidence.run.cases if line.key and line.record not in evidence.records]
    if complete and lost:
        why = "; ".join(refusal.sentence for refusal in refusals)
        raise typer.BadParameter(
            f"{folder}: each case of run.json has a record, got none of {', '.join(lost)}: {why}; copy the whole folder"
        )
    return evidence
