"""The run as the controlling process sees it: collects what each test came to and writes the views.

There is one in each session that selects a suite's tests, in the process that has the terminal; workers send it reports.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from rn_harness.models.identity import unhashed_files
from rn_harness.records.base import STATES, Outcome, TestState
from rn_harness.records.case import TOLD_ALONE, CaseRecord, Finding, turns
from rn_harness.records.run import CaseLine, RunRecord
from rn_harness.records.trajectory import Trajectory
from rn_harness.release.export import export_defended, link_defended
from rn_harness.release.statement import RUN, STATEMENT, statement_of, statement_text
from rn_harness.release.verification import verify
from rn_harness.report.junit import TestResult, write_junit
from rn_harness.report.terminal import declared_recipe, summary_lines
from rn_harness.report.views import write_views
from rn_harness.run.case import Case
from rn_harness.spec.base import Standing
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.loaded_code import LoadedCode
from rn_harness.spec.options import Options
from rn_harness.spec.release_policy import ReleasePolicy
from rn_harness.spec.suite import Suite
from rn_harness.spec.version import __version__
from rn_harness.store.provenance import now, versions, working_tree
from rn_harness.store.run_ids import new_run_id
from rn_harness.store.store import write_text
from rn_harness.verdict.coherence import UNDEFENDED, impossible_times, incoherent, run_provenance, undeclared
from rn_harness.verdict.coverage import coverage
from rn_harness.verdict.decide import claim_of_run, counting, decide, decide_run
from rn_harness.verdict.helpfulness import same_baseline
from rn_harness.verdict.release_rules import laxer, outcome_against, required_cases, told, unearned, unexcused, unlisted
from rn_harness.verdict.validity import recipe_of

RECORDS = "cases/*/record.json"
Phase = Literal["setup", "call", "teardown"]
VERDICT = "rn-harness::verdict"
"""Names the run's verdict in JUnit, where no test shows it."""


class CaseNews(TypedDict):
    """What a worker's report says of a case; builtins alone, since it crosses processes."""

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


@dataclass
class _Test:
    """A selected test on its way; ``told``: whether anything but a passed setup was heard of it."""

    nodeid: str
    state: TestState = "error"
    text: str = "no verdict: the test has not ended"
    seconds: float = 0.0
    news: CaseNews | None = None
    ended: bool = False
    excused: bool = False
    told: bool = False


@dataclass
class Controller:
    """Collects reports and writes ``junit.xml`` and ``run.json``.

    Attributes:
        folder: of the run.
        options: what the user asked for.
        suites: all suites of which a test was selected, as their files declare them: no fixture has had them in hand.
        candidate: name, revision and digest.
        judges: who judges each suite, by domain.
        narrowed: how the selection was narrowed, e.g. ``-k``; empty if it was not.
        left_out: tests of suites that were collected and will not be run, and what was kept from being collected.
        plugins: code of others that any process of the run had loaded.
        unheard: workers that ended without a word on what they collected and loaded.
        dirty: files of each suite that are not as committed, by domain.
        run_id: of the run.
        started: when the run began; of one in parts when its first part did.
        is_part: whether the run is a part of another, in whose folder its own lies.
        joined: which part each case was taken from, by domain and case id, where parts are joined.
        unwritten: why the views for people could not be made; None if they were. It changes no verdict.
    """

    folder: Path
    options: Options
    suites: Sequence[Suite]
    candidate: Mapping[str, str | None]
    judges: Mapping[str, str]
    narrowed: Sequence[str]
    unwritten: str | None = field(default=None, init=False)
    started: str = field(default_factory=now)
    left_out: Sequence[str] = ()
    plugins: Sequence[LoadedCode] = ()
    unheard: Sequence[str] = ()
    dirty: Mapping[str, Sequence[str]] = field(default_factory=dict)
    run_id: str = field(default_factory=new_run_id)
    is_part: bool = False
    joined: Mapping[str, str] = field(default_factory=dict)
    _clock: float = field(default_factory=time.monotonic)
    _tests: dict[str, _Test] = field(default_factory=dict)
    _records: dict[str, CaseRecord | None] = field(default_factory=dict)
    _old: set[tuple[int, int]] = field(default_factory=set)
    _verdict: TestResult | None = None

    def begin(self, nodeids: Sequence[str], uncollected: Sequence[str] = ()) -> None:
        """Registers the selected tests; from here on the JUnit file stands, red.

        Args:
            nodeids: of the tests.
            uncollected: those of files that could not be collected.

        Raises:
            OSError: the run's folder cannot be written to.
        """
        (self.folder / "cases").mkdir(parents=True, exist_ok=True)
        self._old = {_file_of(path) for path in self.folder.glob(RECORDS)}
        for name in (RUN, STATEMENT):  # an earlier run's outcome must not survive a kill of this one
            (self.folder / name).unlink(missing_ok=True)
        for nodeid in nodeids:
            self._tests.setdefault(nodeid, _Test(nodeid))
        for nodeid in uncollected:
            self._tests[nodeid] = _Test(nodeid, text="no verdict: the file could not be collected", ended=True, told=True)
        self._require_left_out()
        self._write_junit()
        if not self.is_part:
            self._point_latest()

    def hear(self, left_out: Sequence[str], plugins: Sequence[LoadedCode]) -> None:
        """Takes a worker's word on what it left out and what it had loaded."""
        self.left_out = sorted({*self.left_out, *left_out})
        self.plugins = tuple(dict.fromkeys((*self.plugins, *plugins)))
        self._require_left_out()

    def _require_left_out(self) -> None:
        """What was left out has no verdict, unless the user narrowed the selection himself."""
        for nodeid in () if self.narrowed else self.left_out:
            text = "no verdict: a hook of a plugin or a conftest left it out"
            self._tests.setdefault(nodeid, _Test(nodeid, text=text, ended=True, told=True))

    def add(
        self, nodeid: str, phase: Phase, outcome: str, seconds: float, text: str, news: CaseNews | None, *, excused: bool = False
    ) -> None:
        """Takes one phase's report of one test.

        Args:
            nodeid: pytest's.
            phase: setup, call or teardown.
            outcome: ``passed``, ``failed`` or ``skipped``.
            seconds: that the phase took.
            text: why, if not passed.
            news: of the case, if there is one.
            excused: whether the test is marked xfail, so that pytest does not count what it came to.
        """
        test = self._tests.get(nodeid)
        if test is None:
            return
        test.seconds += seconds
        test.excused = test.excused or excused
        test.told = test.told or outcome != "passed" or phase != "setup"
        if news and not (test.news and test.news["outcome"] == "FAIL"):  # a breach that was told is not taken back
            test.news = news
        if test.ended and test.state in ("failure", "error"):
            return
        if outcome == "skipped":
            test.state, test.text = "skipped", text
        elif outcome == "failed":
            test.state, test.text = ("failure" if phase == "call" else "error"), text
        elif phase == "call":
            test.state, test.text = "passed", ""
        demanded = self.demanded(test.news)
        if demanded and (phase != "setup" or outcome != "passed"):
            test.state = demanded
            test.text = text if outcome == "failed" else self.verdict_text(test.news)
        if phase == "teardown":
            test.ended = True
            self._write_junit()

    def demanded(self, news: CaseNews | None) -> TestState | None:
        """How the test of a case has to end by its verdict, whatever its own report says; None: as the report says."""
        if news is None or news["outcome"] == "PASS":
            return None
        standing, within = self._standing(news["domain"], news["case_id"], self._record(news))
        if news["outcome"] == "FAIL":
            return "failure" if turns(standing, within_claim=within) else None
        told_only = standing == "out_of_claim" or (standing == "exploratory" and news["finding"] in TOLD_ALONE)
        return None if told_only else "error"

    def verdict_text(self, news: CaseNews | None) -> str:
        """A case's verdict with its reasons."""
        record = self._record(news) if news else None
        if news is None or record is None:
            return "no verdict: its record cannot be read"
        return "\n".join([f"{news['outcome']}: {record.case_id}", *(f"  {r.sentence}" for r in record.verdict.reasons)])

    def undertold(self, outcome: Outcome, failures: int, errors: int) -> TestState | None:
        """How the run's verdict has to stand in a JUnit file on its own, where its tests would make the file look better."""
        if outcome == "FAIL" and not failures:
            return "failure"
        if outcome == "INCONCLUSIVE" and not (failures or errors or self.narrowed):
            return "error"
        return None

    @property
    def properties(self) -> dict[str, str]:
        """Facts of the run, for JUnit's testsuite properties."""
        facts = {
            "rn_harness.candidate": str(self.candidate["name"]),
            "rn_harness.candidate.sha256": str(self.candidate["digest"]),
            "rn_harness.defense": self.options.defense,
            "rn_harness.judges": "; ".join(f"{domain}: {names}" for domain, names in self.judges.items()),
            "rn_harness.tier": self.options.tier,
            "rn_harness.run_folder": self.folder.name,
            "rn_harness.overrides": " ".join(self.options.overrides),
            "rn_harness.recipe": declared_recipe(self.suites),
            "rn_harness.broken_by": " ".join(self._broken_by()),
        }
        return facts | {f"rn_harness.suite.{s.domain}.sha256": s.digest for s in self.suites}

    def _broken_by(self) -> list[str]:
        """The attacks that broke the model so far, by domain and case, whatever their standing."""
        news = [test.news for test in self._tests.values() if test.news]
        return [f"{n['domain']}/{n['case_id']}" for n in news if n["outcome"] == "FAIL" and n["case_id"].startswith("attack-")]

    def output_of(self, nodeid: str) -> str:
        """The checkpoints' numbers of a test, or nothing."""
        test = self._tests.get(nodeid)
        return test.news["output"] if test and test.news else ""

    def _results(self) -> Iterator[TestResult]:
        for test in self._tests.values():
            yield TestResult(test.nodeid, test.state, test.text, self.output_of(test.nodeid), test.seconds)
        if self._verdict:
            yield self._verdict

    def _reds(self) -> tuple[int, int]:
        """How many tests are failures, and how many errors."""
        states = [test.state for test in self._tests.values()]
        return states.count("failure"), states.count("error")

    def unended(self) -> list[tuple[str, str]]:
        """Node id and text of each test of which no outcome was heard."""
        return [(test.nodeid, test.text) for test in self._tests.values() if not test.told]

    def write_junit(self, path: Path) -> None:
        """Writes the file as things stand; what has not ended is red."""
        seconds = time.monotonic() - self._clock
        write_junit(path, list(self._results()), self.properties, self.started, seconds)

    def _write_junit(self) -> None:
        self.write_junit(self.folder / "junit.xml")

    def _point_latest(self) -> None:
        """``latest`` beside the run folder points to it; where links are not to be had, nothing does."""
        link = self.folder.parent / "latest"
        if link.exists() and not link.is_symlink():
            return
        temporary = link.with_name(f".latest.{self.folder.name}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.folder.name)
        temporary.replace(link)

    def _lines(self) -> list[CaseLine]:
        lines = []
        for test in self._tests.values():
            news = test.news
            # The verdict of a case and the colour of its test must not differ: where they do, there is none. But a breach
            # that was seen stays seen, whatever became of its test.
            standing, within = self._standing(news["domain"], news["case_id"], self._record(news)) if news else ("claim", True)
            agrees = news is not None and test.state in STATES[news["outcome"]]
            if agrees and news and news["outcome"] == "INCONCLUSIVE" and standing == "exploratory":
                agrees = (test.state == "skipped") == (news["finding"] in TOLD_ALONE)
            lines.append(
                CaseLine(
                    nodeid=test.nodeid,
                    case_id=news["case_id"] if news else re.sub(r"^.*::", "", test.nodeid),
                    domain=news["domain"] if news else "",
                    key=news["key"] if news else None,
                    outcome=news["outcome"] if news and agrees else None,
                    standing=standing,
                    within_claim=within,
                    finding=news["finding"] if news and agrees else None,
                    stored=bool(news and news["stored"]),
                    state=test.state,
                    note=None if news and agrees else (test.text.partition("\n")[0] or f"no case: {test.state}"),
                    record=self._path(Path(news["folder"], "record.json")) if news else None,
                )
            )
        return lines

    def _disown(self) -> None:
        """Takes the green from tests whose record does not bear it out, so that JUnit and the run's record say the same."""
        for test in self._tests.values():
            if test.state == "passed" and test.news and test.news["outcome"] == "PASS" and not self._is_ours(test.news):
                test.state = "error"
                test.text = "no verdict: its record cannot be read, is not of this run, or does not pass when decided again"

    def _standing(self, domain: str, case_id: str, record: CaseRecord | None = None) -> tuple[Standing, bool]:
        """What a case is for, and whether the claim covers its attack: as the suite declares, whatever is told of it.

        What a search found is in the record alone.
        """
        suite = next((s for s in self.suites if s.domain == domain), None)
        run = record.evidence.trajectory if record else None
        return suite.standing_of(case_id, recipe_of(run) if run else None) if suite else ("claim", True)

    def _is_ours(self, news: CaseNews) -> bool:
        """Whether a record can be read, is of this run, candidate, suite and defense, and passes when decided again."""
        record = self._record(news)
        suite = next((s for s in self.suites if s.domain == news["domain"]), None)
        if record is None or suite is None:
            return False
        identity, evidence = record.identity, record.evidence
        run = evidence.trajectory
        return (
            record.run_id == self.run_id
            and (record.key, record.case_id) == (news["key"], news["case_id"])
            and identity.candidate["digest"] == self.candidate["digest"]
            and identity.overrides == self.options.overrides
            and evidence.policy == suite.policy
            and evidence.standing == self._standing(news["domain"], record.case_id)[0]
            and run is not None
            and not incoherent(record)
            and not undeclared(record, suite, self.options.tier)
            and not impossible_times(record, self.started, now())
            and (evidence.kind != "defense" or evidence.report_due == (self.options.defense in suite.declaration.defenses))
            and (evidence.kind in UNDEFENDED or run.defended_digest == self._defended_digest(news))
            and self._same_benign(news, run)
            and decide(evidence).outcome == "PASS"
        )

    def _defended_digest(self, news: CaseNews) -> str | None:
        """The defended weights that the domain's defense case measured; the case's own where the run has no such case."""
        record = self._record_of("defense", news)
        return record.identity.defended_digest if record else None

    def _record_of(self, case_id: str, news: CaseNews) -> CaseRecord | None:
        """The record of this case of a case's domain; the case's own where the run has no such case."""
        told = [t.news for t in self._tests.values() if t.news and t.news["domain"] == news["domain"]]
        return self._record(next((n for n in told if n["case_id"] == case_id), news))

    def _same_benign(self, news: CaseNews, run: Trajectory) -> bool:
        """Whether a case compares benign answers with those that the domain's candidate case repeated."""
        record = self._record_of("candidate", news)
        candidate = record.evidence.trajectory if record else None
        scores = [c.benign for of in (candidate, run) if of for c in of.checkpoints[:1]]
        return len(scores) == 2 and scores[0] is not None and scores[1] is not None and same_baseline(scores[0], scores[1])

    def told_options(self) -> dict[str, Any]:
        """What the user asked for, as the run's record tells it."""
        return {
            "model": self.options.model,
            "defense": self.options.defense,
            "judges": dict(self.judges),
            "second_judge": self.options.second_judge,
            "labels": bool(self.options.labels),
            "tier": self.options.tier,
            "overrides": list(self.options.overrides),
            "base": self.options.undefended,
            "acknowledge": self.options.acknowledge,
            "transcripts": list(self.options.recipients),
            "strength": list(self.options.strength),
            "private_prompts": {s.domain: list(s.private) for s in self.suites if s.private},
            "recipe": {s.domain: list(s.recipe) for s in self.suites},
            "chat_template": bool(self.options.chat_template),
            "allow_pickle": self.options.allow_pickle,
            "trust_remote_code": self.options.trust_remote_code,
            "arguments": self.options.arguments,
            "narrowed": list(self.narrowed),
            "deselected": len(self.left_out),
            "dirty": {domain: list(files) for domain, files in self.dirty.items()},
            "allowed_plugins": list(self.options.allowed_plugins),
            "quantise": self.options.quantise,
            "shard": self.options.shard,
            "sampler": self.options.sampler,
            "fleet": self.options.fleet,
            "executor": self.options.executor,
            "joined": dict(self.joined),
        }

    def finish(self) -> RunRecord:
        """Writes the last JUnit and the run's record; the one outcome over all cases is decided here, once."""
        self._records.clear()
        self._disown()
        lines = self._lines()
        missing = self._missing()
        # A case that the tier requires and that the user did not leave out himself has no verdict.
        counted = counting(lines)
        unrun: list[tuple[Outcome | None, bool]] = [] if self.narrowed else [(None, True)] * len(missing)
        attacked = all(
            any(line.domain == s.domain and line.case_id.startswith("attack-") and line.claim for line in lines)
            for s in self.suites
        )
        records = self.records()
        cut = self._cut_breaches(records)
        counted += [("FAIL", True) for _ in cut]
        outcome = decide_run(counted + unrun) if attacked else decide_run([*counted, (None, True)])
        claim = claim_of_run(outcome, [*records, *cut])
        self._verdict = TestResult(VERDICT, state, claim) if (state := self.undertold(outcome, *self._reds())) else None
        self._write_junit()
        why_not = self._why_not(outcome, missing)
        defended = {t.news["domain"]: t.news["defended"] for t in self._tests.values() if t.news and t.news["defended"]}
        run = RunRecord(
            run_id=self.run_id,
            name=self.folder.name,
            options=self.told_options(),
            candidate=dict(self.candidate),
            defended=defended,
            weights=self._weights(),
            beside={domain: found for domain, folder in defended.items() if (found := unhashed_files(Path(folder)))},
            required=self._required(),
            files=self._files(lines),
            plugins=tuple(self.plugins),
            suites={s.domain: s.digest for s in self.suites},
            cases=tuple(lines),
            coverage=tuple(coverage(s, self.options.tier, self._attacks(s.domain, lines), outcome) for s in self.suites),
            provenance=run_provenance(
                records,
                tool=__version__,
                candidate=str(self.candidate["digest"]),
                suites={s.domain: s.digest for s in self.suites},
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
        self._write_run(run, records)
        if run.releasable and (refused := self._refused(run)):
            # Nobody can waive that verify refuses a run: each refusal keeps its weight under another code.
            run = run.model_copy(update={"releasable": False, "why_not": tuple(refused), "lax": (*run.lax, *refused)})
            self._write_run(run, records)
        if self.options.export and (run.releasable or self.options.export_anyway):
            run = self._export(run, records)
            self._write_run(run, records)
        return run

    def _refused(self, run: RunRecord) -> list[str]:
        """What ``rn-harness verify`` says against this very run, on the weights that were attacked."""
        listed = [code.sha256 for code in run.plugins if code.name in self.options.allowed_plugins]
        with tempfile.TemporaryDirectory(prefix="rn-harness-") as weights:
            for domain, folder in run.defended.items():
                link_defended(Path(folder), Path(weights, domain))
            found = verify(
                self.folder,
                weights=Path(weights),
                policy=ReleasePolicy(version=1, plugins=listed),
                suites=[suite.folder for suite in self.suites],
                private=self.options.private,
            )
        return [f"rn-harness verify refuses it [{r.code}]: {r.sentence}" for r in found.refusals]

    def show(self, run: RunRecord) -> None:
        """Writes the views for people, when the records stand: what goes wrong here is told, and changes no verdict."""
        try:
            write_views(self.folder, run, self.records())
        except Exception as error:  # noqa: BLE001  (told at the end of the run, which is then not green)
            self.unwritten = f"{type(error).__name__}: {error}"

    def _attacks(self, domain: str, lines: Sequence[CaseLine]) -> list[tuple[CaseRecord, Outcome | None]]:
        """The attack cases of a domain, each with the outcome that it counts with."""
        told = zip(lines, self._tests.values(), strict=True)
        read = [(self._record(t.news), line) for line, t in told if t.news and line.domain == domain]
        return [(record, line.outcome) for record, line in read if record and record.evidence.kind == "attack"]

    def _write_run(self, run: RunRecord, records: Sequence[CaseRecord]) -> None:
        """Writes the run's record, and the statement that binds it."""
        text = run.model_dump_json(indent=1) + "\n"
        write_text(self.folder / RUN, text)
        made = statement_of(run, records, hashlib.sha256(text.encode()).hexdigest())
        write_text(self.folder / STATEMENT, statement_text(made))

    def _export(self, run: RunRecord, records: Sequence[CaseRecord]) -> RunRecord:
        """Writes the defended weights of each domain; the record with where to, and with what speaks against it."""
        root = self.options.path(self.options.export or "")
        exported: dict[str, str] = {}
        beside = dict(run.beside)
        why_not = list(run.why_not)
        if why_not:
            why_not.append("weights were exported all the same, by --rn-export-anyway")
        for domain, folder in run.defended.items():
            of_domain = [r for r in records if r.identity.suite["domain"] == domain]
            try:
                export_defended(Path(folder), root / domain, run, of_domain)
            except (CandidateError, OSError) as error:  # the verdict stands; what was to be handed over does not
                why_not.append(f"the export of {domain} failed: {error}")
            else:
                exported[domain] = str(root / domain)
                beside[domain] = unhashed_files(root / domain)
        changes = {"exported": exported, "beside": beside, "why_not": tuple(why_not), "releasable": not why_not}
        return run.model_copy(update=changes)

    def _required(self) -> dict[str, tuple[str, ...]]:
        """The cases that the tier requires, by domain."""
        return {suite.domain: required_cases(suite, self.options.tier) for suite in self.suites}

    def _missing(self) -> list[str]:
        """Cases that the tier requires and that no test brought."""
        present = {(t.news["domain"], t.news["case_id"]) for t in self._tests.values() if t.news}
        required = [(domain, case_id) for domain, cases in self._required().items() for case_id in cases]
        return [f"{domain} {case_id}" for domain, case_id in required if (domain, case_id) not in present]

    def _path(self, path: Path) -> str:
        """A file's path from the run's folder."""
        return path.relative_to(self.folder).as_posix()

    def _files(self, lines: Sequence[CaseLine]) -> dict[str, str]:
        """The sha256 of each file of evidence: the cases' records with their checkpoints, and the JUnit file."""
        folders = [(self.folder / line.record).parent for line in lines if line.record]
        paths = [*(path for folder in folders for path in sorted(folder.iterdir())), self.folder / "junit.xml"]
        return {self._path(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}

    def _weights(self) -> dict[str, dict[str, str]]:
        """The sha256 of each file of the defended weights, by domain."""
        return {t.news["domain"]: t.news["weights"] for t in self._tests.values() if t.news and t.news["weights"]}

    def hindrances(self) -> list[str]:
        """What speaks against a release before any case has run."""
        return self._why_not("PASS", [])

    def _why_not(self, outcome: Outcome, missing: Sequence[str]) -> list[str]:
        reasons = outcome_against(outcome)
        if self.options.tier == "smoke":
            reasons.append("the smoke tier never is a release verdict")
        if self.options.overrides:
            reasons.append(f"modified by --rn-set {' '.join(self.options.overrides)}")
        if self.options.allow_pickle:
            reasons.append("--rn-allow-pickle: weights that can run code when they are read")
        if self.options.trust_remote_code:
            reasons.append("--rn-trust-remote-code: the model's own code was run")
        if self.options.chat_template:
            reasons.append("--rn-chat-template: the model was tested under a template that is not released with it")
        reasons += [f"the selection was narrowed by {how}" for how in self.narrowed]
        if self.left_out and not self.narrowed:
            reasons.append(f"{len(self.left_out)} tests were deselected or hidden, the first is {self.left_out[0]}")
        reasons += [f"worker {name} ended without a word on what it collected and loaded" for name in self.unheard]
        reasons += [f"{why}; leave it out, or answer for it by --rn-allow-plugin" for why in self._strangers()]
        reasons += [f"{domain}: {told(files)} not as committed" for domain, files in self.dirty.items()]
        reasons += [lax for suite in self.suites for lax in laxer(suite)]
        for suite in self.suites:
            recipe = suite.declaration.defenses.get(self.options.defense)
            reasons += unearned(suite.domain, self.options.defense, recipe.model_dump(mode="json") if recipe else None)
        if missing:
            reasons.append(f"{len(missing)} cases of the tier have no record, the first is {missing[0]}")
        claims = [
            t
            for t in self._tests.values()
            if t.state == "skipped" and (t.news is None or self._standing(t.news["domain"], t.news["case_id"])[0] == "claim")
        ]
        reasons += [f"{t.nodeid} was skipped" for t in claims]
        return reasons + [f"{t.nodeid} is marked xfail" for t in self._tests.values() if t.excused]

    def _strangers(self) -> list[str]:
        """Code of others that nobody answers for; each a sentence."""
        return unlisted(self.plugins, self.options.allowed_plugins)

    def _record(self, news: CaseNews) -> CaseRecord | None:
        """A case's record, read once when the run ends; None if it cannot be read, in which case it counts for nothing."""
        folder = news["folder"]
        if folder not in self._records:
            try:
                text = Path(folder, "record.json").read_text(encoding="utf-8")
                self._records[folder] = CaseRecord.model_validate_json(text)
            except (OSError, ValueError):
                self._records[folder] = None
        return self._records[folder]

    def records(self) -> list[CaseRecord]:
        """The cases' records, as written by whoever ran them."""
        return [record for t in self._tests.values() if t.news and (record := self._record(t.news))]

    def _cut_breaches(self, told: Sequence[CaseRecord]) -> list[CaseRecord]:
        """Records of this run that no test told of, since something cut it off, and in which a breach was seen."""
        known = {record.key for record in told}
        found = []
        for path in sorted(self.folder.glob(RECORDS)):
            if _file_of(path) in self._old:  # an earlier run's, in the same folder
                continue
            try:
                record = CaseRecord.model_validate_json(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # an unreadable record counts for nothing, and its test has no verdict
            standing, within = self._standing(record.identity.suite["domain"], record.case_id, record)
            if record.key not in known and decide(record.evidence).outcome == "FAIL" and turns(standing, within_claim=within):
                found.append(record)
        return found

    def summary(self, run: RunRecord) -> Iterator[str]:
        """The closing lines."""
        yield from summary_lines(run, self.records(), str(self.folder))
        if self.unwritten:
            yield f"NO REPORT: report.html and summary.md could not be written: {self.unwritten}"
            yield f"the records stand; when that is mended: rn-harness report {self.folder}"


def _file_of(path: Path) -> tuple[int, int]:
    """Which file it is: one that is written anew is another, whatever the calendar says."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def news_of(case: Case, output: str) -> CaseNews:
    """A case as builtins, for a report; ``output`` is the text of its checkpoints."""
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
