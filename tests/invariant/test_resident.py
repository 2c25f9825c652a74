"""A model that stays loaded gives each case the same results as a fresh load."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from rn_harness.attacks.family import Attacker, load_family
from rn_harness.attacks.loop import AttackTarget, run_attack
from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.resident import ResidentModel

from ..tiny_models import FAMILIES, make_model  # noqa: TID252 - the tests are not a package

SHORT = {"steps": 12, "control_steps": 12, "learning_rate": 2e-3}


@pytest.fixture
def attacking(candidate, suite, panel, judge, recipe):
    """Runs one short attack on a given model."""

    def run(model, **changes):
        made = recipe.model_copy(update=SHORT | changes)
        family = load_family(made.family, suite.folder)
        attacker = Attacker(made, family, suite.prompts["attack"], judge, benign=suite.prompts["anchor"])
        return run_attack(AttackTarget(model, candidate.digest, None, control=False), attacker, panel)

    return run


class Loads:
    """Counts the loads of a candidate."""

    def __init__(self, candidate):
        self.candidate, self.count = candidate, 0

    def __call__(self):
        self.count += 1
        return self.candidate.load()


def plain(trajectory):
    """The measurements, without seconds."""

    def timeless(found):
        if isinstance(found, dict):
            return {key: timeless(value) for key, value in found.items() if not key.endswith(("_s", "seconds"))}
        return [timeless(each) for each in found] if isinstance(found, list) else found

    return timeless(trajectory.model_dump(mode="json"))


def test_cases_with_adapters_load_once_and_measure_as_after_a_fresh_load(candidate, attacking):
    """Three attacks on a resident model, one of them with a KL penalty, have bit by bit the results of fresh loads."""
    load, changes = Loads(candidate), ({"seed": 1}, {"seed": 2, "beta": 0.05}, {"seed": 1})
    resident = ResidentModel()
    found = [plain(attacking(resident.copy("key", load), **of)) for of in changes]
    assert load.count == 1
    assert found[0] == found[2]
    assert found[0]["checkpoints"][-1]["training"]["adapter_distance"] > 0
    assert found == [plain(attacking(candidate.load(), **of)) for of in changes]


def test_weights_that_a_case_trained_are_read_again(candidate, attacking):
    """After an attack on all weights the next case gets the files' own weights, by a second load."""
    load = Loads(candidate)
    resident = ResidentModel()
    before = {n: p.detach().clone() for n, p in resident.copy("key", load).network.named_parameters()}
    model = resident.copy("key", load)
    assert load.count == 1
    attacking(model, form="full", learning_rate=1e-3)
    assert any(not torch.equal(p, before[n]) for n, p in model.network.named_parameters())
    again = resident.copy("key", load)
    assert load.count == 2
    assert all(torch.equal(p, before[n]) for n, p in again.network.named_parameters())


def test_one_changed_bit_is_seen(candidate):
    """A single number that differs in its last bit is reason enough to read the files again."""
    load = Loads(candidate)
    resident = ResidentModel()
    weight = next(resident.copy("key", load).network.parameters())
    with torch.no_grad():
        weight.view(-1)[7] = torch.nextafter(weight.view(-1)[7], torch.tensor(9.0))
    resident.copy("key", load)
    assert load.count == 2


@pytest.mark.parametrize("way", [0, 1], ids=["rows", "columns"])
def test_numbers_that_moved_are_seen(candidate, way):
    """Weights whose rows, or columns, have other places are read again, although all their numbers are still there."""
    load = Loads(candidate)
    resident = ResidentModel()
    weight = next(resident.copy("key", load).network.parameters())
    with torch.no_grad():
        weight.copy_(weight.roll(1, way))
    resident.copy("key", load)
    assert load.count == 2


def test_gradients_of_a_training_that_was_cut_off_are_not_left(candidate):
    """A case whose training ended between a backward pass and its step leaves no gradient to the next case."""
    load = Loads(candidate)
    resident = ResidentModel()
    model = resident.copy("key", load)
    model.arm_all()
    model.network(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    again = resident.copy("key", load)
    assert load.count == 1
    assert all(p.grad is None for p in again.network.parameters())


def test_another_model_takes_the_place_of_the_first(candidate):
    """The weights before are gone when another key's are loaded, so that two models are never held."""
    resident = ResidentModel()
    first = weakref.ref(next(resident.copy("first", candidate.load).network.parameters()))

    def load():
        gc.collect()
        assert first() is None
        return candidate.load()

    resident.copy("second", load)
    assert first() is None


def test_a_case_has_its_own_modules_settings_and_tokenizer(candidate):
    """A case changes modules, configuration, generation settings or tokenizer, and the next case does not see it."""
    resident = ResidentModel()
    model = resident.copy("key", candidate.load)
    before = model.tokenizer.padding_side
    model.network.config.use_cache = not model.network.config.use_cache
    model.network.generation_config.eos_token_id = [0]
    model.tokenizer.padding_side, model.tokenizer.chat_template = "right", "none"
    model.network.lm_head = None
    again, fresh = resident.copy("key", candidate.load), candidate.load()
    assert again.network.config.to_dict() == fresh.network.config.to_dict()
    assert again.network.generation_config.to_dict() == fresh.network.generation_config.to_dict()
    assert (again.tokenizer.padding_side, again.tokenizer.chat_template) == (before, fresh.tokenizer.chat_template)
    assert again.network.lm_head is not None
    assert again.templates == fresh.templates


@pytest.mark.parametrize("tied", [False, True], ids=["two", "tied"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_copies_of_each_architecture_compute_the_same(family, tied, tmp_path):
    """Logits of a copy are bit by bit those of a fresh load, also where input and output layer are one tensor."""
    folder = make_model(tmp_path / "model", family, tied=tied)
    resident = ResidentModel()

    def load():
        return load_model(folder, Loading(threads=1))

    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        due = load().network(input_ids=ids).logits
        for _ in range(2):
            assert torch.equal(resident.copy("key", load).network(input_ids=ids).logits, due)
