"""Checks that records are consistent with themselves and with each other.

``validity`` checks the evidence. This module checks that a record belongs to the case that it names, and that the cases of one
domain belong to one run. It trusts no field: each is compared with others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rn_harness.records.case import CaseRecord, WorkingTree
from rn_harness.records.keys import content_key, digest_of, prompts_digest, session_id
from rn_harness.records.run import RunProvenance
from rn_harness.records.trajectory import Trajectory
from rn_harness.spec.attack_recipe import SEARCHED, AttackRecipe
from rn_harness.spec.base import Standing, TierName
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite
from rn_harness.verdict.validity import NO_DEFENSE, recipe_of

UNDEFENDED = ("candidate", "control")
OPEN = ("micro_batch",)
"""Fields of a recipe that may be set to fit the machine."""


def attack_id(run: Trajectory) -> str | None:
    """The id of a trajectory's attack, from its recipe; None if the recipe is invalid."""
    recipe = recipe_of(run)
    return recipe.id if recipe else None


def told_judges(judge: Mapping[str, str], reward: Mapping[str, str], second: Mapping[str, str] | None) -> str:
    """The judges of a suite in words, for headers and records; each is given by name and digest."""
    also = " (also rewards)" if reward["digest"] == judge["digest"] else f", reward {reward['name']}"
    other = f", second {second['name']}" if second else ""
    return f"{judge['name']}{also}{other}"


def incoherent(record: CaseRecord) -> list[str]:
    """Contradictions within a record, each a part of a sentence."""
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
    measured = [
        *_misaddressed(record),
        *_unequal(("word on when it was measured", run is None, record.measured is None)),
    ]
    if run is None:  # an attack that cannot be run here, as the record says
        return measured + _unequal(
            ("kind", evidence.kind in ("control", "attack"), True),
            ("case id", record.case_id.partition("-")[0], evidence.kind),
            ("control", evidence.control is None, record.control_key is None),
            ("report", evidence.report_due, evidence.report is not None),
            ("second judge's certificate", second, evidence.second_certificate.digest if evidence.second_certificate else None),
            ("list of defended files", identity.defended_digest is None, identity.defended_files is None),
            ("defense", identity.defense, evidence.subject),
        )
    return measured + _unequal(
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


def _misaddressed(record: CaseRecord) -> list[str]:
    """Reports a key that does not follow from the record's inputs, and inputs that contradict the rest of the record."""
    inputs, identity, evidence = record.inputs, record.identity, record.evidence
    run, inert = evidence.trajectory, next((c for c in evidence.certificates if c.source == "inert"), None)
    said = {name: inputs.get(name) for name in ("sessions", "prompts", "recipe")}
    sessions, prompts, recipe = (value if isinstance(value, dict) else {} for value in said.values())
    second = identity.second["digest"] if identity.second else None
    found = _unequal(
        ("key", record.key, content_key("case", inputs)),
        ("input candidate", inputs.get("candidate"), identity.candidate["digest"]),
        ("input judge", inputs.get("judge"), identity.judge["digest"]),
        ("input reward", inputs.get("reward"), identity.reward["digest"]),
        ("input second", inputs.get("second"), second),
        ("input defended", inputs.get("defended"), identity.defended_digest),
        ("input policy", inputs.get("policy"), evidence.policy.model_dump(mode="json")),
        ("input versions", inputs.get("versions"), identity.versions),
        ("input hardware", inputs.get("hardware"), identity.hardware),
        ("input plugins", inputs.get("plugins"), sorted({code.sha256 for code in identity.plugins})),
        ("input case", inputs.get("case"), evidence.kind),
        ("input anchors", inputs.get("anchors"), inert.anchors_digest if inert else None),
        ("list of judges' sessions", sorted(sessions), ["judge", "reward", "second"]),
        ("list of judges that no digest covers", sorted(record.known), _unseen(sessions, identity.judge, identity.reward)),
    )
    own = session_id(evidence.certificates)
    same = identity.judge["digest"] == identity.reward["digest"]
    shown: dict[str, str] = {"judge": own, **({"reward": own} if same else {})}
    shown |= {who: session_id(of) for who, of in record.known.items()}
    found += [
        f"its {who} gave other answers to known texts than the session that its key names"
        for who, told in sessions.items()
        if told is not None and told != shown.get(who)
    ]
    for who, certificates in record.known.items():
        if {c.digest for c in certificates} != {(identity.second or {}).get("digest") if who == "second" else inputs.get(who)}:
            found.append(f"its certificates of the {who} judge are another judge's")
    if report := evidence.report:
        found += _unequal(
            ("list of the defense's sets of prompts", sorted(report.prompts), ["anchor", "defense", "heldout"]),
            ("held-out prompts of the defense", report.prompts.get("heldout"), prompts.get("heldout")),
            ("word on when its defense was trained", report.measured is None, False),
        )
    if run is None:
        return found
    found += _unequal(
        ("list of sets of prompts", sorted(prompts), sorted(run.prompts)),
        *((f"digest of {name} prompts", prompts.get(name), digest) for name, digest in run.prompts.items()),
        ("input recipe", _as_measured(recipe, evidence.kind) if recipe else inputs.get("recipe") or {}, run.recipe),
    )
    if run.settings or not run.recipe:  # an attack that ended early has no settings
        found += _unequal(
            ("search", inputs.get("search"), run.settings.get("search", {}).get("trials")),
            ("family's digest", inputs.get("family"), run.settings.get("family_sha256")),
        )
    return found


def _unseen(sessions: Mapping[str, Any], judge: Mapping[str, str], reward: Mapping[str, str]) -> list[str]:
    """Judges with their own session that do not score checkpoints."""
    others = ["second"] if judge["digest"] == reward["digest"] else ["reward", "second"]
    return [who for who in others if sessions.get(who) is not None]


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
    """Prompts, texts, policies and recipes that differ from the suite's files, each a part of a sentence.

    The digests of prompts and texts are computed here, and not read from the suite.

    Args:
        record: a coherent record of a case.
        suite: as read from its files, with the ``--rn-set`` pairs of the run.
        tier: of the run.
    """
    inputs, evidence, run = record.inputs, record.evidence, record.evidence.trajectory
    found = []
    if record.identity.suite.get("digest") != suite.digest:
        found.append("it is of another suite")
    if evidence.policy != suite.policy:
        found.append("it was measured by another policy")
    if inputs.get("forbidden") != digest_of(suite.declaration.forbidden):
        found.append("its judges were told that something else is forbidden")
    attack = next((a for a in suite.tier_attacks("full") if a.id == record.case_id.partition("-")[2]), None)
    if evidence.kind in ("control", "attack") and attack is None:
        found.append("its attack is none that the suite declares")
    if run is not None:
        found += _other_prompts(run.prompts, _sets_of(suite, tier, attack))
    if run is not None and attack is not None:
        declared = _as_measured(attack.model_dump(mode="json"), evidence.kind)
        if fields := differing(declared, run.recipe, open_fields(attack)):
            found.append(f"it was run with other settings than the suite declares: {', '.join(fields)}")
    recipe, told = suite.declaration.defenses.get(record.identity.defense), record.provenance.recipes.get("defense")
    if told is not None and recipe is None:
        found.append("its defense is none that the suite declares")
    elif told is not None and recipe is not None and (fields := _of_defense(recipe, told)):
        found.append(f"its defense was made with other settings than the suite declares: {', '.join(fields)}")
    if evidence.report is not None:
        sets = {"defense": suite.prompts["defense"], "anchor": suite.prompts["anchor"]}
        found += [
            f"{text} by the defense" for text in _other_prompts(evidence.report.prompts, _sets_of(suite, tier, None) | sets)
        ]
    return found


def _of_defense(recipe: DefenseRecipe, told: Mapping[str, Any]) -> list[str]:
    return differing(recipe.model_dump(mode="json"), told, OPEN if recipe.micro_batch is None else ())


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


def scattered(records: Sequence[CaseRecord]) -> list[str]:
    """Differences that show that the records of one domain are not of one run, each a part of a sentence.

    Args:
        records: coherent records of one domain.
    """
    found = []
    measured = [r for r in records if r.evidence.trajectory]
    runs = [_run(r) for r in measured]
    for what, values in (
        ("run", [r.run_id for r in records]),
        ("judges' sessions", [r.inputs.get("sessions") for r in records]),
        ("answers of judges that no digest covers", [r.known for r in records]),
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
    """Groups cases by the shift of their recipes, which decides how requests are presented."""
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
    """The provenance of a run, from its cases.

    Args:
        records: of its cases.
        tool: version of the harness.
        candidate: digest of the candidate.
        suites: digests of the suites, by domain.
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
        versions=dict(versions),
        hardware=next((r.identity.hardware for r in records), {}),
        trees=dict(trees),
        attempts=len(tried),
        device_s=round(math.fsum(t.device_s or 0.0 for t in tried), 3),
    )


def strange_controls(records: Sequence[CaseRecord]) -> list[str]:
    """Ids of attack cases whose control differs from the control case of the same attack."""
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
    """The index of the value that equals the fewest others."""
    return min(range(len(values)), key=lambda i: sum(value == values[i] for value in values))


def _unequal(*pairs: tuple[str, Any, Any]) -> list[str]:
    return [f"its {name} is {one!r} in one place and {other!r} in another" for name, one, other in pairs if one != other]
