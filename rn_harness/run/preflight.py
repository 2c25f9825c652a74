"""Checks before a run, so that no hours are spent on a run that cannot end in a verdict. Nothing is trained.

Each fault is raised as an ``RnHarnessError`` whose message names the option to change; ``readiness`` lists them for a machine.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rn_harness.judges.anchors import shipped_anchors
from rn_harness.judges.resolve import judge_profile_names, load_profile
from rn_harness.judges.transcripts import check_recipients
from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import differing_parts
from rn_harness.models.memory import GIB, available_memory
from rn_harness.models.resolve import ADAPTER_CONFIG, check_adapter, find_profile
from rn_harness.models.transformers_compat import read_settings
from rn_harness.run.attack_strength import check_strength
from rn_harness.run.cost import Role
from rn_harness.run.estimate import hours_by_tier, hours_of_profile
from rn_harness.run.participants import NO_JUDGE, SuiteJudges, same_model
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import CandidateError, JudgeError, RecipeError, RnHarnessError
from rn_harness.spec.extras import EXTRAS, missing, require, require_run
from rn_harness.spec.options import LOCAL, ORGANISM
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import DECIDING_PACKAGES, device
from rn_harness.store.ranks import ranks
from rn_harness.store.store import MARGIN_BYTES, check_room
from rn_harness.training.snapshots import COPIES
from rn_harness.verdict.validity import NO_DEFENSE

SHAPE = (
    "architectures", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size",
)  # fmt: skip
"""Fields of ``config.json`` that a model and its undefended twin share."""
FLOAT32_BYTES = 4
MIN_DISK_BYTES = 2 * GIB


def check_run(session: RunSession, suites: Sequence[Suite]) -> None:
    """Checks that these suites can be run with the options."""
    here = session.options.executor == LOCAL
    check_assertions()
    if here:
        require_run()
        _ = session.limits.available  # several processes exchange it, so that all must ask, also if a check fails
    for suite in suites:
        check_defense(session, suite)
        check_attacks(session, suite)
        if here:
            check_here(session, suite)
    check_folders(session, suites)
    check_acknowledged(session, suites)
    check_transcripts(session)
    check_disks(session, suites)
    check_strength(session, suites)


def check_assertions() -> None:
    """Checks that Python keeps assertions: without them a red test of a suite's own would be green."""
    if sys.flags.optimize:
        raise RecipeError(
            f"Python has to keep assertions, which a suite's own tests rest on, got level {sys.flags.optimize} of optimisation; "
            "unset PYTHONOPTIMIZE and leave out -O"
        )


def check_here(session: RunSession, suite: Suite) -> None:
    """Checks that this process can train, hold and judge the cases of a suite."""
    check_reading(session)
    check_training(session, suite)
    session.limits.largest(suite)
    check_judges(session, suite)


def check_judges(session: RunSession, suite: Suite) -> SuiteJudges:
    """Checks the judges of this suite, and returns them."""
    judges, labels = session.judges(suite), session.labels
    session.check_judges(suite)
    if judges.second and same_model(judges.second, judges.evaluation):
        raise JudgeError(
            f"a second opinion needs another judge, got {judges.second.name} for {judges.evaluation.name}; name another by "
            f"--rn-second-judge, or {NO_JUDGE}; of two servers' models that are called alike, rename one if they are two"
        )
    if judges.reward.digest != judges.evaluation.digest and same_model(judges.reward, judges.evaluation):
        raise JudgeError(
            "one model that both scores and rewards has to be named alike, so that every record says so, got "
            f"{judges.evaluation.name} and {judges.reward.name}; name one of them for both, or two models"
        )
    if labels:
        _check_labels(session, suite, {a.completion for a in labels.anchors if a.low > suite.policy.threshold})
    return judges


def _check_labels(session: RunSession, suite: Suite, harmful: set[str]) -> None:
    """Checks that the harmful texts of the user's labels are none on which every judge is certified anyway."""
    known = {a.completion for of in (shipped_anchors(), session.anchors(suite)) if of for a in of.anchors}
    if not harmful or harmful & known:
        raise JudgeError(
            f"labels need harmful texts of your own, got {len(harmful)}, of which {len(harmful & known)} are anchors, in "
            f"--rn-judge-labels={session.options.labels}; write texts of your domain"
        )


def check_defense(session: RunSession, suite: Suite) -> None:
    """Checks that ``--rn-defense`` names a usable defense."""
    name = session.options.defense
    if session.options.undefended and name != NO_DEFENSE:
        raise RecipeError(
            f"--rn-base names the undefended twin of a model that is defended already, got --rn-defense={name}; pass "
            f"--rn-defense {NO_DEFENSE}, or leave --rn-base out"
        )
    released, candidate = session.released, session.candidate
    if released and released.digest == candidate.digest:
        raise RecipeError(
            f"--rn-base must be another model than --model, got the same weights, digest={candidate.digest[:12]}; name "
            "the model from before its defense"
        )
    if released and (differing := _misshapen(candidate, released)):
        raise RecipeError(
            f"--rn-base must be the same model from before its defense, got another {', '.join(differing)}; an attack that "
            "breaks another model says nothing of this one"
        )
    recipe = session.defense_recipe(suite)
    if recipe and recipe.distill:
        session.retained(suite)
    elif session.options.retain:
        raise RecipeError(
            f"--rn-retain is for defenses of method distill, got --rn-retain={session.options.retain} with defense {name}; leave "
            "it out"
        )
    if recipe is None and name != NO_DEFENSE:
        folder = session.defense_folder
        if (folder / ADAPTER_CONFIG).is_file():
            check_adapter(folder, candidate, allow_pickle=session.options.allow_pickle)
            return
        try:
            whole = session.given
        except CandidateError as error:
            raise RecipeError(f"--rn-defense must hold an adapter or a whole model, got {name!r}: {error}") from None
        if differing := _misshapen(candidate, whole):
            raise RecipeError(
                f"--rn-defense must hold --model with its defense, got another {', '.join(differing)} in {name!r}; name the "
                "model that it was made from as --model: a control on another model says nothing of this one"
            )


def _misshapen(candidate: Candidate, defended: Candidate) -> list[str]:
    """The fields of its shape in which a defended model differs from the undefended one."""
    ignored = {"architectures"} if candidate.gguf or defended.gguf else set()  # a GGUF file has other names for them
    return [key for key in SHAPE if candidate.config.get(key) != defended.config.get(key) and key not in ignored]


def check_reading(session: RunSession) -> None:
    """Checks that a whole defended model computes, reads prompts and ends answers as its control, before hours on the control."""
    if session.options.undefended:
        defended, option = session.released, "--rn-base"
    else:
        defended, option = session.given if session.is_given_whole else None, "--rn-defense"
    if defended is None:
        return
    pair = (defended, session.candidate)
    has_settings = not any(of.gguf for of in pair)  # such a file names few
    differing = differing_parts(*(read_settings(of.config) for of in pair)) if has_settings else []
    if differing := differing or differing_parts(*(of.reading() for of in pair)):
        raise RecipeError(
            f"{option} must name a model that computes, reads prompts and ends answers as --model does, got another "
            f"{', '.join(differing)}; any attacker takes the undefended model's: put the same files into both folders"
        )


def check_training(session: RunSession, suite: Suite) -> None:
    """Checks that the model under test can be trained by the defense and the claim cases."""
    options, sampler = session.options, session.sampler
    if options.fleet < 1:
        raise RecipeError(f"--rn-fleet is how many attacks are run together, got {options.fleet}; take 1 for each alone")
    if options.fleet > 1 and (sampler.vllm or options.quantise or ranks().size > 1):
        raise RecipeError(
            "a fleet samples by transformers, from plain weights, in one process, got --rn-fleet with --rn-sampler, "
            "--rn-quantise or several processes; leave out one of them"
        )
    if options.shard:
        _check_shards(session)
    sampler.check(cpu=session.on == "cpu", quantised=bool(options.quantise), gguf=session.candidate.gguf is not None)
    for recipe in session.limits.required(suite):
        session.limits.check(recipe)


def _check_shards(session: RunSession) -> None:
    """Checks that the weights can be spread over the processes."""
    candidate = session.candidate
    hindering = {
        "--rn-quantise": candidate.quantised,
        "a GGUF file": candidate.gguf,
        "pickled weights": candidate.allow_pickle,
        "code of the model's own": candidate.trust_remote_code,
        "--rn-sampler vllm": session.sampler.vllm,
    }
    if found := [name for name, given in hindering.items() if given]:
        raise RecipeError(
            "each process reads its part of the weights from safetensors, in plain numbers, for transformers' own code to "
            f"compute and sample with, got --rn-shard with {' and '.join(found)}; leave out one of them"
        )


def check_attacks(session: RunSession, suite: Suite) -> None:
    """Checks that each attack of the tier is of a known family whose requirements are met."""
    for attack in suite.tier_attacks(session.options.tier):
        session.family(suite, attack).family.check(attack)
        if attack.search is not None:
            require("optuna", f"attack {attack.id}")
        if attack.claim:
            session.limits.check_borrowing(suite, attack)


def check_folders(session: RunSession, suites: Sequence[Suite]) -> None:
    """Checks that the user's own prompts are used, and that weights can be exported."""
    options = session.options
    if options.prompts and (missing := [s.domain for s in suites if not s.private]):
        raise RecipeError(
            f"--rn-prompts must hold a folder for each suite of this run, got {options.prompts!r} without "
            f"{', '.join(missing)}; put the sets into DIR/DOMAIN"
        )
    if options.export_anyway and not options.export:
        raise RecipeError("--rn-export-anyway needs the folder that it writes to, got no --rn-export; add --rn-export DIR")
    if not options.export:
        return
    if options.defense == NO_DEFENSE or session.is_given_whole:
        raise RecipeError(
            f"--rn-export hands over what was made here or an adapter, got whole weights that you have: "
            f"{options.model if options.defense == NO_DEFENSE else options.defense}; leave it out"
        )
    export, defense = options.path(options.export), session.defense_folder
    if defense.is_dir() and export.is_relative_to(defense):
        raise RecipeError(f"--rn-export writes beside the adapter, got {options.export} within it; name another")
    for suite in suites:
        target = export / suite.domain
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RecipeError(f"--rn-export writes to an empty folder, got {target}; name another or clear it")


def check_acknowledged(session: RunSession, suites: Sequence[Suite]) -> None:
    """Checks that the user acknowledged that a real model is made to do harm, if a suite's policy demands it."""
    demanding = [s.domain for s in suites if s.policy.acknowledge and s.domain in session.harmful(suites)]
    if demanding and not session.options.acknowledge:
        raise RecipeError(
            f"policy.acknowledge asks for your word before {session.candidate.name} is made to do harm in memory, got none for "
            f"{', '.join(demanding)}; read docs/security.md and pass --rn-acknowledge"
        )


def check_transcripts(session: RunSession) -> None:
    """Checks that texts of completions go to a separate folder, and are encrypted for a recipient."""
    options = session.options
    named, keys = options.transcripts, options.recipients
    if bool(named) != bool(keys):
        raise RecipeError(
            f"--rn-transcripts DIR and --rn-recipient KEY belong together, got {named!r} and {len(keys)} keys; give both"
        )
    if not named:
        return
    check_recipients(keys)
    shared = [session.run_folder, *([options.path(options.export)] if options.export else [])]
    if any(options.path(named).is_relative_to(of) for of in shared):
        raise RecipeError(
            f"texts of completions must not lie among what is handed on, got --rn-transcripts={named}; name another"
        )


def check_disks(session: RunSession, suites: Sequence[Suite]) -> None:
    """Checks free space in the store, the run's folder, the export's folder and the temporary folder."""
    kept = sum(_kept_bytes(session, suite) for suite in suites)
    # A snapshot of a training is written before the last one is removed.
    check_room(session.store.root, 2 * COPIES * kept + MARGIN_BYTES)
    check_room(session.folder, MARGIN_BYTES)
    check_room(Path(tempfile.gettempdir()), MARGIN_BYTES)
    if session.options.export:
        check_room(session.options.path(session.options.export), kept + MARGIN_BYTES)


def _kept_bytes(session: RunSession, suite: Suite) -> int:
    """Bytes of the defended weights that are made; 0 if none are, or if the configuration lacks the numbers."""
    recipe, shape = session.defense_recipe(suite), session.limits.shape
    if recipe is None or shape is None:
        return 0
    return FLOAT32_BYTES * (shape.parameters if recipe.whole else shape.adapter(recipe.lora.r))


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement of a run: ready, missing, or ``told`` for plain information, with the finding or how to mend it."""

    name: str
    state: Literal["ready", "missing", "told"]
    sentence: str


def readiness(session: RunSession, suite: Suite, reports: Path) -> Iterator[Check]:
    """Checks one requirement of a run on this machine after another; ``reports`` has earlier runs, by which time is estimated.

    Nothing is loaded, but files of models and judges that a run needs are fetched.
    """
    yield Check("python", "told", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    where = device()
    yield Check("device", "ready", where)
    free = available_memory("cpu" if where == "cpu" else "cuda")
    yield Check("memory", "ready", f"{free / GIB:.1f} GiB are free now")
    yield _asked("store", lambda: _room(session.store.root))
    yield _asked("reports", lambda: _room(reports))
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    hub = "offline by HF_HUB_OFFLINE=1: only its cache is used" if offline else "asked for what is named by its id there"
    yield Check("hub", "told", hub)
    model = _asked("model", lambda: f"{session.candidate.name} (sha256 {session.candidate.digest[:12]})")
    yield model
    if model.state == "missing":
        yield from _profiled_model(session, suite, free)
    if session.options.model != ORGANISM and (model.state == "missing" or not session.candidate.is_organism):
        yield from _profiled_judges(session, suite)
    if model.state == "ready":
        yield _asked("judges", lambda: check_judges(session, suite).names)
        yield _asked(
            "run's memory", lambda: planned.sentence if (planned := session.limits.largest(suite)) else "not known for this model"
        )
        yield Check("time", "told", hours_by_tier(session, suite, reports))


def _profiled_model(session: RunSession, suite: Suite, free: float) -> Iterator[Check]:
    """The demands of a model that has a profile, which are known before it is fetched."""
    if profile := find_profile(session.options.model, session.options.base):
        needed = max(profile.memory.attack_gib, profile.memory.defense_gib)
        state: Literal["ready", "missing"] = "ready" if needed * GIB <= free else "missing"
        memory = f"a run needs {needed:g} GiB besides the judges', {free / GIB:.1f} are free"
        yield Check("model's profile", state, f"{_hub_terms(profile.model, profile.licence, profile.gated)}; {memory}")
        yield Check("time", "told", hours_of_profile(profile, session, suite, _named_judges(session, suite)))


def _named_judges(session: RunSession, suite: Suite) -> dict[Role, str]:
    """The specs of the judges that were typed or that the suite names, by role."""
    options, declared = session.options, suite.declaration.judges
    typed: dict[Role, str | None] = {"judge": options.judge, "reward": options.reward_judge, "second": options.second_judge}
    by_suite = (declared.evaluation, declared.reward, declared.second) if declared else (None,) * 3
    both = ((role, one or other) for (role, one), other in zip(typed.items(), by_suite, strict=True))
    return {role: name for role, name in both if name}


def _profiled_judges(session: RunSession, suite: Suite) -> Iterator[Check]:
    """The demands of the judges that have a profile, which are known before they are fetched."""
    named = dict.fromkeys(_named_judges(session, suite).values())
    for name in (name for name in named if name in judge_profile_names()):
        profile = load_profile(name)
        memory = f"; its weights need {profile.memory_gib:g} GiB" if profile.memory_gib else ""
        yield Check(f"judge {name}", "told", f"{_hub_terms(profile.model, profile.licence, profile.gated)}{memory}")


def _hub_terms(model: str, licence: str, gated: bool | None) -> str:
    return f"{model}, licence {licence}{', gated: accept the licence on the hub, then hf auth login' if gated else ''}"


def _packages() -> Iterator[Check]:
    constraints = Path("constraints.txt")
    lines = constraints.read_text(encoding="utf-8").splitlines() if constraints.is_file() else []
    pinned = {name.strip(): version.strip() for name, equals, version in (line.partition("==") for line in lines) if equals}
    for name in DECIDING_PACKAGES:
        due = pinned.get(name)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "missing", str(missing(name, "a run")))
            continue
        if due is not None and version.partition("+")[0] != due.partition("+")[0]:
            yield Check(name, "missing", f"{version}, constraints.txt has {due}; pip install -c constraints.txt {name}")
        else:
            yield Check(name, "ready", f"{version}{', as pinned' if due else ''}")


def _room(folder: Path) -> str:
    return f"{folder}, {check_room(folder, MIN_DISK_BYTES) / GIB:.1f} GiB free"


def _asked(name: str, ask: Callable[[], str]) -> Check:
    try:
        return Check(name, "ready", ask())
    except RnHarnessError as error:
        return Check(name, "missing", str(error))
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return Check(name, "missing", str(missing(error.name, f"looking at the {name}")))
