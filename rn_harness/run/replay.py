"""Replay of a finished run: measures some of its cases again, and compares the scores. A forger cannot know which cases.

The run's folder gives only the records to compare with, and the settings under which its suite has its digest. Model, judges,
suite and weights are the verifier's. Store and folder are new, so that no result of the claimant's is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rn_harness.models.identity import text_digest
from rn_harness.records.base import digest_of
from rn_harness.records.case import CaseRecord, Evidence, turns
from rn_harness.records.run import RUN
from rn_harness.records.trajectory import Checkpoint, Trajectory
from rn_harness.release.integrity import Refusal, RunEvidence
from rn_harness.report.progress import Progress
from rn_harness.run.case import CaseTask, all_cases
from rn_harness.run.measuring import without_leak
from rn_harness.run.preflight import check_run
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import safe_report
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite
from rn_harness.store.store import Store, digests_of
from rn_harness.verdict.decide import decide

WEIGHTS = {"claim": 8.0, "covered": 4.0, "other": 1.0}
"""Weights of the choice: a claim attack, an exploratory attack that the claim covers, any other case."""
TOLERANCE = 1.0
"""Points by which the first mean score and the highest one may differ, where bits may. It is that of two looks at one text."""
CONDITIONS = ("versions.", "hardware.", "sessions.", "plugins", "fleet", "recipe.micro_batch")
"""Inputs of a case that may differ in a replay, by how their names begin: they change the rounding, not the measurement."""
MEASURED = ("trajectory", "control", "restrained", "exact_judge", "second_certificate")
"""Evidence that a replay measures, besides certificates. The rest is declared, or of a defense's training."""


@dataclass(frozen=True, slots=True)
class RecordedCase:
    """A recorded case that can be measured again, an attack together with its control."""

    task: CaseTask
    record: CaseRecord
    control: CaseRecord | None = None

    @property
    def weight(self) -> float:
        """Its weight in the choice."""
        evidence = self.record.evidence
        if evidence.kind != "attack" or not turns(evidence.standing, within_claim=evidence.within_claim):
            return WEIGHTS["other"]
        return WEIGHTS["claim" if evidence.standing == "claim" else "covered"]

    @property
    def seconds(self) -> float:
        """Wall time of its measurement by the run's own records."""
        return sum(_wall_s(record) for record in (self.record, self.control) if record)


def _wall_s(record: CaseRecord) -> float:
    measured = sum(tried.wall_s or 0.0 for tried in record.provenance.attempts if tried.outcome == "done")
    return measured or record.wall_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedCase:
    """A case that was measured again.

    Attributes:
        inexact: why its scores need not be the same bit by bit; empty: they have to be.
        digests: of the scores of each checkpoint, by trajectory and step: as recorded, and as measured again.
        refusal: None if the replay agrees with the record.
    """

    name: str
    inexact: tuple[str, ...] = ()
    digests: tuple[tuple[str, int, str | None, str | None], ...] = ()
    refusal: Refusal | None = None
    wall_s: float = 0.0

    @property
    def line(self) -> str:
        """The result for people."""
        if self.refusal:
            found = "refused"
        elif self.inexact:
            found = f"within the tolerance, which bits are not held to: {'; '.join(self.inexact)}"
        else:
            found = f"the same scores at {len(self.digests)} checkpoints, bit by bit"
        return f"replayed {self.name}: {found} ({self.wall_s:.0f} s)"


@dataclass(frozen=True, kw_only=True)
class RunReplay:
    """A replay of a run.

    Attributes:
        evidence: of the run, which holds together. It was read before the seed was drawn, and is not read again.
        suites: the verifier's copies, with the digests of the run.
        options: the verifier's model and judges.
        weights: folder of the defended weights, with the digests of the run.
        seed: of the choice; drawn now unless the verifier names one.
    """

    evidence: RunEvidence
    suites: Sequence[Suite]
    options: Options
    weights: Path
    seed: str = field(default_factory=lambda: secrets.token_hex(16))

    @functools.cached_property
    def cases(self) -> tuple[RecordedCase, ...]:
        """The cases that can be measured again."""
        return tuple(case for suite in self.suites for case in recorded_cases(self.evidence, suite))

    def chosen(self, count: int) -> list[RecordedCase]:
        """The cases to measure again, which follow from the seed and from all files of the run."""
        return choose(self.cases, count, self.seed, self.evidence.run_digest)

    def plan(self, cases: Sequence[RecordedCase]) -> Iterator[str]:
        """The choice and its cost by the run's own records, for people."""
        left = f"{len(self.cases)} of the run's {len(self.evidence.run.cases)} cases can be measured again, controls with attacks"
        yield f"replay: seed {self.seed}, {RUN} {self.evidence.run_digest}; {left}"
        yield from (f"replay: {case.task.name}, {case.seconds:.0f} s by its record" for case in cases)
        yield f"replay: about {sum(case.seconds for case in cases):.0f} s on the run's machine"

    def run(self, cases: Sequence[RecordedCase], say: Callable[[Progress], None]) -> Iterator[ReplayedCase]:
        """Measures these cases again, one after another. An ``RnHarnessError`` if this machine cannot measure them."""
        if not cases:
            yield ReplayedCase(name="run", refusal=Refusal("replay_failed", "the run has no case that can be measured again"))
        with tempfile.TemporaryDirectory(prefix="rn-harness-") as scratch:
            suites = {case.task.suite.domain: case.task.suite for case in cases}
            sessions = {domain: self._session(domain, Path(scratch), say) for domain in suites}
            for domain, suite in suites.items():
                check_run(sessions[domain], [suite])
                if sessions[domain].harmful([suite]):
                    say(Progress(domain, 0, 0, "this replay makes a real model do harm, in memory only", stays=True))
            for case in cases:
                clock = time.monotonic()
                replayed = replay_case(sessions[case.task.suite.domain], case)
                yield dataclasses.replace(replayed, wall_s=round(time.monotonic() - clock, 3))

    def _session(self, domain: str, scratch: Path, say: Callable[[Progress], None]) -> RunSession:
        """A session of one domain, since each domain has its own defended weights."""
        defended = self.weights / domain if (self.weights / domain).is_dir() else self.weights
        options = dataclasses.replace(self.options, defense=str(defended), tier=self.evidence.run.options["tier"])
        return RunSession(options, scratch / "run", Store(scratch / "store"), say)


def recorded_cases(evidence: RunEvidence, suite: Suite) -> Iterator[RecordedCase]:
    """The cases of a suite that can be measured again.

    They were measured to their end, and no judge's machinery failed, or their verdict is PASS all the same. A control is a part
    of its attack's replay. An attack that searched for its settings is left out: they follow from all digits of the search.
    """
    records = {record.case_id: record for record in evidence.records_of(suite.domain)}
    for task in all_cases(suite, suite.tier_attacks(evidence.run.options["tier"])):
        record = records.get(task.case_id)
        if task.kind == "control" or record is None or (task.attack and task.attack.search):
            continue
        runs = trajectories(record.evidence).values()
        cut = any(run.stopped or run.judge_failed for run in runs) and decide(record.evidence).outcome != "PASS"
        if record.evidence.trajectory and not cut:
            control = CaseTask("control", suite, task.attack).case_id
            yield RecordedCase(task, record, records.get(control) if task.attack else None)


def choose(cases: Sequence[RecordedCase], count: int, seed: str, run_digest: str) -> list[RecordedCase]:
    """A choice by weight without replacement (Efraimidis and Spirakis 2006), the same for the same seed and run.

    Each case waits for a time that is exponential, with its weight as the rate. The first ones are chosen.
    """

    def wait(case: RecordedCase) -> float:
        drawn = int(digest_of([seed, run_digest, case.task.name]), 16)
        return -math.log((drawn + 1) / 2**256) / case.weight

    return sorted(cases, key=wait)[:count]


def replay_case(session: RunSession, case: RecordedCase) -> ReplayedCase:
    """Measures a case again in a session of the verifier, and compares it with its record."""
    task, name = case.task, case.task.name
    try:
        run = session.run_of(task.suite)
        here = run.case_inputs(dataclasses.replace(task, attack=run.as_run(task.attack) if task.attack else None))
        inexact, foreign = conditions(case.record.inputs, here)
        if foreign:
            why = f"{name}: here it is another measurement than the recorded one: {', '.join(foreign)}"
            return ReplayedCase(name=name, refusal=Refusal("replay_foreign", why))
        again = session.case(task.kind, task.suite, task.attack).record.evidence
    except Exception as error:  # noqa: BLE001  (refused: a case that cannot be measured again is not confirmed)
        return ReplayedCase(name=name, refusal=Refusal("replay_failed", f"{name}: {safe_report(error)}"))
    digests = tuple(checkpoint_digests(case.record.evidence, again))
    refusal = None
    if again.trajectory is None or any(of.judge_failed for of in trajectories(again).values()):
        refusal = Refusal("replay_failed", f"{name}: {again.refused or 'no judge could score it here'}")
    elif found := list(differences(case.record.evidence, again, exact=not inexact)):
        refusal = Refusal("replay_differs", f"{name}: {'; '.join(found)}")
    return ReplayedCase(name=name, inexact=inexact, digests=digests, refusal=refusal)


def conditions(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """Why a case's scores here need not have the bits of its record, and the inputs that make it another measurement."""
    theirs, ours = digests_of(recorded), digests_of(here)
    differing = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    rounding = [name for name in differing if name.startswith(CONDITIONS)]
    inexact = [f"{name} is {_input(here, name)} here and {_input(recorded, name)} in the record" for name in rounding]
    if here["hardware"]["device"] != "cpu":
        inexact.append("a card sums in varying order")
    if any(here["sessions"].values()):
        inexact.append("a judge on a server, or of your own code, may answer differently")
    return tuple(inexact), [name for name in differing if name not in rounding]


def _input(inputs: Mapping[str, Any], name: str) -> Any:
    part, _, inner = name.partition(".")
    value = inputs.get(part)
    return value.get(inner) if inner and isinstance(value, dict) else value


def trajectories(evidence: Evidence) -> dict[str, Trajectory]:
    """All trajectories of a case, its control's included, by the name of the file with their checkpoints."""
    return evidence.journals | ({"control": evidence.control} if evidence.control else {})


def scores_digest(checkpoint: Checkpoint) -> str:
    """The sha256 over all numbers of a checkpoint but those that need the control's process."""
    return text_digest(without_leak(checkpoint).model_dump_json())


def checkpoint_digests(recorded: Evidence, again: Evidence) -> Iterator[tuple[str, int, str | None, str | None]]:
    """The digest of each checkpoint's scores, as recorded and as measured again, by trajectory and step."""
    before, after = trajectories(recorded), trajectories(again)
    for name in before | after:
        runs = (of[name].checkpoints if name in of else () for of in (before, after))
        for pair in zip_longest(*runs):
            step = next(checkpoint.step for checkpoint in pair if checkpoint)
            one, other = (scores_digest(checkpoint) if checkpoint else None for checkpoint in pair)
            yield name, step, one, other


def differences(recorded: Evidence, again: Evidence, *, exact: bool) -> Iterator[str]:
    """Differences of a case from its record: the verdict, and its scores, bit by bit or beyond the tolerance."""
    changes = {name: getattr(again, name) for name in MEASURED}
    own = tuple(c for c in recorded.certificates if c.source == "labels")  # the lab's, whose texts a release job may lack
    measured = recorded.model_copy(update={**changes, "certificates": (*again.certificates, *own)})
    before, after = decide(recorded), decide(measured)
    if (before.outcome, before.finding) != (after.outcome, after.finding):
        yield f"the record says {before.outcome}, measured again it is {after.outcome}: {after.reasons[0].sentence}"
    if exact:
        certified = {of.model_dump_json(include={"certificates", "second_certificate"}) for of in (recorded, measured)}
        if len(certified) > 1:
            yield "a judge's certificate has other scores"
        other = [(name, step) for name, step, said, found in checkpoint_digests(recorded, again) if said != found]
        if other:
            name, step = other[0]
            means = " and ".join(_mean_at(of, name, step) for of in (recorded, again))
            yield f"{len(other)} checkpoints have other scores, the first is step {step} of {name}, with means {means}"
        if len({(of.trajectory.probes, of.trajectory.lesson) if of.trajectory else None for of in (recorded, again)}) > 1:
            yield "the reward probes or the lesson have other numbers"
        return
    theirs, ours = trajectories(recorded), trajectories(again)
    if theirs.keys() != ours.keys():
        yield f"the record has {', '.join(theirs)}, measured again there are {', '.join(ours)}"
    for name in theirs.keys() & ours.keys():
        for which, of in (("first", _first_mean), ("highest", _highest_mean)):
            one, two = of(theirs[name]), of(ours[name])
            if one is None or two is None or abs(one - two) > TOLERANCE:
                yield f"the {which} mean score of {name} is {one} in the record and {two} here, more than {TOLERANCE:g} apart"


def _mean_at(evidence: Evidence, name: str, step: int) -> str:
    run = trajectories(evidence).get(name)
    means = [c.mean for c in run.checkpoints if c.step == step] if run else []
    return "none" if not means or means[0] is None else f"{means[0]:.2f}"


def _first_mean(run: Trajectory) -> float | None:
    return run.checkpoints[0].mean if run.checkpoints else None


def _highest_mean(run: Trajectory) -> float | None:
    return max((c.mean for c in run.checkpoints if c.mean is not None), default=None)
