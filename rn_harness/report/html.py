"""``report.html``: a run on one page that opens offline.

A view of ``run.json`` and the cases' records that computes nothing. It is one file without scripts or external resources. The
template escapes names from other people (models, judges, suites).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn_harness.records.case import CaseRecord
from rn_harness.records.certificate import Certificate
from rn_harness.records.run import CaseLine, RunRecord
from rn_harness.records.trajectory import Trajectory
from rn_harness.report.figures import convergence_svg, heat_svg, stored_svg, trajectory_svg
from rn_harness.report.terminal import broken_lines, finding_text, resumed_text, standing_text, tally_lines, tree_text

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = (
    ("cases", "Cases"), ("attacks", "Trajectories"), ("signatures", "Failure signatures"), ("defenses", "Defense"),
    ("helpfulness", "Helpfulness"), ("judges", "Judge"), ("coverage", "Coverage"), ("statistics", "Statistics"),
    ("provenance", "Provenance"),
)  # fmt: skip
ICONS = {"PASS": "\u2713", "FAIL": "\u2717", "INCONCLUSIVE": "?", None: "?"}
Cases = Sequence[tuple[CaseLine, CaseRecord | None]]
"""The cases of a run; a case without a record has None."""


def render_html(run: RunRecord, cases: Cases) -> str:
    """The page of a run and its cases."""
    page = environment(autoescape=True)
    page.filters.update(number=number, show=_show)
    attacks = _of_kind(cases, "attack")
    text = page.get_template("report.html.j2").render(
        run=run,
        cases=cases,
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        sections=SECTIONS,
        icons=ICONS,
        attacks=[_attack(f"attack-{i}", line, record) for i, (line, record) in enumerate(attacks)],
        defenses=[_defense(f"defense-{i}", line, record) for i, (line, record) in enumerate(_of_kind(cases, "defense"))],
        helpful=_of_kind(cases, "helpfulness"),
        certificates=_certificates(cases),
        **sentences_of(run),
    )
    return text + "\n"


def environment(*, autoescape: bool) -> jinja2.Environment:
    """The settings of all templates."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701  # nosec B701 # Markdown needs other escapes than HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def sentences_of(run: RunRecord) -> dict[str, Any]:
    """The terminal's sentences, for templates."""
    return {
        "broken": list(broken_lines(run)),
        "tally": list(tally_lines(run)),
        "standing_text": standing_text,
        "finding_text": finding_text,
        "tree_text": tree_text,
        "resumed_text": resumed_text,
        "release": f"{'A' if run.releasable else 'No'} release can rest on this run",
    }


def _of_kind(cases: Cases, kind: str) -> list[tuple[CaseLine, CaseRecord]]:
    return [(line, record) for line, record in cases if record and record.evidence.kind == kind]


def _attack(name: str, line: CaseLine, record: CaseRecord) -> dict[str, Any]:
    """An attack case with its figures, which are empty if nothing was measured, and its runs."""
    attacked, control = record.evidence.trajectory, record.evidence.control
    return {
        "name": name,
        "line": line,
        "record": record,
        "trajectory": stored_svg(trajectory_svg, f"{name}-trajectory", record) if attacked else "",
        "heat": stored_svg(heat_svg, f"{name}-heat", record) if attacked else "",
        "runs": [
            {"title": title, "checkpoints": run.checkpoints, "scores": list(_scores(run))}
            for title, run in (("control", control), ("defended", attacked))
            if run
        ],
    }


def _scores(run: Trajectory) -> Iterator[Sequence[str]]:
    """Heads, then a row for each prompt: in each checkpoint's cell the scores of all completions, the greedy one first."""
    yield "Prompt", *(f"step {c.step}" for c in run.checkpoints)
    for prompt_id in run.heldout_ids:
        scores = [sorted((s for s in c.scores if s.prompt_id == prompt_id), key=lambda s: s.sample) for c in run.checkpoints]
        yield prompt_id, *(" ".join("\u2013" if s.score is None else f"{s.score:g}" for s in cell) for cell in scores)


def _defense(name: str, line: CaseLine, record: CaseRecord) -> dict[str, Any]:
    report = record.evidence.report
    figure = stored_svg(convergence_svg, f"{name}-convergence", report) if report else ""
    return {"name": name, "domain": line.domain, "record": record, "report": report, "figure": figure}


def _certificates(cases: Cases) -> list[tuple[Certificate, str]]:
    """Each certificate once, with the judge's role in its title."""
    found: dict[tuple[str, ...], tuple[Certificate, str]] = {}
    for evidence in (record.evidence for _, record in cases if record):
        given = [(c, "") for c in evidence.certificates]
        given += [(evidence.second_certificate, ", second judge")] if evidence.second_certificate else []
        for certificate, role in given:
            key = (certificate.digest, certificate.source, certificate.anchors_digest, role)
            found.setdefault(key, (certificate, role))
    return list(found.values())


def number(value: float | None, digits: int = 2) -> str:
    """A number for a cell; a dash for None."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def _show(value: object) -> str:
    """A setting's value for a cell."""
    return value if isinstance(value, str) else json.dumps(value)
