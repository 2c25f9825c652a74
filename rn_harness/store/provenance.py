"""Provenance of a result, apart from its inputs: versions, sources, hardware, working tree, attempts."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import subprocess  # nosec B404 # git, see _git
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rn_harness.records.case import Attempt, WorkingTree
from rn_harness.store.ranks import ranks
from rn_harness.store.store import Store, write_text

GIT_TIMEOUT_S = 30
ATTEMPTS = "attempts"
DECIDING_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy", "scipy")


@functools.cache
def source_digest(*names: str) -> str:
    """The sha256 of the harness's source files. A changed line may change a result.

    Args:
        names: paths of the files to hash, relative to the package folder; none: all files.
    """
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package / name for name in names) if names else sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
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
    """Restricts this worker process to one of the visible GPUs, assigned in turn.

    Args:
        worker: number of this worker, from 0.
        environment: variables of the process; ``CUDA_VISIBLE_DEVICES`` is read if it is set, and changed.
        count: returns the number of GPUs of the machine; None: torch counts them. This process must not use a GPU yet.
    """
    name = "CUDA_VISIBLE_DEVICES"
    seen = [card for card in environment[name].split(",") if card.strip()] if name in environment else None
    if seen and (ends := next((i for i, card in enumerate(seen) if card.strip().startswith("-")), None)) is not None:
        seen = seen[:ends]  # CUDA ignores everything from the first negative number on
    if seen is None:
        seen = [str(card) for card in range((count or _cards)())]
    if len(seen) > 1:
        environment[name] = seen[worker % len(seen)]


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
    told = _git(folder, "status", "--porcelain", "--untracked-files=all", "--no-renames", "-z", "--", ".")
    if told is None:
        return [f"{folder.name}, of which git tells nothing,"]
    changed = {line[3:] for line in told.split("\0") if line and "__pycache__" not in line}
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
    """The git working tree that contains a folder.

    Args:
        folder: of a suite.

    Returns:
        Commit, and whether the tree differs from it; None without git, a repository or a commit, or if git fails.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit or changed is None:
        return None
    return WorkingTree(commit=commit.strip(), dirty=bool(changed or uncommitted(folder)))


@dataclass
class Trial:
    """An attempt that is under way.

    Attributes:
        outcome: recorded when the attempt ends without an exception.
    """

    outcome: Literal["done", "judge_failed"] = "done"
    _clock: float = field(default_factory=time.monotonic)
    _processor: float = field(default_factory=time.process_time)

    def ended(self, begun: Attempt, outcome: Literal["done", "judge_failed", "cut"]) -> Attempt:
        """The attempt with its end time, durations and outcome."""
        wall = time.monotonic() - self._clock
        used = time.process_time() - self._processor if device() == "cpu" else wall
        changes = {"ended": now(), "wall_s": round(wall, 3), "device_s": round(used, 3), "outcome": outcome}
        return begun.model_copy(update=changes)


@contextmanager
def attempt(store: Store, key: str) -> Iterator[Trial]:
    """Records in the store that work was attempted. The record is written first, so that a killed attempt counts as cut.

    Args:
        store: keeps the attempts of a key in an entry apart from the work; the caller holds the lock of the work.
        key: of the work.
    """
    earlier, begun, trial = attempts(store, key), Attempt(started=now()), Trial()
    _note(store, key, (*earlier, begun))
    outcome: Literal["done", "judge_failed", "cut"] = "cut"
    try:
        yield trial
        outcome = trial.outcome
    finally:
        _note(store, key, (*earlier, trial.ended(begun, outcome)))


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
