"""The statement of a run: in-toto's Statement v1 with the predicate test-result v0.1.

It depends only on the records, so that a verification can make the same statement again. Its subject is the defended weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rn_harness.models.identity import root_digest
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.verdict.coverage import broken_by, counting, decide_run

STATEMENT = "statement.json"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
RUN = "run.json"


def statement_of(run: RunRecord, records: Sequence[CaseRecord], run_digest: str) -> dict[str, Any]:
    """The statement, checked by in-toto's own classes.

    The result is PASSED for a run that a release can rest on, and FAILED for any other. It is never WARNED, which some readers
    accept.

    Args:
        run: the run's record.
        records: of its cases.
        run_digest: sha256 of ``run.json``, which binds all other files.

    Raises:
        ValueError: in-toto refuses it, because a digest or a name is missing.
    """
    from google.protobuf.json_format import MessageToDict, ParseDict
    from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    passed, warned, failed = _tests(run, records)
    configuration = [ResourceDescriptor(**fields) for fields in _configuration(run, records, run_digest)]
    for descriptor in configuration:
        descriptor.validate()
    predicate = {
        "result": "PASSED" if run.releasable and decide_run(counting(run.cases)) == "PASS" else "FAILED",
        "configuration": [MessageToDict(descriptor.pb) for descriptor in configuration],
        "passedTests": passed,
        "warnedTests": warned,
        "failedTests": failed,
    }
    ParseDict(predicate, TestResult())
    subjects = [ResourceDescriptor(name, digest={"sha256": digest}).pb for name, digest in _subjects(run)]
    statement = Statement(subjects, PREDICATE, predicate)
    statement.validate()
    made: dict[str, Any] = MessageToDict(statement.pb)
    return made


def statement_text(made: Mapping[str, Any]) -> str:
    """The text of a statement that is written and signed."""
    return json.dumps(made, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _subjects(run: RunRecord) -> Iterator[tuple[str, str]]:
    """Names and digests of the defended weights and their files, or of the candidate if the run has no weights."""
    for domain, hashes in sorted(run.weights.items()):
        yield domain, root_digest(hashes)
        for name, digest in sorted(hashes.items()):
            yield f"{domain}/{name}", digest
    if not run.weights:
        yield str(run.candidate["name"]), str(run.candidate["digest"])


def _tests(run: RunRecord, records: Sequence[CaseRecord]) -> tuple[list[str], list[str], list[str]]:
    """Names of the passed cases; of those with warnings, or without proof and not counted; and of all others.

    An attack that broke the model is among the last, whatever its standing, so that the list does not mislead.
    """
    warned_of = {r.key: bool(r.verdict.warnings) for r in records}
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    for line in run.cases:
        if line.is_own_green:
            continue
        name = f"{line.domain}/{line.case_id}" if line.domain else line.nodeid
        if line.outcome == "PASS":
            found[1 if warned_of.get(line.key or "") else 0].append(name)
        else:
            hinders = any(outcome == "FAIL" or needed for outcome, needed in counting([line]))
            found[2 if hinders or line.outcome == "FAIL" else 1].append(name)
    return found


def _configuration(run: RunRecord, records: Sequence[CaseRecord], run_digest: str) -> Iterator[dict[str, Any]]:
    """The inputs of the run, each by digest; packages by their version."""
    yield {"name": RUN, "digest": {"sha256": run_digest}}
    yield {"name": f"base/{run.candidate['name']}", "digest": {"sha256": str(run.candidate["digest"])}}
    for domain, digest in sorted(run.suites.items()):
        yield {"name": f"suite/{domain}", "digest": {"sha256": digest}}
        record = next((r for r in records if r.identity.suite["domain"] == domain), None)
        if record is None:
            continue
        policy = json.dumps(record.evidence.policy.model_dump(mode="json"), sort_keys=True, allow_nan=False)
        yield {"name": f"policy/{domain}", "digest": {"sha256": hashlib.sha256(policy.encode()).hexdigest()}}
        judges = {"judge": record.identity.judge, "reward-judge": record.identity.reward, "second-judge": record.identity.second}
        for role, who in judges.items():
            if who is not None:
                yield {"name": f"{role}/{domain}", "digest": {"sha256": who["digest"]}, "annotations": {"judge": who["name"]}}
    for line in run.cases:
        if line.record and line.case_id.startswith("control-"):
            yield {"name": f"control/{line.domain}/{line.case_id}", "digest": {"sha256": run.files[line.record]}}
    for line in (line for lines in broken_by(run.cases) for line in lines):
        if line.record:
            name, standing = f"broken-by/{line.domain}/{line.case_id}", {"standing": line.standing}
            yield {"name": name, "digest": {"sha256": run.files[line.record]}, "annotations": standing}
    for name, version in sorted(records[0].identity.versions.items() if records else ()):
        if name == "rn-harness-sources":
            yield {"name": "rn-harness", "uri": f"pkg:pypi/rn-harness@{run.provenance.tool}", "digest": {"sha256": version}}
        else:
            kind = "generic" if name == "python" else "pypi"
            yield {"name": name, "uri": f"pkg:{kind}/{name}@{version}"}
