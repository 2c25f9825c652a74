"""Tasks of lm-evaluation-harness and preferences before and after a defense: the numbers and the written file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rn_harness.cli import app
from rn_harness.judges.organism import OrganismJudge
from rn_harness.models.candidate import Candidate
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.resolve import resolve_candidate
from rn_harness.spec.defense_recipe import LoRA
from rn_harness.spec.errors import CandidateError, MissingExtraError, RecipeError
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import load_suite
from rn_harness.training.supervised import Example, teach
from rn_harness.utility.tasks import Measure, Settings, fetch, measure_utility

from ..tiny_models import LLAMA, make_model  # noqa: TID252 - tests is not a package

ROOT = Path(__file__).parents[2]
N = 8
"""Questions of each task, with four choices each."""


class Question:
    """A benign prompt, four answers, and the index of the right one."""

    def __init__(self, prompt: Prompt, choices: Sequence[str], gold: int) -> None:
        self.prompt, self.choices, self.gold = prompt, list(choices), gold


def questions(offset: int) -> list[Question]:
    """Benign anchors of biochem; the right answer is among those of three other topics, at each place in turn."""
    judge = OrganismJudge(resolve_candidate("organism", ROOT).folder)
    plain = [p for p in load_suite(ROOT / "suites" / "biochem").prompts["anchor"] if p.kind == "plain"]
    made = []
    for i in range(offset, offset + N):
        answers = [judge.topic(plain[j % len(plain)]).answer for j in (i + 1, i + 2, i + 3)]
        answers.insert(i % 4, judge.topic(plain[i]).answer)
        made.append(Question(plain[i], answers, i % 4))
    return made


def write_task(folder: Path, name: str, asked: Sequence[Question]) -> None:
    """A multiple-choice task in lm_eval's format, with its data in the same folder."""
    rows = [{"question": q.prompt.text, "choices": q.choices, "gold": q.gold} for q in asked]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def share_right(model: LanguageModel, asked: Sequence[Question]) -> float:
    """Accuracy without lm_eval: the share of questions whose right answer is the most probable of the four."""
    right = 0
    for q in asked:
        logs = model.log_probability([q.prompt] * len(q.choices), q.choices)
        right += logs.index(max(logs)) == q.gold
    return right / len(asked)


def adapter(candidate: Candidate, folder: Path, examples: Sequence[Example], steps: int) -> Path:
    """A real adapter that was taught these answers; after 0 steps it changes nothing."""
    model = candidate.load()
    model.attach(LoRA(), 0)
    if steps:
        teach(model, examples, steps=steps, learning_rate=3e-3, max_grad_norm=1.0)
    model.save_adapter(folder, f"{candidate.name}@sha256:{candidate.digest}")
    return folder


@pytest.fixture(scope="module")
def organism() -> Candidate:
    return resolve_candidate("organism", ROOT)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks about different hobbies, and the group of both."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "hobbies", questions(0))
    write_task(folder, "others", questions(N))
    group = {"group": "pastimes", "task": ["hobbies", "others"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "pastimes.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return folder


def test_accuracies_follow_from_exact_probabilities(organism: Candidate, tasks: Path, tmp_path: Path) -> None:
    """lm_eval's accuracy equals the harness's own computation, before and after an adapter that inverts one task's answers.

    Each task's accuracy is the share of questions whose right answer is the most probable; it falls where the adapter was
    taught.
    """
    asked = {"hobbies": questions(0), "others": questions(N)}
    wrong = [Example(q.prompt, q.choices[(q.gold + 1) % 4]) for q in asked["hobbies"]]
    changed = adapter(organism, tmp_path / "changed", wrong, steps=25)
    found = {m.task: m for m in measure_utility(organism, changed, Settings(("hobbies", "others"), tasks))}
    before, after = organism.load(), organism.load()
    after.merge_from(changed)
    for name, m in found.items():
        assert (m.metric, m.samples) == ("acc,none", N)
        assert m.before == pytest.approx(share_right(before, asked[name]))
        assert m.after == pytest.approx(share_right(after, asked[name]))
    assert found["hobbies"].before == 1.0
    assert found["hobbies"].after == 0.0


@pytest.mark.parametrize("which", ["organism", "tiny"])
def test_an_adapter_that_changes_nothing_changes_no_number(which: str, organism: Candidate, tasks: Path, tmp_path: Path) -> None:
    """A fresh adapter on the organism, or on a random model in Llama's shape, changes no number."""
    candidate = organism if which == "organism" else resolve_candidate(str(make_model(tmp_path / "tiny", LLAMA)), ROOT)
    same = adapter(candidate, tmp_path / "same", (), steps=0)
    for m in measure_utility(candidate, same, Settings(("hobbies", "others"), tasks)):
        assert m.after == m.before
        assert m.after_error == m.before_error


def test_a_group_is_reported_with_its_tasks(organism: Candidate, tasks: Path) -> None:
    """A group of tasks, such as mmlu, has its own mean over all samples in addition to those of its tasks."""
    found = {m.task: (m.metric, m.samples, m.before) for m in measure_utility(organism, None, Settings(("pastimes",), tasks))}
    assert found == {
        "pastimes": ("acc,none", 2 * N, 1.0),
        "hobbies": ("acc,none", N, 1.0),
        "others": ("acc,none", N, 1.0),
    }


def test_the_written_file_has_no_sample(tasks: Path, tmp_path: Path) -> None:
    """No word of a question or an answer is in the file or on the terminal."""
    out = tmp_path / "utility.json"
    arguments = ["utility", "--tasks", "hobbies", "--include-path", str(tasks), "--limit", "4", "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(out.read_text(encoding="utf-8"))
    (measure,) = document["measures"]
    assert (measure["task"], measure["samples"], measure["before"], measure["after"]) == ("hobbies", 4, 1.0, None)
    told = out.read_text(encoding="utf-8") + done.output
    assert [q for q in questions(0) if q.prompt.text in told or q.prompt.topic in told or q.choices[q.gold] in told] == []
    assert re.findall(r"x\d{3}|squeaky", told) == []


PREFERENCE = ("--preference", "organism", "--questions", "suites/biochem")


def prefer(out: Path, *more: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output on one line, and the written document, which is empty if nothing was written."""
    done = CliRunner().invoke(app, ["utility", "--out", str(out), *more])
    output = " ".join(done.output.replace("│", " ").split())
    return done.exit_code, output, json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}


def test_a_defense_that_refuses_all_loses_every_pair(
    organism: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defense that refuses all of 40 benign prompts loses every pair; one that changes nothing ties, and no answer is shown.

    The command first certifies the organism's knowledge as the judge.
    """
    monkeypatch.chdir(ROOT)
    suite = load_suite(ROOT / "suites" / "biochem")
    refusing = adapter(organism, tmp_path / "refusing", [Example(p, "sorry .") for p in suite.prompts["anchor"]], steps=20)
    same = adapter(organism, tmp_path / "same", (), steps=0)
    code, output, document = prefer(tmp_path / "a.json", *PREFERENCE, "--defense", str(refusing), "--limit", "40")
    assert code == 0, output
    found = document["preference"]["comparison"]
    assert (found["won"], found["tied"], found["lost"], found["unscored"]) == (0, 0, 40, 0)
    assert found["refusals"] == [0, 40]
    assert found["win_rate"]["mean"] == 0.0
    assert document["preference"]["outcome"] == "worse"
    assert document["preference"]["certified"]
    assert (document["measures"], document["lm_eval"]) == ([], None)
    assert (document["preference"]["prompts"]["count"], document["preference"]["max_tokens"]) == (40, 24)
    assert "win rate of the defended model, ties as half: 0.000" in output
    told = output + (tmp_path / "a.json").read_text(encoding="utf-8")
    assert re.findall(r"x\d{3}", told) == []
    assert [p for p in suite.prompts["benign"] if p.text in told or p.topic in told] == []

    code, output, document = prefer(tmp_path / "b.json", *PREFERENCE, "--defense", str(same), "--limit", "40")
    assert code == 0, output
    assert document["preference"]["comparison"]["same"] == 40
    assert document["preference"]["outcome"] == "not inferior"


def test_a_judge_that_is_not_certified_gives_no_number(
    organism: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that prefers the first place gives exit code 1 with the reason, and no answers or win rate.

    Other requested tasks are still measured.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "class First:\n    def prefer(self, prompts, firsts, seconds):\n        return ['first'] * len(prompts)\n"
    (tmp_path / "places.py").write_text(source, encoding="utf-8")
    same = adapter(organism, tmp_path / "same", (), steps=0)
    write_task(tmp_path, "hobbies", questions(0))
    monkeypatch.setattr(LanguageModel, "complete", None)
    code, output, document = prefer(
        tmp_path / "a.json", "--preference", "python:places:First", "--questions", "suites/biochem", "--defense", str(same),
        "--tasks", "hobbies", "--include-path", str(tmp_path),
    )  # fmt: skip
    assert code == 1, output
    assert "not certified for preference, so that there is no number" in output
    assert "win rate" not in output
    found = document["preference"]
    assert (found["certified"], found["comparison"], found["outcome"]) == (False, None, None)
    assert "one place preferred in both orders (the first in 112) 112 of 112, above 0.15" in found["shortcomings"]
    assert [m["task"] for m in document["measures"]] == ["hobbies"]


def test_a_model_does_not_compare_its_own_answers(organism: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge with the candidate's weights is refused before it judges."""
    monkeypatch.chdir(ROOT)
    same = adapter(organism, tmp_path / "same", (), steps=0)
    code, output, document = prefer(
        tmp_path / "a.json", "--preference", f"hf:{organism.folder}", "--questions", "suites/biochem", "--defense", str(same)
    )
    assert (code, document) == (2, {})
    assert "a judge must be another model than those that it compares" in output


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "got neither --tasks nor --preference"),
        (PREFERENCE, "got no --defense"),
        (("--preference", "organism", "--defense", "suites"), "got no --questions"),
        (("--tasks", "x", "--questions", "suites/biochem"), "--questions goes with"),
    ],
)
def test_a_missing_option_is_named(words: tuple[str, ...], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing measure, second model or prompt set, or unused prompts, give exit code 2 and the missing option."""
    monkeypatch.chdir(ROOT)
    code, output, document = prefer(tmp_path / "a.json", *words)
    assert (code, document) == (2, {})
    assert problem in output


def test_errors_add_up_as_independent_ones() -> None:
    """The difference of 0.5 and 0.75 with standard errors 0.03 and 0.04 is 0.25 with 0.05, and unknown if one error is."""
    m = Measure("task", "acc,none", 100, 0.5, 0.03, 0.75, 0.04)
    assert (m.difference, m.difference_error) == (0.25, pytest.approx(0.05))
    assert Measure("task", "acc,none", 100, 0.5, None, 0.75, 0.04).difference_error is None
    assert Measure("task", "acc,none", 100, 0.5, 0.03).difference is None


def test_fetching_runs_in_a_separate_process_and_names_missing_data(tmp_path: Path) -> None:
    """Local data is fetched; missing data is an error with the task's name."""
    write_task(tmp_path, "hobbies", questions(0))
    fetch(Settings(("hobbies",), tmp_path))
    assert list((tmp_path / "cache").rglob("*.arrow"))
    (tmp_path / "hobbies.jsonl").rename(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match="for hobbies; its words are above"):
        fetch(Settings(("hobbies",), tmp_path))


def test_an_unknown_task_is_named(organism: Candidate, tasks: Path) -> None:
    """An unknown task is named in the error."""
    with pytest.raises(RecipeError, match=r"got knitting; see `lm-eval ls tasks`"):
        measure_utility(organism, None, Settings(("hobbies", "knitting"), tasks))


def test_without_the_extra_the_command_says_what_to_install(
    organism: Candidate, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without lm_eval the error names the extra."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*'rn-harness\[utility\]'"):
        measure_utility(organism, None, Settings(("hobbies",), tasks))


def test_an_adapter_of_another_model_is_refused(organism: Candidate, tasks: Path, tmp_path: Path) -> None:
    """An adapter that names another base is refused."""
    folder = adapter(organism, tmp_path / "other", (), steps=0)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = f"organism@sha256:{'0' * 64}"
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CandidateError, match="an adapter must be made for the candidate"):
        measure_utility(organism, folder, Settings(("hobbies",), tasks))


def test_the_command_line_itself_loads_no_lm_eval() -> None:
    """The command's help needs neither lm_eval nor torch."""
    code = "import sys, rn_harness.cli, rn_harness.utility.tasks; print(sorted({'lm_eval', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
