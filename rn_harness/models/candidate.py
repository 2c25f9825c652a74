"""The candidate: the model under test, found, identified and loaded.

Resolving and digesting need no torch; ``load`` does. A candidate is a profile, an id on the hub, a local folder or a GGUF file.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn_harness.models.files import ADAPTER, check_adapter_file, misfit, read_config, read_gguf, read_weights
from rn_harness.models.hub import CODE, FILES, PICKLES, SKIPPED, HubError, locate
from rn_harness.models.knowledge import KNOWLEDGE_FILE
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.extras import require
from rn_harness.spec.model_profiles import HUB_ID, ModelProfile, load_model_profile, profile_names
from rn_harness.spec.prompts import TODAY

if TYPE_CHECKING:
    from jinja2 import Template

    from rn_harness.models.language_model import LanguageModel

ORGANISM = "organism"
ADAPTER_CONFIG = "adapter_config.json"
PLAIN_LORA = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True}
"""What an adapter's configuration says that is two products for each layer, and no more."""
OF_ANY_LORA = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""What else it may say; whatever peft adds to these is taken for more than plain LoRA."""
MODELS = "models"
"""Folder of the profiles within the fixtures."""
CHARACTERS_A_TOKEN, TEMPLATE_TOKENS = 3, 64
"""Where tokens cannot be counted: a token has at least so many characters, a chat template at most so many tokens."""
WEIGHTS = (".safetensors", ".bin", ".gguf")
"""How names of files end that hold weights."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".onnx")
"""Names of files that a reader may load as weights."""
UNHASHED = ("README.md", ".gitattributes", ".gitignore")
"""Files at the top of a model's folder that are no part of its identity: its card, and settings of git."""
MAX_UNHASHED_BYTES = 1_000_000
_TEMPLATE_REMEDY = "pass one that this model was trained with by --rn-chat-template FILE"
_PROBE = "rn-harness-asks-this"
_TRAINING_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Marks the assistant's words for a trainer's mask; adds no text."""


def fixtures_folder() -> Path:
    """The shipped fixtures: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "fixtures"
    return inside if inside.is_dir() else package.parent / "fixtures"


def hash_files(
    folder: Path, *, follow_links: bool = False, without: Sequence[str] = ("README.md",), only: str | None = None
) -> dict[str, str]:
    """The sha256 of each file of a model folder, by its name, by OpenSSF model-signing.

    Args:
        folder: of the model.
        follow_links: whether a symbolic link stands for what it points to, as in a snapshot of the hub's cache.
        without: names of files at its top that do not belong to its identity: its card.
        only: the one file that counts, as if it were alone; None: all.

    Raises:
        CandidateError: the folder is unreadable, or holds a symbolic link that is not to be followed.
    """
    from model_signing import hashing

    folder = folder.absolute()  # a relative path would not match the ignored one
    settings = hashing.Config().set_ignored_paths(paths=[folder / name for name in without]).set_allow_symlinks(follow_links)
    try:
        manifest = settings.hash(folder, files_to_hash=[folder / only] if only else None)
    except ValueError as error:
        raise CandidateError(f"a model folder must hold plain files, got folder={folder}: {error}; copy it") from None
    return {str(item.identifier): item.digest.digest_hex for item in manifest.resource_descriptors()}


def unhashed_files(folder: Path) -> dict[str, str]:
    """The sha256 of the files of a model folder that are no part of its identity, as far as they are plain and small."""
    paths = [folder / name for name in UNHASHED]
    plain = [path for path in paths if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_UNHASHED_BYTES]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in plain}


def root_digest(hashes: Mapping[str, str]) -> str:
    """The sha256 over the lines ``name sha256`` of all files, sorted by name."""
    return _sha256("\n".join(sorted(f"{name} {digest}" for name, digest in hashes.items())))


def weights_digest(hashes: Mapping[str, str]) -> str:
    """The sha256 over the weights' contents alone: a copy under other names, or beside other files, has the same."""
    return _sha256("\n".join(sorted(digest for name, digest in hashes.items() if name.endswith(WEIGHTS))))


def digest_folder(folder: Path) -> str:
    """The sha256 that identifies a model folder of plain files: over names and contents of all but its card.

    Raises:
        CandidateError: the folder is unreadable, or holds a symbolic link.
    """
    return root_digest(hash_files(folder))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model's identity and the way to load it.

    Attributes:
        name: its profile's, or as on the hub; of local files what the user called them, without where they lie.
        folder: where its files lie; of a GGUF file, the folder that holds it.
        revision: full commit on the hub; None for local files.
        digest: sha256 over its files, before loading, and over what is loaded in another way than they say.
        threads: CPU threads that compute it; part of a result's identity, since sums depend on it.
        files_digest: sha256 over its files alone.
        weights_digest: sha256 over its weights' contents alone, whatever they are called.
        gguf: name of the GGUF file; None: the folder's safetensors.
        ends: tokens that end an answer by that file beside what transformers reads in it.
        chat_template: text that takes the place of the files' own; None: theirs.
        dtype: that the weights are loaded in; None: as the files say.
        allow_pickle: its weights are pickles, by the user's leave.
        trust_remote_code: its folder's code is run, by the user's leave.
        quantised: 4-bit format that its layers are loaded in, and by what, ``nf4 by bitsandbytes 0.50.2``; None: plain numbers.
        shards: processes that its weights are spread over; 1: each holds them whole. The same model either way.
        profile: that it was named by; None: by none.
        parameters: how many numbers its weights hold; None: not known.
        config: its numbers under the names of a config.json, for ``rn_harness.models.memory``.
        fetched: patterns of the files that it consists of; None: all files of its folder.
        hashes: sha256 of each of its files.
    """

    name: str
    folder: Path
    revision: str | None
    digest: str
    threads: int
    files_digest: str
    weights_digest: str
    gguf: str | None = None
    ends: tuple[int, ...] = ()
    chat_template: str | None = None
    dtype: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    quantised: str | None = None
    shards: int = 1
    profile: ModelProfile | None = None
    parameters: int | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    fetched: tuple[str, ...] | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_organism(self) -> bool:
        """Whether it is a model organism, which knows its own exact judge."""
        return self.gguf is None and (self.folder / KNOWLEDGE_FILE).is_file()

    @property
    def identity(self) -> dict[str, str | None]:
        """For records: name, revision, digest, and what else was said of how it is loaded."""
        said = {
            "profile": self.profile.sha256 if self.profile else None,
            "dtype": self.dtype,
            "quantised": self.quantised,
            "gguf": self.gguf,
            "chat_template": _sha256(self.chat_template) if self.chat_template and not self.gguf else None,
            "pickle": "allowed" if self.allow_pickle else None,
            "remote_code": "trusted" if self.trust_remote_code else None,
        }
        return {"name": self.name, "revision": self.revision, "digest": self.digest} | {k: v for k, v in said.items() if v}

    @property
    def number(self) -> str | None:
        """Torch's name of the number format that it is loaded in; None where neither profile nor files say."""
        return self.dtype or ("float32" if self.gguf else _dtype_of(self.config))

    def verify(self) -> None:
        """Checks that the files still are what was digested.

        Raises:
            CandidateError: they changed while the run used them.
        """
        now = root_digest(_hashes(self.folder, self.gguf, self.fetched))
        if now != self.files_digest:
            raise CandidateError(
                f"the candidate's files must not change during a run, got digest={now[:12]} after {self.files_digest[:12]} "
                f"for {self.folder}; run again on settled files"
            )

    def longest_prompt(self, texts: Sequence[str]) -> int:
        """Tokens of the longest of the rendered prompts; estimated from above where there is no tokenizer.json.

        Raises:
            CandidateError: the tokenizer cannot be read.
        """
        path = self.folder / "tokenizer.json"
        if self.gguf is not None or not path.is_file():
            return max(map(len, texts)) // CHARACTERS_A_TOKEN + TEMPLATE_TOKENS
        from tokenizers import Tokenizer

        own, special = _own_template(self.folder)
        rendered = [_render(self.chat_template or own or "", special, text) for text in texts]
        try:
            encoded = Tokenizer.from_file(str(path)).encode_batch(rendered, add_special_tokens=False)
        except Exception as error:  # noqa: BLE001  (the package raises nothing narrower)
            raise CandidateError(
                f"tokenizer.json must be readable by the package tokenizers, got {error} for {path}; save the tokenizer again"
            ) from None
        return max(len(row.ids) for row in encoded)

    def load(self) -> LanguageModel:
        """Loads a fresh copy, ready to compute on one device."""
        from rn_harness.models.language_model import LanguageModel

        how: dict[str, Any] = {
            "threads": self.threads,
            "dtype": self.number if self.quantised or self.gguf else self.dtype,
            "chat_template": self.chat_template,
            "allow_pickle": self.allow_pickle,
            "trust_remote_code": self.trust_remote_code,
            "shards": self.shards,
        }
        if self.quantised:
            how["quantised"] = self.quantised.partition(" ")[0]
        if self.gguf is None:
            return LanguageModel.load(self.folder, **how)
        with tempfile.TemporaryDirectory(prefix="rn-harness-") as alone:  # nothing that lies beside the file is read with it
            (Path(alone) / self.gguf).symlink_to(self.folder / self.gguf)
            return LanguageModel.load(Path(alone), gguf=self.gguf, ends=self.ends, **how)


def find_profile(spec: str, base: Path) -> ModelProfile | None:
    """The profile that ``--model`` names: a shipped one by its name, one of the user's by its file; None if it names none.

    Args:
        spec: as for ``resolve_candidate``.
        base: folder that relative paths start from.

    Raises:
        CandidateError: the profile is missing or malformed.
    """
    profiles = fixtures_folder() / MODELS
    if spec in profile_names(profiles):
        return load_model_profile(spec, profiles)
    if spec.endswith(".yaml"):
        path = (base / Path(spec).expanduser()).resolve()
        return load_model_profile(path.stem, path.parent)
    return None


def profile_recipe(spec: str, base: Path) -> tuple[str, ...]:
    """The suite overrides that a profile declares; none where ``--model`` names no profile.

    Raises:
        CandidateError: the profile is malformed.
    """
    profile = find_profile(spec, base)
    return tuple(profile.recipe) if profile else ()


def resolve_candidate(
    spec: str,
    base: Path,
    *,
    chat_template: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    quantise: str | None = None,
    shards: int = 1,
) -> Candidate:
    """Finds the model that ``--model`` names, and looks at all of its files; nothing of it is loaded or run.

    Args:
        spec: a profile's name, a profile's file ``PATH.yaml``, a local folder, a GGUF file, or ``owner/name[@revision]`` on the
            hub, in this order. A folder of a profile's name is ``./name``.
        base: folder that relative paths start from.
        chat_template: file with a chat template that takes the place of the model's own.
        allow_pickle: whether weights may be pickles.
        trust_remote_code: whether Python files in the model's folder may be run.
        quantise: 4-bit format that its layers are loaded in, ``nf4``; None: plain numbers.
        shards: processes that its weights are spread over.

    Raises:
        CandidateError: no such model, or one that cannot be attacked as it is.
    """
    profile = find_profile(spec, base)
    folder, revision, gguf = _find(spec, base, profile, allow_pickle=allow_pickle, code=trust_remote_code)
    own: str | None
    special: dict[str, str] = {}
    parameters: int | None
    ends: tuple[int, ...] = ()
    if gguf is not None:
        header = read_gguf(folder / gguf)
        own, pickled, parameters, config, ends = header.chat_template, False, header.parameters, header.config, header.ends
    else:
        if (folder / ADAPTER_CONFIG).is_file():
            raise CandidateError(f"--model must be a whole model, got an adapter at {folder}; pass it with --rn-defense")
        config = read_config(folder)
        weights = read_weights(folder, allow_pickle=allow_pickle, ignored=(*SKIPPED, "*.gguf") if revision else ())
        own, special = _own_template(folder)
        pickled, parameters = weights.pickled, weights.parameters
    quantised = _quantised(quantise, config, folder, gguf)
    given = _read_template(base, chat_template) if chat_template is not None else None
    where = f"--rn-chat-template {chat_template}" if given is not None else str(folder / (gguf or ""))
    template = given if given is not None else own
    if template is None:
        raise CandidateError(
            f"a chat template is required, got none in {where}, perhaps a base model that was not tuned to follow instructions; "
            f"{_TEMPLATE_REMEDY}"
        )
    _check_template(template, special, where)
    fetched = (*FILES, *(PICKLES if pickled else ()), *(CODE if trust_remote_code else ())) if revision else None
    hashes = _hashes(folder, gguf, fetched)
    files_digest = root_digest(hashes)
    if profile and profile.digest and profile.digest != files_digest:
        raise CandidateError(
            f"the files must have the digest that profile {profile.name} pins, got sha256={files_digest} in place of "
            f"{profile.digest} for {folder}; fetch the model again"
        )
    dtype = profile.dtype if profile else None
    other = {
        "chat_template": _sha256(given) if given is not None else None,
        "dtype": dtype if dtype != _dtype_of(config) else None,
        "remote_code": "trusted" if trust_remote_code else None,
        "quantised": quantised,
    }
    changed = {key: value for key, value in other.items() if value}
    return Candidate(
        name=profile.name if profile else spec if revision else _path(spec, base).name,
        folder=folder,
        revision=revision,
        digest=_sha256(json.dumps([files_digest, changed], sort_keys=True)) if changed else files_digest,
        threads=1,
        files_digest=files_digest,
        weights_digest=weights_digest(hashes),
        gguf=gguf,
        ends=ends,
        chat_template=given if gguf is None else template,
        dtype=dtype,
        allow_pickle=pickled,
        trust_remote_code=trust_remote_code,
        quantised=quantised,
        shards=shards,
        profile=profile,
        parameters=parameters,
        config=config,
        fetched=fetched,
        hashes=hashes,
    )


def _quantised(quantise: str | None, config: Mapping[str, Any], folder: Path, gguf: str | None) -> str | None:
    """How a candidate's layers are quantised when it is loaded, and by what; None: not at all.

    Raises:
        CandidateError: its files hold quantised weights already, or the package that quantises is missing.
    """
    stored = config.get("quantization_config")
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise CandidateError(
            f"--model must hold plain numbers, got quant_method={method!r} in {folder / 'config.json'}; name the model that it "
            "was made from, and attack that in 4 bits by --rn-quantise nf4"
        )
    if quantise is None:
        return None
    if gguf is not None:
        raise CandidateError(
            f"--rn-quantise takes a folder of safetensors, got --model {gguf}, whose numbers were rounded once already; leave it "
            "out, or name the model that the file was made from"
        )
    require("bitsandbytes", f"--rn-quantise {quantise}")
    return f"{quantise} by bitsandbytes {importlib.metadata.version('bitsandbytes')}"


def _path(spec: str, base: Path) -> Path:
    """What a spec of local files names, whole; a link stays one: a hub's cache links a file's name to a number."""
    return Path(os.path.abspath(base / Path(spec).expanduser()))  # noqa: PTH100 - resolve() would follow links


def _find(
    spec: str, base: Path, profile: ModelProfile | None, *, allow_pickle: bool, code: bool
) -> tuple[Path, str | None, str | None]:
    """Folder, commit and GGUF file that a spec names."""
    if profile is not None and profile.local is not None:
        return profile.local, None, None
    path = _path(spec, base) if profile is None else Path()
    if profile is None and spec and path.is_dir():
        return path.resolve(), None, None
    if profile is None and spec.endswith(".gguf"):
        if not path.is_file():
            raise CandidateError(f"--model must be a GGUF file that exists, got {spec!r} under {base}; correct the path")
        return path.parent, None, path.name
    model, at, revision = (profile.model, "", "") if profile else spec.partition("@")
    if not re.match(HUB_ID, model) or (at and not revision):
        known = profile_names(fixtures_folder() / MODELS)
        near = " or ".join(difflib.get_close_matches(spec, known, n=3))
        raise CandidateError(
            "--model must be a profile, a local model folder, a GGUF file, or owner/name[@revision] on the hub, "
            f"got {spec!r}; profiles: {', '.join(known)}{f'; did you mean {near}?' if near else ''}"
        )
    try:
        folder, commit = locate(model, (profile.revision if profile else revision) or None, code=code, pickles=allow_pickle)
    except HubError as error:
        raise CandidateError(str(error)) from None
    return folder, commit, None


def _hashes(folder: Path, gguf: str | None, fetched: Sequence[str] | None) -> dict[str, str]:
    """Of a GGUF file; of a local folder; of what a snapshot of the hub was fetched for, whatever else its cache holds."""
    if gguf is not None:
        return hash_files(folder, follow_links=True, only=gguf)
    if fetched is None:
        return hash_files(folder, follow_links=True)
    names = [path.name for path in folder.iterdir()]
    wanted = {n for pattern in fetched for n in fnmatch.filter(names, pattern) if (folder / n).is_file()}
    wanted -= {n for pattern in SKIPPED for n in fnmatch.filter(names, pattern)}
    return hash_files(folder, follow_links=True, without=sorted(set(names) - wanted))


# --- chat templates ------------------------------------------------------------------------------------------------------


def _own_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """A folder's chat template, and the special tokens that one may name."""
    path = folder / "tokenizer_config.json"
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))
        alone = folder / "chat_template.jinja"
        template = alone.read_text(encoding="utf-8") if alone.is_file() else declared.get("chat_template")
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


def _read_template(base: Path, file: str) -> str:
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


def _render(template: str, special: Mapping[str, str], text: str) -> str:
    """A user's turn as transformers renders it."""
    turns = [{"role": "user", "content": text}]
    return _compiled(template).render(messages=turns, add_generation_prompt=True, tools=None, documents=None, **special)


def _check_template(template: str, special: Mapping[str, str], where: str) -> None:
    """What the user asks has to stand in the rendered text."""
    import jinja2

    try:
        text = _render(template, special, _PROBE)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise CandidateError(
            f"a chat template must render a user's turn, got {type(error).__name__} for {where}: {error}; {_TEMPLATE_REMEDY}"
        ) from None
    if _PROBE not in text:
        raise CandidateError(
            f"a chat template must hold what the user says, got a text without it from {where}; {_TEMPLATE_REMEDY}"
        )


def _dtype_of(config: Mapping[str, Any]) -> str | None:
    """The number format that the files name."""
    named = config.get("dtype") or config.get("torch_dtype")
    return str(named) if named else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- adapters ------------------------------------------------------------------------------------------------------------


def check_adapter(folder: Path, candidate: Candidate, *, allow_pickle: bool = False) -> None:
    """Makes sure that an adapter was made for the candidate, as far as it says what it was made for.

    Args:
        folder: of the adapter.
        candidate: that it is to be put on.
        allow_pickle: whether it may be a pickle.

    Raises:
        CandidateError: it names another model's digest, has parts that the candidate has no place for, cannot be read, is a
            pickle without leave, or is more than plain LoRA for weights that are spread over processes.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base = str(config.get("base_model_name_or_path"))
    except (OSError, ValueError, AttributeError) as error:
        raise CandidateError(
            f"an adapter must hold a readable {ADAPTER_CONFIG}, got {type(error).__name__} for {path}; save it again"
        ) from None
    named = re.search(r"@sha256:([0-9a-f]{64})$", base)
    if named and named[1] != candidate.digest:
        raise CandidateError(
            f"an adapter must be made for the candidate, got one for sha256={named[1]} ({base.partition('@')[0]}) and the "
            f"candidate {candidate.name} with sha256={candidate.digest}; pass the adapter's own base as --model"
        )
    check_adapter_file(folder, allow_pickle=allow_pickle)
    weights = folder / ADAPTER
    loaded = weights if weights.is_file() else weights.with_suffix(".bin")
    if others := [p for p in sorted(folder.rglob("*")) if p.suffix in WEIGHT_SUFFIXES and p != loaded]:
        raise CandidateError(
            f"an adapter's folder must hold no weights but those that are attacked, got {others[0].relative_to(folder)} next to "
            f"{loaded.name} in {folder}; move it away"
        )
    if not candidate.gguf and weights.is_file() and (found := misfit(weights, candidate.folder)):
        raise CandidateError(
            f"an adapter must fit the candidate, got {found}, in {weights}; pass the base that it was trained on as --model"
        )
    if candidate.shards == 1:
        return
    said = PLAIN_LORA | {key: value for key, value in config.items() if value and key not in OF_ANY_LORA}
    more = [f"{key}={value!r}" for key, value in sorted(said.items()) if value != PLAIN_LORA.get(key)]
    if more:
        raise CandidateError(
            "an adapter that is folded into weights which are spread over processes must be plain LoRA, got "
            f"{', '.join(more)} in {path}; leave out --rn-shard"
        )
