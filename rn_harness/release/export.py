"""Handing over defended weights: the very files that were attacked, with their digest and a card.

Attacked weights have no way here: what is copied is the folder that each attack started from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rn_harness.models.adapter_files import ADAPTER_CONFIG
from rn_harness.models.identity import UNHASHED, digest_folder
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.report.card import render_card
from rn_harness.spec.errors import CandidateError

CARD = "README.md"
"""Not part of a model's digest."""
LEFT_BEHIND = (*UNHASHED, ".git", ".github")
"""What lies at the top of a model's folder and was never attacked, since it is no part of its identity."""


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
    """Links to the files that an export would copy, so that they can be checked before anything is handed over."""
    _copy(source.resolve(), target, os.symlink)


def _copy(source: Path, target: Path, copy: Callable[[str, str], object]) -> None:
    """Copies a folder of defended weights, but for what was never attacked."""
    top = str(source)

    def left_behind(folder: str, _: list[str]) -> tuple[str, ...]:
        return LEFT_BEHIND if folder == top else ()

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=left_behind, copy_function=copy)
