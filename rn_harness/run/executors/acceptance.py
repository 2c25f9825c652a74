"""Checks that a record made elsewhere is the one that this run would have made. Nothing is measured.

The case's key is computed from this run's weights, judges, policy, prompts, recipe, family and versions. A record of another run
has another key, and an altered record contradicts itself or other records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rn_harness.judges.organism import anchors_for
from rn_harness.models.identity import hash_files
from rn_harness.records.base import content_key
from rn_harness.records.case import CaseRecord
from rn_harness.records.certificate import Certificate, session_id
from rn_harness.run.case import Case, CaseTask, Defended
from rn_harness.run.participants import is_opaque
from rn_harness.run.session import RunSession
from rn_harness.run.suite_run import trained_defense
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import ExecutorError
from rn_harness.spec.suite import Suite
from rn_harness.verdict.coherence import OPEN, UNDEFENDED, differing, open_fields, strange_controls
from rn_harness.verdict.validity import NO_DEFENSE, recipe_of

IDENTITY = ("candidate", "suite", "benign", "overrides", "judge", "reward", "second", "versions")
"""Fields of a case's identity that are equal in all processes of a run."""


def mismatches(session: RunSession, task: CaseTask, record: CaseRecord) -> list[str]:
    """Reasons why a record is not that of a case of this run; each a part of a sentence.

    Args:
        session: of this run.
        task: the case that is needed.
        record: the record that arrived. ``integrity.check_record`` checks that it is coherent in itself.
    """
    found = [*_identity(session, task, record), *_evidence(session, task, record), *_judges(session, task, record)]
    as_run, others = _attack_as_run(task, record)
    if others:
        found.append(f"it was run with other settings than the suite declares: {', '.join(others)}")
    elif not found and record.evidence.trajectory and expected_key(session, task, record, as_run) != record.key:
        found.append("its key is not that of this case: it was measured on something else")
    return found


def expected_key(session: RunSession, task: CaseTask, record: CaseRecord, attack: AttackRecipe | None) -> str:
    """The key that a record of this case must have.

    The record itself gives the machine, the digest of the defended weights, the trials of a search, and the identity of opaque
    judges: no judge is asked here.

    Args:
        session: of this run.
        task: the case.
        record: its record.
        attack: its attack as it was run.
    """
    run, sessions = record.evidence.trajectory, record.inputs.get("sessions", {})
    trials = run.settings.get("search", {}).get("trials") if run else None
    inputs = session.attack_inputs(task.suite, sessions, record.identity.defended_digest, attack, trials)
    return content_key("case", inputs | {"case": record.evidence.kind, "hardware": dict(record.identity.hardware)})


def received_defense(session: RunSession, suite: Suite, case_of: Callable[[CaseTask], Case]) -> Defended:
    """The defended model of a suite; if it was trained elsewhere, the one that its defense case was measured on.

    Raises:
        ExecutorError: its weights are not here, or differ.
    """
    if session.defense_recipe(suite) is None:
        return session.local.defended(suite)
    case = case_of(CaseTask("defense", suite))
    if case.defended is None or hash_files(case.defended) != dict(case.weights):
        raise ExecutorError(
            f"the defended weights of {case.domain} were made elsewhere, got none here, or others, in {case.defended}; "
            "share the store (RN_HARNESS_CACHE)"
        )
    return trained_defense(session, case.defended)


def _judges(session: RunSession, task: CaseTask, record: CaseRecord) -> Iterator[str]:
    """Opaque judges are identified by their answers to all known texts; no judge is asked here."""
    judges, sessions = session.judges(task.suite), record.inputs.get("sessions", {})
    if record.run_id != session.run_id:
        yield f"it is of run {record.run_id}, this is {session.run_id}"
    labels = [session.labels.digest] if session.labels else []
    by_role = {"judge": judges.evaluation, "reward": judges.reward, "second": judges.second}
    shown: dict[str, Sequence[Certificate]] = {"judge": record.evidence.certificates}
    shown |= {role: record.known[role] for role in record.known}
    if judges.reward.digest == judges.evaluation.digest:
        shown["reward"] = record.evidence.certificates
    for role, judge in by_role.items():
        opaque = judge is not None and is_opaque(judge)
        if not opaque and sessions.get(role) is not None:
            yield f"it says that no digest covers the {role} judge, which is not so"
        elif opaque and judge is not None:
            certificates = shown.get(role, ())
            if [c.anchors_digest for c in certificates] != [anchors_for(judge).digest, *labels]:
                yield f"its {role} judge answered other known texts than it was to be shown"
            elif sessions.get(role) != session_id(certificates):
                yield f"its {role} judge is another session's"


def _identity(session: RunSession, task: CaseTask, record: CaseRecord) -> Iterator[str]:
    ours, theirs = session.identity(task.suite, None), record.identity
    for name in IDENTITY:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine == other:
            continue
        if isinstance(mine, dict) and isinstance(other, dict):
            yield f"it is of another {name} ({', '.join(differing(mine, other))})"
        else:
            yield f"it is of another {name}: {other!r}, here {mine!r}"
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
    elif others := differing(recipe.model_dump(mode="json"), record.provenance.defense or {}, OPEN):
        yield f"its defense was made with other settings than the suite declares: {', '.join(others)}"


def _evidence(session: RunSession, task: CaseTask, record: CaseRecord) -> Iterator[str]:
    suite, evidence, tier = task.suite, record.evidence, session.options.tier
    judges = session.judges(suite)
    if (evidence.kind, record.case_id) != (task.kind, task.case_id):
        yield f"it is of case {record.case_id}, a {evidence.kind}"
    if evidence.policy != suite.policy:
        yield "it is of another policy"
    if evidence.exact_judge != judges.evaluation.exact:
        yield "it says of its judge what is not so"
    run = evidence.trajectory
    if (evidence.standing, evidence.within_claim) != suite.standing_of(task.case_id, recipe_of(run) if run else None):
        yield "it has another standing than the suite declares"
    if evidence.attack_cases != (sum(a.claim for a in suite.tier_attacks(tier)) or 1):
        yield f"it is of a tier with {evidence.attack_cases} attack cases that count"
    due = [anchors_for(judges.evaluation).digest, *([session.labels.digest] if session.labels else [])]
    if [c.anchors_digest for c in evidence.certificates] != due:
        yield "its judge was certified on other texts"
    second = evidence.second_certificate
    if judges.second and (second is None or second.anchors_digest != anchors_for(judges.second).digest):
        yield "its second judge was certified on other texts"
    if task.kind == "defense" and evidence.report_due != (session.defense_recipe(suite) is not None):
        yield "it says of its defense's report what is not so"
    if run and run.heldout_ids != tuple(p.id for p in suite.heldout(tier)):
        yield "other held-out prompts were scored than the tier has"
    if run and run.benign_ids != tuple(p.id for p in suite.prompts["benign"]):
        yield "other benign prompts were answered than the suite has"


def _attack_as_run(task: CaseTask, record: CaseRecord) -> tuple[AttackRecipe | None, list[str]]:
    """The attack as it was run elsewhere, and the fields that differ from the declaration."""
    attack, run = task.attack, record.evidence.trajectory
    recorded = recipe_of(run) if run else None
    if attack is None or run is None:
        return None, []
    if recorded is None:
        return None, ["all"]
    left_open = open_fields(attack)
    declared = attack.model_copy(update={"steps": task.steps}).model_dump(mode="json")
    as_run = attack.model_copy(update={name: getattr(recorded, name) for name in left_open})
    return as_run, differing(declared, run.recipe, left_open)


def control_mismatches(task: CaseTask, record: CaseRecord, case_of: Callable[[CaseTask], Case]) -> list[str]:
    """Reasons why an attack's control is not the control case of this run. A breach counts without a control."""
    if task.kind != "attack" or record.evidence.refused or record.verdict.outcome == "FAIL":
        return []
    control = case_of(CaseTask("control", task.suite, task.attack)).record
    return ["its control is not the control case of this run"] if strange_controls([control, record]) else []
