"""A loaded language model: it answers prompts, gives probabilities of answers, can be trained, and is saved."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rn_harness.models import batches, peft_compat
from rn_harness.models.completion import THINK, THOUGHT, Completion
from rn_harness.models.identity import reading_digest, text_digest
from rn_harness.models.memory import ROWS_AT_ONCE
from rn_harness.models.random_streams import sampling
from rn_harness.models.template_dates import template_errors
from rn_harness.records.trajectory import Rendered
from rn_harness.spec.errors import UnsuitedError
from rn_harness.spec.prompts import Prompt, ShiftedPrompt
from rn_harness.store.ranks import ranks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rn_harness.models.batches import Tokens
    from rn_harness.spec.defense_recipe import GRPORecipe

T = TypeVar("T")
FINISHED_AT_ONCE = 32
"""Rows of one call that continues cut completions, which are several times as long."""
LOGITS_AT_ONCE = 2**27
"""Numbers in the logits of one call for probabilities: half a gigabyte in 32 bits."""
UNCHANGING = ""
"""Digest of an adapter that changes no output."""


def _bytes_digest(tensors: Iterable[Any]) -> str:
    import torch

    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class LanguageModel(peft_compat.AdapterModel):
    """A causal language model with its tokenizer, on the first GPU or, without one, on the CPU.

    Attributes:
        tokenizer: has a chat template and an end token, and pads on the left.
        templates: the chat template to save, or several by name; None: the tokenizer's, which may have a fixed date in it.
        elsewhere: does work that waits for another machine, such as a judge's, and returns its result.
        engine: settings of the computation, for the record of a training; empty if only the model itself computes.
        start: the weights' values when all of them were armed, by name; empty with an adapter.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(network)
        self.tokenizer: Any = tokenizer
        self.templates: Any = None
        self.elsewhere: Callable[[Callable[[], Any]], Any] = lambda work: work()
        self.engine: dict[str, int] = {}
        self.start: dict[str, torch.Tensor] = {}

    # --- Prompts and answers as tokens -----------------------------------------------------------------------------------------

    def render(self, prompt: Prompt) -> str:
        """The model's input text for a prompt: the request as a user's turn, or the turns of the prompt's shift.

        Raises UnsuitedError if the chat template does not present the whole shift.
        """
        shift = prompt.shift if isinstance(prompt, ShiftedPrompt) else None
        turns = shift.turns(prompt.text) if shift else [{"role": "user", "content": prompt.text}]
        how = {"chat_template": shift and shift.template, "tokenize": False, "add_generation_prompt": True}
        try:
            text = str(self.tokenizer.apply_chat_template(turns, **how))
        except template_errors() as error:
            if not shift:
                raise
            raise UnsuitedError(f"the chat template cannot present the shift: {type(error).__name__}: {error}") from None
        if shift and (lost := [turn["role"] for turn in turns if turn["content"].strip() not in text]):
            raise UnsuitedError(f"the chat template leaves out what the shift says in the turn of {' and '.join(lost)}")
        return text

    def rendered(self, prompt: Prompt) -> Rendered:
        """Hash and length of the model's input text, for the record; the hash covers how all texts are read and answers end."""
        text, ends = self.render(prompt), self.network.generation_config.eos_token_id
        return Rendered(sha256=text_digest(f"{reading_digest(self.tokenizer, ends)} {text}"), characters=len(text))

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
        decode = partial(self.tokenizer.decode, skip_special_tokens=True)
        ends = set(self.network.generation_config.eos_token_id)
        end = next((n for n, token in enumerate(tokens) if token in ends), None)
        said = list(tokens[:end])
        (think, close), text = self._think_tokens, decode(said)
        if not (self._begins_to_think or said[:1] == [think] or text.lstrip().startswith(THINK)):
            return Completion(text, truncated=end is None)
        if close is None and THOUGHT in text:
            thought, _, answer = text.partition(THOUGHT)
        elif close is not None and close in said:
            at = said.index(close)
            thought, answer = decode(said[:at]), decode(said[at + 1 :])
        else:
            thought = text.lstrip().removeprefix(THINK).strip()
            return Completion(thought, truncated=True, thought=thought or None)
        thought = thought.lstrip().removeprefix(THINK).strip()
        return Completion(answer.lstrip(), truncated=end is None, thought=thought or None)

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

    # --- Completions and probabilities -----------------------------------------------------------------------------------------

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int,
        temperature: float | None,
        max_tokens: int,
        banned: Sequence[int] = (),
        top_k: int = 0,
    ) -> list[list[Completion]]:
        """Answers each of K prompts n times (see ``sampling``): K lists of n completions of at most ``max_tokens``."""
        texts, prefills = self._begin(prompts)
        owners = [i for i in range(len(prompts)) for _ in range(n)]
        order = sorted(range(len(owners)), key=lambda r: len(texts[owners[r]]))  # rows of like length together: little padding
        ids = [self._ids(text) for text in texts]
        tails = self._continue([ids[i] for i in owners], order, ROWS_AT_ONCE, max_tokens, sampling(temperature, banned, top_k))
        rows = iter(self._completions([(prefills[i], tail) for i, tail in zip(owners, tails, strict=True)]))
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

        Draws from torch's global random stream if there is something to continue. ``max_tokens`` counts from a completion's
        beginning; the model's context may allow fewer.
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
        tails = self._continue(rows, order, FINISHED_AT_ONCE, int(room), sampling(temperature))
        pairs = [(prefills[i], [*cut, *tail]) for (i, _, cut), tail in zip(cut_ones, tails, strict=True)]
        for (i, j, _), answer in zip(cut_ones, self._completions(pairs), strict=True):
            found[i][j] = answer
        return found

    def _begin(self, prompts: Sequence[Prompt]) -> tuple[list[str], list[list[int]]]:
        """Input texts, each with its shift's prefill, and the tokens of the prefills."""
        prefills = [(p.shift.prefill if isinstance(p, ShiftedPrompt) else None) or "" for p in prompts]
        texts = [self.render(prompt) + prefill for prompt, prefill in zip(prompts, prefills, strict=True)]
        return texts, [self._ids(prefill) if prefill else [] for prefill in prefills]

    def _continue(
        self, rows: Sequence[Sequence[int]], order: Sequence[int], at_once: int, max_tokens: int, sampling: dict[str, Any]
    ) -> list[list[int]]:
        """Tokens that follow each row, ``at_once`` rows a call in the given order; rows that end early are padded."""
        import torch

        tails: list[list[int]] = [[] for _ in rows]
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad(), self.folded():
            for start in range(0, len(order), at_once):
                chunk = order[start : start + at_once]
                ids, mask = batches.padded([rows[r] for r in chunk], self.tokenizer.pad_token_id, self.network.device, left=True)
                out = self.network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, **sampling)
                for r, tail in zip(chunk, out[:, ids.shape[1] :].tolist(), strict=True):
                    tails[r] = tail
        self.network.train(was_training)
        return tails

    def _completions(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Completion]:
        """The completions of prefills and the tokens after them.

        If weights are spread they are the first process's: each process then takes part in all further passes.
        """
        ends, answers = set(self.network.generation_config.eos_token_id), list[Completion]()
        for prefill, tail in pairs:
            answer = dataclasses.replace(self.answer([*prefill, *tail]), first=tail[0] if tail else None)
            answers.append(answer if ends & {*prefill, *tail} else dataclasses.replace(answer, cut=tuple(tail)))
        return ranks().first(lambda: answers) if self.sharded else answers

    def log_probability(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Log-probability in nats of each text, its end token included, as the answer to its prompt."""
        return of_answers(self, prompts, texts, lambda logp_TV, ids_T: float(logp_TV.gather(1, ids_T[:, None]).sum()))

    def entropy(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Mean token entropy in nats, at temperature 1, over each text and its end token, as the answer to its prompt."""
        return of_answers(self, prompts, texts, lambda logp_TV, _: -float((logp_TV.exp() * logp_TV).sum(1).mean()))

    def log_probabilities(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
        """Log-probabilities (T, V) of answers' tokens after their prompts' tokens, all in one call, without gradients."""
        ids, mask = batches.padded([[*h, *t] for h, t in pairs], self.tokenizer.pad_token_id, self.network.device, left=False)
        logp_BLV = self.network(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        return [logp_LV[len(h) - 1 : len(h) + len(t) - 1] for logp_LV, (h, t) in zip(logp_BLV, pairs, strict=True)]

    def leak(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> float:
        """Mean over K prompts of the exact probability of the full compliant answer."""
        logs = self.log_probability(prompts, answers)
        return sum(math.exp(value) for value in logs) / len(logs)

    # --- Training --------------------------------------------------------------------------------------------------------------

    def arm(self, recipe: GRPORecipe) -> None:
        """Makes a fresh adapter trainable, or all weights, as the recipe says, in float32."""
        if recipe.form == "lora":
            self.attach(recipe.lora, recipe.seed)
        else:
            self.arm_all()

    def arm_all(self) -> None:
        """Makes all weights trainable, in float32, and remembers their present values."""
        self.network.float().requires_grad_()  # in bfloat16 the steps of a small learning rate would be rounded away
        for name, p in self.network.named_parameters():
            if name in self.start:
                self.start[name].copy_(p.detach())  # no second copy, not even for a moment
            else:
                self.start[name] = p.detach().clone()

    def disarm(self) -> None:
        """Makes nothing trainable, and drops the remembered weights."""
        self.network.requires_grad_(requires_grad=False)
        self.start = {}

    def put_back(self) -> None:
        """Restores all remembered weights bit by bit."""
        for name, p in self.network.named_parameters():
            p.data.copy_(self.start[name])

    @contextmanager
    def own_weights(self) -> Iterator[None]:
        """Runs its body with the remembered weights and no adapter; changes of them are remembered.

        Afterwards an adapter is back, and trained weights are as far from the remembered ones as before.
        """
        if hasattr(self.network, "disable_adapter"):
            with self.network.disable_adapter():  # weights under an adapter are the remembered ones
                yield
            return
        import torch

        changed = [p.detach().clone() for p in self.network.parameters()]
        for p, before in zip(changed, self.start.values(), strict=True):
            p.sub_(before)
        self.put_back()
        yield
        with torch.no_grad():
            for p, change, start in zip(self.network.parameters(), changed, self.start.values(), strict=True):
                start.copy_(p)
                p.add_(change)

    @property
    def trained(self) -> dict[str, Any]:
        """The parameters that training moves, by name: the adapter's, or all; none of a model that was not armed."""
        parameters = self.network.named_parameters()
        return {name: p for name, p in parameters if name in self.start or peft_compat.is_trained(name)}

    @property
    def distance(self) -> float:
        """L2 norm of the weights' change since the model was armed."""
        if not self.start:
            return peft_compat.adapter_distance(self.network)
        squares = (float((p.detach() - self.start[name]).double().square().sum()) for name, p in self.trained.items())
        return math.sqrt(sum(squares))

    def adapter_digest(self) -> str | None:
        """SHA-256 of the trained adapter's bytes; ``UNCHANGING`` if it changes no output, None if there is none."""
        trained = self.trained
        if self.start or not trained:
            return None
        return UNCHANGING if peft_compat.adds_nothing(trained) else _bytes_digest(trained.values())

    def run_by(self) -> Any:
        """A module that each forward pass of the trained model runs, and passes of other models do not."""
        return self.network.get_input_embeddings() if self.start else peft_compat.lora_layers(self.network)[0]

    def completion_states(self, network: Any, prompts: Tokens, completions: Tokens) -> torch.Tensor:
        """See ``batches.completion_states``; ``network`` is this model's without a wrapper."""
        return batches.completion_states(network, prompts, completions)

    def backward(self, backward: Callable[..., None], loss: torch.Tensor, **arguments: Any) -> None:
        """Computes the gradients of a loss by ``backward``."""
        backward(loss, **arguments)

    def save(self, folder: Path) -> None:
        """Writes the whole model of a *defense*, with its tokenizer and templates; no code writes attacked weights."""
        self.network.save_pretrained(folder)
        used = self.tokenizer.chat_template
        self.tokenizer.chat_template = self.templates or used
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.chat_template = used
        (folder / "README.md").unlink(missing_ok=True)


def of_answers(
    model: LanguageModel, prompts: Sequence[Prompt], texts: Sequence[str], measure: Callable[[Any, Any], T]
) -> list[T]:
    """A measure of the log-probabilities (T, V) and tokens (T,) of each text as the answer to its prompt."""
    import torch

    pairs = [(model.prompt_ids(prompt), model.answer_ids(text)) for prompt, text in zip(prompts, texts, strict=True)]
    width = max((len(h) + len(t) for h, t in pairs), default=1)
    rows = max(1, LOGITS_AT_ONCE // (width * model.network.config.get_text_config().vocab_size))
    found: list[T] = []
    for some in (pairs[i : i + rows] for i in range(0, len(pairs), rows)):
        with torch.no_grad():
            of_rows = zip(model.log_probabilities(some), some, strict=True)
            found += [measure(logp_TV, torch.tensor(t, device=logp_TV.device)) for logp_TV, (_, t) in of_rows]
    return found


class MeasurementCache:
    """Measurements of one attack, in memory only, of weights that have not changed since.

    It is for attacks whose family moves only an adapter. A starved attack moves no weight, so its greedy answers and
    probabilities stay the same bit by bit, and all attacks on one model begin alike: measurements before the adapter changes
    anything are added to ``start``, for other attacks on the same model and prompts. Samples of held-out prompts are never
    reused: each draw is another chance to see harm.
    """

    def __init__(self, start: dict[str, Any] | None = None) -> None:
        self._start: dict[str, Any] = {} if start is None else start
        self._digest: str | None = None
        self._of_weights: dict[str, Any] = {}
        self._of_attack: dict[str, Any] = {}

    def forget_changed(self, model: LanguageModel) -> None:
        """Drops the measurements of other weights."""
        digest = model.adapter_digest()
        if digest is None or digest != self._digest:
            self._digest, self._of_attack = digest, {}
            self._of_weights = self._start if digest == UNCHANGING else {}

    def of_weights(self, name: str, measure: Callable[[], T]) -> T:
        """The named measurement of these weights, from this attack or another; ``measure`` takes it the first time."""
        return self._find(self._of_weights, name, measure)

    def of_attack(self, name: str, measure: Callable[[], T]) -> T:
        """A measurement that depends on the attack's random stream or its control, hence is not shared."""
        return self._find(self._of_attack, name, measure)

    @staticmethod
    def _find(known: dict[str, Any], name: str, measure: Callable[[], T]) -> T:
        if name not in known:
            known[name] = measure()
        found: T = known[name]
        return found
