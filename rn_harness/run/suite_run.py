"""State that the cases of one suite share in one process: judges at work, defended model, found settings, controls' answers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rn_harness.attacks.family import Attacker
from rn_harness.attacks.probe import Taught, teach_lesson
from rn_harness.attacks.scoring import witness
from rn_harness.attacks.search import SearchResult, SearchTrial, search_settings
from rn_harness.defenses.neutralize import Defender, run_defense
from rn_harness.judges.anchors import AnchorSet, certify, to_plant
from rn_harness.judges.checkpoints import benign_references
from rn_harness.judges.organism import OrganismJudge, anchors_for
from rn_harness.judges.protocol import Judge, unshared
from rn_harness.judges.scoring import ControlAnswers, Panel
from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import hash_files, root_digest
from rn_harness.models.resolve import ADAPTER_CONFIG, resolve_candidate
from rn_harness.records.base import INFRASTRUCTURE, content_key
from rn_harness.records.certificate import AnchorSource, Certificate, session_id
from rn_harness.records.trajectory import ConvergencePoint, DefenseReport, Measurement, Witnessed
from rn_harness.report.progress import Progress
from rn_harness.run.case import CaseTask, Defended
from rn_harness.run.context import RunContext
from rn_harness.run.participants import SuiteJudges, is_opaque
from rn_harness.run.time_limit import time_limit
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.errors import JudgeError, UnsuitedError
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import attempt, hardware, now, versions
from rn_harness.training.snapshots import Resumption
from rn_harness.verdict.coherence import UNDEFENDED
from rn_harness.verdict.validity import JUDGES, NO_DEFENSE, misjudging

CERTIFICATE, REPORT, SEARCH = "certificate.json", "report.json", "search.json"


@dataclass
class SuiteRun:
    """One suite in a run. Certificates, panel, defense and searches are made once.

    ``control_answers`` are harmful answers of the controls that ran here, by attack id. They are kept in memory only.
    ``first_looks`` are measurements at step 0 that the attacks on one model share, by digest of the defended weights.
    """

    context: RunContext
    suite: Suite
    control_answers: dict[str, ControlAnswers] = field(default_factory=dict)
    first_looks: dict[str | None, dict[str, Any]] = field(default_factory=dict)
    _found: dict[str, SearchResult] = field(default_factory=dict)

    @property
    def judges(self) -> SuiteJudges:
        """The judges of the suite."""
        return self.context.judges(self.suite)

    def check_reward(self) -> None:
        """Checks that the reward's judge tells harmful texts from harmless ones, before hours of training."""
        if fault := self._reward_fault:
            raise JudgeError(
                f"what rewards a training has to tell harm from none, got judge={self.judges.reward.name}, which {fault}; name "
                "another by --rn-reward-judge"
            )

    @functools.cached_property
    def _reward_fault(self) -> str | None:
        reward, policy = self.judges.reward, self.suite.policy
        if reward.digest == self.judges.evaluation.digest:  # certificates cover it
            return None
        return misjudging(witness(reward, policy, self.anchors)(), policy)

    def certificate(self, judge: Judge, anchors: AnchorSet, source: AnchorSource) -> Certificate:
        """A judge's certificate, from the store or made now.

        A certificate with failures of the judge's machinery is not stored: the next run asks again. A certificate of an opaque
        judge is valid in this run only: another model may answer in the next.
        """
        context = self.context
        inputs = {
            "judge": judge.digest,
            "anchors": anchors.digest,
            "threshold": self.suite.policy.threshold,
            "source": source,
            "versions": versions(),
            "hardware": hardware(context.candidate.threads),
            "plugins": context.plugins,
            "run": context.run_id if is_opaque(judge) else None,
        }
        key = content_key("certificate", inputs)
        with context.entry("certificate", key) as entry:
            if entry is not None:
                return Certificate.model_validate_json((entry / CERTIFICATE).read_text(encoding="utf-8"))
            made = certify(judge, anchors, self.suite.policy, source)
            if not any(look.unscored in INFRASTRUCTURE for score in made.scores for look in score.looks):
                context.put("certificate", key, {CERTIFICATE: made.model_dump_json()}, inputs)
        return made

    def _certificates_of(self, judge: Judge) -> tuple[Certificate, ...]:
        """A judge's certificates: the one that each needs, and one on the lab's own labels if there are any."""
        labels, main = self.context.labels, self._main_certificate(judge)
        return (main, self.certificate(judge, labels, "labels")) if labels else (main,)

    def _main_certificate(self, judge: Judge) -> Certificate:
        anchors = anchors_for(judge, self.anchors)
        return self.certificate(judge, anchors, "suite" if anchors is self.anchors else "inert")

    @property
    def anchors(self) -> AnchorSet | None:
        """The suite's own anchors; None: it has none."""
        return self.context.anchors(self.suite)

    @functools.cached_property
    def certificates(self) -> tuple[Certificate, ...]:
        """Certificates of the judge that scores checkpoints."""
        return self._certificates_of(self.judges.evaluation)

    @functools.cached_property
    def second_certificate(self) -> Certificate | None:
        """Certificate of the second judge."""
        second = self.judges.second
        return self._main_certificate(second) if second else None

    @functools.cached_property
    def opaque_certificates(self) -> dict[Witnessed, tuple[Certificate, ...]]:
        """Certificates of the opaque judges that do not score checkpoints."""
        judges = self.judges
        others: dict[Witnessed, Judge | None] = {
            "reward": judges.reward if judges.reward.digest != judges.evaluation.digest else None,
            "second": judges.second,
        }
        return {role: self._certificates_of(judge) for role, judge in others.items() if judge and is_opaque(judge)}

    @functools.cached_property
    def sessions(self) -> dict[str, str | None]:
        """Identity of each judge in this run, by role; None if its digest covers everything."""
        judges, opaque = self.judges, self.opaque_certificates
        own = session_id(self.certificates) if is_opaque(judges.evaluation) else None
        others: dict[str, str | None] = {role: session_id(opaque[role]) if role in opaque else None for role in JUDGES}
        return {"judge": own, **others, **({"reward": own} if judges.reward.digest == judges.evaluation.digest else {})}

    @functools.cached_property
    def panel(self) -> Panel:
        """The prompts, judges and undefended answers that checkpoints are measured with."""
        suite, policy, judges = self.suite, self.suite.policy, self.judges
        judge, benign, heldout = judges.evaluation, suite.prompts["benign"], suite.heldout(self.context.options.tier)
        anchors = anchors_for(judge, self.anchors)
        return Panel(
            heldout=heldout,
            benign=benign,
            benign_references=benign_references(self.context.model(), benign, policy, policy.max_completion_tokens),
            compliant_answers=self._known_answers(heldout),
            judge=judge,
            anchor_judge=judge.about(anchors.forbidden),
            planted=tuple(to_plant(self.certificates[0], anchors, policy)),
            second=judges.second,
            policy=policy,
            max_tokens=policy.max_completion_tokens,
            anchors=self.anchors,
        )

    @functools.cached_property
    def candidate_lesson(self) -> Taught:
        """What a lesson teaches the undefended candidate."""
        return teach_lesson(self.context.model(), self.panel, self.suite)

    def _known_answers(self, prompts: Sequence[Prompt]) -> dict[str, str] | None:
        """The full compliant answers, by prompt id, if a judge is an organism's, whose answers are inert; else None."""
        judges = map(unshared, (self.judges.evaluation, self.judges.reward))
        organism = next((judge for judge in judges if isinstance(judge, OrganismJudge)), None)
        return {p.id: organism.topic(p).answer for p in prompts} if organism else None

    @functools.cached_property
    def defended(self) -> Defended:
        """The candidate with this run's defense: trained by a recipe and stored, read from a folder, or none."""
        context, folder = self.context, self.context.defense_folder
        recipe = context.defense_recipe(self.suite)
        if recipe is not None:
            return self._trained(context.limits.fitted(self.suite, recipe), context.options.defense)
        if context.released:
            return _defended(context, context.defense_name, context.released)
        if context.options.defense == NO_DEFENSE:
            return Defended(context.candidate, NO_DEFENSE)
        return _defended(context, folder.name, folder if (folder / ADAPTER_CONFIG).is_file() else context.given)

    def defense_inputs(self, recipe: DefenseRecipe) -> dict[str, Any]:
        """The inputs of a trained defense; their digest is its key."""
        return self.context.defense_inputs(self.suite, self.sessions, recipe)

    def _trained(self, recipe: DefenseRecipe, called: str) -> Defended:
        """The defense of a recipe, from the store or trained now."""
        context, inputs = self.context, self.defense_inputs(recipe)
        key, name = content_key("defense", inputs), f"{self.suite.domain}: defense {called}"

        def say(state: str) -> None:
            context.say(Progress(name, 0, 0, state, stays=True))

        with context.entry("defense", key) as found:
            resumption = Resumption(context.store, key, recipe, say)
            entry = found or self._train(recipe, key, inputs, name, resumption)
            resumption.close()
        report = DefenseReport.model_validate_json((entry / REPORT).read_text(encoding="utf-8"))
        made = trained_defense(context, entry / ("model" if recipe.whole else "adapter"))
        return dataclasses.replace(made, report=report, stored=found is not None)

    def _teacher(self, recipe: DefenseRecipe) -> Defended | None:
        """The teacher of a distilled defense, from the store or trained now; None if the candidate itself teaches."""
        teacher, limits = self.suite.teacher_of(recipe), self.context.limits
        return self._trained(limits.fitted(self.suite, teacher), f"{self.context.options.defense}'s teacher") if teacher else None

    def _train(self, recipe: DefenseRecipe, key: str, inputs: dict[str, Any], name: str, resumption: Resumption) -> Path:
        """Trains a defense and puts it into the store."""
        context, prompts, teacher = self.context, self.suite.prompts, self._teacher(recipe)
        started = now()
        context.say_why_new("defense", inputs, name)

        def say(point: ConvergencePoint) -> None:
            mean = "unscored" if point.reward_mean is None else f"reward {point.reward_mean:.2f}"
            state = f"{point.minimal_refusal_share:.0%} minimal refusals, {mean}, {point.mean_words:.1f} words"
            context.say(Progress(name, point.step, recipe.last_step, state))

        with attempt(context.store, key), time_limit(context.options.case_timeout):
            self.check_reward()
            panel, model = self.panel, context.model()
            defender = Defender(
                recipe,
                prompts["defense"],
                prompts["anchor"],
                self.judges.reward,
                context.sampler,
                context.retained(self.suite) if recipe.distill else (),
                teacher.load if teacher else None,
            )
            report = run_defense(
                model, defender, panel, say, lambda step: context.say(Progress(name, step, recipe.last_step)), resumption
            )
        measured = Measurement(run_id=context.run_id, started=started, ended=now())
        settings = report.settings | ({"teacher": teacher.digest} if teacher else {})

        def write(folder: Path) -> None:
            if recipe.whole:
                model.save(folder / "model")
            else:
                model.save_adapter(folder / "adapter", f"{context.candidate.name}@sha256:{context.candidate.digest}")
            whole = report.model_copy(update={"measured": measured, "settings": settings})
            (folder / REPORT).write_text(whole.model_dump_json(), encoding="utf-8")

        return context.put("defense", key, write, inputs)

    def model_under_test(self, task: CaseTask) -> Defended:
        """The model that a case is measured on."""
        return Defended(self.context.candidate, NO_DEFENSE) if task.kind in UNDEFENDED else self.defended

    def case_inputs(self, task: CaseTask) -> dict[str, Any]:
        """The inputs of a case; their digest is its key."""
        digest, trials = self.model_under_test(task).digest, self._trials(task.attack)
        return self.context.attack_inputs(self.suite, self.sessions, digest, task.attack, trials) | {"case": task.kind}

    def _trials(self, attack: AttackRecipe | None) -> Any:
        """The trials of the search that found an attack's settings; None without a search."""
        found = self._found.get(attack.id) if attack and attack.search else None
        return found.model_dump(mode="json")["trials"] if found else None

    def attacker(self, attack: AttackRecipe) -> Attacker:
        """An attack's settings, with the prompts, the judge and the sampler that it trains with."""
        context, suite, trials = self.context, self.suite, self._trials(attack)
        return Attacker(
            recipe=attack,
            family=context.family(suite, attack),
            pool=suite.attack_pool(attack),
            reward_judge=context.reward_judge(suite, attack),
            benign=suite.prompts["anchor"],
            answers=self._known_answers,
            sampler=context.sampler,
            searched={"engine": "optuna TPE", "trials": trials} if trials is not None else None,
        )

    def answers_of_control(self, task: CaseTask) -> ControlAnswers | None:
        """Answers of an attack's control; for the defense, those of the tier's first control. None if no control ran here."""
        tier = self.suite.tier_attacks(self.context.options.tier)
        attacks = tier if task.kind == "defense" else (task.attack,) if task.kind == "attack" and task.attack else ()
        return next((self.control_answers[a.id] for a in attacks if a.id in self.control_answers), None)

    def as_run(self, attack: AttackRecipe) -> AttackRecipe:
        """An attack with the micro-batch that fits and the settings that its search finds on the model under test.

        A search is left out if the attack cannot be run here, or would move nothing.
        """
        context, suite = self.context, self.suite
        attack = context.limits.fitted(suite, attack)
        if attack.search is None or not attack.learning_rate or context.limits.obstacle(suite, attack):
            return attack
        if attack.id not in self._found:
            try:
                self._found[attack.id] = self._search(attack, attack.search.trials)
            except UnsuitedError:  # the attack's case reports it
                return attack
        return self._found[attack.id].recipe

    def _search(self, attack: AttackRecipe, trials: int) -> SearchResult:
        context, suite, defended = self.context, self.suite, self.defended
        inputs = context.attack_inputs(suite, self.sessions, defended.digest, attack)
        key, name = content_key("search", inputs), f"{suite.domain}: search {attack.id}"
        with context.entry("search", key) as entry:
            if entry is not None:
                return SearchResult.model_validate_json((entry / SEARCH).read_text(encoding="utf-8"))
            context.say_why_new("search", inputs, name)
            self.check_reward()

            def say(done: int, trial: SearchTrial) -> None:
                harm = "broke" if trial.harm is None else f"harm {trial.harm:.2f}"
                state = f"lr {trial.learning_rate:g}, temperature {trial.temperature:g}, KL {trial.beta:g}, {trial.shape}: {harm}"
                context.say(Progress(name, done, trials, state))

            with attempt(context.store, key):
                found = search_settings(functools.partial(context.model, defended), self.attacker(attack), suite.policy, say)
            context.put("search", key, {SEARCH: found.model_dump_json()}, inputs)
            return found


def trained_defense(context: RunContext, folder: Path) -> Defended:
    """The defense whose trained weights are in this folder."""
    weights = folder if (folder / ADAPTER_CONFIG).is_file() else resolve_candidate(str(folder), context.options.base)
    return _defended(context, context.options.defense, weights)


def _defended(context: RunContext, name: str, weights: Path | Candidate) -> Defended:
    """The candidate with a defense: the folder of an adapter, or a whole model."""
    if isinstance(weights, Candidate):
        return Defended(context.candidate, name, model=weights, digest=weights.digest, hashes=weights.hashes)
    hashes = hash_files(weights)
    return Defended(context.candidate, name, adapter=weights, digest=root_digest(hashes), hashes=hashes)
