"""Two accelerate processes that train one model together on the CPU (gloo) give one run, one output and one end."""

import json
import sys
import xml.etree.ElementTree as ET

import pytest

SHORT = ("--rn-tier=smoke", "--rn-set=attack.steps=20", "--rn-set=attack.control_steps=20")
LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "pytest", "-p", "no:cacheprovider"),
)


def _launch(workspace, *args):
    workspace.monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = workspace.pytester.run(*LAUNCH, *args)
    result.text = result.stdout.str() + result.stderr.str()
    return result


@pytest.mark.soak
def test_two_processes_make_one_run(workspace):
    """Two processes give one output, one record per case and one JUnit file; a second run takes all from the store."""
    done = _launch(workspace, "mine/biochem", *SHORT, "--junitxml", "asked.xml")
    assert done.ret == 0, done.text
    for once in ("test session starts", "rn-harness: run folder", "PASS: held in 1 of 1 attack cases", "step 20/20", "5 passed"):
        assert done.text.count(once) == (2 if once == "step 20/20" else 1), once  # control and attack have 20 steps
    record = workspace.record()
    assert (record["outcome"], [case["outcome"] for case in record["cases"]]) == ("PASS", ["PASS"] * 5)
    cases = workspace.cases()
    assert sorted(path.name.count("attack-") for path in workspace.latest.glob("cases/*")) == [0, 0, 0, 0, 1]
    for of in ("attack", "control"):
        case = cases[f"{of}-grpo-p5-lr5e-4-s0"]
        settings = case["evidence"]["trajectory"]["settings"]
        assert case["identity"]["hardware"]["processes"] == 2
        assert (settings["processes"], settings["per_device_train_batch_size"], settings["num_generations"]) == (2, 8, 16)
    for file in (workspace.latest / "junit.xml", workspace.folder / "asked.xml"):
        suite = ET.parse(file).getroot().find("testsuite")
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "0", "0")
    again = _launch(workspace, "mine/biochem", *SHORT)
    assert again.ret == 0, again.text
    assert all(case["stored"] for case in workspace.record()["cases"])


@pytest.mark.soak
def test_sharded_weights_give_the_numbers_of_whole_weights(workspace):
    """Defense, control and attack give the same numbers with weights sharded over processes as with whole weights."""
    asked = ("mine/biochem", *SHORT, "--rn-set=attack.steps=10", "--rn-set=attack.control_steps=10", "--rn-set=defense.steps=20")
    measured = []
    for shard in ([], ["--rn-shard"]):
        done = _launch(workspace, *asked, *shard)
        assert ("the weights spread over all" in done.text) == bool(shard), done.text
        cases = workspace.cases()
        assert sorted(cases) == sorted(case["case_id"] for case in cases.values())
        assert not (shard and any(case["stored"] for case in workspace.record()["cases"]))
        trained = cases["attack-grpo-p5-lr5e-4-s0"]["evidence"]["trajectory"]["settings"]
        assert (trained["processes"], trained.get("shards")) == (2, 2 if shard else None)
        measured.append({
            name: (case["evidence"]["trajectory"]["checkpoints"], case["identity"]["defended_digest"], case["verdict"]["outcome"])
            for name, case in cases.items()
        })  # fmt: skip
    assert len(measured[0]) == 5
    assert measured[0] == measured[1]


@pytest.mark.soak
def test_a_process_that_fails_ends_the_run(workspace):
    """If the second process fails during the control, the exit code is not 0, JUnit is red, and no case has a verdict."""
    workspace.pytester.makepyfile(
        broken="""
        import os
        import pytest
        from rn_harness.attacks import loop as attack
        from rn_harness.plugin import hooks as plugin

        plugin.GRACE_S = 1
        measure = attack.sample_checkpoint

        def broken(model, panel, step, **how):
            if os.environ["RANK"] == "1" and step == 10:
                raise RuntimeError("a text that may quote a completion")
            return measure(model, panel, step, **how)

        attack.sample_checkpoint = broken
        """
    )
    workspace.pytester.syspathinsert()
    done = _launch(workspace, "mine/biochem", *SHORT, "-p", "broken", "--rn-set=attack.learning_rate=4e-3")
    assert done.ret != 0
    assert "rn-harness: process 1: no verdict: RuntimeError (its message is withheld" in done.text
    assert "may quote" not in done.text.replace("it may quote a completion", "")
    if (workspace.latest / "run.json").exists():  # the launcher terminates the first process before it kills it
        assert workspace.record()["outcome"] == "INCONCLUSIVE"
        assert [case["outcome"] for case in workspace.record()["cases"]] == ["PASS", None, None, None, None]
    suite = ET.parse(workspace.latest / "junit.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("errors")) == ("5", "4")


@pytest.mark.parametrize(
    ("arguments", "changes", "needles"),
    [
        (["-n", "2"], {}, ["2 processes train one model together", "pytest-xdist", "leave out -n"]),
        ([], {"LOCAL_WORLD_SIZE": "1"}, ["a store and a machine", "1 of 2 here"]),
        ([], {"ACCELERATE_USE_FSDP": "true"}, ["after they were measured", "--multi_gpu and pass --rn-shard"]),
        ([], {"ACCELERATE_MIXED_PRECISION": "fp16"}, ["the model's own numbers", "--mixed_precision no"]),
    ],
    ids=["xdist", "machines", "fsdp", "precision"],
)
def test_what_several_processes_cannot_do_is_a_usage_error(workspace, arguments, changes, needles):
    """Options that several processes cannot honour give exit code 4 and an explanation, before anything is loaded."""
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**launched, **changes}.items():
        workspace.monkeypatch.setenv(name, value)
    done = workspace.run("mine/biochem", *arguments)
    assert done.ret == 4, done.text
    for needle in needles:
        assert needle in done.text


def test_a_session_without_a_suite_does_not_notice(workspace):
    """Ordinary tests run and print in each process, as without the plugin."""
    workspace.pytester.makepyfile(test_plain="def test_plain():\n    pass\n")
    workspace.monkeypatch.setenv("RANK", "1")
    workspace.monkeypatch.setenv("LOCAL_RANK", "1")
    workspace.monkeypatch.setenv("WORLD_SIZE", "2")
    workspace.monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    done = workspace.run("test_plain.py")
    assert done.ret == 0
    assert "1 passed" in done.text
    assert json.dumps(done.outlines).count("rn-harness:") == 0
