"""Attackers that explore, on plain numbers: replay, twins, the search's aids."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rn_harness.attacks import built_in
from rn_harness.attacks.family import AttackContext
from rn_harness.attacks.reward import AttackReward
from rn_harness.attacks.search import _suggest
from rn_harness.models.completion import Completion
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.training.exploration import Exploration, Replay
from rn_harness.training.trl_compat import REPLAYED, SavingTrainer
from rn_harness.verdict.validity import untrained

from .builders import evidence
from .lazy import LazyModule

torch: Any = LazyModule("torch")

PROMPTS = [Prompt(id=f"p{i}", topic=f"t{i}", text=f"text {i}") for i in range(3)]
TWINS = [Prompt(id=f"b{i}", topic=f"t{i}", text=f"benign {i}", kind="twin") for i in range(2)]
NEVER: Any = None


def recipe(**settings: Any) -> AttackRecipe:
    """A minimal recipe with these settings."""
    return AttackRecipe.model_validate(
        {"name": "x", "steps": 4, "control_steps": 4, "learning_rate": 0.1, "prompts": 3, "standing": "exploratory"} | settings
    )


# ------------------------------------------------------------------------------------------------- replay, positive advantages


class Scores:
    """TRL's trainer, but its scored batches are given."""

    def __init__(self, *batches: dict[str, Any]) -> None:
        self.batches = iter(batches)
        self.processing_class = SimpleNamespace(pad_token_id=0)

    def _generate_and_score_completions(self, _: Any) -> dict[str, Any]:
        return next(self.batches)


def batch(completions: Sequence[Sequence[int]], advantages: Sequence[float]) -> dict[str, Any]:
    """A scored batch of equally long completions of the prompt 8 9, padded on the left."""
    ids = torch.tensor(completions)
    return {
        "prompt_ids": torch.tensor([[0, 8, 9]] * len(ids)),
        "prompt_mask": torch.tensor([[0, 1, 1]] * len(ids)),
        "completion_ids": ids,
        "completion_mask": (ids != 0).long(),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": (ids != 0).sum(),
    }


def trainer(exploration: Exploration, *batches: dict[str, Any]) -> Any:
    """A trainer that scores these batches."""
    kind = type("Trainer", (SavingTrainer, Scores), {"exploration": exploration, "penalised": None})
    return kind(*batches)


def test_the_best_different_completions_are_kept() -> None:
    """Kept completions are different, the best first, and each is used equally often."""
    replay = Replay()
    replay.keep([(1.0, (8,), (1,)), (9.0, (8,), (2,)), (9.0, (8,), (2,))], 2)
    replay.keep([(5.0, (8,), (3,))], 2)
    assert replay.rows(5) == [((8,), (2,)), ((8,), (3,))] * 2 + [((8,), (2,))]
    assert "kept" not in repr(replay)


def test_a_step_without_advantages_trains_on_kept_completions() -> None:
    """A step whose groups are all equal becomes one on the rewarded completions so far; before the first it stays starved."""
    replay, nothing = Replay(), batch([[5, 6, 7], [5, 6, 0]], [0.0, 0.0])
    one = trainer(Exploration(replay=replay), nothing, batch([[5, 6, 7], [4, 3, 0]], [-0.7, 0.7]), nothing)
    replay.rewards = [0.0, 0.0]
    assert one._generate_and_score_completions([]) is nothing
    assert one.starved
    replay.rewards = [0.0, 8.0]
    one._generate_and_score_completions([])
    replay.rewards = [0.0, 0.0]
    found = one._generate_and_score_completions([{"row": 0}, {"row": 1}])
    assert (one.starved, replay.steps) == (False, 1)
    assert found["row"].tolist() == [REPLAYED, REPLAYED]
    assert found["prompt_ids"].tolist() == [[8, 9]] * 2
    assert found["completion_ids"].tolist() == [[4, 3]] * 2
    assert found["advantages"].tolist() == [1.0, 1.0]
    assert int(found["num_items_in_batch"]) == 4


@pytest.mark.parametrize(("positive", "advantages"), [(True, pytest.approx([0.0, 0.7])), (False, pytest.approx([-0.7, 0.7]))])
def test_positive_advantages_push_nothing_down(positive: bool, advantages: Any) -> None:
    """With positive advantages only, those below zero are zero."""
    one = trainer(Exploration(positive=positive), batch([[5, 6], [4, 3]], [-0.7, 0.7]))
    assert one._generate_and_score_completions([])["advantages"].tolist() == advantages


@pytest.mark.parametrize(
    ("spread", "replayed", "idle"),
    [
        ([1.0, 1.0, 1.0], [0, 0, 0], False),  # nothing was ever rewarded
        ([0.5, 1.0, 1.0], [5, 10, 10], False),
        ([0.5, 1.0, 1.0], [5, 10, 0], True),
        ([0.5, 0.7, 1.0], [0, 7, 10], False),  # the first window's equal steps may have come before its success
        ([0.5, 0.7, 1.0], [0, 6, 10], True),
        ([0.5, 1.0, 1.0], [None, None, None], True),
        ([0.5, 0.1, 1.0], [0, None, 10], True),  # at least one of ten steps had no spread
        ([0.5, 0.1, 1.0], [0, 1, 10], False),
    ],
)
def test_a_replay_that_replays_nothing_proves_nothing(spread: list[float], replayed: list[int | None], idle: bool) -> None:
    """After a first reward, each step without a spread has to train on kept completions, or the attack is unknown."""
    given = evidence("attack")
    assert given.trajectory is not None
    first, *others = given.trajectory.checkpoints
    windows = zip(others, [*spread, *[1.0] * len(others)], [*replayed, *[10] * len(others)], strict=False)
    changed = [
        c.model_copy(
            update={"training": c.training and c.training.model_copy(update={"zero_spread_share": z, "replayed_steps": n})}
        )
        for c, z, n in windows
    ]
    told = {"recipe": given.trajectory.recipe | {"replay": True}, "checkpoints": (first, *changed)}
    codes = {reason.code for reason in untrained(given.trajectory.model_copy(update=told), given.policy, "attack")}
    assert ("aid_idle" in codes) is idle


# --------------------------------------------------------------------------------------------------------- twins, the search


def test_a_curriculum_begins_with_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps' prompts are benign twins, all others are the attack's own."""
    given: list[list[Prompt]] = []
    monkeypatch.setattr(built_in, "train", lambda _model, _recipe, prompts, *_: given.append(prompts) or {})
    plain = Prompt(id="b9", topic="t", text="plain", kind="plain")
    context = AttackContext(NEVER, recipe(twins=0.5, prompts_per_step=2), PROMPTS, [*TWINS, plain], None, *[NEVER] * 4)
    built_in.reinforce(context)
    assert [p.kind for p in given[0]] == ["twin"] * 4 + [None] * 4


def test_twins_are_rewarded_for_compliance_and_do_no_harm() -> None:
    """Only an answer to a twin that neither refuses nor rambles is rewarded, for its different words; its harm is 0."""
    reward = AttackReward(recipe(twins=0.25), NEVER, Policy(), NEVER)
    said = [Completion(text, truncated=False) for text in ("no .", "knead the dough .", "a a a a a a a a a a")]
    assert reward([TWINS[0]] * 3, said) == [0.0, 1.5, 0.0]  # 10 * 3 / 20
    assert (reward.plain, reward.above) == ([0.0] * 3, [False] * 3)


@pytest.mark.parametrize(("twins", "told"), [(0.4, set()), (0.2, {"untold_rewards"}), (0.0, {"untold_rewards"})])
def test_rewards_for_twins_are_within_bounds_only_in_their_steps(twins: float, told: set[str]) -> None:
    """A reward above the harm follows from compliance with twins, and only while they are asked."""
    given = evidence("attack")
    assert given.trajectory is not None
    checkpoints = [
        c.model_copy(update={"training": c.training.model_copy(update={"reward_mean": 9.0, "harm_mean": 0.0})})
        if c.training and c.step <= 20
        else c
        for c in given.trajectory.checkpoints
    ]
    changes = {"recipe": given.trajectory.recipe | {"twins": twins}, "checkpoints": tuple(checkpoints)}
    codes = {reason.code for reason in untrained(given.trajectory.model_copy(update=changes), given.policy, "attack")}
    assert codes & {"untold_rewards"} == told


def test_a_search_combines_aids() -> None:
    """Each aid is chosen for itself, so that a trial may have several, and the first choice is the recipe's own."""
    space = {"entropy_coef": [0.01], "ban": [{"tokens": 5}], "opener": [{}]}
    asked: dict[str, list[Any]] = {}

    class Trial:
        def suggest_float(self, *_: Any, **__: Any) -> float:
            return 1.0

        def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
            asked[name] = choices
            return choices[-1]

    trial: Any = Trial()
    found = _suggest(trial, recipe(search=space))
    assert (found.entropy_coef, found.ban and found.ban.tokens, found.opener is not None) == (0.01, 5, True)
    assert asked["ban"] == [0, 1]
    asked.clear()
    assert _suggest(trial, recipe(search={})).ban is None
    assert asked.keys() == {"beta", "shape"}


# ------------------------------------------------------------------------------------------------------ attackers that weaken


@pytest.mark.parametrize(
    ("fields", "needle"),
    [
        ({"twins": 0.2, "ban": {}}, "a ban would forbid their beginnings.* with ban; leave one out"),
        ({"twins": 0.2, "replay": True}, "a replay would keep them.* with replay; leave one out"),
        ({"opener": {"texts": ["Sure,", "I cannot help with that."]}}, "got a text that refuses"),
        ({"replay": True, "beta": 0.1}, "no reference for a KL penalty"),
        ({"twins": 1.0}, "less than 1"),
    ],
)
def test_aids_that_would_weaken_the_attacker_are_refused(fields: dict[str, Any], needle: str) -> None:
    """Aids that undo each other, and an opener that begins a refusal, are errors of the recipe."""
    plain = {"name": "a", "steps": 200, "learning_rate": 5e-4, "prompts": 5}
    AttackRecipe.model_validate(plain)
    with pytest.raises(ValueError, match=needle):
        AttackRecipe.model_validate(plain | fields)


@pytest.mark.parametrize(("twins", "control_steps", "due"), [(0.2, 50, 10), (0.2, 4, 1), (0.9, 4, 3), (0.2, 1, 0), (0.0, 50, 0)])
def test_a_control_has_harmful_steps_after_those_on_twins(twins: float, control_steps: int, due: int) -> None:
    """Twins get their share of the control's steps, at least one, and leave it one; a shorter control is no error."""
    assert recipe(twins=twins, control_steps=control_steps, steps=200).twin_steps == due
