"""The command line: output and exit codes of certify-judge, store, and unexpected errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rn_harness import cli
from rn_harness.cli import app
from rn_harness.judges.anchors import shipped_anchors
from rn_harness.judges.rules import RulesJudge
from rn_harness.records.base import Judgement
from rn_harness.store.store import Store

RULES = "rules:suites/baking/rules.yaml"
BLIND = "class Blind:\n    def score(self, prompts, completions):\n        return [0.0 for _ in completions]\n"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.fixture(autouse=True, scope="module")
def each_text_is_judged_once() -> Iterator[None]:
    """Keeps the judgement of each text: it is the same at every look, and a certificate takes four looks."""
    judge, known = RulesJudge.judge, dict[tuple[str, str], Judgement]()

    def remembered(self: RulesJudge, text: str) -> Judgement:
        if (self.digest, text) not in known:
            known[self.digest, text] = judge(self, text)
        return known[self.digest, text]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RulesJudge, "judge", remembered)
        yield


def labels(folder: Path, low: int, high: int) -> Path:
    """A lab's own label file: the shipped certifying anchors, with these limits for each complete answer."""
    anchors = shipped_anchors()
    rows = [
        {
            "id": a.id,
            "kind": a.kind,
            "request": a.prompt.text,
            "completion": a.completion,
            "low": low if a.kind == "complete" else a.low,
            "high": high if a.kind == "complete" else a.high,
            "use": "certify",
        }
        for a in anchors.of("certify")
    ]
    path = folder / "labels.yaml"
    path.write_text(
        yaml.safe_dump({"version": 1, "domain": "baking", "forbidden": anchors.forbidden, "anchors": rows}), encoding="utf-8"
    )
    return path


def test_a_certified_judge_exits_with_0() -> None:
    """A judge that the rules certify gives exit code 0 and a table of counts."""
    done = CliRunner().invoke(app, ["certify-judge", RULES])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == "certified"
    assert "false negatives  5/90" in done.output


def test_a_blind_judge_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that calls everything harmless gives exit code 1; the last line gives the reason, and JSON has the same result."""
    (tmp_path / "blind_judge.py").write_text(BLIND)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = CliRunner().invoke(app, ["certify-judge", "python:blind_judge:Blind"])
    assert done.exit_code == 1
    assert "not certified" in done.output.splitlines()[-1]
    assert "false negatives" in done.output.splitlines()[-1]
    told = json.loads(CliRunner().invoke(app, ["certify-judge", "python:blind_judge:Blind", "--json"]).output)
    assert told["certified"] is False
    assert told["shortcomings"]


def test_labels_of_ones_own_count_too(tmp_path: Path) -> None:
    """A judge that passes on the shipped anchors but fails on a lab's labels is not certified; both tables are shown."""
    done = CliRunner().invoke(app, ["certify-judge", RULES, "--judge-labels", str(labels(tmp_path, 8, 10))])
    assert done.exit_code == 0, done.output
    assert "labels anchors" in done.output
    done = CliRunner().invoke(app, ["certify-judge", RULES, "--judge-labels", str(labels(tmp_path, 0, 1))])
    assert done.exit_code == 1
    assert "not certified" in done.output


@pytest.mark.parametrize(
    "arguments", [["certify-judge", "nobody"], ["certify-judge", RULES, "--judge-labels", "no/such/file.yaml"]]
)
def test_what_cannot_be_asked_is_a_usage_error(arguments: list[str]) -> None:
    """An unknown judge and a missing label file are usage errors with exit code 2."""
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_the_store_is_listed_and_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``store list`` shows each entry with its size; ``store prune`` removes unused entries and reports them."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path))
    Store(tmp_path).put("case", "a" * 64, lambda folder: _fill(folder, 1000))
    Store(tmp_path).journal("b" * 64).add("line")
    Store(tmp_path).put("partial", "c" * 64, lambda folder: _fill(folder, 500))
    shown = CliRunner().invoke(app, ["store", "list"])
    assert shown.exit_code == 0
    assert shown.output.split()[:5] == ["kind", "name", "bytes", "used", "remark"]
    assert shown.output.splitlines()[1].startswith("case ")
    assert shown.output.splitlines()[-1].startswith(f"3 in {tmp_path}, ")
    (partial,) = [line for line in shown.output.splitlines() if line.startswith("partial ")]
    assert partial.endswith("  a defense's training that is under way or was cut off: the same command goes on from it")
    told = json.loads(CliRunner().invoke(app, ["store", "list", "--json"]).output)
    assert [(e["kind"], e["whole"]) for e in told["entries"]] == [("case", True), ("partial", True), ("unfinished", False)]
    assert told["entries"][0]["bytes"] >= 1000
    assert CliRunner().invoke(app, ["store", "prune"]).output.startswith("0 in ")
    pruned = json.loads(CliRunner().invoke(app, ["store", "prune", "--unused-days", "0", "--json"]).output)
    assert [e["kind"] for e in pruned["entries"]] == ["case", "partial", "unfinished"]
    assert Store(tmp_path).entries() == []


def _fill(folder: Path, size: int) -> None:
    (folder / "trajectory.json").write_bytes(b"x" * size)


def test_an_unexpected_error_is_shown_without_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unexpected error gives exit code 2 with type and place but no message, because the message may quote a completion."""

    def broken() -> None:
        raise KeyError("what a model said")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("KeyError (its message is withheld")
    assert "what a model said" not in told
