"""Chat templates: where a model has one, and whether it renders a user's turn. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rn_harness.spec.errors import CandidateError
from rn_harness.spec.prompts import TODAY

TEMPLATE_REMEDY = "pass one that this model was trained with by --rn-chat-template FILE"
_PROBE = "rn-harness-asks-this"


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


def render_turn(template: str, special: Mapping[str, str], text: str) -> str:
    """A user's turn as transformers renders it, always on the same day."""
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [{"role": "user", "content": text}]
    rendered, _ = render_jinja_template([turns], chat_template=without_date(template), add_generation_prompt=True, **special)
    return str(rendered[0])


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
