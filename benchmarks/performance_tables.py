"""The tables of docs/evidence/performance.md, only from the pieces of benchmarks/performance.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pieces

Piece = Mapping[str, Any]
LENGTH = 200
"""Steps of a claimed attack."""
CONFIDENCE = 0.95


def write(page: Path, stored: Mapping[str, Any]) -> None:
    """Writes a table for each part that has pieces into the page."""
    for part, table in TABLES.items():
        found = [piece for name, piece in stored.items() if name.split()[0] == part]
        if found:
            text = "\n".join([_machine(found), "", *table([piece["measured"] for piece in found], stored)])
            pieces.put(page, f"<!-- {part}: written by benchmarks/performance.py -->", f"<!-- end of {part} -->", text)


def _machine(of: Sequence[Piece]) -> str:
    loads = [piece["load_before"] for piece in of]
    known, machine = of[0]["versions"], of[0]["hardware"]
    packages = ", ".join(f"{name} {known[name]}" for name in ("torch", "transformers", "trl", "peft", "python"))
    threads, least, most = machine["threads"], min(loads), max(loads)
    sources = ", ".join(sorted({piece["versions"]["rn-harness-sources"][:12] for piece in of}))
    return (
        f"Repeats: {len(of)}. {machine['processor']}, {threads} thread; {packages}; sources {sources}. Load of 2 cores before a "
        f"repeat: {least:.1f} to {most:.1f}."
    )


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median, lowest and highest."""
    of = sorted(values)
    return f"{statistics.median(of):.{digits}f} ({of[0]:.{digits}f} to {of[-1]:.{digits}f})"


def met(value: float, target: float) -> str:
    """The table's word for a median that meets or misses its target."""
    return "met" if value <= target else "**missed**"


def _ratio_row(what: str, theirs: Sequence[float], mine: Sequence[float], target: float | None) -> str:
    ratios = [m / t for m, t in zip(mine, theirs, strict=True)]
    told = f"{target:g} | {met(statistics.median(ratios), target)}" if target else "- | "
    return f"| {what} | {spread(theirs, 1)} | {spread(mine, 1)} | {spread(ratios)} | {told} |"


RATIO_HEAD = ["| measurement | bare TRL, s of a core | ours | ratio | target | |", "|---|---|---|---|---|---|"]


def _long(side: Piece) -> float:
    """Seconds of an attack of 200 steps without checkpoints; unmeasured steps have the pace of the measured second half."""
    after = {int(step): seconds for step, seconds in side["cpu_s_after_step"].items()}
    last = max(after)
    pace = (after[last] - after[last // 2]) / (last - last // 2)
    return float(after[last] + (LENGTH - last) * pace)


def _between(side: Piece, first: int, last: int) -> float:
    """Seconds of the steps after the first up to the last."""
    after = side["cpu_s_after_step"]
    return float(after[str(last)] - after[str(first)])


def overhead(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """An attack compared with a bare script."""
    lines = list(RATIO_HEAD)
    for name, target in (("defended", 0.7), ("undefended", 0.95)):
        theirs, mine = [p[name]["bare"] for p in of], [p[name]["ours"] for p in of]
        steps = max(map(int, theirs[0]["cpu_s_after_step"]))
        lines += [
            _ratio_row(f"{name}: {LENGTH} steps, loading included", [*map(_long, theirs)], [*map(_long, mine)], target),
            _ratio_row(
                f"{name}: the same, with our measurements before the first step and after the last",
                [*map(_long, theirs)],
                [_long(m) + m["checkpoints"]["cpu_s"] for m in mine],
                None,
            ),
            _ratio_row(
                f"{name}: of these, steps 2 to {steps // 4}",
                [_between(t, 1, steps // 4) for t in theirs],
                [_between(m, 1, steps // 4) for m in mine],
                None,
            ),
            _ratio_row(
                f"{name}: {steps} steps as measured, processes from start to end, imports and our measurements included",
                [t["process"]["cpu_s"] for t in theirs],
                [m["process"]["cpu_s"] for m in mine],
                None,
            ),
            _ratio_row(
                f"{name}: the same by the clock, seconds",
                [t["process"]["wall_s"] for t in theirs],
                [m["process"]["wall_s"] for m in mine],
                None,
            ),
        ]
        tokens = [spread((s["completion_tokens"] for s in side), 1) for side in (theirs, mine)]
        asked = {s["judged"] for side in (theirs, mine) for s in side}
        lines.append(
            f"| {name}: tokens of a completion | {tokens[0]} | {tokens[1]} | | | {', '.join(map(str, asked))} judged each |"
        )
    return lines


def checkpoints(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """21 checkpoints compared with 200 bare steps."""
    theirs = [_long(p["bare"]) for p in of]
    each = [p["ours"]["checkpoints"]["each_cpu_s"] for p in of]
    bare_of = [[c for i, c in enumerate(one) if i % 5] for one in each]  # checkpoints without benign prompts
    alone = [statistics.mean(one) * len(all_) for one, all_ in zip(bare_of, each, strict=True)]
    return [
        "| measurement | 200 bare steps, s of a core | 21 checkpoints | ratio | target | |",
        "|---|---|---|---|---|---|",
        _ratio_row("20 prompts, greedy and 3 samples, leak and planted anchors", theirs, alone, 0.35),
        _ratio_row("the same, and 200 benign prompts at five of them", theirs, [sum(one) for one in each], None),
    ]


def suite(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """A session compared with scripts."""
    theirs, mine = [p["bare"] for p in of], [p["ours"] for p in of]
    return [
        *RATIO_HEAD,
        _ratio_row("whole processes", [t["process"]["cpu_s"] for t in theirs], [m["cpu_s"] for m in mine], 0.5),
        _ratio_row("the same by the clock", [t["process"]["wall_s"] for t in theirs], [m["wall_s"] for m in mine], None),
    ]


def startup(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """Time added by the plugin, and time of listing."""
    rounds = [r for p in of for r in p["rounds"]]
    lines = ["| measurement | processor time | by the clock | target | |", "|---|---|---|---|---|"]
    for name in ("without", "with"):
        used = [spread((1000 * r[name][kind] for r in rounds), 0) for kind in ("cpu_s", "wall_s")]
        lines.append(f"| unrelated session {name} the plugin, ms | {used[0]} | {used[1]} | - | |")
    added = {kind: [1000 * (r["with"][kind] - r["without"][kind]) for r in rounds] for kind in ("cpu_s", "wall_s")}
    quartiles = {k: statistics.quantiles(v, n=4) for k, v in added.items()}
    told = [f"{statistics.median(added[k]):.0f} (quartiles {quartiles[k][0]:.0f} to {quartiles[k][2]:.0f})" for k in added]
    lines.append(
        f"| added, ms, {len(rounds)} pairs | {told[0]} | {told[1]} | 15 | {met(statistics.median(added['cpu_s']), 15)} |"
    )
    collected = [c for p in of for c in p["collect"]]
    used = [spread(c[kind] for c in collected) for kind in ("cpu_s", "wall_s")]
    verdict = met(statistics.median(c["cpu_s"] for c in collected), 1)
    return [*lines, f"| `pytest suites --collect-only`, s | {used[0]} | {used[1]} | 1 | {verdict} |"]


def cache(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """A second identical run."""
    second = [p["second"] for p in of]
    used = [spread((s[kind] for s in second), 1) for kind in ("cpu_s", "wall_s")]
    verdict = met(statistics.median(s["cpu_s"] for s in second), 5)
    peak = max(s["peak_mib"] for s in second)
    return [
        "| measurement | processor time | by the clock | peak memory | target | |",
        "|---|---|---|---|---|---|",
        f"| the standard tier again, 21 cases, s | {used[0]} | {used[1]} | {peak} MiB | 5 | {verdict} |",
    ]


def memory(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """Memory by the number of cases."""
    lines = ["| cases | peak, MiB | resident, MiB |", "|---|---|---|"]
    last = len(of[0]["after_case"])
    for n in (1, 8, last):
        row = [spread((p["after_case"][n - 1][kind] for p in of), 0) for kind in ("peak_mib", "resident_mib")]
        lines.append(f"| {n} | {row[0]} | {row[1]} |")
    points = [(i, row["resident_mib"]) for p in of for i, row in enumerate(p["after_case"], 1) if i >= 8]
    slope, low, high = _line(points)
    flat = "met" if low <= 0 else "**missed**"
    told = f"{slope:.2f} MiB a case (least squares, 95 % interval {low:.2f} to {high:.2f})"
    return [*lines, "", f"From the eighth case on {told}; target: none, {flat}."]


def growth(of: Sequence[Piece], stored: Mapping[str, Any]) -> list[str]:
    """Exponents of time against size."""
    parts = {
        part: [piece["measured"] for name, piece in stored.items() if name.split()[0] == part]
        for part in ("overhead", "checkpoints", "memory")
    }
    series: dict[str, list[tuple[float, float]]] = {
        "steps beyond the first (undefended)": [
            (n - 1, after[str(n)] - after["1"])
            for p in parts["overhead"]
            for after in [p["undefended"]["ours"]["cpu_s_after_step"]]
            for n in _sizes(len(after), 5)
        ],
        "checkpoints, benign prompts at every fifth": [
            (n, sum(p["ours"]["checkpoints"]["each_cpu_s"][:n])) for p in parts["checkpoints"] for n in (5, 10, 15, 20)
        ],
        "held-out prompts of a checkpoint": [(int(n), s) for p in of for n, s in p["prompts"].items()],
        "cases beyond the first": [
            (n - 1, p["after_case"][n - 1]["cpu_s"] - p["after_case"][0]["cpu_s"])
            for p in parts["memory"]
            for n in _sizes(len(p["after_case"]), 5)
        ],
        "suites beyond the first": [
            (n - 1, p["after_suite"][n - 1]["cpu_s"] - p["after_suite"][0]["cpu_s"])
            for p in of
            for n in range(2, len(p["after_suite"]) + 1)
        ],
        "suites beyond the first, listed only": [
            (int(n) - 1, s - p["collected"]["1"]) for p in of for n, s in p["collected"].items() if n != "1"
        ],
    }
    lines = ["| seconds of a core by | at | exponent (95 % interval) | linear or better |", "|---|---|---|---|"]
    for what, points in series.items():
        if not points:
            continue
        shown = "; ".join(
            f"{x:g}: {statistics.median(s for n, s in points if n == x):.2g}" for x in sorted({x for x, _ in points})
        )
        exponent, low, high = _line(_logarithms(points))
        verdict = "met" if low <= 1.0 else "**missed**"
        lines.append(f"| {what} | {shown} | {exponent:.2f} ({low:.2f} to {high:.2f}) | {verdict} |")
    return lines


def _sizes(last: int, count: int) -> list[int]:
    """This number of sizes up to the last, each about twice the previous one."""
    return [last >> shift for shift in reversed(range(count)) if last >> shift > 1]


def _logarithms(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    import numpy as np

    return [(float(np.log(x)), float(np.log(y))) for x, y in points]


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Slope by least squares, with its confidence interval."""
    from scipy.stats import linregress, t

    x, y = zip(*points, strict=True)
    fit = linregress(x, y)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(points) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def workers(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """Two workers compared with one process."""
    ratios = [p["two"]["wall_s"] / p["one"]["wall_s"] for p in of]
    lines = ["| measurement | by the clock, s | processor time, s |", "|---|---|---|"]
    for name, told in (("one", "one process"), ("two", "`-n 2`")):
        used = [spread((p[name][kind] for p in of), 1) for kind in ("wall_s", "cpu_s")]
        lines.append(f"| {told} | {used[0]} | {used[1]} |")
    faster = "met" if statistics.median(ratios) < 1 else "**missed**"
    return [*lines, "", f"By the clock {spread(ratios)} of one process; target: below 1, {faster}."]


def served(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """A judge known to be on a server compared with a local one."""
    once, later = ([p[name] for p in of] for name in ("at once", "later"))
    same = sum(one["scores"] == other["scores"] for one, other in zip(once, later, strict=True))
    ratios = [other["wall_s"] / one["wall_s"] for one, other in zip(once, later, strict=True)]
    clocks = [spread((side["wall_s"] for side in sides), 1) for sides in (once, later)]
    return [
        "| judged | by the clock, s |",
        "|---|---|",
        f"| at once | {clocks[0]} |",
        f"| while training goes on | {clocks[1]} |",
        "",
        f"By the clock {spread(ratios)}; scores are equal in {same} of {len(of)}.",
    ]


def profile(of: Sequence[Piece], _: Mapping[str, Any]) -> list[str]:
    """Shares of an attack's training time by Python's profiler."""
    lines = ["| part of training | undefended | defended |", "|---|---|---|"]
    spent = {name: [p[name]["spent"] for p in of] for name in ("undefended", "defended")}
    for part in spent["defended"][0]:
        if part != "all" and not part.startswith("measuring"):
            shares = {k: statistics.median(s[part] / (s["all"] - s["measuring"]) for s in v) for k, v in spent.items()}
            lines.append(f"| {part} | {shares['undefended']:.1%} | {shares['defended']:.1%} |")
    return lines


Table = Callable[[Sequence[Piece], Mapping[str, Any]], list[str]]
TABLES: dict[str, Table] = {
    table.__name__: table for table in (overhead, checkpoints, suite, startup, cache, memory, growth, workers, served, profile)
}
