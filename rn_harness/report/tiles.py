"""The tiles of ``report.html``: the numbers that a hasty reader reads, none of which may look safer than the run was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rn_harness.records.case import Bounds, CaseRecord
from rn_harness.records.certificate import Certificate
from rn_harness.records.run import CaseLine, Coverage
from rn_harness.report.terminal import certificate_text
from rn_harness.verdict.helpfulness import allowed_loss
from rn_harness.verdict.signatures import below

Cases = Sequence[tuple[CaseLine, CaseRecord | None]]
"""The cases of a run; a case without a record has None."""


def number(value: float | None, digits: int = 2) -> str:
    """A number for a cell; a dash for None."""
    return "\u2013" if value is None else f"{value:.{digits}f}"


def lost_attacks(run: Cases, coverage: Coverage) -> int:
    """Number of claimed attacks of one domain that no case of the run is named by: the run ended before them."""
    named = [li for li, _ in run if li.domain == coverage.domain and li.claim and li.case_id.startswith("attack-")]
    return max(0, coverage.resistance.claimed - len(named))


def bounds_of(record: CaseRecord) -> Bounds | None:
    """The bounds of an attack's broken prompts. Nothing is bounded if it broke the model where they do not look, or is undecided.

    They count an attack's own samples: none under an aid, and none of a restrained attack.
    """
    bounds, evidence = record.verdict.bounds, record.evidence
    own = evidence.trajectory.checkpoints if evidence.trajectory else ()
    elsewhere = [score for c in own for score in c.aided_maximum.values()]
    elsewhere += [c.highest for of in evidence.restrained for c in of.attack.checkpoints]
    undecided = record.verdict.outcome == "INCONCLUSIVE"
    if bounds and (undecided or any(score is not None and score > evidence.policy.threshold for score in elsewhere)):
        return bounds.model_copy(update={"upper_prompts": 1.0, "upper_corrected": 1.0})
    return bounds


def tiles_of(cases: Cases, left: int = 0) -> Iterator[tuple[str, str, str]]:
    """The tiles of one domain: title, value, and the value in words. An attack that was not measured makes no value look safe.

    ``left``: claimed attacks that none of the cases is named by.
    """
    attacks = [(line, record) for line, record in cases if line.case_id.startswith("attack-")]
    of_attacks = [record.evidence for _, record in attacks if record]
    scored = [(score, evidence.policy.threshold) for evidence in of_attacks if (score := evidence.highest) is not None]
    if scored:
        highest, threshold = max(scored)
        told = f"threshold {threshold:g}; any checkpoint of {_attacks(scored)}, counted or not"
        lost = len(attacks) - len(scored) + left
        undecided = sum(record.verdict.outcome == "INCONCLUSIVE" for _, record in attacks if record)
        told += f"; {undecided} undecided" if undecided else ""
        yield "Highest score", f"{'at least ' * bool(lost or undecided)}{number(highest)} of 10", f"{told}{_unmeasured(lost)}"
    claimed = [bounds_of(record) if record else None for line, record in attacks if line.claim]
    bounds = [of for of in claimed if of]
    if bounds:
        worst = max(bounds, key=lambda each: each.upper_prompts)
        told = f"worst of {_attacks(bounds, 'claimed ')}, 95\u00a0%, one-sided; {below(worst.upper_corrected)} when corrected"
        lost = len(claimed) - len(bounds) + left
        yield (
            "Share of prompts that break",
            "unknown" if lost else below(worst.upper_prompts),
            f"{told} for {worst.looks} looks{_unmeasured(lost)}",
        )
    measured = [record.evidence for _, record in cases if record]
    for evidence in (of for of in measured if of.kind == "helpfulness"):
        for benign in filter(None, (c.benign for run in evidence.runs for c in run.checkpoints)):
            d, allowed = benign.difference, allowed_loss(benign, evidence.policy)
            refused, twins = benign.refusals, benign.twin_refusals
            told = (
                f"similarity of benign answers, 95\u00a0% {d.low:+.3f} to {d.high:+.3f}; may lose {allowed:.3f}; refused: "
                f"{refused.count} of {refused.total} benign prompts, {twins.count} of {twins.total} twins"
            )
            yield "Helpfulness", f"{d.mean:+.3f}", told
    for certificate, role in shown_certificates(cases)[:1]:
        yield f"Judge{role}", certificate.judge, certificate_text(certificate)


def _unmeasured(lost: int) -> str:
    return f"; {lost} more were not measured" if lost else ""


def _attacks(found: Sequence[object], which: str = "") -> str:
    return f"{len(found)} {which}attack{'s' * (len(found) != 1)}"


def shown_certificates(cases: Cases) -> list[tuple[Certificate, str]]:
    """Each certificate once, with the judge's role in its title."""
    found: dict[tuple[str, ...], tuple[Certificate, str]] = {}
    for evidence in (record.evidence for _, record in cases if record):
        given = [(c, "") for c in evidence.certificates]
        given += [(evidence.second_certificate, ", second judge")] if evidence.second_certificate else []
        for certificate, role in given:
            key = (certificate.digest, certificate.source, certificate.anchors_digest, role)
            found.setdefault(key, (certificate, role))
    return list(found.values())
