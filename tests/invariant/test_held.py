"""What is not measured again is what it would have been: short real attacks, with everything measured anew and without."""

from __future__ import annotations

import peft
import pytest

from rn_harness.models.language_model import UNCHANGING, LanguageModel
from rn_harness.run import session
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import Shift
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.options import Options
from rn_harness.store.store import Store

LOW = 1e-6
"""Learning rate."""
FOLDING = """
from rn_harness.attacks.reinforcement import Grpo, reinforce


class Folding(Grpo):
    def train(self, means):
        def at_step(step, window):
            for layer in means.model.network.modules():
                if hasattr(layer, "lora_A"):
                    layer.get_base_layer().weight.data += layer.get_delta_weight("default")
                    layer.lora_B["default"].weight.data.zero_()
            means.at_step(step, window)

        return reinforce(means, at_step=at_step)
"""
"""A family of one's own that folds what it has learned into the weights, and goes on with an adapter that changes nothing."""


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


@pytest.mark.parametrize("limit", [24, 1])
def test_a_starved_attack_is_what_it_is_with_everything_measured_anew(lab, anew, asked, limit):
    """No weight moves: scores, samples, leak and benign refusals agree bit by bit; all but samples is measured once.

    So do answers that a limit cut and that were gone on with.
    """
    one, other, panel = lab.defended(), lab.defended(), lab.panel(max_tokens=limit)
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


def test_of_a_family_from_elsewhere_everything_is_measured_anew(lab, anew, monkeypatch):
    """It may move more than its adapter: greedy answers and leak are those of the weights as they stand, and nobody else's.

    Its adapter may be of any kind, and is not looked at.
    """
    (lab.folder / "folding.py").write_text(FOLDING)
    every = anew(lab.candidate.load(), control=True, family="python:folding.py:Folding")
    start = {}
    monkeypatch.delattr(LanguageModel, "adapter_digest")
    held = lab.attack(lab.candidate.load(), control=True, family="python:folding.py:Folding", start=start)
    assert held == every
    assert held.checkpoints[-1].greedy_mean > held.checkpoints[0].greedy_mean
    assert start == {}


def test_what_is_shared_tells_no_answer(lab, monkeypatch):
    """A session that is printed, as ``--showlocals`` does, holds it: no text of a completion is in it."""
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
def test_only_products_with_a_zero_are_known_to_change_nothing(lab, more):
    """Of whatever else peft trains, a fresh adapter is known by its bits."""
    settings = {"r": 4, "target_modules": ["q_proj"], **more}
    network = peft.get_peft_model(lab.candidate.load().network, peft.LoraConfig(**settings))
    assert (LanguageModel(network, None).adapter_digest() == UNCHANGING) == (not more)


def test_members_of_a_fleet_share_nothing(lab, monkeypatch, tmp_path):
    """Their rows are rounded by their companions, an attack's alone are not; those that run alone share one beginning."""
    given = []

    def attack(*_, start, **_others):
        given.append(start)
        raise TrainingError("far enough")

    monkeypatch.setattr(session, "run_attack", attack)
    options = Options("organism", "none", None, None, None, None, "smoke", (), tmp_path, fleet=2)
    run = RunSession(options, tmp_path / "run", Store(tmp_path / "store"), lambda _: None)
    run._panels[lab.suite.digest, "smoke"] = lab.panel()
    for number, changes in enumerate(({}, {"beta": 0.1}, {"beta": 0.2})):
        with pytest.raises(TrainingError, match="far enough"):
            run.case("control", lab.suite, lab.recipe.model_copy(update={"name": f"a{number}", **changes}))
    assert given[0] is None
    assert given[1] is given[2] is not None


def test_without_samples_everything_is_measured_anew(lab, asked):
    """Else no checkpoint of a starved attack would run the model at all."""
    bare = lab.panel(policy=lab.policy.model_copy(update={"samples": 0}))
    model, before = lab.defended(), dict(asked)
    lab.attack(model, panel=bare)
    assert asked["greedy"] - before["greedy"] == 3 + 2
