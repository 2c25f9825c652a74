"""Figures of the report as inline SVG, drawn by matplotlib from records.

Text stays text. Colours are the page's CSS variables, so that a figure is readable on a light and on a dark page. Each figure has
a title and a description for screen readers; the report shows its numbers in a table.
"""

from __future__ import annotations

import importlib.metadata
import io
import math
import os
import re
import xml.etree.ElementTree as ET  # nosec B405 # reads only its own output
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from rn_harness.records.base import content_key
from rn_harness.records.case import CaseRecord
from rn_harness.records.resistance import HarmCurve, HarmPoint
from rn_harness.records.trajectory import Checkpoint, DefenseReport, Trajectory
from rn_harness.report.junit import xml_safe
from rn_harness.spec.levels import Axis
from rn_harness.store.files import write_text
from rn_harness.store.provenance import source_digest
from rn_harness.store.store import Store, default_root

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
INK, FAINT, DEFENDED, CONTROL, BREACH = "#010203", "#020304", "#030405", "#040506", "#050607"
VARIABLES = {INK: "--ink", FAINT: "--line", DEFENDED: "--defended", CONTROL: "--control", BREACH: "--breach"}
"""Placeholder colours in matplotlib's output, and the page's variables that replace them."""
TOP = 10.0
"""Highest harmful score."""
WIDTH = 120
"""Width of a small plot, in its own units."""
UNSCORED = "#9a9a9a"
BUDGETS: dict[Axis, str] = {"rl": "rewarded completions", "sft": "compliant examples x supervised steps"}
"""Units of a budget; an edit has none."""
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text, not outlines
    "svg.hashsalt": "rn-harness",  # the same records, the same bytes
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}


@contextmanager
def _drawing() -> Iterator[None]:
    """Applies our settings of matplotlib instead of the user's; its font cache lies in the store."""
    os.environ.setdefault("MPLCONFIGDIR", str(default_root() / "matplotlib"))
    import matplotlib as mpl

    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        yield


R = TypeVar("R", CaseRecord, DefenseReport, HarmCurve)


def stored_svg(draw: Callable[[str, R], str], name: str, record: R) -> str:
    """The figure that one of the functions below draws, from the store if it was drawn before.

    Drawing takes a fifth of a second, half of the time of a run whose cases are all stored. The name is part of the ids.
    """
    # Figures show only these fields of a case's record.
    shown = record.model_dump_json(include={"case_id", "evidence", "verdict"} if isinstance(record, CaseRecord) else None)
    drawn_by = {"sources": source_digest(), "matplotlib": importlib.metadata.version("matplotlib")}
    key = content_key("figure", {"figure": draw.__name__, "name": name, "shown": shown, **drawn_by})
    store = Store(default_root())
    entry = store.get("figure", key)
    if entry is not None:
        return (entry / "figure.svg").read_text(encoding="utf-8")
    svg = draw(name, record)
    with suppress(OSError):  # a read-only store
        store.put("figure", key, lambda into: write_text(into / "figure.svg", svg))
    return svg


def trajectory_svg(name: str, record: CaseRecord) -> str:
    """Control and defended model by attack step: scores with threshold and breaches, and the training diagnostics below."""
    styles = {"defended": (DEFENDED, "-", "o"), "control": (CONTROL, "--", "s")}
    runs = [(trajectory, *styles[title]) for title, trajectory in reversed(_runs(record))]
    threshold = record.evidence.policy.threshold
    with _drawing():
        figure = _figure(6.8)
        grid = figure.add_gridspec(3, 2, height_ratios=[2.2, 1, 1], hspace=0.5, wspace=0.16)
        scores = figure.add_subplot(grid[0, :])
        for trajectory, colour, style, marker in runs:
            _line(scores, trajectory.checkpoints, lambda c: c.maximum, color=colour, linestyle=style, marker=marker)
            _line(scores, trajectory.checkpoints, lambda c: c.mean, color=colour, linestyle=style, linewidth=0.8)
            _line(scores, trajectory.checkpoints, _aided, color=colour, linestyle="-.", linewidth=0.8)
        scores.axhline(threshold, color=INK, linestyle=":", linewidth=1.2)
        scores.annotate(
            f"threshold {threshold:g}", (1.0, threshold), xycoords=("axes fraction", "data"),
            xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8,
        )  # fmt: skip
        _mark_breaches(scores, record)
        scores.set(ylim=(-0.4, TOP + 0.6), ylabel="harmful score")
        too = ", and highest under the attack's aids (dash-dotted)" if any(c.aided for c in runs[-1][0].checkpoints) else ""
        scores.set_title(f"highest (thick) and mean (thin) score on held-out prompts{too}")
        diagnostics: tuple[tuple[tuple[int, int], str, Callable[[Checkpoint], float | None]], ...] = (
            ((1, 0), "reward in training, mean", lambda c: c.training.reward_mean if c.training else None),
            ((1, 1), "groups of equal reward, share", lambda c: c.training.zero_spread_share if c.training else None),
            ((2, 0), "entropy of the policy, nats a token", lambda c: c.training.entropy if c.training else None),
            ((2, 1), "leak: probability of the full answer", lambda c: c.leak),
        )
        for place, title, value in diagnostics:
            axes = figure.add_subplot(grid[place], sharex=scores)
            measured = [_line(axes, t.checkpoints, value, color=colour, linestyle=style) for t, colour, style, _ in runs]
            axes.set_title(title)
            if not any(measured):
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
                axes.set_yticks([])
            if place == (2, 1):
                axes.set_yscale("log" if any(measured) else "linear")
        figure.axes[2].set_ylim(-0.05, 1.05)
        for axes in figure.axes[-2:]:
            axes.set_xlabel("attack step")
        described = f"{record.verdict.claim} Numbers stand in the table that follows."
        return _svg(figure, name, f"{record.case_id}: scores and training by attack step", described)


def _aided(checkpoint: Checkpoint) -> float | None:
    """The highest score under any aid; None without one."""
    return max((value for value in checkpoint.aided_maximum.values() if value is not None), default=None)


def _runs(record: CaseRecord) -> list[tuple[str, Trajectory]]:
    """The control, if there is one, and the attack on the defended model."""
    evidence = record.evidence
    if evidence.trajectory is None:
        raise ValueError(f"a trajectory is drawn, got none for case_id={record.case_id!r}; leave its figure out")
    return [*([("control", evidence.control)] if evidence.control else []), ("defended", evidence.trajectory)]


def _mark_breaches(axes: Axes, record: CaseRecord) -> None:
    """Draws a cross at each checkpoint that the verdict calls a breach."""
    _, attacked = _runs(record)[-1]
    heights: dict[str, Callable[[Checkpoint], float | None]] = {"breach": lambda c: c.maximum, "breach_under_aid": _aided}
    at = {(reason.code, reason.step) for reason in record.verdict.reasons}
    found = [(c.step, of(c)) for code, of in heights.items() for c in attacked.checkpoints if (code, c.step) in at]
    points = [(step, height) for step, height in found if height is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=BREACH, linestyle="none", marker="X", markersize=8.5, gid="breaches")


def plot_svg(record: CaseRecord, steps: int, height: int, *, control: bool) -> str:
    """A small plot without text: highest score by step, with the threshold and a cross at each breach.

    Plots with the same ``steps`` and ``height`` have the same scale. Restrained attacks have lines like the attack's.
    """
    evidence = record.evidence

    def point(step: int, score: float) -> str:
        return f"{WIDTH * step / steps:.1f} {height * (1 - score / TOP):.1f}"

    runs = [("defended", run) for run in evidence.runs]
    runs += [("control", evidence.control)] if control and evidence.control else []  # its dashes do not hide a line
    lines = [("threshold", f"M{point(0, evidence.policy.threshold)}H{WIDTH}")]
    highest: dict[int, float] = {}
    for kind, run in runs:
        pen, path = "M", ""
        for c in run.checkpoints:
            path += f"{pen}{point(c.step, c.highest)}{'h0' * (pen == 'M')}" if c.highest is not None else ""
            pen = "M" if c.highest is None else "L"
            if kind == "defended":
                highest[c.step] = max(highest.get(c.step, 0.0), c.highest or 0.0)
        lines.append((kind, path))
    lines += [("breach", f"M{point(step, highest.get(step, TOP))}m-2.5-2.5l5 5m0-5l-5 5") for step in record.verdict.breached]
    drawn = "".join(f'<path class="{kind}" d="{path}"/>' for kind, path in lines)
    return f'<svg class="plot" viewBox="-4 -4 {WIDTH + 8} {height + 8}" aria-hidden="true">{drawn}</svg>'


def heat_svg(name: str, record: CaseRecord) -> str:
    """Every score of control and attack, prompts x checkpoints; a prompt's row has a stripe for each of its completions."""
    import numpy as np

    runs = _runs(record)
    rows = len(runs[-1][1].heldout_ids)
    completions = 1 + record.evidence.policy.samples
    with _drawing():
        import matplotlib as mpl

        colours = mpl.colormaps["cividis"].with_extremes(bad=UNSCORED)
        figure = _figure(1.3 + 0.17 * rows)
        grid = figure.add_gridspec(1, len(runs), width_ratios=[max(4, len(t.checkpoints)) for _, t in runs], wspace=0.04)
        image = None
        for column, (title, trajectory) in enumerate(runs):
            cells = np.full((rows * completions, len(trajectory.checkpoints)), np.nan)
            row_of = {prompt_id: i * completions for i, prompt_id in enumerate(trajectory.heldout_ids)}
            for x, checkpoint in enumerate(trajectory.checkpoints):
                for s in checkpoint.scores:
                    if s.score is not None and s.prompt_id in row_of and s.sample < completions:
                        cells[row_of[s.prompt_id] + s.sample, x] = s.score
            axes = figure.add_subplot(grid[0, column])
            image = axes.imshow(cells, cmap=colours, vmin=0.0, vmax=TOP, aspect="auto", interpolation="none")
            axes.grid(visible=False)
            axes.set_title(title)
            axes.set_xlabel("attack step")
            every = max(1, len(trajectory.checkpoints) // 7)
            axes.set_xticks(range(0, len(trajectory.checkpoints), every))
            axes.set_xticklabels([str(c.step) for c in trajectory.checkpoints[::every]])
            axes.set_yticks([completions * i + (completions - 1) / 2 for i in range(rows)] if column == 0 else [])
            if column == 0:
                axes.set_yticklabels([xml_safe(i).replace("$", r"\$") for i in trajectory.heldout_ids], fontsize=7)
            for i in range(1, rows):
                axes.axhline(completions * i - 0.5, color="white", linewidth=0.4)
        if image is not None:
            bar = figure.colorbar(image, ax=figure.axes, fraction=0.025, pad=0.015)
            bar.set_label("harmful score; grey: unscored")
            bar.outline.set_visible(False)
        described = (
            f"One row a held-out prompt, {completions} stripes in it: its greedy completion and the sampled ones; one column a "
            f"checkpoint; the brighter, the more harmful. {record.verdict.claim}"
        )
        return _svg(figure, name, f"{record.case_id}: every score, prompts by checkpoints", described)


def convergence_svg(name: str, report: DefenseReport) -> str:
    """Convergence of the defense by training step: share of minimal refusals, and the reward with its spread."""
    with _drawing():
        figure = _figure(2.5)
        left, right = figure.subplots(1, 2)
        steps = [p.step for p in report.points]
        left.plot(steps, [p.minimal_refusal_share for p in report.points], color=DEFENDED, marker="o")
        left.set(ylim=(-0.05, 1.05), xlabel="training step")
        left.set_title("minimal refusals, share")
        for values, style in (([p.reward_mean for p in report.points], "-"), ([p.reward_spread for p in report.points], "--")):
            found = [(step, y) for step, y in zip(steps, values, strict=True) if y is not None]
            right.plot([x for x, _ in found], [y for _, y in found], color=DEFENDED, linestyle=style, marker="o")
        right.set(xlabel="training step", ylim=(-0.4, TOP + 0.6))
        right.set_title("reward, mean (solid) and spread (dashed)")
        described = "Measured on validation prompts that the defense did not train on. Numbers stand in the table that follows."
        return _svg(figure, name, "Convergence of the defense", described)


def budget_svg(name: str, curve: HarmCurve) -> str:
    """Highest harm of any attacker by budget, of the defended model and of the control."""
    budgets = sorted({p.budget for p in (*curve.defended, *curve.control)} - {0}) or [1]
    with _drawing():
        figure = _figure(2.9)
        axes = figure.subplots()
        # The control comes second: its dashes do not hide a line.
        for points, colour, style, marker in ((curve.defended, DEFENDED, "-", "o"), (curve.control, CONTROL, "--", "s")):
            _stairs(axes, points, lambda p: p.maximum, color=colour, linestyle=style, marker=marker)
            _stairs(axes, points, lambda p: p.mean, color=colour, linestyle=style, linewidth=0.8)
        axes.axhline(curve.threshold, color=INK, linestyle=":", linewidth=1.2)
        # Each doubling of the budget has the same width: breaks come early, and a budget may be a hundred times another.
        axes.set_xscale("symlog", base=2, linthresh=budgets[0], linscale=0.5)
        ticks = [0, *(budgets[0] * 2**n for n in range(int(math.log2(budgets[-1] / budgets[0])) + 1))]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set(
            xlim=(-0.1 * budgets[0], 1.1 * budgets[-1]),
            ylim=(-0.4, TOP + 0.6),
            ylabel="harmful score",
            xlabel=BUDGETS[curve.axis],
        )
        axes.set_title("highest (thick) and mean (thin) score that any attack reached within a budget")
        described = f"The highest of {curve.attacks} attacks and of their controls. Numbers stand in the table that follows."
        return _svg(figure, name, f"Harm by the attackers' budget, axis {curve.axis}", described)


def _stairs(axes: Axes, points: Sequence[HarmPoint], value: Callable[[HarmPoint], float], **style: Any) -> None:
    """Draws one cumulative series: it stays level until the next budget."""
    axes.plot([p.budget for p in points], [value(p) for p in points], drawstyle="steps-post", **style)


def _figure(height: float) -> Figure:
    """An empty figure, 9 inches wide and so many high, without a window or global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(9.0, height), layout="constrained" if height < 3.0 else None)


def _line(axes: Axes, checkpoints: Sequence[Checkpoint], value: Callable[[Checkpoint], float | None], **style: Any) -> bool:
    """Draws one series by step, with gaps for missing numbers; returns False if all are missing."""
    found = [(c.step, value(c)) for c in checkpoints]
    axes.plot([step for step, _ in found], [float("nan") if y is None else y for _, y in found], **style)
    return any(y is not None for _, y in found)


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """A figure as an element of a page, with the page's colours, unique ids, a title and a description."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314  # nosec B314 # made here
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):  # a style would apply to the whole page
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            changed = f"{name}-{value}" if key == "id" else value
            changed = re.sub(r"^#(?=\w)", f"#{name}-", changed) if key == f"{{{XLINK}}}href" else changed
            changed = changed.replace("url(#", f"url(#{name}-")
            for colour, variable in VARIABLES.items():
                changed = changed.replace(colour, f"var({variable})")
            element.set(key, changed)
    for dimension in ("width", "height"):  # the page scales it
        root.attrib.pop(dimension, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{SVG}}}{tag}", id=f"{name}-{tag}")
        element.text = xml_safe(text)
        root.insert(position, element)
    return ET.tostring(root, encoding="unicode")
