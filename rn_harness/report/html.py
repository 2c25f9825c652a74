"""``report.html``: a run on one page that opens offline.

A view of ``run.json`` and the cases' records that computes nothing. It is one file without scripts or external resources. The
template escapes names from other people (models, judges, suites).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn_harness.records.case import CaseRecord
from rn_harness.records.certificate import Certificate
from rn_harness.records.run import CaseLine, Coverage, FamilyCoverage, RunRecord
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.report.figures import convergence_svg, heat_svg, stored_svg, trajectory_svg
from rn_harness.report.terminal import broken_lines, finding_text, resumed_text, standing_text, tally_lines, tree_text

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = (
    ("cases", "Cases"), ("attacks", "Trajectories"), ("signatures", "Failure signatures"), ("defenses", "Defense"),
    ("helpfulness", "Helpfulness"), ("judges", "Judge"), ("coverage", "Coverage"), ("statistics", "Statistics"),
    ("provenance", "Provenance"),
)  # fmt: skip
ICONS = {"PASS": "\u2713", "FAIL": "\u2717", "INCONCLUSIVE": "?", None: "?"}
CHECKPOINT_HEADS = (
    "Step", "Highest", "Mean", "Greedy mean", "Above the threshold", "Scored", "Degenerate", "Reward, mean", "Reward, spread",
    "Equal groups", "Entropy, nats", "Gradient norm", "Moved", "Leak",
)  # fmt: skip
Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack case on the page.

    Attributes:
        name: id of its heading.
        trajectory, heat: figures; empty if nothing was measured.
        breached: True if the first figure marks a breach.
        tables: title and rows of each run's checkpoints.
        cells: title, heads and rows of each run's scores.
    """

    name: str
    line: CaseLine
    record: CaseRecord
    trajectory: str
    heat: str
    breached: bool
    tables: tuple[tuple[str, list[Row]], ...]
    cells: tuple[tuple[str, list[str], list[Row]], ...]


def render_html(run: RunRecord, cases: Sequence[tuple[CaseLine, CaseRecord | None]]) -> str:
    """The page of a run and its cases; a case without a record has None."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    attacks = [_attack(f"attack-{i}", line, r) for i, (line, r) in enumerate(cases) if r and r.evidence.kind == "attack"]
    text = environment.get_template("report.html.j2").render(
        run=run,
        cases=cases,
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        sections=SECTIONS,
        icons=ICONS,
        attacks=attacks,
        names={a.line.nodeid: a.name for a in attacks},
        checkpoint_heads=CHECKPOINT_HEADS,
        defenses=[_defense(f"defense-{i}", line, r) for i, (line, r) in enumerate(_of_kind(cases, "defense"))],
        helpful=[_helpful(f"helpful-{i}", line, r) for i, (line, r) in enumerate(_of_kind(cases, "helpfulness"))],
        certificates=list(_certificates(cases)),
        settings_rows=_settings_rows,
        not_run_rows=_not_run_rows,
        bounds=[row for attack in attacks for row in _bounds_row(attack.record)],
        facts=_facts(run),
        attempts=[row for _, record in cases if record for row in _attempt_rows(record)],
        show=_show,
        **sentences_of(run),
    )
    return text + "\n"


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


def _of_kind(cases: Sequence[tuple[CaseLine, CaseRecord | None]], kind: str) -> list[tuple[CaseLine, CaseRecord]]:
    return [(line, record) for line, record in cases if record and record.evidence.kind == kind]


def _attack(name: str, line: CaseLine, record: CaseRecord) -> Attack:
    attacked, control = record.evidence.trajectory, record.evidence.control
    runs = [*([("control", control)] if control else []), *([("defended", attacked)] if attacked else [])]
    return Attack(
        name=name,
        line=line,
        record=record,
        trajectory=stored_svg(trajectory_svg, f"{name}-trajectory", record) if attacked else "",
        heat=stored_svg(heat_svg, f"{name}-heat", record) if attacked else "",
        breached=any(reason.code == "breach" for reason in record.verdict.reasons),
        tables=tuple((title, [_checkpoint_row(c) for c in run.checkpoints]) for title, run in runs),
        cells=tuple((title, ["Prompt", *(f"step {c.step}" for c in run.checkpoints)], _cells(run)) for title, run in runs),
    )


def _checkpoint_row(c: Checkpoint) -> Row:
    w = c.training
    trained = [""] * 6
    if w is not None:
        values = (w.reward_mean, w.reward_spread, w.zero_spread_share, w.entropy, w.grad_norm, w.adapter_distance)
        trained = [number(value) for value in values]
    return (
        str(c.step), number(c.maximum), number(c.mean), number(c.greedy_mean), f"{c.above.count} of {c.above.total}",
        f"{c.scored} of {c.total}", number(c.degenerate_share), *trained, "" if c.leak is None else f"{c.leak:.1e}",
    )  # fmt: skip


def _cells(run: Trajectory) -> list[Row]:
    """One row for each prompt, one cell for each checkpoint, with the scores of all completions, the greedy one first."""
    rows: list[Row] = []
    for prompt_id in run.heldout_ids:
        scores = [sorted((s for s in c.scores if s.prompt_id == prompt_id), key=lambda s: s.sample) for c in run.checkpoints]
        rows.append((prompt_id, *(" ".join("\u2013" if s.score is None else f"{s.score:g}" for s in cell) for cell in scores)))
    return rows


def _defense(name: str, line: CaseLine, record: CaseRecord) -> dict[str, Any]:
    report = record.evidence.report
    points = [
        (str(p.step), number(p.minimal_refusal_share), number(p.reward_mean), number(p.reward_spread), number(p.mean_words),
         f"{p.scored} of {p.total}")
        for p in (report.points if report else ())
    ]  # fmt: skip
    probes = [
        (title, number(p.mean), number(p.spread), number(p.maximum), f"{p.scored} of {p.total}")
        for title, p in ((("undefended", report.undefended_probe), ("defended", report.probe)) if report else ())
    ]
    figure = stored_svg(convergence_svg, f"{name}-convergence", report) if report else ""
    return {"name": name, "domain": line.domain, "record": record, "figure": figure, "points": points, "probes": probes}


def _helpful(name: str, line: CaseLine, record: CaseRecord) -> dict[str, Any]:
    trajectory = record.evidence.trajectory
    scores = [c.benign for c in trajectory.checkpoints if c.benign] if trajectory else []
    rows = [
        row
        for b in scores[:1]
        for row in (
            ("Benign prompts", str(len(b.answers))),
            ("Alike the undefended candidate's greedy answers (chrF, 0 to 1)", number(b.similarity, 3)),
            ("The undefended candidate's own sampled answers", number(b.own, 3)),
            ("Its answers to other prompts (chance)", number(b.chance, 3)),
            ("Difference with 95 % interval", f"{b.difference.mean:.3f} ({b.difference.low:.3f} to {b.difference.high:.3f})"),
            ("KL divergence estimate, nats a token", number(b.kl, 3)),
            ("Benign prompts refused", b.refusals.text),
            ("Twins of the domain refused", b.twin_refusals.text),
        )
    ]
    return {"name": name, "domain": line.domain, "record": record, "rows": rows}


def _certificates(cases: Sequence[tuple[CaseLine, CaseRecord | None]]) -> Iterator[dict[str, Any]]:
    """Each certificate once."""
    found: dict[tuple[str, ...], tuple[Certificate, str]] = {}
    for evidence in (record.evidence for _, record in cases if record):
        given = [(c, "") for c in evidence.certificates]
        given += [(evidence.second_certificate, ", second judge")] if evidence.second_certificate else []
        for certificate, role in given:
            key = (certificate.digest, certificate.source, certificate.anchors_digest, role)
            found.setdefault(key, (certificate, role))
    for i, (certificate, role) in enumerate(found.values()):
        t = certificate.table
        yield {
            "name": f"certificate-{i}",
            "certificate": certificate,
            "role": role,
            "rows": [
                ("Scores within the right band", t.band_agreement.text),
                ("Quadratic-weighted kappa", "undefined" if t.kappa is None else number(t.kappa, 3)),
                ("False negatives, of harmful anchors", t.false_negative.text),
                ("False positives, of harmless anchors", t.false_positive.text),
                ("Unscored looks", t.unscored.text),
                ("Stable anchors", t.stable.text),
            ],
            "kinds": [(kind.replace("_", " "), share.text) for kind, share in t.by_kind.items()],
        }


def _settings_rows(family: FamilyCoverage) -> list[Row]:
    return [
        (s.setting, ", ".join(v if isinstance(v, str) else f"{v:g}" for v in s.run), ", ".join(s.not_run) or "nothing")
        for s in family.settings
    ]


def _not_run_rows(coverage: Coverage) -> list[Row]:
    return [(n.name, n.kind, n.why) for n in coverage.not_run]


def _bounds_row(record: CaseRecord) -> Iterator[Row]:
    b = record.verdict.bounds
    if b is not None:
        yield (
            record.case_id, f"{b.breached} of {b.prompts}", number(b.upper_prompts, 4),
            f"{number(b.upper_corrected, 4)} ({b.looks} looks)", f"{b.above} of {b.samples}", number(b.upper_clustered, 4),
        )  # fmt: skip


def _facts(run: RunRecord) -> list[Row]:
    p = run.provenance
    return [
        ("Run", run.name),
        ("Run id", run.run_id),
        ("Tool", f"rn-harness {p.tool}"),
        ("Started", run.started),
        ("Ended", run.ended),
        ("Wall time of this run, s", f"{run.wall_s:g}"),
        ("Device time of all the work that it rests on, s", f"{p.device_s:g}"),
        ("Attempts at that work", str(p.attempts)),
        *((name.capitalize(), str(value)) for name, value in p.hardware.items()),
        *((f"Working tree of {domain}", tree_text(tree)) for domain, tree in p.trees.items()),
        *((f"Defended weights of {domain}", where) for domain, where in run.defended.items()),
        *((f"Exported, {domain}", where) for domain, where in run.exported.items()),
    ]


def _attempt_rows(record: CaseRecord) -> list[Row]:
    tried = [
        *(("training", a) for a in record.provenance.training),
        *(("measurement", a) for a in record.provenance.attempts),
    ]
    return [
        (record.case_id, work, a.started, a.outcome.replace("_", " "), number(a.wall_s, 1), number(a.device_s, 1))
        for work, a in tried
    ]


def number(value: float | None, digits: int = 2) -> str:
    """A number for a cell; a dash for None."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def _show(value: object) -> str:
    """A setting's value for a cell."""
    return value if isinstance(value, str) else json.dumps(value)
