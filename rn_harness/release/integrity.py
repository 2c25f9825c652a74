"""Checks that a run's evidence is complete and consistent, whether a release can rest on it or not.

It computes digests again, decides verdicts again from the recorded scores, and makes the statement again; it measures nothing and
loads no model. Each refusal has a code and a sentence; docs/releasing.md lists all codes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar, get_args

from pydantic import ValidationError

from rn_harness.judges.anchors import AnchorSet, shipped_anchors
from rn_harness.judges.protocol import ORGANISM
from rn_harness.models.identity import root_digest
from rn_harness.records.base import STATES, first_difference, read_record
from rn_harness.records.case import CaseRecord
from rn_harness.records.certificate import AnchorSource, Certificate
from rn_harness.records.run import JUNIT, RUN, STATEMENT, CaseLine, RunRecord
from rn_harness.release.statement import statement_of
from rn_harness.spec.base import TierName
from rn_harness.spec.errors import RecordError
from rn_harness.verdict.coherence import (
    UNDEFENDED,
    impossible_times,
    incoherent,
    run_provenance,
    scattered,
    strange_controls,
    told_judges,
)
from rn_harness.verdict.coverage import claim_of, claim_of_run, counting, decide_run, families_of, resistance_in, simulated_in
from rn_harness.verdict.decide import decide

MAX_FILE_BYTES = 1_000_000_000
CASES = "cases"
R = TypeVar("R", RunRecord, CaseRecord)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason not to release: a code for machines, a sentence for people."""

    code: str
    sentence: str


@dataclass
class RunEvidence:
    """The records in a run's folder, with the sha256 of ``run.json``; ``records`` has those of the cases by their path."""

    folder: Path
    run: RunRecord
    run_digest: str
    records: dict[str, CaseRecord] = field(default_factory=dict)

    def records_of(self, domain: str | None = None) -> list[CaseRecord]:
        """The records of all cases, or of one domain's, in the run's order."""
        lines = (line for line in self.run.cases if domain in (None, line.domain))
        return [self.records[line.record] for line in lines if line.record in self.records]


def read_evidence(folder: Path) -> tuple[RunEvidence | None, list[Refusal]]:
    """Reads a run's folder; refuses files that were removed, changed or added after ``run.json`` was written."""
    try:
        text = read_file(folder / RUN)
    except OSError as error:
        return None, [Refusal("unreadable", f"{RUN}: {short(error)}")]
    run = _read(RUN, text, RunRecord)
    if isinstance(run, Refusal):
        return None, [run]
    evidence = RunEvidence(folder, run, hashlib.sha256(text).hexdigest())
    found: list[Refusal] = []
    of_cases = {line.record for line in run.cases if line.record}
    for name, digest in run.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.as_posix() != name:
            found.append(Refusal("unsafe_path", f"{name!r} leads out of the run's folder"))
            continue
        try:
            raw = read_file(folder / name)
        except OSError as error:
            found.append(Refusal("file_missing", f"{name}: {short(error)}"))
            continue
        if hashlib.sha256(raw).hexdigest() != digest:
            found.append(Refusal("file_changed", f"{name} is not the file that the run's record binds"))
        if name in of_cases:
            record = _read(name, raw, CaseRecord)
            if isinstance(record, Refusal):
                found.append(record)
            else:
                evidence.records[name] = record
    present = {p.relative_to(folder).as_posix() for p in (folder / CASES).rglob("*") if not p.is_dir()}
    unbound, required = sorted(present - set(run.files)), sorted({*of_cases, JUNIT} - set(run.files))
    found += [Refusal("file_unbound", f"{name} is not bound by the run's record") for name in unbound]
    found += [Refusal("file_missing", f"{name} is not bound by the run's record") for name in required]
    return evidence, found


def _read(name: str, raw: bytes, kind: type[R]) -> R | Refusal:
    """The record in a file, or the refusal of a file that holds no such record."""
    try:
        return read_record(raw, kind)
    except RecordError as error:
        return Refusal("altered", f"{name}: {error}")
    except (ValueError, RecursionError) as error:
        return Refusal("unreadable", f"{name}: {short(error)}")


def read_file(path: Path) -> bytes:
    """The bytes of a plain file of a sane size. Raises OSError for a missing file, a link, or a file that is too large."""
    if path.is_symlink() or not path.is_file():
        raise FileNotFoundError("a plain file is required")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise OSError(f"larger than {MAX_FILE_BYTES} bytes")
    return path.read_bytes()


def short(error: BaseException) -> str:
    """An error in a few words."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


def check_evidence(evidence: RunEvidence) -> list[Refusal]:
    """Refusals of inconsistent evidence, for any run."""
    run, found = evidence.run, list(_cases(evidence))
    for name, record in evidence.records.items():
        found += check_record(evidence.folder / name, record)
        if record.run_id != run.run_id:
            found.append(Refusal("record_foreign", f"{record.case_id} is of run {record.run_id}, this is {run.run_id}"))
        times = impossible_times(record, run.started, run.ended)
        found += [Refusal("times_impossible", f"{record.case_id}: {text}") for text in times]
    if not found:
        for domain in run.suites:
            records = evidence.records_of(domain)
            found += [Refusal("records_scattered", f"{domain}: cases of one run differ in {text}") for text in scattered(records)]
            strange = strange_controls(records)
            found += [Refusal("control_foreign", f"{domain}: {case} has the control of another attack") for case in strange]
        found += _outcome(evidence)
    return found + _statement(evidence)


def check_record(path: Path, record: CaseRecord) -> list[Refusal]:
    """Refusals of a case's record that is inconsistent, or differs from its journal of checkpoints."""
    found = [Refusal("record_incoherent", f"{record.case_id}: {text}") for text in incoherent(record)]
    return found + _verdict(record) + _checkpoints(path, record)


def _cases(evidence: RunEvidence) -> Iterator[Refusal]:
    """Checks that each required case was run once, and that each line agrees with its record."""
    run = evidence.run
    if set(run.required) != set(run.suites):
        yield Refusal("required_unknown", f"cases are required of {sorted(run.required)}, suites are {sorted(run.suites)}")
    for domain, required in run.required.items():
        kinds = Counter(case.partition("-")[0] for case in required)
        attacks, controls = ({c.removeprefix(of) for c in required if c.startswith(of)} for of in ("attack-", "control-"))
        once = {"candidate": 1, "defense": 1, "helpfulness": 1, "attack": len(attacks), "control": len(attacks)}
        if not attacks or attacks != controls or kinds != once:
            yield Refusal("required_unknown", f"{domain}: the list of required cases is not one that a tier has")
        count = Counter(line.case_id for line in run.cases if line.domain == domain)
        yield from (Refusal("case_missing", f"{domain} {case} was not run") for case in required if not count[case])
        yield from (Refusal("case_twice", f"{domain} {case} stands there {n} times") for case, n in count.items() if n > 1)
        yield from (Refusal("case_foreign", f"{domain} {c} is none that the tier requires") for c in count if c not in required)
    for line in run.cases:
        name, record = f"{line.domain} {line.case_id}", evidence.records.get(line.record or "")
        if record is not None:
            yield from (Refusal("case_foreign", f"{name}{why}") for why in _foreign_line(run, line, record))
        elif line.key is not None or line.domain:
            yield Refusal("case_missing", f"{name} has no record")
    paths = Counter(line.record for line in run.cases if line.record)
    yield from (Refusal("case_twice", f"{path} is the record of {n} cases") for path, n in paths.items() if n > 1)


def _foreign_line(run: RunRecord, line: CaseLine, record: CaseRecord) -> Iterator[str]:
    """Contradictions between a case's line and its record, as ends of sentences."""
    if line.outcome and line.state not in STATES[line.outcome]:
        yield f": its test ended as {line.state}"
    if record.measured is not None and record.measured.run_id != run.run_id and not line.stored:
        yield f" was measured by run {record.measured.run_id} and is not said to be stored"
    pairs = (
        (line.key, record.key),
        (line.case_id, record.case_id),
        (line.domain, record.identity.suite.get("domain")),
        (line.outcome or record.verdict.outcome, record.verdict.outcome),
        (line.finding or record.verdict.finding, record.verdict.finding),
        (line.standing, record.evidence.standing),
        (line.within_claim, record.evidence.within_claim),
        (line.level, record.verdict.resistance.level if record.verdict.resistance else None),
        (run.suites.get(line.domain), record.identity.suite.get("digest")),
    )
    if any(said != of_record for said, of_record in pairs):
        yield f": its line in {RUN} is of another record"


def _verdict(record: CaseRecord) -> list[Refusal]:
    """Decides the case again from the recorded trajectory."""
    again = decide(record.evidence)
    if first_difference(record.verdict.model_dump(mode="json"), again.model_dump(mode="json")) is None:
        return []
    said = f"{record.verdict.outcome}, decided again it is {again.outcome}: {again.claim}"
    return [Refusal("verdict_differs", f"{record.case_id} is recorded as {said}")]


def _checkpoints(path: Path, record: CaseRecord) -> list[Refusal]:
    """Compares the checkpoints of the record with the lines written while the case ran."""
    found = []
    for name, trajectory in record.evidence.journals.items():
        try:
            same = read_file(path.with_name(name)) == trajectory.lines.encode()
        except OSError as error:
            found.append(Refusal("file_missing", f"{record.case_id}: {name}: {short(error)}"))
            continue
        if not same:
            found.append(Refusal("checkpoints_differ", f"{record.case_id}: the record has other checkpoints than {name}"))
    return found


def _outcome(evidence: RunEvidence) -> list[Refusal]:
    """Decides the run again from its cases, and compares its facts with theirs."""
    run, records, found = evidence.run, list(evidence.records.values()), []
    levels = {r.identity.suite["domain"]: r.evidence.policy.level for r in records}
    again = decide_run(counting(run.cases, levels, run.required))
    if (run.outcome, run.claim) != (again, claim_of_run(again, evidence.records_of())):
        found.append(Refusal("outcome_differs", f"the run is recorded as {run.outcome}, decided again it is {again}"))
    facts = [*_foreign_facts(run, records), *_foreign_coverage(evidence)]
    return found + [Refusal("run_foreign", f"the run's {what}") for what in facts]


def _foreign_coverage(evidence: RunEvidence) -> Iterator[str]:
    """Compares the run's coverage with its cases; only the suite knows the attacks that were not run."""
    run = evidence.run
    covered = [c.domain for c in run.coverage]
    if covered != list(run.suites):
        yield f"coverage is of {covered}, its suites are {list(run.suites)}"
    for said in run.coverage:
        lines = [line for line in run.cases if line.domain == said.domain]
        cases = [(evidence.records[line.record], line.outcome) for line in lines if line.record in evidence.records]
        of_domain = [record for record, _ in cases]
        families = families_of((record, outcome) for record, outcome in cases if record.evidence.kind == "attack")
        policies = {(1 + r.evidence.policy.samples, r.evidence.policy.checkpoint_every) for r, _ in cases}
        heldout = {len(r.evidence.trajectory.heldout_ids) for r, _ in cases if r.evidence.trajectory}
        if (
            (said.tier, said.families) != (run.options.get("tier"), families)
            or said.resistance != resistance_in(said.resistance.level, of_domain, run.required.get(said.domain, ()))
            or {r.evidence.policy.level for r, _ in cases} - {said.resistance.level}
            or said.claim != claim_of(said.domain, families, run.outcome, simulated_in(of_domain))
            or policies - {(said.completions, said.checkpoint_every)}
            or heldout - {said.heldout}
        ):
            yield f"coverage of {said.domain} is not that of its cases"


def _foreign_facts(run: RunRecord, records: list[CaseRecord]) -> Iterator[str]:
    """Facts of the run's record that differ from its cases', as parts of a sentence."""
    said, provenance = run.options, run.provenance
    for what, fact, of_cases in (
        ("candidate", run.candidate, [r.identity.candidate for r in records]),
        ("list of overrides", said.get("overrides"), [list(r.identity.overrides) for r in records]),
        ("word on labels", said.get("labels"), [any(c.source == "labels" for c in r.evidence.certificates) for r in records]),
    ):
        if any(of_case != fact for of_case in of_cases):
            yield f"{what} is {fact!r}, and one of its cases has another"
    for code in dict.fromkeys(code for r in records for code in r.identity.plugins):
        if code not in run.plugins:
            yield f"list of plugins lacks {code.kind} {code.name}, under which one of its cases was measured"
    for option, mark in (("allow_pickle", "pickle"), ("trust_remote_code", "remote_code")):
        if said.get(option) not in (True, False) or (mark in run.candidate and not said[option]):
            yield f"option {option} is {said.get(option)}, its candidate says otherwise"
    judges = {r.identity.suite["domain"]: told_judges(r.identity.judge, r.identity.reward, r.identity.second) for r in records}
    recipes, tier = said.get("recipe"), said.get("tier")
    lists = isinstance(recipes, dict) and all(isinstance(pairs, list) for pairs in recipes.values())
    asked = tier in get_args(TierName) and f"--rn-tier={tier}" in said.get("arguments", ())
    defended = {r.identity.suite["domain"]: r.identity.defended_files for r in records if r.evidence.kind not in UNDEFENDED}
    weights = {domain: root_digest(hashes) for domain, hashes in run.weights.items()}
    versions = next((r.identity.versions for r in records), provenance.versions)
    made = run_provenance(
        records,
        tool=provenance.tool,
        candidate=str(run.candidate.get("digest")),
        suites=run.suites,
        versions=versions,
        trees=provenance.trees,
    )
    level, typed = said.get("level"), [a for a in said.get("arguments", ()) if str(a).startswith("--rn-level=")]
    levels = {r.evidence.policy.level for r in records}
    overridden = any(str(pair).startswith("policy.level=") for pair in said.get("overrides") or ())
    as_asked = level is None or overridden or levels <= {level}
    checks = (
        (
            "level" in said and as_asked and typed == ([] if level is None else [f"--rn-level={level}"]),
            f"level is {level!r}, its arguments have {typed}, its cases {sorted(levels)}",
        ),
        (said.get("judges") == judges, f"judges are {said.get('judges')}, those of its cases {judges}"),
        (lists, f"recipe is {recipes!r}, and no list for each domain"),
        (asked, f"tier is {tier!r}, its arguments are {said.get('arguments')}"),
        (
            said.keys() >= {"narrowed", "deselected", "dirty"},
            "options do not say how the selection was narrowed, and whether its suites were as committed",
        ),
        (
            weights == {domain: digest for domain, digest in defended.items() if digest},
            "list of defended weights is not of the weights that its cases measured",
        ),
        (made == provenance, "provenance is not that of its cases"),
    )
    yield from (text for holds, text in checks if not holds)


def _statement(evidence: RunEvidence) -> list[Refusal]:
    """Compares the statement with one made from the records."""
    path = evidence.folder / STATEMENT
    try:
        said = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError) as error:
        return [Refusal("statement_missing", f"{STATEMENT}: {short(error)}")]
    try:
        again = statement_of(evidence.run, evidence.records_of(), evidence.run_digest)
    except (ValueError, KeyError, TypeError) as error:
        return [Refusal("statement_differs", f"no statement can be made from the records: {short(error)}")]
    if said == again:
        return []
    return [Refusal("statement_differs", f"{STATEMENT} is not the statement of this run")]


def other_anchors(records: Iterable[CaseRecord], anchors: AnchorSet | None) -> Iterator[str]:
    """Reports cases with a judge that was certified on a suite's anchors which are not these, the ones of the suite's file."""
    due = anchors.digest if anchors else None
    for record in records:
        if any(c.anchors_digest != due for c in _certificates(record, "suite")):
            yield f"{record.case_id}: a judge was certified on other anchors than those in the suite's file"


def unshipped_anchors(records: Iterable[CaseRecord]) -> Iterator[str]:
    """Reports cases with a judge that should have been certified on the shipped anchors, and was on others.

    The organism's judge is certified on its own recipes, and is the only exact one.
    """
    for record in records:
        shown = [c for c in _certificates(record, "inert") if c.judge != ORGANISM]
        if any(c.anchors_digest != shipped_anchors().digest for c in shown):
            yield f"{record.case_id}: a judge was certified on other anchors than the shipped ones"
        if record.evidence.exact_judge and record.identity.judge.get("name") != ORGANISM:
            yield f"{record.case_id}: its judge counts as exact, and is not the organism's"


def _certificates(record: CaseRecord, source: AnchorSource) -> list[Certificate]:
    """The certificates of all judges of a case on anchors from this source."""
    others = itertools.chain([record.evidence.second_certificate], *record.known.values())
    return [c for c in (*record.evidence.certificates, *others) if c and c.source == source]
