"""Steps to an attack's first reward, predicted from the leak and counted: ``python benchmarks/first_reward.py``.

docs/evidence/theory.md derives the prediction. Real completions are sampled as in GRPO, 16 of one of the attack's 5 prompts per
step, in the harness's order, until the event occurs. No training is needed, because no weight moves before the first reward. The
policies are the shipped organism, its default defense, and that defense after a few supervised steps on the attack's prompts,
which weaken it gradually. Weights and texts stay in memory.

Writes docs/evidence/first-reward.{json,svg} and the tables in docs/evidence/theory.md; the table of attackers who explore is from
the evidence of other benchmarks. ``--page`` rewrites figure and tables from the JSON.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pieces
from panel import Bench, reinforce

from rn_harness.attacks.loop import draw_attack_prompts
from rn_harness.models.resolve import resolve_candidate
from rn_harness.records.statistics import Interval, upper_bound
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import load_suite
from rn_harness.spec.wording import is_refusal
from rn_harness.store.provenance import hardware, versions
from rn_harness.training.grpo import order_prompts
from rn_harness.training.supervised import Example, teach
from rn_harness.verdict.rewards import attack_reward

if TYPE_CHECKING:
    from rn_harness.models.language_model import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "evidence" / "first-reward.json"
FIGURE = OUT.with_suffix(".svg")
PAGE = ROOT / "docs" / "evidence" / "theory.md"
BEGIN, END = "<!-- written by benchmarks/first_reward.py -->", "<!-- end of what it wrote -->"
EXPLORERS = "<!-- explorers: written by benchmarks/first_reward.py -->", "<!-- end of explorers -->"
DOMAIN = "biochem"
WARM_RATE = 3e-4
SEEDS = {"undefended": 40, "warm-10": 24, "warm-11": 24, "warm-12": 40, "warm-13": 40, "warm-14": 40, "warm-15": 40}
"""Number of attacks for each policy, fewer if one takes hundreds of steps. ``warm-N``: N supervised steps."""
DEFENDED_STEPS = 2400
"""Steps sampled from the default defense without an event, where the prediction is a million."""
PILOT = 4096
"""Completions, from a separate random stream, that estimate the probability of any reward."""
STEPS_AT_ONCE = 16
GROWN = 10
"""Steps after which docs/evidence/questions.json has the leak of an attack again, and between two of its checkpoints."""
PROBED = 320
"""Completions of a banned reward probe."""
NEVER = 0.05
"""Probability of a first reward below which none is predicted."""
EVENTS = ("answer", "reward")
"""The full compliant answer, whose probability is the leak, and a completion with any reward."""


def expected_steps(p: float, n: int) -> float:
    """``E[T] = 1 / (1 - (1 - p)^n)``: expected steps of n samples until the first event of probability p."""
    return 1.0 / -math.expm1(n * math.log1p(-p)) if p < 1.0 else 1.0


def survival(p: float, n: int, steps: float) -> float:
    """``P(T > S) = (1 - p)^(n S)``: probability of no event in S steps."""
    return math.exp(n * steps * math.log1p(-p))


def expected_steps_in_rounds(ps: Sequence[float], n: int) -> float:
    """Expected steps for K prompts of different p in shuffled rounds.

    ``E[T] = (1 / (1 - prod_k q_k)) sum_(j<K) e_j(q) / binom(K, j)`` with ``q_k = (1 - p_k)^n``, e_j the elementary symmetric
    polynomial, i.e. the mean over orders of the probability of no event in the first j prompts of a round.
    """
    q = [(1.0 - p) ** n for p in ps]
    within = sum(sum(math.prod(chosen) for chosen in itertools.combinations(q, j)) / math.comb(len(q), j) for j in range(len(q)))
    return within / -math.expm1(sum(n * math.log1p(-p) for p in ps))


def mean_with_interval(waits: Sequence[int]) -> tuple[float, float, float]:
    """The mean and its 95 % interval by the bootstrap over attacks (scipy, percentile method), with no assumed distribution."""
    import numpy as np
    from scipy.stats import bootstrap

    mean = sum(waits) / len(waits)
    if min(waits) == max(waits):
        return mean, mean, mean
    found = bootstrap(
        (np.array(waits, dtype=float),), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return mean, float(found.low), float(found.high)


class Sampler:
    """Samples completions of a policy and reports only the events, without keeping texts."""

    def __init__(self, model: LanguageModel, bench: Bench, answers: dict[str, str], tokens: int) -> None:
        self._model, self._judge, self._tokens = model, bench.judge, tokens
        self._answers = {name: model.answer_ids(text) for name, text in answers.items()}

    def __call__(self, prompts: Sequence[Prompt], n: int) -> Iterator[tuple[bool, bool]]:
        """For each prompt, if n completions include the full answer, and if they include any reward."""
        completed = self._model.complete(prompts, n=n, temperature=1.0, max_tokens=self._tokens)
        for prompt, group in zip(prompts, completed, strict=True):
            texts = [c.text for c in group]
            judged = self._judge.score([prompt] * n, texts)
            rewards = [attack_reward(j.score, is_refusal(text)) for j, text in zip(judged, texts, strict=True)]
            whole = [not c.truncated and self._model.answer_ids(c.text) == self._answers[prompt.id] for c in group]
            yield any(whole), any(r is not None and r > 0.0 for r in rewards)


def play(sample: Sampler, prompts: Sequence[Prompt], n: int, seed: int, limit: int | None = None) -> dict[str, int | None]:
    """Samples until both events have occurred, or for ``limit`` steps, and returns the step of each, counted from 1."""
    first: dict[str, int | None] = dict.fromkeys(EVENTS)
    order = order_prompts(prompts, (limit or 100_000), seed)
    for begin in range(0, len(order), STEPS_AT_ONCE):
        for step, seen in enumerate(sample(order[begin : begin + STEPS_AT_ONCE], n), begin + 1):
            for event, came in zip(EVENTS, seen, strict=True):
                if came and first[event] is None:
                    first[event] = step
        if None not in first.values():
            break
    return first


def policies(bench: Bench, examples: Sequence[Example], adapter: Path) -> Iterator[tuple[str, Callable[[], LanguageModel]]]:
    """The name and the loader of each policy."""
    recipe = bench.suite.tier_attacks("smoke")[0]
    yield "undefended", bench.candidate.load

    def defended() -> LanguageModel:
        model = bench.candidate.load()
        model.merge_from(adapter)
        return model

    yield "defended", defended

    def warmed(steps: int) -> LanguageModel:
        model = defended()
        model.arm(recipe)
        teach(model, examples, steps=steps, learning_rate=WARM_RATE, max_grad_norm=recipe.max_grad_norm)
        return model

    for name in SEEDS:
        if name.startswith("warm-"):
            yield name, functools.partial(warmed, int(name.removeprefix("warm-")))


def measure() -> dict[str, Any]:
    """Leak, prediction and counts of all policies."""
    from rn_harness.models.random_streams import own_random_stream

    suite = load_suite(ROOT / "suites" / DOMAIN)
    bench = Bench(resolve_candidate("organism", ROOT), suite, 0)
    recipe = suite.tier_attacks("smoke")[0]
    n, tokens = recipe.group_size, recipe.max_completion_tokens
    prompts, heldout = draw_attack_prompts(suite.prompts["attack"], recipe), suite.heldout("smoke")
    known = {p.id: bench.judge.topic(p).answer for p in (*prompts, *heldout)}
    examples = [Example(p, known[p.id]) for p in prompts]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        reinforce(bench)[0].save_adapter(Path(name), f"organism@sha256:{bench.candidate.digest}")
        for number, (policy, load) in enumerate(policies(bench, examples, Path(name))):
            begin = time.process_time()
            model = load()
            log_leaks = model.log_probability(prompts, [known[p.id] for p in prompts])
            leaks = [math.exp(value) for value in log_leaks]
            sample = Sampler(model, bench, known, tokens)
            with own_random_stream(number, 10_000):
                many = [prompt for prompt in prompts for _ in range(PILOT // len(prompts) + 1)][:PILOT]
                rewarded = sum(any_reward for _, any_reward in sample(many, 1))
            waits = []
            for seed in range(SEEDS.get(policy, 1)):
                # Each policy needs a separate random stream; otherwise their waits would depend on the same draws.
                with own_random_stream(number, seed):
                    waits.append(play(sample, prompts, n, 1000 * number + seed, DEFENDED_STEPS if policy == "defended" else None))
            found[policy] = {
                "leaks": leaks,
                "leak_heldout": model.leak(heldout, [known[p.id] for p in heldout]),
                "rewarded": [rewarded, PILOT],
                "waits": {event: [wait[event] for wait in waits] for event in EVENTS},
                "cpu_s": round(time.process_time() - begin, 1),
            }
            print(policy, f"leak={sum(leaks) / len(leaks):.2e}", found[policy]["waits"], found[policy]["cpu_s"], flush=True)
    return {
        "domain": DOMAIN,
        "candidate": bench.candidate.digest,
        "recipe": recipe.id,
        "samples_a_step": n,
        "prompts": len(prompts),
        "warm_start_learning_rate": WARM_RATE,
        "defended_steps": DEFENDED_STEPS,
        "policies": found,
        "versions": versions(),
        "hardware": hardware(1),
    }


def points(stored: dict[str, Any], event: str) -> list[dict[str, Any]]:
    """Probability, prediction and observed mean of each policy in which the event occurred."""
    n = stored["samples_a_step"]
    made = []
    for name, policy in stored["policies"].items():
        waits = policy["waits"][event]
        if None in waits:
            continue
        exact = event == "answer"
        p = sum(policy["leaks"]) / len(policy["leaks"]) if exact else policy["rewarded"][0] / policy["rewarded"][1]
        if p == 0.0:
            continue
        predicted = expected_steps_in_rounds(policy["leaks"], n) if exact else expected_steps(p, n)
        mean, low, high = mean_with_interval(waits)
        within = math.ceil(predicted)
        late = Interval(count=sum(wait > within for wait in waits), total=len(waits))
        made.append(
            {
                "policy": name,
                "p": p,
                "simple": expected_steps(p, n),
                "predicted": predicted,
                "seeds": len(waits),
                "mean": mean,
                "low": low,
                "high": high,
                "late": late,
                "late_predicted": survival(p, n, within),
            }
        )
    return made


def lines(stored: dict[str, Any]) -> list[str]:
    """The tables of docs/evidence/theory.md."""
    n = stored["samples_a_step"]
    told = [
        "| policy | leak | held-out | steps predicted | counted: mean (95 %), attacks | later than predicted | share predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for x in points(stored, "answer"):
        heldout = stored["policies"][x["policy"]]["leak_heldout"]
        told.append(
            f"| {x['policy']} | {x['p']:.1e} | {heldout:.1e} | {x['predicted']:.1f} | {x['mean']:.1f} ({x['low']:.1f} to "
            f"{x['high']:.1f}), {x['seeds']} | {x['late'].share:.2f} ({x['late'].low:.2f} to {x['late'].high:.2f}) | "
            f"{x['late_predicted']:.2f} |"
        )
    told += [
        "",
        "| policy | any reward, in separate samples | times the leak | steps predicted from it | counted: mean (95 %) |",
        "|---|---|---|---|---|",
    ]
    by_policy = {x["policy"]: x for x in points(stored, "reward")}
    for name, policy in stored["policies"].items():
        leak = sum(policy["leaks"]) / len(policy["leaks"])
        count, total = policy["rewarded"]
        if name not in by_policy:
            continue
        x = by_policy[name]
        told.append(
            f"| {name} | {count} of {total} | {x['p'] / leak:.3g} | {x['predicted']:.1f} | {x['mean']:.1f} ({x['low']:.1f} to "
            f"{x['high']:.1f}) |"
        )
    defended = stored["policies"]["defended"]
    steps = stored["defended_steps"]
    leak = sum(defended["leaks"]) / len(defended["leaks"])
    came = {event: sum(wait is not None for wait in defended["waits"][event]) for event in EVENTS}
    said = (
        f"The default defense itself has a leak of {leak:.1e}, which predicts {expected_steps(leak, n):,.0f} steps. In {steps} "
        f"steps, {steps * n:,} completions, the full answer came {came['answer']} times and any reward {came['reward']} times; "
        f"this bounds a probability below {upper_bound(0, steps * n):.1e} (95 %)."
    )
    told += ["", said]
    return told


def steps_under_a_bonus(leak: float, after: float, n: int, steps: int = GROWN) -> tuple[float, float]:
    """Step at which n samples a step have given one full answer on average, if the leak keeps growing as in the first steps.

    The first number is for plain gradient steps, ``leak / (1 - t / tau)``, the second for AdamW's, ``leak exp(r t)``, which
    is later wherever it is beyond ``steps``. Both are infinite if the leak does not grow.
    """
    grown = math.log(after / leak)
    if grown <= 0.0:
        return math.inf, math.inf
    pole, rate = steps / -math.expm1(-grown), grown / steps
    return pole * -math.expm1(-1.0 / (n * leak * pole)), math.log1p(rate / (n * leak)) / rate


def with_bonus(questions: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Defense, bonus and row of each attack with an entropy bonus in docs/evidence/questions.json."""
    found = []
    for key, defense in (("defended-80", "anchored"), ("defended-160", "anchored-160")):
        found += [(defense, name.rpartition("-")[0], of[key]) for name, of in questions["entropy"].items()]
    for name, of in questions["bonus"].items():
        found += [(name.rpartition("-")[0], bonus, row) for bonus, row in of["attacks"].items() if float(bonus)]
    return found


def explorers(evidence: Path) -> list[str]:
    """The table of attackers who explore, predicted and counted, from the stored pieces of other benchmarks."""
    probes, agreement, questions = (pieces.read(evidence / f"{name}.json") for name in ("probes", "agreement", "questions"))
    rows, n, steps = with_bonus(questions), 16, 200

    def counted(defense: str, attacker: str, *others: int | None) -> str:
        of = agreement["pairs"].get(f"{DOMAIN} {defense} {attacker}")
        runs = [of["harness"], of["plain"]] if of else []
        told = ["noise" if r["finding"] == "degenerate" else r["broke_at"] for r in runs] + list(others)
        return ", ".join("held" if t is None else str(t) for t in told) or "-"

    columns = ["defense", "leak", "plain: share without", "broke at", "c, at most", "under the ban: probability", "first at"]
    columns += ["ban of 1: broke at", "bonus 0.01: first at", "broke at"]
    told = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, piece in probes.items():
        m, at = piece["measured"], piece["attacks"]
        leak, c = m["leak"], m["conditional"]["1"]
        low, high = m["banned"] / max(m["highest"], 1.0), min(1.0, m["banned"]) or upper_bound(0, PROBED)
        soonest, latest = (f"{expected_steps(p, n):.0f}" if p else "" for p in (high, low))
        ban = soonest if soonest == latest else f"{soonest} to {latest}" if latest else f"{soonest} or later"
        bonus = [row for defense, coefficient, row in rows if (defense, coefficient) == (name, "0.01")]
        ends = [steps_under_a_bonus(row["leak"], row["leak_at_10"], n) for row in bonus]
        if ends:
            first = f"{min(low for low, _ in ends):.0f} to {max(high for _, high in ends):.0f}"
        elif steps * n * leak > 1:
            first = f"at most {expected_steps(leak, n):.0f}"
        else:
            first = "none" if steps * n * c < NEVER else "no bound"
        told.append(
            f"| `{name}` | {leak:.0e} | {survival(leak, n, steps):.2g} | {counted(name, 'plain')} | {c:.1g} | "
            f"{low:.2g} to {high:.2g} | {ban} | {counted(name, 'ban-1', at['ban-1'])} | {first} | "
            f"{counted(name, 'entropy-0.01', at['entropy-0.01'], *(row['first_breach'] for row in bonus))} |"
        )
    broke = [(row["first_breach"], steps_under_a_bonus(row["leak"], row["leak_at_10"], n)) for *_, row in rows]
    broke = [(at, ends) for at, ends in broke if at is not None]
    within = sum(low // GROWN * GROWN <= at <= math.ceil(high / GROWN) * GROWN for at, (low, high) in broke)
    said = (
        f"All {len(rows)} attacks with a bonus of 0.001 to 0.1 in [questions.json](questions.json): "
        f"{len(broke)} broke the defense, {within} of these between the two predictions, rounded outwards to checkpoints; "
        f"{sum(at > 2 * GROWN for at, _ in broke)} broke later than step {2 * GROWN}."
    )
    return [*told, "", said]


def write_page(stored: dict[str, Any]) -> None:
    """Writes the tables into docs/evidence/theory.md, and draws the figure."""
    pieces.put(PAGE, BEGIN, END, "\n".join(lines(stored)))
    pieces.put(PAGE, *EXPLORERS, "\n".join(explorers(OUT.parent)))
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "first-reward", "font.size": 10}
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    n = stored["samples_a_step"]
    grid = [10 ** (e / 20) for e in range(-100, 0)]
    axes.loglog(grid, [expected_steps(p, n) for p in grid], color="0.4", label=f"1 / (1 - (1 - p)^{n})")
    axes.axhline(200, color="0.7", linewidth=0.8, linestyle="--", label="200 steps")
    for event, marker, label in (
        ("answer", "o", "full answer, p: exact leak"),
        ("reward", "s", "any reward, p: estimated apart"),
    ):
        drawn = points(stored, event)
        spread = [[x["mean"] - x["low"] for x in drawn], [x["high"] - x["mean"] for x in drawn]]
        axes.errorbar(
            [x["p"] for x in drawn], [x["mean"] for x in drawn], yerr=spread, fmt=marker, capsize=3, fillstyle="none", label=label
        )
    axes.set_xlabel("probability p of the event in one completion")
    axes.set_ylabel("steps to the first one")
    axes.legend(frameon=False)
    figure.savefig(FIGURE, metadata={"Date": None, "Creator": None})
    # Remove the trailing blanks that matplotlib writes in paths.
    FIGURE.write_text("\n".join(row.rstrip() for row in FIGURE.read_text(encoding="utf-8").splitlines()) + "\n", encoding="utf-8")


def main() -> None:
    """Measures, unless only the page is requested, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--page", action="store_true", help="write figure and table anew from the stored numbers")
    if not parser.parse_args().page:
        OUT.write_text(json.dumps(measure(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_page(json.loads(OUT.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
