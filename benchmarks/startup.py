"""What the installed plugin costs a session that has nothing to do with it: ``python benchmarks/startup.py [repeats]``.

The same one-test session with the plugin and with ``-p no:rn_harness``, alternating, in fresh processes. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET_MS = 15.0


def session_ms(folder: Path, *arguments: str) -> float:
    """Wall time of one session in milliseconds."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return 1000 * (time.perf_counter() - begin)


def main() -> None:
    """Measures and prints medians, the median of the paired differences, and their spread."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_nothing.py").write_text("def test_nothing(): pass\n", encoding="utf-8")
        session_ms(folder)  # warm
        pairs = [(session_ms(folder), session_ms(folder, "-p", "no:rn_harness")) for _ in range(repeats)]
    differences = sorted(with_plugin - without for with_plugin, without in pairs)
    result = {
        "repeats": repeats,
        "with_ms": round(statistics.median(a for a, _ in pairs), 1),
        "without_ms": round(statistics.median(b for _, b in pairs), 1),
        "added_ms": round(statistics.median(differences), 1),
        "added_ms_quartiles": [round(q, 1) for q in statistics.quantiles(differences, n=4)],
        "target_ms": TARGET_MS,
    }
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["added_ms"] <= TARGET_MS else 1)


if __name__ == "__main__":
    main()
