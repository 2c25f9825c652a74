"""Commands that measure something outside of a run.

``certify-judge`` and ``calibrate-judge`` measure a judge, ``calibrate`` the settings with which an attack breaks a model, and
``utility`` the cost of a defense on harmless tasks.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from rn_harness.cli.shared import AsJson, SessionOptions, find_suite, say, settings_command, tell, usage_errors

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rn_harness.judges.protocol import Judge
    from rn_harness.models.candidate import Candidate
    from rn_harness.run.attack_strength import Strength
    from rn_harness.utility.pairwise import PreferenceResult

commands = typer.Typer()
Spec = Annotated[str, typer.Argument(help="the judge, as for --rn-judge", metavar="SPEC")]


def _organism(spec: str) -> str:
    """The spec; ``organism`` becomes that of the shipped organism's judge."""
    from rn_harness.spec.fixtures import fixtures_folder
    from rn_harness.spec.options import ORGANISM

    return f"{ORGANISM}:{fixtures_folder() / ORGANISM}" if spec == ORGANISM else spec


def _resolve(spec: str) -> Judge:
    from rn_harness.judges.resolve import resolve_judge

    return resolve_judge(_organism(spec), Path.cwd())


@commands.command("certify-judge")
def certify_judge_command(
    spec: Spec,
    labels: Annotated[Path | None, typer.Option("--judge-labels", help="your own texts, as for --rn-judge-labels")] = None,
    suite: Annotated[
        Path | None, typer.Option(parser=find_suite, metavar="SUITE", help="a suite, whose own anchors are shown if it has any")
    ] = None,
    preference: Annotated[bool, typer.Option("--preference", help="for preference between two answers, not for harm")] = False,
    as_json: AsJson = False,
) -> None:
    """Shows a judge anchors whose score bands are known, four times, and tells how well it meets them.

    Exits with 0 if it stays within the default policy's bounds, with 1 if not.
    """
    if preference and suite:
        raise typer.BadParameter("a suite's anchors are about harm, got --preference with --suite; leave one out")
    if preference:
        _certify_preference(spec, labels, as_json=as_json)
    from rn_harness.judges.anchors import certify, load_anchors, suite_anchors
    from rn_harness.judges.organism import anchors_for
    from rn_harness.report.terminal import certificate_table
    from rn_harness.spec.policy import Policy
    from rn_harness.spec.suite import load_suite
    from rn_harness.verdict.judge_evidence import shortcomings

    policy = Policy()
    with usage_errors():
        judge, own = _resolve(spec), load_anchors(labels) if labels else None
        by_suite = suite_anchors(load_suite(suite)) if suite else None
        anchors = anchors_for(judge, by_suite)
        judge.about(anchors.forbidden).check([a.prompt for a in anchors.of("certify")])
        found = [certify(judge, anchors, policy, "suite" if anchors is by_suite else "inert")]
        if own:
            found.append(certify(judge, own, policy, "labels"))
    below = [phrase for c in found for phrase in shortcomings(c, policy)]
    lines = [line for certificate in found for line in certificate_table(certificate)]
    _end("certified", found, lines, below, as_json=as_json)


def _certify_preference(spec: str, labels: Path | None, *, as_json: bool) -> None:
    """Certifies a judge of preference on labelled pairs, for ``rn-harness utility --preference``."""
    from rn_harness.judges.anchors import load_pairs
    from rn_harness.judges.preference import resolve_preference
    from rn_harness.utility.pairwise import certificates_of, preference_lines

    with usage_errors():
        found, below = certificates_of(resolve_preference(_organism(spec), Path.cwd()), load_pairs(labels) if labels else None)
    lines = [line for certificate in found for line in preference_lines(certificate)]
    _end("certified for preference", found, lines, below, as_json=as_json)


def _end(word: str, found: Sequence[BaseModel], lines: list[str], below: Sequence[str], *, as_json: bool) -> NoReturn:
    """Prints certificates, and exits with 1 if the judge is below a bound."""
    lines.append(f"not {word}: {'; '.join(below)}" if below else word)
    document = {"certified": not below, "shortcomings": below, "certificates": [c.model_dump(mode="json") for c in found]}
    tell(lines, document, as_json)
    raise typer.Exit(1 if below else 0)


@commands.command("calibrate-judge")
def calibrate_judge_command(
    spec: Spec,
    out: Annotated[Path, typer.Option(help="where the calibration goes; beside the classifier as calibration.json it is found")],
    labels: Annotated[
        Path | None, typer.Option("--judge-labels", help="your own texts, as for --rn-judge-labels; default: the shipped anchors")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fits how a classifier's probability maps to scores, on the texts marked ``use: calibrate``."""
    from rn_harness.judges.anchors import load_anchors, shipped_anchors
    from rn_harness.judges.classifier import ClassifierJudge, calibrate_classifier

    with usage_errors():
        judge = _resolve(spec)
        if not isinstance(judge, ClassifierJudge):
            raise typer.BadParameter(
                f"a calibration is for classifiers, got {spec!r}; other judges score on the rubric themselves"
            )
        fitted = calibrate_classifier(judge, load_anchors(labels) if labels else shipped_anchors())
    out.write_text(fitted.model_dump_json(indent=1) + "\n", encoding="utf-8")
    tell([f"calibration written to {out}"], {"file": str(out)}, as_json)


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(SessionOptions):
    """The options of ``rn-harness calibrate``."""

    model: Annotated[str, typer.Option(help="the undefended candidate, as for --model")] = field()
    suite: Annotated[Path, typer.Option(parser=find_suite, metavar="SUITE", help="a suite")]
    out: Annotated[Path | None, typer.Option(help="where the certificate goes; default: DOMAIN-strength.json here")] = None
    prompts: Annotated[str | None, typer.Option(help="as for --rn-prompts", metavar="DIR")] = None
    chat_template: Annotated[str | None, typer.Option(help="as for --rn-chat-template", metavar="FILE")] = None
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="as for --rn-allow-pickle")] = False
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="as for --rn-trust-remote-code")] = False
    quantise: Annotated[Literal["nf4"] | None, typer.Option(help="as for --rn-quantise")] = None
    sampler: Annotated[str, typer.Option(help="as for --rn-sampler", metavar="transformers|vllm|vllm:URL")] = "transformers"
    acknowledge: Annotated[bool, typer.Option("--acknowledge", help="as for --rn-acknowledge")] = False
    budget: Annotated[int | None, typer.Option(min=1, help="controls, at most; default: enough for the whole search")] = None


@settings_command(commands, "calibrate", CalibrateOptions)
def calibrate_command(asked: CalibrateOptions) -> None:
    """Finds the weakest settings with which the suite's attack breaks the undefended model, and certifies them.

    Exits with 0 if some do, with 1 if none does within the budget. Controls are kept in the store, so that it goes on where it
    was stopped, and a run with --rn-strength finds them.
    """
    from tempfile import TemporaryDirectory

    from rn_harness.run.attack_strength import BUDGET, find_strength
    from rn_harness.run.preflight import check_acknowledged, check_folders, check_here
    from rn_harness.spec.suite import load_suite
    from rn_harness.verdict.validity import NO_DEFENSE

    passed = ("prompts", "chat_template", "allow_pickle", "trust_remote_code", "quantise", "sampler", "acknowledge")
    options = asked.run_options(defense=NO_DEFENSE, **{name: getattr(asked, name) for name in passed})
    budget = asked.budget or BUDGET
    with usage_errors():
        loaded = load_suite(asked.suite, private=options.private, recipe=asked.recipe)
        with TemporaryDirectory(prefix="rn-harness-") as folder:
            session = asked.session(options, Path(folder), say)
            check_folders(session, [loaded])
            check_acknowledged(session, [loaded])
            check_here(session, loaded)
            strength = find_strength(session, loaded, budget)
    path = asked.out or Path(f"{loaded.domain}-strength.json")
    if strength.settings:
        path.write_text(strength.model_dump_json(indent=1) + "\n", encoding="utf-8")
        settings = dataclasses.replace(options, strength=(str(path),)).arguments
        kept = [option for option in settings if not option.startswith(("--rn-defense=", "--rn-tier="))]  # a run chooses these
        last = f"{' '.join(strength.settings)} written to {path}: {shlex.join(['pytest', str(asked.suite), *kept])}"
    else:
        last = f"no settings within {budget} controls broke it: {strength.search}"
    tell([*_tried_lines(strength), last], strength.model_dump(mode="json"), asked.as_json)
    raise typer.Exit(0 if strength.settings else 1)


def _tried_lines(strength: Strength) -> Iterator[str]:
    for t in strength.tries:
        means = " ".join("-" if m is None else f"{m:.1f}" for m in t.means.values())
        yield f"{t.recipe} at temperature {t.temperature:g}: {'broke' if t.broke else 'held'}: {means}"


@dataclass(frozen=True, kw_only=True)
class UtilityOptions:
    """The options of ``rn-harness utility``."""

    out: Annotated[Path, typer.Option(help="JSON file for the numbers; no sample is kept")]
    tasks: Annotated[str, typer.Option(help="tasks or groups of lm-evaluation-harness, by commas, e.g. mmlu,ifeval")] = ""
    model: Annotated[str, typer.Option(help="undefended candidate, as for --model")] = "organism"
    defended: Annotated[
        Path | None,
        typer.Option("--defense", help="folder of the defended weights, an adapter or a whole model, as for --rn-defense"),
    ] = None
    include_path: Annotated[Path | None, typer.Option(help="folder with tasks of your own; their code is run")] = None
    chat_template: Annotated[bool, typer.Option("--templated/--plain", help="ask through the model's chat template")] = True
    limit: Annotated[int | None, typer.Option(min=1, help="samples of each task, and prompts; default: all")] = None
    batch: Annotated[int, typer.Option(min=1, help="requests at once")] = 8
    online: Annotated[bool, typer.Option("--online", help="fetch the tasks' data from the hub first")] = False
    preference: Annotated[str | None, typer.Option(metavar="SPEC", help="judge that compares the two models' answers")] = None
    questions: Annotated[Path | None, typer.Option(help="what they answer: a suite's folder, or a JSON file of instructions")] = (
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
        for name, given in (("--questions", self.questions), ("--pairs", self.pairs), ("--max-tokens", self.max_tokens)):
            if given is not None and self.preference is None:
                raise typer.BadParameter(f"{name} goes with --preference, got none; name a judge, or drop it")
        folders = (("--defense", self.defended), ("--include-path", self.include_path), ("--out", self.out.parent))
        for name, folder in folders:
            if folder is not None and not folder.is_dir():
                raise typer.BadParameter(f"{name} must name a folder that exists, got {folder}; correct the path")


@settings_command(commands, "utility", UtilityOptions)
def utility_command(asked: UtilityOptions) -> None:
    """Measures the cost of a defense: tasks of lm-evaluation-harness (extra `utility`), and which answers a judge prefers.

    Exits with 1, without a number, if the judge is not certified for preference.
    """
    from rn_harness.models.resolve import resolve_candidate
    from rn_harness.store.files import write_text
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
    from rn_harness.models.resolve import profile_recipe
    from rn_harness.spec.options import ORGANISM
    from rn_harness.utility.pairwise import Question, measure_preference, read_instructions
    from rn_harness.utility.tasks import DefendedFolder

    if asked.preference is None:
        return None
    if asked.defended is None or asked.questions is None:
        missing = "--defense" if asked.defended is None else "--questions"
        raise typer.BadParameter(f"two models' answers to prompts are compared, got no {missing}; name it")
    prompts, tokens = read_instructions(asked.questions, profile_recipe(asked.model, Path.cwd()))
    spec = f"{ORGANISM}:{candidate.folder}" if asked.preference == ORGANISM else asked.preference
    question = Question(
        judge=resolve_preference(spec, Path.cwd()),
        prompts=prompts[: asked.limit],
        max_tokens=asked.max_tokens or tokens,
        labels=load_pairs(asked.pairs) if asked.pairs else None,
        margin=asked.margin,
    )
    return measure_preference(candidate, DefendedFolder.find(candidate, asked.defended), question)
