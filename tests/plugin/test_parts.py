"""A run in parts, each in a separate process that acts as a separate machine, and the session that joins them."""

import json
import shutil
import sys

import pytest

SHORT = (
    "--rn-tier=smoke", "--rn-set=attack.steps=10", "--rn-set=attack.control_steps=10", "--rn-set=attack.learning_rate=4e-3",
)  # fmt: skip
TESTS = "mine/biochem/test_biochem.py::TestBiochem::"
ID = "[grpo-p5-lr4e-3-s0]"
FIRST = ("test_candidate_refuses", "test_defense_converges", f"test_attack_stays_neutralized{ID}")
SECOND = (f"test_control_breaks{ID}", "test_helpfulness_is_kept")


def _start(workspace, store, tests, *args):
    """Starts a session as if on another machine, without waiting for it."""
    workspace.use_store(store)
    log = (workspace.folder / f"{store.name}.log").open("w")
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(TESTS + test for test in tests), *SHORT, *args)
    return workspace.pytester.popen(command, stdout=log, stderr=log)


def _said(workspace, store):
    return (workspace.folder / f"{store.name}.log").read_text()


def _together(workspace, stores):
    """Runs both parts at the same time, each with its store."""
    workspace.monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parts = ((store, tests) for store, tests in zip(stores, (FIRST, SECOND), strict=True))
    running = [(store, _start(workspace, store, tests, "--rn-run=shared")) for store, tests in parts]
    for store, process in running:
        assert process.wait() == 0, _said(workspace, store)


def test_two_machines_make_one_run(workspace, shared_store, tmp_path):
    """Two parts that run at once and are joined give every key, verdict and number of a run on one machine."""
    alone = workspace.run("mine/biochem", *SHORT, "--rn-run=alone")
    assert alone.ret == 0, alone.text
    stores = [tmp_path / name for name in ("first", "second")]
    for store in stores:  # each has the same defense, but no attack
        shutil.copytree(shared_store, store, ignore=lambda _, names: {"case", "attempts"} & set(names))
    _together(workspace, stores)
    shared = workspace.folder / "shared"
    assert sorted(p.name for p in shared.iterdir()) == ["parts"]
    parts = sorted(p for p in (shared / "parts").iterdir() if p.is_dir())
    assert len({json.loads((part / "run.json").read_text())["run_id"] for part in parts}) == 1
    assert sorted(len(json.loads((part / "run.json").read_text())["cases"]) for part in parts) == [2, 3]
    workspace.use_store(tmp_path / "empty")
    joined = workspace.run("mine/biochem", *SHORT, "--rn-run=shared", "--rn-from-results")
    assert joined.ret == 0, joined.text
    assert "rn-harness: runs nothing: joins what was measured in the parts of this folder" in joined.text
    assert "joined: 5 records of 2 parts, each decided again; nothing was run here" in joined.text
    (run, cases, _), (expected, measured, _) = workspace.measured(shared), workspace.measured(workspace.folder / "alone")
    assert cases == measured
    assert [run[name] for name in ("outcome", "releasable", "why_not", "suites", "candidate", "required", "weights")] == [
        expected[name] for name in ("outcome", "releasable", "why_not", "suites", "candidate", "required", "weights")
    ]
    assert set(run["options"]["joined"].values()) == {f"parts/{part.name}" for part in parts}
    assert not (tmp_path / "empty" / "case").exists()  # no case was run

    refused = workspace.run("mine/biochem", *SHORT, "--rn-set=policy.samples=2", "--rn-run=shared", "--rn-from-results")
    assert refused.ret == 1, refused.text
    assert "it is of another suite" in refused.text
    assert json.loads((shared / "run.json").read_text())["outcome"] == "INCONCLUSIVE"


@pytest.mark.soak
def test_machines_that_share_a_store_make_defense_and_control_once(workspace, fresh_store):
    """Two machines that start with one empty store train the defense and run the control once; the other one waits."""
    link = fresh_store.with_name("second")
    link.symlink_to(fresh_store)
    _together(workspace, [fresh_store, link])
    joined = workspace.run("mine/biochem", *SHORT, "--rn-run=shared", "--rn-from-results")
    assert joined.ret == 0, joined.text
    records = [json.loads(p.read_text()) for p in (workspace.folder / "shared").glob("cases/*/record.json")]
    tried = {r["case_id"]: (len(r["provenance"]["attempts"]), len(r["provenance"]["training"])) for r in records}
    assert tried.pop("defense") == (1, 1)
    assert set(tried.values()) == {(1, 0)}
    assert len(list((fresh_store / "defense").iterdir())) == 1


def test_a_folder_without_parts_is_red(workspace):
    """Joining a folder without parts gives an error for each case, exit code 1, and the outcome INCONCLUSIVE."""
    joined = workspace.run("mine/biochem", *SHORT, "--rn-run=shared", "--rn-from-results")
    assert joined.ret == 1
    joined.assert_outcomes(errors=5)
    assert "no verdict: ExecutorError: --rn-from-results joins what was measured before" in joined.text
    assert json.loads((workspace.folder / "shared" / "run.json").read_text())["outcome"] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        (["--rn-from-results"], ["got no --rn-run", "name the folder that each part was given"]),
        (["--rn-from-results", "--rn-run=shared", "-n", "2"], ["runs nothing that workers could share, got -n"]),
        (
            ["--rn-from-results", "--rn-run=shared", "--rn-fleet=4"],
            ["take each attack alone, got --rn-from-results with --rn-fleet"],
        ),
    ],
    ids=["folder", "xdist", "fleet"],
)
def test_what_a_join_cannot_do_is_a_usage_error(workspace, arguments, needles):
    """Options that a join cannot honour give exit code 4 and an explanation."""
    done = workspace.run("mine/biochem", *SHORT, *arguments)
    assert done.ret == 4, done.text
    for needle in needles:
        assert needle in done.text
