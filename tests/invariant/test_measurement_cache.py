"""Measurements that are reused equal new ones, shown on short real attacks with and without reuse."""

from __future__ import annotations

import peft
import pytest

from rn_harness.models.language_model import UNCHANGING, LanguageModel
from rn_harness.run import measuring
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import Shift
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.options import Options
from rn_harness.store.store import Store

LOW = 1e-6
"""Learning rate that is too small to change an answer."""
FOLDING = """
import dataclasses

from rn_harness.attacks.built_in import Grpo, reinforce


class Folding(Grpo):
    def train(self, context):
        def at_step(step, window):
            for layer in context.model.network.modules():
                if hasattr(layer, "lora_A"):
                    layer.get_base_layer().weight.data += layer.get_delta_weight("default")
                    layer.lora_B["default"].weight.data.zero_()
            context.at_step(step, window)

        return reinforce(dataclasses.replace(context, at_step=at_step))
"""
"""A user's family that merges its adapter into the weights at each step and continues with an adapter of zeros."""


@pytest.fixture
def anew(lab, monkeypatch):
    """Runs an attack that measures everything again at each checkpoint."""

    def attack(model, **changes):
        with monkeypatch.context() as patched:
            patched.setattr(LanguageModel, "adapter_digest", lambda _: None)
            return lab.attack(model, **changes)

    return attack


@pytest.fixture
def asked(monkeypatch):
    """Counts greedy answers, samples and log-probabilities requested by measurements; TRL uses other calls."""
    counts = {"greedy": 0, "sampled": 0, "log-probability": 0}
    complete, log_probability = LanguageModel.complete, LanguageModel.log_probability

    def completing(model, prompts, *, temperature, **how):
        counts["greedy" if temperature is None else "sampled"] += 1
        return complete(model, prompts, temperature=temperature, **how)

    def telling(model, prompts, texts):
        counts["log-probability"] += 1
        return log_probability(model, prompts, texts)

    monkeypatch.setattr(LanguageModel, "complete", completing)
    monkeypatch.setattr(LanguageModel, "log_probability", telling)
    return counts


def without_samples(checkpoint):
    """A checkpoint without the sampled benign answers."""
    benign = checkpoint.benign and [(a.prompt_id, a.refusal, a.kl, a.own, a.chance) for a in checkpoint.benign.answers]
    return checkpoint.model_dump(exclude={"benign"}), benign


@pytest.mark.parametrize("limit", [24, 1])
def test_a_starved_attack_has_the_results_of_a_full_measurement(lab, anew, asked, limit):
    """If no weight moves, only samples are measured again, and all results equal those of a full measurement bitwise.

    This includes answers that a limit cut and that were continued.
    """
    one, other, panel = lab.defended(), lab.defended(), lab.panel(max_tokens=limit)
    before = dict(asked)
    every = anew(one, panel=panel)
    each = dict(asked)
    held = lab.attack(other, panel=panel)
    assert [c.training.adapter_distance for c in held.checkpoints[1:]] == [0.0, 0.0]
    assert [without_samples(c) for c in held.checkpoints] == [without_samples(c) for c in every.checkpoints]
    # Held-out prompts are measured at three checkpoints, benign ones at two.
    assert {name: each[name] - before[name] for name in asked} == {"greedy": 3 + 2, "sampled": 3 + 2, "log-probability": 3 + 2}
    assert {name: asked[name] - each[name] for name in asked} == {"greedy": 1 + 1, "sampled": 3 + 1, "log-probability": 1 + 1}


def test_weights_that_moved_are_measured_again(lab, anew):
    """If weights moved, even too little to change an answer, results equal those of a full measurement."""
    assert anew(lab.candidate.load(), control=True) == lab.control
    small = [attack(lab.candidate.load(), control=True, learning_rate=LOW) for attack in (anew, lab.attack)]
    assert small[0] == small[1]
    leaks = {c.leak for c in small[1].checkpoints}
    assert len(leaks) == len(small[1].checkpoints)


def test_attacks_on_one_model_share_only_its_initial_measurements(lab, asked):
    """A second attack that reuses the first one's initial measurements equals bitwise a separate run of it."""
    alone = lab.attack(lab.candidate.load(), control=True, seed=7)
    before, start = dict(asked), {}
    first = lab.attack(lab.candidate.load(), control=True, start=start)
    second = lab.attack(lab.candidate.load(), control=True, start=start, seed=7)
    assert (first, second) == (lab.control, alone)
    assert asked["greedy"] - before["greedy"] == 2 * 5 - 2  # the second attack reuses the first two, held-out and benign
    assert asked["sampled"] - before["sampled"] == 2 * 5
    third = lab.attack(lab.candidate.load(), control=True, start=start, shift=Shift(prefill="Sure,"))
    assert third.checkpoints[0].greedy_mean > first.checkpoints[0].greedy_mean  # prefilled prompts are measured separately


def test_everything_is_measured_again_for_a_users_family(lab, anew, monkeypatch):
    """A user's family may change more than its adapter, so everything is measured again at each checkpoint.

    The adapter may be of any kind and is not inspected.
    """
    (lab.folder / "folding.py").write_text(FOLDING)
    every = anew(lab.candidate.load(), control=True, family="python:folding.py:Folding")
    start = {}
    monkeypatch.delattr(LanguageModel, "adapter_digest")
    held = lab.attack(lab.candidate.load(), control=True, family="python:folding.py:Folding", start=start)
    assert held == every
    assert held.checkpoints[-1].greedy_mean > held.checkpoints[0].greedy_mean
    assert start == {}


def test_shared_measurements_print_no_answer(lab, monkeypatch):
    """Shared measurements print no completion, because ``--showlocals`` may print a session that holds them."""
    said, answer = set(), LanguageModel.answer

    def listening(model, tokens):
        completion = answer(model, tokens)
        said.add(completion.text)
        return completion

    monkeypatch.setattr(LanguageModel, "answer", listening)
    start = {}
    lab.attack(lab.candidate.load(), control=True, start=start, steps=1, control_steps=1)
    assert start
    assert len(said) > 10
    assert not [text for text in said if text.strip() and text in repr(start)]


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"target_modules": ["embed_tokens"]}], ids=str)
def test_only_a_new_plain_lora_is_known_to_change_nothing(lab, more):
    """Only a new plain LoRA adapter has the digest ``UNCHANGING``; other kinds of adapter are digested by their bits."""
    settings = {"r": 4, "target_modules": ["q_proj"], **more}
    network = peft.get_peft_model(lab.candidate.load().network, peft.LoraConfig(**settings))
    assert (LanguageModel(network, None).adapter_digest() == UNCHANGING) == (not more)


def test_members_of_a_fleet_share_nothing(lab, monkeypatch, tmp_path):
    """Fleet members share no initial measurements, because companions affect rounding; single attacks share them."""
    given = []

    def attack(target, *_):
        given.append(target.start)
        raise TrainingError("far enough")

    monkeypatch.setattr(measuring, "run_attack", attack)
    options = Options(model="organism", defense="none", tier="smoke", base=tmp_path, fleet=2)
    run = RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)
    run.run_of(lab.suite).panel = lab.panel()
    for number, changes in enumerate(({}, {"beta": 0.1}, {"beta": 0.2})):
        with pytest.raises(TrainingError, match="far enough"):
            run.case("control", lab.suite, lab.recipe.model_copy(update={"name": f"a{number}", **changes}))
    assert given[0] is None
    assert given[1] is given[2] is not None


def test_without_samples_everything_is_measured_again(lab, asked):
    """Without samples everything is measured again; otherwise a starved attack's checkpoints would never run the model."""
    bare = lab.panel(policy=lab.policy.model_copy(update={"samples": 0}))
    model, before = lab.defended(), dict(asked)
    lab.attack(model, panel=bare)
    assert asked["greedy"] - before["greedy"] == 3 + 2
