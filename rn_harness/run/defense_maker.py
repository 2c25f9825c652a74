"""Makes the defended model of a suite: trained by a recipe and stored, read from a folder, or none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rn_harness.defenses.neutralize import Defender, run_defense
from rn_harness.models.adapter_files import ADAPTER_CONFIG
from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import hash_files, root_digest
from rn_harness.models.resolve import resolve_candidate
from rn_harness.records.keys import content_key
from rn_harness.records.trajectory import ConvergencePoint, DefenseReport, Measurement
from rn_harness.report.progress import Progress
from rn_harness.run.case import Defended
from rn_harness.run.context import RunContext
from rn_harness.run.judging import Judging
from rn_harness.spec.defense_recipe import DefenseRecipe
from rn_harness.store.provenance import attempt, now
from rn_harness.training.snapshots import Resumption
from rn_harness.verdict.validity import NO_DEFENSE

REPORT = "report.json"


def make_defended(judging: Judging) -> Defended:
    """The candidate with this run's defense.

    Raises:
        RecipeError: an unknown recipe.
        CandidateError: a folder that holds neither adapter nor model.
        TrainingError: the fine-tune broke.
    """
    context = judging.context
    recipe = context.defense_recipe(judging.suite)
    if recipe is not None:
        return _Training(judging, context.limits.fitted(judging.suite, recipe)).defended()
    if context.released:
        return _whole(context, context.defense_name, context.released)
    if context.options.defense == NO_DEFENSE:
        return Defended(context.candidate, NO_DEFENSE)
    folder = context.defense_folder
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapted(context, folder.name, folder)
    return _whole(context, folder.name, context.given)


def trained_defense(context: RunContext, folder: Path) -> Defended:
    """The defense whose trained weights are in this folder."""
    name = context.options.defense
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapted(context, name, folder)
    return _whole(context, name, resolve_candidate(str(folder), context.options.base))


def _whole(context: RunContext, name: str, model: Candidate) -> Defended:
    return Defended(context.candidate, name, model=model, digest=model.digest, hashes=model.hashes)


def _adapted(context: RunContext, name: str, adapter: Path) -> Defended:
    hashes = hash_files(adapter)
    return Defended(context.candidate, name, adapter=adapter, digest=root_digest(hashes), hashes=hashes)


@dataclasses.dataclass(frozen=True)
class _Training:
    """The training of a defense.

    Attributes:
        judging: judges and panel of its suite.
        recipe: as it is trained here.
    """

    judging: Judging
    recipe: DefenseRecipe

    @property
    def name(self) -> str:
        return f"{self.judging.suite.domain}: defense {self.judging.context.options.defense}"

    def defended(self) -> Defended:
        """The trained defense, from the store or trained now."""
        context, recipe = self.judging.context, self.recipe
        inputs = self.judging.inputs.defense(recipe)
        key = content_key("defense", inputs)
        with context.entry("defense", key) as found:
            resumption = Resumption(
                context.store, key, recipe, lambda state: context.say(Progress(self.name, 0, 0, state, stays=True))
            )
            entry = found or self._train(key, inputs, resumption)
            resumption.close()
        report = DefenseReport.model_validate_json((entry / REPORT).read_text(encoding="utf-8"))
        made = trained_defense(context, entry / ("model" if recipe.whole else "adapter"))
        return dataclasses.replace(made, report=report, stored=found is not None)

    def _train(self, key: str, inputs: dict[str, Any], resumption: Resumption) -> Path:
        judging, context, recipe = self.judging, self.judging.context, self.recipe
        prompts = judging.suite.prompts
        context.say_why_new("defense", inputs, self.name)
        started = now()
        with attempt(context.store, key):
            judging.check_reward()
            panel = judging.panel
            model = context.candidate.load()
            defender = Defender(recipe, prompts["defense"], prompts["anchor"], judging.judges.reward, context.sampler)
            report = run_defense(
                model,
                defender,
                panel,
                self._say,
                lambda step: context.say(Progress(self.name, step, recipe.last_step)),
                resumption,
            )
        measured = Measurement(run_id=context.run_id, started=started, ended=now())
        report = report.model_copy(update={"measured": measured})

        def write(folder: Path) -> None:
            if recipe.whole:
                model.save(folder / "model")
            else:
                model.save_adapter(folder / "adapter", f"{context.candidate.name}@sha256:{context.candidate.digest}")
            (folder / REPORT).write_text(report.model_dump_json(), encoding="utf-8")

        return context.put("defense", key, write, inputs)

    def _say(self, point: ConvergencePoint) -> None:
        mean = "unscored" if point.reward_mean is None else f"reward {point.reward_mean:.2f}"
        state = f"{point.minimal_refusal_share:.0%} minimal refusals, {mean}, {point.mean_words:.1f} words"
        self.judging.context.say(Progress(self.name, point.step, self.recipe.last_step, state))
