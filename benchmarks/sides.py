"""One side of a comparison, measured from within its own process: ``python benchmarks/sides.py TASK JSON`` prints JSON.

benchmarks/performance.py starts it, so that each measurement has a new process. Processor and wall seconds run from loading the
weights to the last step; imports, and parts that a session makes once for all cases, are excluded.
"""

from __future__ import annotations

import cProfile
import dataclasses
import json
import pstats
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rn_harness.attacks.family import AttackContext, Attacker, AttackFamily, Loaded, load_family
from rn_harness.attacks.loop import AttackEvents, AttackTarget, draw_attack_prompts, run_attack
from rn_harness.defenses.neutralize import defense_reward, mix_benign, split_validation
from rn_harness.judges.checkpoints import measure_checkpoint
from rn_harness.judges.organism import OrganismJudge
from rn_harness.judges.protocol import Judge
from rn_harness.judges.scoring import Panel
from rn_harness.models.completion import Completion
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.transformers_compat import quiet_libraries
from rn_harness.records.base import Judgement
from rn_harness.records.trajectory import Trajectory
from rn_harness.run.session import RunSession
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.options import Options
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.store.store import Store, default_root
from rn_harness.verdict.rewards import neutralization_reward

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "suites" / "biochem"
DEFENSE = "anchored"


class Clock:
    """Processor and wall seconds of each timed span."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    @contextmanager
    def span(self) -> Iterator[None]:
        """Times the body of a with statement."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.spans.append((time.process_time() - cpu, time.perf_counter() - wall))

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function so that each call is timed."""

        def timed(*given: Any) -> Any:
            with self.span():
                return work(*given)

        return timed

    @property
    def cpu_s(self) -> float:
        """Processor seconds of all spans so far."""
        return sum(cpu for cpu, _ in self.spans)

    @property
    def told(self) -> dict[str, float]:
        """Seconds of all spans together."""
        return {"cpu_s": round(self.cpu_s, 3), "wall_s": round(sum(w for _, w in self.spans), 3)}


class CountedJudge(OrganismJudge):
    """The organism's judge, which counts scored completions."""

    asked = 0

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Scores and counts completions."""
        self.asked += len(completions)
        return super().score(prompts, completions, wording)


class SlowJudge(OrganismJudge):
    """The organism's judge, as slow as a server that takes a second per request and handles eight at a time."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], wording: int = 0) -> list[Judgement]:
        """Scores completions after a delay."""
        time.sleep(len(completions) / 8)
        return super().score(prompts, completions, wording)


class ServedJudge(SlowJudge):
    """The slow judge, known to be on a server."""

    served_model = "slow"


@dataclasses.dataclass(frozen=True)
class TimedFamily:
    """An attack family whose measurements are timed."""

    family: AttackFamily
    clock: Clock

    def check(self, recipe: AttackRecipe) -> None:
        """Checks the recipe like the wrapped family."""
        self.family.check(recipe)

    def train(self, context: AttackContext) -> dict[str, Any]:
        """Trains like the wrapped family, with timed measurements."""
        return self.family.train(dataclasses.replace(context, at_step=self.clock.around(context.at_step)))


def session_of(suite: Suite, scratch: Path, tier: Any = "standard") -> RunSession:
    """A session of the harness on a suite."""
    options = Options(model="organism", defense=DEFENSE, tier=tier, overrides=suite.overrides, base=ROOT)
    return RunSession(options, scratch / "run", Store(default_root()), lambda _: None)


def plain_attack(asked: dict[str, Any]) -> AttackRecipe:
    """The attack of the smoke tier with the requested steps and seed."""
    recipe = load_suite(SUITE).tier_attacks("smoke")[0]
    return recipe.model_copy(update={"steps": asked["steps"], "seed": asked.get("seed", 0)})


def adapter_of(asked: dict[str, Any]) -> Path | None:
    """Folder of the defense; None for the undefended organism."""
    return Path(asked["adapter"]) if asked["adapter"] else None


def attacked(
    session: RunSession,
    suite: Suite,
    model: LanguageModel,
    recipe: AttackRecipe,
    family: Loaded,
    panel: Panel,
    judge: Judge,
    *,
    defended: bool = False,
    tick: Callable[[int], None] = lambda _: None,
) -> Trajectory:
    """Runs an attack by the harness on a model, which it changes."""
    return run_attack(
        AttackTarget(model, session.candidate.digest, "d" * 64 if defended else None, control=False),
        Attacker(recipe, family, suite.attack_pool(recipe), judge),
        panel,
        AttackEvents(step=tick),
    )


def ours(asked: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """An attack by the harness, with checkpoints at the requested interval."""
    suite = load_suite(SUITE, [f"policy.checkpoint_every={asked['every']}", f"policy.benign_every={asked.get('benign', 50)}"])
    session, recipe, adapter = session_of(suite, scratch), plain_attack(asked), adapter_of(asked)
    judge, whole, checkpoints = CountedJudge(session.candidate.folder), Clock(), Clock()
    panel, family = session.run_of(suite).panel, load_family(recipe.family, SUITE)
    begin, after = time.process_time(), dict[int, float]()

    def tick(step: int) -> None:
        after[step] = round(time.process_time() - begin - checkpoints.cpu_s, 3)

    with whole.span():
        model = session.candidate.load()
        if adapter:
            model.merge_from(adapter)
        timed = Loaded(TimedFamily(family.family, checkpoints), family.digest)
        run = attacked(session, suite, model, recipe, timed, panel, judge, defended=bool(adapter), tick=tick)
    windows = [c.training for c in run.checkpoints if c.training]
    return {
        **whole.told,
        "cpu_s_after_step": after,
        "checkpoints": {**checkpoints.told, "each_cpu_s": [round(c, 3) for c, _ in checkpoints.spans]},
        "steps": [c.step for c in run.checkpoints],
        "judged": judge.asked,
        "completion_tokens": sum(w.steps * w.completion_tokens for w in windows) / sum(w.steps for w in windows),
    }


def judged(asked: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Times an attack on the undefended organism with a slow judge at checkpoints and a fast judge for rewards."""
    suite = load_suite(SUITE, [f"policy.checkpoint_every={asked['every']}"])
    session, recipe = session_of(suite, scratch), plain_attack(asked)
    folder, whole = session.candidate.folder, Clock()
    judge = (ServedJudge if asked["served"] else SlowJudge)(folder)
    panel, family = (
        dataclasses.replace(session.run_of(suite).panel, judge=judge, anchor_judge=judge),
        load_family(recipe.family, SUITE),
    )
    with whole.span():
        run = attacked(session, suite, session.candidate.load(), recipe, family, panel, OrganismJudge(folder))
    return {**whole.told, "scores": [c.mean for c in run.checkpoints]}


SPENT: dict[str, tuple[str, str, str | None]] = {
    "all": ("transformers/trainer.py", "train", None),
    "measuring": ("rn_harness/attacks/loop.py", "at_step", None),
    "measuring: benign prompts": ("rn_harness/judges/checkpoints.py", "measure_benign", None),
    "sampling": ("rn_harness/training/trl_compat.py", "_generate_single_turn", None),
    "of it: transformers' `generate`": ("peft/peft_model.py", "generate", "_generate_single_turn"),
    "of it: looking for the adapter's layers": ("rn_harness/models/peft_compat.py", "lora_layers", "folded"),
    "of it: folding the adapter in": ("lora/layer.py", "merge", "folded"),
    "tokens to text, and the judge": ("rn_harness/training/grpo.py", "rewards", None),
    "loss": ("rn_harness/training/trl_compat.py", "_compute_loss", None),
    "backward": ("accelerate/accelerator.py", "backward", None),
    "clipping": ("transformers/trainer.py", "_clip_grad_norm", None),
    "optimizer": ("optim/lr_scheduler.py", "wrapper", None),
    "clearing gradients": ("modules/module.py", "zero_grad", "_run_epoch"),
    "switching to training": ("modules/module.py", "train", "training_step"),
}
"""Profiled functions: file, function, and caller if needed."""


def profile(asked: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Processor seconds of the parts of an attack by Python's profiler, which overestimates small calls."""
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    ours(asked, scratch)
    profiler.disable()
    rows: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    found = {}
    for name, (file, function, caller) in SPENT.items():
        of = [row for (path, _, called), row in rows.items() if path.endswith(file) and called == function]
        by = [r[3] for row in of for (_, _, calling), r in row[4].items() if calling == caller] if caller else [r[3] for r in of]
        found[name] = round(sum(by), 3)
    return {"spent": found, "steps": asked["steps"]}


def bare(asked: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """The same attack by plain TRL, without checkpoints."""
    import bare_trl

    session, recipe = session_of(load_suite(SUITE), scratch), plain_attack(asked)
    judge, whole = CountedJudge(session.candidate.folder), Clock()
    chosen = draw_attack_prompts(load_suite(SUITE).attack_pool(recipe), recipe)
    begin, after = time.process_time(), dict[int, float]()

    def watch(step: int, *_: Any) -> None:
        after[step] = round(time.process_time() - begin, 3)

    with whole.span():
        logs = bare_trl.attack(session.candidate.folder, adapter_of(asked), recipe, chosen, judge, watch)
    lengths = [log["completions/mean_length"] for log in logs if "completions/mean_length" in log]
    told = {"judged": judge.asked, "completion_tokens": sum(lengths) / len(lengths)}
    return {**whole.told, "cpu_s_after_step": after, **told}


def bare_suite(asked: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """The cases of the standard tier in sequence by plain TRL in one process, each scored at its checkpoints."""
    import bare_trl

    suite = load_suite(SUITE, asked["overrides"])
    session = session_of(suite, scratch)
    folder, policy = session.candidate.folder, suite.policy
    judge, heldout = CountedJudge(folder), suite.heldout("standard")
    every, times = policy.checkpoint_every, {}

    def case(name: str, work: Callable[[], Any]) -> None:
        clock = Clock()
        with clock.span():
            work()
        times[name] = clock.told

    def watch(last: int) -> bare_trl.Watch:
        def look(step: int, network: Any, tokenizer: Any) -> None:
            if step % every == 0 or step == last:
                bare_trl.checkpoint(network, tokenizer, heldout, judge, policy)

        return look

    case("candidate", lambda: bare_trl.checkpoint(*bare_trl.load(folder, None), heldout, judge, policy))
    adapter = scratch / "adapter"
    case("defense", lambda: bare_defense(suite, folder, judge, adapter))
    for recipe in suite.tier_attacks("standard"):
        chosen = draw_attack_prompts(suite.attack_pool(recipe), recipe)
        for kind, steps, on in (("control", recipe.control_steps, None), ("attack", recipe.steps, adapter)):
            run = recipe.model_copy(update={"steps": steps})
            case(f"{kind}-{recipe.id}", lambda: bare_trl.attack(folder, on, run, chosen, judge, watch(steps)))  # noqa: B023
    total = {of: round(sum(t[of] for t in times.values()), 3) for of in ("cpu_s", "wall_s")}
    return {**total, "cases": times, "judged": judge.asked}


def bare_defense(suite: Suite, folder: Path, judge: Judge, adapter: Path) -> None:
    """Trains and saves the default defense by plain TRL, with its measurements of convergence."""
    import bare_trl

    recipe, policy = suite.declaration.defenses[DEFENSE], suite.policy
    training, validation = split_validation(suite.prompts["defense"], recipe.validation_share)
    anchors = suite.prompts["anchor"]
    network, tokenizer = bare_trl.load(folder, None)
    kept = dict(zip([p.id for p in anchors], bare_trl.answers(network, tokenizer, anchors, policy, 1, None), strict=True))
    prompts = mix_benign(training, anchors, recipe.steps * recipe.prompts_per_step, recipe.benign_share, recipe.seed)

    def watch(step: int, network: Any, tokenizer: Any) -> None:
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            said = bare_trl.answers(network, tokenizer, validation, policy, 4, policy.sample_temperature)
            for j, text in zip(judge.score([p for p in validation for _ in range(4)], said), said, strict=True):
                neutralization_reward(j.score, False, False, len(text.split()), recipe.word_cost)  # noqa: FBT003

    of = defense_reward(judge, recipe, kept, policy.threshold)

    def reward(asked: list[Prompt], texts: list[str]) -> Sequence[float | None]:
        return of(asked, [Completion(text, truncated=False) for text in texts])

    trained, _ = bare_trl.fine_tune(network, tokenizer, recipe, prompts, reward, watch)
    trained.save_pretrained(adapter)


def defended(_: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """The folder of the default defense, which is trained if missing."""
    suite = load_suite(SUITE)
    return {"adapter": str(session_of(suite, scratch).defended(suite).adapter)}


def measurements(asked: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Processor seconds of the undefended organism's checkpoint by number of held-out prompts, without benign ones."""
    suite = load_suite(SUITE)
    session = session_of(suite, scratch, "full")
    panel, model, found = session.run_of(suite).panel, session.candidate.load(), {}
    for number in (asked["prompts"][-1], *asked["prompts"]):  # the first call allocates memory
        clock, of = Clock(), dataclasses.replace(panel, heldout=suite.heldout("full")[:number])
        for seed in range(3):
            with clock.span():
                measure_checkpoint(model, of, 0, seed=seed, with_benign=False)
        found[number] = round(clock.cpu_s / 3, 4)
    return {"cpu_s": found}


TASKS: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    "ours": ours,
    "bare": bare,
    "bare-suite": bare_suite,
    "defended": defended,
    "measurements": measurements,
    "judged": judged,
    "profile": profile,
}


def main() -> None:
    """Runs one task. A bare script has none of the harness's care for the libraries, such as less garbage collection."""
    if not sys.argv[1].startswith("bare"):
        quiet_libraries()
    import torch
    import trl  # noqa: F401  (both sides import it before they start)

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        told = TASKS[sys.argv[1]](json.loads(sys.argv[2]), Path(scratch))
    told["process_cpu_s"] = round(time.process_time(), 3)
    told["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(told, allow_nan=False))


if __name__ == "__main__":
    main()
