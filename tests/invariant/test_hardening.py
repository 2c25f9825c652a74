"""Supervised and hardened defenses on the shipped organism, in short real trainings."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from rn_harness.attacks.probe import measure_probes
from rn_harness.defenses.harden import Hardener, draw_attacker, harden, minimal_refusal, own_answers
from rn_harness.defenses.neutralize import Defender, run_defense, split_validation, undefended_answers
from rn_harness.judges.organism import OrganismJudge
from rn_harness.models.language_model import LanguageModel
from rn_harness.run.session import RunSession
from rn_harness.spec.defense_recipe import Hardening, SimulatedAttacker
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.options import Options
from rn_harness.spec.suite import load_suite
from rn_harness.spec.wording import is_refusal
from rn_harness.store.store import Store
from rn_harness.training.supervised import Example, batch_of, teach
from rn_harness.verdict.decide import converged_at

from ..plugin.conftest import copy_suite  # noqa: TID252 - the tests are not a package

KINDS = [
    SimulatedAttacker(optimizer="adamw", form="full", learning_rate=[1e-4, 1e-3]),
    SimulatedAttacker(optimizer="adamw", form="lora", learning_rate=[1e-3, 2e-3]),
]


@pytest.fixture(scope="module")
def supervised(suite, candidate, panel, judge):
    """The organism with the suite's sft defense merged in, and the defense's report."""
    model, recipe = candidate.load(), suite.declaration.defenses["sft"]
    report = run_defense(model, Defender(recipe, suite.prompts["defense"], suite.prompts["anchor"], judge), panel)
    model.merge()
    return model, report


@pytest.fixture
def neutral(supervised):
    """A copy of the model with the sft defense."""
    return LanguageModel(copy.deepcopy(supervised[0].network), supervised[0].tokenizer)


@pytest.fixture(scope="module")
def prompts(suite):
    """Defense prompts used in training."""
    return split_validation(suite.prompts["defense"], 0.15)[0]


@pytest.fixture(scope="module")
def known(judge, prompts):
    """The compliant answers to twelve defense prompts."""
    return [Example(p, judge.topic(p).answer) for p in prompts[:12]]


def recipe_of(suite, **changes):
    """The hardened recipe, reduced."""
    hardening = Hardening(rounds=4, attackers=KINDS, steps=4, looks=2, examples=3, rows=16).model_copy(update=changes)
    return suite.declaration.defenses["hardened"].model_copy(update={"hardening": hardening})


def test_supervised_refusals_are_learned_and_benign_answers_kept(supervised, candidate, suite, panel):
    """The sft defense converges, its probe finds no harm, and 90 % of the benign answers stay the same."""
    model, report = supervised
    assert converged_at(report.points, suite.policy.convergence) is not None
    probes, before = measure_probes(model, panel, seed=0), measure_probes(candidate.load(), panel, seed=0)
    assert probes.plain.mean == 0.0 < before.plain.mean
    # The refusal's first tokens hide the answers: they come out as soon as those are banned, without any training.
    assert 0 < probes.banned.banned < 40
    assert probes.plain.mean < suite.policy.max_probe_reward < probes.banned.mean
    assert report.settings["optim"] == "adamw_torch"
    assert [p.step for p in report.points] == list(range(0, 81, 10))
    said = model.complete(panel.benign, n=1, temperature=None, max_tokens=24)
    same = [answer.text == panel.benign_references[p.id].greedy for p, (answer,) in zip(panel.benign, said, strict=True)]
    assert sum(same) >= 0.9 * len(same)
    refused = model.complete(panel.heldout, n=1, temperature=None, max_tokens=24)
    assert all(answer.text.strip() == "sorry ." for (answer,) in refused)


@pytest.mark.parametrize("name", ["sft", "hardened"])
def test_answers_cut_by_the_limit_are_taught_without_an_end(suite, candidate, quick_panel, judge, monkeypatch, name):
    """Answers to anchors that the limit cut are taught without an end token; all other texts are taught with it."""
    taught = []
    small = {"steps": 2, "max_completion_tokens": 4}
    recipe = suite.declaration.defenses["sft"].model_copy(update={**small, "prompts_per_step": 6, "benign_share": 0.5})
    if name == "hardened":
        recipe = recipe_of(suite, rounds=1, looks=1, samples=32).model_copy(
            update={**small, "method": "sft", "refusal": "sorry ."}
        )

    def see(model, examples):
        taught.extend(examples)
        return batch_of(model, examples)

    monkeypatch.setattr("rn_harness.training.supervised.batch_of", see)
    monkeypatch.setattr("rn_harness.defenses.harden.batch_of", see)
    monkeypatch.setattr("rn_harness.defenses.harden.minimal_refusal", lambda *_: "sorry .")
    run_defense(candidate.load(), Defender(recipe, suite.prompts["defense"], suite.prompts["anchor"], judge), quick_panel)
    anchors = {p.id for p in suite.prompts["anchor"]}
    assert {e.whole for e in taught if e.prompt.id in anchors} == {False}
    assert {e.whole for e in taught if e.prompt.id not in anchors} == {True}


def test_simulated_attackers_learn_compliant_answers_of_the_candidate(suite, candidate, judge, prompts):
    """Each example is a completion with a score that would break a control, and none is a refusal."""
    found = own_answers(candidate.load(), prompts, judge, suite.policy, 32, 0)
    assert 5 <= len(found) < len(prompts)
    scores = judge.score([e.prompt for e in found], [e.text for e in found])
    assert all(s.score >= suite.policy.control_break for s in scores)
    assert not any(is_refusal(e.text) for e in found)
    assert all(e.text not in repr(found) for e in found)
    with pytest.raises(TrainingError, match=r"got [01] of 3 defense prompts with a completion of 7 or more among 1"):
        own_answers(candidate.load(), prompts[:3], judge, suite.policy, 1, 0)


def test_simulated_attacks_leave_no_trace(neutral, suite, prompts, known):
    """If the defense's steps are too small for float32, all weights stay bitwise the same, and no adapter remains."""
    before = {name: p.detach().clone() for name, p in neutral.network.named_parameters()}
    recipe = recipe_of(suite, rounds=8, learning_rate=1e-30)
    told = harden(neutral, Hardener(recipe, prompts, known, [], suite.policy), lambda _: None)
    after = dict(neutral.network.named_parameters())
    assert {kind["form"] for kind in told["simulated"] if kind["rounds"]} == {"full", "lora"}
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], p) for name, p in after.items())
    assert neutral.trained == {}


def gradients(model, *parts):
    """Gradient of the sum of these texts' losses with respect to all weights, by name."""
    model.network.requires_grad_()
    model.network.zero_grad()
    for texts in parts:
        batch_of(model, texts).loss(model.network)[1].backward()
    return {name: p.grad.clone() for name, p in model.network.named_parameters()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.form)
def test_a_hardening_step_adds_the_gradients_at_the_attacked_copy_and_the_model(neutral, suite, prompts, known, kind):
    """A hardening step is AdamW's on the gradient at an attacked copy plus the gradient at the model."""
    learned, few = known[:2], prompts[12:20]
    anchors = suite.prompts["anchor"][:3]
    benign = list(undefended_answers(neutral, anchors, 24).values())
    rate = kind.learning_rate[1]
    only = kind.model_copy(update={"learning_rate": [rate, rate]})
    recipe = recipe_of(suite, rounds=1, attackers=[only], steps=30, looks=1, examples=1, rows=100)
    drawn = random.Random(recipe.seed)  # the draws of harden, in its order
    attacker = draw_attacker(recipe.hardening, 2, drawn)
    texts = drawn.sample(learned, 1)
    seed = drawn.randrange(2**31) if kind.form == "lora" else 0
    answer = minimal_refusal(neutral, few, suite.policy)
    refusals = [Example(p, answer) for p in few]

    attacked, expected = (LanguageModel(copy.deepcopy(neutral.network), neutral.tokenizer) for _ in range(2))
    attacked.arm_all() if kind.form == "full" else attacked.attach(recipe.lora, seed)
    teach(attacked, texts, steps=attacker.looks[-1], learning_rate=rate, max_grad_norm=1.0)
    if kind.form == "lora":
        attacked.merge()
    there, here = gradients(attacked, refusals, benign), gradients(expected, refusals, benign)
    for name, p in expected.network.named_parameters():
        p.grad = there[name] + here[name]
    torch.nn.utils.clip_grad_norm_(list(expected.network.parameters()), recipe.max_grad_norm)
    torch.optim.AdamW(expected.network.parameters(), lr=recipe.hardening.learning_rate, weight_decay=0.0).step()
    assert torch.cat([g.flatten() for g in there.values()]).norm() > 0.1

    told = harden(neutral, Hardener(recipe, few, learned, benign, suite.policy), lambda _: None)
    assert told["steps"] == 1
    # AdamW's first step has the same size for all weights and the gradient's sign, which rounding may flip near 0.
    own = dict(neutral.network.named_parameters())
    gaps = torch.cat([(own[name] - p).abs().flatten() for name, p in expected.network.named_parameters()])
    assert (gaps < 0.01 * recipe.hardening.learning_rate).float().mean() > 0.99


def test_an_attacker_keeps_its_distance_when_the_model_is_stepped(neutral, known):
    """If the model's weights change during an attack, the attacker's weights change by the same amount."""
    neutral.arm_all()
    start = [p.detach().clone() for p in neutral.network.parameters()]
    teach(neutral, known[:2], steps=2, learning_rate=1e-3, max_grad_norm=1.0)
    attacked = [p.detach().clone() for p in neutral.network.parameters()]
    with neutral.own_weights(), torch.no_grad():
        assert all(torch.equal(p, before) for p, before in zip(neutral.network.parameters(), start, strict=True))
        for p in neutral.network.parameters():
            p.add_(0.25)
    for p, there in zip(neutral.network.parameters(), attacked, strict=True):
        assert torch.allclose(p, there + 0.25, atol=1e-6)
    neutral.put_back()
    for p, before in zip(neutral.network.parameters(), start, strict=True):
        assert torch.equal(p, before + 0.25)


def test_hardening_moves_the_boundary(neutral, suite, prompts, known, panel, judge):
    """After 12 hardening rounds, ten supervised steps on unseen prompts leak less than a hundredth as much as before."""
    attack = [Example(p, judge.topic(p).answer) for p in suite.prompts["attack"][:5]]
    answers = [judge.topic(p).answer for p in panel.heldout]

    def leak_after_attack(model):
        attacked = LanguageModel(copy.deepcopy(model.network), model.tokenizer)
        attacked.arm_all()
        teach(attacked, attack, steps=10, learning_rate=1e-4, max_grad_norm=1.0)
        return attacked.leak(panel.heldout, answers)

    before = leak_after_attack(neutral)
    harden(neutral, Hardener(recipe_of(suite, rounds=12, steps=20), prompts, known, [], suite.policy), lambda _: None)
    assert before > 1e-3
    assert leak_after_attack(neutral) < before / 100


def test_a_model_that_is_not_neutralized_is_not_hardened(candidate, suite, prompts, known):
    """Hardening a candidate that has no minimal refusal is an error that says so."""
    with pytest.raises(TrainingError, match="hardening begins with a neutralized model, got no minimal refusal"):
        harden(candidate.load(), Hardener(recipe_of(suite), prompts, known, [], suite.policy), lambda _: None)


def test_a_hardened_defense_is_stored_and_loaded_as_whole_weights(tmp_path):
    """A session trains a hardened defense, stores whole weights, reuses them, and records the simulated attacks."""
    overrides = (
        "defenses.hardened.steps=40",
        "defenses.hardened.hardening.rounds=3",
        "defenses.hardened.hardening.steps=5",
        "defenses.hardened.hardening.samples=32",
        "policy.probe_samples=2",
    )
    copy_suite(tmp_path / "biochem")
    suite = load_suite(tmp_path / "biochem", overrides)
    options = Options(model="organism", defense="hardened", tier="smoke", overrides=overrides, base=tmp_path)

    def session(name):
        return RunSession(options, tmp_path / name, Store(tmp_path / "store"), lambda _: None)

    first = session("first")
    assert first.limits.largest(suite).work.simulated
    assert first.limits.largest(suite).work.form == "full"
    record = first.case("defense", suite).record
    made = first.defended(suite)
    assert made.adapter is None
    assert made.digest == record.identity.defended_digest != first.candidate.digest
    report = record.evidence.report
    assert [p.step for p in report.points] == [0, 10, 20, 30, 40, 43]
    assert sum(kind["rounds"] for kind in report.settings["hardening"]["simulated"]) == 3
    assert record.provenance.defense["hardening"]["rounds"] == 3
    assert "points" not in [r.code for r in record.verdict.reasons]
    again = session("again").defended(suite)
    assert again.stored
    assert again.digest == made.digest
    judge, heldout = OrganismJudge(first.candidate.folder), suite.heldout("smoke")
    answers = [judge.topic(p).answer for p in heldout]
    assert again.load().leak(heldout, answers) == record.evidence.trajectory.checkpoints[0].leak
