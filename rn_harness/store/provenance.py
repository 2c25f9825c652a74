"""Provenance of a result, apart from its inputs: versions, sources, hardware, working tree, attempts, and the run's identity.

A run's id is random, made once, and shared by all of its parts. A folder's name does not identify a run: it may be used again
later, when another model answers at a judge's address.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import secrets
import shutil
import subprocess  # nosec B404 # git, see _git
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rn_harness.records.case import Attempt, WorkingTree
from rn_harness.records.run import OUTCOME_FILES, RUN
from rn_harness.spec.errors import RecipeError
from rn_harness.spec.fixtures import PACKAGE, suites_folder
from rn_harness.store.files import write_text
from rn_harness.store.ranks import ranks
from rn_harness.store.store import Store

GIT_TIMEOUT_S = 30
ATTEMPTS = "attempts"
ID_FILE = "run-id"
"""File in the folder of a run's parts; the first part creates it."""
PARTS_BEGIN_WITHIN = datetime.timedelta(days=7)
"""How long after the first part of a run another one may begin: the judge on a server may change later."""
WAIT_S = 10.0
"""How long to wait for the contents of a file that another process has just created."""

DECIDING_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy", "scipy")


@functools.cache
def source_digest(*names: str) -> str:
    """The sha256 of the named source files of the package, or of all. A changed line may change a result.

    A wheel has the digest of its checkout: the suites in it are no sources, and have digests of their own.
    """
    files = (p for p in PACKAGE.rglob("*.py") if not p.is_relative_to(suites_folder()))
    digest = hashlib.sha256()
    for path in sorted(PACKAGE / name for name in names) if names else sorted(files):
        digest.update(path.relative_to(PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide results, of Python, and of the harness's sources."""
    found = {name: importlib.metadata.version(name) for name in DECIDING_PACKAGES}
    return {**found, "python": platform.python_version(), "rn-harness-sources": source_digest()}


def hardware(threads: int) -> dict[str, str | int]:
    """Device, machine, threads, and the number of processes if several. Sums of floats and random streams depend on them."""
    several = {"processes": ranks().size} if ranks().size > 1 else {}
    return {"device": device(), "machine": platform.machine(), "processor": _processor(), "threads": threads, **several}


@functools.cache
def device() -> str:
    """The GPU's name, or ``cpu``. Torch is loaded only if a GPU driver is installed."""
    if not _has_driver():
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def take_card(worker: int, environment: MutableMapping[str, str] = os.environ, count: Callable[[], int] | None = None) -> None:
    """Restricts this worker process, which must not use a GPU yet, to one of the visible GPUs, assigned in turn.

    Args:
        worker: number of this worker, from 0.
        environment: variables of the process; ``CUDA_VISIBLE_DEVICES`` is read if it is set, and changed.
        count: returns the number of GPUs of the machine; None: torch counts them.
    """
    name = "CUDA_VISIBLE_DEVICES"
    if name in environment:
        listed = (card for card in environment[name].split(",") if card.strip())
        # CUDA ignores everything from the first negative number on.
        cards = list(itertools.takewhile(lambda card: not card.strip().startswith("-"), listed))
    else:
        cards = [str(card) for card in range((count or _cards)())]
    if len(cards) > 1:
        environment[name] = cards[worker % len(cards)]


def _has_driver() -> bool:
    return any(Path(driver).exists() for driver in ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd"))


def _cards() -> int:
    """Number of GPUs of the machine. Counting does not initialise them."""
    if not _has_driver():
        return 0
    import torch

    return torch.cuda.device_count()


def _processor() -> str:
    """The processor's name, from ``/proc/cpuinfo`` if possible."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in a folder; None if git is missing or the command fails.

    A repository from a stranger can name programs that git would run. Hooks and file monitors are therefore switched off.
    """
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "--no-optional-locks"]
    try:
        done = subprocess.run(  # noqa: S603  # nosec B603 # no shell; the arguments are ours
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def uncommitted(folder: Path) -> list[str]:
    """The files of a folder that differ from the last commit, sorted; empty outside a git repository.

    If git cannot report the state, the folder itself is listed: unknown is not clean.
    """
    if not any((above / ".git").exists() for above in (folder, *folder.parents)):
        return []
    status = _git(folder, "status", "--porcelain", "--untracked-files=all", "--no-renames", "-z", "--", ".")
    if status is None:
        return [f"{folder.name}, of which git tells nothing,"]
    changed = {line[3:] for line in status.split("\0") if line and "__pycache__" not in line}
    return sorted(changed | _other_than_committed(folder))


def _other_than_committed(folder: Path) -> set[str]:
    """The files whose contents differ from the commit, including those that ``git status`` does not report.

    ``git status`` skips files that are ignored, excluded or assumed to be unchanged.
    """
    top = _git(folder, "rev-parse", "--show-prefix")
    rows = (_git(folder, "ls-tree", "-r", "-z", "--full-name", "HEAD", "--", ".") or "").split("\0")
    committed = {path: entry.split()[2] for entry, _, path in (row.partition("\t") for row in rows) if path}
    if top is None or not committed:
        return set()
    here = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink() and "__pycache__" not in p.parts]
    hashes = (_git(folder, "hash-object", "--no-filters", "--", *(p.relative_to(folder).as_posix() for p in here)) or "").split()
    names = [f"{top.strip()}{p.relative_to(folder).as_posix()}" for p in here]
    return {name for name, found in itertools.zip_longest(names, hashes) if committed.get(name) != found}


@functools.cache
def working_tree(folder: Path) -> WorkingTree | None:
    """The git working tree that contains a suite's folder; None without git, a repository or a commit, or if git fails."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit or changed is None:
        return None
    return WorkingTree(commit=commit.strip(), dirty=bool(changed or uncommitted(folder)))


@dataclass
class Trial:
    """An attempt that is under way; its ``outcome`` is recorded when it ends without an exception."""

    outcome: Literal["done", "judge_failed"] = "done"


@contextmanager
def attempt(store: Store, key: str) -> Iterator[Trial]:
    """Records in the store that work was attempted. The record is written first, so that a killed attempt counts as cut.

    The attempts of a key have an entry apart from the work's; the caller holds the lock of the work.
    """
    earlier, begun, trial = attempts(store, key), Attempt(started=now()), Trial()
    clock, processor = time.monotonic(), time.process_time()
    _note(store, key, (*earlier, begun))
    outcome: Literal["done", "judge_failed", "cut"] = "cut"
    try:
        yield trial
        outcome = trial.outcome
    finally:
        wall = time.monotonic() - clock
        used = time.process_time() - processor if device() == "cpu" else wall
        ended = {"ended": now(), "wall_s": round(wall, 3), "device_s": round(used, 3), "outcome": outcome}
        _note(store, key, (*earlier, begun.model_copy(update=ended)))


def attempts(store: Store, key: str) -> tuple[Attempt, ...]:
    """All recorded attempts at a piece of work, in order."""
    with store.locked(ATTEMPTS, key):
        entry = store.get(ATTEMPTS, key)
        rows = json.loads((entry / f"{ATTEMPTS}.json").read_text(encoding="utf-8")) if entry else []
    return tuple(Attempt.model_validate(row) for row in rows)


def _note(store: Store, key: str, tried: tuple[Attempt, ...]) -> None:
    text = json.dumps([a.model_dump(mode="json") for a in tried], allow_nan=False)
    with store.locked(ATTEMPTS, key):
        store.put(ATTEMPTS, key, lambda into: write_text(into / f"{ATTEMPTS}.json", text))


def now() -> str:
    """The current time: UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class RunIdentity(NamedTuple):
    """A run's random id, and when it began: UTC, ISO 8601."""

    run_id: str
    began: str


def new_run_id() -> str:
    """An id that no other run has: 128 random bits, as hex."""
    return secrets.token_hex(16)


def new_identity() -> RunIdentity:
    """The identity of a run that begins now."""
    return RunIdentity(new_run_id(), now())


def join_parts(parts: Path, ended: Path) -> RunIdentity:
    """The identity of the run that a new part belongs to; the first part creates it in the folder ``parts``.

    Raises RecipeError if the first part began too long ago, or if the run has ended, so that its record ``ended`` exists.
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
        made = _read_identity(parts / ID_FILE)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(made.began)
    if age > PARTS_BEGIN_WITHIN:
        raise RecipeError(
            f"parts of one run must begin within {PARTS_BEGIN_WITHIN.days} days of the first, got began={made.began} in "
            f"{parts / ID_FILE}; name a new folder by --rn-run"
        )
    return made


def identity_of_parts(parts: Path) -> RunIdentity:
    """The identity of the run that these parts belong to; a new one if they have none."""
    path = parts / ID_FILE
    return _read_identity(path) if path.exists() else new_identity()


def remove_outcome(folder: Path) -> None:
    """Removes the files that say how a folder's run ended; its cases stay."""
    for name in OUTCOME_FILES:
        (folder / name).unlink(missing_ok=True)


def clear_outcome(folder: Path) -> tuple[Path, str] | None:
    """Removes an earlier run's outcome from a folder; a decided run is moved to a numbered folder, all but its parts.

    Returns that folder and the outcome, or None if there is no decided run. Raises OSError if the folder cannot be written.
    """
    try:
        outcome = json.loads((folder / RUN).read_text(encoding="utf-8"))["outcome"]
    except FileNotFoundError:
        outcome = "INCONCLUSIVE"
    except (ValueError, LookupError, TypeError):
        outcome = "unreadable"
    if outcome == "INCONCLUSIVE":  # the same command goes on
        remove_outcome(folder)
        return None
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(1))
    kept = next(path for path in numbered if not path.exists())
    kept.mkdir()
    for path in [path for path in folder.iterdir() if path.name != "parts"]:
        shutil.move(path, kept)
    return kept, str(outcome)


def _read_identity(path: Path) -> RunIdentity:
    """The identity that the first part wrote; waits until the file is whole."""
    until = time.monotonic() + WAIT_S
    while not (text := path.read_text(encoding="utf-8")).endswith("\n") and time.monotonic() <= until:
        time.sleep(0.05)
    try:
        said = json.loads(text)
        if re.fullmatch(r"[0-9a-f]{32}", said["run_id"]) and datetime.datetime.fromisoformat(said["began"]).tzinfo:
            return RunIdentity(said["run_id"], said["began"])
    except (ValueError, KeyError, TypeError):
        pass
    raise RecipeError(f"the id of a run in parts must be readable, got {path}; name a new folder by --rn-run")
