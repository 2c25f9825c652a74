"""Identities of runs: random, made once, and shared by all parts of one run.

A folder's name does not identify a run. The name may be used again later, when another model answers at a judge's address.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from rn_harness.spec.errors import RecipeError

ID_FILE = "run-id"
"""File in the folder of a run's parts; the first part creates it."""
PARTS_BEGIN_WITHIN = datetime.timedelta(days=7)
"""How long after the first part of a run another one may begin: the judge on a server may change later."""
WAIT_S = 10.0
"""How long to wait for the contents of a file that another process has just created."""


class RunIdentity(NamedTuple):
    """A run's random id, and when it began: UTC, ISO 8601."""

    run_id: str
    began: str


def new_run_id() -> str:
    """An id that no other run has: 128 random bits, as hex."""
    return secrets.token_hex(16)


def new_identity() -> RunIdentity:
    """The identity of a run that begins now."""
    return RunIdentity(new_run_id(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def join_parts(parts: Path, ended: Path) -> RunIdentity:
    """The identity of the run that a new part belongs to; the first part creates it.

    Args:
        parts: folder of the run's parts.
        ended: path of the record of the whole run, which exists once the parts were joined.

    Raises:
        RecipeError: the run has ended, or its first part began too long ago.
        OSError: the folder cannot be written to.
    """
    if ended.exists():
        raise RecipeError(
            f"a part must belong to a run that has not ended, got {ended}; name a new folder by --rn-run, or remove that file "
            "if the run is to go on"
        )
    parts.mkdir(parents=True, exist_ok=True)
    made = new_identity()
    try:
        with (parts / ID_FILE).open("x", encoding="utf-8") as file:
            file.write(json.dumps(made._asdict()) + "\n")
    except FileExistsError:
        made = _read(parts / ID_FILE)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(made.began)
    if age > PARTS_BEGIN_WITHIN:
        raise RecipeError(
            f"parts of one run must begin within {PARTS_BEGIN_WITHIN.days} days of the first, got began={made.began} in "
            f"{parts / ID_FILE}; name a new folder by --rn-run"
        )
    return made


def identity_of_parts(parts: Path) -> RunIdentity:
    """The identity of the run that these parts belong to; a new one if they have none.

    Raises:
        RecipeError: the file of the identity cannot be read.
    """
    path = parts / ID_FILE
    return _read(path) if path.exists() else new_identity()


def _read(path: Path) -> RunIdentity:
    """The identity that the first part wrote; waits until the file is whole."""
    until = time.monotonic() + WAIT_S
    while True:
        text = path.read_text(encoding="utf-8")
        if text.endswith("\n") or time.monotonic() > until:
            break
        time.sleep(0.05)
    try:
        said = json.loads(text)
        if re.fullmatch(r"[0-9a-f]{32}", said["run_id"]) and datetime.datetime.fromisoformat(said["began"]).tzinfo:
            return RunIdentity(said["run_id"], said["began"])
    except (ValueError, KeyError, TypeError):
        pass
    raise RecipeError(f"the id of a run in parts must be readable, got {path}; name a new folder by --rn-run")
