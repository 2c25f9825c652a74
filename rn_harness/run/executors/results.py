"""The executor ``--rn-from-results``: joins the measurements of other processes into one run. No model is loaded.

Each process that was given node ids left a folder under ``parts``. The part's digests are checked, then each record in itself
(``integrity``) and against this run (``acceptance``), and verdicts are decided again. A missing, doubled, altered or foreign
record is an error of its case: no verdict, and never a pass.
"""

from __future__ import annotations

import functools
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.models.identity import root_digest
from rn_harness.records.case import CHECKPOINTS, CaseRecord, Evidence, restrained_file
from rn_harness.records.run import RUN, CaseLine
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.release.integrity import Refusal, RunEvidence, check_record, read_evidence, read_file, short
from rn_harness.run.case import Case, CaseTask, all_cases
from rn_harness.run.context import PARTS
from rn_harness.run.executors.acceptance import ReceivedCases, mismatches
from rn_harness.run.measuring import TRANSCRIPT, without_leak
from rn_harness.run.session import RECORD, ROUNDING
from rn_harness.spec.errors import ExecutorError
from rn_harness.spec.restraint import BETAS
from rn_harness.spec.suite import Suite
from rn_harness.store.files import write_text
from rn_harness.store.journal import alike
from rn_harness.verdict.coherence import impossible_times, scattered
from rn_harness.verdict.decide import decide

BY_PART = ("narrowed", "deselected", "executor", "joined", "allowed_plugins")
"""Options that differ between parts."""
BY_DOMAIN = ("judges", "private_prompts", "recipe", "dirty")
"""Options that are recorded by domain; a part may have only one of the domains."""


@dataclass(frozen=True)
class RunPart:
    """The folder that one process left, and the faults of its files. It has no evidence before it has ended."""

    folder: Path
    evidence: RunEvidence | None
    refusals: Sequence[Refusal]

    @property
    def name(self) -> str:
        """The part's name in sentences."""
        return f"{PARTS}/{self.folder.name}"


@dataclass(frozen=True)
class PartRecord:
    """A case's record in a part that has ended, with its line in the part's own record."""

    part: RunPart
    evidence: RunEvidence
    line: CaseLine
    record: CaseRecord

    @property
    def path(self) -> Path:
        """File of the record."""
        return self.part.folder / (self.line.record or "")


@dataclass
class Results(ReceivedCases):
    """Takes each case from the parts of a run, which are in its folder.

    ``options`` are those of this run, as its record has them. ``taken`` has the part that each case came from, by domain and id.
    """

    options: Mapping[str, Any]
    taken: dict[str, str] = field(default_factory=dict)
    _checked: dict[tuple[str, str], PartRecord] = field(default_factory=dict)

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """For the header."""
        return "not planned: nothing is run"

    @functools.cached_property
    def parts(self) -> list[RunPart]:
        """All parts, by name. Raises ExecutorError if there is none, or a link."""
        folders = sorted(p for p in (self.session.folder / PARTS).glob("*") if p.is_dir())
        if links := [p.name for p in folders if p.is_symlink()]:
            raise ExecutorError(f"each part is a folder of its own, got a link at {PARTS}/{links[0]}; copy what it points to")
        if not folders:
            raise ExecutorError(
                f"--rn-from-results joins what was measured before, got none in {self.session.folder / PARTS}; first run each "
                f"node id with --rn-run {self.session.folder}"
            )
        parts = []
        for folder in folders:
            evidence, refusals = read_evidence(folder) if (folder / RUN).exists() else (None, [])
            # No test of a part reports a control that an attack made for itself.
            parts.append(RunPart(folder, evidence, [r for r in refusals if r.code != "file_unbound"]))
        return parts

    def _accept(self, task: CaseTask) -> Case:
        suite, name = task.suite, f"{task.suite.domain} {task.case_id}"
        found = self._record_of(task)
        record, run = found.record, found.record.evidence.trajectory
        tries = list(self._other_tries(found, name))
        if tries and run:
            run = run.model_copy(update={"earlier": (*run.earlier, *tries)})
            evidence = record.evidence.model_copy(update={"trajectory": run})
            record = record.model_copy(update={"evidence": evidence, "verdict": decide(evidence)})
        if record.verdict.outcome != "FAIL" and (broken := next(self._broken(found, name), None)):
            record = record.model_copy(update={"evidence": broken, "verdict": decide(broken)})
        if record.verdict.outcome != "FAIL":  # a breach that was seen stays seen
            _refuse(name, None, self._differences(suite))
            _refuse(name, found.part, self.control_mismatches(task, record))
        folder = self._place(found, record)
        self.taken[name] = found.part.name
        joined = found.evidence.run
        defended = joined.defended.get(suite.domain) if record.identity.defended_digest else None
        weights = joined.weights.get(suite.domain, {}) if defended else {}
        return Case(record, suite.domain, found.line.stored, folder, Path(defended) if defended else None, weights)

    def _record_of(self, task: CaseTask) -> PartRecord:
        """The one record of a case; it is sound and of this run, as far as it shows by itself."""
        if task.address not in self._checked:
            domain, case_id = task.suite.domain, task.case_id
            found = self._find(domain, case_id)
            _refuse(f"{domain} {case_id}", found.part, [*self._faults(found), *mismatches(self.session, task, found.record)])
            self._checked[task.address] = found
        return self._checked[task.address]

    def _find(self, domain: str, case_id: str) -> PartRecord:
        """The one measurement of a case; of several, the first with a breach. Raises ExecutorError if they differ."""
        ended = [(part, part.evidence) for part in self.parts if part.evidence is not None]
        read = [
            (part, evidence, line, evidence.records.get(line.record))
            for part, evidence in ended
            for line in evidence.run.cases
            if (line.domain, line.case_id) == (domain, case_id) and line.record
        ]
        found = [PartRecord(part, evidence, line, record) for part, evidence, line, record in read if record]
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
        if lost := [part.name for part, _, _, record in read if record is None]:
            raise ExecutorError(
                f"each record of {domain} {case_id} has to be readable, since it may have a breach, got one in {lost[0]} that is "
                "not; restore it, or make a new run"
            )
        whole = [f for f in found if (run := f.record.evidence.trajectory) and not (run.judge_failed or run.stopped)] or found
        odd = next((f for f in whole[1:] if any(map(operator.ne, _comparable(f), _comparable(whole[0])))), None)
        if odd is not None:
            raise ExecutorError(
                f"each case is measured once, got {domain} {case_id} in {whole[0].part.name} and, with other numbers, in "
                f"{odd.part.name}: neither counts; make a new run"
            )
        return whole[0]

    def _faults(self, found: PartRecord) -> Iterator[str]:
        """Faults of a record and its part that show without this run."""
        run, record, line = found.evidence.run, found.record, found.line
        yield from (r.sentence for r in found.part.refusals)
        if run.run_id != self.session.run_id:
            yield f"its part is of run {run.run_id}, this is {self.session.run_id}"
        yield from (f"of its times {text}" for text in impossible_times(record, run.started, run.ended))
        yield from (r.sentence for r in check_record(found.path, record))
        if line.outcome != record.verdict.outcome:
            yield f"its test has no verdict there: {line.note or 'none is told'}"
        if (line.key, line.case_id) != (record.key, record.case_id):
            yield "its line there is of another record"
        theirs, ours = _of_domain(run.options, line.domain), _of_domain(self.options, line.domain)
        differing = sorted(n for n in theirs.keys() | ours.keys() if n not in BY_PART and theirs.get(n) != ours.get(n))
        if differing:
            yield f"its part was run with other options ({', '.join(differing)})"
        if (digest := record.identity.defended_files) and root_digest(run.weights.get(line.domain, {})) != digest:
            yield "the list of defended weights there is not of those that were measured"

    def _other_folders(self, found: PartRecord, name: str) -> Iterator[tuple[RunPart, Path]]:
        """The folders of other tries at the same case, cut off or not. Raises ExecutorError if one has another key."""
        stem = f"{found.line.domain}-{found.line.case_id}-"
        for part in self.parts:
            for folder in sorted((part.folder / "cases").glob("*")):
                if not re.fullmatch(re.escape(stem) + "[0-9a-f]{12}", folder.name) or folder == found.path.parent:
                    continue
                if not found.record.key.startswith(folder.name.removeprefix(stem)):
                    raise ExecutorError(
                        f"each case is measured on one thing, got {name} with another key in {part.name}: other weights, "
                        "another machine, or another version made it; make a new run"
                    )
                yield part, folder

    def _other_tries(self, found: PartRecord, name: str) -> Iterator[Checkpoint]:
        """Checkpoints of other tries that the record does not repeat. Raises ExecutorError if one cannot be read."""
        journals = found.record.evidence.journals
        own = {
            file: [without_leak(c).model_dump(mode="json") for c in journals[file].checkpoints] if file in journals else []
            for file in (CHECKPOINTS, *(restrained_file(n, "attack") for n in range(1, len(BETAS) + 1)))
        }
        tolerance = 0.0 if found.record.identity.hardware.get("device") == "cpu" else ROUNDING
        for part, folder in self._other_folders(found, name):
            for file, known in own.items():
                theirs = _read_checkpoints(folder / file, name, part)
                others = [without_leak(c).model_dump(mode="json") for c in theirs]
                repeated = (i < len(known) and alike(of, known[i], tolerance) for i, of in enumerate(others))
                yield from theirs[next((i for i, same in enumerate(repeated) if not same), len(theirs)) :]

    def _broken(self, found: PartRecord, name: str) -> Iterator[Evidence]:
        """The evidence of other tries that fail, also by what no checkpoint shows, such as probes.

        Raises ExecutorError if a record cannot be read.
        """
        for part, folder in self._other_folders(found, name):
            if os.path.lexists(path := folder / RECORD):
                with _readable(path, name, part):
                    evidence = CaseRecord.model_validate_json(read_file(path)).evidence
                if decide(evidence).outcome == "FAIL":
                    yield evidence

    def _differences(self, suite: Suite) -> list[str]:
        """Differences between the records of a domain that cases of one run do not have."""
        tasks = all_cases(suite, suite.tier_attacks(self.session.options.tier))
        try:
            records = [self._record_of(task).record for task in tasks]
        except ExecutorError:  # the case with the error reports it, and the run has no PASS
            return []
        return [f"cases of one run differ in {text}" for text in scattered(records)]

    def _place(self, found: PartRecord, record: CaseRecord) -> Path:
        """Writes a record with its checkpoints into the run's own folder."""
        folder = self.session.folder / "cases" / found.path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, trajectory in record.evidence.journals.items():
            write_text(folder / name, trajectory.lines)
        transcript = found.path.with_name(TRANSCRIPT)
        if transcript.relative_to(found.part.folder).as_posix() in found.evidence.run.files:  # only a bound file was checked
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


def _comparable(found: PartRecord) -> list[Trajectory | None]:
    """The case's own trajectory, and those of restrained attacks in their order, of which one part may have more than another."""
    runs = {CHECKPOINTS: None} | found.record.evidence.journals
    return [run and run.model_copy(update={"checkpoints": tuple(map(without_leak, run.checkpoints))}) for run in runs.values()]


def _read_checkpoints(path: Path, name: str, part: RunPart) -> list[Checkpoint]:
    """The whole lines of a file of checkpoints; a last line that was cut is left out."""
    if not path.exists():
        return []
    with _readable(path, name, part):
        lines = read_file(path).decode("utf-8").splitlines(keepends=True)
        return [Checkpoint.model_validate_json(line) for line in lines if line.endswith("\n")]


@contextmanager
def _readable(path: Path, name: str, part: RunPart) -> Iterator[None]:
    """Raises ExecutorError if a file of another try cannot be read: it may have a breach."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ExecutorError(
            f"what another try at {name} measured must be readable, got {path.name} in {part.name}: {short(error)}; make a new "
            "run"
        ) from None
