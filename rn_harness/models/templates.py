"""Chat templates: where a model has one, and whether it renders a user's turn. No torch."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rn_harness.spec.errors import CandidateError
from rn_harness.spec.prompts import TODAY

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE_REMEDY = "pass one that this model was trained with by --rn-chat-template FILE"
_PROBE = "rn-harness-asks-this"
_TRAINING_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Marks the assistant's words for a trainer's mask; adds no text."""


def without_date(template: str) -> str:
    """A chat template in which it is always the same day, so that its output does not change from run to run."""
    if "strftime_now" not in template:
        return template
    return f"{{%- macro strftime_now(format) -%}}{TODAY}{{%- endmacro -%}}{template}"


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


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    """The template in transformers' sandbox; compiled once for all of a suite's prompts."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    world.filters["tojson"] = json.dumps
    world.globals |= {"raise_exception": refuse, "strftime_now": lambda _: TODAY}
    return world.from_string(_TRAINING_TAG.sub("", template))


def render_turn(template: str, special: Mapping[str, str], text: str) -> str:
    """A user's turn as transformers renders it."""
    turns = [{"role": "user", "content": text}]
    return _compiled(template).render(messages=turns, add_generation_prompt=True, tools=None, documents=None, **special)


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
    return template
