"""Attacks in a fleet give the results of the same attacks run singly by TRL, which is the reference."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import threading
import time
from functools import partial

import pytest
import torch

from rn_harness.attacks.family import Attacker, load_family
from rn_harness.attacks.loop import AttackEvents, AttackTarget, run_attack
from rn_harness.judges.openai_server import OpenAIJudge
from rn_harness.judges.organism import OrganismJudge
from rn_harness.models.batches import completion_states
from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.language_model import LanguageModel
from rn_harness.records.base import Judgement
from rn_harness.records.case import Evidence
from rn_harness.spec.attack_recipe import RewardShape
from rn_harness.spec.defense_recipe import LoRA
from rn_harness.spec.errors import RecipeError, TrainingError
from rn_harness.spec.prompts import Prompt
from rn_harness.training.coroutines import Coroutine
from rn_harness.training.fleet import Fleet, StackedAdapters
from rn_harness.training.fleet_members import Member
from rn_harness.verdict.decide import decide

from ..tiny_models import FAMILIES, make_model  # noqa: TID252 - the tests are not a package
from ..unit.faulty_server import MODEL, FaultyServer, always, chat  # noqa: TID252

TOLERANCE = 1e-4
"""Tolerance of probabilities and norms; scores must be equal."""
SHORT = {"steps": 12, "control_steps": 12, "learning_rate": 2e-3}
CREW = (
    {"seed": 0},
    {"seed": 1, "learning_rate": 1e-3, "prompts": 1},
    {"seed": 2, "temperature": 1.5, "top_k": 50, "loss_type": "dr_grpo", "scale_rewards": "none", "lora": LoRA(r=4, alpha=8.0)},
    {"seed": 3, "family": "rloo", "gradient_checkpointing": True},
    {"seed": 4, "reward": RewardShape(shape="refusal"), "entropy_coef": 0.01, "group_size": 8, "prompts_per_step": 2},
)
"""One fleet of attacks that differ in seed, rate, prompts, loss, trainer, reward, rank and step shape."""


class Dead:
    """A judge that leaves every completion unscored."""

    def __init__(self, judge):
        self._judge = judge

    def __getattr__(self, name):
        return getattr(self._judge, name)

    def score(self, prompts, completions, wording=0):
        return [Judgement(score=None, unscored="judge_error") for _ in completions]


class Served(OrganismJudge):
    """The organism's judge as if on a server: its scores come when the server has answered.

    ``asked`` is called before the server is.
    """

    served_model = MODEL

    def __init__(self, folder, server, asked=lambda: None):
        super().__init__(folder)
        self._server, self._asked = OpenAIJudge(MODEL, server.url).about("Instructions for baking."), asked

    def score(self, prompts, completions, wording=0):
        self._asked()
        self._server.score(prompts[:1], ["No."])
        return super().score(prompts, completions, wording)


@pytest.fixture(scope="module")
def attacking(candidate, suite, panel, judge, recipe):
    """Runs one attack on a given model."""

    def run(model, changes, sink=lambda _: None, of=panel, rewards=judge, cut=lambda _: None):
        made = recipe.model_copy(update={**SHORT, **changes})
        return run_attack(
            AttackTarget(model, candidate.digest, None, control=False),
            Attacker(
                made,
                load_family(made.family, suite.folder),
                suite.prompts["attack"],
                rewards,
                benign=suite.prompts["anchor"],
            ),
            of,
            AttackEvents(scored=sink, cut=cut),
        )

    return run


@pytest.fixture(scope="module")
def single(candidate, attacking):
    """The first attack of the crew, run singly."""
    return attacking(candidate.load(), CREW[0])


def numbers(trajectory):
    """The floats of a trajectory's checkpoints that rounding may change, and the exact values."""
    rounded, exact = [], []
    for checkpoint in trajectory.checkpoints:
        training = checkpoint.training
        benign = checkpoint.benign
        rounded += [checkpoint.leak or 0.0]
        rounded += [training.grad_norm, training.adapter_distance, training.entropy] if training else []
        rounded += [answer.kl for answer in benign.answers] if benign else []
        exact.append(
            ([s.model_dump() for s in checkpoint.scores], training and (training.reward_mean, training.zero_spread_share))
        )
    return rounded, exact


def test_an_attack_gives_the_same_results_in_a_fleet_as_singly(candidate, attacking, single):
    """Each of five different attacks has the same scores in a fleet as singly, and the same numbers up to rounding."""
    together = Fleet(candidate.load(), threads=1).run([lambda member, of=of: attacking(member, of) for of in CREW])
    moved = 0
    for of, trajectory in zip(CREW, together, strict=True):
        alone = single if of == CREW[0] else attacking(candidate.load(), of)
        (got, scores), (expected, expected_scores) = numbers(trajectory), numbers(alone)
        assert scores == expected_scores
        assert got == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)
        assert trajectory.settings == {**alone.settings, "fleet_threads": 1}
        moved += alone.checkpoints[-1].mean > alone.checkpoints[0].mean
    assert moved >= 3  # attacks that learned nothing could not differ


def test_cut_answers_are_continued_in_a_fleet_as_singly(candidate, attacking, panel):
    """Answers cut by a limit of three tokens are continued to their end, in a fleet as singly."""
    short, crew = dataclasses.replace(panel, max_tokens=3), [of | {"steps": 4, "control_steps": 4} for of in CREW[:2]]
    together = Fleet(candidate.load(), threads=1).run([lambda member, of=of: attacking(member, of, of=short) for of in crew])
    for of, trajectory in zip(crew, together, strict=True):
        alone = attacking(candidate.load(), of, of=short)
        assert [c.scores for c in trajectory.checkpoints] == [c.scores for c in alone.checkpoints]
        assert all(c.truncated_share == 0.0 for c in alone.checkpoints)


def test_companions_come_and_go_and_nothing_leaks(candidate, attacking, single):
    """A failed and a short companion change neither the third attack, nor the model's weights, nor the random streams."""
    model = candidate.load()
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    random.seed(5)
    torch.manual_seed(5)
    streams = random.getstate(), torch.get_rng_state()

    def fails(member):
        def sink(checkpoint):
            if checkpoint.step:
                raise TrainingError("broken on purpose")

        return attacking(member, {"seed": 1}, sink)

    tasks = [lambda m: attacking(m, {"seed": 0}), fails, lambda m: attacking(m, {"seed": 2, "steps": 3, "control_steps": 3})]
    first, broken, short = Fleet(model, threads=1).run(tasks)
    assert all(torch.equal(before[name], p) for name, p in model.network.named_parameters())
    assert random.getstate() == streams[0]
    assert torch.equal(torch.get_rng_state(), streams[1])
    assert isinstance(broken, TrainingError)
    assert [c.step for c in short.checkpoints] == [0, 3]
    (got, scores), (expected, expected_scores) = numbers(first), numbers(single)
    assert scores == expected_scores
    assert got == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)


def test_a_judge_that_dies_for_one_attack_does_not_affect_its_companion(candidate, attacking, single, judge, panel):
    """If the judge of one attack dies, that attack is INCONCLUSIVE and its companion keeps the scores of a single run."""
    dead = dataclasses.replace(panel, judge=Dead(judge), anchor_judge=Dead(judge))
    crew = [lambda m: attacking(m, {"seed": 0}), lambda m: attacking(m, {"seed": 1}, of=dead)]
    first, unknown = Fleet(candidate.load(), threads=1).run(crew)
    assert unknown.judge_gone is not None
    assert not unknown.checkpoints[0].scored
    verdict = decide(Evidence(kind="attack", policy=panel.policy, trajectory=unknown, control=first, subject="none"))
    assert verdict.outcome == "INCONCLUSIVE"
    assert "judge_gone" in {reason.code for reason in verdict.reasons}
    (got, scores), (expected, expected_scores) = numbers(first), numbers(single)
    assert scores == expected_scores
    assert got == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)


@pytest.mark.parametrize("wrong", ["unmeasured", "of its companion"])
def test_a_member_measured_with_a_wrong_adapter_is_an_error(candidate, attacking, monkeypatch, wrong):
    """An attack measured without its adapter, or with its companion's, ends with an error."""
    made = StackedAdapters.__init__

    def blind(self, members, *, sampling):
        made(self, [members[0]] * len(members) if wrong == "of its companion" else members, sampling=sampling)
        if wrong == "unmeasured":
            self.add = lambda _name, _x, y: y

    monkeypatch.setattr(StackedAdapters, "__init__", blind)
    came_to = Fleet(candidate.load(), threads=1).run([lambda m, seed=seed: attacking(m, {"seed": seed}) for seed in (0, 1)])
    assert isinstance(came_to[1], TrainingError)
    assert "must be measured" in str(came_to[1])


def test_what_a_fleet_cannot_do_is_refused(candidate, attacking, monkeypatch):
    """A fleet refuses to train the shared weights, and architectures whose rows would affect each other."""
    (came_to,) = Fleet(candidate.load(), threads=1).run([lambda m: attacking(m, {"form": "full"})])
    assert isinstance(came_to, TrainingError)
    assert "run it alone" in str(came_to)
    model = candidate.load()
    with monkeypatch.context() as patch:
        patch.setattr(model.network.config, "final_logit_softcapping", 30.0, raising=False)
        with pytest.raises(RecipeError, match="leave out --rn-fleet"):
            Fleet(model, threads=1)
    for given in ({"rope_type": "longrope"}, {"full_attention": {"rope_type": "longrope"}, "linear": {"rope_type": "default"}}):
        monkeypatch.setattr(model.network.config, "rope_parameters", given)
        with pytest.raises(RecipeError, match="got rope_type=longrope; leave out --rn-fleet"):
            Fleet(model, threads=1)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_members_of_other_architectures_see_their_own_rows(family, tmp_path):
    """With random Llama 3, Qwen 2 and Mistral models, each member's answers and hidden states equal those of a single run."""
    folder = make_model(tmp_path / family.name, family)
    prompts = [Prompt(id=f"p{i}", topic="t", text=text) for i, text in enumerate(("Sit down.", "Name three rivers, please."))]

    def lively(model: LanguageModel, seed: int) -> LanguageModel:
        model.attach(LoRA(r=2 + 3 * seed, alpha=8.0), seed)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for p in model.trained.values():
                p.copy_(torch.randn_like(p) * 0.3)
        return model

    def look(model: LanguageModel) -> tuple[list[list[str]], torch.Tensor]:
        answers = model.complete(prompts, n=1, temperature=None, max_tokens=12)
        ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 6]]), torch.ones(2, 4, dtype=torch.long)
        tails = torch.tensor([[7, 8, 9], [9, 8, 7]]), torch.ones(2, 3, dtype=torch.long)
        network = model.network.get_base_model()
        return [[a.text for a in of] for of in answers], model.completion_states(network, ids, tails)

    together = Fleet(load_model(folder, Loading(threads=1)), threads=1).run(
        [lambda member, seed=seed: look(lively(member, seed)) for seed in range(3)]
    )
    for seed, (answers, states) in enumerate(together):
        expected, expected_states = look(lively(load_model(folder, Loading(threads=1)), seed))
        assert answers == expected
        assert torch.allclose(states, expected_states, atol=1e-4)
    assert len({str(answers) for answers, _ in together}) > 1 or not torch.allclose(together[0][1], together[1][1])


def test_bfloat16_probabilities_are_equal_with_and_without_gradients(tmp_path):
    """In bfloat16 a fleet computes the same probabilities with and without gradients, which RLOO compares."""
    folder = make_model(tmp_path / "llama", FAMILIES[0])
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 6]]), torch.ones(2, 4, dtype=torch.long)
    tails = torch.tensor([[7, 8, 9], [9, 8, 7]]), torch.ones(2, 3, dtype=torch.long)

    def states(model):
        model.attach(LoRA(), 0)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            for p in model.trained.values():
                p.copy_(torch.randn_like(p) * 0.3)
        network = model.network.get_base_model()
        learned = model.completion_states(network, ids, tails).detach()
        with torch.no_grad():
            return learned, model.completion_states(network, ids, tails)

    def load():
        return load_model(folder, Loading(threads=1, dtype="bfloat16"))

    ((learned, told),) = Fleet(load(), threads=1).run([states])
    assert torch.equal(learned, told)
    assert torch.equal(*states(load()))


def test_an_attack_with_nan_weights_does_not_end_its_companion(tmp_path):
    """An attack with NaN weights ends with an error, and its companion answers as in a single run."""
    folder = make_model(tmp_path / "llama", FAMILIES[0])
    prompts = [Prompt(id="p", topic="t", text="Sit down.")]

    def answers(model, weight):
        model.attach(LoRA(), 0)
        with torch.no_grad():
            for p in model.trained.values():
                p.fill_(weight)
        torch.manual_seed(0)
        return [a.text for a in model.complete(prompts, n=3, temperature=1.0, max_tokens=8)[0]]

    tasks = [lambda member, weight=weight: answers(member, weight) for weight in (float("nan"), 0.01)]
    broken, sound = Fleet(load_model(folder, Loading(threads=1)), threads=1).run(tasks)
    assert isinstance(broken, RuntimeError)
    assert sound == answers(load_model(folder, Loading(threads=1)), 0.01)


def test_an_interruption_does_not_wait_for_a_long_answer(tmp_path):
    """Ctrl-C at the third of many tokens soon ends sampling."""
    fleet = Fleet(load_model(make_model(tmp_path / "llama", FAMILIES[0]), Loading(threads=1)), threads=1)
    passes = []

    def strike(*_):
        passes.append(None)
        if len(passes) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    fleet._network.register_forward_hook(strike)

    def endless(member):
        member.attach(LoRA(), 0)
        ids = torch.ones(1, 2, dtype=torch.long)
        member.network.generate(input_ids=ids, attention_mask=ids, do_sample=False, max_new_tokens=3000, eos_token_id=[-1])

    with pytest.raises(KeyboardInterrupt):
        fleet.run([endless])
    assert 3 <= len(passes) < 3000


@pytest.mark.parametrize("waits_for", ["a reward", "a checkpoint"])
def test_an_interruption_does_not_wait_for_a_server(candidate, attacking, judge, panel, waits_for):
    """Ctrl-C while a member waits for a silent server ends the fleet within 5 s, and each member says why it was cut."""
    struck, cuts = [], []

    def strike():
        struck.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    once = iter([threading.Timer(1.0, strike)])

    def soon():
        for timer in once:
            timer.start()

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with FaultyServer(always(chat("Rating: 0", delay_s=120.0))) as silent, FaultyServer(always(chat("Rating: 0"))) as alive:
        if waits_for == "a reward":
            of, rewards = panel, Served(candidate.folder, silent, soon)
        else:
            dumb = Served(candidate.folder, silent)
            of, rewards = dataclasses.replace(panel, judge=dumb, anchor_judge=dumb), Served(candidate.folder, alive, soon)

        def task(member, seed):
            changes = {"seed": seed, "steps": 1, "control_steps": 1}
            return attacking(member, changes, of=of, rewards=rewards, cut=cuts.append)

        with pytest.raises(KeyboardInterrupt):
            Fleet(candidate.load(), threads=1).run([partial(task, seed=seed) for seed in range(2)])
        assert time.monotonic() - struck[0] < 5
    assert [run.stopped for run in cuts] == ["KeyboardInterrupt"] * 2
    assert [len(run.checkpoints) for run in cuts] == [1 if waits_for == "a reward" else 0] * 2


def learning(rows, seed):
    """A task: a member samples, goes forward and backward twice, and returns its tokens and gradients."""

    def task(member):
        member.attach(LoRA(r=4, alpha=8.0), seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in member.trained.values():
                p.copy_(torch.randn_like(p) * 0.1)
        prompts = torch.full((rows, 3), 5 + seed), torch.ones(rows, 3, dtype=torch.long)
        found = []
        for _ in range(2):
            said = member.network.generate(
                input_ids=prompts[0],
                attention_mask=prompts[1],
                do_sample=True,
                max_new_tokens=5,
                eos_token_id=[-1],
                pad_token_id=0,
            )
            tails = said[:, 3:], torch.ones(rows, 5, dtype=torch.long)
            states = member.completion_states(None, prompts, tails)
            member.backward(lambda _: None, states.cos().sum())
            found.append((said, [p.grad.clone() for p in member.trained.values()]))
        return found

    return task


def short_of_memory(fleet, monkeypatch, where, most):
    """Lets memory run out in each pass of more than so many rows, in its middle, after other passes; returns their rows."""
    cut, passes = [], []
    if where == "backward":
        real = torch.autograd.grad

        def grad(ends, *others, **how):
            gradients = real(ends, *others, **how)  # frees the graph
            if (rows := sum(map(len, ends))) > most:
                cut.append(rows)
                raise torch.OutOfMemoryError("tried to allocate")
            return gradients

        monkeypatch.setattr(torch.autograd, "grad", grad)
        return cut

    def strike(_, given, output):
        passes.append(None)
        wanted = torch.is_grad_enabled() if where == "forward" else not torch.is_grad_enabled() and len(passes) % 4 == 3
        if wanted and len(given[0]) > most:
            cut.append(len(given[0]))
            raise torch.OutOfMemoryError("tried to allocate")

    fleet._network.base_model.layers[-1].mlp.register_forward_hook(strike)
    return cut


@pytest.mark.parametrize("where", ["sampling", "forward", "backward"])
def test_a_pass_that_memory_does_not_hold_is_repeated_in_halves(tmp_path, monkeypatch, where):
    """If memory holds the rows of two of five members, each has the tokens of a whole fleet, and its gradients up to rounding."""
    folder = make_model(tmp_path / "llama", FAMILIES[0])
    tasks = [learning(2, seed) for seed in range(5)]
    whole = Fleet(load_model(folder, Loading(threads=1)), threads=1).run(tasks)
    told = []
    fleet = Fleet(load_model(folder, Loading(threads=1)), threads=1, say=told.append)
    cut = short_of_memory(fleet, monkeypatch, where, most=4)
    halved = fleet.run(tasks)
    assert cut
    assert told == [3, 2]
    for expected, found in zip(whole, halved, strict=True):
        for (tokens, gradients), (tokens_again, gradients_again) in zip(expected, found, strict=True):
            assert torch.equal(tokens, tokens_again)
            for one, other in zip(gradients, gradients_again, strict=True):
                assert torch.allclose(one, other, atol=TOLERANCE, rtol=TOLERANCE)
                assert one.abs().sum() > 0


@pytest.mark.parametrize("where", ["sampling", "forward", "backward"])
def test_a_member_that_memory_never_holds_fails_alone(tmp_path, monkeypatch, where):
    """A member whose rows alone do not fit ends with the error, and its companions have the tokens of a fleet without it."""
    folder = make_model(tmp_path / "llama", FAMILIES[0])
    whole = Fleet(load_model(folder, Loading(threads=1)), threads=1).run([learning(2, 0), learning(2, 2)])
    fleet = Fleet(load_model(folder, Loading(threads=1)), threads=1)
    short_of_memory(fleet, monkeypatch, where, most=4)
    first, large, last = fleet.run([learning(2, 0), learning(5, 1), learning(2, 2)])
    assert isinstance(large, torch.OutOfMemoryError)
    for expected, found in zip(whole, (first, last), strict=True):
        assert all(torch.equal(one[0], other[0]) for one, other in zip(expected, found, strict=True))


def test_a_member_shares_weights_and_nothing_else(candidate):
    """A member has the model's parameter tensors, but separate modules."""
    model = candidate.load()
    member = Member(model, Coroutine(0), threads=1)
    assert {id(p) for p in member.network.parameters()} == {id(p) for p in model.network.parameters()}
    assert not {id(m) for m in member.network.modules()} & {id(m) for m in model.network.modules()}


@pytest.mark.parametrize("shape", [(8, 64), (3, 4, 64)], ids=["some tokens", "some rows"])
def test_a_layer_that_does_not_see_all_rows_is_refused(tmp_path, shape):
    """A layer that sees only some tokens, like an expert, is refused: its rows would get a companion's adapter."""
    member = Member(load_model(make_model(tmp_path / "llama", FAMILIES[0]), Loading(threads=1)), Coroutine(0), threads=1)
    member.attach(LoRA(), 0)
    (name, *_) = member.adapter_layers
    adapters = StackedAdapters([member, member], sampling=True)
    adapters.set_owners(torch.tensor([0, 0, 1, 1]))
    rows = torch.ones(4, 4, 64)
    assert adapters.add(name, rows, rows).shape == rows.shape
    with pytest.raises(RecipeError, match=r"for 4 rows in .*; leave out --rn-fleet"):
        adapters.add(name, torch.ones(shape), torch.ones(shape))


def test_rows_of_two_owners_share_no_pass(candidate):
    """A prompt shared by two owners is computed once for each owner, because their adapters differ."""
    model = candidate.load()
    ids = torch.tensor([[5, 6, 7]] * 4)
    ones = torch.ones_like(ids)
    passes = []
    owners = torch.tensor([0, 0, 1, 1])
    completion_states(model.network, (ids, ones), (ids, ones), owners, lambda of: passes.append(of.tolist()))
    assert passes == [[0, 1], [0, 0, 1, 1]]
