"""Find the candidate that ``--model`` names, and check its files. Nothing of the model is loaded or run."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rn_harness.models.adapter_files import ADAPTER_CONFIG
from rn_harness.models.candidate import Candidate, declared_dtype, hash_candidate
from rn_harness.models.files import FileHeaders, read_config, read_weights
from rn_harness.models.gguf_files import read_gguf
from rn_harness.models.hub import CODE, FILES, PICKLES, SKIPPED, HubError, locate
from rn_harness.models.identity import root_digest, text_digest, weights_digest
from rn_harness.models.templates import check_template, own_template, read_template
from rn_harness.spec.errors import CandidateError
from rn_harness.spec.extras import require
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.model_profiles import HUB_ID, ModelProfile, load_model_profile, profile_names

MODELS = "models"
"""Folder of the profiles within the fixtures."""


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
        base: folder that relative paths start from.
        chat_template: file with a chat template that replaces the model's own.
        allow_pickle, trust_remote_code: accept pickled weights; run Python files in the model's folder.
        quantise, shards: 4-bit format of its loaded layers, ``nf4``, or None; processes that its weights are spread over.

    Raises:
        CandidateError: no such model, or one that cannot be attacked as it is.
    """
    profile = find_profile(spec, base)
    folder, revision, gguf = _find(spec, base, profile, allow_pickle=allow_pickle, code=trust_remote_code)
    files = _read(folder, gguf, fetched=revision is not None, allow_pickle=allow_pickle)
    quantised = _quantised(quantise, files.config, folder, gguf)
    given, template = _template(base, chat_template, files, folder / (gguf or ""))
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
    return Candidate(
        name=profile.name if profile else spec if revision else _path(spec, base).name,
        folder=folder,
        revision=revision,
        digest=_digest(files_digest, settings),
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


def _digest(files_digest: str, settings: Mapping[str, str | None]) -> str:
    """The candidate's digest: of its files, and of the settings that load them differently."""
    changed = {key: value for key, value in settings.items() if value}
    return text_digest(json.dumps([files_digest, changed], sort_keys=True)) if changed else files_digest


def _template(base: Path, file: str | None, files: FileHeaders, location: Path) -> tuple[str | None, str]:
    """The user's chat template, if there is one, and the template that counts."""
    if file is None:
        return None, check_template(files.template, files.special, str(location))
    given = read_template(base, file)
    return given, check_template(given, files.special, f"--rn-chat-template {file}")


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
