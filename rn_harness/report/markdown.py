"""``summary.md``: a run for a pull request's comment or a job's summary.

Names from other people are escaped, so that they cannot format text, link, or mention anyone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import CaseLine, Coverage, RunRecord
from rn_harness.report.html import ICONS, TEMPLATES, sentences_of


def plain(text: str) -> str:
    """Text on one line that Markdown shows literally: without marks, elements, links and mentions."""
    one_line = " ".join(text.split())
    escaped = re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", one_line)
    return re.sub(r"(?<=[@:])(?=[\w/])", "\u200b", escaped)  # breaks @name and https://


def render_summary(run: RunRecord, cases: Sequence[tuple[CaseLine, CaseRecord | None]]) -> str:
    """The summary of a run and its cases; a case without a record has None."""
    import jinja2

    # HTML's escapes do not fit Markdown: every text goes through ``md``.
    how: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=False, **how)  # noqa: S701  # nosec B701
    environment.filters["md"] = lambda value: plain(str(value))
    return (
        environment.get_template("summary.md.j2").render(run=run, cases=cases, icons=ICONS, not_run=_not_run, **sentences_of(run))
        + "\n"
    )


def _not_run(coverage: Coverage) -> list[tuple[str, str]]:
    """Names of the cases, families and measurements that were not run, by kind."""
    kinds = {"case": "cases", "family": "families of attacks", "measurement": "measurements"}
    found = [(title, ", ".join(n.name for n in coverage.not_run if n.kind == kind)) for kind, title in kinds.items()]
    return [(title, names) for title, names in found if names]
