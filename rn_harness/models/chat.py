"""Chat texts to tokens and tokens to completions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rn_harness.models.completion import THINK, THOUGHT, Completion
from rn_harness.records.trajectory import Rendered
from rn_harness.spec.errors import UnsuitedError
from rn_harness.spec.prompts import Prompt, ShiftedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ChatModel:
    """A network of transformers, possibly wrapped by peft, with its tokenizer.

    The tokenizer has a chat template and an end token, and pads on the left.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.network: Any = network
        self.tokenizer: Any = tokenizer

    def render(self, prompt: Prompt) -> str:
        """The model's input text for a prompt: the request as a user's turn, or the turns of the prompt's shift.

        Raises UnsuitedError if the chat template does not present the whole shift.
        """
        if not isinstance(prompt, ShiftedPrompt):
            return self._apply_template([{"role": "user", "content": prompt.text}])
        import jinja2

        turns = prompt.shift.turns(prompt.text)
        try:
            text = self._apply_template(turns, prompt.shift.template)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise UnsuitedError(f"the chat template cannot present the shift: {type(error).__name__}: {error}") from None
        if lost := [turn["role"] for turn in turns if turn["content"].strip() not in text]:
            raise UnsuitedError(f"the chat template leaves out what the shift says in the turn of {' and '.join(lost)}")
        return text

    def _apply_template(self, turns: Sequence[Mapping[str, str]], template: str | None = None) -> str:
        """Turns in the template's form, up to the beginning of the answer."""
        text = self.tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
        return str(text)

    def rendered(self, prompt: Prompt) -> Rendered:
        """Hash and length of the model's input text, for the record."""
        text = self.render(prompt)
        return Rendered(sha256=hashlib.sha256(text.encode()).hexdigest(), characters=len(text))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Tokens of the model's input for a prompt."""
        return self._ids(self.render(prompt))

    def answer_ids(self, text: str, *, whole: bool = True) -> list[int]:
        """Tokens of a text as an answer, with its end token; without it if the text is only the beginning of an answer."""
        return [*self._ids(text), self.tokenizer.eos_token_id] if whole else self._ids(text)

    def token_count(self, text: str) -> int:
        """Tokens of a text as an answer, its end token included."""
        return len(self.answer_ids(text))

    def answer(self, tokens: Sequence[int]) -> Completion:
        """The completion that tokens make, up to the first end token: the answer, and the think part before it.

        A think part begins where the template or the completion's first token opens it, and ends at the first end of thought.
        All else is the answer, think tags or not. A think part that does not end counts as cut off, and is also the answer.
        """
        ends = set(self.network.generation_config.eos_token_id)
        end = next((n for n, token in enumerate(tokens) if token in ends), None)
        said = list(tokens[:end])
        (think, close), text = self._think_tokens, self._text(said)
        if not (self._begins_to_think or said[:1] == [think] or text.lstrip().startswith(THINK)):
            return Completion(text, truncated=end is None)
        if close is None and THOUGHT in text:
            thought, _, answer = text.partition(THOUGHT)
        elif close is not None and close in said:
            at = said.index(close)
            thought, answer = self._text(said[:at]), self._text(said[at + 1 :])
        else:
            thought = text.lstrip().removeprefix(THINK).strip()
            return Completion(thought, truncated=True, thought=thought or None)
        thought = thought.lstrip().removeprefix(THINK).strip()
        return Completion(answer.lstrip(), truncated=end is None, thought=thought or None)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    @cached_property
    def _think_tokens(self) -> tuple[int | None, int | None]:
        """Tokens that begin and end a think part, if the vocabulary has them. Cached, since this copies the vocabulary."""
        vocabulary = self.tokenizer.get_vocab()
        return vocabulary.get(THINK), vocabulary.get(THOUGHT)

    @cached_property
    def _begins_to_think(self) -> bool:
        """True if the template opens a think part and does not close it."""
        text = self.render(Prompt(id="any", topic="any", text="any"))
        return text.rfind(THINK) > text.rfind(THOUGHT)
