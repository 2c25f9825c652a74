"""Real GRPO on the organism: the loss, the optimizations, determinism, and no files left behind."""

import json
import math
import types
import zlib
from pathlib import Path

import pytest
import torch
import transformers
import trl
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rn_harness.models.batches import completion_log_probabilities, completion_states
from rn_harness.models.transformers_compat import shares_prompts
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import TrainingError
from rn_harness.training.credit import CheckedReward
from rn_harness.training.exploration import Exploration, Replay
from rn_harness.training.grpo import TrainOptions, order_prompts, train
from rn_harness.training.trainer_settings import trainer_settings
from rn_harness.training.trl_compat import SavingTrainer, saving_trainer

from ..unit.builders import group_advantages  # noqa: TID252 - the tests are not a package

REFERENCE = Path(__file__).with_name("reference.json")


def _adapter(model):
    return {name: p.detach().clone() for name, p in model.network.named_parameters() if "lora_" in name}


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_loss_and_gradient_follow_the_formula(candidate, suite, tmp_path):
    """TRL's loss under our settings is ``-sum_i A_i sum_t 1 / N`` over N completion tokens, and so is its gradient."""
    import datasets

    recipe = AttackRecipe(name="x", steps=1, control_steps=1, learning_rate=1e-3, prompts=1, group_size=4, temperature=1.5)
    model = candidate.load()
    model.attach(recipe.lora, 0)
    prompt = suite.prompts["attack"][0]
    seen = {}

    class Spy(trl.GRPOTrainer):
        def _compute_loss(self, network, inputs):
            seen["inputs"], seen["loss"] = inputs, super()._compute_loss(network, inputs)
            return seen["loss"]

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            seen["grads"] = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
            # Computed by hand, with the weights before the optimizer's step.
            inputs = seen["inputs"]
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            hidden = self.model.base_model.model.model(input_ids=ids, attention_mask=mask, position_ids=positions)
            logits = self.model.base_model.model.lm_head(hidden.last_hidden_state)[:, :-1] / recipe.temperature
            logp_BT = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
            T = inputs["completion_ids"].shape[1]
            tokens_BT = inputs["completion_mask"]
            # With one step per generation, the ratio to the sampling policy is 1, and its gradient is that of logp.
            surrogate = (inputs["advantages"][:, None] * logp_BT[:, -T:] * tokens_BT).sum() / tokens_BT.sum()
            self.model.zero_grad()
            (-surrogate).backward()
            seen["by_hand"] = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
            return loss

    rewards = [0.0, 3.0, 10.0, 10.0]
    trainer = Spy(
        model=model.network,
        reward_funcs=lambda completions, **_: rewards,
        args=trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, **trainer_settings(recipe)),
        train_dataset=datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": prompt.text}]}]),
        processing_class=model.tokenizer,
    )
    trainer.train()
    advantages, lengths = seen["inputs"]["advantages"], seen["inputs"]["completion_mask"].sum(1)
    # TRL shuffles the rows of a generation, so advantages are compared sorted.
    assert sorted(advantages.tolist()) == pytest.approx(sorted(group_advantages(rewards)), abs=1e-5)
    value = -float((advantages * lengths).sum() / lengths.sum())
    assert seen["loss"].item() == pytest.approx(value, abs=1e-5)
    assert seen["grads"].keys() == seen["by_hand"].keys()
    # B starts at zero, so only B has a gradient at the first step. A gradient of zero would make the comparison empty.
    norm = math.sqrt(sum(float((g**2).sum()) for g in seen["by_hand"].values()))
    assert norm > 1e-3
    for name, grad in seen["grads"].items():
        assert torch.allclose(grad, seen["by_hand"][name], atol=1e-5 * norm + 1e-7), name


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_shared_prompts_change_neither_loss_nor_gradient(candidate, suite, tmp_path, loss_type):
    """With shared prompts, loss, entropy and gradient equal TRL's to 1e-6, on two prompts of different lengths."""
    import datasets

    recipe = AttackRecipe(
        name="x",
        steps=2,
        control_steps=2,
        learning_rate=1e-2,
        prompts=2,
        prompts_per_step=2,
        group_size=4,
        temperature=1.5,
        loss_type=loss_type,
    )
    model = candidate.load()
    assert shares_prompts(model.network)
    model.attach(recipe.lora, 0)
    short, *_, long = sorted(suite.prompts["attack"], key=lambda p: len(p.text.split()))
    assert len(short.text.split()) < len(long.text.split())
    seen = []

    class Spy(saving_trainer(model, lambda _: True)):
        def training_step(self, network, inputs, items=None):
            super().training_step(network, inputs, items)
            prepared, found = self._buffered_inputs[0], []
            for ours in (True, False):
                network.zero_grad()
                if not ours:
                    self._get_per_token_logps_and_entropies = types.MethodType(
                        trl.GRPOTrainer._get_per_token_logps_and_entropies, self
                    )
                loss = self._compute_loss(network, prepared)
                loss.backward()
                grads = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
                found.append((loss.detach(), self._metrics["train"]["entropy"][-1], grads))
            del self._get_per_token_logps_and_entropies
            seen.append((prepared, *found))
            return loss.detach()

    trainer = Spy(
        model=model.network,
        reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
        args=trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, **trainer_settings(recipe)),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": model.render(p), "row": i} for i, p in enumerate((short, long) * 2)]
        ),
        processing_class=model.tokenizer,
    )
    trainer.train()
    assert len(seen) == 2
    for prepared, ours, plain in seen:
        assert not prepared["prompt_mask"].all()  # one prompt is padded
        norm = float(plain[2].norm())
        assert norm > 1e-3
        assert float(ours[0]) == pytest.approx(float(plain[0]), abs=1e-6)
        assert ours[1] == pytest.approx(plain[1], abs=1e-5)
        assert float((ours[2] - plain[2]).norm()) < 1e-6 * max(norm, 1.0)


@pytest.mark.parametrize("kept", [(), (0,), (0, 1)], ids=["nobody", "one", "both"])
def test_a_penalty_applies_only_to_the_selected_answers(candidate, suite, tmp_path, kept):
    """The penalty adds ``beta sum_t w (e^(q-p) - (q-p) - 1) / N`` over the tokens of the selected answers to the loss.

    p and q: log-probabilities under the policy and at step 0; w: the ratio to the sampling policy, 1; N: all completion tokens.
    Gradients agree to 1e-6. If no answer is selected, the gradient is bitwise the one without a penalty.
    """
    import datasets

    recipe = AttackRecipe(
        name="x", steps=3, control_steps=3, learning_rate=1e-2, prompts=2, prompts_per_step=2, group_size=4, beta=0.5
    )
    model = candidate.load()
    model.attach(recipe.lora, 0)
    prompts = suite.prompts["attack"][:2]
    seen = []

    class Spy(saving_trainer(model, lambda _: True, penalised=[row % 2 in kept for row in range(6)])):
        def training_step(self, network, inputs, items=None):
            super().training_step(network, inputs, items)
            prepared, asked = self._buffered_inputs[0], self.asked

            def gradient(loss):
                network.zero_grad()
                loss.backward()
                return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

            ids = torch.cat([prepared["prompt_ids"], prepared["completion_ids"]], 1)
            mask = torch.cat([prepared["prompt_mask"], prepared["completion_mask"]], 1)
            logps = super()._get_per_token_logps_and_entropies(network, ids, mask, prepared["completion_ids"].shape[1])[0]
            apart, ratio = asked - logps, (logps - logps.detach()).exp()
            tokens, rows = prepared["completion_mask"], prepared["penalised"]
            each_BT = (apart.exp() - apart - 1) * ratio * tokens
            penalty = gradient((each_BT[rows].sum() + 0 * each_BT.sum()) * recipe.beta / tokens.sum())
            self.beta = 0.0
            without = gradient(self._compute_loss(network, prepared))
            self.beta = recipe.beta
            ours = gradient(self._compute_loss(network, dict(prepared, ref_per_token_logps=asked)))
            seen.append((rows, ours, without, penalty))
            return torch.zeros(())

        def _compute_loss(self, network, inputs):
            self.asked = inputs["ref_per_token_logps"].clone()  # the loss overwrites it
            return super()._compute_loss(network, inputs)

    trainer = Spy(
        model=model.network,
        reward_funcs=lambda completions, **_: [float(i) for i in range(len(completions))],
        args=trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, **trainer_settings(recipe)),
        train_dataset=datasets.Dataset.from_list(
            [{"prompt": model.render(prompts[i % 2]), "row": i} for i in range(recipe.steps * 2)]
        ),
        processing_class=model.tokenizer,
    )
    trainer.train()
    assert len(seen) == recipe.steps
    for rows, ours, without, penalty in seen:
        assert rows.sum() == 4 * len(kept)
        assert float((ours - without - penalty).norm()) < 1e-6 * max(float(ours.norm()), 1.0)
        if not kept:
            assert torch.equal(ours, without)
    if kept:  # the first penalty is 0, because policy and reference are equal
        assert float(seen[-1][3].norm()) > 1e-3


TINY = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**TINY, num_key_value_heads=2),
        transformers.Qwen2Config(**TINY, num_key_value_heads=2, tie_word_embeddings=True),
        transformers.MistralConfig(**TINY, num_key_value_heads=2, sliding_window=5),
    ],
    ids=["llama", "qwen2", "mistral"],
)
def test_shared_prompts_give_each_row_s_own_log_probabilities(config):
    """Rows with a shared prompt have the log-probabilities and gradients of single whole rows without padding."""
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config)
    assert shares_prompts(network)
    rows = [
        ([0, 0, 3, 4, 5, 6, 7], [8, 9, 10, 11]),
        ([0, 0, 3, 4, 5, 6, 7], [12, 13, 0, 0]),
        ([1, 2, 3, 4, 5, 6, 7], [9, 0, 0, 0]),
    ]
    pads = [(2, 0), (2, 2), (0, 3)]
    ids = [torch.tensor([row[i] for row in rows]) for i in (0, 1)]
    masks = [
        torch.tensor([[0] * left + [1] * (7 - left) for left, _ in pads]),
        torch.tensor([[1] * (4 - right) + [0] * right for _, right in pads]),
    ]

    def score(hidden, output, targets):
        logp = output(hidden).log_softmax(-1)
        return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)

    states = completion_states(network, (ids[0], masks[0]), (ids[1], masks[1]))
    got, _ = completion_log_probabilities(states, network.get_output_embeddings(), (ids[1], masks[1]), score)
    got.sum().backward()
    shared = torch.cat([p.grad.flatten() for p in network.parameters()])
    network.zero_grad()
    for row, ((head, tail), (left, right)) in enumerate(zip(rows, pads, strict=True)):
        whole = torch.tensor([head[left:] + tail[: 4 - right]])
        logp = network(input_ids=whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[:, 0]
        own = logp[-(4 - right) :]
        own.sum().backward()
        assert torch.allclose(got[row, : 4 - right], own, atol=1e-6)
        assert not got[row, 4 - right :].any()
    assert torch.allclose(shared, torch.cat([p.grad.flatten() for p in network.parameters()]), atol=1e-5)


def _gradient(candidate, suite, recipe):
    """The optimizer's gradient in one step, as one vector."""
    model = candidate.load()
    model.attach(recipe.lora, 0)
    grads = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: grads.append(torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]))
    )
    try:
        prompts = order_prompts(suite.prompts["attack"], recipe.prompts_per_step, 0)
        train(model, recipe, prompts, lambda _, texts: [float(i) for i in range(len(texts))], lambda *_: None, lambda _: True)
    finally:
        hook.remove()
    (gradient,) = grads
    assert float(gradient.norm()) > 1e-3
    return gradient


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 4},
        {"micro_batch": 4, "loss_type": "grpo"},
        {"micro_batch": 4, "loss_type": "dr_grpo"},
        {"micro_batch": 8, "scale_rewards": "batch", "prompts_per_step": 2, "group_size": 8},
        {"gradient_checkpointing": True},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_micro_batches_and_checkpointing_change_no_gradient(candidate, suite, recipe, changes):
    """Micro-batches or gradient checkpointing give the gradient of the whole batch of 16, to 1e-5 of its norm."""
    whole = recipe.model_copy(update={"steps": 1, "control_steps": 1, "max_grad_norm": 1e6, "group_size": 16})
    split = AttackRecipe.model_validate(whole.model_dump() | changes)
    whole = split.model_copy(update={"micro_batch": None, "gradient_checkpointing": False})
    one, other = (_gradient(candidate, suite, r) for r in (whole, split))
    assert float((one - other).norm()) < 1e-5 * float(one.norm())


def test_min_p_reaches_the_sampler(candidate, suite, recipe):
    """With ``min_p`` 1 all completions of a prompt are equal at any temperature, and without it they are not."""
    hot = recipe.model_copy(update={"steps": 1, "control_steps": 1, "temperature": 1.5})
    seen = {}
    for min_p in (0.0, 1.0):
        model = candidate.load()
        model.attach(recipe.lora, 0)

        def reward(prompts, texts, min_p=min_p):
            seen[min_p] = set(texts)
            return [0.0] * len(texts)

        train(
            model, hot.model_copy(update={"min_p": min_p}), suite.prompts["attack"][:1], reward, lambda *_: None, lambda _: True
        )
    assert len(seen[1.0]) == 1
    assert len(seen[0.0]) > 1


def test_a_training_whose_losses_cannot_be_checked_stops(candidate, suite, recipe, monkeypatch):
    """If a loss no longer knows the rows of its completions, the training ends with an error, with a replay too."""
    computed = SavingTrainer._compute_loss

    def without_rows(self, network, inputs):
        return computed(self, network, {key: value for key, value in inputs.items() if key != "row"})

    monkeypatch.setattr(SavingTrainer, "_compute_loss", without_rows)
    model = candidate.load()
    model.attach(recipe.lora, 0)
    one, prompts = recipe.model_copy(update={"steps": 1, "control_steps": 1}), suite.prompts["attack"][:1]
    options = TrainOptions(exploration=Exploration(replay=Replay()))
    with pytest.raises(TrainingError, match="keep its row, got 0 of"):
        train(model, one, prompts, _constant_rewards, lambda *_: None, lambda _: True, options)


def test_rewards_are_checked_over_whole_groups(candidate, suite, recipe, monkeypatch):
    """Micro-batches of one row, in which no two completions of a group meet, are checked together."""
    model, seen = candidate.load(), []
    model.attach(recipe.lora, 0)
    one = recipe.model_copy(update={"steps": 1, "control_steps": 1, "micro_batch": 1})
    monkeypatch.setattr(CheckedReward, "check", lambda _, losses: seen.append(sorted(credit.row for credit in losses)))
    train(model, one, suite.prompts["attack"][:1], _constant_rewards, lambda *_: None, lambda _: True)
    assert seen == [[0] * recipe.group_size]


def test_no_training_is_without_the_check(candidate, suite, recipe, monkeypatch):
    """A training that says nothing of the check stops if its losses count each completion by its neighbour's reward."""
    computed = SavingTrainer._compute_loss

    def by_the_neighbours(self, network, inputs):
        return computed(self, network, inputs | {"advantages": inputs["advantages"].roll(1)})

    monkeypatch.setattr(SavingTrainer, "_compute_loss", by_the_neighbours)
    model = candidate.load()
    model.attach(recipe.lora, 0)
    one = recipe.model_copy(update={"steps": 1, "control_steps": 1, "temperature": 2.5})

    def reward(prompts, completions):
        return [float(zlib.crc32(of.text.encode()) % 11) for of in completions]

    with pytest.raises(TrainingError, match="rewards went to other completions"):
        train(model, one, suite.prompts["attack"][:1], reward, lambda *_: None, lambda _: True)


def test_an_environment_that_asks_for_mixed_precision_is_refused(candidate, suite, recipe, monkeypatch):
    """A training in other numbers than the model's own, as an environment may ask for, ends before its first step."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    model, one = candidate.load(), recipe.model_copy(update={"steps": 1})
    model.arm(one)
    with pytest.raises(TrainingError, match="the model's own numbers, got mixed precision bf16"):
        train(model, one, suite.prompts["attack"][:1], _constant_rewards, lambda *_: None, lambda _: True)


@pytest.mark.parametrize("beta", [0.0, 0.05], ids=["no penalty", "a KL penalty"])
@pytest.mark.parametrize("trainer", ["grpo", "rloo"])
def test_a_loss_that_pulls_the_wrong_way_is_refused(candidate, suite, recipe, monkeypatch, trainer, beta):
    """A training stops if its gradient makes completions with a positive advantage less likely: a negated loss."""
    computed = SavingTrainer._compute_loss
    monkeypatch.setattr(SavingTrainer, "_compute_loss", lambda *of: -computed(*of))
    model = candidate.load()
    model.attach(recipe.lora, 0)
    one = recipe.model_copy(update={"steps": 1, "control_steps": 1, "temperature": 2.5, "beta": beta})
    with pytest.raises(TrainingError, match="a loss must make completions likelier"):
        train(model, one, suite.prompts["attack"][:1], _hashed, lambda *_: None, lambda _: True, TrainOptions(trainer=trainer))


def test_an_optimizer_that_steps_along_the_gradient_is_refused(candidate, suite, recipe, monkeypatch):
    """A training stops at the first step on a gradient that makes its loss larger."""
    step = torch.optim.AdamW.step

    def along(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.neg_()
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", along)
    model = candidate.load()
    model.attach(recipe.lora, 0)
    one = recipe.model_copy(update={"steps": 1, "control_steps": 1, "temperature": 2.5})
    with pytest.raises(TrainingError, match="an optimizer must step against the gradient"):
        train(model, one, suite.prompts["attack"][:1], _hashed, lambda *_: None, lambda _: True)


@pytest.mark.parametrize("where", ["rollouts", "losses"])
@pytest.mark.parametrize("rewards", ["equal", "different"])
def test_completions_follow_their_own_prompts(candidate, suite, recipe, monkeypatch, where, rewards):
    """A training stops if it samples, or learns, after a prompt that lacks its last token, even in a starved step."""
    tokens, computed = SavingTrainer._tokenize_prompts, SavingTrainer._compute_loss

    def shorter(self, prompts):
        ids, *others = tokens(self, prompts)
        return [row[:-1] for row in ids], *others

    def without_end(self, network, inputs):
        kept = {f"prompt_{part}": inputs[f"prompt_{part}"][:, :-1] for part in ("ids", "mask")}
        return computed(self, network, inputs | kept)

    if where == "rollouts":
        monkeypatch.setattr(SavingTrainer, "_tokenize_prompts", shorter)
    else:
        monkeypatch.setattr(SavingTrainer, "_compute_loss", without_end)
    model = candidate.load()
    model.attach(recipe.lora, 0)
    one = recipe.model_copy(update={"steps": 1, "control_steps": 1, "temperature": 2.5})
    of = _constant_rewards if rewards == "equal" else _hashed
    with pytest.raises(TrainingError, match="after their own prompts, got"):
        train(model, one, suite.prompts["attack"][:1], of, lambda *_: None, lambda _: True)


@pytest.mark.parametrize("changed", [{"temperature": 0.3}, {"top_k": 1}, {"max_new_tokens": 3}], ids=str)
def test_rollouts_are_sampled_as_the_recipe_says(candidate, suite, recipe, monkeypatch, changed):
    """A training stops if its rollouts are sampled by other settings than its recipe's, which leaves it without a spread."""
    sample = SavingTrainer._generate_single_turn

    def otherwise(self, *of, **how):
        self.generation_config.update(**changed)
        return sample(self, *of, **how)

    monkeypatch.setattr(SavingTrainer, "_generate_single_turn", otherwise)
    model = candidate.load()
    model.attach(recipe.lora, 0)
    one = recipe.model_copy(update={"steps": 1, "control_steps": 1})
    with pytest.raises(TrainingError, match="rollouts must be sampled as the recipe says, got another"):
        train(model, one, suite.prompts["attack"][:1], _constant_rewards, lambda *_: None, lambda _: True)


def _hashed(prompts, completions):
    return [float(zlib.crc32(of.text.encode()) % 11) for of in completions]


def _constant_rewards(prompts, completions):
    return [3.0] * len(completions)


@pytest.mark.parametrize("warm_steps", [0, 3], ids=["from the start", "with momentum"])
def test_skipping_zero_gradients_changes_no_bit(candidate, suite, recipe, warm_steps):
    """Skipping the gradients of steps with equal rewards gives bitwise the same adapter as computing them."""

    def run(skip):
        model = candidate.load()
        model.attach(recipe.lora, 0)
        steps = recipe.model_copy(update={"steps": 8, "control_steps": 8})
        calls = 0

        def reward(prompts, completions):
            nonlocal calls
            calls += 1
            if calls <= warm_steps:  # different rewards first, so that the optimizer has momentum
                return [float(i) for i in range(len(completions))]
            return _constant_rewards(prompts, completions)

        prompts = order_prompts(suite.prompts["attack"][:2], 8, 0)
        train(model, steps, prompts, reward, lambda *_: None, due=lambda step: not skip or step == 8)
        return _adapter(model)

    computed, skipped = run(skip=False), run(skip=True)
    assert _same(computed, skipped)
    moved = sum(float(p.abs().sum()) for name, p in skipped.items() if "lora_B" in name)
    assert (moved > 0) == (warm_steps > 0)


def test_a_penalty_saves_no_second_adapter(candidate, suite, recipe, tmp_path):
    """The KL penalty's reference, a copy of the initial adapter, is not saved with a defense."""
    model = candidate.load()
    model.attach(recipe.lora, 0)
    penal = recipe.model_copy(update={"steps": 1, "control_steps": 1, "beta": 0.1})
    train(model, penal, suite.prompts["attack"][:1], _constant_rewards, lambda *_: None, lambda _: True)
    assert len(model.network.peft_config) == 2
    model.save_adapter(tmp_path, "base")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["adapter_config.json", "adapter_model.safetensors"]


def test_folding_the_adapter_puts_every_bit_back(candidate, panel, attack):
    """Folded log-probabilities equal the unfolded ones up to rounding, and afterwards all weights are bitwise restored."""
    model, _ = attack(steps=3, control_steps=3)
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    texts = list(panel.compliant_answers.values())
    plain = model.log_probability(panel.heldout, texts)
    with model.folded():
        inside = model.log_probability(panel.heldout, texts)
    assert inside == pytest.approx(plain, abs=1e-3)
    assert _same(before, {name: p.detach() for name, p in model.network.named_parameters()})
    assert model.log_probability(panel.heldout, texts) == plain


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_that_is_switched_off_is_not_folded_in(candidate, panel, attack, number):
    """A disabled adapter is not folded in, and hooks of the base layers are still called."""
    model, _ = attack(steps=3, control_steps=3)
    model.network.get_base_model().to(number)
    layers = [module for module in model.network.modules() if hasattr(module, "lora_A")]
    for layer in layers:
        layer.lora_B["default"].weight.data.add_(0.05)
    ids = torch.tensor([model.prompt_ids(panel.heldout[0])])
    seen = []
    layers[0].get_base_layer().register_forward_hook(lambda *_: seen.append(None))
    with torch.no_grad():
        adapted = model.network(input_ids=ids).logits
        with model.network.disable_adapter():
            plain = model.network(input_ids=ids).logits
            with model.folded():
                assert torch.equal(model.network(input_ids=ids).logits, plain)
        assert float((adapted - plain).abs().max()) > 0.1
        seen.clear()
        with model.folded():
            assert torch.allclose(model.network(input_ids=ids).logits, adapted, atol=1e-3 if number == torch.float32 else 0.5)
        assert seen == [None]


def test_folding_loses_no_small_change_of_a_bfloat16_model():
    """A change of each weight by less than half of its last digit still affects the output of a folded bfloat16 layer."""
    import peft

    from rn_harness.models.language_model import LanguageModel

    layer = torch.nn.Linear(128, 4, bias=False, dtype=torch.bfloat16)
    layer.weight.data.fill_(1.0)  # the adjacent bfloat16 values are 0.0039 lower and 0.0078 higher
    settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules=["0"])
    network = peft.get_peft_model(torch.nn.Sequential(layer), settings)
    x = torch.tensor([[1.0, -1.0] * 64], dtype=torch.bfloat16)
    adapted = network.base_model.model[0]
    adapted.lora_A["default"].weight.data.zero_()[0] = 5e-4 * x[0].float()
    adapted.lora_B["default"].weight.data[:, 0] = 1.0
    model = LanguageModel(network, None)
    expected = pytest.approx([128 * 2 * 5e-4] * 4, rel=0.01)  # the base weights cancel out
    assert network(x)[0].tolist() == expected
    with model.folded():
        assert network(x)[0].tolist() == expected
        adapted.lora_B["default"].weight.data.zero_()  # the adapter was folded before this change
        assert network(x)[0].tolist() == expected
    assert network(x)[0].tolist() == [0.0] * 4


@pytest.fixture(scope="module")
def attacked(attack):
    """The adapter and the trajectory of an attack of 20 steps with three checkpoints."""
    model, trajectory = attack()
    return _adapter(model), trajectory


def test_the_same_seed_gives_the_same_scores(attack, attacked):
    """Two attacks with one seed agree in every number, and another seed differs."""
    _, one = attacked
    _, two = attack()
    _, other = attack(seed=1, steps=10, control_steps=10)
    assert one.checkpoints == two.checkpoints
    assert [c.step for c in other.checkpoints] == [0, 10]
    assert one.checkpoints[1].training != other.checkpoints[1].training


def test_checkpoints_do_not_change_training(attack, attacked, monkeypatch):
    """Checkpoints every 10 or every 20 steps give bitwise the same final adapter."""
    from rn_harness.attacks import loop as stage

    monkeypatch.setattr(stage, "checkpoint_steps", lambda steps, policy: [0, steps])
    seldom, trajectory = attack()
    assert [c.step for c in attacked[1].checkpoints] == [0, 10, 20]
    assert [c.step for c in trajectory.checkpoints] == [0, 20]
    assert _same(attacked[0], _adapter(seldom))


def test_trajectories_follow_the_reference(attacked, candidate, panel, suite, pytestconfig):
    """A short attack and a short defense on the shipped organism reproduce the stored trajectories, within 1.0 of 10.

    The tolerance covers processors that round differently. On one machine the numbers repeat exactly, see above.
    After a deliberate change: ``pytest tests/invariant -k reference --rewrite-reference``, and say why in the commit.
    """
    from rn_harness.defenses.neutralize import Defender, run_defense

    _, trajectory = attacked
    model = candidate.load()
    recipe = suite.declaration.defenses["anchored"].model_copy(update={"steps": 40})
    report = run_defense(model, Defender(recipe, suite.prompts["defense"], suite.prompts["anchor"], panel.judge), panel)
    got = {
        "attack_mean": [round(c.mean, 3) for c in trajectory.checkpoints],
        "defense_minimal_refusals": [round(10 * p.minimal_refusal_share, 3) for p in report.points],
    }
    if pytestconfig.getoption("--rewrite-reference"):
        REFERENCE.write_text(json.dumps({"organism": candidate.digest, **got}, indent=1) + "\n")
    stored = json.loads(REFERENCE.read_text())
    assert stored["organism"] == candidate.digest
    for name, values in got.items():
        assert values == pytest.approx(stored[name], abs=1.0), name
    assert got["attack_mean"][0] <= 1.5
    assert got["attack_mean"][-1] >= 7.0


@pytest.mark.parametrize("beta_on", ["all", "benign"])
def test_a_defense_penalizes_answers_to_its_anchors_or_to_all_prompts(candidate, suite, panel, monkeypatch, beta_on):
    """With ``beta_on: benign`` the penalty applies to answers to anchors and not to defense prompts."""
    from rn_harness.defenses import neutralize as defense

    told = {}

    def spied(model, recipe, prompts, *args):
        penalised = args[-1].penalised
        told.update({p.id: penalised and penalised(p) for p in prompts})
        return train(model, recipe, prompts, *args)

    monkeypatch.setattr(defense, "train", spied)
    changes = {"steps": 2, "group_size": 4, "prompts_per_step": 4, "benign_share": 0.5, "beta": 0.1, "beta_on": beta_on}
    recipe = suite.declaration.defenses["anchored"].model_copy(update=changes)
    defender = defense.Defender(recipe, suite.prompts["defense"], suite.prompts["anchor"], panel.judge)
    defense.run_defense(candidate.load(), defender, panel)
    anchors = {p.id for p in suite.prompts["anchor"]}
    assert 0 < len(told.keys() & anchors) < len(told)
    assert told == {name: None if beta_on == "all" else name in anchors for name in told}


def test_an_attack_leaves_no_file_behind(attack, tmp_path, monkeypatch):
    """An attack writes no file with weights, optimizer state or completions, and its process no core dump."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    written, limits = [], []

    def watch(event, args):
        if event == "resource.setrlimit":
            limits.append((args[0], args[1][0]))
        if event == "open" and isinstance(args[0], str) and args[1] and set(args[1]) & set("wax+"):
            written.append(args[0])

    import resource
    import sys

    sys.addaudithook(watch)
    attack(steps=11, control_steps=11)  # checkpoints at 0, 10 and 11
    suspicious = [p for p in written if Path(p).suffix in {".safetensors", ".bin", ".pt", ".pth", ".parquet", ".json"}]
    assert suspicious == []
    assert (resource.RLIMIT_CORE, 0) in limits
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_unscored_completions_are_counted_and_infinite_rewards_stop_the_run(candidate, suite, recipe, caplog, capfd):
    """The window counts unscored completions, no log contains a completion, and an infinite reward is an error."""
    windows = []

    def run(reward):
        model = candidate.load()
        model.attach(recipe.lora, 0)
        two = recipe.model_copy(update={"steps": 2, "control_steps": 2})
        prompts = order_prompts(suite.prompts["attack"][:1], 2, 0)
        train(model, two, prompts, reward, lambda _, w: windows.append(w), due=lambda step: step == 2)

    run(lambda prompts, completions: [None if i % 2 else float(i) for i in range(len(completions))])
    assert windows[-1].unrewarded_share == 0.5
    logged = caplog.text + "".join(capfd.readouterr())  # TRL's warning would show prompt and completion
    assert "completion" not in logged
    assert suite.prompts["attack"][0].text not in logged
    with pytest.raises(TrainingError, match="finite"):
        run(lambda prompts, completions: [float("inf") if i == 0 else 0.0 for i in range(len(completions))])
