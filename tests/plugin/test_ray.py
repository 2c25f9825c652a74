"""Cases on a Ray cluster of several nodes, all simulated on this machine."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster as Nodes

from rn_harness.run.estimate import Demand
from rn_harness.run.executors import on_ray
from rn_harness.run.executors.worker import WorkerResult
from rn_harness.store.shared import SharedEntry, add_entries
from rn_harness.store.store import Store

ONE = Demand(cpus=1, gpus=0.0, memory=0)


def _nodes(count, **each):
    """Starts a cluster whose head runs nothing, and its nodes of two slots each."""
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    return cluster, [cluster.add_node(num_cpus=2, **{name: of(i) for name, of in each.items()}) for i in range(count)]


@pytest.fixture(scope="module")
def nodes():
    """Four nodes of two slots each, and a head without slots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster, added = _nodes(4)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield cluster, added
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def jobs(nodes, tmp_path, monkeypatch):
    """A cluster client whose jobs run ``_work``; ``jobs.told`` collects its progress messages."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    told = []
    cluster = on_ray.Cluster(nodes[0].address, _work, told.append, Store(tmp_path / "driver"))
    cluster.told = told
    yield cluster
    cluster.close()


def _job(name, **order):
    needs, priority = order.pop("needs", ()), order.pop("priority", 0.0)
    return on_ray.Job(name, {"name": name, **order}, ONE, needs, priority)


def _work(order, given, tell):
    """Stand-in for a case: logs its start, waits for a file or sleeps, and returns a short text."""
    if "log" in order:
        with Path(order["log"]).open("a") as log:
            log.write(order["name"] + os.environ.get("SLOW_S", "") + "\n")
    while "gate" in order and not Path(order["gate"]).exists():
        time.sleep(0.05)
    time.sleep(order.get("sleep", 0.0) + float(os.environ.get("SLOW_S", "0")))
    if order.get("end") == "worker":
        os._exit(1)
    if order.get("end") == "error":
        raise RuntimeError("a text that may quote a completion")
    store, name, entries = Store(Path(order.get("store", ""))), order["name"], ()
    if "gives" in order:
        folder = store.put("defense", name, lambda into: (into / "weights").write_bytes(b"w" * order["gives"]) and None)
        entries = (SharedEntry.of(folder, "defense", name),)
    add_entries(store, given)
    sizes = {e.key: (store.get("defense", e.key) / "weights").stat().st_size for e in given}
    told = ",".join(f"{key}:{size}" for key, size in sizes.items())
    return WorkerResult(error=order.get("told"), folder=name, files={"record.json": told.encode()}, entries=entries)


def _alive():
    return sum(node["Alive"] for node in ray.nodes())


def _wait(until):
    """Waits until a condition is true, for two minutes at most."""
    end = time.monotonic() + 120
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_forty_cases_over_four_nodes_one_of_which_dies(nodes, jobs, tmp_path):
    """If a node dies, every case has one result, equal to a local one; the cases it ran start again and are recorded as cut."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    log.touch()
    asked = [_job(f"case {i}", gate=str(gate), log=str(log)) for i in range(40)]
    jobs.add(asked)
    _wait(lambda: len(log.read_text().splitlines()) == 8)  # all slots are busy
    cluster, added = nodes
    alive = _alive()
    cluster.remove_node(added.pop(), allow_graceful=False)
    _wait(lambda: _alive() < alive)
    gate.touch()
    done = {job.name: jobs.result(job.name) for job in asked}
    results = {name: dataclasses.replace(of, failed=()) for name, of in done.items()}
    assert results == {job.name: _work({"name": job.name}, (), None) for job in asked}
    begun = log.read_text().splitlines()
    cut = {name: len(of.failed) for name, of in done.items() if of.failed}
    assert cut
    assert all(a.outcome == "cut" and a.ended for of in done.values() for a in of.failed)
    assert len(begun) <= 40 + sum(cut.values())
    assert max(begun.count(job.name) for job in asked) <= 1 + on_ray.RETRIES
    assert {p.what for p in jobs.told if "a machine failed" in p.state} == set(cut)


@pytest.fixture
def another_node(nodes):
    """Adds a node of two slots with other variables, which leaves at the end."""
    cluster, made = nodes[0], []

    def add(**variables):
        alive = _alive()
        made.append(cluster.add_node(num_cpus=2, env_vars=variables))
        _wait(lambda: _alive() > alive)

    yield add
    for node in made:
        cluster.remove_node(node)


def test_a_slow_node_holds_up_only_its_own_cases(jobs, tmp_path, another_node):
    """A node that takes 15 s for a case does the two that it began; the others do all others meanwhile, and none begins twice."""
    another_node(SLOW_S="15.5")
    log, gate = tmp_path / "log", tmp_path / "gate"
    log.touch()
    asked = [_job(f"case {i}", log=str(log), gate=str(gate)) for i in range(40)]
    jobs.add(asked)
    _wait(lambda: log.read_text().count("15.5") == 2)
    gate.touch()
    results = {job.name: jobs.result(job.name) for job in asked}
    assert results == {job.name: _work({"name": job.name}, (), None) for job in asked}
    begun = log.read_text().splitlines()
    assert len(begun) == 40
    assert sum(line.endswith("15.5") for line in begun) <= 4


def test_a_node_with_another_torch_is_refused_before_anything_runs(jobs, tmp_path, another_node):
    """A node with another version of torch is named with both versions; without it there is nothing to refuse."""
    assert jobs.strange_node() is None
    other = tmp_path / "other" / "torch-1.0.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    another_node(PYTHONPATH=os.pathsep.join([str(other.parent), *filter(None, [os.environ.get("PYTHONPATH")])]))
    here = importlib.metadata.version("torch")
    told = jobs.strange_node()
    assert told.startswith(f"each node must have the packages that are here, got torch 1.0.0, here {here} on ")
    assert told.endswith("; install them")


def test_a_folder_whose_files_appear_late_gives_no_half_entry(jobs, tmp_path):
    """A case whose store shows an entry's folder before its files gets the entry whole, from pytest's process."""
    stores = {name: tmp_path / name for name in ("control", "attack")}
    jobs.add([_job("control", gives=40_000_000, store=str(stores["control"]))])
    assert jobs.result("control").error is None
    late = stores["attack"] / "defense" / "control"
    late.mkdir(parents=True)
    folder = os.open(late, os.O_RDONLY)
    try:
        jobs.add([_job("attack", needs=("control",), store=str(stores["attack"]))])
        done = jobs.result("attack")
        os.close(os.open("weights", os.O_CREAT | os.O_WRONLY, dir_fd=folder))  # what was late arrives
    finally:
        os.close(folder)
    assert done.files["record.json"] == b"control:40000000"
    store = Store(stores["attack"])
    assert (store.get("defense", "control") / "weights").stat().st_size == 40_000_000
    assert [e.name for e in store.entries() if not e.whole] == ["control.damaged"]


def test_a_case_that_ends_its_worker_each_time_is_given_up(jobs, tmp_path):
    """A case that kills its worker four times is an error, and a case that needs it is not started and names that error."""
    log = tmp_path / "log"
    jobs.add([_job("deadly", end="worker", log=str(log)), _job("after", needs=("deadly",), log=str(log))])
    done = jobs.result("deadly")
    assert log.read_text().splitlines() == ["deadly"] * 4
    assert done.error == "its machine failed 4 times, at last with WorkerCrashedError"
    assert [a.outcome for a in done.failed] == ["cut"] * 4
    assert jobs.result("after").error.startswith("it needs deadly, which has no verdict: its machine failed")


def test_an_error_is_never_tried_again_and_quotes_nothing(jobs, tmp_path):
    """A case that raises an error is tried once, and only the error's name is reported."""
    log = tmp_path / "log"
    jobs.add([_job("wrong", end="error", log=str(log)), _job("told", told="no verdict", log=str(log))])
    assert jobs.result("wrong").error == "its process on the cluster failed: RuntimeError"
    assert jobs.result("told").error == "no verdict"
    assert sorted(log.read_text().splitlines()) == ["told", "wrong"]


def test_a_case_gets_the_entries_of_the_cases_it_needs(jobs, tmp_path):
    """The first case is the one with the highest priority. Entries of several pieces go through the store of pytest's process to
    the case that needs them, also if the store of the node that made them is gone."""
    stores = {name: tmp_path / name for name in ("control", "defense", "attack")}
    first = [
        _job("control", gives=10, priority=2.0, store=str(stores["control"])),
        _job("defense", gives=40_000_000, priority=3.0, store=str(stores["defense"])),
    ]
    jobs.add(first)
    assert [job.name for job in jobs._running.values()] == ["defense", "control"]
    for job in first:
        assert jobs.result(job.name).error is None
        shutil.rmtree(stores[job.name])
    jobs.add([_job("attack", needs=("defense", "control"), store=str(stores["attack"]))])
    assert jobs.result("attack").files["record.json"] == b"defense:40000000,control:10"
    assert (tmp_path / "driver" / "defense" / "defense" / "weights").read_bytes() == b"w" * 40_000_000


def test_a_case_that_fits_no_node_is_reported_at_once(jobs):
    """``too_large`` names the demand and the largest node if no node has room, and is None otherwise."""
    assert jobs.too_large({"small": ONE}) is None
    told = jobs.too_large({"small": ONE, "large": Demand(cpus=3, gpus=1.0, memory=0)})
    assert told == "a node must have room for large, got at most CPU 2 of 3, GPU 0 of 1"


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (["--rn-executor=ray", "-n", "2"], ["Ray runs as many cases at a time as its machines have room for", "leave out -n"]),
        (["--rn-executor=ray", "--rn-fleet=4"], ["Ray takes each attack alone, got --rn-fleet"]),
        (["--rn-executor=ray", "--rn-from-results", "--rn-run=run"], ["runs nothing, got --rn-executor ray"]),
        (["--rn-executor=slurm"], ["must be local, ray or ray:ADDRESS, got 'slurm'"]),
        (["--rn-executor=ray:127.0.0.1:1"], ["must be that of a cluster that runs, got '127.0.0.1:1'", "ray start --head"]),
        (["--rn-executor=ray:nowhere"], ["must be that of a cluster that runs, got 'nowhere'"]),
        (["--rn-executor=ray", "-p", "without_ray"], ["pip install -c constraints.txt 'rn-harness[ray]'"]),
    ],
    ids=["xdist", "fleet", "join", "unknown", "nowhere", "no address", "not installed"],
)
def test_what_cannot_be_run_on_a_cluster_is_a_usage_error(workspace, arguments, needles):
    """Options that a cluster cannot honour give exit code 4 and a remedy."""
    workspace.pytester.makepyfile(without_ray="import sys\n\nsys.modules['ray'] = None\n")
    workspace.pytester.syspathinsert()
    done = workspace.run("mine/biochem", *arguments)
    assert done.ret == 4, done.text
    for needle in needles:
        assert needle in done.text


def test_a_termination_ends_as_without_a_cluster(workspace, fresh_store):
    """SIGTERM during the first case gives exit code 75, a red JUnit file, and a record without PASS."""
    workspace.use_store(fresh_store)
    log = workspace.folder / "log"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "mine/biochem", "--rn-tier=smoke", "--rn-run=run"]
    with log.open("w") as told:
        running = workspace.pytester.popen([*command, "--rn-executor=ray"], stdout=told, stderr=told)
    while not (workspace.folder / "run" / "junit.xml").exists():
        assert running.poll() is None, log.read_text()
        time.sleep(0.2)
    time.sleep(1.0)
    running.terminate()
    assert running.wait(timeout=120) == 75, log.read_text()
    assert json.loads((workspace.folder / "run" / "run.json").read_text())["outcome"] == "INCONCLUSIVE"
    suite = ET.parse(workspace.folder / "run" / "junit.xml").getroot().find("testsuite")
    assert int(suite.get("errors")) >= 4


SHORT = (
    "--rn-tier=standard",
    "--rn-set=attack.steps=10",
    "--rn-set=attack.control_steps=10",
    "--rn-set=attack.learning_rate=4e-3",
)


@pytest.mark.soak
def test_attacks_over_four_nodes_one_of_which_dies(workspace, tmp_path, nodes):
    """If one of four nodes dies in an attack, each case has the key, verdict and numbers of a run in one process.

    Each node has a separate store. The defense is trained once, and the records list the interrupted attempts.
    """
    ray.shutdown()
    stores = [tmp_path / f"node{i}" for i in range(4)]
    workspace.monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster, added = _nodes(4, env_vars=lambda i: {"RN_HARNESS_CACHE": str(stores[i])})
    try:
        workspace.use_store(tmp_path / "driver")
        log = workspace.folder / "log"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "mine/biochem", *SHORT, "--rn-run=spread"]
        with log.open("w") as told:
            running = workspace.pytester.popen([*command, f"--rn-executor=ray:{cluster.address}"], stdout=told, stderr=told)
        while ": attack-" not in log.read_text() or not (busy := [i for i in range(4) if list(stores[i].glob("unfinished/*"))]):
            assert running.poll() is None, log.read_text()
            time.sleep(0.2)
        cluster.remove_node(added[busy[0]], allow_graceful=False)
        code = running.wait()
    finally:
        cluster.shutdown()
    alone = workspace.run("mine/biochem", *SHORT, "--rn-run=alone")
    assert code == alone.ret == 1, log.read_text()  # some controls fail in so few steps, and are INCONCLUSIVE
    (run, cases, records), (expected, measured, _) = (
        workspace.measured(workspace.folder / "spread"),
        workspace.measured(workspace.folder / "alone"),
    )
    assert len(run["cases"]) == len({line["case_id"] for line in run["cases"]}) == len(expected["cases"])
    assert cases == measured
    assert {of[1] for of in cases.values()} == {"PASS", "INCONCLUSIVE", "FAIL"}  # explorers break so short a defense
    assert (run["outcome"], run["weights"], run["why_not"]) == (expected["outcome"], expected["weights"], expected["why_not"])
    assert sum(len(r["provenance"]["training"]) for r in records.values()) == 1
    assert any(a["outcome"] == "cut" for r in records.values() for a in r["provenance"]["attempts"])
    assert run["options"]["executor"].startswith("ray:")
