"""The ways in which programs call a chat template: none may change how an answer begins. No torch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rn_harness.models.completion import THINK, THOUGHT
from rn_harness.models.template_dates import Turns, renderings

_TOOL = {
    "type": "function",
    "function": {
        "name": "now",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "A zone."}}},
    },
}
_NOTE = {"title": "Note", "text": "A text.", "contents": "A text."}
_LISTS: Mapping[str, Sequence[Any]] = {"tools": [_TOOL], "documents": [_NOTE]}
"""What a program may pass besides the chat."""
_PASSED = frozenset({"messages", "add_generation_prompt", "strftime_now", "raise_exception", *_LISTS})
_WRITTEN: Mapping[str, Callable[[str], str]] = {
    "": lambda words: words,
    "a line break at its end": lambda words: f"{words}\n",
    "lines": lambda words: words.replace(" ", "\n") + ".\n\n2; A",
    "signs": lambda words: f"Q: \"{words}\", (3 é) - {{x}} [y]? 'Z'!",
}
"""Forms of a user's words."""
_SAID = "\ue010"
"""What stands for a turn's words in a compared text."""
_CALLS = (*(("", form) for form in _WRITTEN), ("developer", ""), ("tool", ""))
"""A role with a turn of its own, and the form of the user's words."""
_SWITCHES = re.compile(rf"{THINK}|{THOUGHT}|/(?:no_?)?think|\{{reasoningeffort:\w+\}}")
"""What templates write, without white space, when a caller turns thinking on or off."""


def _variables(template: str, special: Mapping[str, str]) -> set[str]:
    """The names that a template reads from its caller, besides those that every caller passes."""
    from jinja2 import Environment, meta
    from jinja2.ext import loopcontrols

    class Generation(loopcontrols):
        """Reads the block by which transformers marks answers."""

        tags = {*loopcontrols.tags, "generation"}  # noqa: RUF012  (jinja's declaration)

        def parse(self, parser: Any) -> Any:
            if parser.stream.current.value != "generation":
                return super().parse(parser)
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    parsed = Environment(autoescape=True, extensions=[Generation]).parse(template)
    return meta.find_undeclared_variables(parsed) - _PASSED - special.keys()


def _given(template: str, special: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a caller may pass, with its name: nothing, tools, documents, and each variable as true and as false."""
    yield "", {}
    for name, value in _LISTS.items():
        yield name, {name: value}
    for name, flag in itertools.product(sorted(_variables(template, special)), (True, False)):
        yield f"{name}={flag}", {name: flag}


def _signed(text: str, turns: Sequence[Mapping[str, Any]]) -> str:
    """A text with a sign for the words of each turn, and without white space and the switches of thinking.

    A template may print words as JSON, and one that knows no parts prints them, or their list.
    """
    for turn in turns:
        said = turn["content"]
        words = said if isinstance(said, str) else said[0]["text"]
        for of in (said, *([] if isinstance(said, str) else said), words):
            for printed in (str(of), json.dumps(of), json.dumps(of, ensure_ascii=False)):
                text = text.replace(printed, words)
        text = text.replace(words.strip(), _SAID)
    return _SWITCHES.sub("", "".join(text.split()))


def _turns(chat: Turns, role: str, form: str) -> list[dict[str, Any]]:
    """A chat in which the user writes in this form, with a turn of this role."""
    write = _WRITTEN[form]
    said = [{**turn, "content": write(turn["content"]) if turn["role"] == "user" else turn["content"]} for turn in chat]
    before = [{"role": role, "content": "Zq 7."}] if role else []
    return [*before, *said] if role == "developer" else [*said[:-1], *before, said[-1]]


def _in_parts(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn whose content is a list with one part."""
    return {**turn, "content": [{"type": "text", "text": turn["content"]}]}


def odd_call(template: str, others: Mapping[str, str], chats: Sequence[Turns], special: Mapping[str, str]) -> str | None:
    """The call of a template at which the answer begins in another way than measured, in words; None: no tried call does that.

    A request may be written in several forms, after a developer's or a tool's turn, with tools, documents, or a variable of the
    template as true or false. After the last request the text has to be the same, and if only the request is another one, all of
    it: white space and the switches of thinking aside. If turns are lists of parts, the text is the same or lacks their words. A
    call may also be an error.

    Args:
        template, special: with its special tokens.
        others: further templates of the model, by name, of which a program may take one.
        chats: of any number of turns.
    """
    named = {"": template, **others}
    given = {name: list(_given(text, special)) for name, text in named.items()}
    for chat in chats:
        (plain,) = renderings(template, [chat], special)
        if plain is None:
            continue
        whole = _signed(plain, chat)
        for (role, form), (name, text) in itertools.product(_CALLS, named.items()):
            turns = _turns(chat, role, form)
            parts = turns if role == "tool" else list(map(_in_parts, turns))  # programs write tools' parts in various ways
            for passed, values in given[name]:
                like = whole if not (name or passed or role) else None
                called = zip((turns, parts), renderings(text, [turns, parts], {**special, **values}), strict=True)
                by_text, by_parts = (None if found is None else _signed(found, of) for of, found in called)
                by_text_alike = by_text is None or _ends_alike(by_text, whole, like)
                if by_text is None:
                    by_parts_alike = by_parts is None or _ends_alike(by_parts, whole, like)
                else:
                    by_parts_alike = by_parts in (None, by_text, by_text.replace(_SAID, ""))
                if by_text_alike and by_parts_alike:
                    continue
                told = (
                    name and f"template {name}", passed, role and f"a turn of role {role}",
                    form and f"a request with {form}", by_text_alike and "lists of parts",
                )  # fmt: skip
                return ", ".join(str(of) for of in told if of) or "the same call"
    return None


def _ends_alike(signed: str, whole: str, like: str | None) -> bool:
    """True if a text ends as ``whole`` after the last request, and is all of ``like``, if there is one."""
    return _SAID in signed and signed.rpartition(_SAID)[2] == whole.rpartition(_SAID)[2] and like in (None, signed)
