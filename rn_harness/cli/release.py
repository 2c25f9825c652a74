"""``rn-harness verify`` and ``sign``: what a release job calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rn_harness.cli.shared import AsJson, read_run, tell, usage_errors


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(verify)
    app.command()(sign)


def verify(
    run: Annotated[Path, typer.Option(help="the run's folder")],
    weights: Annotated[Path, typer.Option(help="the weights to be released: one folder, or one for each domain in it")],
    policy: Annotated[
        Path | None, typer.Option(help="what the release asks for, a YAML file; default: docs/releasing.md")
    ] = None,
    suite: Annotated[list[Path] | None, typer.Option(help="a suite's folder that has to be the one that was run")] = None,
    key: Annotated[Path | None, typer.Option(help="public key (PEM) that has to have signed the statement")] = None,
    signer: Annotated[str | None, typer.Option(help="identity that has to have signed it by Sigstore")] = None,
    issuer: Annotated[str | None, typer.Option(help="who has to have vouched for the signer: URL of the issuer")] = None,
    max_age: Annotated[float | None, typer.Option(help="days since the run ended, at most; beats the policy")] = None,
    waivers: Annotated[Path | None, typer.Option(help="refusals that somebody answers for, a YAML file; default: none")] = None,
    offline: Annotated[bool, typer.Option(help="with --signer: use the cached trust root")] = False,
    as_json: AsJson = False,
) -> None:
    """Checks whether a release of these weights can rest on a run. Exits with 0 only if all of it holds, else with 1.

    Takes every digest again and decides every verdict again from the recorded scores. Each refusal has a code and a sentence.
    """
    from rn_harness.release.signing import BUNDLE, ENVELOPE, signed_with_key, signed_with_sigstore
    from rn_harness.release.verification import Signed
    from rn_harness.release.verification import verify as check
    from rn_harness.report.terminal import broken_in_short, broken_lines
    from rn_harness.spec.release_policy import ReleasePolicy, Waivers, aged, load_release_file
    from rn_harness.verdict.decide import broken_by

    if key and signer:
        raise typer.BadParameter("a run is checked against one signature, got --key and --signer; pass one of the two")
    if issuer and not signer:
        raise typer.BadParameter("--issuer says who vouched for --signer, got no --signer; name the identity")
    if not run.is_dir():
        raise typer.BadParameter(f"--run must be a run's folder, got {run}; pytest --rn-run DIR names it, else see reports/")
    if not weights.is_dir():
        raise typer.BadParameter(f"--weights must be the folder of the weights to be released, got {weights}; see --rn-export")
    with usage_errors():
        asked = load_release_file(policy, ReleasePolicy) if policy else ReleasePolicy(version=1)
        waived = load_release_file(waivers, Waivers).waivers if waivers else []
    if max_age is not None:
        with usage_errors():
            asked = aged(asked, max_age)
    signed: Signed | None = None
    if key:
        signed = lambda: signed_with_key(run / ENVELOPE, key)  # noqa: E731  (one of two ways)
    elif signer:
        signed = lambda: signed_with_sigstore(run / BUNDLE, signer, issuer, offline=offline)  # noqa: E731
    found = check(run, weights=weights, policy=asked, suites=suite or (), signed=signed, waivers=waived)
    lines = [f"refused [{r.code}] {r.sentence}" for r in found.refusals]
    lines += [f"waived [{r.code}] {r.sentence} ({w.owner}, until {w.expires}: {w.reason})" for r, w in found.waived]
    if found.run is not None:
        lines += [f"{found.run.outcome}: {found.run.claim}", *broken_lines(found.run)]
    count = len(found.waived)
    besides = f" with {count} waiver{'s' if count > 1 else ''}" if count else ""
    broken = broken_in_short(found.run) if found.run else ""
    besides += f", {broken}" if broken else ""
    if not found.refusals:
        by = "signed" if found.signed else "not signed: this shows that nothing was changed by accident, not who made it"
        lines.append(f"verified{besides} ({by})")
    else:
        lines.append(f"not verified: {len(found.refusals)} refusals{besides}")
    document = {
        "verified": not found.refusals,
        "signed": found.signed,
        "refusals": [{"code": r.code, "sentence": r.sentence} for r in found.refusals],
        "waived": [
            {"code": r.code, "sentence": r.sentence, "owner": w.owner, "reason": w.reason, "expires": str(w.expires)}
            for r, w in found.waived
        ],
        "outcome": found.run.outcome if found.run else None,
        "claim": found.run.claim if found.run else None,
        "broken_by": [
            {"case": f"{line.domain}/{line.case_id}", "standing": line.standing, "counts": counts}
            for counts, of in zip((True, False), broken_by(found.run.cases), strict=True)
            for line in of
        ]
        if found.run
        else None,
    }
    tell(lines, document, as_json)
    raise typer.Exit(1 if found.refusals else 0)


def sign(
    run: Annotated[Path, typer.Option(help="the run's folder")],
    key: Annotated[Path | None, typer.Option(help="private key (PEM, PKCS#8): Ed25519, ECDSA or RSA")] = None,
    passphrase_env: Annotated[str | None, typer.Option(help="environment variable that holds the key's passphrase")] = None,
    sigstore: Annotated[bool, typer.Option("--sigstore", help="sign without a key, by this job's identity")] = False,
    as_json: AsJson = False,
) -> None:
    """Signs a run's statement, in a job that does not hold the weights.

    What does not hold together is not signed. What no release can rest on may be: the statement says so itself.
    """
    from rn_harness.release.integrity import whole
    from rn_harness.release.signing import BUNDLE, ENVELOPE, sign_with_key, sign_with_sigstore
    from rn_harness.release.statement import STATEMENT

    if bool(key) == sigstore:
        raise typer.BadParameter("a statement is signed by a key or by Sigstore, pass --key FILE or --sigstore")
    if passphrase_env and passphrase_env not in os.environ:
        raise typer.BadParameter(f"--passphrase-env names a variable that is set, got {passphrase_env}; export it")
    evidence = read_run(run)
    broken = whole(evidence)
    if broken:
        told = "; ".join(f"[{r.code}] {r.sentence}" for r in broken[:3])
        raise typer.BadParameter(f"only a run that holds together is signed, got {len(broken)} faults: {told}; run it again")
    payload = (run / STATEMENT).read_bytes()
    with usage_errors():
        if key:
            secret = os.environ[passphrase_env].encode() if passphrase_env else None
            who, into = sign_with_key(payload, key, secret, run / ENVELOPE), run / ENVELOPE
        else:
            who, into = sign_with_sigstore(payload, run / BUNDLE), run / BUNDLE
    document = {"signed_by": who, "file": str(into), "outcome": evidence.run.outcome, "releasable": evidence.run.releasable}
    words = "a release can rest on it" if evidence.run.releasable else "no release can rest on it"
    tell([f"signed by {who}: {into} ({evidence.run.outcome}, {words})"], document, as_json)
