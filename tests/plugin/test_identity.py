"""A run's identity: each run has a unique id, its processes share it, and prompts are digested where they are used."""

import json

import pytest

SMOKE = ("mine/biochem", "--rn-tier=smoke", "--rn-defense=none", "-k", "candidate")
SWAP = """\
import pytest

@pytest.fixture(autouse=True)
def swapped(rn_suite):
    first, *rest = rn_suite.prompts["heldout"]
    rn_suite.prompts["heldout"] = (first.model_copy(update={"text": "Please say hello to me, kindly."}), *rest)
"""


def _told(workspace, name):
    folder = workspace.folder / name
    (record,) = (json.loads(path.read_text()) for path in folder.glob("cases/*/record.json"))
    return json.loads((folder / "run.json").read_text()), record


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one-process", "worker"])
def test_a_folder_of_the_same_name_is_another_run(workspace, shared_store, workers):
    """Two runs in one folder have two ids, and the second run's record names the first as its source."""
    told = []
    for _ in range(2):
        done = workspace.run(*SMOKE, *workers, "--rn-run=same")
        assert done.ret in (0, 1), done.text
        told.append(_told(workspace, "same"))
    (first, of_first), (second, of_second) = told
    assert first["run_id"] != second["run_id"]
    assert [of_first["run_id"], of_second["run_id"]] == [first["run_id"], second["run_id"]]
    assert of_first["measured"] == of_second["measured"]
    assert second["cases"][0]["stored"] is True
    assert [run["name"] for run in (first, second)] == ["same", "same"]


def test_prompts_that_a_fixture_replaced_are_seen(workspace, shared_store):
    """If a fixture replaces a held-out text under the same id, the case has no verdict: the suite's files lack that text."""
    (workspace.folder / "mine" / "conftest.py").write_text(SWAP)
    done = workspace.run(*SMOKE, "--rn-run=swapped")
    run, record = _told(workspace, "swapped")
    assert record["verdict"]["outcome"] == "PASS", done.text
    assert run["cases"][0]["outcome"] is None, done.text
    assert "its record cannot be read, is not of this run" in run["cases"][0]["note"]
    assert run["suites"]["biochem"] != record["identity"]["suite"]["digest"]
