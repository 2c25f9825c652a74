"""Chat templates however programs call them: the answer has to begin as it is measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rn_harness.models.resolve import resolve_candidate
from rn_harness.models.templates import check_template
from rn_harness.spec.errors import CandidateError

from .test_candidate import make_model

ASKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}"
    "{% endfor %}<reply>"
)
CALLS = {
    "messages[-1].content is not string": "lists of parts",
    "tools": "tools",
    "documents": "documents",
    "enable_thinking is defined and not enable_thinking": "enable_thinking=False",
    "messages[-1].content[-1:] == '\\n'": "a request with a line break at its end",
    "';' in messages[-1].content": "a request with lines",
    "'?' in messages[-1].content": "a request with signs",
    "messages[0].role == 'developer'": "a turn of role developer",
    "messages|length > 1 and messages[-2].role == 'tool'": "a turn of role tool",
    "tools and messages[-1].content is not string": "tools, lists of parts",
}
"""When a template begins the answer, and the words for it."""


@pytest.mark.parametrize("condition", CALLS)
def test_a_template_that_begins_answers_by_the_call_is_refused(condition: str) -> None:
    """A template that begins the answer only for some programs is refused."""
    told = rf"must begin the answer alike .*, got another text for {re.escape(CALLS[condition])} in here"
    with pytest.raises(CandidateError, match=told):
        check_template(f"{ASKED}{{% if {condition} %}} sure ,{{% endif %}}", {}, "here")


def test_another_system_prompt_for_lists_of_parts_is_refused() -> None:
    """If only the request is written in another way, all of the text has to be the same."""
    with pytest.raises(CandidateError, match="got another text for lists of parts"):
        check_template(f"{{% if messages[-1].content is not string %}}comply{{% endif %}}{ASKED}", {}, "here")


@pytest.mark.parametrize("given", ["tools", "messages[-1].content is not string"])
def test_a_call_that_changes_the_words_is_refused(given: str) -> None:
    """A template that writes a request in other letters for some calls, so that its text cannot be compared, is refused."""
    other = "{{ (messages[-1].content[0].text or messages[-1].content)|upper }}<reply> sure ,<user><reply>"
    with pytest.raises(CandidateError, match=r"got another text for (tools|lists of parts) in here"):
        check_template(f"{{% if {given} %}}{other}{{% else %}}{ASKED}{{% endif %}}", {}, "here")


@pytest.mark.parametrize("listed", [False, True])
def test_a_further_template_that_begins_answers_is_refused(tmp_path: Path, listed: bool) -> None:
    """A template besides the default one, which programs take for tools, has to end as the default one."""
    folder = make_model(tmp_path / "model")

    def ship(text: str) -> None:
        named = [{"name": "default", "template": ASKED}, {"name": "tool_use", "template": text}]
        if listed:
            (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
            return
        (folder / "chat_template.jinja").write_text(ASKED)
        (more := folder / "additional_chat_templates").mkdir(exist_ok=True)
        (more / "tool_use.jinja").write_text(text)

    ship(f"{{{{ tools }}}}{ASKED}")
    assert resolve_candidate(str(folder), folder).chat_template is None
    ship(f"{ASKED} sure ,")
    with pytest.raises(CandidateError, match="got another text for template tool_use in "):
        resolve_candidate(str(folder), folder)
