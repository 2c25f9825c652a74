"""Digests of content, and the content addresses computed from them.

A digest is computed where the content is used, from the objects in use, so that a record names the measured prompts and not the
intended ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from rn_harness.records.certificate import Certificate
from rn_harness.spec.prompts import Prompt


def digest_of(value: Any) -> str:
    """The sha256 of a JSON-able value as hex, independent of the order of keys."""
    canonical = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def content_key(kind: str, parts: dict[str, Any]) -> str:
    """The address of a result.

    Args:
        kind: of result.
        parts: everything that the result depends on, JSON-able.

    Returns:
        64 hex digits.
    """
    return digest_of({"kind": kind, "parts": parts})


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """The sha256 over the id, topic, text and kind of prompts, in order. Records hold it, since a lab's texts may be private."""
    return digest_of([[p.id, p.topic, p.text, p.kind] for p in prompts])


def session_id(certificates: Sequence[Certificate]) -> str:
    """Identifies a session of a judge whose digest does not cover it: a hash of its scores of all anchors, in every look."""
    return digest_of(
        [[c.digest, c.source, c.anchors_digest, [s.model_dump(mode="json") for s in c.scores]] for c in certificates]
    )
