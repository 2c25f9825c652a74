"""Chat templates: where a model has one, and whether it presents users' turns as they are measured. No torch."""

from __future__ import annotations

import functools
import itertools
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rn_harness.models.template_calls import odd_call
from rn_harness.models.template_dates import reads_the_date, render, renderings, template_errors, without_date
from rn_harness.spec.errors import CandidateError

TEMPLATE_REMEDY = "pass one that this model was trained with by --rn-chat-template FILE"
TURNS = 4
"""Turns of a user in a chat, at most, on which a template is tried."""
_CHANCE = frozenset({"random", "lipsum"})
"""Names in a template that draw by chance."""
_SAID = {"user": "\ue010", "assistant": "\ue011", "system": "\ue012"}
"""What stands for each role's words in a compared text."""
_HERE = "\ue013"
"""What stands for a model's name in a sentence that is kept."""


def own_template(folder: Path) -> tuple[str | None, dict[str, str], dict[str, str]]:
    """A folder's chat template, the special tokens that a template may name, and further templates by name.

    Programs take a further template for tools, for example.
    """
    path = folder / "tokenizer_config.json"
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))
        template, separate = declared.get("chat_template"), folder / "chat_template.jinja"
        named = {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("additional_chat_templates/*.jinja")}
        if isinstance(template, list):  # several by name, of which the default one is used
            texts = (t for t in template if isinstance(t, dict) and isinstance(t.get("template"), str))
            named |= {str(t.get("name")): t["template"] for t in texts}
            template = named.pop("default", None)
        if separate.is_file():
            template = separate.read_text(encoding="utf-8")
    except (OSError, ValueError, AttributeError) as error:
        raise CandidateError(
            f"a model folder must hold a readable tokenizer_config.json, got {type(error).__name__} for {path}; "
            "save the tokenizer with save_pretrained"
        ) from None
    tokens = {key: token.get("content") if isinstance(token, dict) else token for key, token in declared.items()}
    special = {key: token for key, token in tokens.items() if key.endswith("_token") and isinstance(token, str)}
    return template if isinstance(template, str) and template.strip() else None, special, named


def read_template(base: Path, file: str) -> str:
    """The text of ``--rn-chat-template``."""
    path = (base / Path(file).expanduser()).resolve()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CandidateError(
            f"--rn-chat-template must be a readable jinja file, got {type(error).__name__} for {path}; correct the path"
        ) from None


def render_turn(template: str, special: Mapping[str, str], text: str) -> str:
    """A user's turn as transformers renders it, always on the same day."""
    return render(without_date(template), [{"role": "user", "content": text}], **special)


def _chats() -> Iterator[list[dict[str, str]]]:
    """Chats of one to ``TURNS`` turns of a user, without a system prompt and then with one. No two turns have the same words.

    The words are drawn, and of several lengths, so that no template can know them.
    """

    def turn(role: str, words: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(secrets.token_hex(6) for _ in range(words))}

    system, users, answers = (
        turn("system", 9),
        [turn("user", n) for n in (4, 1, 60, 12)],
        [turn("assistant", n) for n in (7, 1, 80)],
    )
    for begin in ([], [system]):
        for earlier in range(TURNS):
            past = itertools.chain.from_iterable(zip(users[:earlier], answers[:earlier], strict=True))
            yield [*begin, *past, users[earlier]]


def _compared(text: str | None, turns: Sequence[Mapping[str, str]]) -> str | None:
    """A text with a sign for each role's words; None without a text, or if it lacks the request."""
    for turn in turns if text else ():
        text = str(text).replace(turn["content"], _SAID[turn["role"]])
    return text if text and _SAID["user"] in text else None


def treats_turns_alike(texts: Sequence[str | None]) -> bool:
    """True if each further turn adds the same to a template's text, which ends alike after the last request.

    ``texts`` are of one turn of a user, two, and so on, with signs for words; None where a template presents no such chat. It has
    to present all of them, the first one only, or none. What is added may stand before words that stay at the end, as Mistral's
    system prompt does.
    """
    known = [text for text in texts if text is not None]
    if len(known) != len(texts):
        return not known or (len(known) == 1 and texts[0] is not None)
    added = []
    for before, after in itertools.pairwise(known):
        alike = next((n for n, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), len(before))
        if not after.endswith(before[alike:]):
            return False
        added.append(after[alike : len(after) - len(before) + alike])
    rotated = all(len(one) == len(added[0]) and one in added[0] * 2 for one in added)
    return rotated and len({text.rpartition(_SAID["user"])[2] for text in known}) == 1


def _draws_by_chance(template: str) -> bool:
    """True if a template names what draws by chance, as a name or a text of its code."""
    import jinja2

    tokens = jinja2.Environment(autoescape=True).lex(template)
    return any(value.strip("'\"") in _CHANCE for _, kind, value in tokens if kind in ("name", "string"))


def check_template(template: str | None, special: Mapping[str, str], where: str, others: Mapping[str, str] | None = None) -> str:
    """The template, if there is one, and users' turns are presented by it as they are measured; else raises CandidateError.

    ``others`` are the model's further templates by name.
    """
    if template is None:
        raise CandidateError(
            f"a chat template is required, got none in {where}, perhaps a base model that was not tuned to follow instructions; "
            f"{TEMPLATE_REMEDY}"
        )
    if fault := _fault(template, tuple(special.items()), tuple((others or {}).items())):
        raise CandidateError(f"a chat template {fault.replace(_HERE, where)}; {TEMPLATE_REMEDY}")
    return template


@functools.lru_cache(maxsize=16)  # defended weights have their candidate's template
def _fault(template: str, special_tokens: tuple[tuple[str, str], ...], others: tuple[tuple[str, str], ...]) -> str | None:
    """What is wrong with a template, with ``_HERE`` for the model's name; None if nothing is."""
    chats, special = list(_chats()), dict(special_tokens)
    try:
        text = render(without_date(template), chats[0], **special)
    except template_errors() as error:
        return f"must render a user's turn, got {type(error).__name__} for {_HERE}: {error}"
    if chats[0][0]["content"] not in text:
        return f"must hold what the user says, got a text without it from {_HERE}"
    here = renderings(without_date(template), chats, special)
    if _draws_by_chance(template) or reads_the_date(template, chats, special, here):
        return (
            "may print the date, and do nothing else with it or by chance, since users would get other prompts than are "
            f"measured, got one that does in {_HERE}"
        )
    texts = list(map(_compared, here, chats))
    if not treats_turns_alike(texts[:TURNS]) or not treats_turns_alike(texts[TURNS:]):
        return (
            f"must present each of {TURNS} turns like the one before, since only the first two are measured, got one that does "
            f"not in {_HERE}"
        )
    named = {name: without_date(text) for name, text in others}
    if call := odd_call(without_date(template), named, [chats[TURNS - 1], chats[TURNS]], special):
        return (
            "must begin the answer alike however a program calls it, since only one call is measured, got another text for "
            f"{call} in {_HERE}"
        )
    return None
