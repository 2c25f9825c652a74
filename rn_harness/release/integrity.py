"""Checks that a run's evidence is complete and consistent, whether a release can rest on it or not.

It computes digests again, decides verdicts again from the recorded scores, and makes the statement again; it measures nothing and
loads no model. Each refusal has a code and a sentence; docs/releasing.md lists all codes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import get_args

from pydantic import ValidationError

from rn_harness.models.identity import root_digest
from rn_harness.records.base import STATES, first_difference, read_record
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.release.statement import RUN, STATEMENT, statement_of
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
from rn_harness.verdict.coverage import claim_of, claim_of_run, counting, decide_run, families_of, simulated_in
from rn_harness.verdict.decide import decide

MAX_FILE_BYTES = 1_000_000_000
CASES = "cases"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason not to release: a code for machines, a sentence for people."""

    code: str
    sentence: str


@dataclass
class RunEvidence:
    """The records in a run's folder.

    Attributes:
        folder: of the run.
        run: its record.
        records: of its cases, by their path.
        run_digest: sha256 of ``run.json``.
    """

    folder: Path
    run: RunRecord
    run_digest: str
    records: dict[str, CaseRecord] = field(default_factory=dict)

    def records_of(self, domain: str) -> list[CaseRecord]:
        """The records of one domain's cases, in the run's order."""
        return [self.records[line.record] for line in self.run.cases if line.domain == domain and line.record in self.records]


def read_evidence(folder: Path) -> tuple[RunEvidence | None, list[Refusal]]:
    """Reads a run's folder; refuses files that were removed, changed or added after ``run.json`` was written."""
    found: list[Refusal] = []
    try:
        text = read_file(folder / RUN)
        run = read_record(text, RunRecord)
    except RecordError as error:
        return None, [Refusal("altered", f"{RUN}: {error}")]
    except (OSError, ValueError, RecursionError) as error:
        return None, [Refusal("unreadable", f"{RUN}: {short(error)}")]
    evidence = RunEvidence(folder, run, hashlib.sha256(text).hexdigest())
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
            try:
                evidence.records[name] = read_record(raw, CaseRecord)
            except RecordError as error:
                found.append(Refusal("altered", f"{name}: {error}"))
            except (ValueError, RecursionError) as error:
                found.append(Refusal("unreadable", f"{name}: {short(error)}"))
    present = {p.relative_to(folder).as_posix() for p in (folder / CASES).rglob("*") if not p.is_dir()}
    found += [Refusal("file_unbound", f"{name} is not bound by the run's record") for name in sorted(present - set(run.files))]
    found += [Refusal("file_missing", f"{name} is not bound by the run's record") for name in sorted(of_cases - set(run.files))]
    if "junit.xml" not in run.files:
        found.append(Refusal("file_missing", "junit.xml is not bound by the run's record"))
    return evidence, found


def read_file(path: Path) -> bytes:
    """The bytes of a plain file of a sane size.

    Raises:
        OSError: it is missing, a link, or too large.
    """
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
    found = _cases(evidence)
    run = evidence.run
    for name, record in evidence.records.items():
        found += check_record(evidence.folder / name, record)
        if record.run_id != run.run_id:
            found.append(Refusal("record_foreign", f"{record.case_id} is of run {record.run_id}, this is {run.run_id}"))
        times = impossible_times(record, run.started, run.ended)
        found += [Refusal("times_impossible", f"{record.case_id}: {text}") for text in times]
    if not found:
        for domain in evidence.run.suites:
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


def _cases(evidence: RunEvidence) -> list[Refusal]:
    """Checks that each required case was run once, and that each line agrees with its record."""
    run, found = evidence.run, []
    if set(run.required) != set(run.suites):
        found.append(
            Refusal("required_unknown", f"cases are required of {sorted(run.required)}, suites are {sorted(run.suites)}")
        )
    for domain, required in run.required.items():
        kinds = Counter(case.partition("-")[0] for case in required)
        attacks = {case.removeprefix("attack-") for case in required if case.startswith("attack-")}
        controls = {case.removeprefix("control-") for case in required if case.startswith("control-")}
        once = {"candidate": 1, "defense": 1, "helpfulness": 1, "attack": len(attacks), "control": len(attacks)}
        if not attacks or attacks != controls or kinds != once:
            found.append(Refusal("required_unknown", f"{domain}: the list of required cases is not one that a tier has"))
        count = Counter(line.case_id for line in run.cases if line.domain == domain)
        found += [Refusal("case_missing", f"{domain} {case} was not run") for case in required if not count[case]]
        found += [Refusal("case_twice", f"{domain} {case} stands there {n} times") for case, n in count.items() if n > 1]
        found += [Refusal("case_foreign", f"{domain} {c} is none that the tier requires") for c in count if c not in required]
    for line in run.cases:
        record = evidence.records.get(line.record or "")
        if record is None:
            if line.key is not None or line.domain:
                found.append(Refusal("case_missing", f"{line.domain} {line.case_id} has no record"))
            continue
        line_facts = (
            line.key,
            line.case_id,
            line.domain,
            line.outcome or record.verdict.outcome,
            line.finding or record.verdict.finding,
            line.standing,
            line.within_claim,
        )
        record_facts = (
            record.key,
            record.case_id,
            record.identity.suite.get("domain"),
            record.verdict.outcome,
            record.verdict.finding,
            record.evidence.standing,
            record.evidence.within_claim,
        )
        if line.outcome and line.state not in STATES[line.outcome]:
            found.append(Refusal("case_foreign", f"{line.domain} {line.case_id}: its test ended as {line.state}"))
        if record.measured is not None and record.measured.run_id != run.run_id and not line.stored:
            by = record.measured.run_id
            found.append(
                Refusal("case_foreign", f"{line.domain} {line.case_id} was measured by run {by} and is not said to be stored")
            )
        if line_facts != record_facts or run.suites.get(line.domain) != record.identity.suite.get("digest"):
            found.append(Refusal("case_foreign", f"{line.domain} {line.case_id}: its line in {RUN} is of another record"))
    paths = Counter(line.record for line in run.cases if line.record)
    return found + [Refusal("case_twice", f"{path} is the record of {n} cases") for path, n in paths.items() if n > 1]


def _verdict(record: CaseRecord) -> list[Refusal]:
    """Decides the case again from the recorded trajectory."""
    again = decide(record.evidence)
    if first_difference(record.verdict.model_dump(mode="json"), again.model_dump(mode="json")) is None:
        return []
    said = f"{record.verdict.outcome}, decided again it is {again.outcome}: {again.claim}"
    return [Refusal("verdict_differs", f"{record.case_id} is recorded as {said}")]


def _checkpoints(path: Path, record: CaseRecord) -> list[Refusal]:
    """Compares the checkpoints of the record with the lines written while the case ran."""
    trajectory = record.evidence.trajectory
    if trajectory is None:
        return []
    journal = path.with_name("checkpoints.jsonl")
    lines = "".join(c.model_dump_json() + "\n" for c in trajectory.checkpoints)
    try:
        if read_file(journal) == lines.encode():
            return []
    except OSError as error:
        return [Refusal("file_missing", f"{record.case_id}: {journal.name}: {short(error)}")]
    return [Refusal("checkpoints_differ", f"{record.case_id}: the record has other checkpoints than {journal.name}")]


def _outcome(evidence: RunEvidence) -> list[Refusal]:
    """Decides the run again from its cases, and compares its facts with theirs."""
    run, records, found = evidence.run, list(evidence.records.values()), []
    again = decide_run(counting(run.cases))
    ordered = [evidence.records[line.record] for line in run.cases if line.record in evidence.records]
    if (run.outcome, run.claim) != (again, claim_of_run(again, ordered)):
        found.append(Refusal("outcome_differs", f"the run is recorded as {run.outcome}, decided again it is {again}"))
    facts = [*_foreign_facts(run, records), *_foreign_provenance(run, records), *_foreign_coverage(evidence)]
    return found + [Refusal("run_foreign", f"the run's {what}") for what in facts]


def _foreign_provenance(run: RunRecord, records: list[CaseRecord]) -> list[str]:
    """Compares the run's provenance with that of its cases."""
    said = run.provenance
    versions = next((r.identity.versions for r in records), said.versions)
    candidate = str(run.candidate.get("digest"))
    made = run_provenance(records, tool=said.tool, candidate=candidate, suites=run.suites, versions=versions, trees=said.trees)
    return [] if made == said else ["provenance is not that of its cases"]


def _foreign_coverage(evidence: RunEvidence) -> list[str]:
    """Compares the run's coverage with its attack cases; only the suite knows the attacks that were not run."""
    run = evidence.run
    covered = [c.domain for c in run.coverage]
    found = [] if covered == list(run.suites) else [f"coverage is of {covered}, its suites are {list(run.suites)}"]
    for said in run.coverage:
        lines = [line for line in run.cases if line.domain == said.domain and line.record in evidence.records]
        records = {line.case_id: evidence.records[line.record] for line in lines if line.record}
        attacks = [(records[line.case_id], line.outcome) for line in lines if records[line.case_id].evidence.kind == "attack"]
        families = families_of(attacks)
        policies = {(1 + r.evidence.policy.samples, r.evidence.policy.checkpoint_every) for r in records.values()}
        heldout = {len(r.evidence.trajectory.heldout_ids) for r in records.values() if r.evidence.trajectory}
        if (
            (said.tier, said.families) != (run.options.get("tier"), families)
            or said.claim != claim_of(said.domain, families, run.outcome, simulated_in(record for record, _ in attacks))
            or policies - {(said.completions, said.checkpoint_every)}
            or heldout - {said.heldout}
        ):
            found.append(f"coverage of {said.domain} is not that of its cases")
    return found


def _foreign_facts(run: RunRecord, records: list[CaseRecord]) -> list[str]:
    """Facts of the run's record that differ from its cases', as parts of a sentence."""
    said = run.options
    found = [
        f"{what} is {fact!r}, and one of its cases has another"
        for what, fact, of_cases in (
            ("candidate", run.candidate, [r.identity.candidate for r in records]),
            ("list of overrides", said.get("overrides"), [list(r.identity.overrides) for r in records]),
            (
                "word on labels",
                said.get("labels"),
                [any(c.source == "labels" for c in r.evidence.certificates) for r in records],
            ),
        )
        if any(of_case != fact for of_case in of_cases)
    ]
    named = set(run.plugins)
    found += [
        f"list of plugins lacks {code.kind} {code.name}, under which one of its cases was measured"
        for code in dict.fromkeys(code for r in records for code in r.identity.plugins)
        if code not in named
    ]
    for option, mark in (("allow_pickle", "pickle"), ("trust_remote_code", "remote_code")):
        if said.get(option) not in (True, False) or (mark in run.candidate and not said[option]):
            found.append(f"option {option} is {said.get(option)}, its candidate says otherwise")
    judges = {r.identity.suite["domain"]: told_judges(r.identity.judge, r.identity.reward, r.identity.second) for r in records}
    if said.get("judges") != judges:
        found.append(f"judges are {said.get('judges')}, those of its cases {judges}")
    recipes = said.get("recipe")
    if not isinstance(recipes, dict) or not all(isinstance(pairs, list) for pairs in recipes.values()):
        found.append(f"recipe is {recipes!r}, and no list for each domain")
    if said.get("tier") not in get_args(TierName) or f"--rn-tier={said['tier']}" not in said.get("arguments", ()):
        found.append(f"tier is {said.get('tier')!r}, its arguments are {said.get('arguments')}")
    if not said.keys() >= {"narrowed", "deselected", "dirty"}:
        found.append("options do not say how the selection was narrowed, and whether its suites were as committed")
    defended = {r.identity.suite["domain"]: r.identity.defended_files for r in records if r.evidence.kind not in UNDEFENDED}
    if {domain: root_digest(hashes) for domain, hashes in run.weights.items()} != {d: f for d, f in defended.items() if f}:
        found.append("list of defended weights is not of the weights that its cases measured")
    return found


def _statement(evidence: RunEvidence) -> list[Refusal]:
    """Compares the statement with one made from the records."""
    path = evidence.folder / STATEMENT
    try:
        said = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError) as error:
        return [Refusal("statement_missing", f"{STATEMENT}: {short(error)}")]
    ordered = [evidence.records[line.record] for line in evidence.run.cases if line.record in evidence.records]
    try:
        again = statement_of(evidence.run, ordered, evidence.run_digest)
    except (ValueError, KeyError, TypeError) as error:
        return [Refusal("statement_differs", f"no statement can be made from the records: {short(error)}")]
    if said == again:
        return []
    return [Refusal("statement_differs", f"{STATEMENT} is not the statement of this run")]
