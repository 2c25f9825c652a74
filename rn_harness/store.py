"""The store: finished work by content address. Floor 2 (adapters).

A key is a sha256 over everything that the result depends on. An entry is a folder that is written under another name and
renamed when it is whole, with the digest of each file; an entry that does not match its digests is set aside and made anew.
Attacked weights never come here: the only weights are a defense's adapter.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rn_harness.errors import StoreError

MANIFEST = "entry.json"
ENTRY_VERSION = 1
LOCK_TIMEOUT_S = 6 * 3600


def default_root() -> Path:
    """``RN_HARNESS_CACHE``, else the user's cache folder."""
    import platformdirs

    named = os.environ.get("RN_HARNESS_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("rn-harness"))


def content_key(kind: str, parts: dict[str, Any]) -> str:
    """The address of a result.

    Args:
        kind: what it is.
        parts: JSON-able; everything that it depends on.

    Returns:
        64 hex digits.
    """
    canonical = json.dumps({"kind": kind, "parts": parts}, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Store:
    """Finished defenses and cases of all runs of a user.

    Args:
        root: its folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def get(self, kind: str, key: str) -> Path | None:
        """The folder of a whole entry, or None.

        A damaged entry is renamed to ``*.damaged`` with a warning, and None is returned.
        """
        folder = self._folder(kind, key)
        if not folder.is_dir():
            return None
        problem = self._damage(folder, kind, key)
        if problem is None:
            return folder
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        warnings.warn(f"a stored {kind} was damaged ({problem}); set aside as {aside}, it is made anew", stacklevel=2)
        return None

    def _damage(self, folder: Path, kind: str, key: str) -> str | None:
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            address = (manifest["version"], manifest["kind"], manifest["key"])
            files = manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST}: {type(error).__name__}"
        if address != (ENTRY_VERSION, kind, key):  # a copied or renamed folder is whole, and another result
            return f"{MANIFEST}: of another version or address"
        if not isinstance(files, dict):
            return f"{MANIFEST}: no digests of files"
        present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
        if present != set(files):
            return "files are missing or added"
        for name, digest in files.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                return f"{name} changed"
        return None

    @contextmanager
    def locked(self, kind: str, key: str) -> Iterator[None]:
        """Lets one process at a time make an entry; the others wait and then find it.

        Raises:
            StoreError: the store cannot be written to.
        """
        import filelock

        locks = self.root / "locks"
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

    def put(self, kind: str, key: str, write: Callable[[Path], None]) -> Path:
        """Adds an entry.

        Args:
            kind, key: its address.
            write: fills the folder that it is given.

        Returns:
            The entry's folder.
        """
        final = self._folder(kind, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{key[:12]}."))
        try:
            write(temporary)
            files = {
                p.relative_to(temporary).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
                for p in sorted(temporary.rglob("*"))
                if p.is_file()
            }
            write_text(temporary / MANIFEST, json.dumps({"version": ENTRY_VERSION, "kind": kind, "key": key, "files": files}))
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return final
