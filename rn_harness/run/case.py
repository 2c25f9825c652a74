"""A case and a defended candidate as a run keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import digest_folder
from rn_harness.records.case import CaseRecord
from rn_harness.records.trajectory import DefenseReport
from rn_harness.spec.errors import CandidateError
from rn_harness.verdict.validity import NO_DEFENSE

if TYPE_CHECKING:
    from rn_harness.models.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Defended:
    """The candidate with its defense.

    Attributes:
        candidate: the undefended model.
        name: the defense's name.
        adapter: folder of the adapter; None for whole weights.
        model: whole defended model; None for an adapter.
        digest: of the adapter or the model; None without a defense.
        hashes: sha256 of each file of the adapter or the model.
        report: of the training; None if the defense was not trained here.
        stored: whether it was taken from the store.
    """

    candidate: Candidate
    name: str
    adapter: Path | None = None
    model: Candidate | None = None
    digest: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    report: DefenseReport | None = None
    stored: bool = False

    @property
    def subject(self) -> str:
        """Name in verdicts; 4-bit weights are named, because they are different weights."""
        quantised = self.candidate.quantised
        return f"{self.name} on weights in {quantised}" if quantised and self.name != NO_DEFENSE else self.name

    @property
    def folder(self) -> Path | None:
        """Folder of the defended weights; None without a defense."""
        return self.adapter or (self.model.folder if self.model else None)

    def verify(self) -> None:
        """Checks that the defended weights still have their digest.

        Raises:
            CandidateError: they changed while the run used them.
        """
        if self.model is not None:
            self.model.verify()
        elif self.adapter is not None and digest_folder(self.adapter) != self.digest:
            raise CandidateError(
                f"defended weights must not change during a run, got another digest for {self.adapter}; run again on settled "
                "files"
            )

    def load(self) -> LanguageModel:
        """A fresh copy. An adapter is merged into the weights; 4-bit weights keep it separate."""
        model = (self.model or self.candidate).load()
        if self.adapter is not None:
            model.merge_from(self.adapter)
        return model


@dataclass(slots=True)
class Case:
    """A finished case.

    Attributes:
        record: measurement and verdict.
        domain: of its suite.
        stored: whether the measurement was taken from the store.
        folder: of its record.
        defended: folder of the defended weights; None without a defense.
        weights: sha256 of each of their files.
    """

    record: CaseRecord
    domain: str
    stored: bool
    folder: Path
    defended: Path | None
    weights: Mapping[str, str]

    def __repr__(self) -> str:
        """Short: pytest prints fixture values in many places."""
        return f"Case({self.domain} {self.record.case_id}: {self.record.verdict.outcome})"
