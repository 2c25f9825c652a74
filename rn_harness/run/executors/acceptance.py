"""Accepts the cases that other processes made. Nothing is measured.

A case's key is computed from this run's weights, judges, policy, prompts, recipe, family and versions. A record of another run
has another key, and an altered record contradicts itself or other records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rn_harness.judges.organism import anchors_for
from rn_harness.judges.protocol import Judge
from rn_harness.models.identity import hash_files
from rn_harness.records.base import content_key
from rn_harness.records.case import CaseRecord
from rn_harness.records.certificate import Certificate, session_id
from rn_harness.run.case import Case, CaseTask, Defended, Executor
from rn_harness.run.participants import is_opaque
from rn_harness.run.session import RunSession
from rn_harness.run.suite_run import trained_defense
from rn_harness.spec.errors import ExecutorError
from rn_harness.spec.suite import Suite
from rn_harness.verdict.coherence import UNDEFENDED, differing, open_fields, strange_controls, undeclared
from rn_harness.verdict.completeness import recipe_of
from rn_harness.verdict.validity import NO_DEFENSE

IDENTITY = ("candidate", "suite", "benign", "overrides", "judge", "reward", "second", "versions")
"""Fields of a case's identity that are equal in all processes of a run."""


@dataclasses.dataclass
class ReceivedCases(Executor):
    """An executor whose cases other processes make; a subclass fetches them and checks their records.

    Attributes:
        session: of this run.
    """

    session: RunSession
    _cases: dict[tuple[str, str], Case] = dataclasses.field(default_factory=dict, init=False)

    def _accept(self, task: CaseTask) -> Case:
        """Waits for a case, checks it, and places it in the run's folder."""
        raise NotImplementedError

    def case(self, declared: CaseTask) -> Case:
        """A case that another process made."""
        if declared.address not in self._cases:
            self._cases[declared.address] = self._accept(declared)
        return self._cases[declared.address]

    def defended(self, suite: Suite) -> Defended:
        """The defended model of a suite; if it was trained elsewhere, the one that its defense case was measured on."""
        if self.session.defense_recipe(suite) is None:
            return self.session.local.defended(suite)
        case = self.case(CaseTask("defense", suite))
        if case.defended is None or hash_files(case.defended) != dict(case.weights):
            raise ExecutorError(
                f"the defended weights of {case.domain} were made elsewhere, got none here, or others, in {case.defended}; "
                "share the store (RN_HARNESS_CACHE)"
            )
        return trained_defense(self.session, case.defended)

    def control_mismatches(self, task: CaseTask, record: CaseRecord) -> list[str]:
        """Reasons why an attack's control is not the control case of this run. A breach counts without a control."""
        if task.kind != "attack" or record.evidence.refused or record.verdict.outcome == "FAIL":
            return []
        control = self.case(CaseTask("control", task.suite, task.attack)).record
        return ["its control is not the control case of this run"] if strange_controls([control, record]) else []


def mismatches(session: RunSession, task: CaseTask, record: CaseRecord) -> list[str]:
    """Reasons why a record that is coherent in itself is not that of a case of this run; each a part of a sentence."""
    found = [*_identity(session, task, record), *undeclared(record, task.suite, session.options.tier)]
    found += [*_evidence(session, task, record), *_judges(session, task, record)]
    if not found and record.evidence.trajectory and expected_key(session, task, record) != record.key:
        found.append("its key is not that of this case: it was measured on something else")
    return found


def expected_key(session: RunSession, task: CaseTask, record: CaseRecord) -> str:
    """The key that a record of this case must have.

    The record itself gives the machine, the digest of the defended weights, the settings and trials of a search, and the
    identity of opaque judges: no judge is asked here.
    """
    attack, run, sessions = task.attack, record.evidence.trajectory, record.inputs.get("sessions", {})
    recorded = recipe_of(run) if run else None
    if attack and recorded:
        attack = attack.model_copy(update={name: getattr(recorded, name) for name in open_fields(attack)})
    trials = run.settings.get("search", {}).get("trials") if run else None
    inputs = session.attack_inputs(task.suite, sessions, record.identity.defended_digest, attack, trials)
    return content_key("case", inputs | {"case": record.evidence.kind, "hardware": dict(record.identity.hardware)})


def _judges(session: RunSession, task: CaseTask, record: CaseRecord) -> Iterator[str]:
    """Opaque judges are identified by their answers to all known texts; no judge is asked here."""
    judges, sessions = session.judges(task.suite), record.inputs.get("sessions", {})
    if record.run_id != session.run_id:
        yield f"it is of run {record.run_id}, this is {session.run_id}"
    by_role = {"judge": judges.evaluation, "reward": judges.reward, "second": judges.second}
    shown: dict[str, Sequence[Certificate]] = {"judge": record.evidence.certificates}
    shown |= {role: record.known[role] for role in record.known}
    if judges.reward.digest == judges.evaluation.digest:
        shown["reward"] = record.evidence.certificates
    for role, judge in by_role.items():
        if judge is None or not is_opaque(judge):
            if sessions.get(role) is not None:
                yield f"it says that no digest covers the {role} judge, which is not so"
            continue
        certificates = shown.get(role, ())
        if [c.anchors_digest for c in certificates] != [_anchors(session, task.suite, judge), *_labels(session)]:
            yield f"its {role} judge answered other known texts than it was to be shown"
        elif sessions.get(role) != session_id(certificates):
            yield f"its {role} judge is another session's"


def _anchors(session: RunSession, suite: Suite, judge: Judge) -> str:
    return anchors_for(judge, session.anchors(suite)).digest


def _labels(session: RunSession) -> list[str]:
    return [session.labels.digest] if session.labels else []


def _identity(session: RunSession, task: CaseTask, record: CaseRecord) -> Iterator[str]:
    ours, theirs = session.identity(task.suite, None), record.identity
    for name in IDENTITY:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine == other:
            continue
        both = isinstance(mine, dict) and isinstance(other, dict)
        where = f" ({', '.join(differing(mine, other))})" if both else f": {other!r}, here {mine!r}"
        yield f"it is of another {name}{where}"
    recipe = session.defense_recipe(task.suite)
    if task.kind in UNDEFENDED:
        if theirs.defense != NO_DEFENSE:
            yield f"it is of the defense {theirs.defense}, and its case has none"
    elif recipe is None:
        defended = session.defended(task.suite)
        if (theirs.defense, theirs.defended_digest) != (defended.name, defended.digest):
            yield f"it is of another defense than {defended.name} with the weights that lie here"
    elif theirs.defense != session.defense_name:
        yield f"it is of the defense {theirs.defense}, here {session.defense_name}"
    elif record.provenance.defense is None:
        yield "it does not say with which settings its defense was made"


def _evidence(session: RunSession, task: CaseTask, record: CaseRecord) -> list[str]:
    suite, evidence, tier = task.suite, record.evidence, session.options.tier
    judges, run, second = session.judges(suite), evidence.trajectory, evidence.second_certificate
    standing = suite.standing_of(task.case_id, recipe_of(run) if run else None)
    due = [_anchors(session, suite, judges.evaluation), *_labels(session)]
    certified = [c.anchors_digest for c in evidence.certificates] == due
    certified_second = not judges.second or (second and second.anchors_digest == _anchors(session, suite, judges.second))
    report_due = session.defense_recipe(suite) is not None if task.kind == "defense" else evidence.report_due
    heldout, benign = (tuple(p.id for p in prompts) for prompts in (suite.heldout(tier), suite.prompts["benign"]))
    checks = (
        ((evidence.kind, record.case_id) == (task.kind, task.case_id), f"it is of case {record.case_id}, a {evidence.kind}"),
        (evidence.exact_judge == judges.evaluation.exact, "it says of its judge what is not so"),
        ((evidence.standing, evidence.within_claim) == standing, "it has another standing than the suite declares"),
        (
            evidence.attack_cases == (sum(a.claim for a in suite.tier_attacks(tier)) or 1),
            f"it is of a tier with {evidence.attack_cases} attack cases that count",
        ),
        (certified, "its judge was certified on other texts"),
        (certified_second, "its second judge was certified on other texts"),
        (evidence.report_due == report_due, "it says of its defense's report what is not so"),
        (run is None or run.heldout_ids == heldout, "other held-out prompts were scored than the tier has"),
        (run is None or run.benign_ids == benign, "other benign prompts were answered than the suite has"),
    )
    return [why for holds, why in checks if not holds]
