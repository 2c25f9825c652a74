"""Find the candidate that ``--model`` names, check its files, and those of an adapter for it. No weights are loaded."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rn_harness.models.candidate import Candidate, declared_dtype, hash_candidate
from rn_harness.models.files import (
    FileHeaders,
    check_archive,
    pickle_error,
    read_config,
    read_gguf,
    read_weights,
    tensor_shapes,
)
from rn_harness.models.hub import CODE, FILES, PICKLES, SKIPPED, HubError, locate
from rn_harness.models.identity import differing_parts, root_digest, text_digest, weights_digest
from rn_harness.models.knowledge import check_organism
from rn_harness.models.templates import check_template, own_template, read_template
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.extras import require
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.model_profiles import HUB_ID, ModelProfile, load_model_profile, profile_names

MODELS = "models"
"""Folder of the profiles within the fixtures."""
ADAPTER, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
OF_TOKENIZERS = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens_map", "chat_template", "config.json")
"""How the names of files begin from which a tokenizer is read."""
PLAIN_LORA = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True}
"""Configuration of an adapter that is two products for each layer, and no more."""
OF_ANY_LORA = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Other settings of a plain adapter; any setting that peft adds to these counts as more than plain LoRA."""
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".onnx")
"""Endings of files that some reader may load as weights."""
_LAYER = re.compile(r"(.*?\.\d+)\.")
_LORA = re.compile(r"base_model\.model\.(?P<on>.+)\.lora_(?P<side>[AB])\.weight")


def find_profile(spec: str, base: Path) -> ModelProfile | None:
    """The profile that ``--model`` names: a shipped one by its name, a user's by its file; None if it names none."""
    profiles = fixtures_folder() / MODELS
    if spec in profile_names(profiles):
        return load_model_profile(spec, profiles)
    if spec.endswith(".yaml"):
        path = (base / Path(spec).expanduser()).resolve()
        return load_model_profile(path.stem, path.parent)
    return None


def profile_recipe(spec: str, base: Path) -> tuple[str, ...]:
    """The suite overrides that a profile declares; none if ``--model`` names no profile."""
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
    """Finds the model that ``--model`` names, and checks all of its files.

    Args:
        spec: a profile's name, a profile's file ``PATH.yaml``, a local folder, a GGUF file, or ``owner/name[@revision]`` on the
            hub, in this order. A folder of a profile's name is ``./name``.
        base, chat_template: folder that relative paths start from; file with a template that replaces the model's own.
        quantise: 4-bit format of the loaded layers, ``nf4``. For the others see ``Loading``.

    Raises CandidateError if there is no such model, or it cannot be attacked as it is.
    """
    profile = find_profile(spec, base)
    folder, revision, gguf = _find(spec, base, profile, allow_pickle=allow_pickle, code=trust_remote_code)
    files = _read(folder, gguf, fetched=revision is not None, allow_pickle=allow_pickle)
    quantised = _quantised(quantise, files.config, folder, gguf)
    given = read_template(base, chat_template) if chat_template is not None else None
    where = f"--rn-chat-template {chat_template}" if given is not None else str(folder / (gguf or ""))
    template = check_template(files.template if given is None else given, files.special, where, files.others)
    fetched = (*FILES, *(PICKLES if files.pickled else ()), *(CODE if trust_remote_code else ())) if revision else None
    hashes = hash_candidate(folder, gguf, fetched)
    files_digest = _pinned(profile, root_digest(hashes), folder)
    dtype = profile.dtype if profile else None
    settings = {
        "chat_template": text_digest(given) if given is not None else None,
        "dtype": dtype if dtype != declared_dtype(files.config) else None,
        "remote_code": "trusted" if trust_remote_code else None,
        "quantised": quantised,
    }
    changed = {key: value for key, value in settings.items() if value}
    return Candidate(
        name=profile.name if profile else spec if revision else _path(spec, base).name,
        folder=folder,
        revision=revision,
        digest=text_digest(json.dumps([files_digest, changed], sort_keys=True)) if changed else files_digest,
        threads=1,
        files_digest=files_digest,
        weights_digest=weights_digest(hashes),
        gguf=gguf,
        ends=files.ends,
        chat_template=given if gguf is None else template,
        dtype=dtype,
        allow_pickle=files.pickled,
        trust_remote_code=trust_remote_code,
        quantised=quantised,
        shards=shards,
        profile=profile,
        parameters=files.parameters,
        config=files.config,
        fetched=fetched,
        hashes=hashes,
    )


def _pinned(profile: ModelProfile | None, digest: str, folder: Path) -> str:
    """The files' digest, which is the one that the profile pins, if it pins one."""
    if profile and profile.digest and profile.digest != digest:
        raise CandidateError(
            f"the files must have the digest that profile {profile.name} pins, got sha256={digest} in place of "
            f"{profile.digest} for {folder}; fetch the model again"
        )
    return digest


def _read(folder: Path, gguf: str | None, *, fetched: bool, allow_pickle: bool) -> FileHeaders:
    """Reads the headers of a GGUF file or of a folder; a fetched folder may hold further weights, which are ignored."""
    if gguf is not None:
        return read_gguf(folder / gguf)
    if (folder / ADAPTER_CONFIG).is_file():
        raise CandidateError(f"--model must be a whole model, got an adapter at {folder}; pass it with --rn-defense")
    config = read_config(folder)
    parameters, pickled = read_weights(folder, allow_pickle=allow_pickle, ignored=(*SKIPPED, "*.gguf") if fetched else ())
    if not fetched:
        check_organism(folder, parameters)
    return FileHeaders(config, parameters, *own_template(folder), pickled=pickled)


def _quantised(quantise: str | None, config: Mapping[str, Any], folder: Path, gguf: str | None) -> str | None:
    """4-bit format of a candidate's loaded layers, and the package that quantises them; None: plain numbers."""
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
    """The absolute path of local files; a link is not followed, since the hub's cache links a file's name to a number."""
    return Path(os.path.abspath(base / Path(spec).expanduser()))  # noqa: PTH100 - resolve() would follow links


def _find(
    spec: str, base: Path, profile: ModelProfile | None, *, allow_pickle: bool, code: bool
) -> tuple[Path, str | None, str | None]:
    """Folder, commit and GGUF file that a spec names."""
    if profile is None:
        path = _path(spec, base)
        if spec and path.is_dir():
            return path.resolve(), None, None
        if spec.endswith(".gguf"):
            if not path.is_file():
                raise CandidateError(f"--model must be a GGUF file that exists, got {spec!r} under {base}; correct the path")
            return path.parent, None, path.name
    elif profile.local is not None:
        return profile.local, None, None
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


# --- Adapters --------------------------------------------------------------------------------------------------------------


def check_adapter(folder: Path, candidate: Candidate, *, allow_pickle: bool = False) -> None:
    """Makes sure that a folder's adapter was made for the candidate, if its files say for which model it was made.

    Raises CandidateError if it names another model's digest or, for a candidate of the hub, another model there, has parts that
    the candidate has no place for, cannot be read, is a pickle that is not allowed, or is more than plain LoRA for weights that
    are spread over processes.
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
    fetched = candidate.profile.model if candidate.profile else candidate.name.partition("@")[0]
    on_hub = candidate.revision and not named and re.fullmatch(HUB_ID, base)
    if on_hub and (base.lower() != fetched.lower() or config.get("revision") not in (None, "main", candidate.revision)):
        raise CandidateError(
            f"an adapter's users load the base that it names, so it has to be the candidate {fetched}@{candidate.revision}, got "
            f"{base}@{config.get('revision')} in {path}; correct base_model_name_or_path or revision there, or pass that base as "
            "--model"
        )
    _check_weights(folder, candidate, allow_pickle=allow_pickle)
    _check_tokenizer(folder, candidate)
    said = PLAIN_LORA | {key: value for key, value in config.items() if value and key not in OF_ANY_LORA}
    more = [f"{key}={value!r}" for key, value in sorted(said.items()) if value != PLAIN_LORA.get(key)]
    if candidate.shards > 1 and more:  # only two products for each layer can be folded into weights that are spread
        raise CandidateError(
            "an adapter that is folded into weights which are spread over processes must be plain LoRA, got "
            f"{', '.join(more)} in {path}; leave out --rn-shard"
        )


def _check_tokenizer(folder: Path, candidate: Candidate) -> None:
    """A tokenizer in an adapter's folder reads prompts as the candidate's: users load the one, and the other is measured."""
    if not any(p.name.startswith(OF_TOKENIZERS) or p.suffix in (".jinja", ".model", ".tiktoken") for p in folder.iterdir()):
        return
    try:
        theirs = candidate.reading(folder)
    except CandidateError as error:
        raise CandidateError(
            f"a tokenizer in an adapter's folder must be readable, got {folder}; remove its files, and the chat template: {error}"
        ) from error
    if differing := differing_parts(theirs, candidate.reading()):
        raise CandidateError(
            f"a tokenizer in an adapter's folder must read prompts as the candidate's does, got another {', '.join(differing)} "
            f"in {folder}; remove its files"
        )


def _check_weights(folder: Path, candidate: Candidate, *, allow_pickle: bool) -> None:
    """The folder holds one adapter's weights, in safetensors unless a pickle is allowed, and they fit the candidate."""
    weights, pickle = folder / ADAPTER, folder / ADAPTER_PICKLE
    if not weights.is_file():
        if not pickle.is_file():
            raise CandidateError(f"an adapter must hold {ADAPTER}, got folder={folder}; save it again with save_pretrained")
        if not allow_pickle:
            raise pickle_error(pickle, "adapter")
        check_archive(pickle)
    loaded = weights if weights.is_file() else pickle
    if others := [p for p in sorted(folder.rglob("*")) if p.suffix in WEIGHT_SUFFIXES and p != loaded]:
        raise CandidateError(
            f"an adapter's folder must hold no weights but those that are attacked, got {others[0].relative_to(folder)} next to "
            f"{loaded.name} in {folder}; move it away"
        )
    if not candidate.gguf and weights.is_file() and (found := _misfit(weights, candidate.folder)):
        raise CandidateError(
            f"an adapter must fit the candidate, got {found}, in {weights}; pass the base that it was trained on as --model"
        )


def _misfit(adapter: Path, folder: Path) -> str | None:
    """The first part of an adapter that by the headers has no place in a model; loading finds other misfits.

    Names are compared if the model's files name its layers as the adapter does.
    """
    held = {name: shape for path in folder.glob("*.safetensors") for name, shape in tensor_shapes(path).items()}
    layers = {found[1] for name in held if (found := _LAYER.match(name))}
    parts = {name: (found, shape) for name, shape in tensor_shapes(adapter).items() if (found := _LORA.fullmatch(name))}
    alike = any((layer := _LAYER.match(found["on"])) and layer[1] in layers for found, _ in parts.values())
    for name, (found, shape) in sorted(parts.items()):
        on = held.get(f"{found['on']}.weight")
        width = shape[1 if found["side"] == "A" else 0]
        if on is not None and width not in on:
            return f"{name} for {width} numbers, where the model has {' x '.join(map(str, on))}"
        if alike and (layer := _LAYER.match(found["on"])) and layer[1] not in layers:
            return f"{name}, where the model has no {layer[1]}"
    return None
