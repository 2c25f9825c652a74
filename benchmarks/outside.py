"""Work outside training on weights of the size of a 7B model: ``python benchmarks/outside.py``.

Makes a folder with four sparse shards of 15 GB together, and measures what a case costs besides its training: the check that the
weights are still the same, the read of a stored defense, its way to other machines and to the folder of a release, a line of the
journal, and the search for what changed after a miss. Nothing is loaded. Times are of one process; bytes are those that it asked
the system for, and by which its resident memory grew at its peak. Needs 31 GB of disk. Stored in docs/evidence/outside.json.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rn_harness.models.identity import hash_files
from rn_harness.run.executors.exchange import Exchange
from rn_harness.run.session import RunSession  # noqa: F401  (the imports of a run come before the first time)
from rn_harness.store.files import write_text
from rn_harness.store.settled import SETTLED_NS
from rn_harness.store.shared import SharedEntry, add_entries
from rn_harness.store.store import Store

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


def resident(field: str) -> int:
    """Kilobytes of this process: now (``VmRSS``), or at its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measured(work: Callable[[], object]) -> dict[str, Any]:
    """Seconds of a piece of work, megabytes read and written, and those by which its memory grew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins again
    (read, written), before, began = io(), resident("VmRSS"), time.perf_counter()
    work()
    seconds, (read_then, written_then) = time.perf_counter() - began, io()
    return {
        "seconds": round(seconds, 4),
        "read_MB": (read_then - read) / 1e6,
        "written_MB": (written_then - written) / 1e6,
        "peak_MB": round((resident("VmHWM") - before) * 1024 / 1e6, 1),
    }


def held(shard: Path, target: Path) -> None:
    """One shard by way of this process's memory, as all of them went to another machine before."""
    target.write_bytes(shard.read_bytes())


def by_ray(entry: SharedEntry, scratch: Path) -> dict[str, dict[str, Any]]:
    """A defense from a worker's store to that of pytest's process, and on to another worker's, on a cluster of this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    exchange, sent = Exchange.begin(Store(scratch / "driver")), list[SharedEntry]()

    def send() -> tuple[SharedEntry, dict[str, Any]]:
        cost = measured(lambda: sent.append(exchange.send(entry)))
        return sent[0], cost

    def take(given: SharedEntry) -> dict[str, Any]:
        return measured(lambda: add_entries(Store(scratch / "worker"), [given]))

    remote: Any = ray.remote
    given, sending = ray.get(remote(send).remote())
    served = ray.get(exchange.actor.__ray_call__.remote(lambda _: resident("VmHWM") * 1024 / 1e6))
    found = {
        "defense by Ray, sent by a worker": sending,
        "defense by Ray, taken by a worker": ray.get(remote(take).remote(given)),
    }
    print(f"the process that received and served it: {served:.0f} MB at its peak, libraries included")
    ray.shutdown()
    return found


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
        store, folder, other = Store(Path(scratch) / "store"), Path(scratch) / "model", Path(scratch) / "other"
        weights(folder)
        stored = measured(lambda: store.put("defense", "0" * 64, weights))
        entry = SharedEntry.of(store.root / "defense" / ("0" * 64), "defense", "0" * 64)
        for i in range(ENTRIES):
            parts = {"case": f"attack-{i}", "candidate": "c", "recipe": {"steps": 200, "seed": i}}
            store.put("case", f"{i:064}", record, parts)
        time.sleep(SETTLED_NS / 1e9 + 1.0)
        wanted = {"case": "attack-7", "candidate": "other", "recipe": {"steps": 200, "seed": 7}}
        found = {
            "check of the weights, contents read": measured(lambda: hash_files(folder, fresh=True)),
            "check of the weights, after a case": measured(lambda: hash_files(folder)),
            "defense, put into the store": stored,
            "stored defense, first read of a process": measured(lambda: store.get("defense", "0" * 64)),
            "stored defense, after a case": measured(lambda: store.get("defense", "0" * 64)),
            "one shard to another store, by memory": measured(
                lambda: held(next(folder.glob("*-00001-*")), Path(scratch) / "shard")
            ),
            "defense to another store": measured(lambda: add_entries(Store(other), [entry])),
            "journal of a case, written anew at each line": measured(lambda: rewriting(Path(scratch) / "journal")),
            "journal of a case": measured(lambda: appending(store)),
            f"what changed, among {ENTRIES} cases": measured(lambda: store.changed("case", wanted)),
        }
        shutil.rmtree(other)
        (Path(scratch) / "shard").unlink()
        found |= by_ray(entry, Path(scratch))
    OUT.write_text(json.dumps({"bytes": BYTES, "shards": SHARDS, "work": found}, indent=1) + "\n", encoding="utf-8")
    for name, of in found.items():
        moved = "; ".join(f"{of[f'{way}_MB']:.2f} MB {way}" for way in ("read", "written", "peak"))
        print(f"{name:48} {of['seconds']:8.4f} s; {moved}")


if __name__ == "__main__":
    main()
