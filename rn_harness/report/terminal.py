"""The sentences about a run: its header, cases, tallies and closing lines, as plain text without a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rn_harness.records.case import CaseRecord, Finding, Verdict, WorkingTree
from rn_harness.records.certificate import Certificate
from rn_harness.records.run import REPORT, CaseLine, RunRecord
from rn_harness.records.trajectory import UNDER, DefenseReport, Probe, Trajectory
from rn_harness.spec.base import Standing
from rn_harness.verdict.coverage import broken_by

if TYPE_CHECKING:
    from rn_harness.models.candidate import Candidate
    from rn_harness.spec.options import Options
    from rn_harness.spec.suite import Suite

CLAIM_WORDS = 25
"""Largest number of words of a claim on a terminal; the report has the whole."""
CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of signs that move or hide other text."""
HEADS = ("case", "result", "highest score", "remarks")
LEGEND = "highest score: one bar a checkpoint, \u2581 below 1.25 to \u2588 from 8.75 of 10; ? where nothing was scored"
SHOWN = 3
"""Largest number of reasons of a case, of its steps that changed alike, and of attacks not run, that are listed; the others are
counted."""
_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def sparkline(trajectory: Trajectory) -> str:
    """One bar a checkpoint, its maximum on the scale 0 to 10; ``?`` where nothing was scored."""
    return "".join(
        "?" if c.maximum is None else _BARS[min(int(c.maximum / 10 * len(_BARS)), len(_BARS) - 1)] for c in trajectory.checkpoints
    )


def _by_domain(texts: Mapping[str, str]) -> str:
    """The text of each domain; only one text if it is the same for all."""
    values = list(texts.values())
    return values[0] if len(set(values)) == 1 else "; ".join(f"{domain}: {value}" for domain, value in texts.items())


def declared_recipe(suites: Sequence[Suite]) -> str:
    """The overrides from the profile and strength certificates, as text; empty without overrides."""
    return _by_domain({s.domain: " ".join(s.recipe) for s in suites}) if any(s.recipe for s in suites) else ""


def header_lines(
    candidate: Candidate, suites: Sequence[Suite], options: Options, judges: Mapping[str, str], folder: str, memory: str
) -> list[str]:
    """The candidate, judges, suites and memory of a run, shown before any work."""
    who = f"candidate {candidate.name} (sha256 {candidate.digest[:12]}), defense {options.defense}"
    if options.undefended:
        twin = f"undefended twin {candidate.name} (sha256 {candidate.digest[:12]})"
        who = f"candidate {options.model}, defended by its makers, {twin}"
    if candidate.quantised:
        who = f"{who}, weights in {candidate.quantised}"
    private = "; ".join(f"{s.domain} {', '.join(s.private)}" for s in suites if s.private)
    recipe = declared_recipe(suites)
    levels = _by_domain({s.domain: s.policy.level for s in suites})
    lines = [
        f"{who}, judge {_by_domain(judges)}, tier {options.tier}, level {levels}",
        f"suites {', '.join(f'{s.domain} ({s.digest[:12]})' for s in suites)}",
        f"memory {memory}",
        f"run folder {folder}",
        options.on_ray and "cases run on a Ray cluster; this process holds no accelerator",
        options.from_results and "runs nothing: joins what was measured in the parts of this folder, and decides it again",
        private and f"prompt sets of your own: {private}",
        recipe and f"recipe declared for {candidate.name}: {recipe}",
        *(f"{s.domain} is declared benign: {s.declaration.benign}" for s in suites if s.declaration.benign),
        options.overrides and f"modified by --rn-set {' '.join(options.overrides)}: not releasable",
    ]
    return [spelled_out(f"rn-harness: {line}") for line in lines if line]


def spelled_out(line: str) -> str:
    """A line with its control signs spelled out: a folder's name may hold them, and could show a verdict or hide one."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in CONTROLS else c for c in line)


def checkpoint_lines(record: CaseRecord) -> list[str]:
    """All checkpoints of a case, one line each, and below it a line for each aid and form of request: numbers only."""
    trajectory = record.evidence.trajectory
    lines = [f"{record.case_id}: {record.verdict.outcome}: {record.verdict.claim}"]
    if trajectory is None:
        return [*lines, *(line for c in record.evidence.certificates for line in certificate_table(c))]
    for c in trajectory.checkpoints:
        b, w = c.benign, c.training
        parts = (
            f"step {c.step:>3}: max {_number(c.maximum)} mean {_number(c.mean)} greedy {_number(c.greedy_mean)}",
            f"above {c.above.count}/{c.above.total} (95 % {c.above.low:.3f} to {c.above.high:.3f})",
            f"scored {c.scored}/{c.total}",
            f"degenerate {c.degenerate_share:.2f}",
            c.leak is not None and f"leak {c.leak:.1e}",
            c.leak_per_token is not None
            and f"control's answers {c.leak_per_token:.2f} a token {c.leak_per_sequence:.1f} a sequence",
            c.conditional_leak
            and "conditional leak " + " ".join(f"{of.leak:.1e} after {of.tokens}" for of in c.conditional_leak),
            b is not None
            and f"benign {b.similarity:.3f} own {b.own:.3f} chance {b.chance:.3f} KL {b.kl:.3f} refused {b.refusals.share:.3f} "
            f"twins {b.twin_refusals.share:.3f}",
            w is not None
            and f"reward {_number(w.reward_mean)} spread {w.reward_spread:.2f} equal groups {w.zero_spread_share:.2f} "
            f"grad {w.grad_norm:.2g} moved {w.adapter_distance:.3f} entropy {w.entropy:.3f} tokens {w.completion_tokens:.1f}",
        )
        lines.append(", ".join(part for part in parts if part))
        views = [
            (f"  {UNDER[v]}", f"max {_number(most)}", f"mean {_number(c.aided_mean[v])}") for v, most in c.aided_maximum.items()
        ]
        lines += columns(views) if views else []
    verdict = record.verdict
    lines += [f"bounds: {verdict.bounds.sentence}"] if verdict.bounds else []
    lines += [f"signature: {sentence}" for sentence in (verdict.signatures.sentences if verdict.signatures else ())]
    lines += [f"second opinion: {verdict.second_opinion.sentence}"] if verdict.second_opinion else []
    lines += [f"warning: {w.sentence}" for w in verdict.warnings]
    if r := record.evidence.report:
        lines += [
            f"convergence step {p.step:>3}: minimal refusals {p.minimal_refusal_share:.3f}, "
            f"reward {_number(p.reward_mean)} spread {_number(p.reward_spread)}, words {p.mean_words:.1f}"
            for p in r.points
        ]
        lines += filter(None, [resumed_text(r)])
    run = record.evidence.trajectory
    if probes := run and run.probes:
        lines += [_probe_text("reward probe", probes.plain), _probe_text("banned reward probe", probes.banned)]
    if lesson := run and run.lesson:
        of_candidate = f"of the candidate's {lesson.candidate_gain:.2f} and {lesson.candidate_surprise:.2f}"
        spread = f"logits spread by {lesson.spread:.2f} of {lesson.candidate_spread:.2f}"
        lines.append(f"lesson: gain {lesson.gain:.2f}, surprise {lesson.surprise:.2f} {of_candidate} nats per token; {spread}")
    return lines


def _probe_text(name: str, probe: Probe) -> str:
    numbers = f"mean {_number(probe.mean)} spread {_number(probe.spread)} maximum {_number(probe.maximum)}"
    return f"{name}: {numbers} of {probe.total}"


def certificate_table(certificate: Certificate) -> list[str]:
    """The table of a judge's certificate."""
    t = certificate.table
    kappa = "undefined" if t.kappa is None else f"{t.kappa:.3f}"
    who = f"judge {certificate.judge} (sha256 {certificate.digest[:12]})"
    return [
        f"{who} on {t.anchors} {certificate.source} anchors (sha256 {certificate.anchors_digest[:12]})",
        f"  band agreement   {t.band_agreement.text}, quadratic-weighted kappa {kappa}",
        f"  false negatives  {t.false_negative.text} of harmful anchors",
        f"  false positives  {t.false_positive.text} of harmless anchors",
        f"  unscored looks   {t.unscored.text}, stable {t.stable.text}",
        *(f"    {kind:<24} {share.text}" for kind, share in t.by_kind.items()),
    ]


def certificate_text(certificate: Certificate) -> str:
    """A judge's certificate in short."""
    t = certificate.table
    return (
        f"{certificate.source} anchors: {t.band_agreement.count} of {t.anchors} within their band, "
        f"false negatives {t.false_negative.count} of {t.false_negative.total}, "
        f"false positives {t.false_positive.count} of {t.false_positive.total}"
    )


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:.2f}"


def _words(value: str) -> str:
    return value.replace("_", " ")


def standing_text(line: CaseLine) -> str:
    """Says whether a case counts for the run."""
    covered = ", covered by the claim" if line.standing == "exploratory" and line.within_claim else ""
    return "yes" if line.claim else f"{_words(line.standing)}{covered}"


def standing_suffix(standing: Standing) -> str:
    """The standing of a case that does not count, in brackets; empty for one that counts."""
    return "" if standing == "claim" else f" ({_words(standing)})"


def tree_text(tree: WorkingTree | None) -> str:
    """The commit of a working tree."""
    return "not in git" if tree is None else f"commit {tree.commit}{', with changes' if tree.dirty else ''}"


def resumed_text(report: DefenseReport) -> str:
    """The steps from which a defense's training was resumed; empty if it was not."""
    return f"trained on from step {', '.join(map(str, report.resumed))}, where it had been cut off" if report.resumed else ""


def result_text(line: CaseLine, record: CaseRecord | None) -> str:
    """The result of a case: the finding on an attack or a control, which has to break its model; else the outcome."""
    if line.outcome is None or line.finding is None:
        return line.outcome or "no verdict"
    control = line.case_id.startswith("control-")
    if line.finding == "broke" and control:
        return "broke (as it must)"
    if line.finding == "broke":
        steps = record.verdict.breached if record else []
        return f"BROKE at step {steps[0]}" if steps else "BROKE"
    if line.outcome == "PASS":
        return _words(line.finding)
    return "undecided" if line.finding == "unknown" else f"undecided ({_words(line.finding)})"


def in_short(claim: str) -> str:
    """A claim of at most ``CLAIM_WORDS`` words: a longer one ends after a clause."""
    words = claim.split()
    if len(words) <= CLAIM_WORDS:
        return claim
    kept = words[: CLAIM_WORDS - 1]
    end = max((i for i, word in enumerate(kept, 1) if word[-1] in ",;:"), default=len(kept))
    return f"{' '.join(kept[:end]).rstrip(',;:')} \u2026"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def tally_lines(run: RunRecord) -> Iterator[str]:
    """The attacks' findings: one line for each standing, with the names of the cases that did not hold."""
    for standing in get_args(Standing):
        lines = [line for line in run.cases if line.case_id.startswith("attack-") and line.standing == standing]
        findings = []
        for finding in (*get_args(Finding), None):
            cases = [f"{line.domain} {line.case_id.removeprefix('attack-')}" for line in lines if line.finding == finding]
            if cases:
                names = "" if finding == "held" else f": {', '.join(cases)}"
                findings.append(f"{len(cases)} {_words(finding or 'without a verdict')}{names}")
        if findings:
            yield f"{_words(standing)} attacks: {'; '.join(findings)}"


def broken_lines(run: RunRecord) -> Iterator[str]:
    """The names of all attacks that broke the model, of any standing; no line if there are none."""
    for lines, counts in zip(broken_by(run.cases), (True, False), strict=True):
        if lines:
            many = len(lines) > 1
            beyond = "" if counts else f" that {'do' if many else 'does'} not count"
            names = ", ".join(f"{line.domain}/{line.case_id}" for line in lines)
            yield f"Broken by {len(lines)} attack{'s' if many else ''}{beyond}: {names}"


def broken_in_short(run: RunRecord) -> str:
    """The number of attacks that broke the model, for a last line; empty if there are none."""
    count = sum(map(len, broken_by(run.cases)))
    return f"broken by {count} attack{'s' if count > 1 else ''}, named above" if count else ""


def summary_lines(run: RunRecord, records: Sequence[CaseRecord], folder: str) -> Iterator[str]:
    """The closing lines: the cases, the path of the defended weights, the claim, and a link to the report."""
    return map(spelled_out, _summary(run, records, folder))


def _summary(run: RunRecord, records: Sequence[CaseRecord], folder: str) -> Iterator[str]:
    yield from _case_lines(run, {r.key: r for r in records})
    yield ""
    yield from tally_lines(run)
    for certificate in {c.digest + c.source: c for r in records for c in r.evidence.certificates}.values():
        yield f"judge {certificate.judge}, {certificate_text(certificate)}"
    yield from _where_lines(run, folder)
    yield f"{run.outcome}: {in_short(run.claim)}"
    yield from broken_lines(run)
    for why in run.why_not:
        yield f"not releasable: {why}"
    yield from run.headline
    yield closing(run)
    page = Path(folder, REPORT)
    if page.is_file():
        yield f"report: {page.resolve().as_uri()}"


def _case_lines(run: RunRecord, by_key: Mapping[str, CaseRecord]) -> Iterator[str]:
    """The table of the cases; below a case are the reasons why it did not pass, and its warnings."""
    cases = [(line, by_key.get(line.key or "")) for line in run.cases]
    rows = [HEADS]
    for line, record in cases:
        trajectory = record.evidence.trajectory if record else None
        remarks = f"{standing_suffix(line.standing)}{' (stored)' if line.stored else ''}".strip()
        bars = sparkline(trajectory) if trajectory else ""
        rows.append((f"{line.domain} {line.case_id}".strip(), result_text(line, record), bars, remarks))
    head, *texts = columns(rows)
    yield LEGEND
    yield head
    for (line, record), text in zip(cases, texts, strict=True):
        yield text
        reasons = first_reasons(record.verdict) if record else [line.note or "no verdict"]
        below = [] if line.outcome == "PASS" else reasons
        below += [f"warning: {warning.sentence}" for warning in record.verdict.warnings] if record else []
        yield from (f"    {sentence}" for sentence in below)


def first_reasons(verdict: Verdict) -> list[str]:
    """The sentences of a verdict's first reasons, and the number of the others."""
    more = len(verdict.reasons) - SHOWN
    return [r.sentence for r in verdict.reasons[:SHOWN]] + ([f"and {more} more, see the record"] if more > 0 else [])


def failure_text(record: CaseRecord) -> str:
    """The text of a failed test or of an error: outcome, case and first reasons."""
    return "\n  ".join([f"{record.verdict.outcome}: {record.case_id}", *first_reasons(record.verdict)])


def _where_lines(run: RunRecord, folder: str) -> Iterator[str]:
    """Paths of weights and records, the cases not run, and the joined parts."""
    for domain, where in run.defended.items():
        yield f"defended weights ({domain}): {where}"
    for domain, where in run.exported.items():
        yield f"exported ({domain}): {where}"
    for coverage in run.coverage:
        cases = [n.name for n in coverage.not_run if n.kind == "case"]
        left = len(cases) - SHOWN
        shown = [*cases[:SHOWN], f"{left} more of the suite's attacks"] if left > 1 else cases
        yield f"not run ({coverage.domain}): {', '.join([*shown, *(n.name for n in coverage.not_run if n.kind != 'case')])}"
    if joined := run.options.get("joined"):
        yield f"joined: {len(joined)} records of {len(set(joined.values()))} parts, each decided again; nothing was run here"
    yield f"records: {folder}"


def closing(run: RunRecord) -> str:
    """The last sentence: a release can rest on the run, or why it cannot."""
    short = broken_in_short(run)
    broken = f" The model was {short}." if short else ""
    if run.releasable:
        return f"A release can rest on this run, once rn-harness verify has checked it against the weights.{broken}"
    more = f" and {len(run.why_not) - 1} more, listed above" if len(run.why_not) > 1 else ""
    return f"This run is no release verdict: {run.why_not[0]}{more}.{broken}"
