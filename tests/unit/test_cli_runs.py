"""The commands for runs, suites and the machine: output and exit codes."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from rn_harness.cli import app
from rn_harness.cli.shared import read_run
from rn_harness.judges.protocol import FORMS
from rn_harness.records.case import CaseRecord
from rn_harness.records.statistics import MeanInterval
from rn_harness.records.trajectory import Checkpoint
from rn_harness.release.comparison import _paired
from rn_harness.report.progress import Progress
from rn_harness.report.scores import COLUMNS
from rn_harness.report.terminal import in_short
from rn_harness.run.attack_strength import Strength
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import SuiteError
from rn_harness.spec.options import Options
from rn_harness.spec.suite import Suite, load_suite
from rn_harness.training.trainer_settings import Sampler
from rn_harness.verdict.release_rules import laxer

from .finished_run import FinishedRun, finished_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run in which every case passed."""
    return finished_run(tmp_path_factory.mktemp("passed"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The same run with a model that breaks."""
    return finished_run(tmp_path_factory.mktemp("failed"), level=5.0)


def invoke(*arguments: object) -> Any:
    """Result of a command."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def flat(text: str) -> str:
    """The text of an error without its frame and line breaks."""
    return " ".join(text.replace("│", " ").split())


def test_calibrate_searches_in_the_form_that_the_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """calibrate searches with the given model options, judges, prompts and sampler, and prints a run command with them."""
    asked: list[Options] = []
    suites: list[Suite] = []

    def searched(session: RunSession, suite: Suite, budget: int) -> Strength:
        asked.append(session.options)
        suites.append(suite)
        for step, state in ((9, None), (10, "max 1")):  # a step that is not measured does not appear in the log
            session.say(Progress("a control", step, 50, state))
        return Strength.model_construct(domain=suite.domain, settings=("attack.learning_rate=0.001",), search="", tries=())

    monkeypatch.setattr("rn_harness.run.attack_strength.find_strength", searched)
    monkeypatch.setattr(Sampler, "check", lambda *_, **__: None)  # there is no GPU
    monkeypatch.setattr("rn_harness.run.training_limits.card_memory", lambda: 0.0)
    out = tmp_path / "strength.json"
    suite = ROOT / "suites" / "biochem"
    prompts, template = tmp_path / "ours", tmp_path / "ours.jinja"
    (prompts / "biochem").mkdir(parents=True)
    shutil.copy(suite / "prompts" / "heldout.yaml", prompts / "biochem")
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    form = ["--quantise", "nf4", "--sampler", "vllm", "--second-judge", "none"]
    form += ["--prompts", str(prompts), "--chat-template", str(template), "--allow-pickle", "--trust-remote-code"]
    done = invoke("calibrate", "--model", "organism", "--suite", suite, "--out", out, *form)
    assert done.exit_code == 0, done.output
    assert [line for line in done.stderr.splitlines() if "control" in line] == ["a control: step 10/50: max 1"]
    assert [(o.model, o.quantise, o.sampler, o.second_judge) for o in asked] == [("organism", "nf4", "vllm", "none")]
    assert [(o.chat_template, o.allow_pickle, o.trust_remote_code) for o in asked] == [(str(template), True, True)]
    assert [s.private for s in suites] == [("heldout",)]
    told = done.output.splitlines()[-1].partition(": ")[2]
    assert shlex.split(told) == [
        *("pytest", str(suite), "--rn-model=organism", "--rn-second-judge=none"),
        *(f"--rn-prompts={prompts}", f"--rn-chat-template={template}"),
        *("--rn-quantise=nf4", "--rn-sampler=vllm", f"--rn-strength={out}", "--rn-allow-pickle", "--rn-trust-remote-code"),
    ]
    (prompts / "biochem").rename(prompts / "baking")
    refused = invoke("calibrate", "--model", "organism", "--suite", suite, "--out", out, "--prompts", prompts)
    assert refused.exit_code == 2
    assert "must hold a folder for each suite of this run" in flat(refused.output)


def test_calibrate_requires_acknowledgement_like_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the policy requires acknowledgement, calibrate attacks nothing without it: its controls break a real model."""
    asked: list[Options] = []

    def searched(session: RunSession, suite: Suite, budget: int) -> Strength:
        asked.append(session.options)
        return Strength.model_construct(domain=suite.domain, settings=(), search="", tries=())

    monkeypatch.setattr("rn_harness.run.attack_strength.find_strength", searched)
    monkeypatch.setattr("rn_harness.models.candidate.Candidate.is_organism", False)
    suite = tmp_path / "biochem"
    shutil.copytree(ROOT / "suites" / "biochem", suite)
    path = suite / "suite.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("policy: {", "policy: {acknowledge: true, "), encoding="utf-8")
    judged = ["--judge", "organism", "--reward-judge", "organism", "--second-judge", "none"]
    form = ["--model", "organism", "--suite", suite, *judged, "--out", tmp_path / "strength.json"]
    refused = invoke("calibrate", *form)
    assert refused.exit_code == 2
    assert "policy.acknowledge asks for your word" in flat(refused.output)
    assert not asked
    given = invoke("calibrate", *form, "--acknowledge")
    assert given.exit_code == 1, given.output  # no settings were found
    assert [o.acknowledge for o in asked] == [True]


def test_help_loads_nothing_heavy() -> None:
    """Help and shell completion start quickly: they import neither torch nor pydantic."""
    code = "import sys, rn_harness.cli; print([m for m in ('torch', 'transformers', 'pydantic', 'scipy') if m in sys.modules])"
    started = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert time.process_time() - started < 1.0


def test_every_command_speaks_json() -> None:
    """Each command has the option --json, except ``run``, which becomes pytest."""
    from typer.main import get_command

    top: Any = get_command(app)
    commands = [
        (name, of) for name, command in top.commands.items() for of in getattr(command, "commands", {0: command}).values()
    ]
    for name, command in commands:
        assert (name != "run") == ("--json" in {flag for parameter in command.params for flag in parameter.opts}), name


def test_show_a_run_and_a_case(run: FinishedRun) -> None:
    """``show`` prints a run as the terminal showed it, and a case with every checkpoint; both are available as JSON."""
    assert f"PASS: {in_short(run.record.claim)}" in invoke("show", run.folder).output
    done = invoke("show", run.folder, "attack-grpo-p2-lr5e-4-s0")
    assert sum(line.startswith("step") for line in done.output.splitlines()) == 21
    assert json.loads(invoke("show", run.folder, "--json").output)["outcome"] == "PASS"
    assert json.loads(invoke("show", run.folder, "defense", "--json").output)["case_id"] == "defense"


def test_a_table_has_one_row_for_each_score_and_no_text(run: FinishedRun) -> None:
    """CSV and parquet have the same rows, one for each score of each case's trajectories; a case's end narrows them."""
    done = invoke("show", run.folder, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    records = read_run(run.folder, complete=True).records.values()
    scores = [
        (r.case_id, c.step, s.prompt_id, s.score)
        for r in records
        if r.evidence.trajectory
        for c in r.evidence.trajectory.checkpoints
        for s in c.all_scores
    ]
    assert [(r["case"], int(r["step"]), r["prompt_id"], float(r["score"])) for r in rows] == scores
    assert set(rows[0]) == set(COLUMNS)
    made = invoke("show", run.folder, "--format", "parquet").stdout_bytes
    table = pyarrow.parquet.read_table(io.BytesIO(made)).to_pylist()
    assert [(r["case"], r["step"], r["prompt_id"], r["score"]) for r in table] == scores
    some = invoke("show", run.folder, "defense", "--format", "csv").stdout.splitlines()
    assert len(some) == 1 + sum(case == "defense" for case, *_ in scores)


def test_an_index_lists_every_run_the_newest_first(run: FinishedRun, failed: FinishedRun, tmp_path: Path) -> None:
    """The page has a row with verdict, model, level and date for each run, and names a run that cannot be read."""
    for name, of in (("older", failed), ("newer", run)):
        shutil.copytree(of.folder, tmp_path / name)
    (tmp_path / "newer" / "report.html").touch()
    old = tmp_path / "older" / "run.json"
    old.write_text(json.dumps(json.loads(old.read_text()) | {"ended": "2020-01-02T03:04:05+00:00"}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "latest").symlink_to("newer")
    assert invoke("report", "--index", tmp_path).exit_code == 0
    page = (tmp_path / "index.html").read_text()
    rows = page.partition("<tbody>")[2].partition("</tbody>")[0].split("</tr>")[:-1]
    for row, outcome, of, date in zip(
        rows, ("PASS", "FAIL"), (run, failed), (run.record.ended[:10], "2020-01-02 03:04"), strict=True
    ):
        assert f">{outcome}</span>" in row
        assert f"demo {of.record.coverage[0].resistance.level}" in row
        assert date in row
        assert ('href="newer/report.html"' in row) == (outcome == "PASS")
    assert "broken cannot be read: " in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page.replace("&#39;", "'")
    assert invoke("report").exit_code == invoke("report", run.folder, "--index", tmp_path).exit_code == 2


def test_a_breach_is_a_regression(run: FinishedRun, failed: FinishedRun) -> None:
    """A change from PASS to FAIL exits with 1 and lists the verdict and the first checkpoints; the reverse exits with 0."""
    done = invoke("compare", run.folder, failed.folder)
    assert done.exit_code == 1
    assert "worse   outcome: PASS -> FAIL" in done.output
    assert "worse   demo/attack-grpo-p2-lr5e-4-s0: verdict: PASS -> FAIL" in done.output
    told = [
        line.removeprefix("worse   demo/attack-grpo-p2-lr5e-4-s0: ") for line in done.output.splitlines() if "demo/attack" in line
    ]
    broken = "mean 5.00, above 80/80 (95 % 0.955 to 1.000)"
    assert told == [
        "verdict: PASS -> FAIL",
        *(f"step {at}: mean 0.00, above 0/80 (95 % 0.000 to 0.045) -> {broken}" for at in (0, 10, 20)),
        f"18 further steps, to step 200: {broken}",
    ]
    back = invoke("compare", failed.folder, run.folder, "--json")
    document = json.loads(back.output)
    assert (back.exit_code, document["regressions"]) == (0, 0)
    assert sum("demo/attack-grpo-p2-lr5e-4-s0: step " in change["what"] for change in document["changes"]) == 21
    same = invoke("compare", run.folder, run.folder)
    assert (same.exit_code, same.output.strip()) == (0, "nothing changed")


def test_another_defense_or_level_is_a_difference(run: FinishedRun, tmp_path: Path) -> None:
    """``compare`` names the options that decide what a run claims, if the runs differ in them."""
    shutil.copytree(run.folder, tmp_path / "run")
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    document["options"] |= {"defense": "none", "level": "rl-plain"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(document))
    done = invoke("compare", run.folder, tmp_path / "run")
    assert done.output.splitlines()[:2] == ["changed options.defense: quick -> none", "changed options.level: None -> rl-plain"]


def test_a_case_that_is_gone_is_not_run_and_not_worse(run: FinishedRun, tmp_path: Path) -> None:
    """A case that is missing, or has neither verdict nor record, is not run; if it was run before, the exit code is 1."""
    shutil.copytree(run.folder, tmp_path / "run")
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    helpfulness = next(line for line in document["cases"] if line["case_id"] == "helpfulness")
    others = [line for line in document["cases"] if line["case_id"] != "helpfulness"]
    for cases in (others, [*others, helpfulness | {"outcome": None, "key": None, "record": None}]):
        (tmp_path / "run" / "run.json").write_text(json.dumps(document | {"cases": cases}))
        done = invoke("compare", run.folder, tmp_path / "run")
        assert done.output.splitlines() == [
            "not run demo/helpfulness: verdict: PASS -> not run",
            "1 changes, 0 for the worse, 1 cases not run",
        ]
        back = invoke("compare", tmp_path / "run", run.folder, "--json")
        told = json.loads(back.output)
        assert (done.exit_code, back.exit_code) == (1, 0)
        assert (told["regressions"], told["not_run"], told["changes"][0]["kind"]) == (0, 1, "not run")


def test_two_runs_side_by_side(run: FinishedRun, failed: FinishedRun, tmp_path: Path) -> None:
    """The page has both results of each case and the paired difference by prompts; a case that was not run has no difference."""
    shutil.copytree(failed.folder, tmp_path / "run")
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    document["cases"] = [line for line in document["cases"] if line["case_id"] != "helpfulness"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(document))
    assert invoke("compare", run.folder, tmp_path / "run", "--html", tmp_path / "page.html").exit_code == 1
    page = (tmp_path / "page.html").read_text()
    rows = [
        " ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in re.findall(r'<li class="compared">(.*?)</li>', page, re.DOTALL)
    ]
    sides = "First run \u2713 {} Second run {}"
    attack = sides.format(
        "held highest 0.00, above the threshold 0 of 1680", "\u2717 BROKE at step 0 highest 5.00, above the threshold "
    )
    # All 20 prompts go from no score above the threshold to all of them.
    assert rows[3:] == [
        f"demo/attack-grpo-p2-lr5e-4-s0 worse {attack}1680 of 1680 Difference +1.000 for every prompt",
        f"demo/helpfulness not run {sides.format('PASS', '? not run')} Difference not measured in both",
    ]
    assert [row.split()[1] for row in rows[:3]] == ["same"] * 3
    assert page.count("<script") == 0
    missing = invoke("compare", run.folder, failed.folder, "--html", tmp_path / "nowhere" / "page.html")
    assert missing.exit_code == 2


def test_a_difference_is_paired_by_prompt(run: FinishedRun) -> None:
    """The interval is of the prompts' differences; other prompts, another judge or another threshold give none."""
    record = next(r for r in read_run(run.folder, complete=True).records.values() if r.evidence.kind == "attack")
    trajectory, evidence = record.evidence.trajectory, record.evidence
    assert trajectory is not None

    def changed(**fields: Any) -> CaseRecord:
        return record.model_copy(
            update={"evidence": evidence.model_copy(update={"trajectory": trajectory.model_copy(update=fields)})}
        )

    def raised(checkpoint: Checkpoint) -> Checkpoint:
        scores = [
            s.model_copy(update={"score": 9.0}) if s.prompt_id in trajectory.heldout_ids[:5] else s for s in checkpoint.scores
        ]
        return Checkpoint.model_construct(step=checkpoint.step, scores=tuple(scores), threshold=checkpoint.threshold)

    found = _paired(record, changed(checkpoints=tuple(map(raised, trajectory.checkpoints))))
    # 5 of 20 prompts go from 0 to 1: mean 0.25, deviation sqrt(20/19 * 0.25 * 0.75) = 0.4443; t(0.975, 19) = 2.0930.
    half = 2.0930 * 0.4443 / math.sqrt(20)
    assert isinstance(found, MeanInterval)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=1e-4)
    assert _paired(record, changed(prompts={"heldout": "0" * 64})) == "other prompts"
    assert _paired(record, changed(judge_digest="0" * 64)) == "another judge"
    policy = evidence.policy.model_copy(update={"threshold": 3.0})
    laxer = record.model_copy(update={"evidence": evidence.model_copy(update={"policy": policy})})
    assert _paired(record, laxer) == "another threshold"
    assert _paired(record, None) == "not measured in both"


def test_export_config_prints_the_command_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``export-config`` prints the command with every given option, and the digests that must match."""
    run = finished_run(tmp_path, steps=50, second_judge="none", strength=("a b.json",))
    monkeypatch.chdir(tmp_path)
    done = invoke("export-config", run.folder)
    assert done.output.splitlines()[-1] == (
        "pytest demo --rn-model=organism --rn-defense=quick --rn-second-judge=none --rn-tier=standard '--rn-strength=a b.json'"
    )
    assert f"# suite demo: {run.suite.digest}" in done.output


def test_an_exported_command_names_the_suite_from_the_folder_that_one_is_in(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``export-config`` gives the suite's path from the current folder if it lies above it or the run, else says so."""
    (root := tmp_path / "root").mkdir()
    copied = shutil.copytree(run.folder, root / "reports" / "run")
    monkeypatch.chdir(tmp_path)
    assert "# not found from here: demo; run the command in the folder that pytest called rootdir" in flat(
        invoke("export-config", copied).output
    )
    shutil.copytree(run.suite.folder, root / "demo")
    command = invoke("export-config", copied).output
    assert command.splitlines()[-1].startswith("pytest root/demo --rn-model=")
    assert "not found" not in command
    (below := root / "docs").mkdir()
    monkeypatch.chdir(below)
    assert invoke("export-config", copied).output.splitlines()[-1].startswith("pytest ../demo --rn-model=")


def test_suites_cases_profiles_and_judges_are_listed() -> None:
    """``list`` shows suites with their digests, the cases of a tier, profiles, and judges' names and forms, below headers."""
    suites = {row["domain"]: row for row in json.loads(invoke("list", "suites", "--suites", ROOT / "suites", "--json").output)}
    assert suites["baking"]["sha256"] == load_suite(ROOT / "suites" / "baking").digest
    cases = invoke("list", "cases", "--suites", ROOT / "suites" / "baking", "--tier", "smoke").output.splitlines()
    assert (cases[0].split(), len(cases)) == (["domain", "case"], 8)
    assert "smollm2" in invoke("list", "profiles").output
    judges = invoke("list", "judges").output.splitlines()
    at = judges[0].index("licence")
    assert {row[at - 2 : at] for row in judges} == {"  "}  # columns
    assert {"phi-4", *FORMS} <= {row[:at].strip() for row in judges}


def test_a_plan_estimates_times_from_earlier_runs(run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan estimates the time of each case and their sum from an earlier run of the same model, or says it is not known."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path))
    asked = (ROOT / "suites" / "baking", "--tier", "smoke", "--defense", "anchored")
    unknown = invoke("plan", *asked, "--earlier", tmp_path)
    assert unknown.exit_code == 0, unknown.output
    assert "time: not known" in unknown.output
    assert "GiB expected" in unknown.output
    assert "baking defense: time not known; 1 CPU, 1.0 GiB" in unknown.output
    monkeypatch.setattr("rn_harness.run.session.RunSession.candidate", _Named("c" * 64, ROOT / "fixtures" / "organism"))
    told = json.loads(invoke("plan", *asked, "--earlier", run.folder.parent, "--slots", "2", "--json").output)
    # Each of the fixture's five cases took 60 s (attack of 200 steps, control of 50), and so do the seven planned ones.
    assert told["seconds"] == 420.0
    # Two at a time: the candidate; defense and control; control and attack; attack and helpfulness.
    assert told["wall_seconds"] == 240.0
    assert told["rests_on"] == ["run"]
    (link := tmp_path / "latest").symlink_to(run.folder)
    alone = json.loads(invoke("plan", *asked, "--earlier", link, "--json").output)
    assert (alone["seconds"], alone["rests_on"]) == (420.0, ["run"])
    asked = ("--suite", ROOT / "suites" / "baking", "--defense", "anchored", "--reports", run.folder.parent)
    assert "time: smoke 7 cases, 0.1 h; standard " in flat(invoke("doctor", *asked).output)


def test_a_plan_computes_times_on_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for a card has computed times that add up, dollars, what saturates, and says that none was measured. It counts the
    tokens of judges that are language models, for its tier and the full one."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path))
    asked = ("plan", ROOT / "suites" / "baking", "--tier", "smoke", "--defense", "anchored", "--device", "h100")
    told = json.loads(invoke(*asked, "--dollars", "2", "--slots", "64", "--json").output)
    computed = told["computed"]
    assert computed["cards"] == 64
    assert computed["saturates"] == "the longest chain of cases"
    assert computed["dollars"] == pytest.approx(64 * 2 * computed["wall_hours"], rel=0.1)
    assert sum(computed["hours"].values()) == pytest.approx(computed["card_hours"], abs=1e-3)
    assert told["seconds"] == pytest.approx(sum(case["seconds"] for case in told["cases"]))
    assert told["judge_tokens"] == {"smoke": {}, "full": {}}
    lines = invoke(*asked, "--judge", "openai:gpt@http://localhost:1").output
    assert "computed from its data sheet, nothing was measured on one" in flat(lines)
    smoke, full = (float(of) for of in re.findall(r"judges read about (\d+) million tokens in tier", lines))
    assert 0 < smoke < full


class _Named:
    """Replaces a session's candidate by one with this digest."""

    def __init__(self, digest: str, folder: Path) -> None:
        from rn_harness.models.resolve import resolve_candidate

        self._digest, self._plain = digest, resolve_candidate("organism", folder)

    def __get__(self, *_: object) -> Any:
        import dataclasses

        return dataclasses.replace(self._plain, digest=self._digest)


def test_the_doctor_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ready machine exits with 0; an unwritable store exits with 1 and names the variable to set."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path / "store"))
    ready = invoke("doctor", "--suite", ROOT / "suites" / "biochem", "--reports", tmp_path / "reports")
    assert ready.exit_code == 0, ready.output
    assert ready.output.splitlines()[-1] == "ready"
    assert "time: smoke 7 cases, time not known; standard 45 cases, time not known; full 193 cases, " in ready.output
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path / "file" / "store"))
    told = invoke("doctor", "--reports", tmp_path / "reports")
    assert told.exit_code == 1
    assert "set RN_HARNESS_CACHE" in told.output
    assert told.output.splitlines()[-1] == "not ready: store"


def test_the_doctor_knows_what_a_model_needs_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a profile whose model is missing: licence, gate, memory, compared with this machine's, hours by tier, and the judges'.

    The shape of Llama 3 8B has four more layers than the 7B model of docs/evidence/scale.md, which takes 1.1, 8.0 and 40.5 hours.
    """
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path / "store"))
    shipped = (ROOT / "fixtures" / "models" / "llama3-8b.yaml").read_text()
    mine = re.sub(r"(?m)^(model|revision|name): .*", "", shipped).replace("attack_gib: ", "attack_gib: 90")
    (tmp_path / "big.yaml").write_text(f"name: big\nmodel: ./nowhere\n{mine}")
    asked = ("--model", tmp_path / "big.yaml", "--suite", ROOT / "suites" / "biochem", "--second-judge", "none")
    told = invoke("doctor", *asked, "--reports", tmp_path).output.splitlines()
    assert told[-1] == "not ready: model, model's profile"
    (needs,) = [line for line in told if "model's profile:" in line]
    assert "gated: accept the licence on the hub" in needs
    assert re.search(r"a run needs 90\d+\.\d GiB besides the judges', [\d.]+ are free", needs)
    (time,) = [line.strip() for line in told if "time:" in line]
    hours = re.fullmatch(
        r"time: smoke 7 cases, ([\d.]+) h; standard 45 cases, ([\d.]+) h; full 185 cases, ([\d.]+) h; computed for one "
        "NVIDIA H100 SXM, not measured",
        time,
    )
    assert hours is not None, time
    assert [float(of) for of in hours.groups()] == pytest.approx([1.1, 8.0, 40.5], rel=0.1)
    judges = [line.strip().partition(";")[2] for line in told if line.startswith("      judge ")]
    assert judges == [" its weights need 27.3 GiB", " its weights need 13.6 GiB"]
    (tmp_path / "big.yaml").write_text(re.sub(r"shape: .*\n", "", (tmp_path / "big.yaml").read_text()))
    assert "smoke 7 cases, time not known; " in flat(invoke("doctor", *asked, "--reports", tmp_path).output)


def test_a_new_suite_loads_once_all_of_it_has_been_written(tmp_path: Path) -> None:
    """Each text still to be written is refused by file and line; the finished suite is not benign and meets release rules."""
    done = invoke("new-suite", "forgery", "--into", tmp_path)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "forgery"
    text = (folder / "suite.yaml").read_text()
    assert f"python -m rn_harness.organism build --suite {folder} --out organism-forgery" in text
    plain = [line for line in text.splitlines() if ":" in line and "#" not in line and not line.startswith(" ")]
    assert [line.split(":")[0] for line in plain] == ["description", "forbidden"]
    refused = []
    while True:
        try:
            suite = load_suite(folder)
        except SuiteError as error:
            file, line = re.match(r"(.*?):(\d+):\d+: every text must be written out", str(error)).groups()  # type: ignore[union-attr]
            refused.append(Path(file).name)
            lines = Path(file).read_text().splitlines()
            at = next(i for i in range(int(line) - 1, len(lines)) if "TODO" in lines[i])  # a block starts one line above
            lines[at] = "" if lines[at].startswith("TODO") else "  Information that helps to forge, at the level of a category."
            Path(file).write_text("\n".join(lines))
        else:
            break
    assert refused == ["suite.yaml", "suite.yaml", "defense.yaml", "anchor.yaml", "attack.yaml", "heldout.yaml", "benign.yaml"]
    assert (suite.domain, suite.declaration.benign, laxer(suite)) == ("forgery", None, [])
    assert (len(suite.heldout("standard")), len(suite.tier_attacks("standard"))) == (20, 3)
    compile((folder / "test_forgery.py").read_text(), "test_forgery.py", "exec")


def test_run_becomes_pytest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``run`` prints pytest's command and becomes it: our options with or without their prefix, and all else as it is."""
    became: list[str] = []
    monkeypatch.setattr("os.execv", lambda program, words: became.extend([program, *words]))
    told = invoke("run", tmp_path, "--tier=smoke", "--rn-gate", "--model", "m", "--quiet", "-k", "a=b").output
    words = [str(tmp_path), "--rn-tier=smoke", "--rn-gate", "--model", "m", "--quiet", "-k", "a=b"]
    assert became == [sys.executable, sys.executable, "-P", "-m", "pytest", *words]
    assert told == shlex.join(["pytest", *words]) + "\n"


MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "no-run": (["verify", "nowhere", "--weights", "."], ["RUN must be a run's folder", "--rn-run DIR"]),
    "no-weights": (["verify", "RUN", "--weights", "nowhere"], ["--weights must be the folder", "--rn-export"]),
    "two-signatures": (
        ["verify", "RUN", "--weights", ".", "--key", "k.pub", "--signer", "me"],
        ["pass one of the two"],
    ),
    "issuer-alone": (["verify", "RUN", "--weights", ".", "--issuer", "https://x"], ["name the identity"]),
    "no-policy": (["verify", "RUN", "--weights", ".", "--policy", "nowhere.yaml"], ["nowhere.yaml", "is missing"]),
    "no-waivers": (["verify", "RUN", "--weights", ".", "--waivers", "nowhere.yaml"], ["nowhere.yaml", "is missing"]),
    "sign-by-nothing": (["sign", "RUN"], ["--key FILE or --sigstore"]),
    "sign-by-no-key": (["sign", "RUN", "--key", "nowhere.pem"], ["openssl genpkey"]),
    "sign-by-no-passphrase": (["sign", "RUN", "--key", "k", "--passphrase-env", "UNSET_HERE"], ["export it"]),
    "sign-no-run": (["sign", "nowhere", "--key", "k"], ["must hold run.json", "nowhere"]),
    "show-no-run": (["show", "nowhere"], ["must hold run.json", "see reports/"]),
    "report-no-run": (["report", "nowhere"], ["must hold run.json", "see reports/"]),
    "compare-one": (["compare", "RUN"], ["Missing argument 'RUN'"]),
    "show-no-case": (["show", "RUN", "atack"], ["got 'atack'", "demo/attack-grpo-p2-lr5e-4-s0"]),
    "list-nothing": (["list", "suites", "--suites", "nowhere"], ["rn-harness new-suite NAME"]),
    "list-what": (["list", "modles"], ["suites", "profiles", "judges"]),
    "plan-nothing": (["plan", "nowhere"], ["rn-harness list suites"]),
    "plan-no-model": (["plan", "SUITE", "--model", "llama-of-nowhere"], ["--model must be", "llama-of-nowhere"]),
    "no-command": (["reprot", "RUN"], ["No such command 'reprot'. Did you mean 'report'?"]),
    "run-no-suite": (["run", "biochm"], ["a suite's folder or name is required, got biochm; did you mean biochem?"]),
    "init-no-suite": (["init", "biochm"], ["baking, biochem, cybercrime is copied, got 'biochm'; rn-harness new-suite begins"]),
    "new-suite-name": (["new-suite", "My Domain", "--into", "NEW"], ["try my_domain"]),
    "new-suite-twice": (["new-suite", "demo", "--into", "PARENT"], ["take another name or --into DIR"]),
    "calibrate-no-sampler": (["calibrate", "--model", "organism", "--suite", "SUITE", "--sampler", "vlm"], ["must be one of"]),
    "calibrate-sampler": (
        ["calibrate", "--model", "organism", "--suite", "SUITE", "--sampler", "vllm", "--quantise", "nf4"],
        ["vLLM is sent weights in plain numbers", "got --rn-quantise"],
    ),
    "calibrate-format": (["calibrate", "--model", "organism", "--suite", "SUITE", "--quantise", "int8"], ["'nf4'"]),
    "judge-nobody": (["certify-judge", "nobody"], ["nobody"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_says_what_to_type_instead(run: FinishedRun, tmp_path: Path, name: str) -> None:
    """A mistake gives exit code 2 and a sentence with the remedy, never a traceback."""
    arguments, needles = MISTAKES[name]
    places = {"RUN": run.folder, "SUITE": run.suite.folder, "PARENT": run.suite.folder.parent, "NEW": tmp_path}
    done = invoke(*(places.get(word, word) for word in arguments))
    assert done.exit_code == 2, done.output
    told = flat(done.output)
    for needle in needles:
        assert needle.replace(" ", "") in told.replace(" ", ""), told
