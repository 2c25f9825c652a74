"""What a run says on the terminal: header, table, closing sentences. Floor 4 (run); plain lines, no terminal needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rn_harness.records import CaseRecord, RunRecord, Trajectory

if TYPE_CHECKING:
    from rn_harness.candidate import Candidate
    from rn_harness.session import Options
    from rn_harness.suite import Suite

_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def sparkline(trajectory: Trajectory) -> str:
    """One bar a checkpoint, its maximum on the scale 0 to 10; ``?`` where nothing was scored."""
    return "".join(
        "?" if c.maximum is None else _BARS[min(int(c.maximum / 10 * len(_BARS)), len(_BARS) - 1)] for c in trajectory.checkpoints
    )


def header_lines(candidate: Candidate, suites: Sequence[Suite], options: Options, judge: str, folder: str) -> list[str]:
    """Who is tested by what, before any work."""
    who = f"candidate {candidate.name} (sha256 {candidate.digest[:12]}), defense {options.defense}"
    lines = [
        f"rn-harness: {who}, judge {judge}, tier {options.tier}",
        f"rn-harness: suites {', '.join(f'{s.domain} ({s.digest[:12]})' for s in suites)}",
        f"rn-harness: run folder {folder}",
    ]
    if options.overrides:
        lines.append(f"rn-harness: modified by --rn-set {' '.join(options.overrides)}: not releasable")
    return lines


def checkpoint_lines(record: CaseRecord) -> list[str]:
    """All checkpoints of a case, one line each: numbers only."""
    trajectory = record.evidence.trajectory
    if trajectory is None:
        return [f"{record.case_id}: {record.verdict.outcome}: {record.verdict.claim}"]
    lines = [f"{record.case_id}: {record.verdict.outcome}: {record.verdict.claim}"]
    for c in trajectory.checkpoints:
        parts = [
            f"step {c.step:>3}: max {_number(c.maximum)} mean {_number(c.mean)} greedy {_number(c.greedy_mean)}",
            f"above {c.above.count}/{c.above.total} (95 % {c.above.low:.3f} to {c.above.high:.3f})",
            f"scored {c.scored}/{c.total}",
            f"degenerate {c.degenerate_share:.2f}",
        ]
        if c.leak is not None:
            parts.append(f"leak {c.leak:.1e}")
        if c.benign is not None:
            parts.append(f"benign {c.benign.agreement.share:.3f} twins refused {c.benign.twin_refusals.share:.3f}")
        if c.training is not None:
            w = c.training
            parts.append(
                f"reward {_number(w.reward_mean)} spread {w.reward_spread:.2f} equal groups {w.zero_spread_share:.2f} "
                f"grad {w.grad_norm:.2g} moved {w.adapter_distance:.3f} entropy {w.entropy:.3f} "
                f"tokens {w.completion_tokens:.1f}"
            )
        lines.append(", ".join(parts))
    if record.evidence.report is not None:
        r = record.evidence.report
        lines += [
            f"convergence step {p.step:>3}: minimal refusals {p.minimal_refusal_share:.3f}, "
            f"reward {_number(p.reward_mean)} spread {_number(p.reward_spread)}, words {p.mean_words:.1f}"
            for p in r.points
        ]
        lines.append(
            f"reward probe: mean {_number(r.probe.mean)} spread {_number(r.probe.spread)} maximum "
            f"{_number(r.probe.maximum)} of {r.probe.total}; undefended: mean {_number(r.undefended_probe.mean)} "
            f"spread {_number(r.undefended_probe.spread)} maximum {_number(r.undefended_probe.maximum)}"
        )
    return lines


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:.2f}"


def summary_lines(run: RunRecord, records: Sequence[CaseRecord], folder: str) -> Iterator[str]:
    """The closing table: a line a case, where the defended weights lie, and what is claimed."""
    by_key = {r.key: r for r in records}
    width = max((len(f"{line.domain} {line.case_id}") for line in run.cases), default=0)
    for line in run.cases:
        record = by_key.get(line.key or "")
        trajectory = record.evidence.trajectory if record else None
        bars = sparkline(trajectory) if trajectory else ""
        stored = " (stored)" if line.stored else ""
        name = f"{line.domain} {line.case_id}"
        yield f"{name:<{width}}  {line.outcome or 'no verdict':<12}  {bars:<21}{stored}".rstrip()
        if line.outcome != "PASS":
            reasons = [r.sentence for r in record.verdict.reasons] if record else [line.note or "no verdict"]
            for sentence in reasons[:3]:
                yield f"{'':<{width}}    {sentence}"
            if len(reasons) > 3:
                yield f"{'':<{width}}    and {len(reasons) - 3} more, see the record"
    yield ""
    for domain, where in run.defended.items():
        yield f"defended weights ({domain}): {where}"
    yield f"records: {folder}"
    yield f"{run.outcome}: {run.claim}"
    for why in run.why_not:
        yield f"not releasable: {why}"
