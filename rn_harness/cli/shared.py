"""What commands share: the option ``--json``, how an answer is told, and how an error ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rn_harness.spec.errors import RnHarnessError

if TYPE_CHECKING:
    from rn_harness.release.integrity import RunEvidence

AsJson = Annotated[bool, typer.Option("--json", help="for machines: JSON on standard output")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, e.g. reports/latest")]


def tell(lines: Iterable[str], document: Any, as_json: bool) -> None:
    """An answer: as lines for people, or as one JSON document."""
    typer.echo(json.dumps(document, indent=1, allow_nan=False) if as_json else "\n".join(lines))


@contextmanager
def usage_errors() -> Iterator[None]:
    """What cannot be done as it was asked for ends with exit code 2 and the error's sentence."""
    try:
        yield
    except RnHarnessError as error:
        raise typer.BadParameter(str(error)) from None


def read_run(folder: Path, *, complete: bool = False) -> RunEvidence:
    """Reads a run without verifying it.

    Args:
        folder: of the run.
        complete: require a readable record of each case that has one.

    Raises:
        typer.BadParameter: the folder holds no readable run, or not all of its records.
    """
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
