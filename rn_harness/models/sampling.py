"""Completions of prompts, and probabilities of answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rn_harness.models.chat import ChatModel
from rn_harness.models.completion import Completion
from rn_harness.models.memory import ROWS_AT_ONCE
from rn_harness.models.padding import padded
from rn_harness.models.transformers_compat import is_sharded
from rn_harness.spec.prompts import Prompt, ShiftedPrompt
from rn_harness.store.ranks import ranks

FINISHED_AT_ONCE = 32
"""Rows of one call that continues cut completions, which are several times as long."""
LOGITS_AT_ONCE = 2**27
"""Numbers in the logits of one call for probabilities: half a gigabyte in 32 bits."""


def _sampling_arguments(temperature: float | None, top_k: int = 0) -> dict[str, Any]:
    """Arguments of transformers' ``generate`` for this temperature; None: greedy."""
    if temperature is None:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": 1.0}


class SamplingModel(ChatModel):
    """A network that completes prompts and gives exact probabilities of answers."""

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Runs its body with any adapter folded into the weights; here there is none."""
        yield

    @property
    def sharded(self) -> bool:
        """True if the weights are spread over processes; adapters are not, each process has them whole."""
        return is_sharded(self.network)

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int,
        temperature: float | None,
        max_tokens: int,
        top_k: int = 0,
    ) -> list[list[Completion]]:
        """Answers each of K prompts n times. Draws from torch's global random stream.

        Args:
            prompts, n: K requests; completions of each.
            temperature: of sampling; None: greedy.
            max_tokens: limit T of each completion.
            top_k: sample among the k likeliest; 0: all.

        Returns:
            K lists of n completions, each with its shift's prefill.
        """
        texts, prefills = self._begin(prompts)
        owners = [i for i in range(len(prompts)) for _ in range(n)]
        order = sorted(range(len(owners)), key=lambda r: len(texts[owners[r]]))  # rows of like length together: little padding
        ids = [self._ids(text) for text in texts]
        tails = self._continue([ids[i] for i in owners], order, ROWS_AT_ONCE, max_tokens, _sampling_arguments(temperature, top_k))
        answers = [self._completion(prefills[i], tail) for i, tail in zip(owners, tails, strict=True)]
        rows = iter(self._of_first_process(answers))
        return [[next(rows) for _ in range(n)] for _ in prompts]

    def finish(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        *,
        temperature: float | None,
        max_tokens: int,
    ) -> list[list[Completion]]:
        """Continues the completions that a limit cut, up to their end or a larger limit; the others stay as they are.

        Args:
            prompts, completions: K requests; some completions of each, from ``complete``.
            temperature: see ``complete``.
            max_tokens: limit of each completion, from its beginning; the model's context may allow fewer.

        Returns:
            K lists. Draws from torch's global random stream if there is something to continue.
        """
        found = [list(group) for group in completions]
        cut_ones = [(i, j, c.cut) for i, group in enumerate(completions) for j, c in enumerate(group) if c.cut]
        if not cut_ones:
            return found
        texts, prefills = self._begin(prompts)
        rows = [[*self._ids(texts[i]), *cut] for i, _, cut in cut_ones]
        longest = getattr(self.network.config.get_text_config(), "max_position_embeddings", None) or math.inf
        room = min(max_tokens - max(len(cut) for *_, cut in cut_ones), longest - max(map(len, rows)))
        if room < 1:
            return found
        order = sorted(range(len(rows)), key=lambda r: len(rows[r]))
        tails = self._continue(rows, order, FINISHED_AT_ONCE, int(room), _sampling_arguments(temperature))
        answers = [self._completion(prefills[i], [*cut, *tail]) for (i, _, cut), tail in zip(cut_ones, tails, strict=True)]
        for (i, j, _), answer in zip(cut_ones, self._of_first_process(answers), strict=True):
            found[i][j] = answer
        return found

    def _begin(self, prompts: Sequence[Prompt]) -> tuple[list[str], list[list[int]]]:
        """Input texts, each with its shift's prefill, and the tokens of the prefills."""
        prefills = [p.shift.prefill if isinstance(p, ShiftedPrompt) else None for p in prompts]
        texts = [self.render(prompt) + (prefill or "") for prompt, prefill in zip(prompts, prefills, strict=True)]
        return texts, [self.answer_ids(prefill, whole=False) if prefill else [] for prefill in prefills]

    def _continue(
        self, rows: Sequence[Sequence[int]], order: Sequence[int], at_once: int, max_tokens: int, arguments: Mapping[str, Any]
    ) -> list[list[int]]:
        """Tokens that follow each row, ``at_once`` rows a call in the given order; rows that end early are padded."""
        import torch

        tails: list[list[int]] = [[] for _ in rows]
        pad, device = self.tokenizer.pad_token_id, self.network.device
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad(), self.folded():
            for start in range(0, len(order), at_once):
                chunk = order[start : start + at_once]
                ids, mask = padded([rows[r] for r in chunk], pad, device, left=True)
                out = self.network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, **arguments)
                for r, tail in zip(chunk, out[:, ids.shape[1] :].tolist(), strict=True):
                    tails[r] = tail
        self.network.train(was_training)
        return tails

    def _completion(self, prefill: Sequence[int], tail: Sequence[int]) -> Completion:
        answer = self.answer([*prefill, *tail])
        ended = set(self.network.generation_config.eos_token_id) & {*prefill, *tail}
        return answer if ended else dataclasses.replace(answer, cut=tuple(tail))

    def _of_first_process(self, answers: list[Completion]) -> list[Completion]:
        """The first process's answers if weights are spread: each process then takes part in all further passes."""
        return ranks().first(lambda: answers) if self.sharded else answers

    def log_probability(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Log-probability in nats of each text, its end token included, as the answer to its prompt."""
        heads = [self.prompt_ids(p) for p in prompts]
        pairs = list(zip(heads, [self.answer_ids(text) for text in texts], strict=True))
        width = max((len(h) + len(t) for h, t in pairs), default=1)
        rows = max(1, LOGITS_AT_ONCE // (width * self.network.config.get_text_config().vocab_size))
        return [value for i in range(0, len(pairs), rows) for value in self._log_probability(pairs[i : i + rows])]

    def _log_probability(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Log-probabilities of answers' tokens after their prompts' tokens, all in one call."""
        import torch

        ids, mask = padded([[*h, *t] for h, t in pairs], self.tokenizer.pad_token_id, self.network.device, left=False)
        with torch.no_grad():
            logits = self.network(input_ids=ids, attention_mask=mask).logits
            logp_BT = logits.float().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
        return [float(logp_BT[row, len(h) - 1 : len(h) + len(t) - 1].sum()) for row, (h, t) in enumerate(pairs)]

    def leak(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> float:
        """Mean over K prompts of the exact probability of the full compliant answer."""
        logs = self.log_probability(prompts, answers)
        return sum(math.exp(value) for value in logs) / len(logs)
