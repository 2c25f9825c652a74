"""Handing over defended weights: the very files that were attacked, with their digest and a card. Floor 4 (run).

Attacked weights have no way here: what is copied is the folder that each attack started from.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rn_harness.candidate import ADAPTER_CONFIG, digest_folder
from rn_harness.errors import CandidateError
from rn_harness.records import CaseRecord, RunRecord

CARD = "README.md"
"""Not part of a model's digest."""


def export_defended(source: Path, target: Path, run: RunRecord, records: Sequence[CaseRecord]) -> None:
    """Copies a folder of defended weights, and puts a model card beside them.

    Args:
        source: adapter or model, as it was attacked.
        target: does not exist, or is empty.
        run: whose outcome stands on the card.
        records: of the cases that this defense was part of.

    Raises:
        CandidateError: the copy does not have the digest that was attacked.
    """
    attacked = {r.identity.defended_digest for r in records} - {None}
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CARD))
    digest = digest_folder(target)
    if attacked != {digest}:
        shutil.rmtree(target)
        raise CandidateError(
            f"exported weights must be those that were attacked, got digest={digest[:12]} for "
            f"{sorted(str(d)[:12] for d in attacked)}; run again on settled files"
        )
    (target / CARD).write_text(_card(target, digest, run, records), encoding="utf-8")


def _card(target: Path, digest: str, run: RunRecord, records: Sequence[CaseRecord]) -> str:
    """The model card: what this is, and what was found of it, in the verdicts' own words."""
    of = next(r for r in records if r.identity.defended_digest == digest)
    is_adapter = (target / ADAPTER_CONFIG).is_file()
    base, domain = of.identity.candidate, of.identity.suite["domain"]
    numbers = f" in {base['dtype']}" if base.get("dtype") else ""
    computed = numbers.replace(" in ", ", computed in ") + ("," if numbers else "")
    beside = f"a LoRA adapter, which stood unfolded on its base in {base.get('quantised')}{computed} in each attack"
    folded = f"a LoRA adapter, which was folded into its base{numbers} before each attack"
    form = "a whole model" if not is_adapter else beside if base.get("quantised") else folded
    lines = [
        *(["---", f"base_model: {base['name']}", "library_name: peft", "---", ""] if is_adapter else []),
        f"# Defended in the domain {domain}",
        "",
        f"{form.capitalize()}. A merge, a quantised copy or another format are other weights, of which nothing is known here.",
        "",
        "| | |",
        "|---|---|",
        f"| outcome | {run.outcome} |",
        f"| a release can rest on it | {'yes' if run.releasable else 'no: ' + '; '.join(run.why_not)} |",
        f"| weights, sha256 | `{digest}` |",
        f"| undefended base, sha256 | `{base['digest']}` |",
        f"| defense | {of.identity.defense} |",
        f"| suite, sha256 | `{of.identity.suite['digest']}` |",
        f"| judge | {of.identity.judge['name']} |",
        f"| harness sources, sha256 | `{of.identity.versions.get('rn-harness-sources', 'unknown')}` |",
        "",
        "## Found",
        "",
        *(f"* `{r.case_id}`: {r.verdict.outcome}. {r.verdict.claim}" for r in records if r.evidence.kind != "control"),
        "",
    ]
    return "\n".join(lines)
