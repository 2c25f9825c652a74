"""What of a run's fine-tunes can be trained in this process, and in how much memory. Floor 4 (run). Nothing is loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rn_harness.judges.protocol import Judge
from rn_harness.models.memory import Plan, Shape, Work, available_memory, card_memory, fit, shape_of
from rn_harness.models.memory import check as check_memory
from rn_harness.run.lineup import Lineup
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.defense_recipe import DefenseRecipe, GRPORecipe
from rn_harness.spec.errors import CandidateError, JudgeError, RecipeError
from rn_harness.spec.suite import Suite
from rn_harness.store.ranks import ranks
from rn_harness.training.sampler import VLLM_SHARE
from rn_harness.verdict.release_rules import PLAIN_FAMILIES
from rn_harness.verdict.validity import NO_DEFENSE

R = TypeVar("R", bound=GRPORecipe)


@dataclass
class Capacity:
    """Tells what can be trained here, and plans for the same free memory throughout a run.

    Attributes:
        lineup: of the run.
        free: bytes that it may take; None: as many as there are when that is first asked.
    """

    lineup: Lineup
    free: float | None
    _plans: dict[tuple[str, GRPORecipe], Plan | None] = field(default_factory=dict, init=False)
    _longest: dict[str, int] = field(default_factory=dict, init=False)
    _strange: dict[tuple[str, str], str | None] = field(default_factory=dict, init=False)

    def largest(self, suite: Suite) -> Plan | None:
        """What the largest of the suite's fine-tunes takes, by ``rn_harness.models.memory``; asked before anything is loaded.

        The defense and the claim cases count: another case for which there is no room is told when its turn comes.

        Returns:
            The plan; None where the candidate's configuration does not name its numbers.

        Raises:
            CandidateError: one of them takes more than is free now, in whatever micro-batches.
        """
        plans = [planned for recipe in self.needed(suite) if (planned := self._plan(suite, recipe))]
        return max(plans, key=lambda planned: planned.total, default=None)

    def memory_line(self, suites: Sequence[Suite]) -> str:
        """For a header: the largest plan, and which micro-batches were chosen since whole steps do not fit."""
        plans = [planned for suite in suites if (planned := self.largest(suite))]
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
        planned = self.planned(suite, recipe)
        if planned is None or recipe.micro_batch is not None or planned.work.micro_batch == planned.work.rows:
            return recipe
        return recipe.model_copy(update={"micro_batch": planned.work.micro_batch})

    def planned(self, suite: Suite, recipe: GRPORecipe) -> Plan | None:
        """What one fine-tune takes; None where that is not known, or where it cannot be trained here, as its own case tells.

        Raises:
            CandidateError: it is needed, and does not fit.
        """
        return None if self.hindrance(suite, recipe) else self._plan(suite, recipe)

    def hindrance(self, suite: Suite, recipe: GRPORecipe) -> str | None:
        """Why an attack that is no claim case cannot be trained here; None where it can, and for what is needed."""
        if not isinstance(recipe, AttackRecipe) or recipe.claim:
            return None
        if strange := self.strangeness(suite, recipe):
            return strange
        try:
            self.check(recipe)
            self._plan(suite, recipe)
        except (RecipeError, CandidateError) as error:
            return str(error)
        return None

    def strangeness(self, suite: Suite, attack: AttackRecipe) -> str | None:
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
                self.lineup.rewards(suite, attack).check(suite.neighbours[domain].prompts)
            except JudgeError as error:
                self._strange[at] = f"the prompts of {domain} cannot be rewarded: {error}"
        return self._strange[at]

    def check(self, recipe: GRPORecipe) -> None:
        """Makes sure that a fine-tune is one that the options leave possible, memory apart.

        Raises:
            RecipeError: it is not.
        """
        parts, size = recipe.micro_batch or _rows(recipe), ranks().size
        if parts % size:
            raise RecipeError(
                f"processes share the rows of a step alike, got {parts} rows for {size} processes; take a number of "
                "processes that divides prompts_per_step * group_size, and micro_batch where it is set"
            )
        by = _trained_by(recipe)
        if self.lineup.options.shard and (recipe.whole or by not in PLAIN_FAMILIES):  # TRL averages the gradients of these
            raise RecipeError(
                "weights that are spread over processes stay as they are, and an adapter is trained beside them by "
                f"{' or '.join(PLAIN_FAMILIES)}, got form={recipe.form} by {by} with --rn-shard; take another recipe, or leave "
                "it out"
            )
        if self.lineup.options.quantise and (recipe.whole or recipe.beta):
            form = "full" if recipe.whole else "lora"
            raise RecipeError(
                "4-bit weights stay as they are, and the KL penalty's reference has no adapter beside them, got "
                f"form={form} beta={recipe.beta:g} with --rn-quantise {self.lineup.options.quantise}; take form=lora and "
                "beta=0, or leave it out"
            )

    @functools.cached_property
    def available(self) -> float:
        """Bytes that a run may take, looked at once: all that is planned in a run is planned for the same.

        Of several processes it is the least that one of them has; on a CPU they share what there is.
        """
        if self.free is not None:
            return self.free
        on, together = self.lineup.on, ranks()
        return min(together.gather(available_memory(on))) / (together.size if on == "cpu" else 1)

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The candidate's; None where its configuration does not name its numbers."""
        return shape_of(self.lineup.candidate.config, self.lineup.candidate.parameters)

    def holds(self, suite: Suite, attacks: Sequence[AttackRecipe]) -> bool:
        """Whether there is room for attacks that are run together; taken for granted where the shape is not known."""
        if self.shape is None:
            return True
        return fit(self.shape, Work.together([self._work(suite, of) for of in attacks]), self.available) is not None

    def _plan(self, suite: Suite, recipe: GRPORecipe) -> Plan | None:
        key = (suite.digest, recipe)
        if key not in self._plans:
            self._plans[key] = check_memory(self.shape, self._work(suite, recipe), self.available) if self.shape else None
        return self._plans[key]

    def _longest_prompt(self, suite: Suite) -> int:
        if suite.digest not in self._longest:
            texts = [p.text for of_set in suite.prompts.values() for p in of_set]
            texts += [p.text for neighbour in suite.neighbours.values() for p in neighbour.prompts]
            shifts = {attack.shift for attack in suite.tier_attacks(self.lineup.options.tier) if attack.shift}
            shifted = [" ".join(turn["content"] for turn in shift.turns(text)) for shift in shifts for text in texts]
            self._longest[suite.digest] = self.lineup.candidate.longest_prompt([*texts, *shifted])
        return self._longest[suite.digest]

    def _work(self, suite: Suite, recipe: GRPORecipe) -> Work:
        """What a fine-tune is, for the plan of its memory."""
        candidate, judges = self.lineup.candidate, self.lineup.judges(suite)
        of_digest = {j.digest: j for j in (judges.evaluation, judges.reward, judges.second) if j is not None}
        return Work(
            form="qlora" if candidate.quantised else "full" if recipe.whole else recipe.form,
            number=self._number(suite, recipe),
            rows=_rows(recipe),
            prompt=self._longest_prompt(suite),
            completion=max(recipe.max_completion_tokens, suite.policy.max_completion_tokens),
            micro_batch=recipe.micro_batch or _rows(recipe),
            splits=recipe.micro_batch is None and recipe.loss_type != "bnpo" and not _supervised(recipe),
            simulated=isinstance(recipe, DefenseRecipe) and recipe.hardening is not None,
            checkpointing=recipe.gradient_checkpointing,
            rank=recipe.lora.r,
            whole=suite.policy.max_whole_tokens,
            checkpoint_rows=len(suite.heldout(self.lineup.options.tier)) * (1 + suite.policy.samples),
            judges=sum(_weights_size(j) for j in of_digest.values()),
            sampler=VLLM_SHARE * card_memory() if self.lineup.sampler.vllm and not self.lineup.sampler.url else 0.0,
            cards=ranks().size,
            sharded=self.lineup.options.shard,
            device=self.lineup.on,
        )

    def _number(self, suite: Suite, recipe: GRPORecipe) -> int:
        """Bytes of a number of the weights; an attack is run on the undefended model and the defended one: of which has more."""
        lineup = self.lineup
        numbers = [lineup.candidate.number]
        if isinstance(recipe, AttackRecipe):
            defense = lineup.defense_recipe(suite)
            if defense is not None:
                numbers += ["float32"] if defense.whole else []  # all weights are trained in it, and kept so
            elif lineup.released:
                numbers.append(lineup.released.number)
            elif lineup.options.defense != NO_DEFENSE and lineup.is_given_whole:
                numbers.append(lineup.given.number)
        return 2 if all(number in ("bfloat16", "float16") for number in numbers) else 4

    def _recipes(self, suite: Suite) -> list[GRPORecipe]:
        """All fine-tunes that a run makes: the tier's attacks, and the defense unless it was given."""
        defense = self.lineup.defense_recipe(suite)
        return [*suite.tier_attacks(self.lineup.options.tier), *([defense] if defense else [])]

    def needed(self, suite: Suite) -> list[GRPORecipe]:
        """Those of them without which a run has no verdict: the defense and the claim cases."""
        return [r for r in self._recipes(suite) if not isinstance(r, AttackRecipe) or r.claim]


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


def _weights_size(judge: Judge) -> int:
    """Bytes of the weights that a judge loads into this process; 0 for one that has none, or whose server has them."""
    folder: Path | None = getattr(judge, "folder", None)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0
