"""``summary.md``: a run in a pull request's comment or a job's summary.

A view: it arranges what stands in the records. What strangers named can neither format, link nor call people.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import CaseLine, Coverage, RunRecord
from rn_harness.report.html import ICONS, TEMPLATES, told_of


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no mark, no element, no link, no mention."""
    one_line = " ".join(text.split())
    escaped = re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", one_line)
    return re.sub(r"(?<=[@:])(?=[\w/])", "\u200b", escaped)  # neither @somebody nor https://


def render_summary(run: RunRecord, cases: Sequence[tuple[CaseLine, CaseRecord | None]]) -> str:
    """The summary.

    Args:
        run: the run's record.
        cases: each of its lines, with the case's record where there is one.
    """
    import jinja2

    # Markdown has no use for HTML's escapes: every text goes through ``md``.
    how: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=False, **how)  # noqa: S701  # nosec B701
    environment.filters["md"] = lambda value: plain(str(value))
    return (
        environment.get_template("summary.md.j2").render(run=run, cases=cases, icons=ICONS, not_run=_not_run, **told_of(run))
        + "\n"
    )


def _not_run(of: Coverage) -> list[tuple[str, str]]:
    """What was left out, by kind."""
    kinds = {"case": "cases", "family": "families of attacks", "measurement": "measurements"}
    found = [(told, ", ".join(n.name for n in of.not_run if n.kind == kind)) for kind, told in kinds.items()]
    return [(told, names) for told, names in found if names]
