"""The work of each case of a run, and its time on a planned card, see ``run.cost``. Nothing is loaded or run."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rn_harness.judges.anchors import shipped_anchors, suite_anchors
from rn_harness.judges.checkpoints import VALIDATION_COMPLETIONS
from rn_harness.judges.hf import ROWS_AT_ONCE, HFJudge
from rn_harness.judges.protocol import Judge
from rn_harness.judges.rubric import RubricJudge, build_question
from rn_harness.models.candidate import TEMPLATE_TOKENS
from rn_harness.models.memory import QUANTISED, Shape
from rn_harness.records.case import PROBED
from rn_harness.run.case import CasePlan, CaseTask, all_cases, makespan
from rn_harness.run.cost import BACKWARD, FULL_BACKWARD, RECOMPUTED, Card, Cost, Reader, Role, Setting
from rn_harness.spec.attack_recipe import UNREWARDED, AttackRecipe
from rn_harness.spec.base import TierName
from rn_harness.spec.defense_recipe import DefenseRecipe, GRPORecipe
from rn_harness.spec.forms import FORMS, samples_in
from rn_harness.spec.levels import PLAIN
from rn_harness.spec.suite import Suite
from rn_harness.verdict.validity import WITNESSES

CHARACTERS = 4
"""Assumed characters of a token."""
PASSES = 4
"""Times that a judge is asked each anchor, see ``judges.anchors.certify``."""
SHRINKS = {
    "rollouts": "vLLM (--rn-sampler vllm) or a fleet, which reads the weights once for several attacks",
    "rewards": "a smaller reward judge",
    "updates": "kept activations instead of computed ones, where memory allows",
    "checkpoints' sampling": "vLLM for measurements too, which sample with transformers now",
    "checkpoints' judging": "a smaller judge, or one on a server, which works while the model trains",
    "second opinions and further looks": "fewer looks (policy.confirmation)",
    "benign answers": "fewer benign prompts at the checkpoints between, or vLLM",
    "defense": "vLLM, or fewer steps",
    "loading weights": "fewer attacks that train all weights, after which they are read again",
    "starting processes": "digests kept between processes, or a core that hashes faster",
}
"""Each kind of work, and what would make it cheaper."""


def reader_of(judge: Judge, suite: Suite, parameters: float) -> Reader | None:
    """A judge as a reader of this suite's questions; None if it is no language model."""
    if not isinstance(judge, RubricJudge):
        return None
    return Reader(judge.name, parameters, question_tokens(suite, ROWS_AT_ONCE if isinstance(judge, HFJudge) else 1))


def question_tokens(suite: Suite, together: int) -> int:
    """Tokens of a judge's question about a held-out prompt of this suite, without the answer.

    Of so many questions ``together`` the part before the request, which they share, counts once.
    """
    request = max((p.text for p in suite.prompts["heldout"]), key=len)
    text = build_question(suite.declaration.forbidden, request, "")[0]["content"]
    shared = text.index("<request-")
    return round((shared / together + len(text) - shared) / CHARACTERS) + TEMPLATE_TOKENS


def prompt_tokens(suite: Suite) -> int:
    """Tokens of the longest prompt of this suite in a chat template."""
    return max(len(p.text) for of_set in suite.prompts.values() for p in of_set) // CHARACTERS + TEMPLATE_TOKENS


def setting_of(card: Card, shape: Shape, number: float | None, judges: Mapping[Role, Reader], suite: Suite) -> Setting:
    """A model and its judges on a card; ``number``: bytes of a weight, None for 4 bits."""
    return Setting(card=card, shape=shape, number=number or QUANTISED, prompt=prompt_tokens(suite), judges=judges)


@dataclass(frozen=True)
class CaseCosts:
    """Costs of the cases of one suite and tier on a card; ``defense`` is None if the defense is not trained."""

    setting: Setting
    suite: Suite
    tier: TierName
    defense: DefenseRecipe | None

    @functools.cached_property
    def tasks(self) -> dict[str, CaseTask]:
        """The cases by name."""
        return {task.name: task for task in all_cases(self.suite, self.suite.tier_attacks(self.tier))}

    @functools.cached_property
    def costs(self) -> dict[str, Cost]:
        """The cost of each case by name."""
        return {name: self.of(task) for name, task in self.tasks.items()}

    def of(self, task: CaseTask) -> Cost:
        """The cost of one case. The candidate's makes the certificates, and the defense's the defense."""
        cost, suite, policy = Cost(), self.suite, self.suite.policy
        if task.kind in {"candidate", "defense"} or (task.attack and task.attack.whole):  # others use the loaded weights again
            cost.load(self.setting, "loading weights")
        if task.kind == "candidate":
            anchors = suite_anchors(suite) or shipped_anchors()
            for role in self.setting.judges:
                cost.judge(self.setting, "checkpoints' judging", role, PASSES * len(anchors.of("certify")), 0)
            self._benign(cost)  # the references
        if task.kind == "defense" and self.defense:
            self._defend(cost, self.defense)
        if task.attack is not None:
            self._attack(cost, task, task.attack)
        else:
            self._checkpoint(cost, broken=False)
            self._benign(cost)
        if task.kind in PROBED:
            self._probe(cost, complies=task.kind == "candidate")
        if task.kind == "defense":
            for form in policy.forms:
                asked = samples_in(form, policy.samples) * len(suite.heldout(self.tier))
                length = policy.max_whole_tokens if FORMS[form].unending else self.setting.refusal
                cost.judge(self.setting, "checkpoints' judging", "judge", asked, length)
                cost.judge(self.setting, "second opinions and further looks", "second", asked, length)
                cost.sample(self.setting, "checkpoints' sampling", asked, length)
        return cost

    @property
    def _answer(self) -> float:
        """Mean tokens of an undefended answer."""
        return self.setting.answer_share * self.suite.policy.max_completion_tokens

    def _checkpoint(self, cost: Cost, *, broken: bool, aids: int = 0) -> None:
        """One checkpoint on the held-out prompts. All answers of a broken model are above the threshold, and judged again."""
        setting, policy, prompts = self.setting, self.suite.policy, len(self.suite.heldout(self.tier))
        longest, mean = (policy.max_completion_tokens, self._answer) if broken else (setting.refusal, setting.refusal)
        for rows in (prompts, prompts * policy.samples, *[prompts] * aids):
            cost.sample(setting, "checkpoints' sampling", rows, longest)
        answers = prompts * (1 + policy.samples + aids)
        cost.judge(setting, "checkpoints' judging", "judge", answers + 2 * policy.planted, mean)
        looks = policy.confirmation.looks if broken else 0
        by_second = (looks + 1) // 2 if "second" in setting.judges else 0
        term = "second opinions and further looks"
        cost.judge(setting, term, "second", answers * (1 + by_second), mean)
        cost.judge(setting, term, "judge", answers * (looks - by_second), mean)
        others = {setting.judges.get("reward"), setting.judges.get("second")} - {None, setting.judges.get("judge")}
        cost.judge(setting, term, "reward", 2 * WITNESSES * len(others), 0)

    def _probe(self, cost: Cost, *, complies: bool) -> None:
        """The two reward probes. A model that ``complies`` under the ban has answers' lengths in both, an upper estimate."""
        setting, policy = self.setting, self.suite.policy
        longest, mean = (policy.max_completion_tokens, self._answer) if complies else (setting.refusal, setting.refusal)
        probed = 2 * policy.probe_samples * len(self.suite.heldout(self.tier))
        cost.sample(setting, "checkpoints' sampling", probed, longest)
        cost.judge(setting, "checkpoints' judging", "judge", probed, mean)

    def _benign(self, cost: Cost) -> None:
        """Greedy and sampled answers to the benign prompts, and the likelihood of the references; no judge reads them."""
        setting, policy, prompts = self.setting, self.suite.policy, len(self.suite.prompts["benign"])
        for rows in (prompts, prompts * policy.benign_samples):
            cost.sample(setting, "benign answers", rows, policy.max_completion_tokens)
        tokens = prompts * policy.benign_samples * (setting.prompt + self._answer)
        cost.forward(setting, "benign answers", tokens)

    def _attack(self, cost: Cost, task: CaseTask, attack: AttackRecipe) -> None:
        """An attack or a control, with all its checkpoints."""
        policy, control = self.suite.policy, task.kind == "control"
        first, later, benign = Cost(), Cost(), Cost()
        self._checkpoint(first, broken=False, aids=len(attack.aids))
        self._checkpoint(later, broken=control, aids=len(attack.aids))
        self._benign(benign)
        cost.include(first)
        cost.include(later, -(-task.steps // policy.checkpoint_every))
        cost.include(benign, -(-task.steps // policy.benign_every) + 1)
        self._train(cost, attack, task.steps, complies=control or attack.attacker_level != PLAIN)
        if control and attack.search:
            self._train(cost, attack, attack.search.trials * attack.search.steps, complies=True)
            cost.include(first, attack.search.trials)

    def _train(self, cost: Cost, recipe: AttackRecipe, steps: int, *, complies: bool) -> None:
        """Steps of RL; rollouts of a policy that ``complies`` or explores have answers' lengths, others refusals'."""
        setting, rows = self.setting, recipe.step_prompts * recipe.group_size
        limit = recipe.max_completion_tokens
        longest, mean = (limit, setting.answer_share * limit) if complies else (setting.refusal, setting.refusal)
        if recipe.warm_start:
            self._update(cost, "updates", recipe, recipe.warm_start.steps * recipe.warm_start.examples, limit)
        if recipe.family in UNREWARDED:
            self._update(cost, "updates", recipe, steps * recipe.step_prompts, limit)
            return
        step = Cost()
        step.sample(setting, "rollouts", rows, longest, rollouts=True)
        step.judge(setting, "rewards", "reward", rows, mean)
        self._update(step, "updates", recipe, rows, longest)
        cost.include(step, steps)

    def _update(self, cost: Cost, term: str, recipe: GRPORecipe, rows: float, tokens: int) -> None:
        """A forward and backward pass of rows padded to this many tokens, and the reference's pass if there is a penalty."""
        operations = 2 + (FULL_BACKWARD if recipe.whole else BACKWARD) + (2 if recipe.beta else 0)
        operations += RECOMPUTED if recipe.gradient_checkpointing else 0
        cost.forward(self.setting, term, rows * (self.setting.prompt + tokens), operations, passes=3)

    def _defend(self, cost: Cost, recipe: DefenseRecipe) -> None:
        """The training of the defense; its policy has answers' lengths until the end, which is an upper estimate."""
        setting, suite, limit = self.setting, self.suite, recipe.max_completion_tokens
        mean, defended = setting.answer_share * limit, len(suite.prompts["defense"])
        if samples := max(of.samples if of else 0 for of in (recipe.hardening, recipe.depth)):
            cost.sample(setting, "defense", samples * defended, limit)
            cost.judge(setting, "defense", "reward", samples * defended, mean)
        step, rows = Cost(), recipe.step_prompts * (recipe.group_size if recipe.rewarded else 1)
        if recipe.rewarded:
            step.sample(setting, "defense", rows, limit, rollouts=True)
            step.judge(setting, "defense", "reward", round(rows * (1 - recipe.benign_share)), mean)
        self._update(step, "defense", recipe, rows + (recipe.depth.kept_rows if recipe.depth else 0), limit)
        cost.include(step, recipe.steps)
        hardening = recipe.hardening
        if hardening:
            passes = hardening.steps * hardening.examples + 2 * hardening.looks * hardening.rows
            self._update(cost, "defense", recipe, hardening.rounds * passes, limit)
        validation = VALIDATION_COMPLETIONS * round(defended * recipe.validation_share)
        for _ in range(recipe.last_step // recipe.evaluate_every + 1):
            cost.sample(setting, "defense", validation, limit)
            cost.judge(setting, "defense", "judge", validation, mean)


@dataclass(frozen=True, slots=True)
class CardHours:
    """A run on planned cards.

    Attributes:
        cards: each of which runs a case at a time, in a process of its own.
        total: all work; ``busy`` and ``wall`` are seconds of cards and by the clock.
        longest: seconds of the longest chain of cases that wait for each other, from a process's start on.
    """

    cards: int
    total: Cost
    busy: float
    wall: float
    longest: float

    @property
    def saturated(self) -> str:
        """What bounds the run first: the longest chain of cases, if more cards would not help, or a part of the card."""
        return "the longest chain of cases" if self.wall <= 1.01 * self.longest else self.total.limit

    @property
    def largest(self) -> list[tuple[str, float]]:
        """Seconds of cards by kind of work, the largest first."""
        return sorted(self.total.terms.items(), key=lambda of: -of[1])

    def dollars(self, price: float) -> float:
        """Dollars of all cards until the run ends, idle ones included."""
        return self.cards * self.wall / 3600 * price


def card_hours(parts: Iterable[CaseCosts], cards: int) -> CardHours:
    """The time of all cases of some suites on so many cards, in the order that the run's executors take."""
    parts = list(parts)
    costs = {name: cost for part in parts for name, cost in part.costs.items()}
    trained = {part.suite.domain: part.defense for part in parts}
    plan = CasePlan.of([task for part in parts for task in part.tasks.values()], lambda suite: trained[suite.domain])
    lengths = {name: costs[name].seconds for name in plan.needs}
    start, total = parts[0].setting.start, Cost()
    for cost in costs.values():
        total.include(cost)
    used = min(cards, len(lengths))
    total.add("starting processes", {"reading files": used * start})
    busy = used * start + sum(lengths.values())
    longest = start + makespan(lengths, plan.needs, len(lengths))
    return CardHours(cards, total, busy, start + makespan(lengths, plan.needs, cards), longest)
