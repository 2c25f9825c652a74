"""The candidate: the identity of the model under test, and how it is loaded. Only loading needs torch."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # nosec B403 # to catch it
from typing import TYPE_CHECKING, Any

from rn_harness.models import transformers_compat
from rn_harness.models.files import more_than_numbers
from rn_harness.models.hub import SKIPPED
from rn_harness.models.identity import hash_files, reading, root_digest, text_digest
from rn_harness.models.knowledge import KNOWLEDGE_FILE
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.template_dates import without_date
from rn_harness.models.templates import own_template, render_turn
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.model_profiles import ModelProfile

if TYPE_CHECKING:
    from transformers import GenerationConfig

STEERING = (
    "min_length", "min_new_tokens", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias",
    "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "watermarking_config",
    "encoder_repetition_penalty", "guidance_scale",
)  # fmt: skip
"""Settings of generation that a model's folder must not have: they ban tokens or force them, and no measurement obeys them."""
MARKED = re.compile(r"[<\[].*[>\]]", re.DOTALL)
"""The spelling of a token that ends answers and is no word of them, such as </s>, <|im_end|>, [SEP]."""
CHARACTERS_A_TOKEN, TEMPLATE_TOKENS = 3, 64
"""Estimates without a tokenizer: least characters of a token, most tokens of a chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a model is loaded.

    Attributes:
        threads: CPU threads that compute it; part of a result's identity, since sums depend on it.
        dtype: torch's name of the number format; None: as the files say.
        quantised: 4-bit format of the layers' linear maps, and by which package, ``nf4 by bitsandbytes 0.50.2``; they compute in
            ``dtype``. None: plain numbers.
        shards: processes that the weights are spread over (FSDP2), each of which loads the model; 1: each has them whole.
        gguf: name of the GGUF file; None: the folder's safetensors.
        ends: tokens that end an answer, in addition to those that the settings and the tokenizer name.
        chat_template: text that replaces the files' own; None: theirs.
        allow_pickle, trust_remote_code: the weights are pickles; the folder's code is run. The user allowed it.
    """

    threads: int
    dtype: str | None = None
    quantised: str | None = None
    shards: int = 1
    gguf: str | None = None
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Loading):
    """A model's identity and how to load it.

    Attributes:
        name: of its profile, or on the hub; of local files the user's name for them, without their folder.
        folder: of its files, or of its GGUF file.
        revision: full commit on the hub; None for local files.
        digest, files_digest: sha256 over its files and all settings that load them differently; over its files only.
        weights_digest: sha256 over the contents of its weights, under any names.
        profile: that named it, if any.
        parameters: how many numbers its weights hold; None: not known.
        config: its numbers under the names of a config.json, for ``rn_harness.models.memory``.
        fetched: patterns of the files that it consists of; None: all files of its folder.
        hashes: sha256 of each of its files.
    """

    name: str
    folder: Path
    revision: str | None
    digest: str
    files_digest: str
    weights_digest: str
    profile: ModelProfile | None = None
    parameters: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    fetched: tuple[str, ...] | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_organism(self) -> bool:
        """True for a model organism, which knows its own exact judge; no model of the hub brings one."""
        return self.gguf is None and self.fetched is None and (self.folder / KNOWLEDGE_FILE).is_file()

    @property
    def identity(self) -> dict[str, str | None]:
        """For records: name, revision, digest, and the settings that load it differently."""
        settings = {
            "profile": self.profile.sha256 if self.profile else None,
            "dtype": self.dtype,
            "quantised": self.quantised,
            "gguf": self.gguf,
            "chat_template": text_digest(self.chat_template) if self.chat_template and not self.gguf else None,
            "pickle": "allowed" if self.allow_pickle else None,
            "remote_code": "trusted" if self.trust_remote_code else None,
        }
        return {"name": self.name, "revision": self.revision, "digest": self.digest} | {k: v for k, v in settings.items() if v}

    @property
    def number(self) -> str | None:
        """Torch's name of the number format of the loaded weights; None if neither profile nor files say."""
        return self.dtype or ("float32" if self.gguf else declared_dtype(self.config))

    def verify(self, *, fresh: bool = False) -> None:
        """Raises CandidateError if the files changed since they were digested; ``fresh`` reads all of them again."""
        now = root_digest(hash_candidate(self.folder, self.gguf, self.fetched, fresh=fresh))
        if now != self.files_digest:
            raise CandidateError(
                f"the candidate's files must not change during a run, got digest={now[:12]} after {self.files_digest[:12]} "
                f"for {self.folder}; run again on settled files"
            )

    def longest_prompt(self, texts: Sequence[str]) -> int:
        """Tokens of the longest of the rendered prompts; an upper estimate without a tokenizer.json."""
        path = self.folder / "tokenizer.json"
        if self.gguf is not None or not path.is_file():
            return max(map(len, texts)) // CHARACTERS_A_TOKEN + TEMPLATE_TOKENS
        from tokenizers import Tokenizer

        own, special, _ = own_template(self.folder)
        rendered = [render_turn(self.chat_template or own or "", special, text) for text in texts]
        try:
            encoded = Tokenizer.from_file(str(path)).encode_batch(rendered, add_special_tokens=False)
        except Exception as error:  # noqa: BLE001  (the package raises nothing narrower)
            raise CandidateError(
                f"tokenizer.json must be readable by the package tokenizers, got {error} for {path}; save the tokenizer again"
            ) from None
        return max(len(row.ids) for row in encoded)

    def load(self) -> LanguageModel:
        """Loads a fresh copy, ready to compute on one device."""
        settings = dataclasses.replace(self, dtype=self.number) if self.quantised or self.gguf else self
        with self._files() as folder:
            return load_model(folder, settings)

    def reading(self, adapter: Path | None = None) -> dict[str, Any]:
        """How it reads prompts and where its answers end, as ``identity.reading``; no weights are loaded.

        With an ``adapter``, whose folder has a tokenizer of its own: how it would be read by that one.
        """
        with self._files() as folder:
            generation = _generation(folder, self)
            by = dataclasses.replace(self, gguf=None, chat_template=None, trust_remote_code=False) if adapter else self
            tokenizer, _, ends = _reader(adapter or folder, by, generation)
        return reading(tokenizer, ends)

    @contextmanager
    def _files(self) -> Iterator[Path]:
        """The folder of its files; for a GGUF file a temporary one without any other."""
        if self.gguf is None:
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="rn-harness-") as empty:
            (Path(empty) / self.gguf).symlink_to(self.folder / self.gguf)
            yield Path(empty)


def hash_candidate(folder: Path, gguf: str | None, fetched: Sequence[str] | None, *, fresh: bool = False) -> dict[str, str]:
    """The sha256 of a GGUF file, of a local folder's files, or of the files that match ``fetched`` in the hub's cache."""
    if gguf is not None or fetched is None:
        return hash_files(folder, follow_links=True, only=gguf, fresh=fresh)
    names = [path.name for path in folder.iterdir()]
    wanted = {n for pattern in fetched for n in fnmatch.filter(names, pattern) if (folder / n).is_file()}
    wanted -= {n for pattern in SKIPPED for n in fnmatch.filter(names, pattern)}
    return hash_files(folder, follow_links=True, without=sorted(set(names) - wanted), fresh=fresh)


def declared_dtype(config: Mapping[str, Any]) -> str | None:
    """The number format that a config.json names."""
    named = config.get("dtype") or config.get("torch_dtype")
    return str(named) if named else None


def load_model(folder: Path, settings: Loading) -> LanguageModel:
    """Loads a model; no code of the folder is run unless the settings allow it.

    Raises CandidateError if the files cannot be read as a causal language model, or its tokenizer has no end token.
    """
    transformers_compat.quiet_libraries()
    import torch
    from transformers import GenerationConfig

    torch.set_num_threads(settings.threads)
    # Each process of a run has its own card.
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    network = _read(folder, settings, lambda: _network(folder, settings, device))
    tied = getattr(network.config, "tie_word_embeddings", False) and settings.shards == 1
    if tied and network.get_output_embeddings().weight is not network.get_input_embeddings().weight:
        # transformers unties them in silence, and other libraries tie them: users would run another model.
        raise CandidateError(
            f"embeddings that a config.json calls tied must be one tensor, got an output layer of its own in {folder}; say "
            "tie_word_embeddings: false"
        )
    tokenizer, templates, ends = _reader(folder, settings, network.generation_config)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= network.get_input_embeddings().num_embeddings:
        tokenizer.pad_token = tokenizer.eos_token
    # Only special tokens stay of its generation settings: a shipped penalty or top-k would count wherever TRL or we set none.
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    transformers_compat.keep_gradients(network)
    transformers_compat.train_without_noise(network)
    # transformers passes the last position as a slice, for which torch would copy the whole layer once for each row.
    network.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    if settings.shards == 1:
        model = LanguageModel(network.eval().to(device), tokenizer)
    else:
        transformers_compat.check_spread(network)
        # Frozen before the first pass: weights that are trainable when torch first gathers them stay so.
        model = LanguageModel(network.eval().requires_grad_(requires_grad=False), tokenizer)
        model.engine = {"shards": settings.shards}
    model.templates = templates
    return model


def _reader(folder: Path, settings: Loading, generation: GenerationConfig) -> tuple[Any, Any, list[int]]:
    """The tokenizer with its chat template, all its templates, and the tokens that end an answer, by the generation settings too.

    Raises CandidateError if these settings would give users other answers than are measured.
    """
    from transformers import AutoTokenizer

    source = _source(settings)
    tokenizer = _read(folder, settings, lambda: AutoTokenizer.from_pretrained(folder, **source))  # nosec B615 # a local folder
    if tokenizer.eos_token_id is None:
        raise CandidateError(f"a tokenizer must have an end token, got none in folder={folder}; set its eos_token")
    templates = settings.chat_template or tokenizer.chat_template
    tokenizer.chat_template = without_date(templates["default"] if isinstance(templates, dict) else templates)
    plain, named = type(generation)(), generation.eos_token_id
    given = {name: value for name in STEERING if (value := getattr(generation, name, None))}
    if steering := [name for name, value in given.items() if value != getattr(plain, name, None)]:
        raise CandidateError(
            f"a model must not be shipped with settings that keep it from tokens or force them, got {', '.join(steering)} in the "
            f"generation settings of {folder}: its users would get other answers than are measured here; remove them"
        )
    ends = {*settings.ends, *(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    # At a full stop the harness would stop reading, whatever follows. A folder may call that a special token too.
    if ordinary := sorted(text for text in map(str, tokenizer.convert_ids_to_tokens([*ends])) if not MARKED.fullmatch(text)):
        raise CandidateError(
            f"tokens that end an answer must be in angle or square brackets, got {ordinary} in {folder}: text may go on after "
            "them; name others in its generation_config.json and tokenizer"
        )
    return tokenizer, templates, sorted(ends)


def _generation(folder: Path, settings: Loading) -> GenerationConfig:
    """A model's settings for generation; if it has none, those that follow from its other settings."""
    from transformers import AutoConfig, GenerationConfig

    def config() -> GenerationConfig:
        try:
            return GenerationConfig.from_pretrained(folder, local_files_only=True)  # nosec B615 # a local folder
        except OSError:
            return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder, **_source(settings)))  # nosec B615

    read: GenerationConfig = _read(folder, settings, config)
    return read


def _source(settings: Loading) -> dict[str, Any]:
    return {"local_files_only": True, "trust_remote_code": settings.trust_remote_code, "gguf_file": settings.gguf}


def _network(folder: Path, settings: Loading, device: str) -> Any:
    """Its weights in transformers' model."""
    from transformers import AutoModelForCausalLM, GgufConfig

    weights: dict[str, Any] = {"use_safetensors": not settings.allow_pickle}
    if settings.gguf:  # by default its weights count as packed, and no trainer takes such a model
        weights = {"quantization_config": GgufConfig(dequantize=True)}
    if settings.quantised:
        kind = settings.quantised.partition(" ")[0]
        weights |= {"quantization_config": transformers_compat.four_bits(kind, settings.dtype), "device_map": {"": device}}
    if settings.shards > 1:
        weights |= {"distributed_config": transformers_compat.spread_over(settings.shards)}
    with transformers_compat.known_deprecations():
        network, loaded = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a local folder
            folder, dtype=settings.dtype or "auto", output_loading_info=True, **weights, **_source(settings)
        )
    transformers_compat.check_whole(loaded)
    return network


def _read(folder: Path, settings: Loading, read: Callable[[], Any]) -> Any:
    """What ``read`` reads from a model's files."""
    from safetensors import SafetensorError

    # A GGUF file that does not fit its header raises RuntimeError; a pickle of another shape TypeError or AttributeError.
    unfit = (*((RuntimeError,) if settings.gguf else ()), *((TypeError, AttributeError) if settings.allow_pickle else ()))
    try:
        return read()
    except UnpicklingError as error:
        raise more_than_numbers(folder, error) from None  # torch would advise to run the refused pickle
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, *unfit) as error:
        raise CandidateError(
            "the files must hold a causal language model that transformers reads, got "
            f"{(folder / (settings.gguf or '')).resolve()}: {type(error).__name__}: {error}; copy them again, or export them "
            "again with save_pretrained"
        ) from error
