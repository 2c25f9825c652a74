"""The fine-tunes of a run that can be trained in this process, and their memory. Nothing is loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rn_harness.judges.protocol import Judge
from rn_harness.models.memory import Plan, Shape, Work, available_memory, card_memory, check_memory, fitting_plan, shape_of
from rn_harness.run.participants import Participants
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe, GRPORecipe
from rn_harness.spec.errors import CandidateError, JudgeError, RecipeError
from rn_harness.spec.suite import Suite
from rn_harness.store.ranks import ranks
from rn_harness.training.trainer_settings import VLLM_SHARE
from rn_harness.verdict.release_rules import PLAIN_FAMILIES
from rn_harness.verdict.validity import NO_DEFENSE

R = TypeVar("R", bound=GRPORecipe)


@dataclass
class TrainingLimits:
    """Checks fine-tunes against options and memory. All plans assume the same free memory; None: measured when first asked."""

    participants: Participants
    free: float | None
    _longest: dict[str, int] = field(default_factory=dict, init=False)
    _borrowing: dict[tuple[str, str], str | None] = field(default_factory=dict, init=False)

    def largest(self, suite: Suite) -> Plan | None:
        """The largest memory plan of the suite's defense and claim cases; None if the configuration lacks the numbers.

        A ``CandidateError`` if one of them does not fit into free memory in any micro-batch. Other cases report it themselves.
        """
        plans = [planned for recipe in self.required(suite) if (planned := self._plan(suite, recipe))]
        return max(plans, key=lambda planned: planned.total, default=None)

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """The largest plan, and the micro-batches that were chosen because whole steps do not fit; for a header."""
        plans = [planned for suite in suites if (planned := self.largest(suite))]
        if not plans:
            return "not known: config.json does not name the model's numbers"
        chosen = {
            f"{'defense' if isinstance(recipe, DefenseRecipe) else 'attacks'} {run.micro_batch} of {_rows(recipe)}"
            for suite in suites
            for recipe in self._recipes(suite)
            if (run := self.fitted(suite, recipe)) != recipe
        }
        batches = f"; rows of a micro-batch, chosen to fit: {', '.join(sorted(chosen))}" if chosen else ""
        return max(plans, key=lambda planned: planned.total).sentence + batches

    def fitted(self, suite: Suite, recipe: R) -> R:
        """The recipe with micro-batches that fit, if it leaves them open and a whole step does not fit.

        A ``CandidateError`` if none fits; an optional attack is then returned unchanged, since its case reports it.
        """
        planned = self.planned(suite, recipe)
        if planned is None or recipe.micro_batch is not None or planned.work.micro_batch == planned.work.rows:
            return recipe
        return recipe.model_copy(update={"micro_batch": planned.work.micro_batch})

    def planned(self, suite: Suite, recipe: GRPORecipe) -> Plan | None:
        """The memory plan of a fine-tune; None if it is unknown, or if the case will report that it cannot be trained."""
        return None if self.obstacle(suite, recipe) else self._plan(suite, recipe)

    def obstacle(self, suite: Suite, recipe: GRPORecipe) -> str | None:
        """Why an optional attack cannot be trained here; None if it can, and for required fine-tunes."""
        if not isinstance(recipe, AttackRecipe) or recipe.claim:
            return None
        try:
            self.check_borrowing(suite, recipe)
            self.check(recipe)
            self._plan(suite, recipe)
        except (RecipeError, CandidateError) as error:
            return str(error)
        return None

    def check_borrowing(self, suite: Suite, attack: AttackRecipe) -> None:
        """Checks once that an attack can use the prompts of a neighbouring suite, if it uses some; else a ``RecipeError``."""
        domain = attack.neighbour
        if domain is None:
            return
        if domain not in suite.neighbours:
            raise RecipeError(
                f"attack {attack.id} trains on the prompts of a suite beside this one, got domain={domain!r} and no "
                f"{suite.folder.parent / domain}; put it there"
            )
        pair = (suite.digest, domain)
        if pair not in self._borrowing:  # the judge may be on a server
            self._borrowing[pair] = None
            try:
                self.participants.reward_judge(suite, attack).check(suite.neighbours[domain].prompts)
            except JudgeError as error:
                self._borrowing[pair] = f"the prompts of {domain} cannot be rewarded: {error}"
        if reason := self._borrowing[pair]:
            raise RecipeError(reason)

    def check(self, recipe: GRPORecipe) -> None:
        """Checks that the options allow a fine-tune, else a ``RecipeError``; memory is not checked."""
        options = self.participants.options
        parts, size = recipe.micro_batch or _rows(recipe), ranks().size
        if parts % size:
            raise RecipeError(
                f"processes share the rows of a step alike, got {parts} rows for {size} processes; take a number of "
                "processes that divides prompts_per_step * group_size, and micro_batch where it is set"
            )
        by = _trained_by(recipe)
        if options.shard and (recipe.whole or by not in PLAIN_FAMILIES):  # TRL averages the gradients of these
            raise RecipeError(
                "weights that are spread over processes stay as they are, and an adapter is trained beside them by "
                f"{' or '.join(PLAIN_FAMILIES)}, got form={recipe.form} by {by} with --rn-shard; take another recipe, or leave "
                "it out"
            )
        if options.quantise and (recipe.whole or recipe.beta):
            form = "full" if recipe.whole else "lora"
            raise RecipeError(
                "4-bit weights stay as they are, and the KL penalty's reference has no adapter beside them, got "
                f"form={form} beta={recipe.beta:g} with --rn-quantise {options.quantise}; take form=lora and "
                "beta=0, or leave it out"
            )

    @functools.cached_property
    def available(self) -> float:
        """Bytes that a run may take, measured once so that all plans agree: the minimum over processes, which share a CPU's."""
        if self.free is not None:
            return self.free
        on, together = self.participants.on, ranks()
        return min(together.gather(available_memory(on))) / (together.size if on == "cpu" else 1)

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The candidate's shape; None if its configuration lacks the numbers."""
        return shape_of(self.participants.candidate.config, self.participants.candidate.parameters)

    def fit_together(self, suite: Suite, attacks: Sequence[AttackRecipe]) -> bool:
        """True if memory holds these attacks at the same time, or if the shape is unknown."""
        if self.shape is None:
            return True
        return fitting_plan(self.shape, Work.together([self._work(suite, of) for of in attacks]), self.available) is not None

    def required(self, suite: Suite) -> list[GRPORecipe]:
        """The fine-tunes that a verdict needs: the defense and the claim cases."""
        return [r for r in self._recipes(suite) if not isinstance(r, AttackRecipe) or r.claim]

    def _recipes(self, suite: Suite) -> list[GRPORecipe]:
        """All fine-tunes of a run: the tier's attacks, and the defense unless it was given, with its teacher."""
        defense = self.participants.defense_recipe(suite)
        trained = [defense, suite.teacher_of(defense)] if defense else []
        return [*suite.tier_attacks(self.participants.options.tier), *filter(None, trained)]

    def _plan(self, suite: Suite, recipe: GRPORecipe) -> Plan | None:
        return check_memory(self.shape, self._work(suite, recipe), self.available) if self.shape else None

    def _longest_prompt(self, suite: Suite) -> int:
        if suite.domain not in self._longest:  # a suite's digest takes as long as all of this
            texts = [p.text for of_set in suite.prompts.values() for p in of_set]
            texts += [p.text for neighbour in suite.neighbours.values() for p in neighbour.prompts]
            shifts = {attack.shift for attack in suite.tier_attacks(self.participants.options.tier) if attack.shift}
            shifted = [" ".join(turn["content"] for turn in shift.turns(text)) for shift in shifts for text in texts]
            self._longest[suite.domain] = self.participants.candidate.longest_prompt([*texts, *shifted])
        return self._longest[suite.domain]

    def _longest_taught(self, suite: Suite, recipe: GRPORecipe) -> int:
        """Tokens of the longest row of a defense's supervised steps, at most: a prompt, an answer, and a refusal after it."""
        assert isinstance(recipe, DefenseRecipe)
        longest, key = self._longest_prompt(suite), f"retained {suite.domain}"
        if recipe.distill and key not in self._longest:
            texts = [f"{of.prompt.text} {of.answer or ''}" for of in self.participants.retained(suite)]
            self._longest[key] = self.participants.candidate.longest_prompt(texts or [""])
        refusal = self.participants.candidate.longest_prompt([recipe.refusal]) if recipe.refusal else 0
        return max(longest, self._longest[key] if recipe.distill else 0) + refusal

    def _work(self, suite: Suite, recipe: GRPORecipe) -> Work:
        """A fine-tune as the memory plan sees it."""
        participants = self.participants
        options, candidate, sampler = participants.options, participants.candidate, participants.sampler
        rows, (taught, learned, asked) = _rows(recipe), _taught(recipe, suite)
        completion = max(recipe.max_completion_tokens, suite.policy.max_completion_tokens)
        return Work(
            form="qlora" if candidate.quantised else "full" if recipe.whole else recipe.form,
            number=self._number_bytes(suite, recipe),
            rows=rows,
            prompt=self._longest_prompt(suite),
            completion=completion,
            micro_batch=recipe.micro_batch or rows,
            splits=recipe.micro_batch is None and recipe.loss_type != "bnpo" and not taught,
            taught=taught,
            taught_tokens=self._longest_taught(suite, recipe) + completion if taught else 0,
            learned=learned,
            asked=asked,
            noised=isinstance(recipe, DefenseRecipe) and recipe.distill is not None,
            simulated=isinstance(recipe, DefenseRecipe) and recipe.hardening is not None,
            checkpointing=recipe.gradient_checkpointing,
            rank=recipe.lora.r,
            whole=suite.policy.max_whole_tokens,
            checkpoint_rows=len(suite.heldout(options.tier)) * (1 + suite.policy.samples),
            judges=sum(weights_size(judge) for judge in participants.judges(suite).distinct),
            sampler=VLLM_SHARE * card_memory() if sampler.vllm and not sampler.url else 0.0,
            cards=ranks().size,
            sharded=options.shard,
            device=participants.on,
        )

    def _number_bytes(self, suite: Suite, recipe: GRPORecipe) -> int:
        """Bytes of one weight. An attack runs on the undefended and the defended model: the larger counts."""
        participants = self.participants
        numbers = [participants.candidate.number]
        if isinstance(recipe, AttackRecipe):
            defense = participants.defense_recipe(suite)
            if defense is not None:
                numbers += ["float32"] if defense.whole else []  # whole weights are trained and stored in it
            elif participants.released:
                numbers.append(participants.released.number)
            elif participants.options.defense != NO_DEFENSE and participants.is_given_whole:
                numbers.append(participants.given.number)
        return 2 if all(number in ("bfloat16", "float16") for number in numbers) else 4


def _rows(recipe: GRPORecipe) -> int:
    """Rows of a step, B = P * G; of supervised steps P."""
    return recipe.step_prompts * (recipe.group_size if recipe.rewarded else 1)


def _taught(recipe: GRPORecipe, suite: Suite) -> tuple[int, int, int]:
    """Rows of a defense's supervised steps, at most, those that learn whole answers, and completions of the candidate for it."""
    if not isinstance(recipe, DefenseRecipe):
        return 0, 0, 0
    hardening, depth, refusals = recipe.hardening, recipe.depth, 0 if recipe.rewarded else recipe.prompts_per_step
    learned = depth.kept_rows if depth else refusals
    taught = learned + (refusals if depth else 0)
    if hardening:  # its losses are of refusals and of kept answers, at the same weights
        learned = max(learned, hardening.rows, hardening.examples)
        taught = max(taught, 2 * hardening.rows, hardening.examples)
    return taught, learned, max(of.samples if of else 0 for of in (hardening, depth)) * len(suite.prompts["defense"])


def _trained_by(recipe: GRPORecipe) -> str:
    """An attack's family, a defense's method, or its hardening."""
    if isinstance(recipe, AttackRecipe):
        return recipe.family
    assert isinstance(recipe, DefenseRecipe)
    return "hardening" if recipe.hardening else recipe.method


def weights_size(judge: Judge) -> int:
    """Bytes of the weights that a judge loads into this process; 0 if it has none, or if they are on a server."""
    folder: Path | None = getattr(judge, "folder", None)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0
