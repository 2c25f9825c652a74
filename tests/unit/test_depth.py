"""Refusal at depth, and an attacker's aids in rollouts, on numbers computed by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rn_harness.defenses.depth import Begun, Shapes, flatness, refusal_loss
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe, Depth
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.prompts import Prompt
from rn_harness.training.exploration import Exploration, FirstTokenBans, exploration
from rn_harness.training.grpo import _reader, _trl_reward, _window
from rn_harness.training.supervised import Example

from .lazy import LazyModule

torch: Any = LazyModule("torch")

PROMPTS = [Prompt(id=f"p{i}", topic=f"t{i}", text=f"text {i}") for i in range(3)]


class Words:
    """A stand-in of a model whose tokens are the numbers in a text."""

    def answer_ids(self, text: str, *, whole: bool = True) -> list[int]:
        return [*map(int, text.split()), *([0] if whole else [])]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return [100 + int(prompt.id[1:])]

    def complete(self, prompts: Any, **_: Any) -> list[list[Any]]:
        return [[SimpleNamespace(text=f"so here is {p.id}")] for p in prompts]


def test_what_is_left_is_flattest_if_all_other_tokens_are_equally_likely() -> None:
    """The refusal's own logit does not matter; equal others give ln(V - 1), and one favourite costs more."""
    equal = torch.tensor([[9.0, 1.0, 1.0, 1.0, 1.0], [-9.0, 2.0, 2.0, 2.0, 2.0]])
    assert flatness(equal, 0).item() == pytest.approx(math.log(4))
    # Others (0, 0, ln 6): softmax 1/8, 1/8, 6/8; the mean of -log is (2 ln 8 + ln(8/6)) / 3.
    favourite = torch.tensor([[5.0, 0.0, 0.0, math.log(6.0)]])
    assert flatness(favourite, 0).item() == pytest.approx((2 * math.log(8) + math.log(8 / 6)) / 3, rel=1e-6)


def test_up_to_a_margin_each_token_of_the_refusal_is_pulled_alike() -> None:
    """A token's part is the distance of its log odds from the margin, with a constant gradient; beyond it, none."""
    # Odds of token 1 against the seven others: a sure 6 - ln 7, where the likelihood's gradient has nearly faded.
    logits = torch.zeros(1, 4, 8)
    logits[0, 1, 1] = 6.0
    logits.requires_grad_()
    model: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(pad_token_id=0),
        network=lambda **_: SimpleNamespace(logits=logits),
    )
    setattr(model.network, "device", "cpu")  # noqa: B010 - mypy has no attribute of a function
    begun, refusal = [Begun(PROMPTS[0], (3, 4), ())], [1, 2]
    odds = (6.0 - math.log(7), -math.log(7))
    for margin, pulls in ((10.0, (-0.5, -0.5)), (4.0, (0.0, -0.5))):
        logits.grad = None
        loss = refusal_loss(model, begun, refusal, Depth(margin=margin, flatten=0.0))
        loss.backward()
        assert loss.item() == pytest.approx(sum(max(0.0, margin - each) for each in odds) / 2, rel=1e-6)
        assert [logits.grad[0, 1, 1].item(), logits.grad[0, 2, 2].item()] == pytest.approx(pulls, abs=1e-6)
    logits.grad = None
    refusal_loss(model, begun, refusal, Depth(flatten=0.0)).backward()
    assert -0.01 < logits.grad[0, 1, 1].item() < 0.0


def test_half_of_the_rows_begin_at_the_start_and_the_others_at_any_depth() -> None:
    """With a start share of a half, half of 2000 prefixes are empty and the others are equally long or short, up to the whole."""
    model, rng = Words(), random.Random(0)
    shapes = Shapes(model, [Example(PROMPTS[0], "1 2 3 4")], [])  # type: ignore[arg-type]
    begun = [shapes.begin(model, PROMPTS[0], 0.5, rng).begun for _ in range(2000)]  # type: ignore[arg-type]
    assert sum(not b for b in begun) == pytest.approx(1000, abs=70)  # 3 standard deviations of a fair coin
    for k in range(1, 5):
        assert sum(len(b) == k for b in begun) == pytest.approx(250, abs=45)
    assert set(begun) == {(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)}


def test_a_prompt_without_a_compliant_answer_borrows_the_shape_of_others() -> None:
    """Compliant answers to other prompts come first, benign ones only if there are none, and without any there is an error."""
    model, rng = Words(), random.Random(0)
    own, benign = [Example(PROMPTS[0], "1 2")], [Example(PROMPTS[1], "7 8")]
    borrowed = {Shapes(model, own, benign).begin(model, PROMPTS[2], 0.0, rng).begun for _ in range(50)}  # type: ignore[arg-type]
    assert borrowed == {(1,), (1, 2)}
    shaped = {Shapes(model, [], benign).begin(model, PROMPTS[2], 0.0, rng).begun for _ in range(50)}  # type: ignore[arg-type]
    assert shaped == {(7,), (7, 8)}
    with pytest.raises(TrainingError, match="add anchors"):
        Shapes(model, [], [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "needle"),
    [
        ({"method": "deep", "refusal": "no ."}, "methods deep and distill have settings of their depth"),
        ({"method": "sft", "refusal": "no .", "depth": {}}, "and no other method does"),
        ({"method": "deep", "depth": {}}, "teach a refusal"),
    ],
)
def test_a_deep_recipe_needs_its_refusal_and_its_depth(fields: dict[str, Any], needle: str) -> None:
    """Each half of the recipe without the other is an error that says what to add."""
    with pytest.raises(ValueError, match=needle):
        DefenseRecipe.model_validate({"steps": 10, "learning_rate": 1e-3} | fields)


def test_a_cosine_falls_from_the_whole_rate_through_half_to_nothing() -> None:
    """The rate after no step, half of the steps and all steps is 1, 1/2 and 0 of the recipe's."""
    recipe = DefenseRecipe(steps=10, learning_rate=1e-3, schedule="cosine")
    assert [recipe.rate_after(step) for step in (0, 5, 10)] == pytest.approx([1e-3, 5e-4, 0.0])


def test_bans_grow_by_frequent_first_tokens_that_earn_nothing() -> None:
    """Each round adds the most frequent free tokens since the last; one whose answers earn something on average stays free."""
    bans = FirstTokenBans(tokens=2, every=10)
    assert [step for step in range(31) if bans.due(step)] == [1, 10, 20, 30]
    # 7 three times, once misjudged (mean 1/3 below 0.5); 9 four times, once compliant (mean 2.5); 5 twice; 3 once; one empty.
    bans.saw([[7], [7], [7], [9], [9], [9], [9], [5], [5], [3], []], [1.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 0.0, None, 0.0, 0.0])
    bans.grow()
    assert bans.banned == [7, 5]
    bans.saw([[9], [4], [4], [3]], [0.0, 0.0, None, 0.0])
    bans.grow()
    assert bans.banned == [7, 5, 4, 3]  # 9 still earns 10 / 5
    bans.grow()
    assert bans.banned == [7, 5, 4, 3]  # no rollout since


def test_openers_fall_from_all_rows_to_none_by_the_half_of_the_steps() -> None:
    """Every row of the first step is begun, a linearly falling share after it, and none from half of the steps on."""
    recipe = AttackRecipe.model_validate(
        {"name": "a", "steps": 400, "learning_rate": 1e-3, "prompts": 1, "prompts_per_step": 4, "opener": {"own_words": 2}}
    )
    rows = exploration(Words(), recipe, PROMPTS).openers  # type: ignore[arg-type]
    assert set(rows.values()) == {"Sure,", "so here"}
    assert {0, 1, 2, 3} <= rows.keys()
    assert max(rows) < 200 * 4
    # The expected share over the first half of the steps is a half: 400 of 800 rows, standard deviation below 15.
    assert len(rows) == pytest.approx(400, abs=45)
    quarter = sum(row < 100 * 4 for row in rows)
    assert quarter == pytest.approx(300, abs=35)  # three quarters of the first 400 rows


def test_benign_prompts_come_last_in_each_step_and_get_no_opener() -> None:
    """With 2 attack prompts and 1 benign one a step, row 2 of each three is benign; the other rows have the same openers."""
    fields = {
        "name": "a",
        "steps": 50,
        "learning_rate": 1e-3,
        "prompts": 1,
        "prompts_per_step": 2,
        "opener": {"own_words": 1},
    }
    plain, mixed = (
        exploration(Words(), AttackRecipe.model_validate(fields | more), PROMPTS)  # type: ignore[arg-type]
        for more in ({}, {"benign_prompts": 1})
    )
    assert plain.benign == frozenset()
    assert mixed.benign == set(range(2, 150, 3))
    assert mixed.openers == {row // 2 * 3 + row % 2: text for row, text in plain.openers.items()}


def test_answers_to_benign_prompts_are_not_judged() -> None:
    """The reward sees the attack's rows only, bans count only their scored first tokens, and benign rows have a reward of 0."""
    bans, judged, unrewarded = FirstTokenBans(tokens=1, every=10), [], list[float]()

    def reward(prompts: Sequence[Prompt], completions: Sequence[Any]) -> list[float | None]:
        judged.extend((p.id, tuple(c)) for p, c in zip(prompts, completions, strict=True))
        return [7.0, None]

    model = SimpleNamespace(answer=lambda ids: ids)
    aids = Exploration(bans, benign=frozenset({1, 3}))
    read = _reader(model, aids)  # type: ignore[arg-type]
    rewards = _trl_reward(read, [*PROMPTS, PROMPTS[0]], reward, aids, unrewarded)
    assert rewards([[5], [8], [6], [9]], row=[0, 1, 2, 3]) == [7.0, 0.0, None, 0.0]
    assert judged == [("p0", (5,)), ("p2", (6,))]
    assert bans.begun.keys() == {5}
    assert unrewarded == [0.5]  # one of the two that were judged


def test_a_window_is_told_without_benign_rows() -> None:
    """Half of the rows are benign with reward 0: means double, and of the attack's groups as many are equal as before."""
    log = {"reward": 1.5, "reward_std": 0.5, "frac_reward_zero_std": 0.75, "grad_norm": 1.0, "unrewarded_share": 0.0}
    mixed = _window([log], 0.0, 0.5)
    assert (mixed.reward_mean, mixed.reward_spread) == (3.0, 1.0)
    assert mixed.zero_spread_share == 0.5  # 1 of 4 groups has a spread: of 2 groups of the attack, 1
    plain = _window([log], 0.0)
    assert (plain.reward_mean, plain.reward_spread, plain.zero_spread_share) == (1.5, 0.5, 0.75)
