"""Cost of scheduling 40 equal cases on 8 slots of a Ray cluster: ``python benchmarks/ray_efficiency.py [--repeats 5]``.

The cases run through the executor's code, with a sleep instead of the work. The ideal time is 5 sleeps in sequence. The
measured time runs from the submission to the last result and includes the start of the workers' processes. The cluster is four
nodes of two slots each on this machine, restarted for each repeat. Prints JSON and exits with 1 below the target.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence

from rn_harness.run.estimate import Demand
from rn_harness.run.executors.on_ray import Cluster, Job
from rn_harness.run.executors.worker import Say, WorkerResult
from rn_harness.store.shared import SharedEntry
from rn_harness.store.store import Store, default_root

CASES, NODES, SLOTS_A_NODE = 40, 4, 2
TARGET = 0.9


def sleep(order: float, _given: Sequence[SharedEntry], _say: Say) -> WorkerResult:
    """Stand-in for a case."""
    time.sleep(order)
    return WorkerResult(error=None, folder="slept")


def measure(seconds: float) -> float:
    """Wall time of all cases."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(NODES):
            nodes.add_node(num_cpus=SLOTS_A_NODE)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        cluster = Cluster(nodes.address, sleep, lambda _: None, Store(default_root()))
        begun = time.monotonic()
        cluster.add(Job(f"case {i}", seconds, Demand(cpus=1, gpus=0.0, memory=0)) for i in range(CASES))
        done = [cluster.result(f"case {i}") for i in range(CASES)]
        wall = time.monotonic() - begun
        cluster.close()
    finally:
        ray.shutdown()
        nodes.shutdown()
    if any(of.error or of.failed for of in done):
        raise SystemExit("a case failed: this is no measurement")
    return wall


def main() -> None:
    """Measures, and prints each repeat, the median and the spread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sleep", type=float, default=60.0, help="seconds of a case")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ideal = asked.sleep * math.ceil(CASES / (NODES * SLOTS_A_NODE))
    walls = [measure(asked.sleep) for _ in range(asked.repeats)]
    efficiency = sorted(ideal / wall for wall in walls)
    result = {
        "cases": CASES,
        "slots": NODES * SLOTS_A_NODE,
        "sleep_s": asked.sleep,
        "ideal_s": ideal,
        "wall_s": [round(wall, 1) for wall in walls],
        "efficiency": {
            "median": round(statistics.median(efficiency), 3),
            "least": round(efficiency[0], 3),
            "most": round(efficiency[-1], 3),
            "target": TARGET,
        },
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
    }
    print(json.dumps(result, indent=1))
    sys.exit(0 if statistics.median(efficiency) >= TARGET else 1)


if __name__ == "__main__":
    main()
