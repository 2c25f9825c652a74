"""The examples for CI systems: their form by the systems' own schemas, and each of their shell steps by a dry run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jq
import pytest
import yaml
from typer.main import get_command

from rn_harness.cli import app
from rn_harness.spec.options import declared_options
from rn_harness.spec.suite import load_suite
from rn_harness.verdict.release_rules import required_cases

EXAMPLES = Path(__file__).parents[2] / "examples" / "ci"
OURS = ("rn-harness", "pytest")
THEIRS = ("pip", "hf", "umask", "printf", "rm")


def steps(name: str) -> list[str]:
    """The shell steps of an example, in order."""
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    if name == "Jenkinsfile":
        return re.findall(r"^\s*sh '(.*)'$", text, flags=re.MULTILINE)
    document = yaml.safe_load(text)
    if name == "github.yml":
        return [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    jobs = [job for job in document.values() if isinstance(job, dict) and "script" in job]
    return [*document["default"]["before_script"], *(line for job in jobs for line in job["script"])]


def commands(name: str) -> Iterator[list[str]]:
    """The words of each command."""
    for step in steps(name):
        for line in step.splitlines():
            yield shlex.split(line.partition(" #")[0])


ALL = ("github.yml", "gitlab.yml", "Jenkinsfile")


@pytest.mark.parametrize(
    ("name", "schema"), [("github.yml", "github-workflows"), ("action/action.yml", "github-actions"), ("gitlab.yml", "gitlab-ci")]
)
def test_an_example_is_valid_for_its_system(name: str, schema: str) -> None:
    """An example is valid under the schema that the system's vendor publishes (a copy is in check-jsonschema)."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(EXAMPLES / name)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ALL)
def test_every_shell_step_is_shell(name: str) -> None:
    """bash can parse each step; none is run."""
    found = steps(name)
    assert len(found) >= 6
    for step in found:
        done = subprocess.run(["bash", "-n"], check=False, input=step, capture_output=True, text=True)
        assert done.returncode == 0, (step, done.stderr)


@pytest.mark.parametrize("name", ALL)
def test_every_option_in_an_example_exists(name: str) -> None:
    """Each rn-harness and pytest option in an example exists, so that a rename cannot break a pipeline on release day."""
    known: Any = get_command(app)
    of_pytest = {flag for _, option in declared_options() for flag in (option.flag, option.alias)}
    for program, *words in commands(name):
        assert program in (*OURS, *THEIRS)
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if program == "rn-harness":
            of_command = {flag for parameter in known.commands[words[0]].params for flag in parameter.opts}
            assert options <= of_command, words
        elif program == "pytest":
            assert options <= of_pytest, words


@pytest.mark.parametrize("name", ALL)
def test_an_example_gates_in_the_right_order(name: str) -> None:
    """The order is: evaluate with the gate, sign, verify, measure cases again, and only then publish."""
    text = [" ".join(words) for words in commands(name)]
    parts = ("--rn-gate", " sign ", " verify ", " --replay ", "hf upload")
    order = [next(i for i, line in enumerate(text) if part in line) for part in parts]
    assert order == sorted(order)


def test_the_container_file_is_linted() -> None:
    """hadolint has no complaint about the container file, which is not built here."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None
    done = subprocess.run([hadolint, str(EXAMPLES / "Containerfile")], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


CLUSTER = EXAMPLES.parent / "cluster"
NODES = [f"suites/biochem/test_biochem.py::T::{name}" for name in (
    "test_candidate_refuses", "test_control_breaks[a-s0]", "test_control_breaks[b-s0]", "test_defense_converges",
    "test_attack_stays_neutralized[a-s0]", "test_attack_stays_neutralized[b-s0]", "test_helpfulness_is_kept",
)]  # fmt: skip
PYTEST = f"""#!/bin/bash
if [[ "$*" == *--collect-only* ]]; then printf '%s\\n' {shlex.join(NODES)} '' '{len(NODES)} tests collected'; exit 0; fi
printf '%s\\n' "$*" >> {{calls}}
"""
SBATCH = """#!/bin/bash
echo "sbatch $*" >> {calls}
for ((i = 1; i <= $#; i++)); do
    [[ ${!i} == --array=1-* ]] && n=${!i#--array=1-}
    [[ ${!i} == --wrap ]] && j=$((i + 1)) && body=${!j}
done
for ((k = 1; k <= ${n:-1}; k++)); do SLURM_ARRAY_TASK_ID=$k bash -c "$body" >&2 || true; done
echo $RANDOM
"""


def _run_with_stubs(tmp_path: Path, script: list[str], **variables: str) -> list[str]:
    """The calls of a script with stubs for pytest and sbatch; the stub of sbatch runs each task at once."""
    calls, programs = tmp_path / "calls", tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("pytest", PYTEST), ("sbatch", SBATCH)):
        (programs / name).write_text(text.replace("{calls}", str(calls)), encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", **variables}
    done = subprocess.run(script, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return calls.read_text(encoding="utf-8").splitlines()


def test_the_slurm_script_runs_each_case_once_and_joins_last(tmp_path: Path) -> None:
    """Each node id runs in its own task, cases that others need first; each array waits for the end of the previous one."""
    script = ["bash", str(CLUSTER / "slurm.sh"), "suites/biochem", "out/run"]
    lines = _run_with_stubs(tmp_path, script)
    submitted = [line for line in lines if line.startswith("sbatch")]
    ran = [line for line in lines if not line.startswith("sbatch")]
    assert ran[-1] == "suites/biochem --rn-run out/run --rn-from-results --rn-gate"
    assert sorted(ran[:-1]) == sorted(f"{node} --rn-run out/run" for node in NODES)
    assert {"attack" in line or "helpfulness" in line for line in ran[:4]} == {False}
    assert ["--dependency=afterany:" in line for line in submitted] == [False, True, True]


def test_the_kubernetes_job_runs_each_case_once_and_joins(tmp_path: Path) -> None:
    """Each index is a case of the standard tier; the exit codes of a verdict are not retried; the join job has no index."""
    jobs = list(yaml.safe_load_all((CLUSTER / "kubernetes.yml").read_text(encoding="utf-8")))
    cases = jobs[0]
    assert [(job["apiVersion"], job["kind"]) for job in jobs] == [("batch/v1", "Job")] * 2
    suite = load_suite(CLUSTER.parents[1] / "suites" / "biochem")
    assert (cases["spec"]["completionMode"], cases["spec"]["completions"]) == ("Indexed", len(required_cases(suite, "standard")))
    rules = cases["spec"]["podFailurePolicy"]["rules"]
    assert [(r["action"], r.get("onExitCodes", {}).get("values")) for r in rules] == [
        ("Ignore", None),
        ("FailIndex", [1, 2, 3, 4, 5]),
    ]
    containers = [job["spec"]["template"]["spec"]["containers"][0] for job in jobs]
    stores = {tuple(e.values()) for c in containers for e in c["env"]}
    assert stores == {("RN_HARNESS_CACHE", "/shared/store")}
    script = [*containers[0]["command"], *containers[0]["args"]]
    for index in range(len(NODES)):
        called = _run_with_stubs(tmp_path, script, JOB_COMPLETION_INDEX=str(index))[index]
        assert called == f"{NODES[index]} --rn-run /shared/run"
    assert containers[1]["args"] == [
        "pytest suites/biochem --rn-run /shared/run --rn-from-results --rn-gate --rn-export /shared/released"
    ]


GH = """\
#!/bin/bash
printf '%s\\n' "$*" >> "$LOG"
last="${@: -1}"
case "$*" in *--jq*) echo "$KNOWN";; *) cat "${last##*@}" >> "$LOG";; esac
"""


def dry_run(folder: Path, summary: str | None, *, known: str = "", gate: int | None = None) -> tuple[int, str]:
    """Runs the action's steps as GitHub does, with stubs of gh and rn-harness; the last exit code, and gh's words and files."""
    run, tools, log = folder / "run", folder / "bin", folder / "log"
    run.mkdir()
    tools.mkdir()
    if summary is not None:
        (run / "summary.md").write_text(summary, encoding="utf-8")
    for name, text in (("gh", GH), ("rn-harness", f'#!/bin/bash\nprintf "%s\\n" "$*" >> "$LOG"\nexit {gate}\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    given = {"SUITE": "biochem", "OPTIONS": "--rn-tier smoke", "RUN": str(run), "CODE": "" if gate is None else str(gate)}
    told = {"NUMBER": "7", "GH_TOKEN": "t", "GITHUB_REPOSITORY": "o/r", "GITHUB_OUTPUT": str(folder / "out")}
    stubs = {"KNOWN": known, "LOG": str(log), "PATH": f"{tools}:/usr/bin:/bin"}
    done: Any = None
    for step in yaml.safe_load((EXAMPLES / "action" / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"]:
        if step["name"] == "Gate" and gate is None:
            continue
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(command, check=False, env=given | told | stubs, capture_output=True, text=True)
        assert done.returncode == 0 or step["name"] == "Result", done.stderr
        assert set(re.findall(r"\$\{?([A-Z_]+)", step["run"])) <= {*step["env"], "GITHUB_OUTPUT", "GITHUB_REPOSITORY"}
    return done.returncode, log.read_text()


def test_the_action_comments_a_finished_run_once(tmp_path: Path) -> None:
    """The action adds a comment with the summary, and changes its own comment if there is one."""
    for known, request in (
        ("", "--method POST repos/o/r/issues/7/comments"),
        ("42", "--method PATCH repos/o/r/issues/comments/42"),
    ):
        folder = tmp_path / f"known{known}"
        folder.mkdir()
        code, log = dry_run(folder, "## PASS\n", known=known)
        assert code == 0
        assert f"api {request} --field body=@" in log
        assert log.endswith("<!-- rn-harness -->\n## PASS\n")
        assert log.count("--method") == 1


def test_the_action_finds_its_own_comment(tmp_path: Path) -> None:
    """The filter that the action gives to gh chooses, of a page of comments, those of a bot that begin with the action's mark."""
    _, log = dry_run(tmp_path, "## PASS\n")
    (chosen,) = re.findall(r"^api --paginate repos/o/r/issues/7/comments --jq (.*)$", log, re.MULTILINE)
    mark = "<!-- rn-harness -->"
    page = [
        {"id": 40, "user": {"type": "User"}, "body": f"{mark}\na person quotes it"},
        {"id": 41, "user": {"type": "Bot"}, "body": f"another bot speaks of {mark}"},
        {"id": 42, "user": {"type": "Bot"}, "body": f"{mark}\n## PASS"},
    ]
    assert jq.all(chosen, page) == [42]
    assert jq.all(chosen, []) == []


def test_the_action_ends_as_the_gate_and_never_leaves_an_old_verdict(tmp_path: Path) -> None:
    """The gate's exit code is the action's. Without a summary the comment says so, and the action fails."""
    for name, summary, gate, ends, words in (
        ("red", "## FAIL\n", 1, 1, "## FAIL"),
        ("refused", None, 10, 10, "No verdict: the run left no summary (exit code 10)."),
        ("green", None, 0, 1, "No verdict: the run left no summary (exit code 0)."),
        ("lost", None, None, 1, "No verdict: the run left no summary (exit code unknown)."),
        ("long", "x" * 70_000, 0, 0, "Cut here: summary.md in the run has the rest."),
    ):
        folder = tmp_path / name
        folder.mkdir()
        code, log = dry_run(folder, summary, known="42", gate=gate)
        assert (code, words in log) == (ends, True), name
        assert len(log) < 65_000
        run = f"run biochem --rn-gate --rn-run {folder / 'run'} --rn-tier smoke\n"
        assert (run in log) == (gate is not None)
