"""Certifying a judge: it is shown anchors whose bands are known, four times.

No judge's scores count before that, and known anchors go along with all of its later work, so that one that dies or drifts is
found at the step at which it happens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from rn_harness.judges.anchors import Anchor, AnchorSet, shipped_anchors
from rn_harness.judges.organism import OrganismJudge
from rn_harness.judges.protocol import Judge, unshared
from rn_harness.records.base import Judgement
from rn_harness.records.certificate import AnchorScore, Certificate, is_stable
from rn_harness.records.trajectory import PlantedScore
from rn_harness.spec.policy import Policy

OTHER_BATCH = 7
"""Texts of one call in the last look, so that each is in another batch than before."""


def anchors_for(judge: Judge) -> AnchorSet:
    """The inert anchors that a judge is certified on: the organism's are made from its recipes, all others ship."""
    asked = unshared(judge)
    return asked.anchors if isinstance(asked, OrganismJudge) else shipped_anchors()


def certify(judge: Judge, anchors: AnchorSet, policy: Policy, source: Literal["inert", "labels"] = "inert") -> Certificate:
    """Asks a judge about the anchors for ``certify``: once, again, in another order, and in other batches.

    The anchors define the forbidden subject. ``source`` is a lab's own labels, or inert anchors.
    """
    asked = judge.about(anchors.forbidden)
    chosen = anchors.of("certify")
    backwards = list(reversed(chosen))
    in_batches = [j for at in range(0, len(chosen), OTHER_BATCH) for j in _ask(asked, chosen[at : at + OTHER_BATCH])]
    passes = [_ask(asked, chosen), _ask(asked, chosen), list(reversed(_ask(asked, backwards))), in_batches]
    scores = tuple(
        AnchorScore(anchor_id=a.id, kind=a.kind, low=a.low, high=a.high, looks=looks)
        for a, looks in zip(chosen, zip(*passes, strict=True), strict=True)
    )
    return Certificate(
        judge=judge.name,
        digest=judge.digest,
        source=source,
        anchors_digest=anchors.digest,
        threshold=policy.threshold,
        scores=scores,
    )


def _ask(judge: Judge, anchors: Sequence[Anchor]) -> list[Judgement]:
    return judge.score([a.prompt for a in anchors], [a.completion for a in anchors])


def to_plant(certificate: Certificate, anchors: AnchorSet, policy: Policy) -> list[Anchor]:
    """Anchors to send along with every checkpoint: harmful and harmless ones that the judge got right in every look.

    ``policy.planted`` of each side, drawn by the judge's digest; fewer where it got fewer right.
    """
    right = {
        s.anchor_id
        for s in certificate.scores
        if is_stable(s.looks) and all(look.score is not None and s.low <= look.score <= s.high for look in s.looks)
    }
    return draw([a for a in anchors.of("certify") if a.id in right], certificate.digest, policy.planted, policy)


def draw(anchors: Sequence[Anchor], digest: str, each: int, policy: Policy) -> list[Anchor]:
    """Up to ``each`` harmful and as many harmless ones of these anchors, drawn by a judge's digest."""
    order = sorted(anchors, key=lambda a: hashlib.sha256(f"{digest} {a.id}".encode()).hexdigest())
    harmful = [a for a in order if a.low > policy.threshold]
    harmless = [a for a in order if a.high <= policy.threshold]
    return harmful[:each] + harmless[:each]


def score_planted(judge: Judge, planted: Sequence[Anchor], policy: Policy) -> tuple[PlantedScore, ...]:
    """The judge's present scores of the planted anchors."""
    return tuple(
        PlantedScore(anchor_id=a.id, high=a.low > policy.threshold, score=j.score, unscored=j.unscored)
        for a, j in zip(planted, _ask(judge, planted), strict=True)
    )
