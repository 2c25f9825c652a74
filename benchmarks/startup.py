"""What the installed plugin costs a session that has nothing to do with it: ``python benchmarks/startup.py [repeats]``.

The same one-test session with the plugin and with ``-p no:rn_harness``, alternating, in fresh processes. Prints JSON. Judged by
processor time, since wall time also measures what else the machine is doing.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET_MS = 15.0


def session_ms(folder: Path, *arguments: str) -> tuple[float, float]:
    """Wall and processor time of one session, in milliseconds."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return 1000 * wall, 1000 * cpu


def main() -> None:
    """Measures and prints medians and the medians of the paired differences with their quartiles."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_nothing.py").write_text("def test_nothing(): pass\n", encoding="utf-8")
        session_ms(folder)  # warm
        pairs = [(session_ms(folder), session_ms(folder, "-p", "no:rn_harness")) for _ in range(repeats)]
    result: dict[str, object] = {"repeats": repeats, "target_ms": TARGET_MS}
    added = {}
    for i, kind in enumerate(("wall", "cpu")):
        differences = [with_plugin[i] - without[i] for with_plugin, without in pairs]
        added[kind] = statistics.median(differences)
        result[kind] = {
            "with_ms": round(statistics.median(a[i] for a, _ in pairs), 1),
            "without_ms": round(statistics.median(b[i] for _, b in pairs), 1),
            "added_ms": round(added[kind], 1),
            "added_ms_quartiles": [round(q, 1) for q in statistics.quantiles(differences, n=4)],
        }
    print(json.dumps(result, indent=1))
    sys.exit(0 if added["cpu"] <= TARGET_MS else 1)


if __name__ == "__main__":
    main()
