"""The date in chat templates: it is always the same day here, and a template may only print it. No torch."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rn_harness.spec.prompts import TODAY

Turns = Sequence[dict[str, str]]
_DAY = datetime.strptime(TODAY, "%d %b %Y")  # noqa: DTZ007  (templates are given times without a zone)
_YEARS, _STEP = 24, timedelta(days=163, hours=5, minutes=17, seconds=7, microseconds=123_457)
_DAYS, _NEXT = 400, timedelta(days=1, minutes=13, seconds=11, microseconds=98_765)
"""Moments at which a template is tried: a few in each of ten years, and each day of the next thirteen months."""
_DIRECTIVE = re.compile(r"%(-?[A-Za-z%])")
_MARK = re.compile("\ue000(.+?)\ue001")


def _directives(template: str) -> list[str]:
    """What a template writes after percent signs, such as ``Y`` and ``-d``."""
    return sorted(set(_DIRECTIVE.findall(template)) - {"%"})


def _with_clock(template: str, values: Mapping[str, str]) -> str:
    """A chat template with a function for the date; ``values`` has an expression for each directive."""
    filters = "".join(f"|replace({f'%{key}'!r}, {value})" for key, value in {"%": "'\ue002'", **values}.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters}|replace('\ue002', '%') }}}}{{%- endmacro -%}}{template}"


def _on(day: datetime, template: str) -> dict[str, str]:
    """What each directive of a template gives on a day."""
    return {key: day.strftime(f"%{key}") for key in _directives(template)}


def without_date(template: str) -> str:
    """A chat template in which it is always the same day, so that its output does not change from run to run."""
    if "strftime_now" not in template:
        return template
    return _with_clock(template, {key: repr(value) for key, value in _on(_DAY, template).items()})


def render(template: str, turns: Turns, **given: Any) -> str:
    """A chat as transformers renders it, with the prompt for an answer; ``given`` are special tokens and other variables."""
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([list(turns)], chat_template=template, add_generation_prompt=True, **given)
    return str(rendered[0])


def template_errors() -> tuple[type[Exception], ...]:
    """What a template may raise while it presents a chat."""
    import jinja2

    return (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)


def renderings(template: str, chats: Sequence[Turns], given: Mapping[str, Any]) -> list[str | None]:
    """A template's text of each chat; None where it raises an error."""
    found: list[str | None] = []
    for turns in chats:
        try:
            found.append(render(template, turns, **given))
        except template_errors():
            found.append(None)
    return found


def reads_the_date(template: str, chats: Sequence[Turns], special: Mapping[str, str], here: Sequence[str | None]) -> bool:
    """True if a template does more with the date than to print it, such as other words on another day: users would see those.

    Args:
        template, special: with its special tokens.
        chats: the first half has no system prompt, the second has one. On most days the first chat of each half is tried.
        here: the texts of these chats on the day that it always is here.
    """
    if "strftime_now" not in template:
        return False
    day_given = f"day_{secrets.token_hex(8)}"  # a name that no template can look for
    clocked = _with_clock(template, {key: f"{day_given}[{key!r}]" for key in _directives(template)})

    def texts(values: Mapping[str, str], asked: Sequence[Turns]) -> list[str | None]:
        return renderings(clocked, asked, {**special, day_given: values})

    marks = {key: f"\ue000{key}\ue001" for key in _directives(template)}
    marked, half = texts(marks, chats), len(chats) // 2

    def printed(day: datetime, of: Sequence[str | None]) -> list[str | None]:
        values = _on(day, template)
        return [text and _MARK.sub(lambda found: values.get(found[1], ""), text) for text in of]

    now = _now()
    for asked, of, days in (
        (chats, marked, (_DAY, *(now + n * _STEP for n in range(_YEARS)))),
        (chats[::half], marked[::half], (now + n * _NEXT for n in range(_DAYS))),
    ):
        if any(texts(_on(day, template), asked) != printed(day, of) for day in days):
            return True
    if here != printed(_DAY, marked):
        return True
    # Users have the true function. A second may pass while it is asked.
    for _ in range(3):
        before, given, after = _now(), renderings(template, chats, special), _now()
        if given in (printed(before, marked), printed(after, marked)):
            return False
    return True


def _now() -> datetime:
    """The local time without its zone, which templates are given."""
    return datetime.now(UTC).astimezone().replace(tzinfo=None)
