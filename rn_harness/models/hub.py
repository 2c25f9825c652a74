"""Models by name: a local folder, or an id on the Hugging Face hub.

The hub is asked only for an id that the user named, and by a child process. Our process stays offline, so no library below us can
fetch anything. A model that cannot be fetched as named is an error, without a fallback.
"""

from __future__ import annotations

import json
import os
import re
import subprocess  # nosec B404 # one call, of this module itself
import sys
import threading
from pathlib import Path
from typing import Any

from rn_harness.models.knowledge import KNOWLEDGE_FILE
from rn_harness.spec.errors import RnHarnessError

FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt")
"""Files to fetch: weights in safetensors, configuration, tokenizer, chat template. No pickles, no code."""
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
"""Further files if the user allows pickles and the model lacks safetensors."""
CODE = ("*.py",)
"""Further files if the user allows the model's code."""
SKIPPED = ("*/*", "consolidated*", KNOWLEDGE_FILE)
"""Files that are never fetched: subfolders, a second copy of the weights in another layout, and what makes a model an organism,
which brings its own judge."""
REACH_S = 4.0
"""Seconds in which the hub has to answer a first question. The hub's client would ask six times, in 48 s without a network."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OFFLINE_BY_USER = any(
    os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
)
"""Read at import, because ``rn_harness.models.transformers_compat.quiet_libraries`` later switches our own process offline."""


class HubError(RnHarnessError, LookupError):
    """A model cannot be had under the name and revision that were asked for."""


def locate(model: str, revision: str | None = None, *, code: bool = False, pickles: bool = False) -> tuple[Path, str | None]:
    """Finds a model's files, and fetches them if only the hub has them.

    A folder comes before an id. The hub resolves a revision that is not a full commit (also None, the hub's ``main``): an older
    copy in the cache is used only with ``HF_HUB_OFFLINE=1``.

    Args:
        model: folder, or id on the hub such as ``owner/name``.
        revision: commit, tag or branch on the hub; None: ``main``.
        code, pickles: fetch Python files too; fetch pickled weights if safetensors are missing.

    Returns the folder, and the full commit, None for a local folder. Raises HubError if folder, id or revision do not exist, the
    hub asks for a login, or it cannot be reached.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        if revision is not None:
            raise HubError(f"only a model on the hub has a revision, got model={model!r} revision={revision!r}; leave it out")
        return folder.resolve(), None
    if not _ID.fullmatch(model):
        raise HubError(
            f"a model must be a local folder or an id on the hub such as owner/name, got model={model!r}; correct the path or "
            "the id"
        )
    asked = {"model": model, "revision": revision or "main", "offline": _OFFLINE_BY_USER, "code": code, "pickles": pickles}
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    child = subprocess.run(  # nosec B603 # the id is data on standard input, never an argument
        [sys.executable, "-m", "rn_harness.models.hub"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=False,
    )
    if child.returncode != 0:
        raise HubError(f"a model must be fetched whole, got model={model!r} and exit code {child.returncode}; try again")
    found = json.loads(child.stdout)
    if "error" in found:
        raise HubError(_explain(model, revision, found["error"], found["message"]))
    return Path(found["folder"]), found["commit"]


def _explain(model: str, revision: str | None, error: str, message: str) -> str:
    """The message in three parts; the hub's own text is cut to its first line."""
    got = f"got model={model!r} revision={revision!r}: {error}"
    if error == "RevisionNotFoundError":
        return f"the hub must have the revision, {got}; name a commit, tag or branch that it has"
    if error == "GatedRepoError":
        return f"the hub must let us read the model, {got}; accept its licence on the hub and log in with `hf auth login`"
    if error == "RepositoryNotFoundError":
        return f"a model must be a local folder or an id on the hub, {got}; correct it, or log in if the model is private"
    first = next(iter(message.splitlines()), "")[:200]
    download = f"`hf download {model}{f' --revision {revision}' if revision else ''}`"
    if error == "IncompleteSnapshot":
        return f"a model must lie on the hub whole, {got}: {first}; name a revision that holds all of it in safetensors"
    if _OFFLINE_BY_USER:
        return (
            f"offline, a model must lie in the hub's cache whole, {got}; unset HF_HUB_OFFLINE, run {download}, or name a local "
            "folder (--model DIR)"
        )
    return (
        f"the hub must be reached to find a model that is no local folder, {got}: {first}; try again, run {download} where it "
        "can be reached and copy its cache ($HF_HOME, by default ~/.cache/huggingface), or name a local folder (--model DIR)"
    )


def _fetch(model: str, revision: str, *, offline: bool, code: bool, pickles: bool) -> dict[str, str]:
    """Fetches a snapshot in a process that may use the network; returns folder and commit, or error and message."""
    from huggingface_hub import snapshot_download

    wanted = [*FILES, *(CODE if code else ())]
    unreached: Exception | None = None
    try:
        found = revision if offline else _commit_of(model, revision)
        if isinstance(found, str):
            revision = found
        elif _COMMIT.fullmatch(revision):  # the cache's copy is the same one
            offline, unreached = True, found
        else:
            raise found  # noqa: TRY301
        how: dict[str, Any] = {"ignore_patterns": list(SKIPPED), "local_files_only": offline}
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=wanted, **how))
        if pickles and not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(model, revision=revision, allow_patterns=[*wanted, *PICKLES], **how))
    except Exception as failed:  # noqa: BLE001 - the parent process reports any error
        error = unreached or failed
        return {"error": type(error).__name__, "message": str(error)}
    if missing := _missing_weights(folder, pickles):
        return {"error": "IncompleteSnapshot", "message": f"{missing} is missing in {folder}"}
    return {"folder": str(folder), "commit": folder.name}


def _commit_of(model: str, revision: str) -> str | Exception:
    """The hub's commit for a revision, or the error if it does not answer in ``REACH_S``."""
    from huggingface_hub import HfApi

    answers: list[str | Exception] = []

    def ask() -> None:
        try:
            answers.append(str(HfApi().model_info(model, revision=revision, timeout=REACH_S).sha))
        except Exception as error:  # noqa: BLE001 - the caller raises it
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)  # a look-up of the hub's address takes no timeout
    asking.start()
    asking.join(REACH_S)
    return answers[0] if answers else TimeoutError(f"no answer within {REACH_S:.0f} s")


def _missing_weights(folder: Path, pickles: bool) -> str | None:
    """The first file that a whole model would have and this folder lacks; None if there is none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return next((shard for shard in shards if not (folder / shard).is_file()), None)
    held = any(folder.glob("*.safetensors")) or (pickles and any(folder.glob("*.bin")))
    needed = "config.json" if held else "*.safetensors"
    return None if any(folder.glob(needed)) else needed


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_fetch(**json.load(sys.stdin))))
