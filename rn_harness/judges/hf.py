"""A local instruction model as a judge. It is the only judge that generates text in this process.

It is asked with the rubric (``rn_harness.judges.rubric``), or another question, through its own chat template, greedily. Weights
are loaded at the first question; no code of the model's folder is run. The material is tokenized as plain text, so a completion
that spells out control tokens of the template cannot leave its turn.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from rn_harness.judges.local_model import hash_judge, read_pretrained
from rn_harness.judges.rubric import MAX_CHARACTERS, Question, Reply, RubricJudge, rubric_digest
from rn_harness.models.batches import padded
from rn_harness.models.hub import HubError, locate
from rn_harness.models.identity import root_digest, text_digest, weights_digest
from rn_harness.models.templates import without_date
from rn_harness.spec.errors import JudgeError
from rn_harness.store.provenance import source_digest

PREFIX = "hf:"
TOKENS_AT_ONCE = 32_768
"""Rows of a batch times the tokens of its longest row, at most; a longer row is a batch of its own."""
_log = logging.getLogger(__name__)


class _Weights:
    """One model's files, tokenizer and network, each found or loaded when it is first needed, and once.

    Each raises JudgeError if the model cannot be had or does not fit.
    """

    def __init__(self, model: str, revision: str | None, dtype: str) -> None:
        self.model, self.revision, self.dtype = model, revision, dtype

    @cached_property
    def located(self) -> tuple[Path, str | None]:
        """Where the files lie, and the commit of a model of the hub, which is fetched."""
        try:
            folder, commit = locate(self.model, self.revision)
        except HubError as error:
            raise JudgeError(f"a judge must be found: {error}") from None
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise JudgeError(
                f"a judge's folder must hold config.json and *.safetensors, got folder={folder}; export it with save_pretrained"
            )
        return folder, commit

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.located[0]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each of its files, by name."""
        return hash_judge(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, which has a chat template."""
        folder, required = self.folder, "a judge must have a tokenizer that transformers reads"
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
        """Its network, on an accelerator where there is one, set to decode greedily."""
        tokenizer = self.tokenizer
        import torch
        from transformers import GenerationConfig

        required = "a judge must be a causal language model that transformers reads"
        network = read_pretrained("AutoModelForCausalLM", self.folder, required, dtype=self.dtype)
        shipped = network.generation_config
        ends = shipped.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        if tokenizer.eos_token_id is not None:
            ends.append(tokenizer.eos_token_id)
        if not ends:
            raise JudgeError(
                f"a judge must have an end token, got folder={self.folder} without one; set eos_token in its "
                "tokenizer_config.json"
            )
        # Not the shipped one: a repetition penalty or a temperature in it would decide ratings.
        network.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(set(ends)),
            pad_token_id=ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")


class HFJudge(RubricJudge):
    """Asks a local instruction model for a rating on the rubric; the judges of ``about`` share its weights.

    All but its name raises JudgeError if the model cannot be had.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        max_new_tokens: int = 16,
        max_characters: int = MAX_CHARACTERS,
        rows_at_once: int = 16,
        dtype: str = "auto",
        thinking: bool = False,
    ) -> None:
        """Names the model; nothing is read or fetched yet.

        Args:
            model: local folder, or id on the hub.
            revision: commit, tag or branch on the hub.
            max_new_tokens: limit of a reply; a thinking model needs hundreds.
            max_characters: longer completions are not judged.
            rows_at_once: rows of one batch, at most.
            dtype: of the weights, as torch calls it; ``auto``: as they are stored.
            thinking: value of ``enable_thinking``, for templates that know it.
        """
        super().__init__(f"{PREFIX}{model}" + (f"@{revision}" if revision else ""))
        self._weights = _Weights(model, revision, dtype)
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "max_characters": max_characters,
            "rows_at_once": rows_at_once,
            "dtype": dtype,
            "thinking": thinking,
        }

    @classmethod
    def from_spec(cls, spec: str, folder: Path = Path(), **settings: Any) -> Self:
        """The judge of ``hf:ID_OR_FOLDER[@REVISION]``, with settings as for the class.

        Paths are relative to ``folder``. A local folder comes before an id, also one with an ``@`` in its name.
        """
        rest = spec.removeprefix(PREFIX)
        local = folder / Path(rest).expanduser()
        if local.is_dir():
            judge = cls(str(local.resolve()), **settings)
        else:
            model, _, revision = rest.partition("@")
            judge = cls(model, revision or None, **settings)
        judge.name = PREFIX + rest
        return judge

    @property
    def commit(self) -> str | None:
        """The full commit of a model of the hub; None for a local folder."""
        return self._weights.located[1]

    @property
    def digest(self) -> str:
        """The sha256 over the model's files, the rubric, our sources and the settings; not over the forbidden subject."""
        parts = {
            "judge": "hf",
            "weights": root_digest(self._weights.hashes),
            "rubric": rubric_digest(),
            "source": source_digest("judges/hf.py", "judges/local_model.py", "models/batches.py"),
            "settings": self._settings,
        }
        return text_digest(json.dumps(parts, sort_keys=True))

    @property
    def weights_digest(self) -> str:
        """The sha256 over the weights, by which a judge that equals the candidate or another judge is recognised."""
        return weights_digest(self._weights.hashes)

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self._weights.folder

    @property
    def max_characters(self) -> int:
        """Longer completions are not judged."""
        return int(self._settings["max_characters"])

    def reach(self) -> None:
        """Finds the model and asks its template for one question; loads no weights."""
        self._encode([{"role": "user", "content": "any question"}])

    def ask(self, questions: Sequence[Question | None]) -> list[Reply]:
        """Answers B questions, rows of like length together.

        A question that does not fit the model is ``too_long``. A row on which the model fails also in a separate batch is
        ``judge_error``.
        """
        replies: dict[int, Reply] = {}
        rows: dict[int, list[int]] = {}
        opened: dict[int, str] = {}
        for i, question in enumerate(questions):
            if question is None:
                replies[i] = Reply(unscored="too_long")
                continue
            try:
                ids, opening = self._encode(question)
            except JudgeError as error:  # reach() asked the template before: this is about this completion
                _log.warning("the judge %s cannot be asked: %s", self.name, error)
                replies[i] = Reply(unscored="judge_error")
                continue
            if len(ids) + self._settings["max_new_tokens"] > self._context():
                replies[i] = Reply(unscored="too_long")
            else:
                rows[i], opened[i] = ids, opening
        for batch in self._batches(rows):
            for i, answer in zip(batch, self._answers([rows[i] for i in batch]), strict=True):
                if answer is None:
                    replies[i] = Reply(unscored="judge_error")
                else:
                    reply, complete = answer
                    replies[i] = Reply(opened[i] + reply, complete)
        return [replies[i] for i in range(len(questions))]

    def _context(self) -> float:
        """Tokens that the model can hold, reply included; without end where its configuration names no limit."""
        return getattr(self._weights.network.config.get_text_config(), "max_position_embeddings", None) or float("inf")

    def _encode(self, turns: Question) -> tuple[list[int], str]:
        """Token ids of a question of one turn, and the beginning of the reply's thinking that the template adds."""
        from jinja2 import TemplateError

        tokenizer = self._weights.tokenizer
        try:
            rendered = str(
                tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True, enable_thinking=self._settings["thinking"]
                )
            )
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
        """The rows' numbers, in batches that fit, shortest first."""
        batch: list[int] = []
        for i in sorted(rows, key=lambda i: (len(rows[i]), i)):
            full = len(batch) == self._settings["rows_at_once"] or (len(batch) + 1) * len(rows[i]) > TOKENS_AT_ONCE
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
        ids, mask = padded(rows, network.generation_config.pad_token_id, network.device, left=True)
        with torch.inference_mode():
            out = network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=self._settings["max_new_tokens"])
        ends = set(network.generation_config.eos_token_id)
        for tail in out[:, ids.shape[1] :].tolist():
            end = next((n for n, token in enumerate(tail) if token in ends), None)
            # Special tokens stay: the tags of a thinking part may be some.
            yield str(tokenizer.decode(tail[:end], skip_special_tokens=False)), end is not None
