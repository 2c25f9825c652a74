"""Whether records say of themselves what they are, and belong together. Floor 1 (pure).

``validity`` asks what evidence proves; this asks whether a record is the record of its case, and the cases of one domain are of
one run. Nothing is trusted because it is written down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rn_harness.records import CaseRecord, RunProvenance, Trajectory, WorkingTree
from rn_harness.suite import Standing
from rn_harness.validity import NO_DEFENSE, recipe_of

UNDEFENDED = ("candidate", "control")


def attack_id(run: Trajectory) -> str | None:
    """The id of the attack that a trajectory is of, by its recipe; None if that is none."""
    recipe = recipe_of(run)
    return recipe.id if recipe else None


def told_judges(judge: Mapping[str, str], reward: Mapping[str, str], second: Mapping[str, str] | None) -> str:
    """Who judges a suite, for headers and records; each by name and digest."""
    also = " (also rewards)" if reward["digest"] == judge["digest"] else f", reward {reward['name']}"
    other = f", second {second['name']}" if second else ""
    return f"{judge['name']}{also}{other}"


def incoherent(record: CaseRecord) -> list[str]:
    """What in a record contradicts the rest of it; each a part of a sentence."""
    identity, evidence = record.identity, record.evidence
    run = evidence.trajectory
    if run is None and not evidence.refused:
        return ["it has no trajectory"]
    named = (("candidate", identity.candidate), ("judge", identity.judge), ("reward's judge", identity.reward))
    unnamed = [f"its {what} has no name or digest" for what, of in named if not {"name", "digest"} <= of.keys()]
    if identity.second and not {"name", "digest"} <= identity.second.keys():
        unnamed.append("its second judge has no name or digest")
    if unnamed or identity.suite.keys() != {"domain", "digest"}:
        return unnamed or ["its suite has no domain or digest"]
    undefended = evidence.kind in UNDEFENDED
    told = record.provenance.recipes
    second = identity.second["digest"] if identity.second else None
    if run is None:  # an attack that cannot be run here, which says so
        return _unequal(
            ("kind", evidence.kind in ("control", "attack"), True),
            ("case id", record.case_id.partition("-")[0], evidence.kind),
            ("control", evidence.control is None, record.control_key is None),
            ("report", evidence.report_due, evidence.report is not None),
            ("second judge's certificate", second, evidence.second_certificate.digest if evidence.second_certificate else None),
            ("list of defended files", identity.defended_digest is None, identity.defended_files is None),
            ("defense", identity.defense, evidence.subject),
        )
    return _unequal(
        ("candidate", identity.candidate.get("digest"), run.candidate_digest),
        ("defended weights", identity.defended_digest, run.defended_digest),
        ("judge", identity.judge.get("digest"), run.judge_digest),
        ("reward's judge", identity.reward.get("digest"), run.reward_digest),
        ("second judge", second, run.second_digest),
        ("second judge's certificate", second, evidence.second_certificate.digest if evidence.second_certificate else None),
        ("case id", record.case_id, f"{evidence.kind}-{attack_id(run)}" if run.steps else evidence.kind),
        ("standing", evidence.standing, run.recipe.get("standing", "claim")),
        ("word on whether it can be run", evidence.refused, None),
        ("kind", evidence.kind in ("control", "attack"), bool(run.steps)),
        ("control", evidence.kind == "attack", evidence.control is not None),
        ("control's key", evidence.control is not None, record.control_key is not None),
        ("attack's recipe", told.get("attack", {}), run.recipe),
        ("defense's recipe", evidence.report and evidence.report.recipe, evidence.report and told.get("defense")),
        ("report", evidence.report_due, evidence.report is not None),
        ("duty to report", evidence.report_due, evidence.report_due and evidence.kind == "defense"),
        ("list of defended files", identity.defended_digest is None, identity.defended_files is None),
        ("number of training steps", run.steps, run.settings.get("max_steps", run.steps)),
        ("list of settings", sorted(run.settings), sorted((evidence.control or run).settings)),
        ("training", bool(run.steps), bool(run.prompt_ids or run.recipe or run.settings)),
        ("defense", identity.defense, evidence.subject),
        ("lack of a defense", undefended, identity.defense == NO_DEFENSE) if undefended else ("", 0, 0),
    )


def scattered(records: Sequence[CaseRecord]) -> list[str]:
    """What keeps the records of one domain from being cases of one run; each a part of a sentence.

    Args:
        records: of one domain, each of which is coherent.
    """
    found = []
    measured = [r for r in records if r.evidence.trajectory]
    runs = [_run(r) for r in measured]
    for what, values in (
        ("candidate", [r.identity.candidate for r in records]),
        ("judges", [[r.identity.judge, r.identity.reward, r.identity.second] for r in records]),
        ("suite", [(r.identity.suite, r.identity.benign) for r in records]),
        ("overrides", [r.identity.overrides for r in records]),
        ("versions", [r.identity.versions for r in records]),
        ("hardware", [r.identity.hardware for r in records]),
        ("policy", [r.evidence.policy for r in records]),
        ("exactness of the judge", [r.evidence.exact_judge for r in records]),
        ("certificates", [[r.evidence.certificates, r.evidence.second_certificate] for r in records]),
        ("number of attack cases", [r.evidence.attack_cases for r in records]),
        ("held-out prompts", [run.heldout_ids for run in runs]),
        ("benign prompts", [run.benign_ids for run in runs]),
        ("defense's recipe", [r.provenance.recipes.get("defense") for r in records if r.evidence.kind not in UNDEFENDED]),
        ("defended weights", [_defended(r) for r in records if r.evidence.kind not in UNDEFENDED]),
    ):
        if any(value != values[0] for value in values[1:]):
            of = measured if len(values) == len(measured) else records
            found.append(f"{what} of {of[_odd(values)].case_id}")
    for alike in _presented_alike(measured):
        shown = [_run(r).rendered for r in alike]
        if any(value != shown[0] for value in shown[1:]):
            found.append(f"rendering of prompts of {alike[_odd(shown)].case_id}")
    claimed = sum(r.evidence.kind == "attack" and r.evidence.standing == "claim" for r in records)
    if any(r.evidence.attack_cases != (claimed or 1) for r in records):
        found.append(f"number of attack cases, which are {claimed}")
    return found


def _presented_alike(measured: Sequence[CaseRecord]) -> list[list[CaseRecord]]:
    """The cases by how their recipes say that requests are presented."""
    by_shift: dict[str, list[CaseRecord]] = {}
    for record in measured:
        by_shift.setdefault(json.dumps(_run(record).recipe.get("shift"), sort_keys=True), []).append(record)
    return list(by_shift.values())


def run_provenance(
    records: Sequence[CaseRecord],
    *,
    tool: str,
    candidate: str,
    suites: Mapping[str, str],
    versions: Mapping[str, str],
    trees: Mapping[str, WorkingTree | None],
) -> RunProvenance:
    """Where a run comes from, by its cases.

    Args:
        records: of its cases.
        tool: version of the harness.
        candidate, suites: digests, of the suites by domain.
        versions: of the packages that decide results.
        trees: of the suites, by domain.
    """
    digests = {"candidate": candidate} | {f"suite.{domain}": digest for domain, digest in suites.items()}
    recipes: dict[str, dict[str, dict[str, Any]]] = {domain: {} for domain in suites}
    tried = []
    for record in records:
        identity, domain = record.identity, record.identity.suite["domain"]
        for role, judge in (("judge", identity.judge), ("reward", identity.reward), ("second", identity.second)):
            digests |= {f"{role}.{domain}": judge["digest"]} if judge else {}
        digests |= {f"defended.{domain}": identity.defended_digest} if identity.defended_digest else {}
        for of, recipe in record.provenance.recipes.items():
            recipes.setdefault(domain, {})[record.case_id if of == "attack" else of] = recipe
        tried += [*record.provenance.attempts, *record.provenance.training]
    return RunProvenance(
        tool=tool,
        digests=digests,
        recipes=recipes,
        seeds={domain: {of: recipe["seed"] for of, recipe in of_domain.items()} for domain, of_domain in recipes.items()},
        versions=dict(versions),
        hardware=next((r.identity.hardware for r in records), {}),
        trees=dict(trees),
        attempts=len(tried),
        device_s=round(math.fsum(t.device_s or 0.0 for t in tried), 3),
    )


def strange_controls(records: Sequence[CaseRecord]) -> list[str]:
    """The attack cases whose control is not the control case of the same attack, measured on the undefended candidate."""
    controls = {r.case_id.removeprefix("control-"): r for r in records if r.evidence.kind == "control"}
    found = []
    for record in records:
        if record.evidence.kind != "attack" or record.evidence.refused:
            continue
        control = controls.get(record.case_id.removeprefix("attack-"))
        if control is None or (control.key, control.evidence.trajectory, _standing(control)) != (
            record.control_key,
            record.evidence.control,
            _standing(record),
        ):
            found.append(record.case_id)
    return found


def _standing(record: CaseRecord) -> tuple[Standing, bool]:
    return record.evidence.standing, record.evidence.within_claim


def _run(record: CaseRecord) -> Trajectory:
    assert record.evidence.trajectory is not None
    return record.evidence.trajectory


def _defended(record: CaseRecord) -> tuple[Any, ...]:
    return record.identity.defense, record.identity.defended_digest, record.identity.defended_files


def _odd(values: Sequence[Any]) -> int:
    """The place of the value that differs from most others."""
    return min(range(len(values)), key=lambda i: sum(value == values[i] for value in values))


def _unequal(*pairs: tuple[str, Any, Any]) -> list[str]:
    return [f"its {name} is {one!r} in one place and {other!r} in another" for name, one, other in pairs if one != other]
