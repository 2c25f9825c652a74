"""The store: finished work by content address.

A key is a sha256 over everything that the result depends on. An entry is a folder with the digest of each file. It is written
under a temporary name and renamed when it is complete. An entry that does not match its digests is set aside and made again.
The measurements of an unfinished case are in a journal, and an unfinished training of a defense is under the kind ``partial``;
both are removed on completion, but the journal of a case that failed or left doubts stays. Attacked weights are never stored: the
only weights here are those of defenses.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn_harness.records.base import digest_of
from rn_harness.spec.errors import StoreError
from rn_harness.store.files import write_text
from rn_harness.store.journal import Journal
from rn_harness.store.settled import remembered

MANIFEST = "entry.json"
ENTRY_VERSION = 1
LOCK_TIMEOUT_S = 6 * 3600
LOCKS, UNFINISHED, ALIKE = "locks", "unfinished", "alike"
DAMAGED = ".damaged"
MARGIN_BYTES = 64 * 2**20
"""Free space required in addition to the weights: records, certificates, logs."""
DAY_S = 86_400.0
SAME = frozenset({"forbidden", "case", "recipe.name", "recipe.prompts", "recipe.learning_rate", "recipe.seed"})
"""Parts of a key that identify the case. The other parts are conditions of the measurement, such as versions and hardware."""


def default_root() -> Path:
    """The folder ``RN_HARNESS_CACHE``, else the user's cache folder."""
    import platformdirs

    named = os.environ.get("RN_HARNESS_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("rn-harness"))


def digests_of(parts: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the parts of a key, by name; a mapping gives one digest for each field. An entry keeps these and no text."""
    flat = {
        f"{name}.{inner}" if inner else name: value
        for name, part in parts.items()
        for inner, value in (part.items() if isinstance(part, dict) and part else [("", part)])
    }
    return {name: digest_of(value) for name, value in flat.items()}


def check_room(folder: Path, needed: int) -> int:
    """Raises StoreError, before hours of work, unless a folder is writable and has enough free space. Returns the free bytes.

    If the folder does not exist, its nearest existing parent is checked; no folder is created.
    """
    there = next((above for above in (folder, *folder.parents) if above.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise StoreError(
            f"results must be kept, got folder={folder}: {error.strerror or error}; set RN_HARNESS_CACHE, --rn-run or TMPDIR "
            "to folders that can be written to"
        ) from error
    if free < needed:
        raise StoreError(
            f"results must fit, got {free / 2**20:.0f} MiB free for {needed / 2**20:.0f} in {folder}; make room, or set "
            "RN_HARNESS_CACHE, --rn-run or TMPDIR to another disk"
        )
    return free


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of the store.

    Its kind is the folder, and its name a key, a journal, or the remains of a damaged entry or a killed process. ``used`` is when
    it was last read or written, in seconds since the epoch. Only a whole entry is ever read as a result.
    """

    kind: str
    name: str
    size: int
    used: float
    whole: bool
    path: Path


def read_manifest(folder: Path) -> dict[str, Any]:
    """An entry's manifest: its address, and the sha256 of each file."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known_sha256(path: Path) -> str:
    return remembered(path, lambda: [path], lambda: _sha256(path))


def _check_arrived(kind: str, files: Mapping[str, str], sent: Mapping[str, str]) -> None:
    """Raises StoreError if the sha256 of these files are not those that were sent."""
    wrong = sorted(name for name in files.keys() | sent.keys() if files.get(name) != sent.get(name))
    if wrong:
        raise StoreError(f"a {kind} must arrive as it was sent, got other contents of {', '.join(wrong)}; run again")


class Store:
    """Finished defenses and cases of all runs of a user. The first write creates the folder ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of a complete entry, or None.

        A damaged entry is renamed to ``*.damaged`` with a warning, and None is returned.
        """
        folder = self.root / kind / key
        if not folder.is_dir():
            return None
        problem = self._damage(folder, kind, key)
        if problem is None:
            with suppress(OSError):  # the store may be read-only
                os.utime(folder / MANIFEST)
            return folder
        self.set_aside(kind, key, problem)
        return None

    def set_aside(self, kind: str, key: str, problem: str) -> None:
        """Renames a damaged entry to ``*.damaged``, with a warning that says why."""
        folder = self.root / kind / key
        aside = folder.with_name(f"{folder.name}{DAMAGED}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        warnings.warn(f"a stored {kind} was damaged ({problem}); set aside as {aside}, it is made anew", stacklevel=3)

    def remove(self, kind: str, key: str) -> None:
        """Removes an entry if it exists; the caller holds its lock."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root / kind / key)

    def _damage(self, folder: Path, kind: str, key: str) -> str | None:
        try:
            manifest = read_manifest(folder)
            address, files = (manifest["version"], manifest["kind"], manifest["key"]), manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST}: {type(error).__name__}"
        if address != (ENTRY_VERSION, kind, key):  # a copied or renamed folder is another result
            return f"{MANIFEST}: of another version or address"
        if not isinstance(files, dict):
            return f"{MANIFEST}: no digests of files"
        present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
        if present != set(files):
            return "files are missing or added"
        changed = (name for name, digest in files.items() if _known_sha256(folder / name) != digest)
        return next((f"{name} changed" for name in changed), None)

    @contextmanager
    def locked(self, kind: str, key: str) -> Iterator[None]:
        """Lets one process at a time make an entry; the others wait, and then find it in the store."""
        import filelock

        locks = self.root / LOCKS
        try:
            locks.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(locks / f"{kind}-{key}.lock", timeout=LOCK_TIMEOUT_S)
            lock.acquire()
        except (OSError, filelock.Timeout) as error:
            raise StoreError(
                f"the store must be writable, got root={self.root}: {error}; set RN_HARNESS_CACHE to a folder that is"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def journal(self, key: str, tolerance: float = 0.0, case: str = "") -> Journal:
        """Opens the journal of a case with this key, see ``Journal``; it reads those of all keys with the same ``case``, too."""
        name = f"{case[:32]}-{key}" if case else key
        return Journal.at(self.root / UNFINISHED / f"{name}.jsonl", tolerance)

    def changed(self, kind: str, parts: Mapping[str, Any]) -> list[str] | None:
        """Names of the key parts in which the most similar stored entry differs; None if the same case was never stored.

        Two entries are of the same case if the parts in ``SAME`` are equal, such as domain, case and attack.
        """
        wanted, best = digests_of(parts), None
        for link in sorted(self._alike(kind, wanted).glob("*")):
            try:
                known = read_manifest(self.root / kind / link.name)["parts"]
                differing = sorted(name for name in wanted.keys() | known.keys() if wanted.get(name) != known.get(name))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue  # removed or damaged
            if best is None or len(differing) < len(best):
                best = differing
        return best

    def _alike(self, kind: str, digests: Mapping[str, str]) -> Path:
        """The folder with an empty file for each entry of the same case, so that a miss reads their manifests only."""
        return self.root / ALIKE / f"{kind}-{digest_of({name: digests.get(name) for name in sorted(SAME)})}"

    def entries(self) -> list[Entry]:
        """Everything in the store except locks, sorted by address."""
        found = []
        for path in sorted(self.root.glob("*/*")):
            kind = path.parent.name
            if kind in (LOCKS, ALIKE):
                continue
            files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
            try:
                size = sum(p.stat().st_size for p in files)
                used = (path / MANIFEST if (path / MANIFEST).is_file() else path).stat().st_mtime
            except FileNotFoundError:
                continue  # another process removed or renamed it in the meantime
            is_whole = (path / MANIFEST).is_file() and not path.name.endswith(DAMAGED) and not path.name.startswith(".")
            found.append(Entry(kind, path.name, size, used, is_whole, path))
        return found

    def prune(self, unused_days: float) -> list[Entry]:
        """Removes and returns entries, journals and remains that were not used for some days; 0 removes all."""
        before = time.time() - unused_days * DAY_S
        old = [entry for entry in self.entries() if entry.used <= before]
        for entry in old:
            try:
                if entry.path.is_dir():
                    shutil.rmtree(entry.path)
                else:
                    entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(
                    f"a store that is pruned must be writable, got {entry.path}: {error.strerror or error}; remove it by hand"
                ) from error
        for link in (self.root / ALIKE).glob("*/*"):
            if not (self.root / link.parent.name.rpartition("-")[0] / link.name).exists():
                link.unlink(missing_ok=True)
        return old

    def put(
        self,
        kind: str,
        key: str,
        write: Callable[[Path], None],
        parts: Mapping[str, Any] | None = None,
        *,
        expected: Mapping[str, str] | None = None,
    ) -> Path:
        """Adds an entry, whose folder ``write`` fills, and returns the folder.

        The entry keeps a digest of each of the key's ``parts``, so that a later change can be named. Raises StoreError if the
        files do not have the ``expected`` sha256.
        """
        final = self.root / kind / key
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{key[:12]}."))
        try:
            write(temporary)
            files = {p.relative_to(temporary).as_posix(): _sha256(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
            _check_arrived(kind, files, files if expected is None else expected)
            digests = digests_of(parts or {})
            manifest = {"version": ENTRY_VERSION, "kind": kind, "key": key, "files": files, "parts": digests}
            write_text(temporary / MANIFEST, json.dumps(manifest))
            if final.exists():  # move the old entry away in one step, and delete it once the new one is in its place
                replaced = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{key[:12]}."))
                final.rename(replaced)
                try:
                    temporary.rename(final)
                except OSError:
                    replaced.rename(final)
                    raise
                shutil.rmtree(replaced)
            else:
                temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if parts:
            link = self._alike(kind, digests) / key
            link.parent.mkdir(parents=True, exist_ok=True)
            link.touch()
        return final
