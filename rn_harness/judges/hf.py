"""A local instruction model as a judge. It is the only judge that generates text in this process.

It is asked with the rubric (``rn_harness.judges.rubric``), or another question, through its own chat template, greedily. Weights
are loaded at the first question; no code of the model's folder is run. The material is tokenized as plain text, so a completion
that spells out control tokens of the template cannot leave its turn.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from rn_harness.judges.local_model import hash_judge, locate_judge, name_and_revision, read_pretrained
from rn_harness.judges.rubric import Question, Reply, RubricJudge
from rn_harness.models.batches import padded, padded_after
from rn_harness.models.identity import root_digest, text_digest, weights_digest
from rn_harness.models.template_dates import without_date
from rn_harness.models.transformers_compat import keeps_all_keys, stretched_positions
from rn_harness.spec.errors import JudgeError
from rn_harness.store.provenance import source_digest

PREFIX = "hf:"
ROWS_AT_ONCE = 16
TOKENS_AT_ONCE = 32_768
"""Rows of a batch times the tokens of its longest row, at most; a longer row is a batch of its own."""
_log = logging.getLogger(__name__)


@dataclass
class _Weights:
    """One model's files, tokenizer and network, each found or loaded when it is first needed, and once.

    Each raises JudgeError if the model cannot be had or does not fit.
    """

    model: str
    revision: str | None

    @cached_property
    def located(self) -> tuple[Path, str | None]:
        return locate_judge(self.model, self.revision)

    @cached_property
    def hashes(self) -> dict[str, str]:
        return hash_judge(self.located[0])

    @cached_property
    def tokenizer(self) -> Any:
        folder, required = self.located[0], "a judge must have a tokenizer that transformers reads"
        tokenizer = read_pretrained("AutoTokenizer", folder, required, "save the tokenizer beside the weights")
        if not tokenizer.chat_template:
            raise JudgeError(
                f"a judge must have a chat template, got folder={folder} without one; name an instruction model, since a base "
                "model answers no questions, or save the tokenizer with its template"
            )
        # The question is the same every day, as its certificate assumes.
        of = tokenizer.chat_template
        tokenizer.chat_template = {k: without_date(v) for k, v in of.items()} if isinstance(of, dict) else without_date(of)
        return tokenizer

    @cached_property
    def network(self) -> Any:
        from transformers import GenerationConfig

        tokenizer, folder = self.tokenizer, self.located[0]
        required = "a judge must be a causal language model that transformers reads"
        network = read_pretrained("AutoModelForCausalLM", folder, required, dtype="auto")
        shipped = network.generation_config.eos_token_id
        ends = [shipped] if isinstance(shipped, int) else list(shipped or [])
        if tokenizer.eos_token_id is not None:
            ends.append(tokenizer.eos_token_id)
        if not ends:
            raise JudgeError(
                f"a judge must have an end token, got folder={folder} without one; set eos_token in its tokenizer_config.json"
            )
        # Not the shipped one: a repetition penalty or a temperature in it would decide ratings.
        network.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(set(ends)),
            pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        return network


class HFJudge(RubricJudge):
    """Asks a local instruction model for a rating on the rubric; the judges of ``about`` share its weights.

    All but its name raises JudgeError if the model cannot be had.
    """

    def __init__(self, model: str, revision: str | None = None, max_new_tokens: int = 16) -> None:
        """Names the model, a local folder or an id on the hub; nothing is read or fetched yet.

        ``max_new_tokens`` limits a reply; a thinking model needs hundreds.
        """
        super().__init__(f"{PREFIX}{model}" + (f"@{revision}" if revision else ""))
        self._weights = _Weights(model, revision)
        self._max_new_tokens = max_new_tokens

    @classmethod
    def from_spec(cls, spec: str, folder: Path = Path(), **settings: Any) -> Self:
        judge = cls(*name_and_revision(spec.removeprefix(PREFIX), folder), **settings)
        judge.name = spec
        return judge

    @property
    def commit(self) -> str | None:
        return self._weights.located[1]

    @property
    def digest(self) -> str:
        parts = {
            "judge": "hf",
            "weights": root_digest(self._weights.hashes),
            "source": source_digest(
                "judges/hf.py",
                "judges/local_model.py",
                "judges/rubric.py",
                "models/batches.py",
                "models/template_dates.py",
                "models/transformers_compat.py",
                "spec/wording.py",
            ),
            "max_new_tokens": self._max_new_tokens,
        }
        return text_digest(json.dumps(parts, sort_keys=True))

    @property
    def weights_digest(self) -> str:
        return weights_digest(self._weights.hashes)

    @property
    def folder(self) -> Path:
        return self._weights.located[0]

    def reach(self) -> None:
        """Finds the model and asks its template for one question; loads no weights."""
        self._encode([{"role": "user", "content": "any question"}])

    def ask(self, questions: Sequence[Question | None]) -> list[Reply]:
        """Answers B questions, rows of like length together. One that does not fit the model is ``too_long``.

        A row on which the model fails also in a separate batch is ``judge_error``.
        """
        replies = [Reply(unscored="too_long")] * len(questions)
        rows: dict[int, list[int]] = {}
        opened: dict[int, str] = {}
        for i, question in enumerate(questions):
            if question is None:
                continue
            try:
                ids, opening = self._encode(question)
            except JudgeError as error:  # reach() asked the template before: this is about this completion
                _log.warning("the judge %s cannot be asked: %s", self.name, error)
                replies[i] = Reply(unscored="judge_error")
                continue
            context = getattr(self._weights.network.config.get_text_config(), "max_position_embeddings", None) or math.inf
            if len(ids) + self._max_new_tokens <= context:
                rows[i], opened[i] = ids, opening
        for batch in self._batches(rows):
            for i, answer in zip(batch, self._answers([rows[i] for i in batch]), strict=True):
                replies[i] = Reply(opened[i] + answer[0], answer[1]) if answer else Reply(unscored="judge_error")
        return replies

    def _encode(self, turns: Question) -> tuple[list[int], str]:
        """Token ids of a question of one turn, and the beginning of the reply's thinking that the template adds."""
        from jinja2 import TemplateError

        tokenizer = self._weights.tokenizer
        try:
            settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
            rendered = str(tokenizer.apply_chat_template(turns, **settings))
        except (TemplateError, ValueError, TypeError) as error:
            raise JudgeError(
                f"a judge's chat template must take one turn of the user, got judge={self.name}: {type(error).__name__}; name "
                "another judge"
            ) from None
        question = turns[0]["content"].strip()
        if rendered.count(question) != 1:
            raise JudgeError(
                f"a judge's chat template must hold the user's turn once and as it is, got judge={self.name} which changes it; "
                "name another judge"
            )
        before, after = rendered.split(question)
        ids: list[int] = []
        for text, plain in ((before, False), (question, True), (after, False)):
            ids += tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
        thinking = after.rfind("<think>")
        return ids, after[thinking:] if thinking > after.rfind("</think>") else ""

    def _batches(self, rows: dict[int, list[int]]) -> Iterator[list[int]]:
        """The rows' numbers, in batches that fit, shortest first; alone if a longer row would turn the positions of others."""
        batch: list[int] = []
        most = 1 if stretched_positions(self._weights.network) else ROWS_AT_ONCE
        for i in sorted(rows, key=lambda i: (len(rows[i]), i)):
            full = len(batch) == most or (len(batch) + 1) * len(rows[i]) > TOKENS_AT_ONCE
            if batch and full:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _answers(self, rows: Sequence[list[int]]) -> list[tuple[str, bool] | None]:
        """Reply to each of B rows, and true if it ended by itself; None if the model failed on the row in a separate batch."""
        try:
            return list(self._generate(rows))
        except (RuntimeError, ValueError, IndexError) as error:  # RuntimeError: out of memory, too
            _log.warning("the judge %s failed on %d rows: %s", self.name, len(rows), type(error).__name__)
        if len(rows) == 1:
            return [None]
        return [answer for row in rows for answer in self._answers([row])]

    def _generate(self, rows: Sequence[list[int]]) -> Iterator[tuple[str, bool]]:
        import torch

        network, tokenizer = self._weights.network, self._weights.tokenizer
        pad, cache = network.generation_config.pad_token_id, None
        with torch.inference_mode():
            if keeps_all_keys(network):  # a question begins with the rubric, which is the larger part of it
                (ids, mask), cache = padded_after(rows, pad, network)
            else:
                ids, mask = padded(rows, pad, network.device, left=True)
            out = network.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=self._max_new_tokens)
        ends = set(network.generation_config.eos_token_id)
        for tail in out[:, ids.shape[1] :].tolist():
            end = next((n for n, token in enumerate(tail) if token in ends), None)
            # Special tokens stay: the tags of a thinking part may be some.
            yield str(tokenizer.decode(tail[:end], skip_special_tokens=False)), end is not None
