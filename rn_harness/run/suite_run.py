"""State that the cases of one suite share in one process: judges, defended model, found settings, answers of controls."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from rn_harness.attacks.family import Attacker
from rn_harness.attacks.search import SearchResult, SearchTrial, search_settings
from rn_harness.judges.panel import ControlAnswers
from rn_harness.records.keys import content_key
from rn_harness.report.progress import Progress
from rn_harness.run.case import Defended
from rn_harness.run.defense_maker import make_defended
from rn_harness.run.judging import Judging
from rn_harness.run.plan import CaseTask
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import UnsuitedError
from rn_harness.store.provenance import attempt
from rn_harness.verdict.coherence import UNDEFENDED
from rn_harness.verdict.validity import NO_DEFENSE

SEARCH = "search.json"


@dataclass
class SuiteRun(Judging):
    """One suite in a run.

    Attributes:
        control_answers: harmful answers of the controls that ran here, by attack id. They are kept in memory only.
        first_looks: measurements at step 0 that the attacks on one model share, by digest of the defended weights.
        found: settings that searches found, by attack id.
    """

    control_answers: dict[str, ControlAnswers] = field(default_factory=dict)
    first_looks: dict[str | None, dict[str, Any]] = field(default_factory=dict)
    found: dict[str, SearchResult] = field(default_factory=dict)

    @functools.cached_property
    def defended(self) -> Defended:
        """The candidate with this run's defense; see ``make_defended``."""
        return make_defended(self)

    def model_under_test(self, task: CaseTask) -> Defended:
        """The model that a case is measured on."""
        return Defended(self.context.candidate, NO_DEFENSE) if task.kind in UNDEFENDED else self.defended

    def case_inputs(self, task: CaseTask) -> dict[str, Any]:
        """The inputs of a case; their digest is its key."""
        attack = self.context.attack_inputs(self.suite, task.attack, self.trials(task.attack))
        return self.inputs.case(task.kind, self.model_under_test(task).digest, **attack)

    def trials(self, attack: AttackRecipe | None) -> Any:
        """The trials of the search that found an attack's settings; None without a search."""
        found = self.found.get(attack.id) if attack and attack.search else None
        return found.model_dump(mode="json")["trials"] if found else None

    def attacker(self, attack: AttackRecipe) -> Attacker:
        """An attack's settings, with the prompts, the judge and the sampler that it trains with."""
        context, suite, trials = self.context, self.suite, self.trials(attack)
        return Attacker(
            recipe=attack,
            family=context.family(suite, attack),
            pool=suite.attack_pool(attack),
            reward_judge=context.reward_judge(suite, attack),
            benign=suite.prompts["anchor"],
            answers=self.known_answers,
            sampler=context.sampler,
            searched={"engine": "optuna TPE", "trials": trials} if trials is not None else None,
        )

    def answers_of_control(self, task: CaseTask) -> ControlAnswers | None:
        """Answers of an attack's control; for the defense, those of the tier's first control. None if no control ran here."""
        if task.kind == "attack" and task.attack is not None:
            return self.control_answers.get(task.attack.id)
        if task.kind == "defense":
            tier = (recipe.id for recipe in self.suite.tier_attacks(self.context.options.tier))
            return next((self.control_answers[name] for name in tier if name in self.control_answers), None)
        return None

    def as_run(self, attack: AttackRecipe) -> AttackRecipe:
        """An attack with the micro-batch that fits and the settings that its search finds on the model under test.

        A search is left out if the attack cannot be run here, or would move nothing.
        """
        context, suite = self.context, self.suite
        attack = context.limits.fitted(suite, attack)
        if attack.search is None or not attack.learning_rate or context.limits.obstacle(suite, attack):
            return attack
        if attack.id not in self.found:
            try:
                self.found[attack.id] = self._search(attack)
            except UnsuitedError:  # the attack's case reports it
                return attack
        return self.found[attack.id].recipe

    def _search(self, attack: AttackRecipe) -> SearchResult:
        context, suite, defended = self.context, self.suite, self.defended
        inputs = self.inputs.attack(defended.digest, **context.attack_inputs(suite, attack, None))
        key, name = content_key("search", inputs), f"{suite.domain}: search {attack.id}"
        with context.entry("search", key) as entry:
            if entry is not None:
                return SearchResult.model_validate_json((entry / SEARCH).read_text(encoding="utf-8"))
            context.say_why_new("search", inputs, name)
            self.check_reward()

            def say(done: int, trial: SearchTrial) -> None:
                harm = "broke" if trial.harm is None else f"harm {trial.harm:.2f}"
                state = f"lr {trial.learning_rate:g}, temperature {trial.temperature:g}, KL {trial.beta:g}, {trial.shape}: {harm}"
                context.say(Progress(name, done, attack.search.trials if attack.search else 0, state))

            with attempt(context.store, key):
                found = search_settings(defended.load, self.attacker(attack), suite.policy, say)
            context.put("search", key, {SEARCH: found.model_dump_json()}, inputs)
            return found
