"""Work outside training on weights of the size of a 7B model: ``python benchmarks/outside.py``.

Makes a folder with four sparse shards of 15 GB together, and measures what a case costs besides its training: the check that the
weights are still the same, the read of a stored defense, a line of the journal, and the search for what changed after a miss.
Nothing is loaded. Times are of one process, bytes are those that it asked the system for. Stored in docs/evidence/outside.json.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rn_harness.models.identity import hash_files
from rn_harness.run.session import RunSession  # noqa: F401  (the imports of a run come before the first time)
from rn_harness.store.settled import SETTLED_NS
from rn_harness.store.store import Store, write_text

OUT = Path(__file__).resolve().parents[1] / "docs" / "evidence" / "outside.json"
SHARDS, BYTES = 4, 15 * 10**9
ENTRIES = 1000
"""Stored cases, all but one of other attacks."""
CHECKPOINTS, LINE = 21, 60_000
"""Lines of a journal, and characters of each: a checkpoint with 20 prompts of 4 samples."""


def weights(folder: Path) -> None:
    """Four sparse shards and a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(SHARDS):
        with (folder / f"model-{i + 1:05}-of-{SHARDS:05}.safetensors").open("wb") as file:
            file.truncate(BYTES // SHARDS)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def record(folder: Path) -> None:
    """A small file."""
    (folder / "record.json").write_text("{}", encoding="utf-8")


def io() -> tuple[int, int]:
    """Bytes that this process has read and written so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines())
    return int(lines["rchar"]), int(lines["wchar"])


def measured(work: Callable[[], object]) -> dict[str, Any]:
    """Seconds, and megabytes read and written, of a piece of work."""
    (read, written), began = io(), time.perf_counter()
    work()
    seconds, (read_then, written_then) = time.perf_counter() - began, io()
    return {"seconds": round(seconds, 4), "read_MB": (read_then - read) / 1e6, "written_MB": (written_then - written) / 1e6}


def rewriting(path: Path) -> None:
    """A journal that is written anew with each line, as it was before."""
    lines: list[str] = []
    for _ in range(CHECKPOINTS):
        lines.append("x" * LINE + "\n")
        write_text(path, "".join(lines))


def appending(store: Store) -> None:
    """A journal of the store."""
    journal = store.journal("case")
    for _ in range(CHECKPOINTS):
        journal.add("x" * LINE)


def main() -> None:
    """Measures each piece of work once, and prints a table."""
    with tempfile.TemporaryDirectory(prefix="rn-harness-") as scratch:
        store, folder = Store(Path(scratch) / "store"), Path(scratch) / "model"
        weights(folder)
        store.put("defense", "0" * 64, weights)
        for i in range(ENTRIES):
            parts = {"case": f"attack-{i}", "candidate": "c", "recipe": {"steps": 200, "seed": i}}
            store.put("case", f"{i:064}", record, parts)
        time.sleep(SETTLED_NS / 1e9 + 1.0)
        wanted = {"case": "attack-7", "candidate": "other", "recipe": {"steps": 200, "seed": 7}}
        found = {
            "check of the weights, contents read": measured(lambda: hash_files(folder, fresh=True)),
            "check of the weights, after a case": measured(lambda: hash_files(folder)),
            "stored defense, first read of a process": measured(lambda: store.get("defense", "0" * 64)),
            "stored defense, after a case": measured(lambda: store.get("defense", "0" * 64)),
            "journal of a case, written anew at each line": measured(lambda: rewriting(Path(scratch) / "journal")),
            "journal of a case": measured(lambda: appending(store)),
            f"what changed, among {ENTRIES} cases": measured(lambda: store.changed("case", wanted)),
        }
    OUT.write_text(json.dumps({"bytes": BYTES, "shards": SHARDS, "work": found}, indent=1) + "\n", encoding="utf-8")
    for name, of in found.items():
        print(f"{name:48} {of['seconds']:8.4f} s {of['read_MB']:10.2f} MB read {of['written_MB']:8.2f} MB written")


if __name__ == "__main__":
    main()
