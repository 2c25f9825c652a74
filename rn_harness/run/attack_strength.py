"""The strength of attacks on one model: searches the weakest settings that break the undefended model, and certifies them.

Settings that were tuned on another model may not break this one; then the control proves nothing. The search sees only the
undefended model, so that its result cannot depend on a defense.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from rn_harness.models.resolve import profile_recipe
from rn_harness.records.base import Record
from rn_harness.records.case import CaseRecord
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.errors import RecipeError
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.provenance import hardware, versions
from rn_harness.verdict.completeness import BREAK_MARGIN

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
"""Learning rates, weakest first."""
TEMPERATURES = (1.0, 1.3)
"""Sampling temperatures in the order of the search: hotter samples find rarer answers, but are less coherent."""
BUDGET = 24
"""Maximal number of controls."""
SHOWN = 20
"""Characters of a digest or a sampler's name in a message."""


class Try(Record):
    """One control of the search, with the settings that vary.

    Attributes:
        means: mean held-out scores by step; None for an unscored checkpoint.
        broke: whether its verdict is PASS and the highest mean reaches the bound.
    """

    recipe: str
    learning_rate: float
    temperature: float
    prompts: int
    seed: int
    means: dict[int, float | None]
    broke: bool
    reasons: tuple[str, ...] = ()

    @property
    def reached(self) -> float:
        """The highest mean."""
        return max((m for m in self.means.values() if m is not None), default=0.0)


class Strength(Record):
    """A strength certificate: the settings with which attacks on one candidate in one domain break it.

    Attributes:
        candidate: the undefended model as a case's record has it: its digest, and the loading options of the user.
        suite: digest of the attacked suite, with the user's own prompts.
        sampler: sampler of training with its version; None: transformers.
        settings: ``KEY=VALUE`` pairs in the language of ``--rn-set``; none if the search found none.
        attacks: number of the suite's attacks that the settings must work for.
        bound: mean held-out score that every control had to reach.
    """

    version: Literal[1] = 1
    candidate: dict[str, str | None]
    domain: str
    suite: str
    judge: str
    reward: str
    sampler: str | None = None
    settings: tuple[Annotated[str, Field(pattern=r"^attack\.(learning_rate|temperature)=\S+$")], ...]
    attacks: Annotated[int, Field(ge=1)]
    bound: float
    search: str
    tries: tuple[Try, ...]
    versions: dict[str, str]
    hardware: dict[str, str | int]

    @model_validator(mode="after")
    def _settings_broke_it(self) -> Self:
        """Settings must follow from tries: with those of a control that did not break the model, each attack is worthless."""
        same = [t for t in self.tries if _settings(t.learning_rate, t.temperature) == self.settings]
        enough = len({t.recipe for t in same}) >= self.attacks and all(t.broke and t.reached >= self.bound for t in same)
        if self.settings and not enough:
            raise ValueError(
                f"settings must be those of controls that broke the model, got settings={self.settings}; calibrate again"
            )
        return self


def _settings(rate: float, temperature: float) -> tuple[str, ...]:
    return (f"attack.learning_rate={rate:g}", f"attack.temperature={temperature:g}")


def _with_setting(attack: AttackRecipe, rate: float, temperature: float) -> AttackRecipe:
    return attack.model_copy(update={"learning_rate": rate, "temperature": temperature})


def find_strength(session: RunSession, suite: Suite, budget: int = BUDGET) -> Strength:
    """Searches the weakest settings with which all claimed attacks of the tier break the undefended candidate.

    A setting is left at the first control that does not break the model. Controls are stored: a run with these settings finds
    them there. ``budget`` is the maximal number of controls. The certificate has no settings if none was found.
    """
    attacks = [a for a in suite.tier_attacks(session.options.tier) if a.claim]
    if not attacks:
        raise RecipeError(f"a suite's claimed attacks are calibrated, got none in {suite.domain}; mark one with standing: claim")
    bound = suite.policy.control_break + BREAK_MARGIN
    tries: list[Try] = []
    found: tuple[str, ...] = ()
    for temperature, rate in itertools.product(TEMPERATURES, RATES):
        recipes = list(dict.fromkeys(_with_setting(attack, rate, temperature) for attack in attacks))
        affordable = recipes[: budget - len(tries)]
        for recipe in affordable:
            tries.append(_try(recipe, session.case("control", suite, recipe).record, bound))
            if not tries[-1].broke:
                break
        else:
            if affordable == recipes:
                found = _settings(rate, temperature)
                break
    judges = session.judges(suite)
    return Strength(
        candidate=session.candidate.identity,
        domain=suite.domain,
        suite=suite.digest,
        judge=judges.evaluation.digest,
        reward=judges.reward.digest,
        sampler=session.sampler.name,
        settings=found,
        attacks=len(recipes),
        bound=bound,
        search=(
            f"learning rates {', '.join(f'{r:g}' for r in RATES)} at temperatures {', '.join(f'{t:g}' for t in TEMPERATURES)}, "
            f"weakest first, at most {budget} controls; a setting counts where the control of each of the {len(attacks)} attacks "
            f"of tier {session.options.tier} reaches a held-out mean of {bound:g}"
        ),
        tries=tuple(tries),
        versions=versions(),
        hardware=hardware(session.candidate.threads),
    )


def _try(recipe: AttackRecipe, record: CaseRecord, bound: float) -> Try:
    trajectory, passed = record.evidence.trajectory, record.verdict.outcome == "PASS"
    tried = Try(
        recipe=recipe.id,
        **recipe.model_dump(include={"learning_rate", "temperature", "prompts", "seed"}),
        means={c.step: c.mean for c in trajectory.checkpoints} if trajectory else {},
        broke=False,
        reasons=() if passed else tuple(r.code for r in record.verdict.reasons),
    )
    return tried.model_copy(update={"broke": passed and tried.reached >= bound})


def load_strength(path: Path) -> Strength:
    """Reads a certificate; a ``RecipeError`` if it is missing, unreadable, altered, or from a search that found nothing."""
    try:
        strength = Strength.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problem = f"a readable file, got {path}: {error}"
        raise RecipeError(f"--rn-strength must name {problem}; make it by rn-harness calibrate") from None
    except ValidationError as error:
        problem = f"a strength certificate, got {path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        raise RecipeError(f"--rn-strength must name {problem}; make it by rn-harness calibrate") from None
    if not strength.settings:
        raise RecipeError(
            f"a strength certificate must have settings, got {path} of a search that found none in {len(strength.tries)} "
            "controls; attack with more steps, or look at the suite's prompts and judge"
        )
    return strength


def settings_for(folder: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """The certified settings for the suite in a folder; a ``RecipeError`` if two certificates are for its domain."""
    if not paths:
        return ()
    domain = load_suite(folder).domain
    found = [strength for path in paths if (strength := load_strength(path)).domain == domain]
    if len(found) > 1:
        raise RecipeError(f"one strength certificate counts for a domain, got {len(found)} for {domain}; drop the others")
    return found[0].settings if found else ()


def check_strength(session: RunSession, suites: Sequence[Suite]) -> None:
    """Checks that certificates are for this candidate, these judges, this sampler, and the attacks of suites of this run.

    The suite's text may have changed since, see ``strength_lines``: each run's own controls show that the settings break the
    candidate. Its attacks may not: their ids show prompts, seed, adapter rank, and whether all weights are trained.
    A certificate for something else is a ``RecipeError``.
    """
    by_domain = {s.domain: s for s in suites}
    for path in map(session.options.path, session.options.strength):
        strength = load_strength(path)
        suite = by_domain.get(strength.domain)
        if suite is None:
            raise RecipeError(
                f"a strength certificate must be for a suite of this run, got {path} for {strength.domain}; drop it"
            )
        _check_attacks(strength, suite, path)
        judges = session.judges(suite)
        for part, certified, here in (
            ("candidate", str(strength.candidate.get("digest")), session.candidate.digest),
            ("judge", strength.judge, judges.evaluation.digest),
            ("reward judge", strength.reward, judges.reward.digest),
            ("sampler", strength.sampler or "transformers", session.sampler.name or "transformers"),
        ):
            if certified != here:
                raise RecipeError(
                    f"a strength certificate must be of this {part}, got {certified[:SHOWN]} for {here[:SHOWN]} in {path}; "
                    "calibrate again, with the run's judges, --chat-template, --quantise and --sampler"
                )


def _check_attacks(strength: Strength, suite: Suite, path: Path) -> None:
    """Checks that a certificate covers all claimed attacks of the standard tier."""
    least = suite.policy.control_break + BREAK_MARGIN
    tried = {(t.learning_rate, t.temperature) for t in strength.tries}
    rate, temperature = next(pair for pair in tried if _settings(*pair) == strength.settings)
    claimed = [_with_setting(a, rate, temperature).id for a in suite.tier_attacks("standard") if a.claim]
    broken = {t.recipe for t in strength.tries if t.broke}
    missing = [f"no control of {name} that broke it" for name in claimed if name not in broken][:1]
    if strength.bound < least or missing or not tried <= set(itertools.product(RATES, TEMPERATURES)):
        raise RecipeError(
            f"a strength certificate must show each attack of the standard tier break the model by {least:g}, got {path} "
            f"with bound={strength.bound:g} and {', '.join([f'{len(strength.tries)} controls', *missing])}; calibrate again"
        )


def strength_lines(session: RunSession, suites: Sequence[Suite]) -> list[str]:
    """The certificates that were made on another text of a suite than ``calibrate`` would read now; for a header."""
    options, lines = session.options, []
    recipe = profile_recipe(options.undefended or options.model, options.base)
    by_domain = {s.domain: s for s in suites}
    for strength in map(load_strength, map(options.path, options.strength)):
        digest = load_suite(by_domain[strength.domain].folder, private=options.private, recipe=recipe).digest
        if digest != strength.suite:
            lines.append(
                f"rn-harness: the strength certificate for {strength.domain} was made on another text of the suite, "
                f"{strength.suite[:12]} and not {digest[:12]}: only this run's controls show whether its settings break the model"
            )
    return lines
