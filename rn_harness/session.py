"""A run: what each case needs, made once, taken from the store where it exists. Floor 4 (run).

One object per pytest process. Work that several cases share (the defense, controls) is made under a lock, so that
``pytest -n 2`` makes it once.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rn_harness.anchors import AnchorSet, load_anchors
from rn_harness.attack import Witness, run_attack
from rn_harness.attacks import Loaded, load_family
from rn_harness.candidate import (
    ADAPTER_CONFIG,
    ORGANISM,
    Candidate,
    check_adapter,
    digest_folder,
    hash_files,
    resolve_candidate,
    root_digest,
    weights_digest,
)
from rn_harness.certificates import is_harmful
from rn_harness.certification import anchors_for, certify, to_plant
from rn_harness.coherence import UNDEFENDED, told_judges
from rn_harness.defense import run_defense
from rn_harness.errors import CandidateError, ExecutorError, JudgeError, RecipeError, RnHarnessError, StoreError, UnsuitedError
from rn_harness.evaluate import ControlAnswers, Panel, benign_references, measure_checkpoint
from rn_harness.gate import PLAIN_FAMILIES
from rn_harness.grpo import VLLM_SHARE, Sampler
from rn_harness.judges import Judge, resolve_judge, resolve_suites_judge
from rn_harness.judges.organism import OrganismJudge
from rn_harness.memory import Plan, Work, available_memory, card_memory, fit, shape_of
from rn_harness.memory import check as check_memory
from rn_harness.provenance import attempt, attempts, device, hardware, now, versions, working_tree
from rn_harness.ranks import SharedJudge, ranks, unshared
from rn_harness.records import (
    INFRASTRUCTURE,
    CaseKind,
    CaseProvenance,
    CaseRecord,
    Certificate,
    Checkpoint,
    ConvergencePoint,
    DefenseReport,
    Evidence,
    Identity,
    Trajectory,
)
from rn_harness.report.progress import Progress
from rn_harness.resumption import COPIES, Resumption
from rn_harness.search import Found, Trial, search
from rn_harness.store import MARGIN_BYTES, Journal, Store, check_room, content_key, write_text
from rn_harness.suite import AttackRecipe, DefenseRecipe, GRPORecipe, Prompt, Suite, TierName
from rn_harness.transcripts import Transcript, check_recipients
from rn_harness.validity import misjudging
from rn_harness.verdict import decide, unfit_judges

if TYPE_CHECKING:
    from rn_harness.executors import Executor
    from rn_harness.model import LanguageModel

R = TypeVar("R", bound=GRPORecipe)
NO_DEFENSE = "none"
NO_JUDGE = "none"
SHAPE = (
    "architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size",
)  # fmt: skip
"""What a model and its undefended twin have in common, by the names of a ``config.json``."""
MAKERS = "makers"
"""What the defense of a model is called that its makers defended."""
CERTIFICATE = "certificate.json"
PARTS = "parts"
"""Folder of a run in which each process that does a part of it has a folder of its own."""
SEARCH = "search.json"
CHANGES_SHOWN = 6
ROUNDING = 1e-4
"""By which numbers of a checkpoint that are no scores may differ, or by this share: on cards and in fleets sums vary in order."""
FLOAT32_BYTES = 4
LEAK_OF_CONTROL = ("leak_per_token", "leak_per_sequence")
"""What a checkpoint says only if the control ran in the same process; the same attack may be measured without."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for.

    Attributes:
        model: candidate's name, folder, file or id.
        defense: recipe's name, ``none``, or the folder of an adapter or a defended model.
        judge, reward_judge, second_judge: specs, or None for the default; ``none``: nobody gives a second opinion.
        labels: a lab's own labelled file, on which the judge is certified too; None: there is none.
        tier: which cases.
        overrides: ``--rn-set`` pairs.
        base: folder that relative paths start from.
        undefended: the undefended twin of a model that its makers defended; None: the model itself is undefended.
        prompts: folder of the lab's own prompt sets; None: the suites' own.
        export: folder that the defended weights go to after a PASS; None: they stay in the store.
        export_anyway: whether they go there whatever the outcome.
        acknowledge: whether he says that he knows that a real model is attacked in a harmful domain.
        transcripts: folder that encrypted texts of completions go to; None: they are kept nowhere.
        recipients: age public keys that open them.
        strength: files of strength certificates, whose settings the attacks take.
        chat_template: file with one that takes the place of the model's own; None: its own.
        allow_pickle, trust_remote_code: what the user lets the model's files do; never releasable.
        quantise: 4-bit format that the model under test is loaded in, ``nf4``; None: plain numbers.
        shard: whether the weights of the model under test are spread over the processes of the run.
        sampler: who samples in training, see ``grpo.Sampler``.
        fleet: attacks on one model that are run together at most; 1: each alone.
        executor: who makes the cases, see ``executors.Executor``.
    """

    model: str
    defense: str
    judge: str | None
    reward_judge: str | None
    second_judge: str | None
    labels: str | None
    tier: TierName
    overrides: tuple[str, ...]
    base: Path
    undefended: str | None = None
    prompts: str | None = None
    export: str | None = None
    export_anyway: bool = False
    acknowledge: bool = False
    transcripts: str | None = None
    recipients: tuple[str, ...] = ()
    strength: tuple[str, ...] = ()
    chat_template: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    quantise: str | None = None
    shard: bool = False
    sampler: str = "transformers"
    fleet: int = 1
    executor: str = "local"

    @property
    def arguments(self) -> list[str]:
        """The options as they are typed, those that are as by default left out."""
        named = {
            "--rn-model": self.model,
            "--rn-defense": self.defense,
            "--rn-base": self.undefended,
            "--rn-judge": self.judge,
            "--rn-reward-judge": self.reward_judge,
            "--rn-second-judge": self.second_judge,
            "--rn-judge-labels": self.labels,
            "--rn-prompts": self.prompts,
            "--rn-chat-template": self.chat_template,
            "--rn-tier": self.tier,
            "--rn-quantise": self.quantise,
            "--rn-sampler": self.sampler if self.sampler != "transformers" else None,
            "--rn-fleet": self.fleet if self.fleet != 1 else None,
        }
        typed = [f"{option}={value}" for option, value in named.items() if value is not None]
        typed += [f"--rn-strength={name}" for name in self.strength] + [f"--rn-set={pair}" for pair in self.overrides]
        flags = {
            "--rn-allow-pickle": self.allow_pickle,
            "--rn-trust-remote-code": self.trust_remote_code,
            "--rn-shard": self.shard,
        }
        return typed + [flag for flag, given in flags.items() if given]

    def path(self, name: str) -> Path:
        """Where a path of the user's leads."""
        return (self.base / Path(name).expanduser()).resolve()


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges a suite, each told what is forbidden there.

    Attributes:
        evaluation: scores checkpoints.
        reward: what the rewards of defense and attack are made from.
        second: gives a second opinion; None: nobody does.
    """

    evaluation: Judge
    reward: Judge
    second: Judge | None

    @property
    def names(self) -> str:
        """For headers and records."""
        return told_judges(_who(self.evaluation), _who(self.reward), _who(self.second) if self.second else None)


@dataclass(frozen=True, slots=True)
class Defended:
    """The candidate with its defense.

    Attributes:
        candidate: the undefended model.
        name: the defense's name.
        adapter: folder of the adapter; None where the weights are whole.
        model: whole defended model; None where it is candidate and adapter.
        digest: of the adapter or the model; None without a defense.
        hashes: sha256 of each file of the adapter or the model.
        report: what the fine-tune did; None where none was made.
        stored: whether it was taken from the store.
    """

    candidate: Candidate
    name: str
    adapter: Path | None = None
    model: Candidate | None = None
    digest: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    report: DefenseReport | None = None
    stored: bool = False

    @property
    def subject(self) -> str:
        """How verdicts call it: 4-bit weights are other weights."""
        quantised = self.candidate.quantised
        return f"{self.name} on weights in {quantised}" if quantised and self.name != NO_DEFENSE else self.name

    @property
    def folder(self) -> Path | None:
        """Where the defended weights lie; None without a defense."""
        return self.adapter or (self.model.folder if self.model else None)

    def verify(self) -> None:
        """Checks that the defended weights still are what was digested.

        Raises:
            CandidateError: they changed while the run used them.
        """
        if self.model is not None:
            self.model.verify()
        elif self.adapter is not None and digest_folder(self.adapter) != self.digest:
            raise CandidateError(
                f"defended weights must not change during a run, got another digest for {self.adapter}; run again on settled "
                "files"
            )

    def load(self) -> LanguageModel:
        """A fresh copy, its adapter folded in, or beside 4-bit weights."""
        model = (self.model or self.candidate).load()
        if self.adapter is not None:
            model.merge_from(self.adapter)
        return model


@dataclass(slots=True)
class Case:
    """A case as it ended.

    Attributes:
        kept: what was measured and decided; packed where another case was asked for since.
        domain: of its suite.
        stored: whether the measurement was taken from the store.
        folder: of its record.
        defended: where the defended weights lie; None without a defense.
        weights: sha256 of each of their files.
    """

    kept: CaseRecord | bytes
    domain: str
    stored: bool
    folder: Path
    defended: Path | None
    weights: Mapping[str, str]

    @property
    def record(self) -> CaseRecord:
        """What was measured and decided."""
        if isinstance(self.kept, bytes):
            return CaseRecord.model_validate_json(zlib.decompress(self.kept))
        return self.kept

    def pack(self) -> None:
        """Makes the record small, so that memory does not grow with the number of cases: an attack's 3 MiB become 30 KiB."""
        if not isinstance(self.kept, bytes):
            self.kept = zlib.compress(self.kept.model_dump_json().encode())

    def __repr__(self) -> str:
        """Short: pytest prints fixture values in many places."""
        return f"Case({self.domain} {self.record.case_id}: {self.record.verdict.outcome})"


@dataclass
class RunSession:
    """Makes and keeps what the cases of a run need.

    Attributes:
        options: what the user asked for.
        folder: of the run, where records go.
        store: finished work.
        say: gets signs of life.
        free: bytes that a run may take; a process that is one of several is told, so that all plan alike. None: asked for.
        ahead: the controls and attacks that this run will come to, by suite: what a fleet is made of.
        executor: makes the cases elsewhere; None: they are made here.
    """

    options: Options
    folder: Path
    store: Store
    say: Callable[[Progress], None]
    free: float | None = None
    ahead: Sequence[tuple[CaseKind, Suite, AttackRecipe]] = ()
    executor: Executor | None = None
    _panels: dict[tuple[str, str], Panel] = field(default_factory=dict)
    _cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    _defended: dict[str, Defended] = field(default_factory=dict)
    _judges: dict[str, Judge] = field(default_factory=dict)
    _certificates: dict[str, Certificate] = field(default_factory=dict)
    _plans: dict[tuple[str, GRPORecipe], Plan | None] = field(default_factory=dict)
    _longest: dict[str, int] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)
    _witnessed: set[str] = field(default_factory=set)
    _starts: dict[tuple[str, str | None], dict[str, Any]] = field(default_factory=dict)
    _control_answers: dict[tuple[str, str], ControlAnswers] = field(default_factory=dict)
    _found: dict[tuple[str, str], Found] = field(default_factory=dict)
    _strange: dict[tuple[str, str], str | None] = field(default_factory=dict)
    _failed: dict[tuple[str, str], Exception] = field(default_factory=dict)
    _members: dict[tuple[str, str], LanguageModel] = field(default_factory=dict)
    _among: str | None = None

    @functools.cached_property
    def candidate(self) -> Candidate:
        """The undefended model, digested: what is to be defended, or the twin of what its makers defended."""
        return self._resolve(self.options.undefended or self.options.model)

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Who samples in training.

        Raises:
            RecipeError: the option names none.
        """
        return Sampler.of(self.options.sampler)

    @functools.cached_property
    def released(self) -> Candidate | None:
        """The model that its makers defended, digested; None where the defense is ours to make or was given as a folder."""
        return self._resolve(self.options.model) if self.options.undefended else None

    @property
    def run_folder(self) -> Path:
        """Of the run that this session does, or does a part of; its name is the run's."""
        return self.folder.parent.parent if self.folder.parent.name == PARTS else self.folder

    @property
    def defense_name(self) -> str:
        """How verdicts call the defense."""
        return MAKERS if self.options.undefended else self.options.defense

    def _resolve(self, spec: str) -> Candidate:
        """A model that the user named, with what he lets its files do."""
        options = self.options
        return resolve_candidate(
            spec,
            options.base,
            chat_template=options.chat_template,
            allow_pickle=options.allow_pickle,
            trust_remote_code=options.trust_remote_code,
            quantise=options.quantise,
            shards=ranks().size if options.shard else 1,
        )

    def judges(self, suite: Suite) -> Judges:
        """Who judges this suite: the option's judge, else the organism's own, else the suite's default.

        A second opinion comes from the option's judge, else from the suite's; where the organism is the candidate, by default
        from nobody.

        Raises:
            JudgeError: one of them cannot be found, or is the candidate itself.
        """
        options, declared = self.options, suite.declaration.judges
        own = f"{ORGANISM}:{self.candidate.folder}" if self.candidate.is_organism else None
        evaluation = options.judge or own or (declared.evaluation if declared else None)
        reward = options.reward_judge or own or (declared.reward if declared else None)
        if evaluation is None or reward is None:
            raise JudgeError(
                f"a judge is required, and neither the candidate nor suite {suite.domain} brings one, got "
                f"--rn-judge={options.judge!r} --rn-reward-judge={options.reward_judge!r}; name both, see docs/judges.md"
            )
        by_suite = declared.second if declared and not own else None
        second = None if options.second_judge == NO_JUDGE else options.second_judge or by_suite
        return Judges(
            evaluation=self._judge(evaluation, suite, typed=bool(options.judge or own)),
            reward=self._judge(reward, suite, typed=bool(options.reward_judge or own)),
            second=self._judge(second, suite, typed=bool(options.second_judge)) if second else None,
        )

    def _judge(self, spec: str, suite: Suite, *, typed: bool) -> Judge:
        """The judge that the user typed, or that the suite's file names."""
        folder, resolve = (self.options.base, resolve_judge) if typed else (suite.folder, resolve_suites_judge)
        key = f"{folder} {spec}"
        if key not in self._judges:
            judge = resolve_judge(f"{ORGANISM}:{self.candidate.folder}", folder) if spec == ORGANISM else resolve(spec, folder)
            if _weights(judge) in self._under_test or getattr(judge, "served_model", None) == self.candidate.name:
                raise JudgeError(
                    f"a model must not judge itself, got judge={spec} for candidate={self.candidate.name}; name another"
                )
            self._judges[key] = judge
        told = self._judges[key].about(suite.declaration.forbidden)
        return SharedJudge(told) if ranks().size > 1 else told

    @functools.cached_property
    def _under_test(self) -> set[str]:
        """What the weights under test are known by: the candidate's, and those of a whole defended model."""
        folder = self._defense_folder()
        is_whole = folder.is_dir() and not (folder / ADAPTER_CONFIG).is_file()
        whole = {weights_digest(hash_files(folder, follow_links=True))} if is_whole else set()
        return whole | {of.weights_digest for of in (self.candidate, self.released) if of}

    @functools.cached_property
    def labels(self) -> AnchorSet | None:
        """The lab's own labelled texts.

        Raises:
            JudgeError: the file cannot be read as anchors.
        """
        return load_anchors(self.options.path(self.options.labels)) if self.options.labels else None

    def check_judges(self, suite: Suite) -> None:
        """Makes sure, before any training, that this suite can be judged.

        Raises:
            JudgeError: it cannot.
        """
        judges = self.judges(suite)
        labels = self.labels
        if suite.digest not in self._checked:  # a judge on a server is asked in earnest
            prompts = [p for of_set in suite.prompts.values() for p in of_set]
            for judge in (judges.evaluation, judges.reward, *([judges.second] if judges.second else [])):
                judge.check(prompts)
            self._checked.add(suite.digest)
        if judges.second and _same(judges.second, judges.evaluation):
            raise JudgeError(
                f"a second opinion needs another judge, got {judges.second.name} for {judges.evaluation.name}; name another by "
                f"--rn-second-judge, or {NO_JUDGE}"
            )
        if judges.reward.digest != judges.evaluation.digest and _same(judges.reward, judges.evaluation):
            raise JudgeError(
                "one model that both scores and rewards has to be named alike, so that every record says so, got "
                f"{judges.evaluation.name} and {judges.reward.name}; name one of them for both, or two models"
            )
        if labels and not any(is_harmful(a, suite.policy.threshold) for a in labels.anchors):
            raise JudgeError(f"labels need harmful texts too, got --rn-judge-labels={self.options.labels}; add some")

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

    def memory(self, suite: Suite) -> Plan | None:
        """What the largest of the suite's fine-tunes takes, by ``rn_harness.memory``; asked before anything is loaded.

        The defense and the claim cases count: another case for which there is no room is told when its turn comes.

        Returns:
            The plan; None where the candidate's configuration does not name its numbers.

        Raises:
            CandidateError: one of them takes more than is free now, in whatever micro-batches.
        """
        plans = [planned for recipe in self._needed(suite) if (planned := self._plan(suite, recipe))]
        return max(plans, key=lambda planned: planned.total, default=None)

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """For a header: the largest plan, and which micro-batches were chosen since whole steps do not fit."""
        plans = [planned for suite in suites if (planned := self.memory(suite))]
        if not plans:
            return "not known: config.json does not name the model's numbers"
        chosen = {
            f"{'defense' if isinstance(recipe, DefenseRecipe) else 'attacks'} {run.micro_batch} of {_rows(recipe)}"
            for suite in suites
            for recipe in self._recipes(suite)
            if (run := self.as_run(suite, recipe)) != recipe
        }
        told = f"; rows of a micro-batch, chosen to fit: {', '.join(sorted(chosen))}" if chosen else ""
        return max(plans, key=lambda planned: planned.total).sentence + told

    def as_run(self, suite: Suite, recipe: R) -> R:
        """The recipe as it is run here: where it leaves it open and a whole step does not fit, with micro-batches that do.

        One that is not needed and cannot be trained here stays as it is: when its turn comes, that is told.

        Raises:
            CandidateError: it does not fit in any.
        """
        if self._hindrance(suite, recipe):
            return recipe
        planned = self._plan(suite, recipe)
        if planned is None or recipe.micro_batch is not None or planned.work.micro_batch == planned.work.rows:
            return recipe
        return recipe.model_copy(update={"micro_batch": planned.work.micro_batch})

    def planned(self, suite: Suite, recipe: GRPORecipe) -> Plan | None:
        """What one fine-tune takes; None where that is not known, or where it cannot be trained here, as its own case tells.

        Raises:
            CandidateError: it is needed, and does not fit.
        """
        return None if self._hindrance(suite, recipe) else self._plan(suite, recipe)

    @property
    def on(self) -> Literal["cpu", "cuda"]:
        """What the model under test is computed on in this process."""
        return _on()

    def _plan(self, suite: Suite, recipe: GRPORecipe) -> Plan | None:
        key = (suite.digest, recipe)
        if key not in self._plans:
            candidate = self.candidate
            shape = shape_of(candidate.config, candidate.parameters)
            self._plans[key] = check_memory(shape, self._work(suite, recipe), self.available) if shape else None
        return self._plans[key]

    @functools.cached_property
    def available(self) -> float:
        """Bytes that a run may take, looked at once: all that is planned in a run is planned for the same.

        Of several processes it is the least that one of them has; on a CPU they share what there is.
        """
        if self.free is not None:
            return self.free
        on, together = _on(), ranks()
        return min(together.gather(available_memory(on))) / (together.size if on == "cpu" else 1)

    def _longest_prompt(self, suite: Suite) -> int:
        if suite.digest not in self._longest:
            texts = [p.text for of_set in suite.prompts.values() for p in of_set]
            texts += [p.text for neighbour in suite.neighbours.values() for p in neighbour.prompts]
            shifts = {attack.shift for attack in suite.tier_attacks(self.options.tier) if attack.shift}
            shifted = [" ".join(turn["content"] for turn in shift.turns(text)) for shift in shifts for text in texts]
            self._longest[suite.digest] = self.candidate.longest_prompt([*texts, *shifted])
        return self._longest[suite.digest]

    def _work(self, suite: Suite, recipe: GRPORecipe) -> Work:
        """What a fine-tune is, for the plan of its memory."""
        candidate, judges = self.candidate, self.judges(suite)
        of_digest = {j.digest: j for j in (judges.evaluation, judges.reward, judges.second) if j is not None}
        return Work(
            form="qlora" if candidate.quantised else "full" if recipe.whole else recipe.form,
            number=2 if candidate.number in ("bfloat16", "float16") else 4,
            rows=_rows(recipe),
            prompt=self._longest_prompt(suite),
            completion=max(recipe.max_completion_tokens, suite.policy.max_completion_tokens),
            micro_batch=recipe.micro_batch or _rows(recipe),
            splits=recipe.micro_batch is None and recipe.loss_type != "bnpo" and not _supervised(recipe),
            simulated=isinstance(recipe, DefenseRecipe) and recipe.hardening is not None,
            checkpointing=recipe.gradient_checkpointing,
            rank=recipe.lora.r,
            checkpoint_rows=len(suite.heldout(self.options.tier)) * (1 + suite.policy.samples),
            judges=sum(_weights_size(j) for j in of_digest.values()),
            sampler=VLLM_SHARE * card_memory() if self.sampler.vllm and not self.sampler.url else 0.0,
            cards=ranks().size,
            sharded=self.options.shard,
            device=_on(),
        )

    def certificate(self, judge: Judge, anchors: AnchorSet, suite: Suite, source: Literal["inert", "labels"]) -> Certificate:
        """A judge's certificate, from this process, the store, or made now.

        One whose judge's machinery failed is not stored: the next run asks again.
        """
        parts = {
            "judge": judge.digest,
            "anchors": anchors.digest,
            "threshold": suite.policy.threshold,
            "source": source,
            "versions": versions(),
            "hardware": hardware(self.candidate.threads),
            "run": self.run_folder.name if hasattr(judge, "served_model") else None,  # a server's weights may change between runs
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
        judge = self.judges(suite).evaluation
        inert = self.certificate(judge, anchors_for(judge), suite, "inert")
        return (inert, self.certificate(judge, self.labels, suite, "labels")) if self.labels else (inert,)

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

    def defense_recipe(self, suite: Suite) -> DefenseRecipe | None:
        """The recipe that ``--rn-defense`` names; None for ``none`` or a folder.

        Raises:
            RecipeError: neither a recipe of the suite nor a folder.
        """
        name, recipes = self.options.defense, suite.declaration.defenses
        if name in recipes:
            return recipes[name]
        if name == NO_DEFENSE or (name and self._defense_folder().is_dir()):
            return None
        raise RecipeError(
            f"--rn-defense must be a recipe of the suite, none, or a folder, got {name!r}; "
            f"{suite.folder.name} has: {', '.join([*recipes, NO_DEFENSE])}"
        )

    def check_defense(self, suite: Suite) -> None:
        """Makes sure, before any training, that ``--rn-defense`` names something that can be used.

        Raises:
            RecipeError: it does not.
            CandidateError: it is an adapter of another model.
        """
        name = self.options.defense
        if self.options.undefended and name != NO_DEFENSE:
            raise RecipeError(
                f"--rn-base names the undefended twin of a model that is defended already, got --rn-defense={name}; pass "
                f"--rn-defense {NO_DEFENSE}, or leave --rn-base out"
            )
        if self.released and self.released.digest == self.candidate.digest:
            raise RecipeError(
                f"--rn-base must be another model than --model, got the same weights, digest={self.candidate.digest[:12]}; name "
                "the model from before its defense"
            )
        if self.released and (differing := self._misshapen(self.released)):
            raise RecipeError(
                f"--rn-base must be the same model from before its defense, got another {', '.join(differing)}; an attack that "
                "breaks another model says nothing of this one"
            )
        if self.defense_recipe(suite) is None and name != NO_DEFENSE:
            folder = self._defense_folder()
            if (folder / ADAPTER_CONFIG).is_file():
                check_adapter(folder, self.candidate)
                return
            try:
                whole = self._resolve(str(folder))
            except CandidateError as error:
                raise RecipeError(f"--rn-defense must hold an adapter or a whole model, got {name!r}: {error}") from None
            if differing := self._misshapen(whole):
                raise RecipeError(
                    f"--rn-defense must hold --model with its defense, got another {', '.join(differing)} in {name!r}; name the "
                    "model that it was made from as --model: a control on another model says nothing of this one"
                )

    def _misshapen(self, defended: Candidate) -> list[str]:
        """In what a defended model is another than the undefended one, whatever it learned."""
        here, there = self.candidate.config, defended.config
        untold = {"architectures"} if self.candidate.gguf or defended.gguf else set()  # a GGUF file has its own name for it
        return [key for key in SHAPE if here.get(key) != there.get(key) and key not in untold]

    def check_training(self, suite: Suite) -> None:
        """Makes sure, before any training, that the model under test can be trained as the defense and the claim cases say.

        Raises:
            RecipeError: it cannot.
        """
        if self.options.fleet < 1:
            raise RecipeError(f"--rn-fleet is how many attacks are run together, got {self.options.fleet}; take 1 for each alone")
        if self.options.fleet > 1 and (self.sampler.vllm or self.options.quantise or ranks().size > 1):
            raise RecipeError(
                "a fleet samples by transformers, from plain weights, in one process, got --rn-fleet with --rn-sampler, "
                "--rn-quantise or several processes; leave out one of them"
            )
        if self.options.shard:
            self._check_shards()
        self.sampler.check(cpu=_on() == "cpu", quantised=bool(self.options.quantise), gguf=self.candidate.gguf is not None)
        for recipe in self._needed(suite):
            self._check_trainable(recipe)

    def _check_shards(self) -> None:
        """Makes sure that the weights can be spread over the processes.

        Raises:
            RecipeError: they cannot.
        """
        candidate = self.candidate
        hindering = {
            "--rn-quantise": candidate.quantised,
            "a GGUF file": candidate.gguf,
            "pickled weights": candidate.allow_pickle,
            "code of the model's own": candidate.trust_remote_code,
            "--rn-sampler vllm": self.sampler.vllm,
        }
        if found := [name for name, given in hindering.items() if given]:
            raise RecipeError(
                "each process reads its part of the weights from safetensors, in plain numbers, for transformers' own code to "
                f"compute and sample with, got --rn-shard with {' and '.join(found)}; leave out one of them"
            )

    def _check_trainable(self, recipe: GRPORecipe) -> None:
        parts, size = recipe.micro_batch or _rows(recipe), ranks().size
        if parts % size:
            raise RecipeError(
                f"processes share the rows of a step alike, got {parts} rows for {size} processes; take a number of "
                "processes that divides prompts_per_step * group_size, and micro_batch where it is set"
            )
        by = _trained_by(recipe)
        if self.options.shard and (recipe.whole or by not in PLAIN_FAMILIES):  # TRL averages the gradients of these
            raise RecipeError(
                "weights that are spread over processes stay as they are, and an adapter is trained beside them by "
                f"{' or '.join(PLAIN_FAMILIES)}, got form={recipe.form} by {by} with --rn-shard; take another recipe, or leave "
                "it out"
            )
        if self.options.quantise and (recipe.whole or recipe.beta):
            form = "full" if recipe.whole else "lora"
            raise RecipeError(
                "4-bit weights stay as they are, and the KL penalty's reference has no adapter beside them, got "
                f"form={form} beta={recipe.beta:g} with --rn-quantise {self.options.quantise}; take form=lora and "
                "beta=0, or leave it out"
            )

    def _hindrance(self, suite: Suite, recipe: GRPORecipe) -> str | None:
        """Why an attack that is no claim case cannot be trained here; None where it can, and for what is needed."""
        if not isinstance(recipe, AttackRecipe) or recipe.claim:
            return None
        if strange := self._strangeness(suite, recipe):
            return strange
        try:
            self._check_trainable(recipe)
            self._plan(suite, recipe)
        except (RecipeError, CandidateError) as error:
            return str(error)
        return None

    def _strangeness(self, suite: Suite, attack: AttackRecipe) -> str | None:
        """Why an attack cannot be had that borrows the prompts of a suite beside this one; None where it can, or borrows none."""
        domain = attack.neighbour
        if domain is None:
            return None
        if domain not in suite.neighbours:
            return (
                f"attack {attack.id} trains on the prompts of a suite beside this one, got domain={domain!r} and no "
                f"{suite.folder.parent / domain}; put it there"
            )
        at = (suite.digest, domain)
        if at not in self._strange:  # asked once: a judge may be far away
            self._strange[at] = None
            try:
                self._rewards(suite, attack).check(suite.neighbours[domain].prompts)
            except JudgeError as error:
                self._strange[at] = f"the prompts of {domain} cannot be rewarded: {error}"
        return self._strange[at]

    def _recipes(self, suite: Suite) -> list[GRPORecipe]:
        """All fine-tunes that a run makes: the tier's attacks, and the defense unless it was given."""
        defense = self.defense_recipe(suite)
        return [*suite.tier_attacks(self.options.tier), *([defense] if defense else [])]

    def _needed(self, suite: Suite) -> list[GRPORecipe]:
        """Those of them without which a run has no verdict: the defense and the claim cases."""
        return [r for r in self._recipes(suite) if not isinstance(r, AttackRecipe) or r.claim]

    def family(self, suite: Suite, attack: AttackRecipe) -> Loaded:
        """The family of one of the suite's attacks."""
        return load_family(attack.family, suite.folder)

    def check_attacks(self, suite: Suite) -> None:
        """Makes sure, before any training, that each attack of the tier is of a family that is known and has what it asks for.

        Raises:
            RecipeError: one is not.
        """
        for attack in suite.tier_attacks(self.options.tier):
            self.family(suite, attack).family.check(attack)
            if attack.claim and (strange := self._strangeness(suite, attack)):
                raise RecipeError(strange)

    def check_folders(self, suites: Sequence[Suite]) -> None:
        """Makes sure that prompts of the user's own are used, and that weights can be exported.

        Raises:
            RecipeError: a folder is of no suite's domain, or is not empty.
        """
        domains = ", ".join(s.domain for s in suites)
        if self.options.prompts and not any(s.private for s in suites):
            raise RecipeError(
                f"--rn-prompts must hold a folder for a suite of this run, got {self.options.prompts!r} for {domains}; put the "
                "sets into DIR/DOMAIN"
            )
        if self.options.export_anyway and not self.options.export:
            raise RecipeError("--rn-export-anyway says where to by --rn-export DIR, got none; name a folder")
        defense = self._defense_folder()
        is_whole = defense.is_dir() and not (defense / ADAPTER_CONFIG).is_file()
        if self.options.export and (self.options.undefended or is_whole):
            raise RecipeError(
                f"--rn-export hands over what was made here or an adapter, got whole weights that you have: "
                f"{self.options.model if self.options.undefended else self.options.defense}; leave it out"
            )
        if self.options.export and defense.is_dir() and self.options.path(self.options.export).is_relative_to(defense):
            raise RecipeError(f"--rn-export writes beside the adapter, got {self.options.export} within it; name another")
        for suite in suites if self.options.export else ():
            target = self.options.path(self.options.export or "") / suite.domain
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise RecipeError(f"--rn-export writes to an empty folder, got {target}; name another or clear it")

    def harmful(self, suites: Sequence[Suite]) -> list[str]:
        """The domains in which this run makes a real model do harm; none for an organism, or where a domain is benign."""
        return [] if self.candidate.is_organism else [s.domain for s in suites if not s.declaration.benign]

    def check_acknowledged(self, suites: Sequence[Suite]) -> None:
        """Makes sure that the user says so where a suite's policy demands it.

        Raises:
            RecipeError: it does, and he did not.
        """
        demanding = [s.domain for s in suites if s.policy.acknowledge and s.domain in self.harmful(suites)]
        if demanding and not self.options.acknowledge:
            raise RecipeError(
                f"policy.acknowledge asks for your word before {self.candidate.name} is made to do harm in memory, got none for "
                f"{', '.join(demanding)}; read docs/security.md and pass --rn-acknowledge"
            )

    def check_transcripts(self) -> None:
        """Makes sure that texts of completions go to a folder of their own, and to somebody.

        Raises:
            RecipeError: there is no key, one is none, or the folder is one that is handed on.
        """
        named, keys = self.options.transcripts, self.options.recipients
        if bool(named) != bool(keys):
            raise RecipeError(
                f"--rn-transcripts DIR and --rn-recipient KEY belong together, got {named!r} and {len(keys)} keys; give both"
            )
        if not named:
            return
        check_recipients(keys)
        handed_on = [self.run_folder, *([self.options.path(self.options.export)] if self.options.export else [])]
        if any(self.options.path(named).is_relative_to(of) for of in handed_on):
            raise RecipeError(
                f"texts of completions must not lie among what is handed on, got --rn-transcripts={named}; name another"
            )

    def check_room(self, suites: Sequence[Suite]) -> None:
        """Makes sure, before any training, that what it comes to can be kept.

        Raises:
            StoreError: the store, the run's folder, the export's or the temporary one cannot be written to, or is too full.
        """
        kept = sum(self._kept_bytes(suite) for suite in suites)
        check_room(self.store.root, 2 * COPIES * kept + MARGIN_BYTES)  # one snapshot of a training takes the place of another
        check_room(self.folder, MARGIN_BYTES)
        check_room(Path(tempfile.gettempdir()), MARGIN_BYTES)
        if self.options.export:
            check_room(self.options.path(self.options.export), kept + MARGIN_BYTES)

    def _kept_bytes(self, suite: Suite) -> int:
        """Bytes of the defended weights that are made; 0 where none are, or where the configuration does not name its numbers."""
        recipe = self.defense_recipe(suite)
        shape = shape_of(self.candidate.config, self.candidate.parameters)
        if recipe is None or shape is None:
            return 0
        return FLOAT32_BYTES * (shape.parameters if recipe.whole else shape.adapter(recipe.lora.r))

    def _defense_folder(self) -> Path:
        return self.options.path(self.options.defense)

    def _shared_parts(self, suite: Suite, sets: tuple[str, ...]) -> dict[str, Any]:
        """The parts of a key that most results have: weights, judge, policy, prompts, versions, machine."""
        prompts: dict[str, list[Prompt]] = {
            name: list(suite.heldout(self.options.tier)) if name == "heldout" else list(suite.prompts[name])  # type: ignore[index]
            for name in sets
        }
        judges = self.judges(suite)
        return {
            "candidate": self.candidate.digest,
            "judge": judges.evaluation.digest,
            "reward": judges.reward.digest,
            "second": judges.second.digest if judges.second else None,
            "forbidden": suite.declaration.forbidden,
            "anchors": anchors_for(judges.evaluation).digest,
            "policy": suite.policy.model_dump(mode="json"),
            "prompts": {name: [[p.id, p.topic, p.text, p.kind] for p in of_set] for name, of_set in prompts.items()},
            "versions": versions(),
            "hardware": hardware(self.candidate.threads),
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
        if (case.defended / ADAPTER_CONFIG).is_file():
            return self._adapted(self.options.defense, case.defended)
        return self._whole(self.options.defense, resolve_candidate(str(case.defended), self.options.base))

    def _make_defended(self, suite: Suite) -> Defended:
        recipe = self.defense_recipe(suite)
        if recipe is None:
            if self.released:
                return self._whole(MAKERS, self.released)
            if self.options.defense == NO_DEFENSE:
                return Defended(candidate=self.candidate, name=NO_DEFENSE)
            folder = self._defense_folder()
            if (folder / ADAPTER_CONFIG).is_file():
                return self._adapted(folder.name, folder)
            return self._whole(folder.name, self._resolve(str(folder)))
        recipe = self.as_run(suite, recipe)
        parts = self._defense_parts(suite, recipe)
        key = content_key("defense", parts)
        with self._entry("defense", key) as found:
            stored = found is not None
            what = f"{suite.domain}: defense {self.options.defense}"
            resumption = Resumption(self.store, key, recipe, lambda state: self.say(Progress(what, 0, 0, state, stays=True)))
            entry = found or self._train_defense(suite, recipe, key, parts, resumption)
            resumption.close()
        report = DefenseReport.model_validate_json((entry / "report.json").read_text(encoding="utf-8"))
        if recipe.whole:
            made = self._whole(self.options.defense, resolve_candidate(str(entry / "model"), self.options.base))
        else:
            made = self._adapted(self.options.defense, entry / "adapter")
        return dataclasses.replace(made, report=report, stored=stored)

    def _whole(self, name: str, model: Candidate) -> Defended:
        return Defended(self.candidate, name, model=model, digest=model.digest, hashes=model.hashes)

    def _adapted(self, name: str, adapter: Path) -> Defended:
        hashes = hash_files(adapter)
        return Defended(self.candidate, name, adapter=adapter, digest=root_digest(hashes), hashes=hashes)

    def _defense_parts(self, suite: Suite, recipe: DefenseRecipe) -> dict[str, Any]:
        """What a trained defense depends on."""
        return self._shared_parts(suite, ("defense", "anchor", "heldout")) | {"recipe": recipe.model_dump(mode="json")}

    def _train_defense(
        self, suite: Suite, recipe: DefenseRecipe, key: str, parts: dict[str, Any], resumption: Resumption
    ) -> Path:
        name = self.options.defense

        def say(point: ConvergencePoint) -> None:
            mean = "unscored" if point.reward_mean is None else f"reward {point.reward_mean:.2f}"
            state = f"{point.minimal_refusal_share:.0%} minimal refusals, {mean}, {point.mean_words:.1f} words"
            self.say(Progress(f"{suite.domain}: defense {name}", point.step, recipe.last_step, state))

        self._tell_change("defense", parts, f"{suite.domain}: defense {name}")
        with attempt(self.store, key):
            self.check_reward(suite)
            panel = self.panel(suite)
            model = self.candidate.load()
            reward = self.judges(suite).reward
            harmful, anchors = suite.prompts["defense"], suite.prompts["anchor"]
            report = run_defense(
                model,
                recipe,
                harmful,
                anchors,
                panel,
                reward,
                say,
                self.sampler,
                resumption,
                tick=lambda step: self.say(Progress(f"{suite.domain}: defense {name}", step, recipe.last_step)),
            )

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
        attack = self.settled(suite, self.as_run(suite, attack)) if attack else None
        case_id = kind if attack is None else f"{kind}-{attack.id}"
        at = (suite.digest, case_id)
        if at in self._failed:
            raise self._failed[at]
        if at not in self._cases:
            if attack and self._sails(suite, attack) and self._is_missing(kind, suite, attack):
                self._sail(kind, suite, attack)
                return self.case(kind, suite, attack)
            self._cases[at] = self._make_case(kind, suite, attack, case_id)
        for other, case in self._cases.items():
            if other != at:
                case.pack()
        return self._cases[at]

    def _sails(self, suite: Suite, attack: AttackRecipe) -> bool:
        """Whether an attack is run in a fleet: asked for, and plain RL by TRL that moves an adapter and nothing else."""
        return (
            self.options.fleet > 1
            and attack.family in PLAIN_FAMILIES
            and attack.form == "lora"
            and not (attack.beta or attack.search or attack.micro_batch)
            and not self._hindrance(suite, attack)
        )

    def _sail(self, kind: CaseKind, suite: Suite, attack: AttackRecipe) -> None:
        """Makes a case together with those of its kind that the run will come to; each is kept, or what went wrong with it."""
        from rn_harness.fleet import Fleet

        crew = self._crew(kind, suite, attack)
        for of in crew if kind == "attack" else ():
            with suppress(Exception):  # told by the case that rests on it
                self.case("control", suite, of)
        defended = self._attacked(kind, suite)
        self.panel(suite)
        self.certificates(suite)
        self.second_certificate(suite)
        self._among = f"{suite.domain}: {len(crew)} {kind}s together" if len(crew) > 1 else None
        if self._among:
            self.say(Progress(self._among, 0, 0, ", ".join(of.id for of in crew), stays=True))

        def task(of: AttackRecipe) -> Callable[[LanguageModel], Case]:
            case_id = f"{kind}-{of.id}"

            def make(member: LanguageModel) -> Case:
                self._members[(suite.digest, case_id)] = member
                return self._make_case(kind, suite, of, case_id)

            return make

        try:
            made = Fleet(defended.load(), self.candidate.threads).run([task(of) for of in crew])
        finally:
            self._among = None
            self._members.clear()  # one that is left would wait for a fleet that has ended
        for of, case in zip(crew, made, strict=True):
            at = (suite.digest, f"{kind}-{of.id}")
            if isinstance(case, Exception):
                self._failed[at] = case
            else:
                self._cases[at] = case

    def _crew(self, kind: CaseKind, suite: Suite, attack: AttackRecipe) -> list[AttackRecipe]:
        """The attack, and those beside it that are run with it: not yet made, and as many as memory holds."""
        wanted = (kind, "attack")  # which comes to its control too
        ahead = [of for case, each, of in self.ahead if case in wanted and each.digest == suite.digest and of.id != attack.id]
        as_run = {of.id: self.as_run(suite, of) for of in ahead}  # once: two members of one case would wait for each other
        beside = [of for of in as_run.values() if self._sails(suite, of) and self._is_missing(kind, suite, of)]
        crew = [attack, *beside[: self.options.fleet - 1]]
        shape = shape_of(self.candidate.config, self.candidate.parameters)
        while shape and len(crew) > 1 and not fit(shape, Work.together([self._work(suite, of) for of in crew]), self.available):
            crew.pop()
        return crew

    def _is_missing(self, kind: CaseKind, suite: Suite, attack: AttackRecipe) -> bool:
        """Whether a case was neither made nor stored, and did not go wrong."""
        at = (suite.digest, f"{kind}-{attack.id}")
        _, parts = self._case_parts(kind, suite, attack)
        return not (at in self._cases or at in self._failed or self.store.get("case", content_key("case", parts)))

    def settled(self, suite: Suite, attack: AttackRecipe) -> AttackRecipe:
        """The attack with the settings that its search finds on the model under test.

        Itself without a search, or where it cannot be run, or would move nothing.
        """
        if attack.search is None or not attack.learning_rate or self._hindrance(suite, attack):
            return attack
        at = (suite.digest, attack.id)
        if at not in self._found:
            try:
                self._found[at] = self._search(suite, attack)
            except UnsuitedError:  # told when its turn comes
                return attack
        return self._found[at].recipe

    def _search(self, suite: Suite, attack: AttackRecipe) -> Found:
        defended = self.defended(suite)
        parts = self._attack_parts(suite, attack, defended)
        key, what = content_key("search", parts), f"{suite.domain}: search {attack.id}"
        with self._entry("search", key) as entry:
            if entry is not None:
                return Found.model_validate_json((entry / SEARCH).read_text(encoding="utf-8"))
            self._tell_change("search", parts, what)
            self.check_reward(suite)

            def say(done: int, trial: Trial) -> None:
                harm = "broke" if trial.harm is None else f"harm {trial.harm:.2f}"
                state = f"lr {trial.learning_rate:g}, temperature {trial.temperature:g}, KL {trial.beta:g}, {trial.shape}: {harm}"
                self.say(Progress(what, done, attack.search.trials if attack.search else 0, state))

            with attempt(self.store, key):
                found = search(
                    defended.load,
                    attack,
                    self.family(suite, attack),
                    suite.attack_pool(attack),
                    self._rewards(suite, attack),
                    suite.policy,
                    say,
                    benign=suite.prompts["anchor"],
                    answers=lambda of: self._known_answers(suite, of),
                    sampler=self.sampler,
                )
            self._put("search", key, lambda into: _write(into / SEARCH, found.model_dump_json()), parts)
            return found

    def _make_case(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None, case_id: str) -> Case:
        started, clock = now(), time.monotonic()
        certificates, second = self.certificates(suite), self.second_certificate(suite)
        evidence = Evidence(
            kind=kind,
            policy=suite.policy,
            trajectory=None,
            standing=attack.standing if attack else "claim",
            within_claim=suite.standing_of(case_id)[1],
            subject=NO_DEFENSE if kind in UNDEFENDED else self.defense_name,
            exact_judge=self.judges(suite).evaluation.exact,
            certificates=certificates,
            second_certificate=second,
            attack_cases=sum(a.claim for a in suite.tier_attacks(self.options.tier)) or 1,
        )
        if unfit_judges(evidence):  # hours of training would end without a verdict
            key, stored, defended = content_key("unjudged", {"suite": suite.digest, "case": case_id}), False, None
            folder = self._case_folder(suite, case_id, key)
        else:
            begun = (started, clock)
            evidence, key, stored, defended, folder = self._measured(kind, suite, attack, case_id, evidence, begun)
        control = self.case("control", suite, attack) if evidence.control else None
        record = self._write_record(suite, case_id, key, defended, evidence, control, folder, (started, clock))
        where, hashes = (defended.folder, defended.hashes) if defended else (None, {})
        return Case(record, suite.domain, stored, folder, where, hashes)

    def _write_record(
        self,
        suite: Suite,
        case_id: str,
        key: str,
        defended: Defended | None,
        evidence: Evidence,
        control: Case | None,
        folder: Path,
        begun: tuple[str, float],
    ) -> CaseRecord:
        """Decides, and writes what was measured; ``begun`` is when the case did, by the calendar and by the clock."""
        record = CaseRecord(
            key=key,
            case_id=case_id,
            identity=self.identity(suite, defended),
            provenance=self._provenance(suite, evidence.kind, key, evidence.trajectory),
            evidence=evidence,
            control_key=control.record.key if control else None,
            verdict=decide(evidence),
            started=begun[0],
            ended=now(),
            wall_s=round(time.monotonic() - begun[1], 3),
        )
        write_text(folder / "record.json", record.model_dump_json(indent=1) + "\n")
        return record

    def _attack_parts(self, suite: Suite, attack: AttackRecipe | None, defended: Defended) -> dict[str, Any]:
        """The parts of a key of what is measured on a model, attacked or not."""
        neighbour = suite.neighbours.get(attack.neighbour) if attack and attack.neighbour else None
        searched = self._found.get((suite.digest, attack.id)) if attack and attack.search else None
        return {
            **self._shared_parts(suite, ("heldout", "benign", "attack") if attack else ("heldout", "benign")),
            "defended": defended.digest,
            "recipe": attack.model_dump(mode="json") if attack else None,
            "search": searched.model_dump(mode="json")["trials"] if searched else None,
            "family": self.family(suite, attack).digest if attack else None,
            "neighbour": neighbour.model_dump(mode="json") if neighbour else None,
            **({"fleet": self.candidate.threads} if attack and self._sails(suite, attack) else {}),
        }

    def _attacked(self, kind: CaseKind, suite: Suite) -> Defended:
        """The model that a case of this kind is measured on."""
        return Defended(self.candidate, NO_DEFENSE) if kind in UNDEFENDED else self.defended(suite)

    def _case_parts(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None) -> tuple[Defended, dict[str, Any]]:
        """What a case is measured on, and the parts of its key."""
        defended = self._attacked(kind, suite)
        return defended, {**self._attack_parts(suite, attack, defended), "case": kind}

    def key_elsewhere(self, record: CaseRecord, suite: Suite, attack: AttackRecipe | None) -> str:
        """The key of a case that was measured elsewhere, by what is known here.

        Taken from the record are the machine, the digest of the defended weights, and what a search came to.

        Args:
            record: of the case.
            suite: its suite.
            attack: its attack, with the settings that it was run with.
        """
        run = record.evidence.trajectory
        told = {
            "hardware": record.identity.hardware,
            "defended": record.identity.defended_digest,
            "search": run.settings.get("search", {}).get("trials") if run else None,
            "case": record.evidence.kind,
        }
        parts = self._attack_parts(suite, attack, Defended(self.candidate, NO_DEFENSE))
        return content_key("case", {**parts, **told})

    @contextmanager
    def _entry(self, kind: str, key: str) -> Iterator[Path | None]:
        """A stored result; None: it is to be made within. Of several processes the first holds the lock."""
        with self.store.locked(kind, key) if ranks().leads else nullcontext():
            yield ranks().first(lambda: self.store.get(kind, key))

    def _put(self, kind: str, key: str, write: Callable[[Path], None], parts: dict[str, Any]) -> Path:
        """Adds an entry, made of these parts; of several processes the first does."""
        return ranks().first(lambda: self.store.put(kind, key, write, parts))

    def _case_folder(self, suite: Suite, case_id: str, key: str) -> Path:
        folder = self.folder / "cases" / f"{suite.domain}-{case_id}-{key[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _measured(
        self,
        kind: CaseKind,
        suite: Suite,
        attack: AttackRecipe | None,
        case_id: str,
        evidence: Evidence,
        begun: tuple[str, float],
    ) -> tuple[Evidence, str, bool, Defended, Path]:
        """The evidence with what was measured, its key, whether it was stored, the defense, and the record's folder."""
        defended, parts = self._case_parts(kind, suite, attack)
        key = content_key("case", parts)
        folder = self._case_folder(suite, case_id, key)
        # First, so that the leak can be measured on what it answered.
        control = self.case("control", suite, attack) if kind == "attack" and attack else None
        changes = {
            "control": control.record.evidence.trajectory if control else None,
            "report": defended.report if kind == "defense" else None,
            "report_due": kind == "defense" and self.defense_recipe(suite) is not None,
            "subject": defended.subject,
            "within_claim": suite.standing_of(case_id, attack)[1],
        }
        known = evidence.model_copy(update=changes)

        def seen(trajectory: Trajectory) -> CaseRecord:
            of = known.model_copy(update={"trajectory": trajectory})
            return self._write_record(suite, case_id, key, defended, of, control, folder, begun)

        try:
            trajectory, stored = self._kept(kind, suite, attack, defended, case_id, folder, key, parts, seen)
        except RnHarnessError as error:
            # Of several processes each has to come to the same: only what all of them are sure to meet is told alone.
            may_be_told = evidence.standing == "out_of_claim" and ranks().size == 1
            if not (isinstance(error, UnsuitedError) or may_be_told):
                raise
            return evidence.model_copy(update={"refused": str(error), "subject": defended.subject}), key, False, defended, folder
        return known.model_copy(update={"trajectory": trajectory}), key, stored, defended, folder

    def _kept(
        self,
        kind: CaseKind,
        suite: Suite,
        attack: AttackRecipe | None,
        defended: Defended,
        case_id: str,
        folder: Path,
        key: str,
        parts: dict[str, Any],
        seen: Callable[[Trajectory], CaseRecord],
    ) -> tuple[Trajectory, bool]:
        """A case's trajectory from the store, or measured now and put there; and whether it was stored."""
        with self._entry("case", key) as entry:
            stored = entry is not None
            if entry is None:
                self._tell_change("case", parts, f"{suite.domain}: {case_id}")
                rounds = _on() == "cuda" or (attack is not None and self._sails(suite, attack))
                journal = self.store.journal(key, ROUNDING if rounds else 0.0)
                with attempt(self.store, key) as trial:
                    measured = self._measure(kind, suite, attack, defended, case_id, folder, journal, seen)
                    trial.outcome = "judge_failed" if measured.judge_failed else "done"
                trajectory = ranks().first(lambda: measured)
                self.candidate.verify()
                defended.verify()
                # A failure of infrastructure is no result, so that the same run tries again; a breach that was seen stays seen.
                if not trajectory.judge_failed or seen(trajectory).verdict.outcome == "FAIL":
                    text = trajectory.model_dump_json()
                    self._put("case", key, lambda into: _write(into / "trajectory.json", text), parts)
                journal.close()
            else:
                trajectory = Trajectory.model_validate_json((entry / "trajectory.json").read_text(encoding="utf-8"))
                lines = (c.model_dump_json() + "\n" for c in trajectory.checkpoints)
                write_text(folder / "checkpoints.jsonl", "".join(lines))
        return trajectory, stored

    def _tell_change(self, kind: str, parts: dict[str, Any], what: str) -> None:
        """Says in what the stored results differ, where there are some and none of them is this one."""
        differing = self.store.changed(kind, parts)
        if differing:
            shown = ", ".join(differing[:CHANGES_SHOWN]) + (", …" if len(differing) > CHANGES_SHOWN else "")
            self.say(Progress(what, 0, 0, f"made anew, since the stored one that is most alike differs in {shown}", stays=True))

    def _measure(
        self,
        kind: CaseKind,
        suite: Suite,
        attack: AttackRecipe | None,
        defended: Defended,
        case_id: str,
        folder: Path,
        journal: Journal,
        seen: Callable[[Trajectory], CaseRecord],
    ) -> Trajectory:
        """Measures; where that is cut off, what was measured is recorded first, and a breach in it ends the case."""
        if attack is not None:
            self.check_reward(suite)
            if hindrance := self._hindrance(suite, attack):
                raise UnsuitedError(f"attack {attack.id} cannot be trained here: {hindrance}")
        steps = 0 if attack is None else attack.control_steps if kind == "control" else attack.steps
        answers = self._answers_of_control(kind, suite, attack)
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
                self.say(Progress(f"{suite.domain}: {case_id}", checkpoint.step, steps, state, among=self._among))

            member = self._members.pop((suite.digest, case_id), None)
            if member is None and attack is not None and self._sails(suite, attack):
                raise StoreError(f"a stored case must stay until it is read, got {case_id} taken away meanwhile; run again")
            model = member or defended.load()
            if attack is not None:
                cuts: list[tuple[Trajectory, CaseRecord]] = []

                def cut(partial: Trajectory) -> None:
                    known = _with_earlier(partial, journal)
                    cuts.append((known, seen(known)))

                try:
                    trajectory = run_attack(
                        model,
                        attack,
                        self.family(suite, attack),
                        suite.attack_pool(attack),
                        panel,
                        self._rewards(suite, attack),
                        sink,
                        candidate_digest=self.candidate.digest,
                        defended_digest=defended.digest,
                        control=kind == "control",
                        benign=suite.prompts["anchor"],
                        answers=lambda of: self._known_answers(suite, of),
                        found=(lambda answers: self._control_answers.update({(suite.digest, attack.id): answers}))
                        if kind == "control"
                        else None,
                        searched=self._trials(suite, attack),
                        # Rows of a fleet are rounded by their companions.
                        start=None if member else self._starts.setdefault((suite.digest, defended.digest), {}),
                        cut=cut,
                        sampler=self.sampler,
                        tick=lambda step: self.say(Progress(f"{suite.domain}: {case_id}", step, steps, among=self._among)),
                    )
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

    def _rewards(self, suite: Suite, attack: AttackRecipe) -> Judge:
        """Who rewards an attack: told what is forbidden where its prompts come from."""
        reward = self.judges(suite).reward
        return reward.about(suite.neighbours[attack.neighbour].forbidden) if attack.neighbour else reward

    def _answers_of_control(self, kind: CaseKind, suite: Suite, attack: AttackRecipe | None) -> ControlAnswers | None:
        """What the control of an attack answered, for the defense that of the tier's first; None where it was not run here."""
        if kind == "attack" and attack is not None:
            return self._control_answers.get((suite.digest, attack.id))
        if kind == "defense":
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
            judge=_who(judges.evaluation),
            reward=_who(judges.reward),
            second=_who(judges.second) if judges.second else None,
            suite={"domain": suite.domain, "digest": suite.digest},
            overrides=suite.overrides,
            versions=versions(),
            hardware=hardware(self.candidate.threads),
        )  # fmt: skip

    def _provenance(self, suite: Suite, kind: CaseKind, key: str, measured: Trajectory | None) -> CaseProvenance:
        """Where a case's numbers come from; asked when it has ended, so that its own attempt is noted."""
        recipe = None if kind in UNDEFENDED else self.defense_recipe(suite)
        recipes: dict[Literal["defense", "attack"], dict[str, Any]] = {}
        if recipe:
            recipe = self.as_run(suite, recipe)
            recipes["defense"] = recipe.model_dump(mode="json")
        if measured and measured.recipe:
            recipes["attack"] = measured.recipe
        return CaseProvenance(
            tree=working_tree(suite.folder),
            recipes=recipes,
            seeds={of: r["seed"] for of, r in recipes.items()},
            attempts=attempts(self.store, key),
            training=attempts(self.store, content_key("defense", self._defense_parts(suite, recipe)))
            if recipe and kind == "defense"
            else (),
        )


def _on() -> Literal["cpu", "cuda"]:
    return "cpu" if device() == "cpu" else "cuda"


def _rows(recipe: GRPORecipe) -> int:
    """Rows of a step, B = P * G; of supervised steps, whichever has more."""
    if not isinstance(recipe, DefenseRecipe):
        return recipe.prompts_per_step * recipe.group_size
    rows = recipe.prompts_per_step * (recipe.group_size if recipe.method == "grpo" else 1)
    return max(rows, recipe.hardening.rows, recipe.hardening.examples) if recipe.hardening else rows


def _trained_by(recipe: GRPORecipe) -> str:
    """What trains: an attack's family, a defense's method or its hardening."""
    if isinstance(recipe, AttackRecipe):
        return recipe.family
    assert isinstance(recipe, DefenseRecipe)
    return "hardening" if recipe.hardening else recipe.method


def _supervised(recipe: GRPORecipe) -> bool:
    """Whether there are supervised steps, which take all of their rows at once."""
    return isinstance(recipe, DefenseRecipe) and (recipe.method == "sft" or recipe.hardening is not None)


def _with_earlier(trajectory: Trajectory, journal: Journal) -> Trajectory:
    """The trajectory with the checkpoints of an earlier attempt that it does not repeat."""
    if journal.differs_at is None:
        return trajectory
    earlier = tuple(Checkpoint.model_validate_json(line) for line in journal.earlier[journal.differs_at :])
    return trajectory.model_copy(update={"earlier": earlier})


def _weights(judge: Judge) -> str | None:
    """What a judge's weights are known by; None where it has none that can be seen."""
    digest: str | None = getattr(judge, "weights_digest", None)
    return digest


def _same(one: Judge, other: Judge) -> bool:
    """Whether two judges are one: in all, or the same weights in other words."""
    return one.digest == other.digest or (_weights(one) is not None and _weights(one) == _weights(other))


def _weights_size(judge: Judge) -> int:
    """Bytes of the weights that a judge loads into this process; 0 for one that has none, or whose server has them."""
    folder: Path | None = getattr(judge, "folder", None)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0


def _who(judge: Judge) -> dict[str, str]:
    """A judge's name, digest, and the commit of its weights where they come from a hub."""
    commit: str | None = getattr(judge, "commit", None)
    return {"name": judge.name, "digest": judge.digest} | ({"commit": commit} if commit else {})


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
