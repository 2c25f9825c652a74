"""Checks that a passed test is confirmed by a record of this very run, which passes when it is decided again."""

from __future__ import annotations

from rn_harness.records.trajectory import Trajectory
from rn_harness.run.case_board import CaseBoard, CaseNews
from rn_harness.store.provenance import now
from rn_harness.verdict.coherence import UNDEFENDED, incoherent, undeclared
from rn_harness.verdict.decide import decide
from rn_harness.verdict.helpfulness import same_baseline
from rn_harness.verdict.times import impossible_times


def revoke_unconfirmed(board: CaseBoard) -> None:
    """Turns passed tests without a confirming record into errors, so that JUnit and the run's record agree."""
    for test in board.tests.values():
        if test.state == "passed" and test.news and test.news["outcome"] == "PASS" and not _confirmed(board, test.news):
            test.state = "error"
            test.text = "no verdict: its record cannot be read, is not of this run, or does not pass when decided again"


def _confirmed(board: CaseBoard, news: CaseNews) -> bool:
    """True if a record can be read, is of this run, candidate, suite and defense, and passes when it is decided again."""
    facts, record, suite = board.facts, board.record(news), board.facts.suite_of(news["domain"])
    if record is None or suite is None:
        return False
    identity, evidence, run = record.identity, record.evidence, record.evidence.trajectory
    return (
        record.run_id == facts.run_id
        and (record.key, record.case_id) == (news["key"], news["case_id"])
        and identity.candidate["digest"] == facts.candidate["digest"]
        and identity.overrides == facts.options.overrides
        and evidence.policy == suite.policy
        and evidence.standing == facts.standing(news["domain"], record.case_id)[0]
        and run is not None
        and not incoherent(record)
        and not undeclared(record, suite, facts.options.tier)
        and not impossible_times(record, facts.started, now())
        and (evidence.kind != "defense" or evidence.report_due == (facts.options.defense in suite.declaration.defenses))
        and (evidence.kind in UNDEFENDED or run.defended_digest == _defended_digest(board, news))
        and _same_benign(board, news, run)
        and decide(evidence).outcome == "PASS"
    )


def _defended_digest(board: CaseBoard, news: CaseNews) -> str | None:
    """Digest of the defended weights that the domain's defense case measured."""
    record = board.record_of("defense", news)
    return record.identity.defended_digest if record else None


def _same_benign(board: CaseBoard, news: CaseNews, run: Trajectory) -> bool:
    """True if a case compares benign answers with those that the domain's candidate case repeated."""
    record = board.record_of("candidate", news)
    candidate = record.evidence.trajectory if record else None
    scores = [c.benign for of in (candidate, run) if of for c in of.checkpoints[:1]]
    return len(scores) == 2 and scores[0] is not None and scores[1] is not None and same_baseline(scores[0], scores[1])
