"""``summary.md``: a run for a pull request's comment or a job's summary.

Names from other people are escaped, so that they cannot format text, link, or mention anyone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rn_harness.records.run import Coverage, RunRecord
from rn_harness.report.html import ICONS, Cases, environment, sentences_of

if TYPE_CHECKING:
    import jinja2


def plain(text: str) -> str:
    """Text on one line that Markdown shows literally: without marks, elements, links and mentions."""
    one_line = " ".join(text.split())
    escaped = re.sub(r"([\\`*_\[\]<>#|~$&])", r"\\\1", one_line)
    return re.sub(r"(?<=[@:])(?=[\w/])", "\u200b", escaped)  # breaks @name and https://


def template(name: str) -> jinja2.Template:
    """A template for Markdown. HTML's escapes do not fit there: every text goes through its filter ``md``."""
    page = environment(autoescape=False)
    page.filters["md"] = lambda value: plain(str(value))
    return page.get_template(name)


def render_summary(run: RunRecord, cases: Cases) -> str:
    """The summary of a run and its cases."""
    text = template("summary.md.j2").render(run=run, cases=cases, icons=ICONS, not_run=_not_run, **sentences_of(run))
    return text + "\n"


def _not_run(coverage: Coverage) -> list[tuple[str, str]]:
    """Names of the cases, families and measurements that were not run, by kind."""
    kinds = {"case": "cases", "family": "families of attacks", "measurement": "measurements"}
    found = [(title, ", ".join(n.name for n in coverage.not_run if n.kind == kind)) for kind, title in kinds.items()]
    return [(title, names) for title, names in found if names]
