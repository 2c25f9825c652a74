"""Signing a statement, and checking who signed it. Floor 2 (adapters): knows DSSE, by securesystemslib, and Sigstore.

The envelope of a local key is ``statement.dsse.json``, Sigstore's bundle is ``statement.sigstore.json``. Both hold the very bytes
of ``statement.json``. Sigstore's services are asked where its bundle is made or checked, and nowhere else.
"""

from __future__ import annotations

import json
from pathlib import Path

from rn_harness.spec.errors import ReleaseError
from rn_harness.store.store import write_text

PAYLOAD_TYPE = "application/vnd.in-toto+json"
ENVELOPE = "statement.dsse.json"
BUNDLE = "statement.sigstore.json"


def sign_with_key(payload: bytes, key: Path, passphrase: bytes | None, into: Path) -> str:
    """Signs with a private key in a PEM file (PKCS#8): Ed25519, ECDSA or RSA.

    Args:
        payload: the statement's bytes.
        key: file of the private key.
        passphrase: that it is encrypted with; None: it is not.
        into: file of the envelope.

    Returns:
        The key's id.

    Raises:
        ReleaseError: the file is no such key.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    try:
        signer = CryptoSigner(load_pem_private_key(key.read_bytes(), passphrase))
    except (OSError, ValueError, TypeError) as error:
        raise ReleaseError(
            f"--key must be a private key as PEM, got {key}: {error}; make one by openssl genpkey -algorithm ed25519 -out {key}, "
            "or name the variable of its passphrase by --passphrase-env"
        ) from None
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    signature = envelope.sign(signer)
    write_text(into, json.dumps(envelope.to_dict(), indent=1, sort_keys=True) + "\n")
    return signature.keyid


def signed_with_key(envelope: Path, key: Path) -> bytes:
    """What an envelope holds, once the key's signature is checked.

    Args:
        envelope: file of it.
        key: file of the public key, as PEM.

    Raises:
        ReleaseError: the file is no public key, or the envelope is not signed by it.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    try:
        public = SSlibKey.from_crypto(load_pem_public_key(key.read_bytes()))
    except (OSError, ValueError) as error:
        raise ReleaseError(
            f"--key must be a public key as PEM, got {key}: {error}; make it by openssl pkey -in PRIVATE -pubout -out {key}"
        ) from None
    try:
        read = Envelope.from_dict(json.loads(envelope.read_text(encoding="utf-8")))
        read.verify([public], 1)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, VerificationError) as error:
        raise ReleaseError(
            f"{envelope.name} must be signed by {key}, got {type(error).__name__}: {error}; sign it again"
        ) from None
    if read.payload_type != PAYLOAD_TYPE:
        raise ReleaseError(f"{envelope.name} must hold an in-toto statement, got {read.payload_type!r}; sign it again")
    return read.payload


def sign_with_sigstore(payload: bytes, into: Path) -> str:
    """Signs without a key of one's own: by the identity of the job, or of the person in front of a browser.

    Args:
        payload: the statement's bytes.
        into: file of the bundle.

    Returns:
        The identity.

    Raises:
        ReleaseError: there is no identity, or a service cannot be reached.
    """
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
    """What a bundle holds, once certificate, log entry and signature are checked.

    Args:
        bundle: file of it.
        signer: identity that has to have signed: an e-mail address, or the URL of a workflow.
        issuer: URL of who vouched for it; None: anybody.
        offline: whether the trust root in the cache has to do.

    Raises:
        ReleaseError: it is not signed so.
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
    if kind != PAYLOAD_TYPE:
        raise ReleaseError(f"{bundle.name} must hold an in-toto statement, got {kind!r}; sign it again")
    return payload
