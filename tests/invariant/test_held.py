"""What is not measured again is what it would have been: short real attacks, with everything measured anew and without."""

from __future__ import annotations

import pytest

from rn_harness.model import LanguageModel
from rn_harness.suite import Shift

LOW = 1e-6
"""Learning rate."""


@pytest.fixture
def anew(lab, monkeypatch):
    """Runs an attack that measures everything at each checkpoint."""

    def attack(model, **changes):
        with monkeypatch.context() as patched:
            patched.setattr(LanguageModel, "adapter_digest", lambda _: None)
            return lab.attack(model, **changes)

    return attack


@pytest.fixture
def asked(monkeypatch):
    """Counts what models are asked: greedy answers, samples, and log-probabilities; by prompts, since TRL asks otherwise."""
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
    """All of a checkpoint but what is drawn of benign answers."""
    benign = checkpoint.benign and [(a.prompt_id, a.refusal, a.kl, a.own, a.chance) for a in checkpoint.benign.answers]
    return checkpoint.model_dump(exclude={"benign"}), benign


def test_a_starved_attack_is_what_it_is_with_everything_measured_anew(lab, anew, asked):
    """No weight moves: scores, samples, leak and benign refusals agree bit by bit; all but samples is measured once."""
    one, other, panel = lab.defended(), lab.defended(), lab.panel()
    before = dict(asked)
    every = anew(one, panel=panel)
    each = dict(asked)
    held = lab.attack(other, panel=panel)
    assert [c.training.adapter_distance for c in held.checkpoints[1:]] == [0.0, 0.0]
    assert [without_samples(c) for c in held.checkpoints] == [without_samples(c) for c in every.checkpoints]
    # Held-out prompts at three checkpoints, benign ones at two.
    assert {name: each[name] - before[name] for name in asked} == {"greedy": 3 + 2, "sampled": 3 + 2, "log-probability": 3 + 2}
    assert {name: asked[name] - each[name] for name in asked} == {"greedy": 1 + 1, "sampled": 3 + 1, "log-probability": 1 + 1}


def test_weights_that_moved_are_measured_anew(lab, anew):
    """On the undefended organism, which breaks, and where steps are too small to change an answer, all is as measured anew."""
    assert anew(lab.candidate.load(), control=True) == lab.control
    small = [attack(lab.candidate.load(), control=True, learning_rate=LOW) for attack in (anew, lab.attack)]
    assert small[0] == small[1]
    leaks = {c.leak for c in small[1].checkpoints}
    assert len(leaks) == len(small[1].checkpoints)


def test_attacks_on_one_model_share_its_beginning_and_nothing_else(lab, asked):
    """The second attack is bit by bit what it is alone, with other seeds; what is drawn, and what broke, is its own."""
    alone = lab.attack(lab.candidate.load(), control=True, seed=7)
    before, start = dict(asked), {}
    first = lab.attack(lab.candidate.load(), control=True, start=start)
    second = lab.attack(lab.candidate.load(), control=True, start=start, seed=7)
    assert (first, second) == (lab.control, alone)
    assert asked["greedy"] - before["greedy"] == 2 * 5 - 2  # the second's beginning is the first's, held-out and benign
    assert asked["sampled"] - before["sampled"] == 2 * 5
    third = lab.attack(lab.candidate.load(), control=True, start=start, shift=Shift(prefill="Sure,"))
    assert third.checkpoints[0].greedy_mean > first.checkpoints[0].greedy_mean  # it is measured on other prompts


def test_without_samples_everything_is_measured_anew(lab, asked):
    """Else no checkpoint of a starved attack would run the model at all."""
    bare = lab.panel(policy=lab.policy.model_copy(update={"samples": 0}))
    model, before = lab.defended(), dict(asked)
    lab.attack(model, panel=bare)
    assert asked["greedy"] - before["greedy"] == 3 + 2
