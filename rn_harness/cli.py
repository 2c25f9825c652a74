"""The command line: ``rn-harness certify-judge``, ``calibrate-judge``, ``calibrate`` and ``report``. Floor 5 (edge)."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Annotated

import typer

from rn_harness.anchors import AnchorSet, load_anchors, shipped_anchors
from rn_harness.candidate import ORGANISM, fixtures_folder
from rn_harness.certificates import shortcomings
from rn_harness.certification import anchors_for, certify
from rn_harness.cli_store import app as store_app
from rn_harness.errors import RnHarnessError, told
from rn_harness.judges import Judge, resolve_judge
from rn_harness.records import Certificate
from rn_harness.report.terminal import certificate_lines
from rn_harness.session import NO_DEFENSE, Options, RunSession
from rn_harness.store import Store, default_root
from rn_harness.strength import BUDGET
from rn_harness.strength import calibrate as find_strength
from rn_harness.suite import Policy, load_suite

app = typer.Typer(
    no_args_is_help=True,
    help="rn-harness: certify and calibrate judges, calibrate attacks. Suites are run by pytest.",
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")
Spec = Annotated[str, typer.Argument(help="the judge, as for --rn-judge", metavar="SPEC")]


@app.callback()
def _main() -> None:
    """Keeps the commands named even while there are few."""


def _resolve(spec: str) -> Judge:
    return resolve_judge(f"{ORGANISM}:{fixtures_folder() / ORGANISM}" if spec == ORGANISM else spec, Path.cwd())


@app.command()
def certify_judge(
    spec: Spec,
    labels: Annotated[Path | None, typer.Option(help="your own labelled texts, read here and never copied")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the certificate as JSON")] = False,
) -> None:
    """Shows a judge anchors whose score bands are known, four times, and tells how well it meets them.

    Exits with 0 if it stays within the default policy's bounds, with 1 if not.
    """
    policy = Policy()
    try:
        judge = _resolve(spec)
        inert = anchors_for(judge)
        judge.about(inert.forbidden).check([a.prompt for a in inert.of("certify")])
        found: list[Certificate] = [certify(judge, inert, policy)]
        if labels:
            found.append(certify(judge, load_anchors(labels), policy, "labels"))
    except RnHarnessError as error:
        raise typer.BadParameter(str(error)) from None
    below = [phrase for c in found for phrase in shortcomings(c, policy)]
    if as_json:
        typer.echo(json.dumps({"certified": not below, "shortcomings": below, "certificates": [c.model_dump() for c in found]}))
    else:
        for certificate in found:
            typer.echo("\n".join(certificate_lines(certificate)))
        typer.echo("certified" if not below else f"not certified: {'; '.join(below)}")
    raise typer.Exit(1 if below else 0)


@app.command()
def calibrate_judge(
    spec: Spec,
    out: Annotated[Path, typer.Option(help="where the calibration goes; beside the classifier as calibration.json it is found")],
    labels: Annotated[Path | None, typer.Option(help="your own labelled texts; default: the shipped anchors")] = None,
) -> None:
    """Fits how a classifier's probability maps to scores, on the texts marked ``use: calibrate``."""
    from rn_harness.judges.classifier import ClassifierJudge, calibrate

    try:
        judge = _resolve(spec)
        if not isinstance(judge, ClassifierJudge):
            raise typer.BadParameter(
                f"a calibration is for classifiers, got {spec!r}; other judges score on the rubric themselves"
            )
        anchors: AnchorSet = load_anchors(labels) if labels else shipped_anchors()
        out.write_text(calibrate(judge, anchors).model_dump_json(indent=1) + "\n", encoding="utf-8")
    except RnHarnessError as error:
        raise typer.BadParameter(str(error)) from None
    typer.echo(f"calibration written to {out}")


@app.command()
def calibrate(
    model: Annotated[str, typer.Option(help="the undefended candidate, as for --model")],
    suite: Annotated[Path, typer.Option(help="a suite's folder")],
    out: Annotated[Path | None, typer.Option(help="where the certificate goes; default: DOMAIN-strength.json here")] = None,
    judge: Annotated[str | None, typer.Option(help="as for --rn-judge")] = None,
    reward_judge: Annotated[str | None, typer.Option(help="as for --rn-reward-judge")] = None,
    second_judge: Annotated[str | None, typer.Option(help="as for --rn-second-judge")] = None,
    budget: Annotated[int, typer.Option(min=1, help="controls, at most")] = BUDGET,
) -> None:
    """Finds the weakest settings with which the suite's attack breaks the undefended model, and certifies them.

    Exits with 0 if some do, with 1 if none does within the budget. Controls are kept in the store, so that it goes on where it
    was stopped, and a run with --rn-strength finds them.
    """
    from tempfile import TemporaryDirectory

    from rn_harness.candidate import profile_recipe

    options = Options(model, NO_DEFENSE, judge, reward_judge, second_judge, None, "standard", (), Path.cwd())
    try:
        loaded = load_suite(suite, recipe=profile_recipe(model, Path.cwd()))
        with TemporaryDirectory(prefix="rn-harness-") as folder:
            session = RunSession(options, Path(folder), Store(default_root()), lambda p: typer.echo(p.line, err=True))
            session.check_judges(loaded)
            session.memory(loaded)
            strength = find_strength(session, loaded, budget)
    except RnHarnessError as error:
        raise typer.BadParameter(str(error)) from None
    for t in strength.tries:
        means = " ".join("-" if m is None else f"{m:.1f}" for m in t.means.values())
        typer.echo(f"{t.recipe} at temperature {t.temperature:g}: {'broke' if t.broke else 'held'}: {means}")
    if not strength.settings:
        typer.echo(f"no settings within {budget} controls broke it: {strength.search}")
        raise typer.Exit(1)
    path = out or Path(f"{loaded.domain}-strength.json")
    path.write_text(strength.model_dump_json(indent=1) + "\n", encoding="utf-8")
    typer.echo(f"{' '.join(strength.settings)} written to {path}: pytest {suite} --model {model} --rn-strength {path}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="a run's folder, e.g. reports/latest", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="where the views go; default: the run's folder")] = None,
    inspect: Annotated[Path | None, typer.Option(help="folder for a log of each case that Inspect opens; needs an extra")] = None,
) -> None:
    """Makes report.html and summary.md again from a run's records, without a model."""
    from rn_harness.report.inspect_log import write_inspect_logs
    from rn_harness.report.views import read_run, write_views

    try:
        found, records = read_run(run)
        written = write_views(out or run, found, records)
        written += write_inspect_logs(inspect, found, records) if inspect else []
        typer.echo("\n".join(map(str, written)))
    except (RnHarnessError, OSError) as error:
        raise typer.BadParameter(str(error)) from None


def main() -> None:
    """The entry point; what goes wrong is told without its message, which may quote a completion."""
    try:
        app()
    except Exception as error:  # noqa: BLE001  (told, and never swallowed)
        where = traceback.extract_tb(error.__traceback__)[-1]
        typer.echo(f"{told(error)}, raised at {where.filename}:{where.lineno}", err=True)
        raise SystemExit(2) from None
