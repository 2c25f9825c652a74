"""The pages about a run: ``report.html``, ``summary.md``, and the model card of exported weights.

They show the records and compute nothing. They are written after the records, and can be written again from them at any time,
without a model. ``report.html`` is one file that opens offline, without scripts or external resources; the summary is for a pull
request's comment or a job's summary. Names from other people (models, judges, suites) are escaped: in HTML by the template, in
Markdown so that they cannot format text, link, or mention anyone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn_harness.records.base import Outcome
from rn_harness.records.case import PROBED, CaseRecord
from rn_harness.records.resistance import HarmPoint
from rn_harness.records.run import REPORT, SUMMARY, CaseLine, Coverage, RunRecord
from rn_harness.records.statistics import MeanInterval
from rn_harness.records.trajectory import UNDER, Trajectory
from rn_harness.report.figures import BUDGETS, budget_svg, convergence_svg, heat_svg, plot_svg, stored_svg, trajectory_svg
from rn_harness.report.terminal import (
    SHOWN,
    broken_lines,
    result_text,
    resumed_text,
    standing_suffix,
    standing_text,
    tally_lines,
    tree_text,
)
from rn_harness.report.tiles import Cases, bounds_of, lost_attacks, number, shown_certificates, tiles_of
from rn_harness.store.files import write_text
from rn_harness.verdict.completeness import recipe_of
from rn_harness.verdict.resistance import harm_by_budget
from rn_harness.verdict.signatures import below

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = (
    ("attacks", "Attacks"), ("budgets", "Harm by budget"), ("cases", "All cases"), ("defenses", "Defense"),
    ("helpfulness", "Helpfulness"), ("judges", "Judge"), ("coverage", "Coverage"), ("provenance", "Provenance"),
)  # fmt: skip
SHOWN_AS: dict[Outcome | None, str] = {"PASS": "held", "FAIL": "broke", "INCONCLUSIVE": "undecided", None: "undecided"}
"""Outcomes of attacks, by which the page filters them."""
ICONS = {"PASS": "\u2713", "FAIL": "\u2717", "INCONCLUSIVE": "?", None: "?"}
ComparedSide = tuple[CaseLine | None, CaseRecord | None]
"""A case in one of two runs; None: it was not run."""


def write_views(folder: Path, run: RunRecord, records: Iterable[CaseRecord]) -> list[Path]:
    """Writes ``report.html`` and ``summary.md`` into a run's folder, and returns their paths."""
    by_key = {(r.identity.suite["domain"], r.case_id, r.key): r for r in records}
    cases = [(line, by_key.get((line.domain, line.case_id, line.key or ""))) for line in run.cases]
    paths = [folder / REPORT, folder / SUMMARY]
    for path, text in zip(paths, (render_html(run, cases), render_summary(run, cases)), strict=True):
        write_text(path, text)
    return paths


def render_html(run: RunRecord, cases: Cases) -> str:
    """The page of a run and its cases."""
    of_kind = {
        kind: [(line, record) for line, record in cases if record and record.evidence.kind == kind]
        for kind in ("attack", "defense", "helpfulness")
    }
    families = {(of.domain, case): family.family for of in run.coverage for family in of.families for case in family.cases}
    attacks = [(line, record) for line, record in cases if line.case_id.startswith("attack-")]
    lost = {of.domain: lost_attacks(cases, of) for of in run.coverage}
    steps = max((run.steps for _, record in of_kind["attack"] for run in record.evidence.runs), default=0)
    return _render(
        "report.html.j2",
        run,
        cases=cases,
        css=_css(),
        sections=SECTIONS,
        tiles={of: list(tiles_of([case for case in cases if case[0].domain == of], left)) for of, left in lost.items()},
        lost=lost,
        outcomes=list(dict.fromkeys(SHOWN_AS[line.outcome] for line, _ in attacks)),
        families=list(dict.fromkeys(families.values())),
        steps=steps,
        attacks=[
            _attack(f"attack-{i}", line, record, steps or 1) | {"family": families.get((line.domain, line.case_id))}
            for i, (line, record) in enumerate(attacks)
        ],
        harm=list(_harm(of_kind["attack"])),
        defenses=[_defense(f"defense-{i}", line, record, cases) for i, (line, record) in enumerate(of_kind["defense"])],
        helpful=of_kind["helpfulness"],
        certificates=shown_certificates(cases),
    )


def render_index(runs: Sequence[tuple[str, RunRecord, str | None]], unread: Sequence[tuple[str, str]]) -> str:
    """The page over many runs, each with its folder's name and a link to its report; and why others cannot be read.

    Its script only sorts the table, and no other is allowed to run: the page names the script's hash.
    """
    newest = sorted(runs, key=lambda each: each[1].ended, reverse=True)
    script = (TEMPLATES / "index.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _template("index.html.j2")
    return page.render(runs=newest, unread=unread, css=_css(), script=script, script_hash=f"sha256-{digest}")


def render_comparison(
    runs: tuple[RunRecord, RunRecord],
    rows: Sequence[tuple[str, str, tuple[ComparedSide, ComparedSide], MeanInterval | str]],
    changes: Sequence[object],
) -> str:
    """The page of two runs side by side.

    Args:
        runs: their records.
        rows: of each case: how it changed, its name, its line and record in both runs, and the paired difference or why not.
        changes: the list of changes.
    """
    records = [record for _, _, sides, _ in rows for _, record in sides if record]
    steps = max((run.steps for record in records for run in record.evidence.runs), default=0) or 1
    shown = [(kind, name, [_side(*side, steps) for side in sides], difference) for kind, name, sides, difference in rows]
    return _template("compare.html.j2").render(
        runs=runs, rows=shown, changes=changes, css=_css(), icons=ICONS, kinds=Counter(kind for kind, *_ in rows)
    )


def _side(line: CaseLine | None, record: CaseRecord | None, steps: int) -> dict[str, Any]:
    """A case in one of two runs: its result, its scores above the threshold, and its plot."""
    if line is None:
        return {"outcome": None, "result": "not run"}
    run = record.evidence.trajectory if record else None
    shown = {"outcome": line.outcome, "result": result_text(line, record)}
    if record is None or run is None or record.evidence.kind == "helpfulness":
        return shown
    above = [c.above for c in run.checkpoints]
    return shown | {
        "highest": max((c.highest for c in run.seen if c.highest is not None), default=None),
        "above": f"{sum(of.count for of in above)} of {sum(of.total for of in above)}",
        "plot": plot_svg(record, steps, 18, control=False) if run.steps else "",
    }


def render_summary(run: RunRecord, cases: Cases) -> str:
    """The summary of a run and its cases, in Markdown."""
    return _render("summary.md.j2", run, cases=cases, not_run=_not_run)


def render_card(run: RunRecord, records: Sequence[CaseRecord], digest: str, *, is_adapter: bool) -> str:
    """The card of one domain's defended weights, which have this digest in at least one of the records, in Markdown."""
    identity = next(r.identity for r in records if r.identity.defended_digest == digest)
    metadata = _metadata(records, str(identity.candidate["name"]), identity.suite["domain"], is_adapter=is_adapter)
    return _render(
        "card.md.j2",
        run,
        records=records,
        digest=digest,
        identity=identity,
        metadata=metadata,
        is_adapter=is_adapter,
        attacked=any(r.evidence.kind == "attack" and r.evidence.trajectory for r in records),
    )


@functools.cache
def _template(name: str) -> jinja2.Template:
    """A template, compiled once in a process: that takes ten times as long as to fill it.

    In Markdown, HTML's escapes do not fit, and every text from other people goes through the filter ``md``.
    """
    import jinja2

    page = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html.j2"),  # nosec B701
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(number=number, below=below, show=_show, md=lambda value: plain(str(value)))
    return page.get_template(name)


def _css() -> str:
    return (TEMPLATES / "report.css").read_text(encoding="utf-8")


def _render(template: str, run: RunRecord, **values: Any) -> str:
    """A template, filled with the run, the terminal's sentences and these values."""
    sentences = {
        "icons": ICONS,
        "shown": SHOWN,
        "broken": list(broken_lines(run)),
        "tally": list(tally_lines(run)),
        "standing_text": standing_text,
        "standing_suffix": standing_suffix,
        "result_text": result_text,
        "tree_text": tree_text,
        "resumed_text": resumed_text,
        "release": f"{'A' if run.releasable else 'No'} release can rest on this run",
    }
    return _template(template).render(run=run, **sentences, **values)


def plain(text: str) -> str:
    """Text on one line that Markdown shows literally: without marks, elements, links and mentions."""
    one_line = " ".join(text.split())
    escaped = re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", one_line)
    return re.sub(r"(?<=[@:])(?=[\w/])", "\u200b", escaped)  # breaks @name and https://


def _show(value: object) -> str:
    """A setting's value for a cell."""
    return value if isinstance(value, str) else json.dumps(value)


def _attack(name: str, line: CaseLine, record: CaseRecord | None, steps: int) -> dict[str, Any]:
    """An attack case with its figures, which are missing if nothing was measured, and its runs."""
    shown = {"name": name, "line": line, "record": record, "shown_as": SHOWN_AS[line.outcome], "trajectory": "", "runs": []}
    shown["bounds"] = bounds_of(record) if record else None
    if record is None or record.evidence.trajectory is None:
        return shown
    runs = (("control", record.evidence.control), ("defended", record.evidence.trajectory))
    return shown | {
        "plot": plot_svg(record, steps, 60, control=True),
        "spark": plot_svg(record, steps, 18, control=False),
        "trajectory": stored_svg(trajectory_svg, f"{name}-trajectory", record),
        "heat": stored_svg(heat_svg, f"{name}-heat", record),
        "runs": [
            {"title": title, "checkpoints": run.checkpoints, "scores": list(_scores(run)), "aids": _aids(run)}
            for title, run in runs
            if run
        ],
    }


def _harm(attacks: Sequence[tuple[CaseLine, CaseRecord]]) -> Iterator[dict[str, Any]]:
    """For each domain and axis with measured attacks: the figure of harm by budget, and its numbers, row by row.

    Restrained attacks are among them, since any of them may be the one that broke the model.
    """
    for domain in dict.fromkeys(line.domain for line, _ in attacks):
        of_domain = [record.evidence for line, record in attacks if line.domain == domain]
        pairs = [p for e in of_domain for p in ((e.trajectory, e.control), *((of.attack, of.control) for of in e.restrained))]
        runs = [(recipe, attack, control) for attack, control in pairs if attack and (recipe := recipe_of(attack))]
        for axis in BUDGETS:
            curve = harm_by_budget(axis, runs, of_domain[0].policy.threshold)
            if not curve.defended:
                continue
            name = f"harm-{domain}-{axis}"
            held, controls = ({p.budget: p for p in points} for points in (curve.defended, curve.control))
            rows = [(b, *_harm_at(held.get(b)), *_harm_at(controls.get(b))) for b in sorted({*held, *controls})]
            figure = stored_svg(budget_svg, name, curve)
            yield {"name": name, "domain": domain, "curve": curve, "figure": figure, "unit": BUDGETS[axis], "rows": rows}


def _harm_at(point: HarmPoint | None) -> tuple[str, str]:
    return (number(point.maximum), number(point.mean)) if point else ("", "")


def _aids(run: Trajectory) -> list[str]:
    """Heads of the columns with the highest scores under aids."""
    return [f"Highest {UNDER[aid]}" for aid in (run.checkpoints[0].aided if run.checkpoints else ())]


def _scores(run: Trajectory) -> Iterator[Sequence[str]]:
    """Heads, then a row for each prompt: in each checkpoint's cell the scores of all completions, the greedy one first."""
    yield "Prompt", *(f"step {c.step}" for c in run.checkpoints)
    for prompt_id in run.heldout_ids:
        scores = [sorted((s for s in c.scores if s.prompt_id == prompt_id), key=lambda s: s.sample) for c in run.checkpoints]
        yield prompt_id, *(" ".join("\u2013" if s.score is None else f"{s.score:g}" for s in cell) for cell in scores)


def _defense(name: str, line: CaseLine, record: CaseRecord, cases: Cases) -> dict[str, Any]:
    report = record.evidence.report
    figure = stored_svg(convergence_svg, f"{name}-convergence", report) if report else ""
    measured = {of.evidence.kind: of.evidence.trajectory for at, of in cases if of and at.domain == line.domain}
    models = zip(PROBED, ("undefended", "defended"), strict=True)
    probed = [(who, run.probes) for kind, who in models if (run := measured.get(kind)) and run.probes]
    return {"name": name, "domain": line.domain, "record": record, "report": report, "figure": figure, "probed": probed}


def _not_run(coverage: Coverage) -> list[tuple[str, str]]:
    """Names of the cases, families and measurements that were not run, by kind."""
    kinds = {"case": "cases", "family": "families of attacks", "measurement": "measurements"}
    found = [(title, ", ".join(n.name for n in coverage.not_run if n.kind == kind)) for kind, title in kinds.items()]
    return [(title, names) for title, names in found if names]


def _metadata(records: Sequence[CaseRecord], base: str, domain: str, *, is_adapter: bool) -> str:
    """The card's head as YAML, by Hugging Face's own library: the base, and results except INCONCLUSIVE ones."""
    from huggingface_hub import EvalResult, ModelCardData

    found = []
    for record in records:
        if record.verdict.outcome == "INCONCLUSIVE":
            continue
        bounds, trajectory = bounds_of(record), record.evidence.trajectory
        benign = trajectory.checkpoints[0].benign if trajectory and trajectory.checkpoints else None
        metrics: list[tuple[str, str, float]] = []
        if bounds:
            metrics = [
                ("breached_prompts", f"held-out prompts with a score above the threshold, of {bounds.prompts}", bounds.breached),
                ("upper_bound", "upper bound of their share, 95 %, one-sided", bounds.upper_prompts),
            ]
        elif record.evidence.kind == "helpfulness" and benign:
            metrics = [("similarity_difference", "benign answers: similarity less the base's own", benign.difference.mean)]
        found += [
            EvalResult(
                task_type="text-generation",
                dataset_type=f"rn-harness/{domain}",
                dataset_name=f"rn-harness suite {domain}",
                dataset_config=record.case_id,
                dataset_revision=record.identity.suite["digest"],
                metric_type=kind,
                metric_name=name,
                metric_value=value,
            )
            for kind, name, value in metrics
        ]
    card = ModelCardData(
        base_model=base,
        library_name="peft" if is_adapter else "transformers",
        tags=["rn-harness", "reward-neutralization"],
        model_name=f"{base} defended in {domain}" if found else None,
        eval_results=found or None,
    )
    return str(card.to_yaml()).rstrip("\n")
