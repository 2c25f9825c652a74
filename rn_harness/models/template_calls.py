"""The ways in which programs call a chat template: none may change how an answer begins. No torch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
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
_CALLS = tuple(("", form, parts) for form in _WRITTEN for parts in (False, True)) + tuple(
    (role, "", parts) for role in ("developer", "tool") for parts in (False, True)
)
"""A role with a turn of its own, the form of the user's words, and whether turns are lists of parts."""
_SWITCHES = re.compile(rf"{THINK}|{THOUGHT}|/(?:no_?)?think|\{{reasoningeffort:\w+\}}")
"""What templates write, without white space, when a caller turns thinking on or off."""


def other_templates(folder: Path) -> dict[str, str]:
    """The templates of a model's folder besides the default one, by name; programs take one for tools, for example."""
    named = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("additional_chat_templates/*.jinja")}
    file = folder / "tokenizer_config.json"
    listed = json.loads(file.read_text(encoding="utf-8")).get("chat_template") if file.is_file() else None
    for of in listed if isinstance(listed, list) else ():
        if isinstance(of, dict) and of.get("name") != "default":
            named[str(of.get("name"))] = str(of.get("template"))
    return named


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

    A template may print words as JSON, and one that knows no parts the whole list.
    """
    for turn in turns:
        said = turn["content"]
        words = said if isinstance(said, str) else said[0]["text"]
        for printed in (str(said), json.dumps(said), json.dumps(said, ensure_ascii=False), json.dumps(words, ensure_ascii=False)):
            text = text.replace(printed, words)
        text = text.replace(words.strip(), _SAID)
    return _SWITCHES.sub("", "".join(text.split()))


def _turns(chat: Turns, role: str, form: str, *, parts: bool) -> list[dict[str, Any]]:
    """A chat in which the user writes in this form, with a turn of this role, and with lists of parts for texts."""
    write = _WRITTEN[form]
    said = [{**turn, "content": write(turn["content"]) if turn["role"] == "user" else turn["content"]} for turn in chat]
    before = [{"role": role, "content": "Zq 7."}] if role else []
    turns: list[dict[str, Any]] = [*before, *said] if role == "developer" else [*said[:-1], *before, said[-1]]
    return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns] if parts else turns


def odd_call(template: str, others: Mapping[str, str], chats: Sequence[Turns], special: Mapping[str, str]) -> str | None:
    """The call of a template at which the answer begins in another way than measured, in words; None: no tried call does that.

    A request may be written in several forms, as a text or as a list of parts, after a developer's or a tool's turn, with tools,
    documents, or a variable of the template as true or false. After the last request the text has to be the same, and if only
    the request is another one, all of it: white space and the switches of thinking aside. A call may also be an error, and the
    template may leave out requests that it cannot read.

    Args:
        template, special: with its special tokens.
        others: further templates of the model, by name, of which a program may take one.
        chats: of any number of turns.
    """
    for chat in chats:
        (plain,) = renderings(template, [chat], special)
        if plain is None:
            continue
        whole = _signed(plain, chat)
        end = whole.rpartition(_SAID)[2]
        for (role, form, parts), (name, text) in itertools.product(_CALLS, {"": template, **others}.items()):
            turns = _turns(chat, role, form, parts=parts)
            for passed, values in _given(text, special):
                (found,) = renderings(text, [turns], {**special, **values})
                if found is None:
                    continue
                signed = _signed(found, turns)
                if not (name or passed or role) and signed.replace(_SAID, "") == whole.replace(_SAID, ""):
                    continue
                if (name or passed or role) and (signed.endswith(end) and signed.rpartition(_SAID)[2] in (end, signed)):
                    continue
                told = (
                    name and f"template {name}", passed, role and f"a turn of role {role}",
                    form and f"a request with {form}", parts and "lists of parts",
                )  # fmt: skip
                return ", ".join(str(of) for of in told if of) or "the same call"
    return None
