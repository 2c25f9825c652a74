"""Digests of content, and the addresses that follow from them.

A digest is taken where the content is used, from the very objects that are used: a record names the measured prompts, not the
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
    """The sha256 of a JSON-able value, whatever the order of its keys, as hex."""
    canonical = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def content_key(kind: str, parts: dict[str, Any]) -> str:
    """The address of a result.

    Args:
        kind: of result.
        parts: JSON-able; everything that it depends on.

    Returns:
        64 hex digits.
    """
    return digest_of({"kind": kind, "parts": parts})


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """The sha256 over prompts in their order: id, topic, text and kind of each. A lab's texts may be private."""
    return digest_of([[p.id, p.topic, p.text, p.kind] for p in prompts])


def session_id(certificates: Sequence[Certificate]) -> str:
    """The identity of a judge that no digest covers: hash of its answers to all texts of known band, in every look."""
    return digest_of(
        [[c.digest, c.source, c.anchors_digest, [s.model_dump(mode="json") for s in c.scores]] for c in certificates]
    )
