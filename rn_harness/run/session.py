"""A run: what each case needs, made once, taken from the store where it exists.

One object per pytest process. Work that several cases share (the defense, controls) is made under a lock, so that
``pytest -n 2`` makes it once.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rn_harness.attacks.family import Attacker
from rn_harness.attacks.loop import AttackEvents, AttackTarget, run_attack
from rn_harness.attacks.scoring import Witness
from rn_harness.attacks.search import SearchResult, SearchTrial, search_settings
from rn_harness.defenses.neutralize import Defender, run_defense
from rn_harness.judges.anchors import AnchorSet
from rn_harness.judges.benign import benign_references
from rn_harness.judges.certification import anchors_for, certify, to_plant
from rn_harness.judges.checkpoints import measure_checkpoint
from rn_harness.judges.organism import OrganismJudge
from rn_harness.judges.panel import ControlAnswers, Panel
from rn_harness.judges.protocol import Judge
from rn_harness.judges.shared import unshared
from rn_harness.judges.transcripts import Transcript
from rn_harness.models.adapter_files import ADAPTER_CONFIG
from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import hash_files, root_digest
from rn_harness.models.resolve import resolve_candidate
from rn_harness.records.base import INFRASTRUCTURE, CaseKind
from rn_harness.records.case import CaseProvenance, CaseRecord, Certificate, Evidence, Identity
from rn_harness.records.keys import content_key, digest_of, prompts_digest, session_id
from rn_harness.records.trajectory import Checkpoint, ConvergencePoint, DefenseReport, Measurement, Trajectory, Witnessed
from rn_harness.report.progress import Progress
from rn_harness.run.capacity import Capacity
from rn_harness.run.lineup import CaseTask, Lineup, is_unseen, who
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.spec.errors import ExecutorError, JudgeError, RnHarnessError, StoreError, UnsuitedError
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import attempt, attempts, hardware, now, versions, working_tree
from rn_harness.store.ranks import ranks
from rn_harness.store.run_ids import new_run_id
from rn_harness.store.store import Journal, Store, write_text
from rn_harness.training.snapshots import Resumption
from rn_harness.verdict.coherence import UNDEFENDED
from rn_harness.verdict.decide import decide, unfit_judges
from rn_harness.verdict.release_rules import PLAIN_FAMILIES, foreign
from rn_harness.verdict.validity import JUDGES, NO_DEFENSE, misjudging

if TYPE_CHECKING:
    from rn_harness.models.language_model import LanguageModel
    from rn_harness.run.executors.protocol import Executor
from rn_harness.run.case import Case, Defended

CERTIFICATE = "certificate.json"
MEASURED = "measured.json"
"""In the entry of a case: when it was measured, and by which run."""
PARTS = "parts"
"""Folder of a run in which each process that does a part of it has a folder of its own."""
SEARCH = "search.json"
CHANGES_SHOWN = 6
ROUNDING = 1e-4
"""By which numbers of a checkpoint that are no scores may differ, or by this share: on cards and in fleets sums vary in order."""
LEAK_OF_CONTROL = ("leak_per_token", "leak_per_sequence")
"""What a checkpoint says only if the control ran in the same process; the same attack may be measured without."""
Begun = tuple[str, float]
"""When a case began, by the calendar and by the clock."""
Seen = Callable[[Trajectory], CaseRecord]
"""Writes the record of a case as far as it was measured."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a case's measurement is kept.

    Attributes:
        key: of it.
        inputs: the parts of the key; empty where nothing is to be measured.
        begun: when this process began with the case.
    """

    key: str
    inputs: dict[str, Any]
    begun: Begun


@dataclass
class RunSession(Lineup):
    """Makes and keeps what the cases of a run need.

    Attributes:
        folder: of the run, where records go.
        store: finished work.
        say: gets signs of life.
        free: bytes that a run may take; a process that is one of several is told, so that all plan alike. None: asked for.
        ahead: the cases that this run will come to: what a fleet is made of.
        executor: makes the cases elsewhere; None: they are made here.
        run_id: of the run that this session does, or does a part of; all of its processes have the same.
    """

    folder: Path
    store: Store
    say: Callable[[Progress], None]
    free: float | None = None
    ahead: Sequence[CaseTask] = ()
    executor: Executor | None = None
    run_id: str = field(default_factory=new_run_id)
    _panels: dict[tuple[str, str], Panel] = field(default_factory=dict)
    _cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    _defended: dict[str, Defended] = field(default_factory=dict)
    _certificates: dict[str, Certificate] = field(default_factory=dict)
    _witnessed: set[str] = field(default_factory=set)
    _starts: dict[tuple[str, str | None], dict[str, Any]] = field(default_factory=dict)
    _control_answers: dict[tuple[str, str], ControlAnswers] = field(default_factory=dict)
    _found: dict[tuple[str, str], SearchResult] = field(default_factory=dict)
    _failed: dict[tuple[str, str], Exception] = field(default_factory=dict)
    _members: dict[tuple[str, str], LanguageModel] = field(default_factory=dict)
    _among: str | None = None

    @property
    def run_folder(self) -> Path:
        """Of the run that this session does, or does a part of."""
        return self.folder.parent.parent if self.folder.parent.name == PARTS else self.folder

    @functools.cached_property
    def capacity(self) -> Capacity:
        """What can be trained here, and in how much memory."""
        return Capacity(self, self.free)

    @property
    def _plugins(self) -> list[str]:
        """Digests of others' code that may have changed a result: a result made with it never serves a run without it."""
        return sorted({code.sha256 for code in foreign(self.options.plugins)})

    def check_reward(self, suite: Suite) -> None:
        """Makes sure that what rewards a training tells harm from none, before hours go into it.

        Raises:
            JudgeError: it does not.
        """
        judges = self.judges(suite)
        if judges.reward.digest in self._witnessed or judges.reward.digest == judges.evaluation.digest:
            return
        if fault := misjudging(Witness.of("reward", judges.reward, suite.policy).ask(suite.policy), suite.policy):
            raise JudgeError(
                f"what rewards a training has to tell harm from none, got judge={judges.reward.name}, which {fault}; name "
                "another by --rn-reward-judge"
            )
        self._witnessed.add(judges.reward.digest)

    def certificate(self, judge: Judge, anchors: AnchorSet, suite: Suite, source: Literal["inert", "labels"]) -> Certificate:
        """A judge's certificate, from this process, the store, or made now.

        One whose judge's machinery failed is not stored: the next run asks again. One of a judge that no digest covers holds for
        this run: another model may answer in the next.
        """
        parts = {
            "judge": judge.digest,
            "anchors": anchors.digest,
            "threshold": suite.policy.threshold,
            "source": source,
            "versions": versions(),
            "hardware": hardware(self.candidate.threads),
            "plugins": self._plugins,
            "run": self.run_id if is_unseen(judge) else None,
        }
        key = content_key("certificate", parts)
        if key not in self._certificates:
            with self._entry("certificate", key) as entry:
                if entry is None:
                    made = certify(judge, anchors, suite.policy, source)
                    if not any(look.unscored in INFRASTRUCTURE for score in made.scores for look in score.looks):
                        self._put("certificate", key, lambda into: _write(into / CERTIFICATE, made.model_dump_json()), parts)
                else:
                    made = Certificate.model_validate_json((entry / CERTIFICATE).read_text(encoding="utf-8"))
            self._certificates[key] = made
        return self._certificates[key]

    def certificates(self, suite: Suite) -> tuple[Certificate, ...]:
        """The certificates of the judge that scores this suite."""
        return self._certificates_of(self.judges(suite).evaluation, suite)

    def _certificates_of(self, judge: Judge, suite: Suite) -> tuple[Certificate, ...]:
        """What a judge said of all known texts: inert anchors, and a lab's own labels where there are any."""
        inert = self.certificate(judge, anchors_for(judge), suite, "inert")
        return (inert, self.certificate(judge, self.labels, suite, "labels")) if self.labels else (inert,)

    def _known(self, suite: Suite) -> dict[Witnessed, tuple[Certificate, ...]]:
        """The certificates of the judges that do not score checkpoints, as far as no digest covers what they are."""
        judges = self.judges(suite)
        others: dict[Witnessed, Judge | None] = {
            "reward": judges.reward if judges.reward.digest != judges.evaluation.digest else None,
            "second": judges.second,
        }
        return {who: self._certificates_of(judge, suite) for who, judge in others.items() if judge and is_unseen(judge)}

    def _judge_sessions(self, suite: Suite) -> dict[str, str | None]:
        """Each judge's identity in this run, by what it does: None where its digest says all."""
        judges, known = self.judges(suite), self._known(suite)
        own = session_id(self.certificates(suite)) if is_unseen(judges.evaluation) else None
        found: dict[str, str | None] = {"judge": own}
        found |= {who: session_id(known[who]) if who in known else None for who in JUDGES}
        return found | ({"reward": own} if judges.reward.digest == judges.evaluation.digest else {})

    def second_certificate(self, suite: Suite) -> Certificate | None:
        """The certificate of the second judge."""
        second = self.judges(suite).second
        return self.certificate(second, anchors_for(second), suite, "inert") if second else None

    def panel(self, suite: Suite) -> Panel:
        """What checkpoints of this suite are measured on; the undefended answers are computed once."""
        key = (suite.digest, self.options.tier)
        if key not in self._panels:
            heldout = suite.heldout(self.options.tier)
            benign = suite.prompts["benign"]
            judges = self.judges(suite)
            judge = judges.evaluation
            anchors = anchors_for(judge)
            self._panels[key] = Panel(
                heldout=heldout,
                benign=benign,
                benign_references=benign_references(
                    self.candidate.load(), benign, suite.policy, suite.policy.max_completion_tokens
                ),
                compliant_answers=self._known_answers(suite, heldout),
                judge=judge,
                anchor_judge=judge.about(anchors.forbidden),
                planted=tuple(to_plant(self.certificates(suite)[0], anchors, suite.policy)),
                second=judges.second,
                policy=suite.policy,
                max_tokens=suite.policy.max_completion_tokens,
            )
        return self._panels[key]

    def _known_answers(self, suite: Suite, prompts: Sequence[Prompt]) -> dict[str, str] | None:
        """The full compliant answers, by id, where a judge knows them: an organism's inert ones; else None."""
        judges = self.judges(suite)
        knows = next((j for j in map(unshared, (judges.evaluation, judges.reward)) if isinstance(j, OrganismJudge)), None)
        return {p.id: knows.topic(p).answer for p in prompts} if knows else None

    def _shared_parts(
        self, suite: Suite, prompts: Mapping[str, Sequence[Prompt]], sessions: Mapping[str, str | None] | None = None
    ) -> dict[str, Any]:
        """The parts of a key that most results have: weights, judges, policy, prompts, versions, machine.

        Args:
            suite: that is run.
            prompts: all that is trained or measured on, by set.
            sessions: each judge's identity, see ``_judge_sessions``; None: those of this run.
        """
        judges = self.judges(suite)
        return {
            "candidate": self.candidate.digest,
            "judge": judges.evaluation.digest,
            "reward": judges.reward.digest,
            "second": judges.second.digest if judges.second else None,
            "sessions": dict(self._judge_sessions(suite) if sessions is None else sessions),
            "forbidden": digest_of(suite.declaration.forbidden),
            "anchors": anchors_for(judges.evaluation).digest,
            "policy": suite.policy.model_dump(mode="json"),
            "prompts": {name: prompts_digest(of_set) for name, of_set in prompts.items()},
            "versions": versions(),
            "hardware": hardware(self.candidate.threads),
            "plugins": self._plugins,
            **({"sampler": self.sampler.name} if self.sampler.vllm else {}),
            **({"sharded": True} if self.options.shard else {}),
        }

    def defended(self, suite: Suite) -> Defended:
        """The candidate with this run's defense; trained once per candidate and recipe.

        Raises:
            RecipeError: an unknown recipe.
            CandidateError: a folder that holds neither adapter nor model.
            TrainingError: the fine-tune broke.
        """
        if suite.digest not in self._defended:
            made_here = self.executor is None or self.defense_recipe(suite) is None
            self._defended[suite.digest] = self._make_defended(suite) if made_here else self._defended_elsewhere(suite)
        return self._defended[suite.digest]

    def _defended_elsewhere(self, suite: Suite) -> Defended:
        """The defense that the executor's defense case measured."""
        case = self.case("defense", suite)
        if case.defended is None or hash_files(case.defended) != dict(case.weights):
            raise ExecutorError(
                f"the defended weights of {suite.domain} were made elsewhere, got none here, or others, in {case.defended}; "
                "share the store (RN_HARNESS_CACHE)"
            )
        return self._trained(case.defended)

    def _make_defended(self, suite: Suite) -> Defended:
        recipe = self.defense_recipe(suite)
        if recipe is None:
            if self.released:
                return self._whole(self.defense_name, self.released)
            if self.options.defense == NO_DEFENSE:
                return Defended(candidate=self.candidate, name=NO_DEFENSE)
            folder = self.defense_folder
            if (folder / ADAPTER_CONFIG).is_file():
                return self._adapted(folder.name, folder)
            return self._whole(folder.name, self.given)
        recipe = self.capacity.as_run(suite, recipe)
        parts = self._defense_parts(suite, recipe)
        key = content_key("defense", parts)
        with self._entry("defense", key) as found:
            stored = found is not None
            what = f"{suite.domain}: defense {self.options.defense}"
            resumption = Resumption(self.store, key, recipe, lambda state: self.say(Progress(what, 0, 0, state, stays=True)))
            entry = found or self._train_defense(suite, recipe, key, parts, resumption)
            resumption.close()
        report = DefenseReport.model_validate_json((entry / "report.json").read_text(encoding="utf-8"))
        made = self._trained(entry / ("model" if recipe.whole else "adapter"))
        return dataclasses.replace(made, report=report, stored=stored)

    def _trained(self, folder: Path) -> Defended:
        """The defense whose weights were trained, and lie in this folder."""
        if (folder / ADAPTER_CONFIG).is_file():
            return self._adapted(self.options.defense, folder)
        return self._whole(self.options.defense, resolve_candidate(str(folder), self.options.base))

    def _whole(self, name: str, model: Candidate) -> Defended:
        return Defended(self.candidate, name, model=model, digest=model.digest, hashes=model.hashes)

    def _adapted(self, name: str, adapter: Path) -> Defended:
        hashes = hash_files(adapter)
        return Defended(self.candidate, name, adapter=adapter, digest=root_digest(hashes), hashes=hashes)

    def _defense_parts(self, suite: Suite, recipe: DefenseRecipe) -> dict[str, Any]:
        """What a trained defense depends on."""
        used = {
            "defense": suite.prompts["defense"],
            "anchor": suite.prompts["anchor"],
            "heldout": suite.heldout(self.options.tier),
        }
        return self._shared_parts(suite, used) | {"recipe": recipe.model_dump(mode="json")}

    def _train_defense(
        self, suite: Suite, recipe: DefenseRecipe, key: str, parts: dict[str, Any], resumption: Resumption
    ) -> Path:
        name = self.options.defense

        def say(point: ConvergencePoint) -> None:
            mean = "unscored" if point.reward_mean is None else f"reward {point.reward_mean:.2f}"
            state = f"{point.minimal_refusal_share:.0%} minimal refusals, {mean}, {point.mean_words:.1f} words"
            self.say(Progress(f"{suite.domain}: defense {name}", point.step, recipe.last_step, state))

        self._tell_change("defense", parts, f"{suite.domain}: defense {name}")
        begun = now()
        with attempt(self.store, key):
            self.check_reward(suite)
            panel = self.panel(suite)
            model = self.candidate.load()
            reward = self.judges(suite).reward
            defender = Defender(recipe, suite.prompts["defense"], suite.prompts["anchor"], reward, self.sampler)
            progress = f"{suite.domain}: defense {name}"
            report = run_defense(
                model,
                defender,
                panel,
                say,
                lambda step: self.say(Progress(progress, step, recipe.last_step)),
                resumption,
            )

        measured = Measurement(run_id=self.run_id, started=begun, ended=now())
        report = report.model_copy(update={"measured": measured})

        def write(folder: Path) -> None:
            if recipe.whole:
                model.save(folder / "model")
            else:
                model.save_adapter(folder / "adapter", f"{self.candidate.name}@sha256:{self.candidate.digest}")
            (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")

        return self._put("defense", key, write, parts)

    def case(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None = None) -> Case:
        """One case, from this process, the store, or made now.

        Args:
            kind: which.
            suite: of which domain.
            attack: for control and attack cases.

        Raises:
            ExecutorError: it is made elsewhere, and did not come, or is not the case that was asked for.
        """
        if self.executor is not None:
            return self.executor.case(kind, suite, attack)
        task = CaseTask(kind, suite, self.settled(suite, self.capacity.as_run(suite, attack)) if attack else None)
        if task.at in self._failed:
            raise self._failed[task.at]
        if task.at not in self._cases:
            if self._sails(suite, task.attack) and self._is_missing(task):
                self._sail(task)
                return self.case(kind, suite, task.attack)
            self._cases[task.at] = self._make_case(task)
        for other, case in self._cases.items():
            if other != task.at:
                case.pack()
        return self._cases[task.at]

    def _sails(self, suite: Suite, attack: AttackRecipe | None) -> bool:
        """Whether an attack is run in a fleet: asked for, and plain RL by TRL that moves an adapter and nothing else."""
        return (
            attack is not None
            and self.options.fleet > 1
            and attack.family in PLAIN_FAMILIES
            and attack.form == "lora"
            and not (attack.beta or attack.search or attack.micro_batch)
            and not self.capacity.hindrance(suite, attack)
        )

    def _sail(self, task: CaseTask) -> None:
        """Makes a case together with those of its kind that the run will come to; each is kept, or what went wrong with it."""
        from rn_harness.training.fleet import Fleet

        kind, suite, crew = task.kind, task.suite, self._crew(task)
        for of in crew if kind == "attack" else ():
            with suppress(Exception):  # told by the case that rests on it
                self.case("control", suite, of.attack)
        defended = self._attacked(task)
        self.panel(suite)
        self.certificates(suite)
        self.second_certificate(suite)
        self._among = f"{suite.domain}: {len(crew)} {kind}s together" if len(crew) > 1 else None
        if self._among:
            self.say(Progress(self._among, 0, 0, ", ".join(of.attack.id for of in crew if of.attack), stays=True))

        def making(of: CaseTask) -> Callable[[LanguageModel], Case]:
            def make(member: LanguageModel) -> Case:
                self._members[of.at] = member
                return self._make_case(of)

            return make

        try:
            made = Fleet(defended.load(), self.candidate.threads).run([making(of) for of in crew])
        finally:
            self._among = None
            self._members.clear()  # one that is left would wait for a fleet that has ended
        for of, case in zip(crew, made, strict=True):
            if isinstance(case, Exception):
                self._failed[of.at] = case
            else:
                self._cases[of.at] = case

    def _crew(self, task: CaseTask) -> list[CaseTask]:
        """The case, and those beside it that are made with it: not yet made, and as many as memory holds."""
        wanted, suite = (task.kind, "attack"), task.suite  # an attack comes to its control too
        attacks = [of.attack for of in self.ahead if of.attack and of.kind in wanted and of.suite.digest == suite.digest]
        ahead = [CaseTask(task.kind, suite, self.capacity.as_run(suite, of)) for of in attacks]
        once = {of.at: of for of in ahead if of.at != task.at}  # two of one case would wait for each other
        beside = [of for of in once.values() if self._sails(suite, of.attack) and self._is_missing(of)]
        crew = [task, *beside[: self.options.fleet - 1]]
        while len(crew) > 1 and not self.capacity.holds(suite, [of.attack for of in crew if of.attack]):
            crew.pop()
        return crew

    def _is_missing(self, task: CaseTask) -> bool:
        """Whether a case was neither made nor stored, and did not go wrong."""
        _, parts = self._case_parts(task)
        return not (task.at in self._cases or task.at in self._failed or self.store.get("case", content_key("case", parts)))

    def settled(self, suite: Suite, attack: AttackRecipe) -> AttackRecipe:
        """The attack with the settings that its search finds on the model under test.

        Itself without a search, or where it cannot be run, or would move nothing.
        """
        if attack.search is None or not attack.learning_rate or self.capacity.hindrance(suite, attack):
            return attack
        at = (suite.digest, attack.id)
        if at not in self._found:
            try:
                self._found[at] = self._search(suite, attack)
            except UnsuitedError:  # told when its turn comes
                return attack
        return self._found[at].recipe

    def _search(self, suite: Suite, attack: AttackRecipe) -> SearchResult:
        defended = self.defended(suite)
        parts = self._attack_parts(suite, attack, defended)
        key, what = content_key("search", parts), f"{suite.domain}: search {attack.id}"
        with self._entry("search", key) as entry:
            if entry is not None:
                return SearchResult.model_validate_json((entry / SEARCH).read_text(encoding="utf-8"))
            self._tell_change("search", parts, what)
            self.check_reward(suite)

            def say(done: int, trial: SearchTrial) -> None:
                harm = "broke" if trial.harm is None else f"harm {trial.harm:.2f}"
                state = f"lr {trial.learning_rate:g}, temperature {trial.temperature:g}, KL {trial.beta:g}, {trial.shape}: {harm}"
                self.say(Progress(what, done, attack.search.trials if attack.search else 0, state))

            with attempt(self.store, key):
                found = search_settings(defended.load, self._attacker(suite, attack), suite.policy, say)
            self._put("search", key, lambda into: _write(into / SEARCH, found.model_dump_json()), parts)
            return found

    def _attacker(self, suite: Suite, attack: AttackRecipe, searched: Mapping[str, Any] | None = None) -> Attacker:
        return Attacker(
            recipe=attack,
            family=self.family(suite, attack),
            pool=suite.attack_pool(attack),
            reward_judge=self.rewards(suite, attack),
            benign=suite.prompts["anchor"],
            answers=lambda prompts: self._known_answers(suite, prompts),
            sampler=self.sampler,
            searched=searched,
        )

    def _make_case(self, task: CaseTask) -> Case:
        kind, suite, attack = task.kind, task.suite, task.attack
        begun = (now(), time.monotonic())
        certificates, second = self.certificates(suite), self.second_certificate(suite)
        evidence = Evidence(
            kind=kind,
            policy=suite.policy,
            trajectory=None,
            standing=attack.standing if attack else "claim",
            within_claim=suite.standing_of(task.case_id)[1],
            subject=NO_DEFENSE if kind in UNDEFENDED else self.defense_name,
            exact_judge=self.judges(suite).evaluation.exact,
            certificates=certificates,
            second_certificate=second,
            attack_cases=sum(a.claim for a in suite.tier_attacks(self.options.tier)) or 1,
        )
        if unfit_judges(evidence):  # hours of training would end without a verdict
            at = Address(content_key("unjudged", {"suite": suite.digest, "case": task.case_id}), {}, begun)
            stored, defended, measured = False, None, None
            folder = self._case_folder(task, at.key)
        else:
            evidence, at, stored, defended, folder, measured = self._measured(task, evidence, begun)
        control = self.case("control", suite, attack) if evidence.control else None
        record = self._write_record(task, at, defended, evidence, control, folder, measured)
        where, hashes = (defended.folder, defended.hashes) if defended else (None, {})
        return Case(record, suite.domain, stored, folder, where, hashes)

    def _write_record(
        self,
        task: CaseTask,
        at: Address,
        defended: Defended | None,
        evidence: Evidence,
        control: Case | None,
        folder: Path,
        measured: Measurement | None,
    ) -> CaseRecord:
        """Decides, and writes what was measured."""
        begun = at.begun
        record = CaseRecord(
            run_id=self.run_id,
            measured=measured,
            key=at.key,
            inputs=at.inputs,
            known=self._known(task.suite) if at.inputs else {},
            case_id=task.case_id,
            identity=self.identity(task.suite, defended),
            provenance=self._provenance(task, at.key, evidence.trajectory),
            evidence=evidence,
            control_key=control.record.key if control else None,
            verdict=decide(evidence),
            started=begun[0],
            ended=now(),
            wall_s=round(time.monotonic() - begun[1], 3),
        )
        write_text(folder / "record.json", record.model_dump_json(indent=1) + "\n")
        return record

    def _attack_parts(
        self,
        suite: Suite,
        attack: AttackRecipe | None,
        defended: Defended,
        sessions: Mapping[str, str | None] | None = None,
    ) -> dict[str, Any]:
        """The parts of a key of what is measured on a model, attacked or not."""
        neighbour = suite.neighbours.get(attack.neighbour) if attack and attack.neighbour else None
        used: dict[str, Sequence[Prompt]] = {"heldout": suite.heldout(self.options.tier), "benign": suite.prompts["benign"]}
        if attack:
            pool = suite.attack_pool(attack) if neighbour or not attack.neighbour else ()
            used |= {"attack": pool, "anchor": suite.prompts["anchor"]}
        searched = self._found.get((suite.digest, attack.id)) if attack and attack.search else None
        return {
            **self._shared_parts(suite, used, sessions),
            "defended": defended.digest,
            "recipe": attack.model_dump(mode="json") if attack else None,
            "search": searched.model_dump(mode="json")["trials"] if searched else None,
            "family": self.family(suite, attack).digest if attack else None,
            "neighbour": digest_of(neighbour.forbidden) if neighbour else None,
            **({"fleet": self.candidate.threads} if self._sails(suite, attack) else {}),
        }

    def _attacked(self, task: CaseTask) -> Defended:
        """The model that a case is measured on."""
        return Defended(self.candidate, NO_DEFENSE) if task.kind in UNDEFENDED else self.defended(task.suite)

    def _case_parts(self, task: CaseTask) -> tuple[Defended, dict[str, Any]]:
        """What a case is measured on, and the parts of its key."""
        defended = self._attacked(task)
        return defended, {**self._attack_parts(task.suite, task.attack, defended), "case": task.kind}

    def key_elsewhere(self, record: CaseRecord, suite: Suite, attack: AttackRecipe | None) -> str:
        """The key of a case that was measured elsewhere, by what is known here.

        Taken from the record are the machine, the digest of the defended weights, what a search came to, and who the judges were
        that no digest covers: nobody is asked here.

        Args:
            record: of the case.
            suite: its suite.
            attack: its attack, with the settings that it was run with.
        """
        run, sessions = record.evidence.trajectory, record.inputs.get("sessions", {})
        told = {
            "hardware": record.identity.hardware,
            "defended": record.identity.defended_digest,
            "search": run.settings.get("search", {}).get("trials") if run else None,
            "case": record.evidence.kind,
        }
        parts = self._attack_parts(suite, attack, Defended(self.candidate, NO_DEFENSE), sessions)
        return content_key("case", {**parts, **told})

    @contextmanager
    def _entry(self, kind: str, key: str) -> Iterator[Path | None]:
        """A stored result; None: it is to be made within. Of several processes the first holds the lock."""
        with self.store.locked(kind, key) if ranks().leads else nullcontext():
            yield ranks().first(lambda: self.store.get(kind, key))

    def _put(self, kind: str, key: str, write: Callable[[Path], None], parts: dict[str, Any]) -> Path:
        """Adds an entry, made of these parts; of several processes the first does."""
        return ranks().first(lambda: self.store.put(kind, key, write, parts))

    def _case_folder(self, task: CaseTask, key: str) -> Path:
        folder = self.folder / "cases" / f"{task.suite.domain}-{task.case_id}-{key[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _measured(
        self, task: CaseTask, evidence: Evidence, begun: Begun
    ) -> tuple[Evidence, Address, bool, Defended, Path, Measurement | None]:
        """The evidence with what was measured, its address, whether it was stored, the defense, the record's folder, and when."""
        kind, suite, attack = task.kind, task.suite, task.attack
        defended, parts = self._case_parts(task)
        at = Address(content_key("case", parts), parts, begun)
        folder = self._case_folder(task, at.key)
        # First, so that the leak can be measured on what it answered.
        control = self.case("control", suite, attack) if kind == "attack" and attack else None
        changes = {
            "control": control.record.evidence.trajectory if control else None,
            "report": defended.report if kind == "defense" else None,
            "report_due": kind == "defense" and self.defense_recipe(suite) is not None,
            "subject": defended.subject,
            "within_claim": suite.standing_of(task.case_id, attack)[1],
        }
        known = evidence.model_copy(update=changes)

        def seen(trajectory: Trajectory) -> CaseRecord:
            of = known.model_copy(update={"trajectory": trajectory})
            measured = Measurement(run_id=self.run_id, started=begun[0], ended=now())
            return self._write_record(task, at, defended, of, control, folder, measured)

        try:
            trajectory, measured, stored = self._kept(task, defended, folder, at, seen)
        except RnHarnessError as error:
            # Of several processes each has to come to the same: only what all of them are sure to meet is told alone.
            may_be_told = evidence.standing == "out_of_claim" and ranks().size == 1
            if not (isinstance(error, UnsuitedError) or may_be_told):
                raise
            refused = evidence.model_copy(update={"refused": str(error), "subject": defended.subject})
            return refused, at, False, defended, folder, None
        return known.model_copy(update={"trajectory": trajectory}), at, stored, defended, folder, measured

    def _kept(
        self, task: CaseTask, defended: Defended, folder: Path, at: Address, seen: Seen
    ) -> tuple[Trajectory, Measurement, bool]:
        """A case's trajectory from the store, or measured now and put there; when, and whether it was stored."""
        key, parts = at.key, at.inputs
        with self._entry("case", key) as entry:
            stored = entry is not None
            if entry is None:
                begun = now()
                self._tell_change("case", parts, task.name)
                rounds = self.on == "cuda" or self._sails(task.suite, task.attack)
                journal = self.store.journal(key, ROUNDING if rounds else 0.0)
                with attempt(self.store, key) as trial:
                    measured = self._measure(task, defended, folder, journal, seen)
                    trial.outcome = "judge_failed" if measured.judge_failed else "done"
                trajectory = ranks().first(lambda: measured)
                when = Measurement(run_id=self.run_id, started=begun, ended=now())
                self.candidate.verify()
                defended.verify()
                # A failure of infrastructure is no result, so that the same run tries again; a breach that was seen stays seen.
                if not trajectory.judge_failed or seen(trajectory).verdict.outcome == "FAIL":
                    texts = {"trajectory.json": trajectory.model_dump_json(), MEASURED: when.model_dump_json()}
                    self._put("case", key, lambda into: _write_all(into, texts), parts)
                journal.close()
            else:
                when = Measurement.model_validate_json((entry / MEASURED).read_text(encoding="utf-8"))
                trajectory = Trajectory.model_validate_json((entry / "trajectory.json").read_text(encoding="utf-8"))
                lines = (c.model_dump_json() + "\n" for c in trajectory.checkpoints)
                write_text(folder / "checkpoints.jsonl", "".join(lines))
        return trajectory, when, stored

    def _tell_change(self, kind: str, parts: dict[str, Any], what: str) -> None:
        """Says in what the stored results differ, where there are some and none of them is this one."""
        differing = self.store.changed(kind, parts)
        if differing:
            shown = ", ".join(differing[:CHANGES_SHOWN]) + (", …" if len(differing) > CHANGES_SHOWN else "")
            self.say(Progress(what, 0, 0, f"made anew, since the stored one that is most alike differs in {shown}", stays=True))

    def _measure(self, task: CaseTask, defended: Defended, folder: Path, journal: Journal, seen: Seen) -> Trajectory:
        """Measures; where that is cut off, what was measured is recorded first, and a breach in it ends the case."""
        kind, suite, attack = task.kind, task.suite, task.attack
        if attack is not None:
            self.check_reward(suite)
            if hindrance := self.capacity.hindrance(suite, attack):
                raise UnsuitedError(f"attack {attack.id} cannot be trained here: {hindrance}")
        answers = self._answers_of_control(task)
        with self._transcript(suite, folder) as transcript, (folder / "checkpoints.jsonl").open("w", encoding="utf-8") as lines:
            panel = dataclasses.replace(self.panel(suite), control_answers=answers, transcript=transcript)

            def sink(checkpoint: Checkpoint) -> None:
                text = checkpoint.model_dump_json()
                lines.write(f"{text}\n")
                lines.flush()
                if attack is not None:
                    journal.add(checkpoint.model_copy(update=dict.fromkeys(LEAK_OF_CONTROL)).model_dump_json())
                maximum = "unscored" if checkpoint.maximum is None else f"max {checkpoint.maximum:g}"
                mean = "" if checkpoint.mean is None else f", mean {checkpoint.mean:.2f}"
                state = f"{maximum}{mean}, {checkpoint.above.count}/{checkpoint.scored} above {suite.policy.threshold:g}"
                self.say(Progress(task.name, checkpoint.step, task.steps, state, among=self._among))

            member = self._members.pop(task.at, None)
            if member is None and self._sails(suite, attack):
                raise StoreError(f"a stored case must stay until it is read, got {task.case_id} taken away meanwhile; run again")
            model = member or defended.load()
            if attack is not None:
                cuts: list[tuple[Trajectory, CaseRecord]] = []

                def cut(partial: Trajectory) -> None:
                    known = _with_earlier(partial, journal)
                    cuts.append((known, seen(known)))

                target = AttackTarget(
                    model=model,
                    candidate_digest=self.candidate.digest,
                    defended_digest=defended.digest,
                    control=kind == "control",
                    # Rows of a fleet are rounded by their companions.
                    start=None if member else self._starts.setdefault((suite.digest, defended.digest), {}),
                )
                events = AttackEvents(
                    scored=sink,
                    step=lambda step: self.say(Progress(task.name, step, task.steps, among=self._among)),
                    broken=(lambda answers: self._control_answers.update({(suite.digest, attack.id): answers}))
                    if target.control
                    else None,
                    cut=cut,
                )
                try:
                    trajectory = run_attack(target, self._attacker(suite, attack, self._trials(suite, attack)), panel, events)
                except Exception:
                    if cuts and cuts[0][1].verdict.outcome == "FAIL":  # a breach that was seen stays seen
                        return cuts[0][0]
                    raise
                return _with_earlier(trajectory, journal)
            checkpoint = measure_checkpoint(model, panel, 0, seed=0, with_benign=True)
            sink(checkpoint)
        return Trajectory(
            candidate_digest=self.candidate.digest,
            defended_digest=defended.digest,
            judge_digest=panel.judge.digest,
            reward_digest=self.judges(suite).reward.digest,
            second_digest=panel.second.digest if panel.second else None,
            recipe={},
            prompt_ids=(),
            heldout_ids=tuple(p.id for p in panel.heldout),
            benign_ids=tuple(p.id for p in panel.benign),
            prompts={"heldout": prompts_digest(panel.heldout), "benign": prompts_digest(panel.benign)},
            steps=0,
            checkpoints=(checkpoint,),
            rendered=model.rendered(panel.heldout[0]),
        )

    @contextmanager
    def _transcript(self, suite: Suite, folder: Path) -> Iterator[Transcript | None]:
        """Where a case's completions are kept, if anywhere. The first process writes them when the body ends, however it does."""
        transcript = None
        if self.options.transcripts:
            path = self.options.path(self.options.transcripts) / f"{folder.name}.jsonl"
            transcript = Transcript(path, self.options.recipients)
        elif suite.declaration.transcripts:
            transcript = Transcript(folder / "transcript.jsonl", ())
        try:
            yield transcript
        finally:
            if transcript and ranks().leads:
                transcript.write()

    def _trials(self, suite: Suite, attack: AttackRecipe) -> dict[str, Any] | None:
        """What the search for an attack's settings came to; None without one."""
        found = self._found.get((suite.digest, attack.id)) if attack.search else None
        return {"engine": "optuna TPE", "trials": found.model_dump(mode="json")["trials"]} if found else None

    def _answers_of_control(self, task: CaseTask) -> ControlAnswers | None:
        """What the control of an attack answered, for the defense that of the tier's first; None where it was not run here."""
        suite = task.suite
        if task.kind == "attack" and task.attack is not None:
            return self._control_answers.get((suite.digest, task.attack.id))
        if task.kind == "defense":
            tier = ((suite.digest, recipe.id) for recipe in suite.tier_attacks(self.options.tier))
            return next((self._control_answers[at] for at in tier if at in self._control_answers), None)
        return None

    def identity(self, suite: Suite, defended: Defended | None) -> Identity:
        """What a case of this suite depends on; without ``defended`` nothing is said of defended weights."""
        judges = self.judges(suite)
        return Identity(
            candidate=self.candidate.identity,
            defense=defended.name if defended else self.defense_name,
            defended_digest=defended.digest if defended else None,
            defended_files=root_digest(defended.hashes) if defended and defended.hashes else None,
            judge=who(judges.evaluation),
            reward=who(judges.reward),
            second=who(judges.second) if judges.second else None,
            suite={"domain": suite.domain, "digest": suite.digest},
            benign=suite.declaration.benign,
            overrides=suite.overrides,
            versions=versions(),
            hardware=hardware(self.candidate.threads),
            plugins=foreign(self.options.plugins),
        )  # fmt: skip

    def _provenance(self, task: CaseTask, key: str, measured: Trajectory | None) -> CaseProvenance:
        """Where a case's numbers come from; asked when it has ended, so that its own attempt is noted."""
        suite = task.suite
        recipe = None if task.kind in UNDEFENDED else self.defense_recipe(suite)
        recipes: dict[Literal["defense", "attack"], dict[str, Any]] = {}
        if recipe:
            recipe = self.capacity.as_run(suite, recipe)
            recipes["defense"] = recipe.model_dump(mode="json")
        if measured and measured.recipe:
            recipes["attack"] = measured.recipe
        return CaseProvenance(
            tree=working_tree(suite.folder),
            recipes=recipes,
            seeds={of: r["seed"] for of, r in recipes.items()},
            attempts=attempts(self.store, key),
            training=attempts(self.store, content_key("defense", self._defense_parts(suite, recipe)))
            if recipe and task.kind == "defense"
            else (),
        )


def _with_earlier(trajectory: Trajectory, journal: Journal) -> Trajectory:
    """The trajectory with the checkpoints of an earlier attempt that it does not repeat."""
    if journal.differs_at is None:
        return trajectory
    earlier = tuple(Checkpoint.model_validate_json(line) for line in journal.earlier[journal.differs_at :])
    return trajectory.model_copy(update={"earlier": earlier})


def _write_all(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        _write(folder / name, text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
