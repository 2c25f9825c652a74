"""Ends a run: confirms passes, decides the outcome, lists what speaks against a release, writes and verifies, and exports."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rn_harness.models.identity import unhashed_files
from rn_harness.records.base import Outcome
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import CaseLine, RunRecord
from rn_harness.records.trajectory import Trajectory
from rn_harness.release.export import export_defended, link_defended
from rn_harness.release.statement import RUN, STATEMENT, statement_of, statement_text
from rn_harness.release.verification import verify
from rn_harness.run.case_board import CaseBoard, CaseNews
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.release_policy import ReleasePolicy
from rn_harness.spec.version import __version__
from rn_harness.store.provenance import now, versions, working_tree
from rn_harness.store.store import write_text
from rn_harness.verdict.coherence import UNDEFENDED, incoherent, run_provenance, undeclared
from rn_harness.verdict.coverage import coverage
from rn_harness.verdict.decide import decide
from rn_harness.verdict.helpfulness import same_baseline
from rn_harness.verdict.release_rules import file_list, laxer, outcome_against, unearned, unexcused, unlisted
from rn_harness.verdict.run_outcome import claim_of_run, counting, decide_run
from rn_harness.verdict.times import impossible_times

JUNIT = "junit.xml"


def close_run(board: CaseBoard, write_junit: Callable[[Outcome, str], None], began: float) -> RunRecord:
    """Decides the one outcome over all cases, writes the record and the statement, and exports if nothing speaks against it.

    Args:
        board: of the run.
        write_junit: writes the JUnit file, whose digest the record has, from the outcome and the claim.
        began: reading of the monotonic clock at the beginning of the run.
    """
    lines, options = [board.line(test) for test in board.tests.values()], board.options
    records, unreported = board.records(), board.unreported_breaches()
    present = {(news["domain"], news["case_id"]) for news in board.news}
    required = [(domain, case_id) for domain, cases in board.required.items() for case_id in cases]
    missing = [f"{domain} {case_id}" for domain, case_id in required if (domain, case_id) not in present]
    # A required case has no verdict if the user did not leave it out; nor has a suite without a claimed attack.
    attacked = {line.domain for line in lines if line.case_id.startswith("attack-") and line.claim}
    without_verdict = [*([] if board.narrowed else missing), *(s.domain for s in board.suites if s.domain not in attacked)]
    outcome = decide_run([*counting(lines), *[("FAIL", True) for _ in unreported], *[(None, True) for _ in without_verdict]])
    claim = claim_of_run(outcome, [*records, *unreported])
    write_junit(outcome, claim)
    why_not = release_obstacles(board, outcome, missing)
    run = _compose(board, lines, outcome, claim, why_not, began)
    _write(board.folder, run, records)
    if run.releasable and (refused := _refusals(board, run)):
        # No refusal of verify can be waived, so that each is also listed as lax.
        run = run.model_copy(update={"why_not": tuple(refused), "lax": (*run.lax, *refused)})
        _write(board.folder, run, records)
    if options.export and (run.releasable or options.export_anyway):
        run = _export(options.path(options.export), run, records)
        _write(board.folder, run, records)
    return run


def _compose(
    board: CaseBoard, lines: Sequence[CaseLine], outcome: Outcome, claim: str, why_not: Sequence[str], began: float
) -> RunRecord:
    records = board.records()
    defended = {news["domain"]: news["defended"] for news in board.news if news["defended"]}
    suites = {suite.domain: suite.digest for suite in board.suites}
    return RunRecord(
        run_id=board.run_id,
        name=board.folder.name,
        options=board.recorded_options(),
        candidate=dict(board.candidate),
        defended=defended,
        weights={news["domain"]: news["weights"] for news in board.news if news["weights"]},
        beside={domain: found for domain, folder in defended.items() if (found := unhashed_files(Path(folder)))},
        required=board.required,
        files=_files(board.folder, lines),
        plugins=tuple(board.plugins),
        suites=suites,
        cases=tuple(lines),
        coverage=tuple(coverage(s, board.options.tier, _attacks(board, s.domain, lines), outcome) for s in board.suites),
        provenance=run_provenance(
            records,
            tool=__version__,
            candidate=str(board.candidate["digest"]),
            suites=suites,
            versions=(records[0].identity.versions if records else {}) or versions(),
            trees={s.domain: working_tree(s.folder) for s in board.suites},
        ),
        outcome=outcome,
        claim=claim,
        why_not=tuple(why_not),
        lax=tuple(text for suite in board.suites for text in unexcused(suite)),
        started=board.started,
        ended=now(),
        wall_s=round(time.monotonic() - began, 3),
    )


def _attacks(board: CaseBoard, domain: str, lines: Sequence[CaseLine]) -> list[tuple[CaseRecord, Outcome | None]]:
    """The attack cases of a domain, each with the outcome that it counts with."""
    pairs = zip(lines, board.tests.values(), strict=True)
    read = [(board.record(test.news), line) for line, test in pairs if test.news and line.domain == domain]
    return [(record, line.outcome) for record, line in read if record and record.evidence.kind == "attack"]


def _files(folder: Path, lines: Sequence[CaseLine]) -> dict[str, str]:
    """The sha256 of each file of evidence: the folders of the cases, and the JUnit file."""
    folders = [(folder / line.record).parent for line in lines if line.record]
    paths = [*(path for of_case in folders for path in sorted(of_case.iterdir())), folder / JUNIT]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}


def _write(folder: Path, run: RunRecord, records: Sequence[CaseRecord]) -> None:
    """Writes the run's record, and the statement that binds it."""
    text = run.model_dump_json(indent=1) + "\n"
    write_text(folder / RUN, text)
    statement = statement_of(run, records, hashlib.sha256(text.encode()).hexdigest())
    write_text(folder / STATEMENT, statement_text(statement))


def _refusals(board: CaseBoard, run: RunRecord) -> list[str]:
    """The refusals of ``rn-harness verify`` for this run and the attacked weights."""
    allowed = [code.sha256 for code in run.plugins if code.name in board.options.allowed_plugins]
    with tempfile.TemporaryDirectory(prefix="rn-harness-") as weights:
        for domain, folder in run.defended.items():
            link_defended(Path(folder), Path(weights, domain))
        found = verify(
            board.folder,
            weights=Path(weights),
            policy=ReleasePolicy(version=1, plugins=allowed),
            suites=[suite.folder for suite in board.suites],
            private=board.options.private,
        )
    return [f"rn-harness verify refuses it [{r.code}]: {r.sentence}" for r in found.refusals]


def _export(root: Path, run: RunRecord, records: Sequence[CaseRecord]) -> RunRecord:
    """Exports the defended weights of each domain; the record with their folders, and with the reasons against a release."""
    exported: dict[str, str] = {}
    beside = dict(run.beside)
    why_not = list(run.why_not)
    if why_not:
        why_not.append("weights were exported all the same, by --rn-export-anyway")
    for domain, folder in run.defended.items():
        of_domain = [r for r in records if r.identity.suite["domain"] == domain]
        try:
            export_defended(Path(folder), root / domain, run, of_domain)
        except (CandidateError, OSError) as error:  # the verdict stays, but there is nothing to release
            why_not.append(f"the export of {domain} failed: {error}")
        else:
            exported[domain] = str(root / domain)
            beside[domain] = unhashed_files(root / domain)
    changes: dict[str, Any] = {"exported": exported, "beside": beside, "why_not": tuple(why_not)}
    return run.model_copy(update=changes)


def release_obstacles(board: CaseBoard, outcome: Outcome, missing: Sequence[str]) -> list[str]:
    """All reasons against a release, as parts of a sentence.

    Args:
        board: of the run.
        outcome: of the run.
        missing: cases that the tier requires and that have no record.
    """
    options = board.options
    reasons = outcome_against(outcome)
    if options.tier == "smoke":
        reasons.append("the smoke tier never is a release verdict")
    if options.overrides:
        reasons.append(f"modified by --rn-set {' '.join(options.overrides)}")
    if options.allow_pickle:
        reasons.append("--rn-allow-pickle: weights that can run code when they are read")
    if options.trust_remote_code:
        reasons.append("--rn-trust-remote-code: the model's own code was run")
    if options.chat_template:
        reasons.append("--rn-chat-template: the model was tested under a template that is not released with it")
    reasons += [f"the selection was narrowed by {how}" for how in board.narrowed]
    if board.left_out and not board.narrowed:
        reasons.append(f"{len(board.left_out)} tests were deselected or hidden, the first is {board.left_out[0]}")
    reasons += [f"worker {name} ended without a word on what it collected and loaded" for name in board.unheard]
    foreign = unlisted(board.plugins, options.allowed_plugins)
    reasons += [f"{why}; leave it out, or answer for it by --rn-allow-plugin" for why in foreign]
    reasons += [f"{domain}: {file_list(files)} not as committed" for domain, files in board.dirty.items()]
    reasons += [lax for suite in board.suites for lax in laxer(suite)]
    for suite in board.suites:
        recipe = suite.declaration.defenses.get(options.defense)
        reasons += unearned(suite.domain, options.defense, recipe.model_dump(mode="json") if recipe else None)
    if missing:
        reasons.append(f"{len(missing)} cases of the tier have no record, the first is {missing[0]}")
    for test in board.tests.values():
        if test.state == "skipped" and (test.news is None or board.standing(test.news)[0] == "claim"):
            reasons.append(f"{test.nodeid} was skipped")
    return reasons + [f"{test.nodeid} is marked xfail" for test in board.tests.values() if test.excused]


def revoke_unconfirmed(board: CaseBoard) -> None:
    """Turns passed tests without a confirming record into errors, so that JUnit and the run's record agree."""
    for test in board.tests.values():
        if test.state == "passed" and test.news and test.news["outcome"] == "PASS" and not _confirmed(board, test.news):
            test.state = "error"
            test.text = "no verdict: its record cannot be read, is not of this run, or does not pass when decided again"


def _confirmed(board: CaseBoard, news: CaseNews) -> bool:
    """True if a record can be read, is of this run, candidate, suite and defense, and passes when it is decided again."""
    record, suite = board.record(news), board.suite_of(news["domain"])
    if record is None or suite is None:
        return False
    identity, evidence, run = record.identity, record.evidence, record.evidence.trajectory
    return (
        record.run_id == board.run_id
        and (record.key, record.case_id) == (news["key"], news["case_id"])
        and identity.candidate["digest"] == board.candidate["digest"]
        and identity.overrides == board.options.overrides
        and evidence.policy == suite.policy
        and evidence.standing == board.standing(news["domain"], record.case_id)[0]
        and run is not None
        and not incoherent(record)
        and not undeclared(record, suite, board.options.tier)
        and not impossible_times(record, board.started, now())
        and (evidence.kind != "defense" or evidence.report_due == (board.options.defense in suite.declaration.defenses))
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
