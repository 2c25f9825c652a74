"""The statement of a run, and its signatures.

The statement is in-toto's Statement v1 with the predicate test-result v0.1. It depends only on the records, so that a
verification can make the same statement again. Its subject is the defended weights.

A signature is DSSE with a local key (securesystemslib), or Sigstore's. The envelope of a local key is ``statement.dsse.json``,
Sigstore's bundle is ``statement.sigstore.json``. Both hold the bytes of ``statement.json``. Only making and checking a bundle
contacts Sigstore's services.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rn_harness.models.identity import root_digest
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RUN, RunRecord
from rn_harness.spec.errors import ReleaseError
from rn_harness.store.files import write_text
from rn_harness.verdict.coverage import broken_by, counting, counts, decide_run

PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
ENVELOPE = "statement.dsse.json"
BUNDLE = "statement.sigstore.json"


def statement_of(run: RunRecord, records: Sequence[CaseRecord], run_digest: str) -> dict[str, Any]:
    """The statement, checked by in-toto's own classes, which raise ValueError if a digest or a name is missing.

    The result is PASSED for a run that a release can rest on, and FAILED for any other. It is never WARNED, which some readers
    accept. ``run_digest`` is the sha256 of ``run.json``, which binds all other files.
    """
    from google.protobuf.json_format import MessageToDict, ParseDict
    from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    configuration = [ResourceDescriptor(**fields) for fields in _configuration(run, records, run_digest)]
    for descriptor in configuration:
        descriptor.validate()
    levels = {coverage.domain: coverage.resistance.level for coverage in run.coverage}
    predicate = {
        "result": "PASSED" if run.releasable and decide_run(counting(run.cases, levels, run.required)) == "PASS" else "FAILED",
        "configuration": [MessageToDict(descriptor.pb) for descriptor in configuration],
        **_tests(run, records),
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


def _tests(run: RunRecord, records: Sequence[CaseRecord]) -> dict[str, list[str]]:
    """Names of the passed cases; of those with warnings, or without proof and not counted; and of all others.

    An attack that broke the model is among the last, whatever its standing, so that the list does not mislead.
    """
    warned = {r.key for r in records if r.verdict.warnings}
    found: dict[str, list[str]] = {"passedTests": [], "warnedTests": [], "failedTests": []}
    for line in run.cases:
        if line.is_own_green:
            continue
        name = f"{line.domain}/{line.case_id}" if line.domain else line.nodeid
        if line.outcome == "PASS":
            found["warnedTests" if line.key in warned else "passedTests"].append(name)
        else:
            found["failedTests" if counts(line) or line.outcome == "FAIL" else "warnedTests"].append(name)
    return found


def _configuration(run: RunRecord, records: Sequence[CaseRecord], run_digest: str) -> Iterator[dict[str, Any]]:
    """The inputs of the run, each by digest; packages by their version."""
    yield {"name": RUN, "digest": {"sha256": run_digest}}
    yield {"name": f"base/{run.candidate['name']}", "digest": {"sha256": str(run.candidate["digest"])}}
    resisted = {coverage.domain: coverage.resistance for coverage in run.coverage}
    for domain, digest in sorted(run.suites.items()):
        of = resisted.get(domain)
        named: dict[str, Any] = {"name": f"suite/{domain}", "digest": {"sha256": digest}}
        if of:
            named["annotations"] = {"level": of.level} | {axis.axis: axis.text for axis in of.axes}
        yield named
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


def sign_with_key(payload: bytes, key: Path, passphrase: bytes | None, into: Path) -> str:
    """Signs a statement with a private key in a PEM file (PKCS#8): Ed25519, ECDSA or RSA. Returns the key's id."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    try:
        signer = CryptoSigner(load_pem_private_key(key.read_bytes(), passphrase))
    except (OSError, ValueError, TypeError) as error:
        raise ReleaseError(
            f"--key must be a private key as PEM, got {key}: {error}; make one by openssl genpkey -algorithm ed25519 -out "
            "NEW_KEY, or name the variable of its passphrase by --passphrase-env"
        ) from None
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    signature = envelope.sign(signer)
    write_text(into, json.dumps(envelope.to_dict(), indent=1, sort_keys=True) + "\n")
    return signature.keyid


def signed_with_key(envelope: Path, key: Path) -> bytes:
    """Checks an envelope's signature with a public key in a PEM file, and returns the signed bytes."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    try:
        public = SSlibKey.from_crypto(load_pem_public_key(key.read_bytes()))
    except (OSError, ValueError) as error:
        how = "openssl pkey -in PRIVATE -pubout -out NEW_FILE"  # never this file: it may be the private key
        raise ReleaseError(f"--key must be a public key as PEM, got {key}: {error}; make it by {how}") from None
    try:
        read = Envelope.from_dict(json.loads(envelope.read_text(encoding="utf-8")))
        read.verify([public], 1)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, VerificationError) as error:
        got = f"{type(error).__name__}: {error}"
        raise ReleaseError(f"{envelope.name} must be signed by {key}, got {got}; sign it again") from None
    return _statement_in(envelope, read.payload_type, read.payload)


def sign_with_sigstore(payload: bytes, into: Path) -> str:
    """Signs a statement by the identity of the job, or of a person who logs in with a browser. Returns the identity."""
    from sigstore.dsse import Statement
    from sigstore.errors import Error
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken, Issuer, detect_credential
    from sigstore.sign import SigningContext

    try:
        trust = ClientTrustConfig.production()
        ambient = detect_credential()
        token = IdentityToken(ambient) if ambient else Issuer(trust.signing_config.get_oidc_url()).identity_token()
        with SigningContext.from_trust_config(trust).signer(token) as signer:
            bundle = signer.sign_dsse(Statement(payload))
    except (Error, OSError) as error:
        raise ReleaseError(
            f"Sigstore needs its services and an identity, got {type(error).__name__}: {error}; where there is no network, sign "
            "by --key"
        ) from None
    write_text(into, bundle.to_json() + "\n")
    return str(token.identity)


def signed_with_sigstore(bundle: Path, signer: str, issuer: str | None, *, offline: bool = False) -> bytes:
    """Checks a bundle's certificate, log entry and signature, and returns the signed bytes.

    The signer is an e-mail address, or the URL of a workflow; the issuer is a URL, and None allows any. ``offline`` uses only the
    cached trust root.
    """
    from sigstore.errors import Error
    from sigstore.models import Bundle, InvalidBundle
    from sigstore.verify import Verifier
    from sigstore.verify.policy import Identity

    try:
        read = Bundle.from_json(bundle.read_bytes())
        kind, payload = Verifier.production(offline=offline).verify_dsse(read, Identity(identity=signer, issuer=issuer))
    except (Error, InvalidBundle, OSError, ValueError) as error:
        raise ReleaseError(
            f"{bundle.name} must be signed by {signer}, got {type(error).__name__}: {error}; sign it again, or name the signer "
            "who did"
        ) from None
    return _statement_in(bundle, kind, payload)


def _statement_in(file: Path, payload_type: str, payload: bytes) -> bytes:
    if payload_type != PAYLOAD_TYPE:
        raise ReleaseError(f"{file.name} must hold an in-toto statement, got {payload_type!r}; sign it again")
    return payload
