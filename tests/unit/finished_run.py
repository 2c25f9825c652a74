"""A finished run that a release can rest on, made without training: suite, defended weights, records, and the run's own files.

The records are built by hand. The controller writes everything else, as after a pytest session.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn_harness.models.identity import hash_files, root_digest
from rn_harness.records.base import CASE_KINDS, CaseKind, prompts_digest, read_record
from rn_harness.records.case import PROBED, CaseProvenance, CaseRecord, Evidence, Identity, Verdict
from rn_harness.records.certificate import Certificate
from rn_harness.records.run import RunRecord
from rn_harness.records.trajectory import DefenseReport, Measurement, Probe, Probes
from rn_harness.release import integrity
from rn_harness.run import case_board
from rn_harness.run import controller as controlling
from rn_harness.run.case_board import CaseNews
from rn_harness.run.controller import Controller
from rn_harness.run.executors import results
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.provenance import now, source_digest
from rn_harness.verdict.decide import decide

from .builders import (
    JUDGE,
    certificate,
    defense_report,
    in_forms,
    inputs_of,
    noise,
    prompt_row,
    prompts_of,
    provenance,
    restrained_attack,
    taught_by,
    trajectory,
    write_prompts,
)

if TYPE_CHECKING:
    import pytest

SUITE_YAML = """\
version: 1
domain: demo
title: Demo
forbidden: Words of a demo, which mean nothing.
defenses:
  quick: {steps: 20, learning_rate: 1e-3}
attacks:
  - tier: smoke
    base: {name: grpo, steps: 200, learning_rate: 5e-4, prompts: 2}
"""
CANDIDATE: dict[str, str | None] = {"name": "organism", "revision": None, "digest": "c" * 64}
VERSIONS = {"torch": "2.13.0", "python": "3.11.7", "rn-harness-sources": source_digest()}


def write_release_suite(folder: Path, hardening: str = "", more: str = "") -> Path:
    """A suite with one attack that is as strict as a release needs: 20 core held-out prompts, 20 benign twins.

    Args:
        folder: where the suite is written.
        hardening: hardening section of its defense, in YAML.
        more: further fields of the declaration, in YAML.
    """
    (folder / "prompts").mkdir(parents=True)
    hardened = f", hardening: {hardening}}}" if hardening else "}"
    (folder / "suite.yaml").write_text(SUITE_YAML.replace("1e-3}", f"1e-3{hardened}") + more, encoding="utf-8")
    rows = {
        "defense": ("", 3),
        "anchor": (", kind: twin", 2),
        "attack": ("", 2),
        "heldout": (", core: true", 20),
        "benign": (", kind: twin", 20),
    }
    for name, (extra, n) in rows.items():
        write_prompts(folder / "prompts" / f"{name}.yaml", [prompt_row(name, i + 1, extra) for i in range(n)])
    return folder


@dataclass
class FinishedRun:
    """A run's folder and the things it refers to.

    Attributes:
        folder: the run's folder.
        weights: folder of the defended weights.
        suite: the suite that was run.
        record: the run's record.
    """

    folder: Path
    weights: Path
    suite: Suite
    record: RunRecord


def finished_run(
    root: Path,
    level: float = 0.0,
    hardening: str = "",
    more: str = "",
    peak: float = 8.0,
    in_form: float = 0.0,
    twins: int = 20,
    steps: int = 200,
    changed: Mapping[str, Any] | None = None,
    restrained: int = 0,
    late: Callable[[Path], object] | None = None,
    certified: Certificate | None = None,
    **options: Any,
) -> FinishedRun:
    """A finished run of tier standard.

    Args:
        root: parent of all folders.
        level: score of the attacked model's completions.
        hardening: hardening section of the defense, in YAML.
        more: further lines of the suite's file.
        peak: score of the control's completions.
        in_form: score of the defended model's completions in other forms of request.
        twins: number of the suite's benign twins.
        steps: steps of the attack, as the suite declares it.
        changed: settings of the attack that differ from the suite's declaration.
        restrained: number of restrained attacks, the last of which holds, after an attack that destroyed the model; 0: it held.
        late: called with the weights' folder after the cases and before the run's end.
        certified: certificate of the judge, which then is a noisy one; None: the judge is exact.
        options: options of the run.
    """
    declared = write_release_suite(root / "demo", hardening, more)
    path = declared / "suite.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("steps: 200", f"steps: {steps}"), encoding="utf-8")
    write_prompts(declared / "prompts" / "benign.yaml", [prompt_row("benign", i + 1, ", kind: twin") for i in range(twins)])
    suite = load_suite(declared)
    weights = root / "weights"
    weights.mkdir(exist_ok=True)
    (weights / "adapter_model.safetensors").write_bytes(b"tensors")
    (weights / "adapter_config.json").write_text('{"base_model_name_or_path": "organism"}\n')
    chosen = Options(model="organism", defense="quick", tier="standard", base=root)
    folder = root / "run"
    told, unchanged = {"demo": "organism (also rewards)"}, {"read_candidate": lambda: None}
    controller = Controller(folder, dataclasses.replace(chosen, **options), [suite], CANDIDATE, told, (), **unchanged)
    controller.plugins = options.get("plugins", ())
    (recipe,) = suite.tier_attacks("standard")
    attack = recipe.model_copy(update=dict(changed or {}))
    cases = {kind: f"{kind}-{attack.id}" if kind in ("control", "attack") else kind for kind in CASE_KINDS}
    controller.begin([_nodeid(case) for case in cases.values()])
    for kind, case_id in cases.items():
        news = _news(controller, suite, attack, kind, case_id, weights, (level, peak, in_form), restrained, certified)
        controller.add(_nodeid(case_id), "setup", "passed", 0.0, "", news)
        controller.add(_nodeid(case_id), "call", "passed" if news["outcome"] == "PASS" else "failed", 0.0, "unsafe", news)
        controller.add(_nodeid(case_id), "teardown", "passed", 0.0, "", news)
    if late is not None:
        late(weights)
    return FinishedRun(folder, weights, suite, controller.finish())


def read_and_decided_once(patch: pytest.MonkeyPatch) -> None:
    """Keeps each record that was read and each verdict, for tests that read equal files again and again.

    Both are pure functions, and most of the time of such tests.
    """
    verdicts: dict[int, tuple[Evidence, Verdict]] = {}

    def decided(of: Evidence) -> Verdict:
        if id(of) not in verdicts:
            verdicts[id(of)] = of, decide(of)  # the evidence is kept, so that no other gets its id
        return verdicts[id(of)][1]

    whole = functools.cache(read_record)
    plain = functools.cache(CaseRecord.model_validate_json)

    def of_case(path: Path) -> CaseRecord | None:
        try:
            return plain(path.read_bytes())
        except (OSError, ValueError):
            return None

    patch.setattr(integrity, "read_record", whole)
    patch.setattr(case_board, "_read", of_case)
    for module in (integrity, case_board, controlling, results):
        patch.setattr(module, "decide", decided)


def _nodeid(case_id: str) -> str:
    return f"demo/test_demo.py::TestDemo::test[{case_id}]"


def _evidence(kind: CaseKind, suite: Suite, attack: AttackRecipe, digest: str, scores: tuple[float, float, float]) -> Evidence:
    level, peak, in_form = scores
    heldout = [p.id for p in suite.heldout("standard")]

    def trained(steps: int) -> dict[str, Any]:
        return {
            "recipe": {**attack.model_dump(mode="json"), "steps": steps},
            "prompt_ids": tuple(p.id for p in suite.prompts["attack"]),
            "prompts": prompts_of(suite, "standard", attacked=True),
            "settings": {"max_steps": steps, "learning_rate": attack.learning_rate},
        }

    plain: dict[str, Any] = {"recipe": {}, "prompt_ids": (), "prompts": prompts_of(suite, "standard", attacked=False)}
    policy = suite.policy
    broken = trained(attack.control_steps) | {"defended_digest": None}
    control = trajectory(attack.control_steps, lambda step: peak if step >= 30 else step / 10, heldout, policy, **broken)
    probe = Probe(mean=0.0, spread=0.0, maximum=0.0, scored=16 * len(heldout), total=16 * len(heldout))
    if kind in PROBED:
        plain["probes"] = Probes(plain=probe, banned=probe.model_copy(update={"banned": 1}))
    run = {
        "candidate": lambda: trajectory(0, heldout=heldout, policy=policy, **plain, defended_digest=None),
        "control": lambda: control,
        "defense": lambda: taught_by(
            suite, in_forms(trajectory(0, heldout=heldout, policy=policy, **plain, defended_digest=digest), policy, in_form)
        ),
        "attack": lambda: trajectory(
            attack.steps, lambda _: level, heldout, policy, **trained(attack.steps), defended_digest=digest
        ),
        "helpfulness": lambda: trajectory(0, heldout=heldout, policy=policy, **plain, defended_digest=digest),
    }[kind]()
    return Evidence(
        kind=kind,
        policy=policy,
        trajectory=run,
        control=control if kind == "attack" else None,
        report=_report(suite) if kind == "defense" else None,
        report_due=kind == "defense",
        subject="none" if kind in ("candidate", "control") else "quick",
        exact_judge=True,
        certificates=(certificate().model_copy(update={"threshold": policy.threshold}),),
    )


def _destroyed(of: Evidence, restrained: int) -> Evidence:
    """The attack ended in noise, and so did all restrained attacks but the last, which held."""
    assert of.trajectory is not None
    assert of.control is not None
    changes = [noise] * (restrained - 1) + [lambda run: run]
    attempts = (restrained_attack(n, of.trajectory, of.control, change) for n, change in enumerate(changes, 1))
    return of.model_copy(update={"trajectory": noise(of.trajectory), "restrained": tuple(attempts)})


def _report(suite: Suite) -> DefenseReport:
    """Report of a defense training, rounds of hardening included."""
    plain, recipe = defense_report(resumed=(10,)), suite.declaration.defenses["quick"]
    used = {"defense": suite.prompts["defense"], "anchor": suite.prompts["anchor"], "heldout": suite.heldout("standard")}
    plain = plain.model_copy(
        update={
            "recipe": recipe.model_dump(mode="json"),
            "prompts": {name: prompts_digest(of_set) for name, of_set in used.items()},
        }
    )
    if not recipe.hardening:
        return plain
    steps = range(0, recipe.last_step + 1, recipe.evaluate_every)
    points = tuple(plain.points[-1].model_copy(update={"step": step}) for step in steps)
    return plain.model_copy(update={"points": points})


def _provenance(of: Evidence, suite: Suite) -> CaseProvenance:
    plain, recipe = provenance(of), suite.declaration.defenses["quick"]
    return plain.model_copy(update={"defense": plain.defense and recipe.model_dump(mode="json")})


def _news(
    controller: Controller,
    suite: Suite,
    attack: AttackRecipe,
    kind: CaseKind,
    case_id: str,
    weights: Path,
    scores: tuple[float, float, float],
    restrained: int = 0,
    certified: Certificate | None = None,
) -> CaseNews:
    """Writes a case's files as a session of this run would, and reports it to the controller."""
    hashes, folder = hash_files(weights), controller.folder
    of = _evidence(kind, suite, attack, root_digest(hashes), scores)
    of = _destroyed(of, restrained) if kind == "attack" and restrained else of
    of = of.model_copy(update={"exact_judge": False, "certificates": (certified,)}) if certified else of
    measured = Measurement(run_id=controller.run_id, started=controller.started, ended=now())
    if of.report:
        of = of.model_copy(update={"report": of.report.model_copy(update={"measured": measured})})
    undefended = kind in ("candidate", "control")
    judge = {"name": "organism", "digest": JUDGE}
    identity = Identity(
        candidate=CANDIDATE,
        defense=of.subject,
        defended_digest=None if undefended else root_digest(hashes),
        defended_files=None if undefended else root_digest(hashes),
        judge=judge,
        reward=judge,
        suite={"domain": suite.domain, "digest": suite.digest},
        benign=suite.declaration.benign,
        versions=VERSIONS,
        hardware={"device": "cpu", "threads": 1},
    )
    verdict = decide(of)
    forbidden = suite.declaration.forbidden
    inputs = inputs_of(of, identity, forbidden, attack if of.trajectory and of.trajectory.recipe else None)
    record = CaseRecord(
        run_id=controller.run_id,
        measured=measured,
        inputs=inputs,
        case_id=case_id,
        identity=identity,
        provenance=_provenance(of, suite),
        evidence=of,
        verdict=verdict,
        started=controller.started,
        ended=measured.ended,
        wall_s=60.0,
    )
    into = folder / "cases" / f"demo-{case_id}-{record.key[:12]}"
    into.mkdir(parents=True)
    (into / "record.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for name, measured_run in of.journals.items():
        (into / name).write_text(measured_run.lines, encoding="utf-8")
    return {
        "case_id": case_id,
        "domain": suite.domain,
        "key": record.key,
        "outcome": verdict.outcome,
        "finding": verdict.finding,
        "stored": False,
        "folder": str(into),
        "defended": "" if undefended else str(weights),
        "weights": {} if undefended else hashes,
        "output": "",
    }
