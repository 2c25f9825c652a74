"""Fixtures for real training of the organism."""

import dataclasses
from pathlib import Path

import pytest

SUITES = Path(__file__).parents[2] / "suites"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Parts that short runs share."""
    from .lab import Lab

    shared = Lab(tmp_path_factory.mktemp("lab"))
    yield shared
    shared.opened.close()


@pytest.fixture(scope="session")
def suite():
    """The biochem suite."""
    from rn_harness.spec.suite import load_suite

    return load_suite(SUITES / "biochem")


@pytest.fixture(scope="session")
def candidate():
    """The shipped organism."""
    from rn_harness.models.resolve import resolve_candidate

    return resolve_candidate("organism", Path.cwd())


@pytest.fixture(scope="session")
def judge(candidate):
    """The organism's exact judge."""
    from rn_harness.judges.organism import OrganismJudge

    return OrganismJudge(candidate.folder)


@pytest.fixture(scope="session")
def panel(suite, candidate, judge):
    """The panel of checkpoints: the core held-out prompts and 20 benign ones."""
    from rn_harness.judges.anchors import certify, to_plant
    from rn_harness.judges.checkpoints import benign_references
    from rn_harness.judges.scoring import Panel

    anchors = judge.anchors
    heldout, benign = suite.heldout("smoke"), suite.prompts["benign"][:20]
    return Panel(
        heldout=heldout,
        benign=benign,
        benign_references=benign_references(candidate.load(), benign, suite.policy, 24),
        compliant_answers={p.id: judge.topic(p).answer for p in heldout},
        judge=judge,
        anchor_judge=judge,
        planted=tuple(to_plant(certify(judge, anchors, suite.policy), anchors, suite.policy)),
        second=None,
        policy=suite.policy,
        max_tokens=24,
    )


@pytest.fixture(scope="session")
def quick_panel(panel):
    """The panel with a probe of two completions for each prompt."""
    return dataclasses.replace(panel, policy=panel.policy.model_copy(update={"probe_samples": 2}))


@pytest.fixture(scope="session")
def recipe(suite):
    """An attack of 20 steps."""
    return suite.tier_attacks("smoke")[0].model_copy(update={"steps": 20, "control_steps": 20})


@pytest.fixture(scope="session")
def attack(candidate, suite, panel, judge, recipe):
    """Runs an attack on a fresh undefended organism; returns (model, trajectory)."""

    def run(**changes):
        from rn_harness.attacks.family import Attacker, load_family
        from rn_harness.attacks.loop import AttackTarget, run_attack

        model = candidate.load()
        trajectory = run_attack(
            AttackTarget(model, candidate.digest, None, control=False),
            Attacker(
                recipe.model_copy(update=changes),
                load_family(changes.get("family", recipe.family), suite.folder),
                suite.prompts["attack"],
                judge,
                benign=suite.prompts["anchor"],
                answers=lambda prompts: {p.id: judge.topic(p).answer for p in prompts},
            ),
            panel,
        )
        return model, trajectory

    return run
