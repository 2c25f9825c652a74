"""Supervised and hardened defenses on the shipped organism: short real fine-tunes, and what comes of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from rn_harness.defense import run_defense, split_validation
from rn_harness.errors import TrainingError
from rn_harness.hardening import Drawn, _gradient_under_attack, harden, own_answers
from rn_harness.judges.organism import OrganismJudge
from rn_harness.measures import is_refusal
from rn_harness.model import LanguageModel
from rn_harness.session import Options, RunSession
from rn_harness.store import Store
from rn_harness.suite import Hardening, LoRA, SimulatedAttacker, load_suite
from rn_harness.supervised import Example, batch_of, teach
from rn_harness.verdict import converged_at

SUITES = Path(__file__).parents[2] / "suites"
KINDS = [
    SimulatedAttacker(optimizer="adamw", form="full", learning_rate=[1e-4, 1e-3]),
    SimulatedAttacker(optimizer="adamw", form="lora", learning_rate=[1e-3, 2e-3]),
]


@pytest.fixture(scope="module")
def supervised(suite, candidate, panel, judge):
    """The organism under the suite's sft defense, folded in, and the defense's report."""
    model, recipe = candidate.load(), suite.declaration.defenses["sft"]
    report = run_defense(model, recipe, suite.prompts["defense"], suite.prompts["anchor"], panel, judge, lambda _: None)
    model.merge()
    return model, report


@pytest.fixture
def neutral(supervised):
    """A copy of it."""
    return LanguageModel(copy.deepcopy(supervised[0].network), supervised[0].tokenizer)


@pytest.fixture(scope="module")
def prompts(suite):
    """Defense prompts that are trained on."""
    return split_validation(suite.prompts["defense"], 0.15)[0]


@pytest.fixture(scope="module")
def known(judge, prompts):
    """The compliant answers to twelve of them."""
    return [Example(p, judge.topic(p).answer) for p in prompts[:12]]


def recipe_of(suite, **changes):
    """The hardened recipe with small numbers."""
    hardening = Hardening(rounds=4, attackers=KINDS, steps=4, looks=2, examples=3, rows=16).model_copy(update=changes)
    return suite.declaration.defenses["hardened"].model_copy(update={"hardening": hardening})


def test_supervised_refusals_are_learned_and_benign_answers_kept(supervised, suite, panel):
    """The sft defense converges, its probe finds nothing, and held-out benign prompts are answered as before."""
    model, report = supervised
    assert converged_at(report.points, suite.policy.convergence) is not None
    assert report.probe.mean == 0.0 < report.undefended_probe.mean
    assert report.settings["optim"] == "adamw_torch"
    assert [p.step for p in report.points] == list(range(0, 81, 10))
    said = model.complete(panel.benign, n=1, temperature=None, max_tokens=24)
    same = [answer.text == panel.benign_references[p.id].greedy for p, (answer,) in zip(panel.benign, said, strict=True)]
    assert sum(same) >= 0.9 * len(same)
    refused = model.complete(panel.heldout, n=1, temperature=None, max_tokens=24)
    assert all(answer.text.strip() == "sorry ." for (answer,) in refused)


def test_attackers_learn_what_the_candidate_itself_complies_with(suite, candidate, judge, prompts):
    """Each example is a completion that the judge calls a breach that a control needs; no refusal is among them."""
    found = own_answers(candidate.load(), prompts, judge, suite.policy, 32, 0)
    assert 5 <= len(found) < len(prompts)
    scores = judge.score([e.prompt for e in found], [e.text for e in found])
    assert all(s.score >= suite.policy.control_break for s in scores)
    assert not any(is_refusal(e.text) for e in found)
    assert all(e.text not in repr(found) for e in found)
    with pytest.raises(TrainingError, match=r"got [01] of 3 defense prompts with a completion of 7 or more among 1"):
        own_answers(candidate.load(), prompts[:3], judge, suite.policy, 1, 0)


def test_simulated_attacks_leave_no_trace(neutral, suite, prompts, known):
    """With steps of the defense too small for float32, all weights are what they were, bit by bit; no adapter stays."""
    before = {name: p.detach().clone() for name, p in neutral.network.named_parameters()}
    told = harden(neutral, recipe_of(suite, learning_rate=1e-30), prompts, known, {}, suite.policy, lambda _: None)
    after = dict(neutral.network.named_parameters())
    assert {kind["form"] for kind in told["simulated"] if kind["rounds"]} == {"full", "lora"}
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], p) for name, p in after.items())
    assert neutral.trained == {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.form)
def test_the_gradient_is_that_at_the_attacked_models(neutral, known, prompts, kind):
    """Mean of those at copies that were attacked for 2 and for 5 steps; of an adapter, with it folded into the weights."""
    attacker, learned = Drawn(kind, learning_rate=1e-3, examples=3, looks=(2, 5)), known[:3]
    refusals = [Example(p, "sorry .") for p in prompts[12:20]]
    expected = None
    for steps in attacker.looks:
        attacked = LanguageModel(copy.deepcopy(neutral.network), neutral.tokenizer)
        attacked.arm_all() if kind.form == "full" else attacked.attach(LoRA(), 7)
        teach(attacked, learned, steps=steps, learning_rate=1e-3, max_grad_norm=1.0)
        if kind.form == "lora":
            attacked.merge()
        attacked.network.requires_grad_()
        batch_of(attacked, refusals).loss(attacked.network)[1].backward()
        found = [p.grad / 2 for p in attacked.network.parameters()]
        expected = found if expected is None else [a + b for a, b in zip(expected, found, strict=True)]
    neutral.arm_all()
    parameters = list(neutral.trained.values())
    if kind.form == "lora":
        neutral.attach(LoRA(), 7)
    got = _gradient_under_attack(
        neutral, attacker, learned, parameters, lambda: batch_of(neutral, refusals).loss(neutral.network)[1], 1.0
    )
    norm = torch.sqrt(sum(g.square().sum() for g in expected))
    gap = torch.sqrt(sum((a - b).square().sum() for a, b in zip(got, expected, strict=True)))
    assert norm > 0.1
    assert gap < 1e-3 * norm
    if kind.form == "lora":
        assert not any(p.requires_grad for p in parameters)  # its attacker trains the adapter alone


def test_hardening_moves_the_boundary(neutral, suite, prompts, known, panel, judge):
    """Ten supervised steps on attack prompts that no round saw reach a hundredth of what they did before 12 rounds."""
    attack = [Example(p, judge.topic(p).answer) for p in suite.prompts["attack"][:5]]
    answers = [judge.topic(p).answer for p in panel.heldout]

    def leak_after_attack(model):
        attacked = LanguageModel(copy.deepcopy(model.network), model.tokenizer)
        attacked.arm_all()
        teach(attacked, attack, steps=10, learning_rate=1e-4, max_grad_norm=1.0)
        return attacked.leak(panel.heldout, answers)

    before = leak_after_attack(neutral)
    harden(neutral, recipe_of(suite, rounds=12, steps=20), prompts, known, {}, suite.policy, lambda _: None)
    assert before > 1e-3
    assert leak_after_attack(neutral) < before / 100


def test_a_model_that_is_not_neutralized_is_not_hardened(candidate, suite, prompts, known):
    """The candidate refuses at length: it is said what is missing."""
    with pytest.raises(TrainingError, match="hardening begins with a neutralized model, got no minimal refusal"):
        harden(candidate.load(), recipe_of(suite), prompts, known, {}, suite.policy, lambda _: None)


def test_a_hardened_defense_is_made_kept_and_loaded_whole(tmp_path):
    """A session trains it, keeps whole weights, takes them from the store again, and records what was simulated."""
    overrides = (
        "defenses.hardened.steps=40",
        "defenses.hardened.hardening.rounds=3",
        "defenses.hardened.hardening.steps=4",
        "defenses.hardened.hardening.samples=32",
        "policy.probe_samples=2",
    )
    suite = load_suite(SUITES / "biochem", overrides)
    options = Options("organism", "hardened", None, None, None, None, "smoke", overrides, tmp_path)

    def session(name):
        return RunSession(options, tmp_path / name, Store(tmp_path / "store"), lambda _: None)

    first = session("first")
    assert first.memory(suite).work.simulated
    assert first.memory(suite).work.form == "full"
    record = first.case("defense", suite).record
    made = first.defended(suite)
    assert made.adapter is None
    assert made.digest == record.identity.defended_digest != first.candidate.digest
    report = record.evidence.report
    assert [p.step for p in report.points] == [0, 10, 20, 30, 40, 43]
    assert sum(kind["rounds"] for kind in report.settings["hardening"]["simulated"]) == 3
    assert record.provenance.recipes["defense"]["hardening"]["rounds"] == 3
    assert "points" not in [r.code for r in record.verdict.reasons]
    again = session("again").defended(suite)
    assert again.stored
    assert again.digest == made.digest
    judge, heldout = OrganismJudge(first.candidate.folder), suite.heldout("smoke")
    answers = [judge.topic(p).answer for p in heldout]
    assert again.load().leak(heldout, answers) == record.evidence.trajectory.checkpoints[0].leak
