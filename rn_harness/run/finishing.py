"""Ends a run: decides its outcome, writes its record and statement, has them verified, and exports the weights."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn_harness.models.identity import unhashed_files
from rn_harness.records.base import Outcome
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import CaseLine, RunRecord
from rn_harness.release.export import export_defended, link_defended
from rn_harness.release.statement import RUN, STATEMENT, statement_of, statement_text
from rn_harness.release.verification import verify
from rn_harness.run.case_board import CaseBoard
from rn_harness.run.release_obstacles import release_obstacles
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.release_policy import ReleasePolicy
from rn_harness.spec.version import __version__
from rn_harness.store.provenance import now, versions, working_tree
from rn_harness.store.store import write_text
from rn_harness.verdict.coherence import run_provenance
from rn_harness.verdict.coverage import coverage
from rn_harness.verdict.release_rules import unexcused
from rn_harness.verdict.run_outcome import claim_of_run, counting, decide_run

JUNIT = "junit.xml"


@dataclass(frozen=True)
class Conclusion:
    """The outcome of a run with its grounds.

    Attributes:
        lines: one for each test.
        records: of the cases.
        missing: cases that the tier requires and that no test brought.
        outcome, claim: of the run.
    """

    lines: tuple[CaseLine, ...]
    records: tuple[CaseRecord, ...]
    missing: tuple[str, ...]
    outcome: Outcome
    claim: str


def conclude(board: CaseBoard) -> Conclusion:
    """Decides the one outcome over all cases."""
    facts, lines, records, unreported = board.facts, board.lines(), board.records(), board.unreported_breaches()
    present = {(news["domain"], news["case_id"]) for news in board.news}
    required = [(domain, case_id) for domain, cases in facts.required.items() for case_id in cases]
    missing = [f"{domain} {case_id}" for domain, case_id in required if (domain, case_id) not in present]
    counted = [*counting(lines), *[("FAIL", True) for _ in unreported]]
    # A required case has no verdict if the user did not leave it out; nor has a suite without a claimed attack.
    attacked = {line.domain for line in lines if line.case_id.startswith("attack-") and line.claim}
    without_verdict = [] if facts.narrowed else missing
    without_verdict += [s.domain for s in facts.suites if s.domain not in attacked]
    outcome = decide_run([*counted, *[(None, True) for _ in without_verdict]])
    claim = claim_of_run(outcome, [*records, *unreported])
    return Conclusion(tuple(lines), tuple(records), tuple(missing), outcome, claim)


def close_run(board: CaseBoard, conclusion: Conclusion, wall_s: float) -> RunRecord:
    """Writes the run's record and statement, and exports the weights if nothing speaks against it.

    Args:
        board: of the run; its JUnit file is written.
        conclusion: of the run.
        wall_s: seconds since its beginning.
    """
    options, records = board.facts.options, conclusion.records
    run = _compose(board, conclusion, wall_s)
    _write(board.facts.folder, run, records)
    if run.releasable and (refused := _refusals(board, run)):
        # No refusal of verify can be waived, so that each is also listed as lax.
        run = run.model_copy(update={"why_not": tuple(refused), "lax": (*run.lax, *refused)})
        _write(board.facts.folder, run, records)
    if options.export and (run.releasable or options.export_anyway):
        run = _export(options.path(options.export), run, records)
        _write(board.facts.folder, run, records)
    return run


def _compose(board: CaseBoard, conclusion: Conclusion, wall_s: float) -> RunRecord:
    facts, records, lines, outcome = board.facts, conclusion.records, conclusion.lines, conclusion.outcome
    why_not = release_obstacles(board, outcome, conclusion.missing)
    defended = {news["domain"]: news["defended"] for news in board.news if news["defended"]}
    suites = {suite.domain: suite.digest for suite in facts.suites}
    return RunRecord(
        run_id=facts.run_id,
        name=facts.folder.name,
        options=facts.recorded_options(),
        candidate=dict(facts.candidate),
        defended=defended,
        weights={news["domain"]: news["weights"] for news in board.news if news["weights"]},
        beside={domain: found for domain, folder in defended.items() if (found := unhashed_files(Path(folder)))},
        required=facts.required,
        files=_files(facts.folder, lines),
        plugins=tuple(facts.plugins),
        suites=suites,
        cases=lines,
        coverage=tuple(coverage(s, facts.options.tier, _attacks(board, s.domain, lines), outcome) for s in facts.suites),
        provenance=run_provenance(
            records,
            tool=__version__,
            candidate=str(facts.candidate["digest"]),
            suites=suites,
            versions=(records[0].identity.versions if records else {}) or versions(),
            trees={s.domain: working_tree(s.folder) for s in facts.suites},
        ),
        outcome=outcome,
        claim=conclusion.claim,
        why_not=tuple(why_not),
        lax=tuple(text for suite in facts.suites for text in unexcused(suite)),
        started=facts.started,
        ended=now(),
        wall_s=round(wall_s, 3),
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
    facts = board.facts
    allowed = [code.sha256 for code in run.plugins if code.name in facts.options.allowed_plugins]
    with tempfile.TemporaryDirectory(prefix="rn-harness-") as weights:
        for domain, folder in run.defended.items():
            link_defended(Path(folder), Path(weights, domain))
        found = verify(
            facts.folder,
            weights=Path(weights),
            policy=ReleasePolicy(version=1, plugins=allowed),
            suites=[suite.folder for suite in facts.suites],
            private=facts.options.private,
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
