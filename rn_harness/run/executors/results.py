"""The executor ``--rn-from-results``: joins the measurements of other processes into one run. No model is loaded.

Each process that was given node ids left a folder under ``parts``. The part's digests are checked, then each record in itself
(``integrity``) and against this run (``acceptance``), and verdicts are decided again. A missing, doubled, altered or foreign
record is an error of its case: no verdict, and never a pass.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.models.identity import root_digest
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import CaseLine
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.release.integrity import Refusal, RunEvidence, check_record, read_evidence, read_file, short
from rn_harness.release.statement import RUN
from rn_harness.run.case import Case, CaseTask, Defended, all_cases
from rn_harness.run.context import PARTS
from rn_harness.run.executors.acceptance import control_mismatches, mismatches, received_defense
from rn_harness.run.measuring import CHECKPOINTS, LEAK_OF_CONTROL, TRANSCRIPT
from rn_harness.run.session import RECORD, ROUNDING, RunSession
from rn_harness.spec.errors import ExecutorError
from rn_harness.spec.suite import Suite
from rn_harness.store.store import alike, write_text
from rn_harness.verdict.coherence import impossible_times, scattered
from rn_harness.verdict.decide import decide

BY_PART = ("narrowed", "deselected", "executor", "joined", "allowed_plugins")
"""Options that differ between parts."""
BY_DOMAIN = ("judges", "private_prompts", "recipe", "dirty")
"""Options that are recorded by domain; a part may have only one of the domains."""


@dataclass(frozen=True)
class RunPart:
    """The folder that one process left.

    Attributes:
        folder: the folder.
        evidence: the part's record and the files that it binds; None if it has not ended or cannot be read.
        refusals: faults of its files.
    """

    folder: Path
    evidence: RunEvidence | None
    refusals: tuple[Refusal, ...]

    @classmethod
    def read(cls, folder: Path) -> RunPart:
        """Reads the part in a folder."""
        evidence, refusals = read_evidence(folder) if (folder / RUN).exists() else (None, [])
        # No test of a part reports a control that an attack made for itself.
        return cls(folder, evidence, tuple(r for r in refusals if r.code != "file_unbound"))

    @property
    def name(self) -> str:
        """The part's name in sentences."""
        return f"{PARTS}/{self.folder.name}"

    def binds(self, path: Path) -> bool:
        """True if the part's record has the digest of a file, so that the file was checked."""
        return self.evidence is not None and path.relative_to(self.folder).as_posix() in self.evidence.run.files


@dataclass(frozen=True)
class PartRecord:
    """A case's record in a part, with its line in the part's own record."""

    part: RunPart
    line: CaseLine
    record: CaseRecord

    @property
    def folder(self) -> Path:
        """Folder of the record."""
        return (self.part.folder / (self.line.record or "")).parent


@dataclass
class Results:
    """Takes each case from the parts of a run; see ``Executor``.

    Attributes:
        session: of the run that joins the parts; they are in its folder.
        options: of this run, as its record has them.
        taken: the part that each case came from, by domain and case id.
    """

    session: RunSession
    options: Mapping[str, Any]
    taken: dict[str, str] = field(default_factory=dict)
    _cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    _checked: dict[tuple[str, str], PartRecord] = field(default_factory=dict)
    _scattered: dict[str, list[str]] = field(default_factory=dict)

    def start(self) -> None:
        """Does nothing: the cases were made before."""

    def close(self) -> None:
        """Does nothing: no work runs."""

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """For the header."""
        return "not planned: nothing is run"

    @functools.cached_property
    def parts(self) -> tuple[RunPart, ...]:
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
        return tuple(RunPart.read(folder) for folder in folders)

    def defended(self, suite: Suite) -> Defended:
        """The candidate with this run's defense."""
        return received_defense(self.session, suite, self.case)

    def case(self, declared: CaseTask) -> Case:
        """A case from the parts."""
        if declared.address not in self._cases:
            self._cases[declared.address] = self._accept(declared)
        return self._cases[declared.address]

    def _accept(self, task: CaseTask) -> Case:
        suite, name = task.suite, f"{task.suite.domain} {task.case_id}"
        found = self._record_of(task)
        record = found.record
        tries = list(self._other_tries(found, name))
        if tries and record.evidence.trajectory:
            run = record.evidence.trajectory.model_copy(update={"earlier": (*record.evidence.trajectory.earlier, *tries)})
            evidence = record.evidence.model_copy(update={"trajectory": run})
            record = record.model_copy(update={"evidence": evidence, "verdict": decide(evidence)})
        if record.verdict.outcome != "FAIL":  # a breach that was seen stays seen
            _refuse(name, None, self._differences(suite))
            _refuse(name, found.part, control_mismatches(task, record, self.case))
        folder = self._place(found, record)
        self.taken[name] = found.part.name
        run_record = found.part.evidence.run if found.part.evidence else None
        defended = run_record.defended.get(suite.domain) if run_record and record.identity.defended_digest else None
        weights = run_record.weights.get(suite.domain, {}) if run_record and defended else {}
        return Case(record, suite.domain, found.line.stored, folder, Path(defended) if defended else None, weights)

    def _record_of(self, task: CaseTask) -> PartRecord:
        """The one record of a case; it is sound and of this run, as far as it shows by itself."""
        if task.address not in self._checked:
            domain, case_id = task.suite.domain, task.case_id
            found = self._find(domain, case_id)
            _refuse(f"{domain} {case_id}", found.part, [*self._faults(found), *mismatches(self.session, task, found.record)])
            self._checked[task.address] = found
        return self._checked[task.address]

    def _records(self, domain: str, case_id: str) -> Iterator[PartRecord]:
        for part in self.parts:
            if part.evidence is None:
                continue
            for line in part.evidence.run.cases:
                record = part.evidence.records.get(line.record or "")
                if (line.domain, line.case_id) == (domain, case_id) and record is not None:
                    yield PartRecord(part, line, record)

    def _find(self, domain: str, case_id: str) -> PartRecord:
        """The one measurement of a case; of several, the first with a breach.

        Raises:
            ExecutorError: there is none, or they differ.
        """
        found = list(self._records(domain, case_id))
        if not found:
            unread = "".join(f"; {r.sentence}" for part in self.parts for r in part.refusals if r.code == "unreadable")
            unfinished = ", ".join(part.name for part in self.parts if part.evidence is None)
            also = f"; not ended, or not to be read: {unfinished}" if unfinished else ""
            raise ExecutorError(
                f"each case needs a record, got none of {domain} {case_id} in {len(self.parts)} parts{also}{unread}; run its "
                f"node id with --rn-run {self.session.folder}"
            )
        broken = next((f for f in found if decide(f.record.evidence).outcome == "FAIL"), None)
        if broken is not None:
            return broken
        whole = [f for f in found if (run := f.record.evidence.trajectory) and not (run.judge_failed or run.stopped)] or found
        first, *others = [_comparable(f.record.evidence.trajectory) for f in whole]
        odd = next((f for f, run in zip(whole[1:], others, strict=True) if run != first), None)
        if odd is not None:
            raise ExecutorError(
                f"each case is measured once, got {domain} {case_id} in {whole[0].part.name} and, with other numbers, in "
                f"{odd.part.name}: neither counts; make a new run"
            )
        return whole[0]

    def _faults(self, found: PartRecord) -> Iterator[str]:
        """Faults of a record and its part that show without this run."""
        part, evidence, record, line = found.part, found.part.evidence, found.record, found.line
        assert evidence is not None
        yield from (r.sentence for r in part.refusals)
        if evidence.run.run_id != self.session.run_id:
            yield f"its part is of run {evidence.run.run_id}, this is {self.session.run_id}"
        times = impossible_times(record, evidence.run.started, evidence.run.ended)
        yield from (f"of its times {text}" for text in times)
        yield from (r.sentence for r in check_record(part.folder / (line.record or ""), record))
        if line.outcome != record.verdict.outcome:
            yield f"its test has no verdict there: {line.note or 'none is told'}"
        if (line.key, line.case_id) != (record.key, record.case_id):
            yield "its line there is of another record"
        theirs, ours = _of_domain(evidence.run.options, line.domain), _of_domain(self.options, line.domain)
        differing = sorted(n for n in theirs.keys() | ours.keys() if n not in BY_PART and theirs.get(n) != ours.get(n))
        if differing:
            yield f"its part was run with other options ({', '.join(differing)})"
        weights = evidence.run.weights.get(line.domain, {})
        if (digest := record.identity.defended_files) and root_digest(weights) != digest:
            yield "the list of defended weights there is not of those that were measured"

    def _other_tries(self, found: PartRecord, name: str) -> Iterator[Checkpoint]:
        """Checkpoints of other tries at the same case, cut off or not, that the record does not repeat.

        Raises:
            ExecutorError: another try has another key, or its checkpoints cannot be read.
        """
        run = found.record.evidence.trajectory
        stem = f"{found.line.domain}-{found.line.case_id}-"
        own = [_without_leak(c).model_dump(mode="json") for c in run.checkpoints] if run else []
        tolerance = 0.0 if found.record.identity.hardware.get("device") == "cpu" else ROUNDING
        for part in self.parts:
            for folder in sorted((part.folder / "cases").glob("*")):
                if not re.fullmatch(re.escape(stem) + "[0-9a-f]{12}", folder.name) or folder == found.folder:
                    continue
                if not found.record.key.startswith(folder.name.removeprefix(stem)):
                    raise ExecutorError(
                        f"each case is measured on one thing, got {name} with another key in {part.name}: other weights, "
                        "another machine, or another version made it; make a new run"
                    )
                theirs = _read_checkpoints(folder / CHECKPOINTS, name, part)
                others = [_without_leak(c).model_dump(mode="json") for c in theirs]
                differing = (i for i, of in enumerate(others) if i >= len(own) or not alike(of, own[i], tolerance))
                yield from theirs[next(differing, len(theirs)) :]

    def _differences(self, suite: Suite) -> list[str]:
        """Differences between the records of a domain that cases of one run do not have."""
        if suite.digest not in self._scattered:
            tasks = all_cases(suite, suite.tier_attacks(self.session.options.tier))
            try:
                records = [self._record_of(task).record for task in tasks]
            except ExecutorError:  # the case with the error reports it, and the run has no PASS
                records = []
            self._scattered[suite.digest] = [f"cases of one run differ in {text}" for text in scattered(records)]
        return self._scattered[suite.digest]

    def _place(self, found: PartRecord, record: CaseRecord) -> Path:
        """Writes a record with its checkpoints into the run's own folder."""
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


def _refuse(name: str, part: RunPart | None, problems: Iterable[str]) -> None:
    """Raises an ``ExecutorError`` if there are problems with the record of a case."""
    sentence = "; ".join(problems)
    if sentence:
        record = f"the record of {name} in {part.name}" if part else f"the record of {name}"
        raise ExecutorError(f"{record} must be one of this run, got: {sentence}; make the run anew in a folder of its own")


def _of_domain(options: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """A run's options as far as they concern one domain."""
    return {
        name: value.get(domain) if name in BY_DOMAIN and isinstance(value, dict) else value for name, value in options.items()
    }


def _without_leak(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint without the fields that are measured only if the control ran in the same process."""
    return checkpoint.model_copy(update=dict.fromkeys(LEAK_OF_CONTROL))


def _comparable(run: Trajectory | None) -> Trajectory | None:
    return run and run.model_copy(update={"checkpoints": tuple(map(_without_leak, run.checkpoints))})


def _read_checkpoints(path: Path, name: str, part: RunPart) -> list[Checkpoint]:
    """The whole lines of a file of checkpoints; a last line that was cut is left out.

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
            f"what another try at {name} measured must be readable, got {path.name} in {part.name}: {short(error)}; make a new "
            "run"
        ) from None
