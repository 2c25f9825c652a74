"""A run as the controlling process knows it: its facts, its selected tests, how each ended, and the record of its case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from rn_harness.records.base import STATES, Outcome, TestState
from rn_harness.records.case import CaseRecord, Finding, only_reported, turns
from rn_harness.records.run import CaseLine
from rn_harness.run.case import Case
from rn_harness.run.session import RECORD
from rn_harness.spec.base import LoadedCode, Standing
from rn_harness.spec.fixtures import PACKAGE
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import new_run_id, now
from rn_harness.verdict.completeness import recipe_of
from rn_harness.verdict.decide import decide
from rn_harness.verdict.release_rules import required_cases

Phase = Literal["setup", "call", "teardown"]
RECORDED = (
    *("model", "defense", "second_judge", "tier", "level", "acknowledge", "allow_pickle", "trust_remote_code", "arguments"),
    *("quantise", "shard", "sampler", "fleet", "executor"),
)
"""Options that the run's record has unchanged."""
NODE_ID = "the node id"
"""How an entry of ``CaseBoard.narrowed`` begins whose argument names single tests."""


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


def never_run(nodeid: str, text: str) -> SelectedTest:
    """A test without verdict that no report will come of."""
    return SelectedTest(nodeid, text=text, ended=True, has_result=True)


@dataclass
class CaseBoard:
    """Facts that hold for all cases of a run, and the reports of its tests with the records of their cases.

    Attributes:
        suites: all suites with a selected test, as their files declare them; fixtures had no access to them.
        judges: names of the judges, by domain.
        narrowed: how the selection was narrowed, e.g. ``-k``; empty if it was not.
        started: beginning of the run; of a run in parts, the beginning of its first part.
        left_out: suites' tests that were collected and will not run, and those that were kept from being collected.
        plugins: foreign code that any process of the run had loaded.
        unheard: workers that ended without a report on their collection and loaded code.
        unchecked: domains of suites in which no test class inherits RobustnessChecks.
        dirty: uncommitted files of each suite, by domain.
        is_part: whether the run is a part of another; its folder is inside the other's.
        joined: the part that each case was taken from, by domain and case id, if parts are joined.
        read_candidate: reads the candidate's files once more; raises CandidateError if they changed.
    """

    folder: Path
    options: Options
    suites: Sequence[Suite]
    candidate: Mapping[str, str | None]
    judges: Mapping[str, str]
    narrowed: Sequence[str]
    started: str = field(default_factory=now)
    left_out: Sequence[str] = ()
    plugins: Sequence[LoadedCode] = ()
    unheard: Sequence[str] = ()
    unchecked: Sequence[str] = ()
    dirty: Mapping[str, Sequence[str]] = field(default_factory=dict)
    run_id: str = field(default_factory=new_run_id)
    is_part: bool = False
    joined: Mapping[str, str] = field(default_factory=dict)
    read_candidate: Callable[[], None] = field(kw_only=True)
    tests: dict[str, SelectedTest] = field(default_factory=dict)
    _records: dict[str, CaseRecord | None] = field(default_factory=dict)
    _earlier: set[tuple[int, int]] = field(default_factory=set)

    @property
    def is_narrowed(self) -> bool:
        """Whether the user has left out tests. A ``-k``, ``-m`` or ``--deselect`` that keeps all of them leaves out none."""
        return bool(self.narrowed) and (bool(self.left_out) or any(how.startswith(NODE_ID) for how in self.narrowed))

    def suite_of(self, domain: str) -> Suite | None:
        """The suite of a domain."""
        return next((s for s in self.suites if s.domain == domain), None)

    def standing(self, domain: str, case_id: str, record: CaseRecord | None) -> tuple[Standing, bool]:
        """A case's standing as its suite declares it, and whether the claim covers its attack.

        Only the record has the settings that a search found.
        """
        suite = self.suite_of(domain)
        run = record.evidence.trajectory if record else None
        return suite.standing_of(case_id, recipe_of(run) if run else None) if suite else ("claim", True)

    def standing_of(self, news: CaseNews) -> tuple[Standing, bool]:
        """``standing`` of a test's case."""
        return self.standing(news["domain"], news["case_id"], self.record(news))

    @property
    def required(self) -> dict[str, tuple[str, ...]]:
        """The cases that the tier requires, by domain."""
        return {suite.domain: required_cases(suite, self.options.tier) for suite in self.suites}

    def recorded_options(self) -> dict[str, Any]:
        """The user's options in the form of the run's record."""
        options = self.options
        return {
            **{name: getattr(options, name) for name in RECORDED},
            "judges": dict(self.judges),
            "labels": bool(options.labels),
            "overrides": list(options.overrides),
            "base": options.undefended,
            "transcripts": list(options.recipients),
            "strength": list(options.strength),
            "private_prompts": {s.domain: list(s.private) for s in self.suites if s.private},
            "recipe": {s.domain: list(s.recipe) for s in self.suites},
            "chat_template": bool(options.chat_template),
            "narrowed": list(self.narrowed),
            "deselected": len(self.left_out),
            "shipped": [s.domain for s in self.suites if s.folder.is_relative_to(PACKAGE)],
            "dirty": {domain: list(files) for domain, files in self.dirty.items()},
            "allowed_plugins": list(options.allowed_plugins),
            "joined": dict(self.joined),
        }

    def require_left_out(self) -> None:
        """Registers tests that were left out as without verdict, unless the user narrowed the selection."""
        for nodeid in () if self.narrowed else self.left_out:
            self.tests.setdefault(nodeid, never_run(nodeid, "no verdict: a hook of a plugin or a conftest left it out"))

    def demanded(self, news: CaseNews | None) -> TestState | None:
        """The state that a case's verdict demands of its test; None: the test's own report decides."""
        if news is None or news["outcome"] == "PASS":
            return None
        standing, within = self.standing_of(news)
        if only_reported(standing, news["finding"], within_claim=within):
            return None
        return "failure" if news["outcome"] == "FAIL" else "error"

    def verdict_text(self, news: CaseNews | None) -> str:
        """A case's verdict with its reasons."""
        record = self.record(news) if news else None
        if news is None or record is None:
            return "no verdict: its record cannot be read"
        return "\n".join([f"{news['outcome']}: {record.case_id}", *(f"  {r.sentence}" for r in record.verdict.reasons)])

    @property
    def news(self) -> list[CaseNews]:
        """The news of all cases so far, one for each test that has any."""
        return [test.news for test in self.tests.values() if test.news]

    def line(self, test: SelectedTest) -> CaseLine:
        """A test's line in the run's record. If a case's verdict and its test's state disagree, the case has no verdict."""
        news = test.news
        standing, within = self.standing_of(news) if news else ("claim", True)
        agrees = news is not None and test.state in STATES[news["outcome"]]
        if agrees and news and news["outcome"] == "INCONCLUSIVE" and standing == "exploratory":
            agrees = (test.state == "skipped") == only_reported(standing, news["finding"], within_claim=within)
        told = test.text.partition("\n")[0].removesuffix(", raised at:")
        return CaseLine(
            nodeid=test.nodeid,
            case_id=news["case_id"] if news else test.nodeid.rpartition("::")[2],
            domain=news["domain"] if news else "",
            key=news["key"] if news else None,
            outcome=news["outcome"] if news and agrees else None,
            standing=standing,
            within_claim=within,
            finding=news["finding"] if news and agrees else None,
            level=self._level(news) if news else None,
            stored=bool(news and news["stored"]),
            state=test.state,
            note=None if news and agrees else (told or f"no case: {test.state}"),
            record=Path(news["folder"], RECORD).relative_to(self.folder).as_posix() if news else None,
        )

    def _level(self, news: CaseNews) -> str | None:
        """The level of an attack; None for other cases."""
        record = self.record(news)
        return record.verdict.resistance.level if record and record.verdict.resistance else None

    def record(self, news: CaseNews) -> CaseRecord | None:
        """A case's record, read once; None if it cannot be read, so that it counts for nothing."""
        return self._record_in(news["folder"])

    def _record_in(self, folder: str) -> CaseRecord | None:
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
        for path, written in self.record_files().items():
            record = None if written in self._earlier else self._record_in(str(path.parent))
            if record is None or record.key in known:
                continue
            standing, within = self.standing(record.identity.suite["domain"], record.case_id, record)
            if decide(record.evidence).outcome == "FAIL" and turns(standing, within_claim=within):
                found.append(record)
        return found

    def record_files(self) -> dict[Path, tuple[int, int]]:
        """The records in the folder with inode and time: a file that is written again is another, whatever its name."""
        stats = {path: path.stat() for path in sorted(self.folder.glob(f"cases/*/{RECORD}"))}
        return {path: (found.st_ino, found.st_mtime_ns) for path, found in stats.items()}


def _read(path: Path) -> CaseRecord | None:
    try:
        return CaseRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
