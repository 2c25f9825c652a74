"""A run as log files that Inspect can open."""

from __future__ import annotations

import importlib.util
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rn_harness.records.case import CaseRecord
from rn_harness.report.inspect_log import to_inspect, write_inspect_logs
from rn_harness.spec.errors import MissingExtraError, RecordError

from .builders import case_record, evidence, run_record, trajectory, with_score

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("inspect_ai"), reason="needs the extra inspect")


def attack(*changed: tuple[int, float | None]) -> CaseRecord:
    """An attack of 21 checkpoints, 2 prompts and 2 completions, with these scores at these checkpoints."""
    run = trajectory(200)
    for index, value in changed:
        run = with_score(run, index, 1, value)
    return case_record(evidence(trajectory=run))


def opened(record: CaseRecord, folder: Path) -> Any:
    """The log as Inspect reads it."""
    (path,) = write_inspect_logs(folder, run_record(record), [record])
    from inspect_ai.log import read_eval_log  # takes a second, which a worker without these tests saves

    return read_eval_log(str(path))


def test_inspect_reads_every_score(tmp_path: Path) -> None:
    """21 checkpoints of 2 prompts and 2 completions give 84 samples, with the breach among them, and the verdict."""
    log = opened(attack((5, 9.0)), tmp_path)
    assert log.status == "success"
    assert len(log.samples) == 84
    found = {(s.id, s.epoch): s.scores["harm"].value for s in log.samples}
    assert found["step 0050 h1", 2] == 9.0
    assert sum(found.values()) == 9.0
    assert log.eval.metadata["outcome"] == "FAIL"
    assert "FAIL" in log.eval.tags
    (score,) = log.results.scores
    assert (score.scored_samples, score.unscored_samples) == (84, 0)
    assert score.metrics["breached_prompts"].value == 1


def test_unscored_completions_are_unscored_in_inspect(tmp_path: Path) -> None:
    """A missing score has a reason and no number, and a case without a verdict is an error in Inspect too."""
    log = opened(attack((5, None)), tmp_path)
    (hole,) = [s.scores["harm"] for s in log.samples if s.scores["harm"].reason]
    assert math.isnan(hole.value)
    assert hole.reason == "unparsable"
    assert log.status == "error"
    assert log.error.message.startswith("Nothing is claimed")
    (score,) = log.results.scores
    assert (score.scored_samples, score.unscored_samples) == (83, 1)


def test_a_log_holds_no_text_of_a_prompt_or_completion(tmp_path: Path) -> None:
    """A log has the prompt's id in the places where Inspect has texts, no message, and no output."""
    log = opened(attack(), tmp_path)
    assert {s.input for s in log.samples} == {"h1", "h2"}
    assert not any(s.messages or s.output.choices or s.target for s in log.samples)


def test_each_measured_case_has_its_log(tmp_path: Path) -> None:
    """Candidate and attack each have a log; a case that was not measured has none."""
    records = [case_record(evidence("candidate")), attack(), case_record(evidence(trajectory=None, control=None))]
    paths = write_inspect_logs(tmp_path, run_record(*records), records)
    assert [path.name for path in paths] == ["demo-candidate.eval", "demo-attack.eval"]
    assert all(zipfile.is_zipfile(path) for path in paths)
    with pytest.raises(ValueError, match="got none"):
        to_inspect(run_record(*records), records[-1])


def test_a_foreign_record_cannot_choose_the_logs_path(tmp_path: Path) -> None:
    """A case whose name is a path is refused by name."""
    record = attack().model_copy(update={"case_id": "/../../outside"})
    with pytest.raises(RecordError, match="outside"):
        write_inspect_logs(tmp_path / "logs", run_record(record), [record])
    assert not list(tmp_path.glob("**/*.eval"))


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error names it and nothing is written."""
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*'rn-harness\[inspect\]'"):
        write_inspect_logs(tmp_path / "logs", run_record(attack()), [attack()])
    assert not (tmp_path / "logs").exists()
