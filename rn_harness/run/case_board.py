"""The selected tests of a run with the news of their cases: how each test ended, and the record that its case wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from rn_harness.records.base import STATES, Outcome, TestState
from rn_harness.records.case import TOLD_ALONE, CaseRecord, Finding, turns
from rn_harness.records.run import CaseLine
from rn_harness.report.junit import TestResult
from rn_harness.run.case import Case
from rn_harness.run.case_maker import RECORD
from rn_harness.run.run_facts import RunFacts
from rn_harness.spec.base import Standing
from rn_harness.verdict.decide import decide

Phase = Literal["setup", "call", "teardown"]


class CaseNews(TypedDict):
    """A case in a worker's report: only builtins, since it crosses processes."""

    case_id: str
    domain: str
    key: str
    outcome: Outcome
    finding: Finding | None
    stored: bool
    folder: str
    defended: str
    weights: dict[str, str]
    output: str


def news_of(case: Case, output: str) -> CaseNews:
    """The news of a case; ``output`` is the text of its checkpoints."""
    record = case.record
    return {
        "case_id": record.case_id,
        "domain": case.domain,
        "key": record.key,
        "outcome": record.verdict.outcome,
        "finding": record.verdict.finding,
        "stored": case.stored,
        "folder": str(case.folder),
        "defended": str(case.defended) if case.defended else "",
        "weights": dict(case.weights),
        "output": output,
    }


@dataclass
class SelectedTest:
    """A selected test.

    Attributes:
        nodeid: pytest's.
        state, text: its result so far, and the reason.
        seconds: time of its phases.
        news: of its case.
        ended: whether its teardown was reported.
        excused: whether it is marked xfail.
        has_result: whether a report other than a passed setup arrived.
    """

    nodeid: str
    state: TestState = "error"
    text: str = "no verdict: the test has not ended"
    seconds: float = 0.0
    news: CaseNews | None = None
    ended: bool = False
    excused: bool = False
    has_result: bool = False

    def take(self, phase: Phase, outcome: str, seconds: float, text: str, news: CaseNews | None) -> None:
        """Takes the report of one phase. A failure stays, and the news of a breach is not replaced."""
        self.seconds += seconds
        self.has_result = self.has_result or outcome != "passed" or phase != "setup"
        if news and not (self.news and self.news["outcome"] == "FAIL"):
            self.news = news
        if self.ended and self.state in ("failure", "error"):
            return
        if outcome == "skipped":
            self.state, self.text = "skipped", text
        elif outcome == "failed":
            self.state, self.text = ("failure" if phase == "call" else "error"), text
        elif phase == "call":
            self.state, self.text = "passed", ""


@dataclass
class CaseBoard:
    """Collects the reports of tests, and reads the records of their cases.

    Attributes:
        facts: of the run.
        tests: the selected tests by node id.
    """

    facts: RunFacts
    tests: dict[str, SelectedTest] = field(default_factory=dict)
    _records: dict[str, CaseRecord | None] = field(default_factory=dict)
    _earlier: set[tuple[int, int]] = field(default_factory=set)

    def select(self, nodeids: Sequence[str], uncollected: Sequence[str]) -> None:
        """Registers the selected tests, and those of files that could not be collected."""
        self._earlier = {_file_identity(path) for path in self._record_files()}
        for nodeid in nodeids:
            self.tests.setdefault(nodeid, SelectedTest(nodeid))
        for nodeid in uncollected:
            self.tests[nodeid] = self._never_run(nodeid, "no verdict: the file could not be collected")
        self.require_left_out()

    def require_left_out(self) -> None:
        """Registers tests that were left out as without verdict, unless the user narrowed the selection."""
        for nodeid in () if self.facts.narrowed else self.facts.left_out:
            self.tests.setdefault(nodeid, self._never_run(nodeid, "no verdict: a hook of a plugin or a conftest left it out"))

    @staticmethod
    def _never_run(nodeid: str, text: str) -> SelectedTest:
        return SelectedTest(nodeid, text=text, ended=True, has_result=True)

    def add(self, test: SelectedTest, phase: Phase, outcome: str, seconds: float, text: str, news: CaseNews | None) -> None:
        """Takes the report of one phase of a test; the verdict of its case decides its state."""
        is_final = test.ended and test.state in ("failure", "error")
        test.take(phase, outcome, seconds, text, news)
        demanded = None if is_final else self.demanded(test.news)
        if demanded and (phase != "setup" or outcome != "passed"):
            test.state = demanded
            test.text = text if outcome == "failed" else self.verdict_text(test.news)
        if phase == "teardown" and not is_final:
            test.ended = True

    def demanded(self, news: CaseNews | None) -> TestState | None:
        """The state that a case's verdict demands of its test; None: the test's own report decides."""
        if news is None or news["outcome"] == "PASS":
            return None
        standing, within = self.standing(news)
        if news["outcome"] == "FAIL":
            return "failure" if turns(standing, within_claim=within) else None
        for_information = standing == "out_of_claim" or (standing == "exploratory" and news["finding"] in TOLD_ALONE)
        return None if for_information else "error"

    def verdict_text(self, news: CaseNews | None) -> str:
        """A case's verdict with its reasons."""
        record = self.record(news) if news else None
        if news is None or record is None:
            return "no verdict: its record cannot be read"
        return "\n".join([f"{news['outcome']}: {record.case_id}", *(f"  {r.sentence}" for r in record.verdict.reasons)])

    def standing(self, news: CaseNews) -> tuple[Standing, bool]:
        """A case's standing, and whether the claim covers its attack."""
        return self.facts.standing(news["domain"], news["case_id"], self.record(news))

    @property
    def news(self) -> list[CaseNews]:
        """The news of all cases so far, one for each test that has any."""
        return [test.news for test in self.tests.values() if test.news]

    @property
    def broken_by(self) -> list[str]:
        """The attacks that broke the model so far, by domain and case, whatever their standing."""
        attacks = (n for n in self.news if n["outcome"] == "FAIL" and n["case_id"].startswith("attack-"))
        return [f"{n['domain']}/{n['case_id']}" for n in attacks]

    def output_of(self, nodeid: str) -> str:
        """The checkpoints' numbers of a test, or nothing."""
        test = self.tests.get(nodeid)
        return test.news["output"] if test and test.news else ""

    def results(self) -> Iterator[TestResult]:
        """The tests for JUnit."""
        for test in self.tests.values():
            yield TestResult(test.nodeid, test.state, test.text, self.output_of(test.nodeid), test.seconds)

    def count(self, state: TestState) -> int:
        """Number of tests in a state."""
        return sum(test.state == state for test in self.tests.values())

    def lines(self) -> list[CaseLine]:
        """The tests for the run's record."""
        return [self._line(test) for test in self.tests.values()]

    def _line(self, test: SelectedTest) -> CaseLine:
        """A test's line. If a case's verdict and its test's state disagree, the case has no verdict."""
        news = test.news
        standing, within = self.standing(news) if news else ("claim", True)
        agrees = news is not None and test.state in STATES[news["outcome"]]
        if agrees and news and news["outcome"] == "INCONCLUSIVE" and standing == "exploratory":
            agrees = (test.state == "skipped") == (news["finding"] in TOLD_ALONE)
        return CaseLine(
            nodeid=test.nodeid,
            case_id=news["case_id"] if news else test.nodeid.rpartition("::")[2],
            domain=news["domain"] if news else "",
            key=news["key"] if news else None,
            outcome=news["outcome"] if news and agrees else None,
            standing=standing,
            within_claim=within,
            finding=news["finding"] if news and agrees else None,
            stored=bool(news and news["stored"]),
            state=test.state,
            note=None if news and agrees else (test.text.partition("\n")[0] or f"no case: {test.state}"),
            record=Path(news["folder"], RECORD).relative_to(self.facts.folder).as_posix() if news else None,
        )

    def forget_records(self) -> None:
        """Makes the next calls read the records again."""
        self._records.clear()

    def record(self, news: CaseNews) -> CaseRecord | None:
        """A case's record, read once; None if it cannot be read, so that it counts for nothing."""
        folder = news["folder"]
        if folder not in self._records:
            self._records[folder] = _read(Path(folder, RECORD))
        return self._records[folder]

    def records(self) -> list[CaseRecord]:
        """The cases' records."""
        return [record for news in self.news if (record := self.record(news))]

    def record_of(self, case_id: str, news: CaseNews) -> CaseRecord | None:
        """The record of another case of the same domain; the case's own record if the run has no such case."""
        others = (n for n in self.news if (n["domain"], n["case_id"]) == (news["domain"], case_id))
        return self.record(next(others, news))

    def unreported_breaches(self) -> list[CaseRecord]:
        """Records of this run with a breach whose test was cut off before it reported them."""
        known, found = {record.key for record in self.records()}, []
        for path in self._record_files():
            record = None if _file_identity(path) in self._earlier else _read(path)
            if record is None or record.key in known:
                continue
            standing, within = self.facts.standing(record.identity.suite["domain"], record.case_id, record)
            if decide(record.evidence).outcome == "FAIL" and turns(standing, within_claim=within):
                found.append(record)
        return found

    def _record_files(self) -> list[Path]:
        return sorted(self.facts.folder.glob(f"cases/*/{RECORD}"))


def _read(path: Path) -> CaseRecord | None:
    try:
        return CaseRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _file_identity(path: Path) -> tuple[int, int]:
    """Inode and time of a file: a file that is written again is another, whatever its name."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns
