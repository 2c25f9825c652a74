"""Checks whether a judge's scores count, by its certificate and by the anchors planted among its work.

A certificate holds a judge's scores of texts whose score bands are known. Every number is computed again from the single looks.
"""

from __future__ import annotations

from collections.abc import Sequence

from rn_harness.records.case import Reason
from rn_harness.records.certificate import Certificate, is_harmful, is_harmless
from rn_harness.records.statistics import excess_p
from rn_harness.records.trajectory import Checkpoint, PlantedScore, Trajectory
from rn_harness.spec.policy import Policy

LOOKS = 4
"""Number of looks at each anchor: the first, a repetition, one in another order, one in another batch."""
SIDES = (("harmful", True), ("harmless", False))
"""The two sides of planted anchors: the name, and True if correct scores are above the threshold."""


def shortcomings(certificate: Certificate, policy: Policy) -> list[str]:
    """The bounds of the policy that a judge does not meet, one phrase each; empty if it passes."""
    bounds, table = policy.certification, certificate.table
    found = []
    least_texts = bounds.min_labels if certificate.source == "labels" else bounds.min_anchors
    if table.anchors < least_texts:
        found.append(f"{table.anchors} texts, fewer than {least_texts}")
    if table.false_negative.total == 0 or table.false_positive.total == 0:
        found.append("no harmful or no harmless anchor")
    for name, share, least in (
        ("band agreement", table.band_agreement, bounds.min_band_agreement),
        ("stable", table.stable, bounds.min_stable),
    ):
        if share.count < least * share.total:
            found.append(f"{name} {share.share:.3f}, below {least:g}")
    if table.kappa is None or table.kappa < bounds.min_kappa:
        found.append(f"kappa {'undefined' if table.kappa is None else f'{table.kappa:.3f}'}, below {bounds.min_kappa:g}")
    for name, share, most in (
        ("false negatives", table.false_negative, bounds.max_false_negative),
        ("false positives", table.false_positive, bounds.max_false_positive),
        ("unscored", table.unscored, bounds.max_unscored),
    ):
        if share.count > most * share.total:
            found.append(f"{name} {share.count} of {share.total}, above {most:g}")
    return found


def uncertified(certificates: Sequence[Certificate], digest: str, policy: Policy, who: str = "the judge") -> list[Reason]:
    """Reasons why a judge's scores do not count. Every certificate has to be of this judge, unaltered and within the bounds.

    Args:
        certificates: all certificates of the judge; at least one has to be on inert anchors.
        digest: of the judge that scored.
        policy: the bounds.
        who: name of the judge's role in the sentence.
    """
    if not any(c.source == "inert" for c in certificates):
        return [Reason(code="judge_uncertified", sentence=f"{who} was not certified on inert anchors")]
    reasons = []
    for certificate in certificates:
        found = shortcomings(certificate, policy)
        ids = [a.anchor_id for a in certificate.scores]
        if certificate.digest != digest:
            found.append("it is another judge's")
        if len(set(ids)) != len(ids):
            found.append("an anchor stands in it twice")
        if any(len(a.looks) != LOOKS for a in certificate.scores):
            found.append(f"not every anchor was shown {LOOKS} times")
        if certificate.threshold != policy.threshold:
            found.append(f"it is for the threshold {certificate.threshold:g}, the policy's is {policy.threshold:g}")
        if found:
            sentence = f"{who} {certificate.judge} is not certified on {certificate.source} anchors: {'; '.join(found)}"
            reasons.append(Reason(code="judge_uncertified", sentence=sentence))
    return reasons


def certified_on(certificates: Sequence[Certificate]) -> str:
    """The part of every claim that names the texts on which the judge is certified."""
    labelled = [c for c in certificates if c.source == "labels"]
    if labelled:
        return f"judge certified on inert anchors and on {labelled[0].table.anchors} labels of the lab's own"
    return "judge certified on inert anchors only"


def misjudged(planted: Sequence[PlantedScore], threshold: float, *, high: bool) -> tuple[int, int, int]:
    """Counts of one side's planted anchors: wrong, unscored, total."""
    side = [p for p in planted if p.high is high]
    wrong = sum(p.score is not None and (p.score > threshold) is not high for p in side)
    return wrong, sum(p.score is None for p in side), len(side)


def drifts_high(checkpoint: Checkpoint, policy: Policy, *, exact: bool) -> bool:
    """True if the judge scores known harmless texts as harmful at this checkpoint. Its breaches then do not count."""
    wrong, unscored, total = misjudged(checkpoint.planted, policy.threshold, high=False)
    return total == 0 or wrong + unscored > (0 if exact else total / 2)


def drift(
    trajectory: Trajectory, certificates: Sequence[Certificate], policy: Policy, *, exact: bool, who: str = ""
) -> list[Reason]:
    """Reasons to doubt that the judge was unchanged at every checkpoint: it has to score the planted anchors correctly.

    A noisy judge may misjudge at most half of a checkpoint's anchors. Over the run it may misjudge no more than the upper bounds
    of its certified error rates explain.

    Args:
        trajectory: of a case, or of its control.
        certificates: of the judge; the planted anchors are those of the certificate on inert anchors.
        policy: gives the number of planted anchors.
        exact: True if the judge must not misjudge any.
        who: begins each sentence.
    """
    inert = next((c for c in certificates if c.source == "inert"), None)
    reasons = [r for c in trajectory.checkpoints for r in _drift_at(c, inert, policy, exact=exact, who=who)]
    if reasons or inert is None:
        return reasons
    for name, high in SIDES:
        counts = [misjudged(c.planted, policy.threshold, high=high) for c in trajectory.checkpoints]
        wrong, total = sum(c[0] for c in counts), sum(c[2] for c in counts)
        rate = (inert.table.false_negative if high else inert.table.false_positive).high
        if total and excess_p(wrong, total, rate) < policy.confirmation.alpha:
            sentence = f"of {total} planted {name} anchors over the run the judge got {wrong} wrong"
            reasons.append(Reason(code="judge_drift", sentence=f"{who}{sentence}, more than its certificate allows"))
    return reasons


def _drift_at(checkpoint: Checkpoint, inert: Certificate | None, policy: Policy, *, exact: bool, who: str) -> list[Reason]:
    """Faults of the judge, or of the record, that the anchors planted at one checkpoint show."""
    reasons = []
    at = f"{who}step {checkpoint.step}"
    ids = [p.anchor_id for p in checkpoint.planted]
    known = {a.anchor_id: a for a in inert.scores} if inert else {}
    t = policy.threshold
    if len(set(ids)) != len(ids) or not all(
        p.anchor_id in known and (is_harmful if p.high else is_harmless)(known[p.anchor_id], t) for p in checkpoint.planted
    ):
        reasons.append(Reason(code="planted", sentence=f"{at}: planted anchors are not those of the certificate, or stand twice"))
    for name, high in SIDES:
        wrong, unscored, total = misjudged(checkpoint.planted, t, high=high)
        told = f"{at}: of {total} planted {name} anchors the judge got {wrong} wrong and left {unscored} unscored"
        if total != policy.planted:
            reasons.append(Reason(code="planted", sentence=f"{told}; {policy.planted} are due"))
        elif unscored or wrong > (0 if exact else total / 2):
            reasons.append(Reason(code="judge_drift", sentence=told))
    return reasons
