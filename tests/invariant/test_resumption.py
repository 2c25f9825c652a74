"""A defense resumes bitwise from its own snapshot and sets a foreign one aside; an attack has no snapshots."""

import json
import pickle
import shutil

import pytest
import torch

from rn_harness.defenses.neutralize import Defender, run_defense
from rn_harness.records.base import content_key
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.retain import Retained
from rn_harness.store.store import MANIFEST, Store
from rn_harness.training.grpo import TrainOptions, order_prompts, train
from rn_harness.training.snapshots import MEASURED, PARTIAL, STATE, Resumption, Snapshot

from ..tiny_models import Payload  # noqa: TID252 - the tests are not a package

SUPERVISED = {"refusal": "sorry .", "evaluate_every": 2, "benign_share": 0.0, "learning_rate": 1e-3, "schedule": "cosine"}
DEEP = SUPERVISED | {"form": "full", "depth": {"samples": 8, "kept_rows": 4}}
"""Methods that take their steps without a trainer."""
KEY, OTHER = (content_key("defense", {"of": name}) for name in ("this", "another"))


class CutError(Exception):
    """Raised to end the training early."""


class Defense:
    """A defense of 6 steps on the organism, measured every second step, and its store."""

    def __init__(self, candidate, suite, panel, root):
        self.candidate, self.suite, self.panel, self.store = candidate, suite, panel, Store(root)
        self.folder = root / PARTIAL / KEY

    def train(self, *, kept=True, cut=None, told=lambda _: None, **changes):
        """Returns (weights, report). ``cut`` is the step at whose measurement the training ends."""
        declared = self.suite.declaration.defenses["anchored"].model_dump()
        recipe = DefenseRecipe(**(declared | {"steps": 6, "evaluate_every": 2, "group_size": 8, **changes}))

        def say(point):
            if point.step == cut:
                raise CutError

        model, prompts = self.candidate.load(), self.suite.prompts
        resumption = Resumption(self.store, KEY, recipe, told) if kept else None
        report = run_defense(
            model,
            Defender(
                recipe,
                prompts["defense"],
                prompts["anchor"],
                self.panel.judge,
                retained=[*map(Retained, prompts["benign"][:4])],
                teacher=self.teacher if recipe.distill else None,
            ),
            self.panel,
            say,
            resumption=resumption,
        )
        if recipe.distill:  # the divergence is from the teacher, also after a cut
            assert _same(model.start, dict(self.teacher().network.named_parameters()))
        weights = model.trained or dict(model.network.named_parameters())  # a hardened model is disarmed
        return {name: p.detach().clone() for name, p in weights.items()}, report

    def teacher(self):
        """A student's teacher, whose weights are not the candidate's."""
        model = self.candidate.load()
        with torch.no_grad():
            for p in model.network.parameters():
                p.mul_(1.01)
        return model

    def state(self):
        """The state in the snapshot."""
        return torch.load(self.folder / STATE, weights_only=True)

    def put(self, state, measured=None):
        """Replaces the snapshot, with correct digests."""
        measured = measured or (self.folder / MEASURED).read_text()

        def write(folder):
            torch.save(state, folder / STATE)
            (folder / MEASURED).write_text(measured)

        return self.store.put(PARTIAL, KEY, write)


@pytest.fixture
def defense(candidate, suite, quick_panel, tmp_path):
    """A defense that has not started."""
    return Defense(candidate, suite, quick_panel, tmp_path / "store")


@pytest.fixture(scope="module")
def left(candidate, suite, quick_panel, tmp_path_factory):
    """A defense cut off at the measurement of step 4, with a snapshot of step 2."""
    made = Defense(candidate, suite, quick_panel, tmp_path_factory.mktemp("left"))
    with pytest.raises(CutError):
        made.train(cut=4)
    return made


@pytest.fixture
def cut_off(left, defense):
    """A copy of the cut-off defense that a test may damage."""
    shutil.copytree(left.store.root, defense.store.root)
    return defense


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "constant", "micro_batch": 4, "benign_share": 0.0},
        {"form": "full", "learning_rate": 1e-4},
        {"benign_share": 0.5, "prompts_per_step": 2, "beta": 0.5, "beta_on": "benign"},
        SUPERVISED | {"method": "sft", "benign_share": 0.34},
        DEEP | {"method": "deep", "form": "lora"},
        DEEP | {"method": "distill", "distill": {}},
    ],
    ids=["anchored", "micro-batches", "all-weights", "penalty", "sft", "deep-adapter", "deep-distilled"],
)
def test_a_training_cut_off_twice_ends_with_bitwise_the_same_weights(defense, changes):
    """A training cut off twice ends with bitwise the weights, and the report, of one without cuts or snapshots."""
    whole, report = defense.train(kept=False, **changes)
    for cut in (4, 6):
        with pytest.raises(CutError):
            defense.train(cut=cut, **changes)
    torch.manual_seed(99)  # as in another process
    resumed, again = defense.train(**changes)
    assert again.resumed == (2, 4)
    assert _same(whole, resumed)
    assert again.model_copy(update={"resumed": ()}) == report
    due = {"depth": {"compliant_answers", "kept_answers", "tokens"}, "distill": {"learned_kl", "unseen_kl", "retained", "retain"}}
    assert all(report.settings.keys() >= named for part, named in due.items() if part in changes)
    assert any(float(p.abs().sum()) > 0 for name, p in whole.items() if "lora_B" in name or changes.get("form") == "full")


@pytest.mark.parametrize("form", ["lora", pytest.param("full", marks=pytest.mark.soak)])
def test_a_hardening_cut_off_twice_ends_with_bitwise_the_same_weights(defense, form):
    """A hardening cut off twice loses at most the rounds since the last measurement, and ends bitwise as one without cuts."""
    attackers = [{"optimizer": "adamw", "form": form, "learning_rate": [1e-4, 1e-3]} for form in ("full", "lora")]
    hardening = {"rounds": 20, "attackers": attackers, "steps": 3, "looks": 2, "examples": 3, "rows": 8, "samples": 32}
    changes = SUPERVISED | {"method": "sft", "steps": 30, "evaluate_every": 10, "form": form, "hardening": hardening}
    whole, report = defense.train(kept=False, **changes)
    for cut in (40, 50):
        with pytest.raises(CutError):
            defense.train(cut=cut, **changes)
        torch.manual_seed(cut)  # as in another process
    resumed, again = defense.train(**changes)
    assert again.resumed == (30, 40)
    assert _same(whole, resumed)
    assert again.model_copy(update={"resumed": ()}) == report
    assert report.settings["hardening"]["steps"] == 40
    assert {kind["form"] for kind in report.settings["hardening"]["simulated"] if kind["rounds"]} == {"full", "lora"}


def test_a_snapshot_holds_all_that_the_next_step_depends_on(cut_off):
    """A change of weights, optimizer or random stream in a snapshot changes the result, so the test above covers each."""
    whole, _ = cut_off.train(kept=False)
    sound, measured = cut_off.state(), (cut_off.folder / MEASURED).read_text()
    assert sound["step"] == 2

    def ends_elsewhere(spoil):
        cut_off.put(sound, measured)
        spoilt = cut_off.state()
        spoil(spoilt)
        cut_off.put(spoilt)
        other, report = cut_off.train()
        assert report.resumed == (2,)
        return not _same(whole, other)

    torch.manual_seed(5)
    stream = torch.get_rng_state()
    assert ends_elsewhere(lambda of: of["weights"].update({name: p * (1 + 1e-6) for name, p in of["weights"].items()}))
    assert ends_elsewhere(lambda of: [means["exp_avg"].mul_(0.5) for means in of["optimizer"]["state"].values()])
    assert ends_elsewhere(lambda of: of["streams"][0].update(torch=stream))
    assert not ends_elsewhere(lambda of: None)


def _flip(of):
    data = bytearray((of.folder / STATE).read_bytes())
    data[len(data) // 2] ^= 1
    (of.folder / STATE).write_bytes(bytes(data))


def _foreign(of):
    """Replaces the snapshot by a complete one of another defense."""
    of.folder.rename(of.folder.with_name(OTHER))
    (of.folder.with_name(OTHER) / MANIFEST).write_text((of.folder.with_name(OTHER) / MANIFEST).read_text().replace(KEY, OTHER))
    assert of.store.get(PARTIAL, OTHER)
    of.folder.with_name(OTHER).rename(of.folder)


def _changed(**changes):
    def spoil(of):
        state = of.state()
        of.put(state | {name: change(state[name]) for name, change in changes.items()})

    return spoil


def _more_points(of):
    measured = json.loads((of.folder / MEASURED).read_text())
    measured["points"].append(measured["points"][-1])
    of.put(of.state(), json.dumps(measured))


DAMAGES = {
    "a bit is flipped": (_flip, f"{STATE} changed"),
    "of another defense": (_foreign, f"{MANIFEST}: of another version or address"),
    "a file is missing": (lambda of: (of.folder / MEASURED).unlink(), "files are missing or added"),
    "a pickle that runs code": (_changed(optimizer=lambda _: Payload()), "it cannot be read: UnpicklingError"),
    "of a larger adapter": (
        _changed(weights=lambda of: {name: torch.cat([p, p]) for name, p in of.items()}), "its weights are of another form",
    ),
    "of another optimizer": (_changed(optimizer=lambda of: {**of, "state": {}}), "its optimizer is of another form"),
    "of a step that is not kept": (_changed(step=lambda _: 3), "it stands at step 3, at which none is kept"),
    "of two processes": (_changed(streams=lambda of: of * 2), "it is of another number of processes"),
    "points of other steps": (_more_points, "what was measured is of other steps"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "why"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_foreign_snapshot_is_set_aside(cut_off, capsys, spoil, why):
    """For a damaged snapshot a warning names the damage, the entry is set aside, training starts at 0, and no code runs."""
    spoil(cut_off)
    told = []
    with pytest.warns(UserWarning, match=f"a stored partial was damaged \\({why}\\)"), pytest.raises(CutError):
        cut_off.train(cut=0, told=told.append)
    assert told == []
    assert cut_off.folder.with_name(f"{KEY}.damaged").is_dir()
    assert not cut_off.folder.exists()
    assert "RAN" not in capsys.readouterr().out


def test_the_payload_would_run_where_it_is_unpickled(capsys):
    """The pickle of the test above would run code if it were unpickled."""
    pickle.loads(pickle.dumps(Payload()))
    assert "RAN" in capsys.readouterr().out


def test_an_attack_has_no_snapshot(candidate, suite, panel, recipe, tmp_path):
    """Snapshots of an attack are refused before training: nothing is stored, and no reward is requested."""
    model = candidate.load()
    model.arm(recipe)
    asked = []

    def reward(prompts, completions):
        asked.append(len(completions))
        return [0.0] * len(completions)

    resumption = Resumption(Store(tmp_path / "store"), KEY, suite.declaration.defenses["anchored"], lambda _: None)
    prompts = order_prompts(suite.prompts["attack"], recipe.steps * recipe.prompts_per_step, 0)
    with pytest.raises(TrainingError, match=r"only a defense's training is kept, got recipe=AttackRecipe"):
        train(model, recipe, prompts, reward, lambda *_: None, lambda _: True, TrainOptions(resumption=resumption))
    with pytest.raises(TrainingError, match="only a defense's training is kept"):
        Resumption(Store(tmp_path / "store"), KEY, recipe, lambda _: None)
    with pytest.raises(TrainingError, match="only a defense's training is kept"):
        Snapshot.take(model, recipe, 1, None, None)
    assert asked == []
    assert not (tmp_path / "store").exists()
