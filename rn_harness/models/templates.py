"""Chat templates: where a model has one, and whether it renders a user's turn. No torch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rn_harness.spec.errors import CandidateError
from rn_harness.spec.prompts import TODAY

TEMPLATE_REMEDY = "pass one that this model was trained with by --rn-chat-template FILE"
_PROBE = "rn-harness-asks-this"
TURNS = 4
"""Turns of a user in a chat, at most, on which a template is tried."""


_DAY = datetime.strptime(TODAY, "%d %b %Y").replace(tzinfo=UTC)
_DATES, _STEP = 24, timedelta(days=163, hours=5, minutes=17)
"""Dates on which a template is tried, and the time between two of them: ten years in all, with every month and weekday."""
_BY_CHANCE = re.compile(r"\|\s*random\b|\blipsum\b")
"""What draws by chance in a template."""
_DIRECTIVE = re.compile(r"%(-?[A-Za-z%])")
_MARK = re.compile("\ue000(.+?)\ue001")


def _values_on(day: datetime, template: str) -> dict[str, str]:
    """What each directive of ``strftime`` that a template writes gives on a day."""
    return {key: day.strftime(f"%{key}") for key in sorted(set(_DIRECTIVE.findall(template)) - {"%"})}


def _dated(template: str, values: Mapping[str, str]) -> str:
    """A chat template whose function for the date gives these values, by directive."""
    given = {"%": "\ue002", **values}
    filters = "".join(f"|replace({f'%{key}'!r}, {value!r})" for key, value in given.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters}|replace('\ue002', '%') }}}}{{%- endmacro -%}}{template}"


def without_date(template: str) -> str:
    """A chat template in which it is always the same day, so that its output does not change from run to run."""
    return _dated(template, _values_on(_DAY, template)) if "strftime_now" in template else template


def own_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """A folder's chat template, and the special tokens that a template may name."""
    path = folder / "tokenizer_config.json"
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))
        separate = folder / "chat_template.jinja"
        template = separate.read_text(encoding="utf-8") if separate.is_file() else declared.get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise CandidateError(
            f"a model folder must hold a readable tokenizer_config.json, got {type(error).__name__} for {path}; "
            "save the tokenizer with save_pretrained"
        ) from None
    if isinstance(template, list):  # several by name, of which the default one is used
        template = next((t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None)
    tokens = {key: token.get("content") if isinstance(token, dict) else token for key, token in declared.items()}
    special = {key: token for key, token in tokens.items() if key.endswith("_token") and isinstance(token, str)}
    return template if isinstance(template, str) and template.strip() else None, special


def read_template(base: Path, file: str) -> str:
    """The text of ``--rn-chat-template``."""
    path = (base / Path(file).expanduser()).resolve()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CandidateError(
            f"--rn-chat-template must be a readable jinja file, got {type(error).__name__} for {path}; correct the path"
        ) from None


def _render(template: str, special: Mapping[str, str], turns: list[dict[str, str]]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([turns], chat_template=template, add_generation_prompt=True, **special)
    return str(rendered[0])


def render_turn(template: str, special: Mapping[str, str], text: str) -> str:
    """A user's turn as transformers renders it, always on the same day."""
    return _render(without_date(template), special, [{"role": "user", "content": text}])


def _renderings(template: str, special: Mapping[str, str]) -> list[str]:
    """A template's texts of one to ``TURNS`` turns of a user, without a system prompt and with one."""
    import jinja2

    system, user, answer = ({"role": role, "content": _PROBE} for role in ("system", "user", "assistant"))
    found = []
    for turns in ([*begin, *[user, answer] * earlier, user] for begin in ([], [system]) for earlier in range(TURNS)):
        try:
            found.append(_render(template, special, turns))
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            found.append(type(error).__name__)
    return found


def reads_the_date(template: str, special: Mapping[str, str]) -> bool:
    """True if a template does more with the date than to print it, such as other words on another day.

    What users see would then differ from what is measured here, where it is always the same day.
    """
    if "strftime_now" not in template:
        return False
    marks = {key: f"\ue000{key}\ue001" for key in _values_on(_DAY, template)}
    marked = _renderings(_dated(template, marks), special)

    def printed(day: datetime) -> list[str]:
        values = _values_on(day, template)
        return [_MARK.sub(lambda mark: values.get(mark[1], ""), text) for text in marked]

    began = datetime.now(UTC)
    days = (_DAY, *(began + number * _STEP for number in range(_DATES)))
    if any(_renderings(_dated(template, _values_on(day, template)), special) != printed(day) for day in days):
        return True
    # Users have the true function. A second may pass while it is asked.
    for _ in range(3):
        before, given, after = datetime.now().astimezone(), _renderings(template, special), datetime.now().astimezone()
        if given in (printed(before), printed(after)):
            return False
    return True


def treats_turns_alike(texts: Sequence[str]) -> bool:
    """True if each further turn adds the same to a template's text, which ends alike after the last request.

    ``texts`` are of one turn of a user, two, and so on. No text without the request counts: users cannot have that turn, either.
    """
    if any(_PROBE not in text for text in texts):
        return True
    ends = {text.rpartition(_PROBE)[2] for text in texts}
    begins = [text.rpartition(_PROBE)[0] for text in texts]
    added = {after[len(before) :] for before, after in itertools.pairwise(begins)}
    return len(ends) == len(added) == 1 and all(after.startswith(before) for before, after in itertools.pairwise(begins))


def check_template(template: str | None, special: Mapping[str, str], where: str) -> str:
    """The template, if there is one and it renders the user's words; else raises CandidateError."""
    import jinja2

    if template is None:
        raise CandidateError(
            f"a chat template is required, got none in {where}, perhaps a base model that was not tuned to follow instructions; "
            f"{TEMPLATE_REMEDY}"
        )
    try:
        text = render_turn(template, special, _PROBE)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise CandidateError(
            f"a chat template must render a user's turn, got {type(error).__name__} for {where}: {error}; {TEMPLATE_REMEDY}"
        ) from None
    if _PROBE not in text:
        raise CandidateError(
            f"a chat template must hold what the user says, got a text without it from {where}; {TEMPLATE_REMEDY}"
        )
    if _BY_CHANCE.search(template) or reads_the_date(template, special):
        raise CandidateError(
            "a chat template may print the date, and do nothing else with it or by chance, since users would get other prompts "
            f"than are measured, got one that does in {where}; {TEMPLATE_REMEDY}"
        )
    texts = _renderings(without_date(template), special)
    if not treats_turns_alike(texts[:TURNS]) or not treats_turns_alike(texts[TURNS:]):
        raise CandidateError(
            f"a chat template must present each of {TURNS} turns like the one before, since only the first two are measured, got "
            f"one that does not in {where}; {TEMPLATE_REMEDY}"
        )
    return template
