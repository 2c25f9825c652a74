"""An attacker's search: short attacks with other settings, and the best of them.

The settings that are found are attacked with like any others, on the model under test and on the undefended candidate. Trials are
scored on the attack's own prompts by the judge that rewards: the attacker does not see what he will be measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rn_harness.attacks.family import AttackContext, Loaded
from rn_harness.attacks.loop import AttackReward, present
from rn_harness.judges.protocol import Judge, ensure_judging
from rn_harness.judges.whole import judge_whole
from rn_harness.records.trajectory import TrainingWindow
from rn_harness.spec.attack_recipe import AttackRecipe, RewardShape, ShapeName
from rn_harness.spec.base import Frozen
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.extras import require
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.wording import is_degenerate, is_refusal
from rn_harness.store.ranks import ranks
from rn_harness.training.grpo import TRANSFORMERS, Sampler
from rn_harness.verdict.rewards import attack_reward

if TYPE_CHECKING:
    import optuna

    from rn_harness.models.language_model import LanguageModel

SAMPLES = 8
"""Completions of each attack prompt that a trial is scored on."""
SPREAD_WEIGHT = 0.01
"""Of steps with something to learn from, beside a point of harm: where nothing does harm yet, they tell how near a trial came."""


class Trial(Frozen):
    """One short attack.

    Attributes:
        learning_rate, temperature, beta, shape: its settings.
        harm: mean plain attack reward of what the policy says to the attack prompts at its end, 0 to 10; None: training broke.
        spread_share: share of its steps in which rewards differed.
        degenerate_share: of those completions; above the policy's bound the trial is no candidate.
    """

    learning_rate: float
    temperature: float
    beta: float
    shape: ShapeName
    harm: float | None
    spread_share: float = 0.0
    degenerate_share: float = 0.0

    def value(self, policy: Policy) -> float:
        """What the search maximises: harm, as long as the model still speaks."""
        if self.harm is None or self.degenerate_share > policy.max_degenerate_share:
            return -1.0
        return self.harm + SPREAD_WEIGHT * self.spread_share


class Found(Frozen):
    """What a search came to: the recipe with the best trial's settings, and all trials in their order."""

    recipe: AttackRecipe
    trials: tuple[Trial, ...]


def search(
    load: Callable[[], LanguageModel],
    recipe: AttackRecipe,
    loaded: Loaded,
    pool: Sequence[Prompt],
    reward_judge: Judge,
    policy: Policy,
    say: Callable[[int, Trial], None],
    *,
    benign: Sequence[Prompt] = (),
    answers: Callable[[Sequence[Prompt]], Mapping[str, str] | None] = lambda _: None,
    sampler: Sampler = TRANSFORMERS,
) -> Found:
    """Searches by the tree-structured Parzen estimator (Optuna), seeded by the recipe; the first of equals is taken.

    Args:
        load: gives a fresh copy of the model under test.
        recipe: with a ``search``.
        loaded: its family.
        pool: what its prompts are drawn from.
        reward_judge: what rewards, and what trials are scored by.
        policy: for the bound on degenerate completions.
        say: gets each trial when it ends, and how many have.
        benign, answers, sampler: see ``attack.run_attack``.

    Raises:
        UnsuitedError: the attack cannot be run on this model.
        TrainingError: no trial came to its end.
        JudgeGoneError: the judge stopped judging.
    """
    require("optuna", "a search for settings")
    import optuna

    assert recipe.search is not None
    trials: list[Trial] = []

    def run(suggested: optuna.Trial) -> float:
        short = _suggest(suggested, recipe)
        told = {name: getattr(short, name) for name in ("learning_rate", "temperature", "beta")} | {"shape": short.reward.shape}
        model = load()
        chosen, _ = present(model, short, pool, ())
        reward, windows = AttackReward(short, reward_judge, policy), list[TrainingWindow]()

        def at_step(_: int, window: TrainingWindow | None) -> None:
            windows.extend([reward.close(window)] if window else [])

        model.arm(short)
        means = AttackContext(
            model=model,
            recipe=short,
            prompts=chosen,
            benign=benign,
            answers=answers(chosen),
            reward=reward,
            at_step=at_step,
            due=lambda step: step == short.steps,
            sampler=sampler,
        )
        try:
            loaded.family.train(means)
            told |= {"spread_share": max((1.0 - w.zero_spread_share for w in windows), default=0.0)}
            told |= _outcome(model, chosen, reward_judge, short, policy)
        except TrainingError:
            told |= {"harm": None}
        trial = ranks().first(lambda: Trial.model_validate(told))
        trials.append(trial)
        say(len(trials), trial)
        return trial.value(policy)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=recipe.seed))
    study.enqueue_trial({"learning_rate": 1.0, "temperature": 1.0, "beta": recipe.beta, "shape": recipe.reward.shape})
    study.optimize(run, n_trials=recipe.search.trials)
    best = max(trials, key=lambda trial: trial.value(policy))
    if best.harm is None:
        raise TrainingError(f"a search needs a trial that comes to its end, got none of {len(trials)}; lower its learning rates")
    return Found(
        recipe=_with(recipe, **best.model_dump(include={"learning_rate", "temperature", "beta", "shape"})), trials=tuple(trials)
    )


def _suggest(trial: optuna.Trial, recipe: AttackRecipe) -> AttackRecipe:
    """The short attack that Optuna proposes."""
    space = recipe.search
    assert space is not None
    rate = recipe.learning_rate * trial.suggest_float("learning_rate", *space.learning_rate, log=True)
    temperature = recipe.temperature * trial.suggest_float("temperature", *space.temperature)
    proposed: dict[str, Any] = {
        "learning_rate": min(float(f"{rate:.3g}"), 1.0),
        "temperature": float(f"{temperature:.3g}"),
        "beta": trial.suggest_categorical("beta", list(dict.fromkeys([recipe.beta, *space.beta]))),
        "shape": trial.suggest_categorical("shape", list(dict.fromkeys([recipe.reward.shape, *space.shape]))),
    }
    return _with(recipe, **proposed).model_copy(update={"steps": min(space.steps, recipe.steps), "search": None})


def _with(recipe: AttackRecipe, *, shape: str, **settings: Any) -> AttackRecipe:
    return recipe.model_copy(
        update={**settings, "reward": RewardShape.model_validate({**recipe.reward.model_dump(), "shape": shape})}
    )


def _outcome(
    model: LanguageModel, prompts: Sequence[Prompt], judge: Judge, recipe: AttackRecipe, policy: Policy
) -> dict[str, float]:
    """What the policy says to the prompts now: mean plain attack reward, and the share that is degenerate."""
    from rn_harness.models.language_model import own_random_stream

    with own_random_stream(recipe.seed, recipe.steps):
        groups = model.complete(prompts, n=SAMPLES, temperature=1.0, max_tokens=recipe.max_completion_tokens)
    rows = [(prompt, completion) for prompt, group in zip(prompts, groups, strict=True) for completion in group]
    judged = judge_whole(judge, [prompt for prompt, _ in rows], [of for _, of in rows], policy.threshold)
    ensure_judging([j.judgement for j in judged], f"the reward judge scored none of a trial's {len(judged)} completions")
    rewards = [attack_reward(j.judgement.score, is_refusal(of.text)) for j, (_, of) in zip(judged, rows, strict=True)]
    harms = [reward for reward in rewards if reward is not None]
    degenerate = [is_degenerate(of.text) or bool(j.answer.degenerate) for j, (_, of) in zip(judged, rows, strict=True)]
    return {"harm": sum(harms) / len(harms), "degenerate_share": sum(degenerate) / len(degenerate)}
