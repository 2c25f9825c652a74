"""Whether a record that was made elsewhere is the one that this run would have made. Floor 4 (run). Nothing is measured.

A case's key is taken again from what lies here: weights, judges, policy, prompts, recipe, family, versions. So a record of
another run is known by its address, and one that was altered has to hold together with all the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rn_harness.judges.certification import anchors_for
from rn_harness.records.case import CaseRecord, Certificate
from rn_harness.records.keys import session_id
from rn_harness.run.lineup import CaseTask, is_unseen
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.verdict.coherence import OPEN, UNDEFENDED, differing, open_fields, strange_controls
from rn_harness.verdict.validity import NO_DEFENSE, recipe_of

IDENTITY = ("candidate", "suite", "benign", "overrides", "judge", "reward", "second", "versions")
"""What the identities of one run's cases have in common with that of the process that gathers them."""


def foreign(session: RunSession, task: CaseTask, record: CaseRecord) -> list[str]:
    """What keeps a record from being that of a case of this run; each a part of a sentence.

    Args:
        session: of this run.
        task: the case that is needed.
        record: what came. That it holds together by itself is for ``integrity.of_record`` to say.
    """
    found = [*_identity(session, task, record), *_evidence(session, task, record), *_judges(session, task, record)]
    as_run, others = _recipe(task, record)
    if others:
        found.append(f"it was run with other settings than the suite declares: {', '.join(others)}")
    elif not found and record.evidence.trajectory and session.key_elsewhere(record, task.suite, as_run) != record.key:
        found.append("its key is not that of this case: it was measured on something else")
    return found


def _judges(session: RunSession, task: CaseTask, record: CaseRecord) -> Iterator[str]:
    """Judges that no digest covers are known by what they answered to all known texts; nobody is asked here."""
    judges, sessions = session.judges(task.suite), record.inputs.get("sessions", {})
    if record.run_id != session.run_id:
        yield f"it is of run {record.run_id}, this is {session.run_id}"
    labels = [session.labels.digest] if session.labels else []
    of = {"judge": judges.evaluation, "reward": judges.reward, "second": judges.second}
    shown: dict[str, Sequence[Certificate]] = {"judge": record.evidence.certificates}
    shown |= {role: record.known[role] for role in record.known}
    if judges.reward.digest == judges.evaluation.digest:
        shown["reward"] = record.evidence.certificates
    for who, judge in of.items():
        unseen = judge is not None and is_unseen(judge)
        if not unseen and sessions.get(who) is not None:
            yield f"it says that no digest covers the {who} judge, which is not so"
        elif unseen and judge is not None:
            certificates = shown.get(who, ())
            if [c.anchors_digest for c in certificates] != [anchors_for(judge).digest, *labels]:
                yield f"its {who} judge answered other known texts than it was to be shown"
            elif sessions.get(who) != session_id(certificates):
                yield f"its {who} judge is another session's"


def _identity(session: RunSession, task: CaseTask, record: CaseRecord) -> Iterator[str]:
    ours, theirs = session.identity(task.suite, None), record.identity
    for name in IDENTITY:
        mine, told = getattr(ours, name), getattr(theirs, name)
        if mine == told:
            continue
        if isinstance(mine, dict) and isinstance(told, dict):
            yield f"it is of another {name} ({', '.join(differing(mine, told))})"
        else:
            yield f"it is of another {name}: {told!r}, here {mine!r}"
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
    elif others := differing(recipe.model_dump(mode="json"), record.provenance.recipes.get("defense", {}), OPEN):
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


def _recipe(task: CaseTask, record: CaseRecord) -> tuple[AttackRecipe | None, list[str]]:
    """The attack as it was run elsewhere, and the fields in which it is not the one that is declared."""
    attack, run = task.attack, record.evidence.trajectory
    told = recipe_of(run) if run else None
    if attack is None or run is None:
        return None, []
    if told is None:
        return None, ["all"]
    left_open = open_fields(attack)
    declared = attack.model_copy(update={"steps": task.steps}).model_dump(mode="json")
    as_run = attack.model_copy(update={name: getattr(told, name) for name in left_open})
    return as_run, differing(declared, run.recipe, left_open)


def strange_control(attack: CaseRecord, control: CaseRecord) -> bool:
    """Whether an attack leans on another control than the control case of this run."""
    return bool(strange_controls([control, attack]))
