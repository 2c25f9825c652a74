"""The run in the controlling process: collects the reports of tests, decides, writes JUnit, record and views, and exports.

There is one controller in each session that selects a suite's tests. Workers send it their reports.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rn_harness.models.identity import unhashed_files
from rn_harness.records.base import Outcome, TestState
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import JUNIT, RUN, STATEMENT, CaseLine, RunRecord
from rn_harness.release.export import export_defended, link_defended
from rn_harness.release.statement import statement_of, statement_text
from rn_harness.release.verification import verify
from rn_harness.report.junit import TestResult, write_junit
from rn_harness.report.pages import write_views
from rn_harness.report.terminal import declared_recipe, summary_lines
from rn_harness.run.case_board import CaseBoard, CaseNews, Phase, SelectedTest, never_run
from rn_harness.spec.base import LoadedCode
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.release_policy import ReleasePolicy
from rn_harness.spec.version import __version__
from rn_harness.store.files import write_text
from rn_harness.store.provenance import now, remove_outcome, versions, working_tree
from rn_harness.verdict.coherence import UNDEFENDED, impossible_times, incoherent, run_provenance, undeclared
from rn_harness.verdict.coverage import claim_of_run, counting, coverage, decide_run, missing_cases
from rn_harness.verdict.decide import decide
from rn_harness.verdict.release_rules import file_list, laxer, outcome_against, unearned, unexcused, unlisted, unresisted
from rn_harness.verdict.validity import same_benign

HEADLINE = "rn_harness.headline"
"""JUnit's property with the headlines of a finished run."""
EXPORT_FAILED = "the export of"
"""Beginning of the reason against a release if weights could not be written."""
VERDICT = "rn-harness::verdict"
"""Name of the run's verdict in JUnit, if no test shows it."""


@dataclass
class Controller(CaseBoard):
    """Collects reports and writes ``junit.xml`` and ``run.json``.

    ``unwritten`` is why the views for people could not be written; None if they were. It changes no verdict.
    """

    unwritten: str | None = field(default=None, init=False)
    _clock: float = field(default_factory=time.monotonic)
    _verdict: TestResult | None = None
    _headline: tuple[str, ...] = ()

    def begin(self, nodeids: Sequence[str], uncollected: Sequence[str] = ()) -> None:
        """Registers the selected tests, and those of files that could not be collected.

        From here on there is a JUnit file, red until the tests have passed.
        """
        (self.folder / "cases").mkdir(parents=True, exist_ok=True)
        remove_outcome(self.folder)  # an earlier run's must not survive a kill of this one
        self._earlier = set(self.record_files().values())
        self.tests |= {nodeid: SelectedTest(nodeid) for nodeid in nodeids}
        self.tests |= {nodeid: never_run(nodeid, "no verdict: the file could not be collected") for nodeid in uncollected}
        self.require_left_out()
        self._write_junit()
        if not self.is_part:
            self._point_latest()

    def hear(self, left_out: Sequence[str], plugins: Sequence[LoadedCode]) -> None:
        """Takes a worker's report on the tests that it left out and the code that it had loaded."""
        self.left_out = sorted({*self.left_out, *left_out})
        self.plugins = tuple(dict.fromkeys((*self.plugins, *plugins)))
        self.require_left_out()

    def add(
        self, nodeid: str, phase: Phase, outcome: str, seconds: float, text: str, news: CaseNews | None, *, excused: bool = False
    ) -> None:
        """Takes the report of one phase of one test, which ``passed``, ``failed`` or was ``skipped``.

        The verdict of the case decides the test's state. A failure stays, and the news of a breach is not replaced.
        ``text`` says why it did not pass. An ``excused`` test is marked xfail, so that pytest ignores its result.
        """
        test = self.tests.get(nodeid)
        if test is None:
            return
        test.excused = test.excused or excused
        test.seconds += seconds
        test.has_result = test.has_result or outcome != "passed" or phase != "setup"
        if news and not (test.news and test.news["outcome"] == "FAIL"):
            test.news = news
        if not (test.ended and test.state in ("failure", "error")):
            self._settle(test, phase, outcome, text)
            test.ended = test.ended or phase == "teardown"
        if phase == "teardown":
            self._records.clear()  # at the end each is read again anyway
            self._write_junit()

    def _settle(self, test: SelectedTest, phase: Phase, outcome: str, text: str) -> None:
        demanded = self.demanded(test.news)
        if demanded and (phase != "setup" or outcome != "passed"):
            test.state, test.text = demanded, text if outcome == "failed" else self.verdict_text(test.news)
        elif outcome == "skipped":
            test.state, test.text = "skipped", text
        elif outcome == "failed":
            test.state, test.text = ("failure" if phase == "call" else "error"), text
        elif phase == "call":
            test.state, test.text = "passed", ""

    def undertold(self, outcome: Outcome, failures: int, errors: int) -> TestState | None:
        """The state of the run's verdict in a JUnit file whose tests would make the run look better; None if they do not."""
        if outcome == "FAIL" and not failures:
            return "failure"
        if outcome == "INCONCLUSIVE" and not (failures or errors or self.is_narrowed):
            return "error"
        return None

    @property
    def properties(self) -> dict[str, str]:
        """Facts of the run, for JUnit's testsuite properties."""
        broke = [n for n in self.news if n["outcome"] == "FAIL" and n["case_id"].startswith("attack-")]
        facts = {
            "rn_harness.candidate": str(self.candidate["name"]),
            "rn_harness.candidate.sha256": str(self.candidate["digest"]),
            "rn_harness.defense": self.options.defense,
            "rn_harness.judges": "; ".join(f"{domain}: {names}" for domain, names in self.judges.items()),
            "rn_harness.tier": self.options.tier,
            "rn_harness.run_folder": self.folder.name,
            "rn_harness.overrides": " ".join(self.options.overrides),
            "rn_harness.recipe": declared_recipe(self.suites),
            "rn_harness.broken_by": " ".join(f"{n['domain']}/{n['case_id']}" for n in broke),
        }
        facts |= {HEADLINE: " ".join(self._headline)} if self._headline else {}
        return facts | {f"rn_harness.suite.{s.domain}.sha256": s.digest for s in self.suites}

    def write_junit(self, path: Path) -> None:
        """Writes the file with the results so far; a test that has not ended is red."""
        tests = self.tests.values()
        results = [TestResult(t.nodeid, t.state, t.text, t.news["output"] if t.news else "", t.seconds) for t in tests]
        results += [self._verdict] if self._verdict else []
        write_junit(path, results, self.properties, self.started, time.monotonic() - self._clock)

    def _write_junit(self) -> None:
        self.write_junit(self.folder / JUNIT)

    def _point_latest(self) -> None:
        """Makes ``latest``, next to the run's folder, a link to it; nothing if another file has that name."""
        link = self.folder.parent / "latest"
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(f".latest.{self.folder.name}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.folder.name)
        temporary.replace(link)

    def hindrances(self) -> list[str]:
        """Reasons against a release that hold before any case has run."""
        return release_obstacles(self, "PASS", [])

    def finish(self) -> RunRecord:
        """Decides the one outcome over all cases, writes record and statement, and exports if nothing speaks against it."""
        self._records.clear()
        revoke_unconfirmed(self)
        tests, options = self.tests.values(), self.options
        lines, records, unreported = [self.line(test) for test in tests], self.records(), self.unreported_breaches()
        levels = {suite.domain: suite.policy.level for suite in self.suites}
        breached: list[Outcome | None] = ["FAIL" for _ in unreported]
        outcome = decide_run([*counting(lines, levels, self.required), *breached])
        claim, states = claim_of_run(outcome, [*records, *unreported]), [test.state for test in tests]
        state = self.undertold(outcome, states.count("failure"), states.count("error"))
        self._verdict = TestResult(VERDICT, state, claim) if state else None
        run = self._compose(lines, outcome, claim, release_obstacles(self, outcome, missing_cases(lines, self.required)))
        if run.releasable:  # before a record says so: a process that is killed while it reads leaves none that can be released
            run = _refused(run, _changed(self))
        run = self._keep(run, records)
        if run.releasable and (refused := _refusals(self, run)):
            run = self._keep(_refused(run, refused), records)
        if options.export and (run.releasable or options.export_anyway):
            run = self._keep(_export(options.path(options.export), run, records), records)
        return run

    def _keep(self, run: RunRecord, records: Sequence[CaseRecord]) -> RunRecord:
        """Writes JUnit's file with the run's headline, the record that binds its digest, and the statement."""
        self._headline = run.headline
        try:
            self._write_junit()
            run = run.model_copy(update={"files": _files(self.folder, run.cases)})
            text = run.model_dump_json(indent=1) + "\n"
            write_text(self.folder / RUN, text)
            statement = statement_text(statement_of(run, records, hashlib.sha256(text.encode()).hexdigest()))
            write_text(self.folder / STATEMENT, statement)
        except OSError:
            if not any(test.state in ("failure", "error") for test in self.tests.values()):
                remove_outcome(self.folder)  # a green JUnit file without a record would be taken for a PASS
            raise
        return run

    def _compose(self, lines: Sequence[CaseLine], outcome: Outcome, claim: str, why_not: Sequence[str]) -> RunRecord:
        records = self.records()
        defended = {news["domain"]: news["defended"] for news in self.news if news["defended"]}
        suites = {suite.domain: suite.digest for suite in self.suites}
        return RunRecord(
            run_id=self.run_id,
            name=self.folder.name,
            options=self.recorded_options(),
            candidate=dict(self.candidate),
            defended=defended,
            weights={news["domain"]: news["weights"] for news in self.news if news["weights"]},
            beside={domain: found for domain, folder in defended.items() if (found := unhashed_files(Path(folder)))},
            required=self.required,
            plugins=tuple(self.plugins),
            suites=suites,
            cases=tuple(lines),
            coverage=tuple(coverage(s, self.options.tier, _cases(self, s.domain, lines), outcome) for s in self.suites),
            provenance=run_provenance(
                records,
                tool=__version__,
                candidate=str(self.candidate["digest"]),
                suites=suites,
                versions=(records[0].identity.versions if records else {}) or versions(),
                trees={s.domain: working_tree(s.folder) for s in self.suites},
            ),
            outcome=outcome,
            claim=claim,
            why_not=tuple(why_not),
            lax=tuple(text for suite in self.suites for text in unexcused(suite)),
            started=self.started,
            ended=now(),
            wall_s=round(time.monotonic() - self._clock, 3),
        )

    def show(self, run: RunRecord) -> None:
        """Writes the views for people. A failure is reported at the end of the run, and changes no verdict."""
        try:
            write_views(self.folder, run, self.records())
        except Exception as error:  # noqa: BLE001  (reported at the end of the run, which is then not green)
            self.unwritten = f"{type(error).__name__}: {error}"

    def continuation(self, reached: str) -> str:
        """How to go on after an interruption that cut off the work at ``reached``."""
        done = sum(test.has_result for test in self.tests.values())
        return (
            f"INTERRUPTED{f' at {reached}' if reached else ''}: type the same command again. It goes on after {done} of "
            f"{len(self.tests)} tests, whose results are stored. A defense goes on from its last measurement, an attack "
            "begins again"
        )

    def summary(self, run: RunRecord) -> Iterator[str]:
        """The closing lines."""
        yield from summary_lines(run, self.records(), str(self.folder))
        if self.options.export and not (run.exported or any(why.startswith(EXPORT_FAILED) for why in run.why_not)):
            why = "no release can rest on this run; --rn-export-anyway writes the weights whatever the outcome"
            yield f"NOT EXPORTED: {why if run.defended else 'no defended weights were made'}"
        if self.unwritten:
            yield f"NO REPORT: report.html and summary.md could not be written: {self.unwritten}"
            yield f"the records stand; when that is mended: rn-harness report {self.folder}"


def _cases(board: CaseBoard, domain: str, lines: Sequence[CaseLine]) -> list[tuple[CaseRecord, Outcome | None]]:
    """The cases of a domain, each with the outcome that it counts with."""
    pairs = zip(lines, board.tests.values(), strict=True)
    read = [(board.record(test.news), line) for line, test in pairs if test.news and line.domain == domain]
    return [(record, line.outcome) for record, line in read if record]


def _files(folder: Path, lines: Sequence[CaseLine]) -> dict[str, str]:
    """The sha256 of each file of evidence: the folders of the cases, and the JUnit file."""
    folders = [(folder / line.record).parent for line in lines if line.record]
    paths = [*(path for of_case in folders for path in sorted(of_case.iterdir())), folder / JUNIT]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}


def _refused(run: RunRecord, reasons: Sequence[str]) -> RunRecord:
    """The record with these reasons against a release. None of them can be waived, so that each is also listed as lax."""
    return run.model_copy(update={"why_not": tuple(reasons), "lax": (*run.lax, *reasons)})


def _changed(board: CaseBoard) -> list[str]:
    """The reason against a release if the candidate's contents are others than at the beginning."""
    try:
        board.read_candidate()
    except (CandidateError, OSError) as error:
        return [str(error)]
    return []


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
    beside, why_not = dict(run.beside), list(run.why_not)
    if why_not:
        why_not.append("weights were exported all the same, by --rn-export-anyway")
    for domain, folder in run.defended.items():
        of_domain = [r for r in records if r.identity.suite["domain"] == domain]
        try:
            export_defended(Path(folder), root / domain, run, of_domain)
        except (CandidateError, OSError) as error:  # the verdict stays, but there is nothing to release
            why_not.append(f"{EXPORT_FAILED} {domain} failed: {error}")
        else:
            exported[domain] = str(root / domain)
            beside[domain] = unhashed_files(root / domain)
    return run.model_copy(update={"exported": exported, "beside": beside, "why_not": tuple(why_not)})


def release_obstacles(board: CaseBoard, outcome: Outcome, missing: Sequence[str]) -> list[str]:
    """All reasons against a release, as parts of a sentence; ``missing`` are required cases that have no record."""
    options = board.options
    by_option = (
        (options.tier == "smoke", "the smoke tier never is a release verdict"),
        (options.overrides, f"modified by --rn-set {' '.join(options.overrides)}"),
        (options.allow_pickle, "--rn-allow-pickle: weights that can run code when they are read"),
        (options.trust_remote_code, "--rn-trust-remote-code: the model's own code was run"),
        (options.chat_template, "--rn-chat-template: the model was tested under a template that is not released with it"),
    )
    reasons = [*outcome_against(outcome), *(why for given, why in by_option if given)]
    if not board.narrowed:
        silent = set(board.unchecked) - {news["domain"] for news in board.news}
        reasons += [
            f"{domain}: no test class inherits RobustnessChecks, so that no case was run and its tests are ordinary ones; write "
            "class Test...(RobustnessChecks)"
            for domain in sorted(silent)
        ]
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
        reasons += unresisted(suite.domain, (r for r in board.records() if r.identity.suite["domain"] == suite.domain))
    if missing:
        reasons.append(f"{len(missing)} cases of the tier have no record, the first is {missing[0]}")
    for test in board.tests.values():
        if test.state == "skipped" and (test.news is None or board.standing_of(test.news)[0] == "claim"):
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
    defense, candidate = board.record_of("defense", news), board.record_of("candidate", news)
    return (
        record.run_id == board.run_id
        and (record.key, record.case_id) == (news["key"], news["case_id"])
        and identity.candidate["digest"] == board.candidate["digest"]
        and identity.overrides == board.options.overrides
        and evidence.policy == suite.policy
        and evidence.standing == suite.standing_of(record.case_id)[0]
        and run is not None
        and not incoherent(record)
        and not undeclared(record, suite, board.options.tier)
        and not impossible_times(record, board.started, now())
        and (evidence.kind != "defense" or evidence.report_due == (board.options.defense in suite.declaration.defenses))
        and (evidence.kind in UNDEFENDED or run.defended_digest == (defense and defense.identity.defended_digest))
        and candidate is not None
        and candidate.evidence.trajectory is not None
        and same_benign(candidate.evidence.trajectory, run)
        and decide(evidence) == record.verdict
        and record.verdict.outcome == "PASS"
    )
