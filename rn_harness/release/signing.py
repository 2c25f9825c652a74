"""Signatures of a statement: DSSE with a local key (securesystemslib), or Sigstore.

The envelope of a local key is ``statement.dsse.json``, Sigstore's bundle is ``statement.sigstore.json``. Both hold the bytes of
``statement.json``. Only making and checking a bundle contacts Sigstore's services.
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
        passphrase: of the key; None if the key is not encrypted.
        into: file of the envelope.

    Returns:
        The key's id.

    Raises:
        ReleaseError: the file does not hold such a key.
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
    """Checks an envelope's signature, and returns the signed bytes.

    Args:
        envelope: file of the envelope.
        key: file of the public key, as PEM.

    Raises:
        ReleaseError: the file does not hold a public key, or the key did not sign the envelope.
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
    return _statement_in(envelope, read.payload_type, read.payload)


def sign_with_sigstore(payload: bytes, into: Path) -> str:
    """Signs by the identity of the job, or of a person who logs in with a browser; no key is needed.

    Args:
        payload: the statement's bytes.
        into: file of the bundle.

    Returns:
        The identity.

    Raises:
        ReleaseError: the identity is missing, or a service cannot be reached.
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
    """Checks a bundle's certificate, log entry and signature, and returns the signed bytes.

    Args:
        bundle: file of the bundle.
        signer: required identity: an e-mail address, or the URL of a workflow.
        issuer: URL of the identity's issuer; None: any issuer.
        offline: use only the cached trust root.

    Raises:
        ReleaseError: the signer did not sign the bundle.
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
