"""Training by GRPO and RLOO, with TRL's trainers."""

from __future__ import annotations

import functools
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rn_harness.models.completion import Completion, check_bans
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.peft_compat import trained_scales
from rn_harness.models.transformers_compat import known_deprecations
from rn_harness.records.statistics import mean_of
from rn_harness.records.trajectory import TrainingWindow
from rn_harness.spec.defense_recipe import GRPORecipe
from rn_harness.spec.errors import TrainingError
from rn_harness.spec.prompts import Prompt
from rn_harness.store.ranks import ranks
from rn_harness.training.credit import CheckedReward, Credit, RewardFunction
from rn_harness.training.exploration import NONE, Exploration
from rn_harness.training.snapshots import Resumption
from rn_harness.training.trainer_settings import TRANSFORMERS, Sampler, TrainerName, trainer_settings
from rn_harness.training.trl_compat import (
    REPLAYED,
    Credited,
    ban_callback,
    direction_callback,
    saving_trainer,
    silent_trainer,
    unrounded_adapters,
)

StepFunction = Callable[[int, TrainingWindow | None], None]
"""Called with the step and the diagnostics since the last call: before training with step 0 and None, then when due."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of a training that do not belong to its recipe.

    Attributes:
        sampler: of the completions that are trained on.
        trainer: TRL's.
        resumption: continues and keeps the training of a defense; None: nothing is kept.
        tick: called after each step.
        penalised: prompts whose answers count for the KL penalty; None: all.
        exploration: an attacker's aids in rollouts.
        over: True if the training may end after the last due step; asked after each of them.
    """

    sampler: Sampler = TRANSFORMERS
    trainer: TrainerName = "grpo"
    resumption: Resumption | None = None
    tick: Callable[[int], None] = lambda _: None
    penalised: Callable[[Prompt], bool] | None = None
    exploration: Exploration = NONE
    over: Callable[[], bool] = lambda: False


def order_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """``count`` prompts: the given ones, of which there must be some, in shuffled rounds, so that each comes equally often."""
    if not prompts:
        raise TrainingError(f"training takes prompts, got none for {count} places; name at least one")
    rng = random.Random(seed)
    ordered: list[Prompt] = []
    while len(ordered) < count:
        ordered.extend(rng.sample(list(prompts), len(prompts)))
    return ordered[:count]


def _check_armed(model: LanguageModel, recipe: GRPORecipe, trainer: Mapping[str, Any], step: int) -> None:
    """Makes sure that the optimizer trains exactly the recipe's parameters, at the recipe's learning rate and adapter's scale.

    No weight moves while no group has a spread, and a training that can move no weight would look the same. Weights of an adapter
    that hardly counts move, and the model does not. ``trainer`` holds ``model`` and ``optimizer`` of TRL's callback.
    """
    armed = {id(p): p for p in model.trained.values()}
    stepped = {id(p) for group in trainer["optimizer"].param_groups for p in group["params"]}
    trainable = {id(p) for p in trainer["model"].parameters() if p.requires_grad}
    rates = {float(group["lr"]) for group in trainer["optimizer"].param_groups}
    rate, scales, scale = recipe.rate_after(step), trained_scales(model.network), recipe.lora.alpha / recipe.lora.r
    exact = all(math.isclose(r, rate, abs_tol=1e-12) for r in rates) and all(math.isclose(s, scale) for s in scales)
    if armed and armed.keys() == trainable == stepped and exact:
        return
    raise TrainingError(
        f"at step {step} training must move what the recipe trains, all of it and nothing else, at learning rate {rate:g}"
        f"{f' and scale {scale:g} of its adapter' if scales else ''}, got "
        f"armed={len(armed)} trainable={len(trainable)} optimized={len(stepped)} parameters, of which "
        f"{len(armed.keys() & trainable & stepped)} are all three, and learning_rate={sorted(rates)} "
        f"scale={sorted(scales)}; arm the model and train it itself"
    )


def _check_replicas(model: LanguageModel, step: int) -> None:
    """Makes sure that all processes hold the same adapter if weights are spread, since torch's wrapper then does not."""
    if model.sharded and len(digests := set(ranks().gather(model.adapter_digest()))) > 1:
        raise TrainingError(
            f"all processes must hold one adapter, bit by bit, got {len(digests)} at step {step}; the versions of transformers "
            "and torch may not average its gradients: install those of constraints.txt"
        )


def _window(logs: Sequence[Mapping[str, float | None]], distance: float, judged: float = 1.0) -> TrainingWindow:
    """The diagnostics of some steps, from TRL's logged metrics; a metric is None if no completion of a step has a reward.

    ``judged`` is the share of the rows that are judged; all others have a reward of 0, and rewards are reported without them.
    """

    def known(key: str) -> list[float]:
        return [value for log in logs if (value := log.get(key)) is not None and math.isfinite(value)]

    def mean(key: str) -> float:
        return mean_of(known(key)) or 0.0

    norms = [log["grad_norm"] or 0.0 for log in logs]
    if not all(math.isfinite(norm) for norm in norms):
        raise TrainingError(f"gradients must be finite, got grad_norm={norms}; lower the learning rate or look at the rewards")
    return TrainingWindow(
        steps=len(logs),
        reward_mean=None if (rewards := mean_of(known("reward"))) is None else rewards / judged,
        reward_spread=mean("reward_std") / judged,
        zero_spread_share=max(0.0, 1.0 - (1.0 - mean("frac_reward_zero_std")) / judged),
        unrewarded_share=mean("unrewarded_share"),
        grad_norm=max(norms, default=0.0),
        entropy=mean("entropy"),
        completion_tokens=mean("completions/mean_length"),
        adapter_distance=distance,
    )


Read = Callable[[int, list[int]], Completion]
"""A row of the data, and the tokens that were sampled for it, to the whole answer."""


def _reader(model: LanguageModel, exploration: Exploration) -> Read:
    """A function that reads an answer from its tokens, with the opener that its row was given."""
    opened = {row: model.answer_ids(text, whole=False) for row, text in exploration.openers.items()}
    return lambda row, ids: model.answer(opened.get(row, []) + ids)


def _trl_reward(
    read: Read, prompts: Sequence[Prompt], reward: RewardFunction, exploration: Exploration, unrewarded: list[float]
) -> Callable[..., list[float | None]]:
    """TRL's reward function; it appends the share of a step's rows without a reward to ``unrewarded``."""

    def rewards(completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float | None]:
        # The reward function gets all rows of the step on each process, so that its view is the same everywhere.
        together = ranks()
        parts = together.gather([(i, ids[:1], read(i, ids)) for i, ids in zip(row, completion_ids, strict=True)])
        everything = [each for part in parts for each in part]
        rows = [each for each in everything if each[0] not in exploration.benign]
        values = list(reward([prompts[i] for i, *_ in rows], [completion for *_, completion in rows]))
        if exploration.bans:
            check_bans([token for _, first, _ in rows for token in first], exploration.bans.banned)
            harms = exploration.harms(len(values)) if exploration.harms else values
            exploration.bans.saw([first for _, first, _ in rows], harms)
        if not all(value is None or math.isfinite(value) for value in values):
            # TRL would turn the group's advantages into zeros and go on: an attack that cannot learn, hence proves nothing.
            raise TrainingError("rewards must be finite, got an infinite or undefined one; look at the judge")
        unrewarded.append(sum(value is None for value in values) / len(values))
        judged = iter(values)
        all_values = [0.0 if i in exploration.benign else next(judged) for i, *_ in everything]
        before = sum(len(part) for part in parts[: together.rank])
        mine = all_values[before : before + len(row)]
        if exploration.replay:
            exploration.replay.rewards = mine
        return mine

    return rewards


def _credited(
    model: LanguageModel, prompts: Sequence[Prompt], texts: Sequence[str], exploration: Exploration, counted: list[Credit | None]
) -> Credited:
    """Appends the completions of a loss to ``counted``, read from the trained tokens; None: it is benign or replayed.

    A completion that is sampled or learned after another prompt than the measured one would teach nothing about that. So the
    function raises TrainingError unless the tokens before each completion are those of its row's text.
    """
    read = _reader(model, exploration)
    due = functools.cache(lambda row: model.answer_ids(texts[row], whole=False))

    def credited(loss: Sequence[tuple[int, list[int], list[int], float]]) -> None:
        if strange := [row for row, head, *_ in loss if row != REPLAYED and head != due(row)]:
            raise TrainingError(
                f"a loss counts completions after their own prompts, got {len(strange)} of {len(loss)} after other tokens; look "
                "at the trainer"
            )
        counted.extend(
            None if row == REPLAYED or row in exploration.benign else Credit(row, prompts[row], read(row, ids), advantage)
            for row, _, ids, advantage in loss
        )

    return credited


def _check_losses(counted: list[Credit | None], rows: int, reward: CheckedReward) -> None:
    """Checks the losses of a step, benign and replayed rows aside, and forgets them.

    TRL spreads a group over micro-batches and processes.
    """
    together = [credit for part in ranks().gather(counted) for credit in part]
    counted.clear()
    if len(together) != rows:
        raise TrainingError(
            f"the losses of a step must count each completion and keep its row, got {len(together)} of {rows}; look at TRL's "
            "version"
        )
    reward.check([credit for credit in together if credit])


def train(
    model: LanguageModel,
    recipe: GRPORecipe,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    at_step: StepFunction,
    due: Callable[[int], bool],
    options: TrainOptions = TrainOptions(),
) -> dict[str, Any]:
    """Trains a freshly armed model by GRPO or RLOO on all prompts of its steps in this order; only its armed parameters change.

    ``at_step`` is called before the first step, and after each step that is ``due``; a training that continues omits earlier
    steps. Returns the trainer's settings, for the record.

    Raises:
        TrainingError: a reward or a gradient is infinite or not a number, a loss counts a completion by another's reward,
            training ended early without being over, it could not move the adapter, or an attack's state was to be kept.
    """
    import datasets
    import transformers
    import trl

    processes, sampler, resumption = ranks().size, options.sampler, options.resumption
    first = resumption.begin(model, recipe) if resumption else 0
    settings = trainer_settings(recipe, processes, options.trainer, sampler)
    if len(prompts) != recipe.steps * recipe.step_prompts:
        raise TrainingError(
            f"training takes steps * prompts_per_step prompts, got {len(prompts)} for "
            f"{recipe.steps} * {recipe.step_prompts}; order them with order_prompts"
        )
    exploration, logged = options.exploration, list[Mapping[str, float | None]]()
    unrewarded, counted, read = list[float](), list[Credit | None](), _reader(model, exploration)
    checked = CheckedReward(reward, penalised=options.trainer == "rloo" and recipe.beta > 0.0, positive=exploration.positive)

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        """Keeps each step's logs, and passes due steps to the caller."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
            _check_armed(model, recipe, trainer, first)
            if not first:
                at_step(0, None)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **trainer: Any) -> None:
            if "loss" in logs:
                _check_losses(counted, recipe.step_prompts * recipe.group_size, checked)
                logged.append({**logs, "unrewarded_share": unrewarded.pop()})
                options.tick(state.global_step)
            if "loss" in logs and due(state.global_step):
                _check_armed(model, recipe, trainer, state.global_step)
                _check_replicas(model, state.global_step)
                window = _window(logged, model.distance, 1.0 - len(exploration.benign) / len(prompts))
                if bans := exploration.bans:
                    window = window.model_copy(update={"banned_tokens": len(bans.banned)})
                if replay := exploration.replay:
                    window, replay.steps = window.model_copy(update={"replayed_steps": replay.steps}), 0
                logged.clear()
                at_step(state.global_step, window)
                control.should_training_stop = control.should_training_stop or options.over()

    penalised = [options.penalised(p) for p in prompts] if options.penalised else None
    texts = [model.render(p) + exploration.openers.get(i, "") for i, p in enumerate(prompts)]
    credited = _credited(model, prompts, texts, exploration, counted)
    kind = saving_trainer(model, due, options.trainer, penalised, exploration, credited)
    with tempfile.TemporaryDirectory(prefix="rn-harness-") as nowhere, known_deprecations():
        config = (trl.GRPOConfig if options.trainer == "grpo" else trl.RLOOConfig)(
            output_dir=nowhere,
            use_cpu=model.network.device.type == "cpu",
            logging_steps=1,
            disable_tqdm=True,
            log_level="error",
            **settings,
        )
        if config.mixed_precision != "no":
            raise TrainingError(
                f"attacks train in the model's own numbers, got mixed precision {config.mixed_precision}; unset it"
            )
        with unrounded_adapters(model):
            trainer = kind(
                model=model.network,
                reward_funcs=_trl_reward(read, prompts, checked, exploration, unrewarded),
                args=config,
                train_dataset=datasets.Dataset.from_list(
                    [{"prompt": texts[i], "row": i} for i in range(first * recipe.step_prompts, len(prompts))]
                ),
                processing_class=model.tokenizer,
                callbacks=[*([resumption.callback(model)] if resumption else []), direction_callback(first), Steps()],
            )
        trainer.accelerator.backward = functools.partial(model.backward, trainer.accelerator.backward)
        trainer.remove_callback(transformers.PrinterCallback)
        if exploration.bans:
            trainer.add_callback(ban_callback(trainer, exploration.bans))
        with silent_trainer(options.trainer):
            trainer.train()
    if trainer.state.global_step != recipe.steps and not options.over():
        raise TrainingError(f"training takes {recipe.steps} steps, got {trainer.state.global_step}; look at the log above")
    several = {"processes": processes} if processes > 1 else {}
    named = {"sampler": sampler.name} if sampler.vllm else {}
    return {"engine": f"trl {trl.__version__}", **several, **named, **model.engine, **settings}
