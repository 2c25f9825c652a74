"""Joins what other processes measured into one run: ``--rn-from-results``. Floor 4 (run). No model is loaded.

Each process that was given node ids left a run's folder of its own under ``parts``. A part is believed by its digests, each
record by what it holds (``integrity``) and by what this run is about (``acceptance``); verdicts are decided again. What is
missing, doubled, altered or of another run is an error of its case: no verdict, and never a pass.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.models.identity import root_digest
from rn_harness.records.base import CaseKind
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import CaseLine
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.release.integrity import Evidence, Refusal, of_record, read_evidence, read_file, short
from rn_harness.release.statement import RUN
from rn_harness.run.case import Case
from rn_harness.run.executors.acceptance import foreign, strange_control
from rn_harness.run.executors.order import tasks_of
from rn_harness.run.lineup import CaseTask
from rn_harness.run.session import LEAK_OF_CONTROL, PARTS, ROUNDING, RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import ExecutorError
from rn_harness.spec.suite import Suite
from rn_harness.store.store import alike, write_text
from rn_harness.verdict.coherence import impossible_times, scattered
from rn_harness.verdict.decide import decide

RECORD = "record.json"
CHECKPOINTS = "checkpoints.jsonl"
TRANSCRIPT = "transcript.jsonl"
BY_PART = ("narrowed", "deselected", "executor", "joined", "allowed_plugins")
"""Options that a part has of its own."""
BY_DOMAIN = ("judges", "private_prompts", "recipe", "dirty")
"""Options that are told by domain; a part may be about one of them alone."""


@dataclass(frozen=True)
class Part:
    """What one process left.

    Attributes:
        folder: its own.
        evidence: what its record binds; None where it has not ended, or cannot be read.
        refusals: what is wrong with its files.
    """

    folder: Path
    evidence: Evidence | None
    refusals: tuple[Refusal, ...]

    @property
    def name(self) -> str:
        """For sentences."""
        return f"{PARTS}/{self.folder.name}"

    def binds(self, path: Path) -> bool:
        """Whether its record says what stands in a file of it, so that this was looked at."""
        return self.evidence is not None and path.relative_to(self.folder).as_posix() in self.evidence.run.files


@dataclass(frozen=True)
class Found:
    """A case's record in a part, with its line there."""

    part: Part
    line: CaseLine
    record: CaseRecord

    @property
    def folder(self) -> Path:
        """Of the record."""
        return (self.part.folder / (self.line.record or "")).parent


@dataclass
class Results:
    """Takes each case from the parts of a run.

    Attributes:
        session: of the run that joins them; its folder has the parts.
        options: of this run, as its record tells them.
        taken: which part each case came from, by domain and case id.
    """

    session: RunSession
    options: Mapping[str, Any]
    taken: dict[str, str] = field(default_factory=dict)
    _cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    _found: dict[tuple[str, str], Found] = field(default_factory=dict)
    _scattered: dict[str, list[str]] = field(default_factory=dict)

    @property
    def memory(self) -> str:
        """For the header."""
        return "not planned: nothing is run"

    def start(self) -> None:
        """There is nothing to begin."""

    def close(self) -> None:
        """There is nothing to end."""

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """All parts, by name.

        Raises:
            ExecutorError: there is none.
        """
        folders = sorted(p for p in (self.session.folder / PARTS).glob("*") if p.is_dir() and not p.is_symlink())
        if not folders:
            raise ExecutorError(
                f"--rn-from-results joins what was measured before, got none in {self.session.folder / PARTS}; first run each "
                f"node id with --rn-run {self.session.folder}"
            )
        return tuple(self._read(folder) for folder in folders)

    @staticmethod
    def _read(folder: Path) -> Part:
        evidence, refusals = read_evidence(folder) if (folder / RUN).exists() else (None, [])
        # A control that an attack made for itself is told by no test of its part.
        return Part(folder, evidence, tuple(r for r in refusals if r.code != "file_unbound"))

    def case(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None) -> Case:
        """One case; see ``Executor``."""
        task = CaseTask(kind, suite, attack)
        if task.at not in self._cases:
            self._cases[task.at] = self._take(task)
        return self._cases[task.at]

    def _checked(self, task: CaseTask) -> Found:
        """The one measurement of a case, which is of this run as far as it tells by itself."""
        if task.at not in self._found:
            domain, case_id = task.suite.domain, task.case_id
            found = self._find(domain, case_id)
            self._refuse(f"{domain} {case_id}", found.part, [*self._faults(found), *foreign(self.session, task, found.record)])
            self._found[task.at] = found
        return self._found[task.at]

    def _take(self, task: CaseTask) -> Case:
        suite, what = task.suite, f"{task.suite.domain} {task.case_id}"
        found = self._checked(task)
        record = found.record
        tries = list(self._other_tries(found, what))
        if tries and record.evidence.trajectory:
            run = record.evidence.trajectory.model_copy(update={"earlier": (*record.evidence.trajectory.earlier, *tries)})
            evidence = record.evidence.model_copy(update={"trajectory": run})
            record = record.model_copy(update={"evidence": evidence, "verdict": decide(evidence)})
        if record.verdict.outcome != "FAIL":  # a breach that was seen stays seen
            self._refuse(what, None, self._strays(suite))
            if task.kind == "attack" and not record.evidence.refused:
                control = self.case("control", suite, task.attack).record
                strange = strange_control(record, control)
                self._refuse(what, found.part, ["its control is not the control case of this run"] if strange else [])
        folder = self._place(found, record)
        self.taken[what] = found.part.name
        run_record = found.part.evidence.run if found.part.evidence else None
        defended = run_record.defended.get(suite.domain) if run_record and record.identity.defended_digest else None
        weights = run_record.weights.get(suite.domain, {}) if run_record and defended else {}
        return Case(record, suite.domain, found.line.stored, folder, Path(defended) if defended else None, weights)

    @staticmethod
    def _refuse(what: str, part: Part | None, sentences: Iterable[str]) -> None:
        told = "; ".join(sentences)
        if told:
            of = f"the record of {what} in {part.name}" if part else f"the record of {what}"
            raise ExecutorError(f"{of} must be one of this run, got: {told}; make the run anew in a folder of its own")

    def _lines(self, domain: str, case_id: str) -> Iterator[Found]:
        for part in self.parts:
            if part.evidence is None:
                continue
            for line in part.evidence.run.cases:
                record = part.evidence.records.get(line.record or "")
                if (line.domain, line.case_id) == (domain, case_id) and record is not None:
                    yield Found(part, line, record)

    def _find(self, domain: str, case_id: str) -> Found:
        """The one measurement of a case; of several the one in which a breach was seen.

        Raises:
            ExecutorError: there is none, or they differ.
        """
        found = list(self._lines(domain, case_id))
        if not found:
            unread = [r.sentence for part in self.parts for r in part.refusals if r.code == "unreadable"]
            open_ones = [part.name for part in self.parts if part.evidence is None]
            also = f"; not ended, or not to be read: {', '.join(open_ones)}" if open_ones else ""
            raise ExecutorError(
                f"each case needs a record, got none of {domain} {case_id} in {len(self.parts)} parts{also}"
                f"{'; ' + '; '.join(unread) if unread else ''}; run its node id with --rn-run {self.session.folder}"
            )
        broken = next((f for f in found if decide(f.record.evidence).outcome == "FAIL"), None)
        if broken is not None:
            return broken
        whole = [f for f in found if (run := f.record.evidence.trajectory) and not (run.judge_failed or run.stopped)] or found
        measured = [_plain(f.record.evidence.trajectory) for f in whole]
        odd = next((f for f, of in zip(whole, measured, strict=True) if of != measured[0]), None)
        if odd is not None:
            raise ExecutorError(
                f"each case is measured once, got {domain} {case_id} in {whole[0].part.name} and, with other numbers, in "
                f"{odd.part.name}: neither counts; make a new run"
            )
        return whole[0]

    def _faults(self, found: Found) -> Iterator[str]:
        """What is wrong with a record and its part, as far as it is told there."""
        part, evidence = found.part, found.part.evidence
        assert evidence is not None
        yield from (r.sentence for r in part.refusals)
        if evidence.run.run_id != self.session.run_id:
            yield f"its part is of run {evidence.run.run_id}, this is {self.session.run_id}"
        times = impossible_times(found.record, evidence.run.started, evidence.run.ended)
        yield from (f"of its times {text}" for text in times)
        yield from (r.sentence for r in of_record(part.folder / (found.line.record or ""), found.record))
        if found.line.outcome != found.record.verdict.outcome:
            yield f"its test has no verdict there: {found.line.note or 'none is told'}"
        if (found.line.key, found.line.case_id) != (found.record.key, found.record.case_id):
            yield "its line there is of another record"
        theirs, ours = _of_domain(evidence.run.options, found.line.domain), _of_domain(self.options, found.line.domain)
        differing = sorted(n for n in theirs.keys() | ours.keys() if n not in BY_PART and theirs.get(n) != ours.get(n))
        if differing:
            yield f"its part was run with other options ({', '.join(differing)})"
        domain, weights = found.line.domain, evidence.run.weights
        if (digest := found.record.identity.defended_files) and root_digest(weights.get(domain, {})) != digest:
            yield "the list of defended weights there is not of those that were measured"

    def _other_tries(self, found: Found, what: str) -> Iterator[Checkpoint]:
        """Checkpoints that other tries at the same case measured, cut off or not, and that the record does not repeat.

        Raises:
            ExecutorError: another try has another key, or its checkpoints cannot be read.
        """
        run = found.record.evidence.trajectory
        stem = f"{found.line.domain}-{found.line.case_id}-"
        own = [_bare(c).model_dump(mode="json") for c in run.checkpoints] if run else []
        tolerance = 0.0 if found.record.identity.hardware.get("device") == "cpu" else ROUNDING
        for part in self.parts:
            for folder in sorted((part.folder / "cases").glob("*")):
                if not re.fullmatch(re.escape(stem) + "[0-9a-f]{12}", folder.name) or folder == found.folder:
                    continue
                if not found.record.key.startswith(folder.name.removeprefix(stem)):
                    raise ExecutorError(
                        f"each case is measured on one thing, got {what} with another key in {part.name}: other weights, "
                        "another machine, or another version made it; make a new run"
                    )
                theirs = _checkpoints(folder / CHECKPOINTS, what, part)
                said = [_bare(c).model_dump(mode="json") for c in theirs]
                differing = (i for i, of in enumerate(said) if i >= len(own) or not alike(of, own[i], tolerance))
                yield from theirs[next(differing, len(theirs)) :]

    def _strays(self, suite: Suite) -> list[str]:
        """What keeps the records of a domain from being cases of one run, where each of them is there and sound."""
        if suite.digest not in self._scattered:
            tasks = tasks_of(suite, suite.tier_attacks(self.session.options.tier))
            try:
                records = [self._checked(task).record for task in tasks]
            except ExecutorError:  # told where that case is asked for, and enough to keep the run from a PASS
                records = []
            self._scattered[suite.digest] = [f"cases of one run differ in {text}" for text in scattered(records)]
        return self._scattered[suite.digest]

    def _place(self, found: Found, record: CaseRecord) -> Path:
        """Puts a record with its checkpoints into the run's own folder."""
        folder = self.session.folder / "cases" / found.folder.name
        folder.mkdir(parents=True, exist_ok=True)
        run = record.evidence.trajectory
        if run is not None:
            write_text(folder / CHECKPOINTS, "".join(c.model_dump_json() + "\n" for c in run.checkpoints))
        transcript = found.folder / TRANSCRIPT
        if found.part.binds(transcript):
            write_text(folder / TRANSCRIPT, read_file(transcript).decode("utf-8"))
        write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
        return folder


def _of_domain(options: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """A run's options as far as they are about one domain."""
    return {
        name: value.get(domain) if name in BY_DOMAIN and isinstance(value, dict) else value for name, value in options.items()
    }


def _bare(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint without what it says only if the control ran in the same process."""
    return checkpoint.model_copy(update=dict.fromkeys(LEAK_OF_CONTROL))


def _plain(run: Trajectory | None) -> Trajectory | None:
    return run and run.model_copy(update={"checkpoints": tuple(map(_bare, run.checkpoints))})


def _checkpoints(path: Path, what: str, part: Part) -> list[Checkpoint]:
    """The whole lines of a file of checkpoints; a last one that was cut is left out.

    Raises:
        ExecutorError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        lines = read_file(path).decode("utf-8").splitlines(keepends=True)
        return [Checkpoint.model_validate_json(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"what another try at {what} measured must be readable, got {path.name} in {part.name}: {short(error)}; make a new "
            "run"
        ) from None
