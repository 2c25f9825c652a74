"""Export of defended weights: the same files that were attacked, with a model card.

It copies the folder from which each attack started. Attacked weights never reach this module.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rn_harness.models.identity import UNHASHED, digest_folder
from rn_harness.models.resolve import ADAPTER_CONFIG
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.report.pages import render_card
from rn_harness.spec.errors import CandidateError

CARD = "README.md"
"""Name of the model card, which is not part of a model's digest."""
LEFT_BEHIND = (*UNHASHED, ".git", ".github")
"""Top-level entries of a model's folder that were never attacked, since they are not part of its identity."""


def export_defended(source: Path, target: Path, run: RunRecord, records: Sequence[CaseRecord]) -> None:
    """Copies a folder of defended weights, as it was attacked, to a new or empty folder, and adds a model card.

    The records are those of the cases with this defense. Raises CandidateError if the copy has another digest than they have.
    """
    attacked = {r.identity.defended_digest for r in records} - {None}
    _copy(source, target, shutil.copy2)
    digest = digest_folder(target)
    if attacked != {digest}:
        shutil.rmtree(target)
        raise CandidateError(
            f"exported weights must be those that were attacked, got digest={digest[:12]} for "
            f"{sorted(str(d)[:12] for d in attacked)}; run again on settled files"
        )
    card = render_card(run, records, digest, is_adapter=(target / ADAPTER_CONFIG).is_file())
    (target / CARD).write_text(card, encoding="utf-8")


def link_defended(source: Path, target: Path) -> None:
    """Links to the files that an export would copy, so that they can be verified first."""
    _copy(source.resolve(), target, os.symlink)


def _copy(source: Path, target: Path, copy: Callable[[str, str], object]) -> None:
    """Copies a folder of defended weights without the entries that were never attacked."""
    left_behind = {str(source): LEFT_BEHIND}
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=lambda folder, _: left_behind.get(folder, ()), copy_function=copy)
