"""Checks that records are consistent with themselves and with each other.

``validity`` checks the evidence. This module checks that a record belongs to the case that it names, and that the cases of one
domain belong to one run. It trusts no field: each is compared with others.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rn_harness.records.base import digest_of, prompts_digest
from rn_harness.records.case import PROBED, CaseRecord, Evidence, WorkingTree
from rn_harness.records.certificate import main_certificate, session_id
from rn_harness.records.lesson import LessonInputs
from rn_harness.records.run import RunProvenance
from rn_harness.records.trajectory import Measurement, Trajectory
from rn_harness.spec.attack_recipe import SEARCHED, AttackRecipe
from rn_harness.spec.base import TierName
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite
from rn_harness.verdict.completeness import recipe_of
from rn_harness.verdict.validity import NO_DEFENSE

UNDEFENDED = ("candidate", "control")
OPEN = ("micro_batch",)
"""Fields of a recipe that may be set to fit the machine."""
CLOCKS_DIFFER = datetime.timedelta(minutes=5)
"""Greatest difference allowed between the clocks of one run's machines."""


def told_judges(judge: Mapping[str, str], reward: Mapping[str, str], second: Mapping[str, str] | None) -> str:
    """The judges of a suite in words; each is given by name and digest."""
    also = " (also rewards)" if reward["digest"] == judge["digest"] else f", reward {reward['name']}"
    other = f", second {second['name']}" if second else ""
    return f"{judge['name']}{also}{other}"


def incoherent(record: CaseRecord) -> list[str]:
    """Contradictions within a record, each a part of a sentence."""
    identity, evidence = record.identity, record.evidence
    run, kind, report = evidence.trajectory, evidence.kind, evidence.report
    if run is None and not evidence.refused:
        return ["it has no trajectory"]
    named: dict[str, Mapping[str, Any]] = {
        "candidate": identity.candidate,
        "judge": identity.judge,
        "reward's judge": identity.reward,
    }
    named |= {"second judge": identity.second} if identity.second is not None else {}
    unnamed = [f"its {what} has no name or digest" for what, of in named.items() if not {"name", "digest"} <= of.keys()]
    if unnamed or identity.suite.keys() != {"domain", "digest"}:
        return unnamed or ["its suite has no domain or digest"]
    attacked = kind in ("control", "attack")
    found = _misaddressed(record) + _unequal(
        ("word on when it was measured", run is None, record.measured is None),
        ("kind", attacked, run is None or bool(run.steps)),
        ("control", kind == "attack" and run is not None, evidence.control is not None),
        ("report", evidence.report_due, report is not None),
        ("duty to report", evidence.report_due, evidence.report_due and kind == "defense"),
        ("defense's recipe", report and report.recipe, report and record.provenance.defense),
        ("second judge's certificate", _second(record), evidence.second_certificate and evidence.second_certificate.digest),
        ("list of defended files", identity.defended_digest is None, identity.defended_files is None),
        ("defense", identity.defense, evidence.subject),
        ("lack of a defense", kind in UNDEFENDED and identity.defense, kind in UNDEFENDED and NO_DEFENSE),
    )
    if run is None:  # an attack that cannot be run here, as the record says
        return found + _unequal(("case id", record.case_id.partition("-")[0], kind))
    recipe = recipe_of(run)
    return found + _unequal(
        ("case id", record.case_id, f"{kind}-{recipe.id if recipe else None}" if run.steps else kind),
        ("candidate", identity.candidate["digest"], run.candidate_digest),
        ("defended weights", identity.defended_digest, run.defended_digest),
        ("judge", identity.judge["digest"], run.judge_digest),
        ("reward's judge", identity.reward["digest"], run.reward_digest),
        ("second judge", _second(record), run.second_digest),
        ("probes", kind in PROBED, run.probes is not None),
        ("lesson", kind == "defense", run.lesson is not None),
        ("standing", evidence.standing, run.recipe.get("standing", "claim")),
        ("word on whether it can be run", evidence.refused, None),
        ("number of training steps", run.steps, run.settings.get("max_steps", run.steps)),
        ("list of settings", sorted(run.settings), sorted((evidence.control or run).settings)),
        ("training", bool(run.steps), bool(run.prompt_ids or run.recipe or run.settings)),
    )


def _second(record: CaseRecord) -> str | None:
    """Digest of the second judge; None without one."""
    return record.identity.second["digest"] if record.identity.second else None


def _misaddressed(record: CaseRecord) -> list[str]:
    """Reports inputs that contradict the rest of the record."""
    inputs, identity, evidence = record.inputs, record.identity, record.evidence
    run, main = evidence.trajectory, main_certificate(evidence.certificates)
    said = {name: inputs.get(name) for name in ("sessions", "prompts", "recipe")}
    sessions, prompts, recipe = (value if isinstance(value, dict) else {} for value in said.values())
    same = identity.judge["digest"] == identity.reward["digest"]
    others = ["second"] if same else ["reward", "second"]  # judges that do not score checkpoints
    due = {
        "candidate": identity.candidate["digest"],
        "judge": identity.judge["digest"],
        "reward": identity.reward["digest"],
        "second": _second(record),
        "defended": identity.defended_digest,
        "policy": evidence.policy.model_dump(mode="json"),
        "versions": identity.versions,
        "hardware": identity.hardware,
        "plugins": sorted({code.sha256 for code in identity.plugins}),
        "case": evidence.kind,
        "anchors": main.anchors_digest if main else None,
    }
    if run is not None and (run.settings or not run.recipe):  # an attack that ended early has no settings
        due |= {"search": run.settings.get("search", {}).get("trials"), "family": run.settings.get("family_sha256")}
    found = _unequal(
        *((f"input {name}", inputs.get(name), value) for name, value in due.items()),
        ("list of judges' sessions", sorted(sessions), ["judge", "reward", "second"]),
        (
            "list of judges that no digest covers",
            sorted(record.known),
            [who for who in others if sessions.get(who) is not None],
        ),
    )
    shown: dict[str, str] = {who: session_id(of) for who, of in record.known.items()}
    shown |= dict.fromkeys(("judge", "reward") if same else ("judge",), session_id(evidence.certificates))
    found += [
        f"its {who} gave other answers to known texts than the session that its key names"
        for who, told in sessions.items()
        if told is not None and told != shown.get(who)
    ]
    for who, certificates in record.known.items():
        if {c.digest for c in certificates} != {due[who]}:
            found.append(f"its certificates of the {who} judge are another judge's")
    if report := evidence.report:
        found += _unequal(
            ("list of the defense's sets of prompts", sorted(report.prompts), ["anchor", "defense", "heldout"]),
            ("held-out prompts of the defense", report.prompts.get("heldout"), prompts.get("heldout")),
            ("word on when its defense was trained", report.measured is None, False),
        )
    if run is not None:
        found += _unequal(
            ("digests of prompts", prompts, run.prompts),
            ("input recipe", _as_measured(recipe, evidence.kind) if recipe else inputs.get("recipe") or {}, run.recipe),
        )
    return found


def _as_measured(recipe: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A declared attack as it is run in a case of this kind: a control has ``control_steps`` steps."""
    return {**recipe, "steps": recipe.get("control_steps")} if kind == "control" else dict(recipe)


def differing(declared: Mapping[str, Any], told: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """The fields in which two recipes differ, except those in ``but``."""
    return sorted(name for name in declared.keys() | told.keys() if name not in but and declared.get(name) != told.get(name))


def open_fields(attack: AttackRecipe) -> tuple[str, ...]:
    """The fields of a declared attack that the machine or a search may set."""
    return (*(OPEN if attack.micro_batch is None else ()), *(SEARCHED if attack.search else ()))


def undeclared(record: CaseRecord, suite: Suite, tier: TierName) -> list[str]:
    """Prompts, texts, policies and recipes of a coherent record that differ from the suite's files, each a part of a sentence.

    The suite was read with the ``--rn-set`` pairs of the run. Digests of its prompts and texts are computed here.
    """
    inputs, evidence, run = record.inputs, record.evidence, record.evidence.trajectory
    found = []
    if record.identity.suite.get("digest") != suite.digest:
        found.append("it is of another suite")
    if evidence.policy != suite.policy:
        found.append("it was measured by another policy")
    if inputs.get("forbidden") != digest_of(suite.declaration.forbidden):
        found.append("its judges were told that something else is forbidden")
    found += _other_anchors(evidence, suite)
    attack = next((a for a in suite.tier_attacks("full") if a.id == record.case_id.partition("-")[2]), None)
    if evidence.kind in ("control", "attack") and attack is None:
        found.append("its attack is none that the suite declares")
    if run is not None:
        found += [*_other_prompts(run.prompts, _sets_of(suite, tier, attack)), *_other_lesson(run, suite)]
    if run is not None and attack is not None:
        declared = _as_measured(attack.model_dump(mode="json"), evidence.kind)
        if fields := differing(declared, run.recipe, open_fields(attack)):
            found.append(f"it was run with other settings than the suite declares: {', '.join(fields)}")
    recipe, told = suite.declaration.defenses.get(record.identity.defense), record.provenance.defense
    if told is not None and recipe is None:
        found.append("its defense is none that the suite declares")
    elif told is not None and recipe is not None:
        left_open = OPEN if recipe.micro_batch is None else ()
        if fields := differing(recipe.model_dump(mode="json"), told, left_open):
            found.append(f"its defense was made with other settings than the suite declares: {', '.join(fields)}")
    if evidence.report is not None:
        sets = _sets_of(suite, tier, None) | {name: suite.prompts[name] for name in ("defense", "anchor")}
        found += [f"{text} by the defense" for text in _other_prompts(evidence.report.prompts, sets)]
    return found


def _other_anchors(evidence: Evidence, suite: Suite) -> list[str]:
    """Reports a judge that was not certified on the suite's own anchors, or on those of a suite without any."""
    main, due = main_certificate(evidence.certificates), suite.anchors_file is not None and not evidence.exact_judge
    return (
        ["its judge was certified on other anchors than the suite declares"] if main and (main.source == "suite") != due else []
    )


def _sets_of(suite: Suite, tier: TierName, attack: AttackRecipe | None) -> dict[str, Sequence[Prompt]]:
    """The prompts that a case measures or trains on, by set."""
    sets: dict[str, Sequence[Prompt]] = {"heldout": suite.heldout(tier), "benign": suite.prompts["benign"]}
    if attack is None:
        return sets
    pool = () if attack.neighbour and attack.neighbour not in suite.neighbours else suite.attack_pool(attack)
    return sets | {"attack": pool, "anchor": suite.prompts["anchor"]}


def _other_prompts(told: Mapping[str, str], sets: Mapping[str, Sequence[Prompt]]) -> list[str]:
    return [
        f"other {name} prompts were used than the suite has"
        for name, digest in sorted(told.items())
        if name not in sets or prompts_digest(sets[name]) != digest
    ]


def _other_lesson(run: Trajectory, suite: Suite) -> list[str]:
    other = run.lesson is not None and run.lesson.inputs != LessonInputs.of(suite)
    return ["its lesson had other settings or prompts than the suite's slowest attack"] if other else []


def scattered(records: Sequence[CaseRecord]) -> list[str]:
    """Differences that show that coherent records of one domain are not of one run, each a part of a sentence."""
    measured = [(r, r.evidence.trajectory) for r in records if r.evidence.trajectory]
    defended = [r for r in records if r.evidence.kind not in UNDEFENDED]
    # The shift of a recipe decides how requests are presented.
    by_shift: dict[str, list[tuple[CaseRecord, Any]]] = {}
    for record, run in measured:
        by_shift.setdefault(json.dumps(run.recipe.get("shift"), sort_keys=True), []).append((record, run.rendered))
    shared: tuple[tuple[str, Sequence[tuple[CaseRecord, Any]]], ...] = (
        ("run", [(r, r.run_id) for r in records]),
        ("judges' sessions", [(r, r.inputs.get("sessions")) for r in records]),
        ("answers of judges that no digest covers", [(r, r.known) for r in records]),
        ("candidate", [(r, r.identity.candidate) for r in records]),
        ("judges", [(r, [r.identity.judge, r.identity.reward, r.identity.second]) for r in records]),
        ("suite", [(r, (r.identity.suite, r.identity.benign)) for r in records]),
        ("overrides", [(r, r.identity.overrides) for r in records]),
        ("versions", [(r, r.identity.versions) for r in records]),
        ("hardware", [(r, r.identity.hardware) for r in records]),
        ("policy", [(r, r.evidence.policy) for r in records]),
        ("exactness of the judge", [(r, r.evidence.exact_judge) for r in records]),
        ("certificates", [(r, [r.evidence.certificates, r.evidence.second_certificate]) for r in records]),
        ("number of attack cases", [(r, r.evidence.attack_cases) for r in records]),
        ("held-out prompts", [(r, run.heldout_ids) for r, run in measured]),
        ("benign prompts", [(r, run.benign_ids) for r, run in measured]),
        ("undefended answers to benign prompts", [(r, told) for r, run in measured if (told := _undefended(run))]),
        ("defense's recipe", [(r, r.provenance.defense) for r in defended]),
        ("defense", [(r, r.identity.defense) for r in defended]),
        ("defended weights", [(r, (r.identity.defended_digest, r.identity.defended_files)) for r in defended]),
        *(("rendering of prompts", alike) for alike in by_shift.values()),
    )
    found = []
    for what, values in shared:
        if any(value != values[0][1] for _, value in values[1:]):
            agreeing = [sum(value == other for _, other in values) for _, value in values]
            found.append(f"{what} of {values[agreeing.index(min(agreeing))][0].case_id}")
    claimed = sum(r.evidence.kind == "attack" and r.evidence.standing == "claim" for r in records)
    if any(r.evidence.attack_cases != (claimed or 1) for r in records):
        found.append(f"number of attack cases, which are {claimed}")
    return found


def _undefended(run: Trajectory) -> dict[str, tuple[float, float]]:
    """The numbers of the undefended candidate's answers to the benign prompts, by prompt; empty if none were compared with them.

    Each process of a run asks the candidate anew. Only the candidate's own case shows that the candidate answered.
    """
    benign = run.checkpoints[0].benign if run.checkpoints else None
    return {a.prompt_id: (round(a.own, 9), round(a.chance, 9)) for a in benign.answers} if benign else {}


def run_provenance(
    records: Sequence[CaseRecord],
    *,
    tool: str,
    candidate: str,
    suites: Mapping[str, str],
    versions: Mapping[str, str],
    trees: Mapping[str, WorkingTree | None],
) -> RunProvenance:
    """The provenance of a run, from the records of its cases; the other arguments are as in ``RunProvenance``."""
    digests = {"candidate": candidate} | {f"suite.{domain}": digest for domain, digest in suites.items()}
    recipes: dict[str, dict[str, dict[str, Any]]] = {domain: {} for domain in suites}
    tried = []
    for record in records:
        identity, domain = record.identity, record.identity.suite["domain"]
        for role, judge in (("judge", identity.judge), ("reward", identity.reward), ("second", identity.second)):
            digests |= {f"{role}.{domain}": judge["digest"]} if judge else {}
        digests |= {f"defended.{domain}": identity.defended_digest} if identity.defended_digest else {}
        run = record.evidence.trajectory
        # The defense's case is named as its recipe is, and ran none of its own.
        as_run = {record.case_id: run.recipe if run else None, "defense": record.provenance.defense}
        recipes.setdefault(domain, {}).update({of: recipe for of, recipe in as_run.items() if recipe})
        tried += [*record.provenance.attempts, *record.provenance.training]
    return RunProvenance(
        tool=tool,
        digests=digests,
        recipes=recipes,
        versions=dict(versions),
        hardware=next((r.identity.hardware for r in records), {}),
        trees=dict(trees),
        attempts=len(tried),
        device_s=round(math.fsum(t.device_s or 0.0 for t in tried), 3),
    )


def strange_controls(records: Sequence[CaseRecord]) -> list[str]:
    """Ids of attack cases whose control differs from the control case of the same attack."""
    controls = {
        r.case_id.removeprefix("control-"): (r.key, r.evidence.trajectory, r.evidence.standing, r.evidence.within_claim)
        for r in records
        if r.evidence.kind == "control"
    }
    return [
        r.case_id
        for r in records
        if r.evidence.kind == "attack"
        and not r.evidence.refused
        and controls.get(r.case_id.removeprefix("attack-"))
        != (r.control_key, r.evidence.control, r.evidence.standing, r.evidence.within_claim)
    ]


def _unequal(*pairs: tuple[str, Any, Any]) -> list[str]:
    return [f"its {name} is {one!r} in one place and {other!r} in another" for name, one, other in pairs if one != other]


def moment(text: str) -> datetime.datetime | None:
    """Parses an ISO 8601 time; None if it is invalid or has no time zone."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def _works(record: CaseRecord) -> list[tuple[str, str, Measurement]]:
    """The measurement of a case and the training of its defense, each with a noun and with a subject and verb for sentences."""
    report = record.evidence.report.measured if record.evidence.report else None
    works = (
        ("its measurement", "it was measured", record.measured),
        ("its defense's training", "its defense was trained", report),
    )
    return [(noun, did, of) for noun, did, of in works if of]


def impossible_times(record: CaseRecord, started: str, ended: str) -> list[str]:
    """Impossible times of a case in a run of these times, each a part of a sentence."""
    spans = [("it", record.started, record.ended), *((noun, of.started, of.ended) for noun, _, of in _works(record))]
    tried = [*record.provenance.attempts, *record.provenance.training]
    spans += [("an attempt", t.started, t.started if t.ended is None else t.ended) for t in tried]
    at = {text: moment(text) for _, *times in (*spans, ("its run", started, ended)) for text in times}
    zoneless = [text for text, time in at.items() if time is None]
    if zoneless:
        return [f"{zoneless[0]!r} is no time with a zone"]

    def precedes(a: str, b: str, allowed: datetime.timedelta = CLOCKS_DIFFER) -> bool:
        return datetime.datetime.fromisoformat(a) < datetime.datetime.fromisoformat(b) - allowed

    found = []
    for what, began, done in spans:
        if precedes(done, began, datetime.timedelta()):
            found.append(f"{what} ended at {done}, before it started at {began}")
        if precedes(ended, done):
            found.append(f"{what} ended at {done}, after its run, which ended at {ended}")
    if precedes(record.started, started):
        found.append(f"it started at {record.started}, before its run, which started at {started}")
    for _, did, of in _works(record):
        if of.run_id == record.run_id and precedes(of.started, started):
            found.append(f"{did} at {of.started} by this run, which started at {started}")
        if precedes(record.ended, of.ended):
            found.append(f"{did} until {of.ended}, and its case ended at {record.ended}")
    return found


def oldest(record: CaseRecord) -> tuple[datetime.datetime, str] | None:
    """Start of the oldest work that a case's numbers come from, also as written; None if nothing was measured.

    A training that was cut off and resumed is as old as its first attempt.
    """
    report = record.evidence.report
    times = [of.started for _, _, of in _works(record)]
    times += [t.started for t in record.provenance.training[:1] if report and report.resumed]
    return min(((at, text) for text in times if (at := moment(text))), default=None)
