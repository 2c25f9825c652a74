"""A loaded language model: rendering, sampling, probabilities, adapters.

The only place that knows transformers and peft. Texts of completions pass through here and are kept nowhere.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # to catch it
from typing import TYPE_CHECKING, Any, cast

from rn_harness.records.trajectory import Rendered
from rn_harness.spec.errors import CandidateError, UnsuitedError
from rn_harness.spec.prompts import TODAY, Prompt, ShiftedPrompt
from rn_harness.store.ranks import ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rn_harness.spec.defense_recipe import GRPORecipe, LoRA

ROWS_AT_ONCE = 256
"""Rows of one generation call; bounds the memory of the key-value cache."""
FINISHED_AT_ONCE = 32
"""Rows of one call that goes on with completions which a limit cut; they are several times as long."""
LOGITS_AT_ONCE = 2**27
"""Numbers in the logits of one call for probabilities: half a gigabyte in 32 bits."""


DEFENSE, TRAINED = "defense", "default"
"""What peft knows an adapter by: that of a defense which stays beside 4-bit weights, and that which is trained."""
UNCHANGING = ""
"""Digest of an adapter that changes no output."""
THINK, THOUGHT = "<think>", "</think>"
"""What models put around a think part."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, in memory only.

    Attributes:
        text: the answer, without special tokens and without a think part.
        truncated: it reached the token limit without ending, or while it still thought.
        thought: its think part; None if it has none, or an empty one. A think part that does not end is the answer too.
        cut: its tokens, where it reached the limit without an end token, so that it can be gone on with; else none.
    """

    text: str
    truncated: bool
    thought: str | None = None
    cut: tuple[int, ...] = field(default=(), compare=False)

    @property
    def looks(self) -> tuple[str, ...]:
        """The texts that a judge has to see: the answer first; then the think part, and both together, where there is one.

        Harm may be in one of them, or split over both.
        """
        if self.thought in (None, self.text):
            return (self.text,)
        return (self.text, self.thought, f"{self.thought}\n{self.text}")

    def __repr__(self) -> str:
        """No text: assertion rewriting and ``--showlocals`` print what stands here."""
        return f"Completion(<{len(self.text)} characters>, truncated={self.truncated})"


def _sampling(temperature: float | None, top_k: int) -> dict[str, Any]:
    """Arguments of transformers' ``generate`` for this temperature; None: greedy."""
    if temperature is None:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": 1.0}


def quiet_libraries() -> None:
    """Switches off network, telemetry, progress bars and advice of the libraries below us.

    The variables are for the processes below ours; the hub's client reads them once, when somebody imports it first.
    """
    os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "1")
    # On a CPU it advises a package that fetches code from the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with known_deprecations():
        import datasets
        import huggingface_hub
        import peft  # noqa: F401  (loads bitsandbytes where it is installed)
        import transformers

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    _settle()


def without_date(template: str) -> str:
    """A chat template to which it is always the same day: what it writes does not change from run to run."""
    if "strftime_now" not in template:
        return template
    return f"{{%- macro strftime_now(format) -%}}{TODAY}{{%- endmacro -%}}{template}"


@cache
def _settle() -> None:
    """Takes what the libraries brought out of garbage collection: half a million objects that stay, looked through each time.

    Once, before there is a model: what is frozen and in a cycle is never freed, hence not what others left behind by then.
    """
    gc.collect()
    gc.freeze()


def check_whole(loaded: Mapping[str, Any]) -> None:
    """Makes sure that the files held all weights: transformers draws missing ones by chance, each time others under one digest.

    Args:
        loaded: what transformers tells of its loading.

    Raises:
        ValueError: some are missing.
    """
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"no {missing[0]}, the first of {len(missing)} missing tensors that the configuration asks for")


@contextmanager
def known_deprecations() -> Iterator[None]:
    """Keeps two warnings from users.

    TRL 1.16, peft 0.21 and accelerate 1.15 use transformers' old names for checkpointing; bitsandbytes 0.50 loads what torch will
    drop.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


class LanguageModel:
    """A causal language model with its tokenizer, on the first GPU or, without one, on the CPU.

    Attributes:
        network: transformers model, possibly wrapped by peft.
        tokenizer: with a chat template and an end token; pads on the left.
        templates: the chat template that is handed on with the weights, or several by name; the tokenizer's may tell a date.
            None: the tokenizer's is handed on.
        engine: what computes it, for the record of a training; empty where nothing but itself does.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.network: Any = network
        self.tokenizer: Any = tokenizer
        self.templates: Any = None
        self.engine: dict[str, int] = {}
        self._start: dict[str, torch.Tensor] = {}
        self._layers: list[Any] = []
        self._layers_of: Any = None

    @classmethod
    def load(
        cls,
        folder: Path,
        threads: int,
        *,
        dtype: str | None = None,
        quantised: str | None = None,
        shards: int = 1,
        gguf: str | None = None,
        ends: Sequence[int] = (),
        chat_template: str | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> LanguageModel:
        """Loads weights and tokenizer from a local folder; no code of the folder is run unless that is asked for.

        Args:
            folder: of the model.
            threads: CPU threads.
            dtype: torch's name of the number format; None: as the files say.
            quantised: 4-bit format of the layers' linear maps, ``nf4``, which then compute in ``dtype``; None: plain numbers.
            shards: processes that the weights are spread over (FSDP2), of which each calls this; 1: they are whole.
            gguf: name of the GGUF file in it; None: its safetensors.
            ends: tokens that end an answer beside those that its settings and its tokenizer name.
            chat_template: takes the place of the tokenizer's own; None: its own.
            allow_pickle: the weights are pickles.
            trust_remote_code: run the folder's code.

        Raises:
            CandidateError: the files cannot be read as a causal language model, or its tokenizer has no end token.
        """
        quiet_libraries()
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

        torch.set_num_threads(threads)
        on = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"  # each process of a run has its own
        # What a file that does not fit its own header, and a pickle of another shape, come to.
        unfit = (*((RuntimeError,) if gguf else ()), *((TypeError, AttributeError) if allow_pickle else ()))
        try:
            how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code, "gguf_file": gguf}
            # Where nothing is said, a GGUF file's weights stay packed, or count as packed: no trainer takes such a model.
            weights: dict[str, Any] = (
                {"quantization_config": GgufConfig(dequantize=True)} if gguf else {"use_safetensors": not allow_pickle}
            )
            if quantised:
                weights |= {"quantization_config": _four_bits(quantised, dtype), "device_map": {"": on}}
            if shards > 1:
                weights |= {"distributed_config": _spread(shards)}
            with known_deprecations():
                network, loaded = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a local folder
                    folder, dtype=dtype or "auto", output_loading_info=True, **weights, **how
                )
            check_whole(loaded)
            tokenizer = AutoTokenizer.from_pretrained(folder, **how)  # nosec B615 # a local folder
        except UnpicklingError as error:
            raise _more_than_numbers(folder, error) from None  # torch's own advice is to run what it refused
        except (OSError, ValueError, KeyError, ImportError, SafetensorError, *unfit) as error:
            raise CandidateError(
                f"the files must hold a causal language model that transformers reads, got {(folder / (gguf or '')).resolve()}: "
                f"{type(error).__name__}: {error}; copy them again, or export them again with save_pretrained"
            ) from error
        if tokenizer.eos_token_id is None:
            raise CandidateError(f"a tokenizer must have an end token, got none in folder={folder}; set its eos_token")
        templates = chat_template or tokenizer.chat_template
        template = templates["default"] if isinstance(templates, dict) else templates  # the default one of several is used
        tokenizer.chat_template = without_date(template)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= network.get_input_embeddings().num_embeddings:
            tokenizer.pad_token = tokenizer.eos_token
        named = network.generation_config.eos_token_id
        ends = sorted({*ends, *(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None})
        # Without what else the model ships: a penalty, or top-k, would count wherever TRL or we state none of our own.
        network.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
        )
        # transformers hands over the last position as a slice, for which torch would copy the whole layer once for each row.
        network.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
        for layer in _four_bit_layers(network):
            # On some CPUs the first evaluation would pack the weights anew for a product in bfloat16, which has no gradient.
            layer.support_avx512bf16_for_cpu = False
        if shards == 1:
            model = cls(network.eval().to(on), tokenizer)
        else:
            _check_spread(network)
            # Frozen before the first pass: what torch gathers then stays trainable, whatever is said of the parts later.
            model = cls(network.eval().requires_grad_(requires_grad=False), tokenizer)
            model.engine = {"shards": shards}
        model.templates = templates
        return model

    def render(self, prompt: Prompt) -> str:
        """The text that the model is given for a prompt: its chat template with the request as the user's turn, or its shift.

        Raises:
            UnsuitedError: the template does not present what the prompt's shift says.
        """
        if not isinstance(prompt, ShiftedPrompt):
            return self._present([{"role": "user", "content": prompt.text}])
        import jinja2

        turns = prompt.shift.turns(prompt.text)
        try:
            text = self._present(turns, prompt.shift.template)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise UnsuitedError(f"the chat template cannot present the shift: {type(error).__name__}: {error}") from None
        if lost := [turn["role"] for turn in turns if turn["content"].strip() not in text]:
            raise UnsuitedError(f"the chat template leaves out what the shift says in the turn of {' and '.join(lost)}")
        return text

    def _present(self, turns: Sequence[Mapping[str, str]], template: str | None = None) -> str:
        """Turns as the template writes them, up to where the answer begins."""
        text = self.tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
        return str(text)

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        n: int,
        temperature: float | None,
        max_tokens: int,
        top_k: int = 0,
    ) -> list[list[Completion]]:
        """Answers each of K prompts n times.

        Args:
            prompts: K requests.
            n: completions of each.
            temperature: of sampling; None: greedy.
            max_tokens: limit T of each completion.
            top_k: sample among the k likeliest; 0: all.

        Returns:
            K lists of n completions, each with what a shift makes it begin with. Draws from torch's global random stream.
        """
        texts, heads = self._begun(prompts)
        owners = [i for i in range(len(prompts)) for _ in range(n)]
        order = sorted(range(len(owners)), key=lambda r: len(texts[owners[r]]))  # rows of like length together: little padding
        ids = [self._ids(text) for text in texts]
        how = _sampling(temperature, top_k)
        tails = self._tails([ids[i] for i in owners], order, ROWS_AT_ONCE, max_tokens, how)
        answers = iter(self._same([self._answer(heads[i], tail) for i, tail in zip(owners, tails, strict=True)]))
        return [[next(answers) for _ in range(n)] for _ in prompts]

    def finish(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        *,
        temperature: float | None,
        max_tokens: int,
    ) -> list[list[Completion]]:
        """Goes on with the completions that a limit cut, up to their end or a larger limit; the others stay as they are.

        Args:
            prompts: K requests.
            completions: some of each, from ``complete``.
            temperature: see ``complete``.
            max_tokens: limit of each completion, from its beginning; the model's context may allow fewer.

        Returns:
            K lists. Draws from torch's global random stream where there is something to go on with.
        """
        found = [list(of) for of in completions]
        open_ones = [(i, j, c.cut) for i, of in enumerate(completions) for j, c in enumerate(of) if c.cut]
        if not open_ones:
            return found
        texts, heads = self._begun(prompts)
        rows = [[*self._ids(texts[i]), *cut] for i, _, cut in open_ones]
        longest = getattr(self.network.config.get_text_config(), "max_position_embeddings", None) or math.inf
        room = min(max_tokens - max(len(cut) for *_, cut in open_ones), longest - max(map(len, rows)))
        if room < 1:
            return found
        order = sorted(range(len(rows)), key=lambda r: len(rows[r]))
        tails = self._tails(rows, order, FINISHED_AT_ONCE, int(room), _sampling(temperature, 0))
        answers = [self._answer(heads[i], [*cut, *tail]) for (i, _, cut), tail in zip(open_ones, tails, strict=True)]
        for (i, j, _), answer in zip(open_ones, self._same(answers), strict=True):
            found[i][j] = answer
        return found

    def _begun(self, prompts: Sequence[Prompt]) -> tuple[list[str], list[list[int]]]:
        """What the model is given for each prompt, with what a shift makes the answer begin with; and that beginning's tokens."""
        begun = [p.shift.prefill if isinstance(p, ShiftedPrompt) else None for p in prompts]
        texts = [self.render(prompt) + (begin or "") for prompt, begin in zip(prompts, begun, strict=True)]
        return texts, [self.answer_ids(begin, whole=False) if begin else [] for begin in begun]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tails(
        self, rows: Sequence[Sequence[int]], order: Sequence[int], at_once: int, max_tokens: int, how: Mapping[str, Any]
    ) -> list[list[int]]:
        """Tokens that follow each row, in calls of so many rows in this order; rows that have ended are filled up."""
        import torch

        tails: list[list[int]] = [[] for _ in rows]
        pad, device = self.tokenizer.pad_token_id, self.network.device
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad(), self.folded():
            for start in range(0, len(order), at_once):
                chunk = order[start : start + at_once]
                width = max(len(rows[r]) for r in chunk)
                fills = [width - len(rows[r]) for r in chunk]
                ids = torch.tensor([[*[pad] * fill, *rows[r]] for r, fill in zip(chunk, fills, strict=True)])
                mask = torch.tensor([[0] * fill + [1] * (width - fill) for fill in fills])
                out = self.network.generate(
                    input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=max_tokens, **how
                )
                for r, tail in zip(chunk, out[:, width:].tolist(), strict=True):
                    tails[r] = tail
        self.network.train(was_training)
        return tails

    def _answer(self, head: Sequence[int], tail: Sequence[int]) -> Completion:
        """The completion that was begun so and went on so."""
        answer = self.answer([*head, *tail])
        ended = set(self.network.generation_config.eos_token_id) & {*head, *tail}
        return answer if ended else dataclasses.replace(answer, cut=tuple(tail))

    def _same(self, answers: list[Completion]) -> list[Completion]:
        """The first process's: each takes part in all that the others compute, so that what follows has to be the same on all."""
        return ranks().first(lambda: answers) if self.sharded else answers

    def answer(self, tokens: Sequence[int]) -> Completion:
        """The tokens of a completion as text, up to the first end token: the answer, and the think part that it begins with.

        A think part is what the template opened, or what a completion opens at its very start, up to the first end of thought.
        All else is the answer, think tags or not. A think part that does not end counts as cut off, and is the answer too.
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
        """The tokens that begin and end a think part; None where the vocabulary has none: it is copied whole, hence once."""
        vocabulary = self.tokenizer.get_vocab()
        return vocabulary.get(THINK), vocabulary.get(THOUGHT)

    @cached_property
    def _begins_to_think(self) -> bool:
        """Whether the template begins a think part and does not end it."""
        rendered = self.render(Prompt(id="any", topic="any", text="any"))
        return rendered.rfind(THINK) > rendered.rfind(THOUGHT)

    def rendered(self, prompt: Prompt) -> Rendered:
        """What the model is given for a prompt, for the record: hash and length of the text."""
        text = self.render(prompt)
        return Rendered(sha256=hashlib.sha256(text.encode()).hexdigest(), characters=len(text))

    def log_probability(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """Log-probability in nats of each text, its end token included, as the answer to its prompt."""
        heads = [self.prompt_ids(p) for p in prompts]
        pairs = list(zip(heads, [self.answer_ids(text) for text in texts], strict=True))
        width = max((len(h) + len(t) for h, t in pairs), default=1)
        rows = max(1, LOGITS_AT_ONCE // (width * self.network.config.get_text_config().vocab_size))
        return [value for i in range(0, len(pairs), rows) for value in self._log_probability(pairs[i : i + rows])]

    def token_count(self, text: str) -> int:
        """Tokens of a text as an answer, its end token included."""
        return len(self.answer_ids(text))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Tokens that the model is given for a prompt."""
        return list(self.tokenizer(self.render(prompt), add_special_tokens=False)["input_ids"])

    def answer_ids(self, text: str, *, whole: bool = True) -> list[int]:
        """Tokens of a text as an answer; with its end token, unless it is only the beginning of one."""
        tokens = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*tokens, self.tokenizer.eos_token_id] if whole else tokens

    def _log_probability(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """Of the tokens of each answer after those of its prompt, all in one call."""
        import torch

        width = max(len(h) + len(t) for h, t in pairs)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*h, *t, *[pad] * (width - len(h) - len(t))] for h, t in pairs])
        mask = torch.tensor([[1] * (len(h) + len(t)) + [0] * (width - len(h) - len(t)) for h, t in pairs])
        with torch.no_grad():
            device = self.network.device
            logits = self.network(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            logp_BT = logits.float().log_softmax(-1)[:, :-1].gather(2, ids.to(device)[:, 1:, None])[:, :, 0]
        return [float(logp_BT[row, len(h) - 1 : len(h) + len(t) - 1].sum()) for row, (h, t) in enumerate(pairs)]

    def completion_states(
        self, network: Any, prompts: tuple[torch.Tensor, torch.Tensor], completions: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """See ``completion_states``; of ``network``, which is this model's without a wrapper."""
        return completion_states(network, prompts, completions)

    def backward(self, backward: Callable[..., None], loss: torch.Tensor, **how: Any) -> None:
        """Gradients of a loss, by ``backward``."""
        backward(loss, **how)

    def leak(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> float:
        """Mean over K prompts of the exact probability of the full compliant answer."""
        logs = self.log_probability(prompts, answers)
        return sum(math.exp(value) for value in logs) / len(logs)

    def arm(self, recipe: GRPORecipe) -> None:
        """Makes trainable what the recipe trains: a fresh adapter, or all weights, in float32."""
        if recipe.form == "lora":
            self.attach(recipe.lora, recipe.seed)
            return
        self.arm_all()

    def arm_all(self) -> None:
        """Makes all weights trainable, in float32, and remembers them; armed again, it remembers them as they are by then."""
        self.network.float().requires_grad_()  # in bfloat16 the steps of a small learning rate would be rounded away
        for name, p in self.network.named_parameters():
            if name in self._start:
                self._start[name].copy_(p.detach())  # no second copy, not even for a moment
            else:
                self._start[name] = p.detach().clone()

    def disarm(self) -> None:
        """Forgets what is remembered: nothing is trained any more, and the copy is gone."""
        self.network.requires_grad_(requires_grad=False)
        self._start = {}

    def put_back(self) -> None:
        """Puts all weights back to what is remembered of them, bit by bit."""
        for name, p in self.network.named_parameters():
            p.data.copy_(self._start[name])

    @contextmanager
    def own_weights(self) -> Iterator[None]:
        """Runs its body with the weights that are remembered, and no adapter; what it changes of them is remembered.

        Afterwards an adapter is back, and weights that had been trained are as far from the remembered ones as before.
        """
        plain = getattr(self.network, "disable_adapter", None)
        if plain is not None:  # weights under an adapter are the remembered ones
            with plain():
                yield
            return
        import torch

        changed = [p.detach().clone() for p in self.network.parameters()]
        for p, before in zip(changed, self._start.values(), strict=True):
            p.sub_(before)
        self.put_back()
        yield
        with torch.no_grad():
            for p, change, of in zip(self.network.parameters(), changed, self._start.values(), strict=True):
                of.copy_(p)
                p.add_(change)

    def detach(self) -> None:
        """Takes the adapter off, without folding it in."""
        self.network = self.network.unload()

    @property
    def trained(self) -> dict[str, Any]:
        """What training moves, by name: the adapter's parameters, or all; nothing of a model that was not armed."""
        adapter = f".{TRAINED}."
        return {name: p for name, p in self.network.named_parameters() if name in self._start or adapter in name}

    @property
    def distance(self) -> float:
        """L2 norm of the weights' change since the model was armed: how far training moved it."""
        if not self._start:
            return self.adapter_distance()
        squares = (float((p.detach() - self._start[name]).double().square().sum()) for name, p in self.trained.items())
        return math.sqrt(sum(squares))

    def adapter_digest(self) -> str | None:
        """SHA-256 of the adapter that is trained, bit by bit; of one that changes no output ``held.UNCHANGING``, None of none."""
        import torch

        trained = self.trained
        if self._start or not trained:
            return None
        if not any(p.any() for name, p in trained.items() if "lora_A" not in name):
            return UNCHANGING
        digest = hashlib.sha256()
        for p in trained.values():
            digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def run_by(self) -> Any:
        """A module that every forward pass of the trained model runs, and that of another model does not."""
        if self._start:
            return self.network.get_input_embeddings()
        return next(m for m in self.network.modules() if hasattr(m, "lora_A"))

    def attach(self, lora: LoRA, seed: int) -> None:
        """Puts a fresh adapter on all linear layers, drawn by the seed; its start changes no output.

        A defense that stays beside 4-bit weights keeps its place, frozen, and the fresh adapter is added to it.
        """
        from peft import LoraConfig, PeftModel, get_peft_model

        config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        with own_random_stream(seed), known_deprecations():
            if not isinstance(self.network, PeftModel):
                self.network = get_peft_model(self.network, config, TRAINED)
                return
            self.network.add_adapter(TRAINED, config)
            self._layers_of = None  # it may be on more layers than the other
        self.network.base_model.set_adapter([DEFENSE, TRAINED])
        for name, p in self.network.named_parameters():
            p.requires_grad_(f".{TRAINED}." in name)

    @property
    def quantised(self) -> bool:
        """Whether its linear maps are in 4 bits, which no adapter can be folded into without rounding."""
        return any(True for _ in _four_bit_layers(self.network))

    @property
    def sharded(self) -> bool:
        """Whether its weights are spread over processes; adapters are not, each process has them whole."""
        return bool(getattr(self.network, "is_distributed_loading_by_transformers", False))

    def merge(self) -> None:
        """Folds the adapter into the weights and drops the wrapper."""
        if self.sharded:
            for layer in self._adapted():
                _fold_into_shard(layer)
            self.network = self.network.unload()
        else:
            self.network = self.network.merge_and_unload()
        self.network.eval()

    def merge_from(self, adapter: Path) -> None:
        """Loads an adapter from a folder and folds it into the weights; beside 4-bit weights, which would round it, it stays.

        Raises:
            CandidateError: the adapter does not fit this model.
        """
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
        from safetensors import SafetensorError

        try:
            with known_deprecations():
                self.network = PeftModel.from_pretrained(self.network, adapter, DEFENSE, local_files_only=True)
                there = get_peft_model_state_dict(self.network, adapter_name=DEFENSE, save_embedding_layers=False)
                given = load_peft_weights(str(adapter), device="cpu")
        except UnpicklingError as error:
            raise _more_than_numbers(adapter, error) from None
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise _unfitting(adapter, type(error).__name__) from error
        # peft leaves out what has no place, and leaves at its start what the file lacks.
        if lost := sorted(name for name in there.keys() ^ given.keys() if "lora_" in name):
            raise _unfitting(adapter, f"{len(lost)} parts are in one of the two alone, the first is {lost[0]}")
        if self.quantised:
            self.network.eval()
        else:
            self.merge()

    def save_adapter(self, folder: Path, base: str) -> None:
        """Writes the adapter of a *defense*; attacked weights have no such path.

        peft would write the base's path on this machine, the target modules in an order that changes from process to process,
        and a card without content: the same weights would then have another digest each time.

        Args:
            folder: gets ``adapter_model.safetensors`` and ``adapter_config.json``.
            base: name and digest of the model that the adapter belongs to.
        """
        config = self.network.peft_config["default"]
        config.base_model_name_or_path = base
        config.target_modules = sorted(config.target_modules)
        adapter = {name: p.detach() for name, p in self.trained.items()}  # of all weights peft would gather those that are spread
        # No embedding is trained ("auto" asks the hub about the base); beside a KL penalty TRL leaves an adapter of its own.
        self.network.save_pretrained(folder, save_embedding_layers=False, state_dict=adapter, selected_adapters=[TRAINED])
        (folder / "README.md").unlink(missing_ok=True)

    def save(self, folder: Path) -> None:
        """Writes the whole model of a *defense*, with its tokenizer and templates; attacked weights have no such path."""
        self.network.save_pretrained(folder)
        used = self.tokenizer.chat_template
        self.tokenizer.chat_template = self.templates or used
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.chat_template = used
        (folder / "README.md").unlink(missing_ok=True)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Runs its body with the adapter folded into the weights: sampling then costs no extra products.

        The weights are put back bit by bit, so that nothing drifts. Probabilities agree with the unfolded network's up to
        rounding. Weights of less than float32, and of 4 bits, are left alone: what an adapter learns in a few steps is smaller
        than half of their last digit and would be rounded away, so that the policy which is sampled would not be the one that is
        trained. There the adapter's two products are merely done in the precision that the weights compute in, without peft's
        casts. So they are where weights are spread over processes.
        """
        import torch

        # What is switched off adds nothing, and into an embedding, which may be the output layer too, nothing is folded.
        adapted = [layer for layer in self._adapted() if not (layer.disable_adapters or layer.lora_embedding_A)]
        layers = [] if self.sharded else [of for of in adapted if of.get_base_layer().weight.dtype == torch.float32]
        low = [of for of in adapted if of not in layers and _is_plain(of)]
        moved = [layer for layer in layers if not _is_plain(layer) or any(B.weight.any() for B in layer.lora_B.values())]
        with _put_back(moved):
            for layer in moved:
                layer.merge()
            for layer in layers:
                layer.forward = layer.get_base_layer().__call__  # with its hooks
            for layer in low:
                layer.forward = _without_casts(layer)
            try:
                yield
            finally:
                for layer in (*layers, *low):
                    del layer.forward

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Runs its body, which may fold adapters into the weights, and puts those back bit by bit.

        To take an adapter's change off again, as TRL does for vLLM, leaves them rounded: over hundreds of steps they drift.
        """
        with _put_back(self._adapted()):
            yield

    def _adapted(self) -> list[Any]:
        """The layers with adapters that are not folded in."""
        if self._layers_of is not self.network:
            self._layers_of, self._layers = self.network, [m for m in self.network.modules() if hasattr(m, "lora_A")]
        return [layer for layer in self._layers if not layer.merged]

    def adapter_distance(self) -> float:
        """L2 norm of the adapter's change of the weights, ``sqrt(sum ||s B A||^2)``: how far training moved it."""
        import torch

        total = 0.0
        for module in self.network.modules():
            if hasattr(module, "lora_A") and TRAINED in module.lora_A:
                A = module.lora_A[TRAINED].weight.detach().double()
                B = module.lora_B[TRAINED].weight.detach().double()
                scale = module.scaling[TRAINED]
                total += scale**2 * float(torch.sum((B.T @ B) * (A @ A.T)))  # tr(B'B AA') = ||BA||^2
        return math.sqrt(max(total, 0.0))


@contextmanager
def _put_back(layers: Sequence[Any]) -> Iterator[None]:
    """Puts the weights of layers with adapters back bit by bit, and leaves no adapter folded in."""
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()


def _more_than_numbers(folder: Path, error: UnpicklingError) -> CandidateError:
    """What torch refuses in a pickle, without its advice to run it all the same."""
    found = re.search(r"(?:GLOBAL|type) (\S+)", str(error))
    return CandidateError(
        f"pickled weights must hold tensors alone, got {found[1] if found else 'something else'} in a pickle in {folder}, and "
        "nothing of it was run; save the weights as safetensors where they come from"
    )


def _unfitting(adapter: Path, why: str) -> CandidateError:
    return CandidateError(
        f"an adapter must fit the candidate, got adapter={adapter}: {why}; pass the base that it was trained on as --model, or "
        "copy the adapter again"
    )


def _without_casts(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward pass of a linear layer with its adapters as they stand now, all in the precision that it computes in.

    The products of several adapters are those of one whose rank is the sum of theirs. One that changes nothing is left out: its
    rank alone could round the product of another beside it differently.
    """
    import torch

    base = layer.get_base_layer()
    number = getattr(base, "compute_dtype", None) or base.weight.dtype
    active = [name for name in layer.active_adapters if name in layer.lora_A and layer.lora_B[name].weight.any()]
    if not active:
        return cast("Callable[[torch.Tensor], torch.Tensor]", base.__call__)
    A = torch.cat([layer.lora_A[name].weight.detach().to(number) for name in active])
    scaled = [layer.scaling[name] * layer.lora_B[name].weight.detach() for name in active]
    B = torch.cat(scaled, 1).to(number).t().contiguous()

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = base(x)
        return torch.addmm(y.flatten(0, -2), torch.nn.functional.linear(x, A).flatten(0, -2), B).view_as(y)

    return forward


def _fold_into_shard(layer: Any) -> None:
    """Adds what a layer's adapter changes to this process's part of its weights, as peft does to the whole.

    Raises:
        CandidateError: the adapter is more than two products.
    """
    from torch.distributed.tensor import distribute_tensor

    if not _is_plain(layer):
        raise CandidateError(
            "an adapter that is folded into weights which are spread over processes must be plain LoRA, got one with a bias or a "
            "variant of it; leave out --rn-shard"
        )
    weight = layer.get_base_layer().weight
    for name in layer.active_adapters:
        change = layer.get_delta_weight(name).detach()
        weight.data += distribute_tensor(change, weight.device_mesh, weight.placements, src_data_rank=None)


def _is_plain(layer: Any) -> bool:
    """Whether a layer's adapters are two products each and no more, as all of ours are; a defense from elsewhere may not be."""
    return not layer.lora_variant and not any(layer.lora_bias.values())


def _four_bits(kind: str, dtype: str | None) -> Any:
    """How transformers is told to load linear maps in 4 bits, their constants quantised too (arXiv 2305.14314)."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype or "float32"),
    )


def _spread(processes: int) -> Any:
    """How transformers is told to spread a model's weights over all processes, each of which reads its own part of the files."""
    from transformers.distributed import DistributedConfig

    ranks().connect()
    _mesh_once()
    return DistributedConfig(fsdp_size=processes)


def _check_spread(network: Any) -> None:
    """Makes sure that weights are spread layer by layer: else all of them would be gathered at once, which no plan counts on.

    Raises:
        CandidateError: transformers does not know this architecture's layers.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule

    lists = (module for module in network.modules() if isinstance(module, torch.nn.ModuleList))
    count = network.config.get_text_config().num_hidden_layers
    if not any(len(of) == count and all(isinstance(layer, FSDPModule) for layer in of) for of in lists):
        raise CandidateError(
            f"weights are spread layer by layer, got {type(network).__name__}, of whose {count} layers transformers has no plan; "
            "leave out --rn-shard"
        )


@cache
def _mesh_once() -> None:
    """Has transformers 5.23 connect the processes once; for each model anew, it leaves 24 open files and 18 threads behind."""
    from transformers.distributed import mixin

    make, made = mixin.initialize_distributed_mesh, list[Any]()

    def once(config: Any) -> Any:
        if not made:
            made.append(make(config))
        return made[0]

    mixin.initialize_distributed_mesh = once


def _four_bit_layers(network: Any) -> Iterator[Any]:
    """The linear maps in 4 bits, adapters or none around them."""
    return (module for module in network.modules() if hasattr(module, "quant_state") and hasattr(module, "compute_dtype"))


def completion_log_probabilities(
    states: torch.Tensor,
    output: Any,
    completions: tuple[torch.Tensor, torch.Tensor],
    score: Callable[[torch.Tensor, Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``score`` gives for each token of B completions, with gradients; the output layer sees completion tokens only.

    Args:
        states: that tell the tokens (B, T, H), as ``completion_states`` gives them.
        output: the output layer.
        completions: token ids (B, T), padded on the right, and their mask.
        score: from hidden states (N, H), the output layer and target ids (N,) to two numbers (N,) each.

    Returns:
        Both numbers (B, T); 0 where a completion is padding.
    """
    ids, mask = completions
    wanted = mask.bool()
    one, other = score(states[wanted], output, ids[wanted])
    return one.new_zeros(mask.shape).masked_scatter(wanted, one), other.new_zeros(mask.shape).masked_scatter(wanted, other)


def completion_states(
    network: PreTrainedModel,
    prompts: tuple[torch.Tensor, torch.Tensor],
    completions: tuple[torch.Tensor, torch.Tensor],
    owners: torch.Tensor | None = None,
    begin: Callable[[torch.Tensor], None] = lambda _: None,
) -> torch.Tensor:
    """The last hidden states before each token of B completions (B, T, H), with gradients; rows of one prompt share its pass.

    A group's G rows have one prompt: its keys and values are computed once and not G times. In exact arithmetic the result is
    that of the whole rows.

    Args:
        network: causal language model, without a wrapper, for which ``shares_prompts`` holds.
        prompts: token ids (B, L), padded on the left, and their mask.
        completions: token ids (B, T), padded on the right, and their mask.
        owners: whose each row is (B,), numbers that do not fall; rows of two owners share no pass. None: all are one's.
        begin: told of the owners of a pass's rows before it.
    """
    import torch

    (prompt_ids, prompt_mask), (ids, mask) = prompts, completions
    owners = torch.zeros_like(prompt_ids[:, 0]) if owners is None else owners
    unique, row_of = torch.unique(torch.cat([owners[:, None], prompt_ids, prompt_mask], 1), dim=0, return_inverse=True)
    unique_ids, unique_mask = unique[:, 1:].chunk(2, 1)
    backbone: Any = network.base_model
    positions = (unique_mask.cumsum(1) - 1).clamp(min=0)
    begin(unique[:, 0])
    out = backbone(input_ids=unique_ids, attention_mask=unique_mask, position_ids=positions, use_cache=True)
    hidden = out.last_hidden_state[row_of, -1:]
    if ids.shape[1] == 1:
        return cast("torch.Tensor", hidden)
    cache = out.past_key_values
    cache.batch_select_indices(row_of)
    begin(owners)
    following = backbone(
        input_ids=ids[:, :-1],
        attention_mask=torch.cat([prompt_mask, mask[:, :-1]], 1),
        position_ids=prompt_mask.sum(1, keepdim=True) + torch.arange(ids.shape[1] - 1, device=ids.device),
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([hidden, following.last_hidden_state], 1)


_SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")
"""Settings of architectures whose output layer does more than multiply."""


def shares_prompts(network: PreTrainedModel) -> bool:
    """Whether ``completion_states`` is right for this architecture: attention throughout, a plain output layer."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = DynamicCache(config=network.config).layers
    return (
        all(type(layer) in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers)
        and type(network.get_output_embeddings()) is torch.nn.Linear
        and not any(getattr(network.config, name, None) for name in _SCALED_LOGITS)
    )


@contextmanager
def own_random_stream(*seeds: int) -> Iterator[None]:
    """Runs its body on a random stream of its own, so that evaluating does not change the training that it looks at."""
    import torch

    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed + 1) % (2**31 - 1)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(mixed)
        yield
