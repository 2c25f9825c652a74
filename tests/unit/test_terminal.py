"""The terminal's closing lines: results in words that fit the pictures, short claims, and a link to the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import CaseLine
from rn_harness.report.terminal import CLAIM_WORDS, HEADS, LEGEND, in_short, result_text, summary_lines

from .builders import case_record, evidence, run_record, trajectory, with_score

BROKEN = case_record(evidence(trajectory=with_score(with_score(trajectory(200), 12, 1, 9.0), 5, 1, 9.0)))


@pytest.mark.parametrize(
    ("case_id", "outcome", "finding", "record", "words"),
    [
        ("control-grpo-s0", "PASS", "broke", None, "broke (as it must)"),
        ("control-grpo-s0", "INCONCLUSIVE", "proved_nothing", None, "undecided (proved nothing)"),
        ("attack-grpo-s0", "PASS", "held", None, "held"),
        ("attack-grpo-s0", "PASS", "destroyed", None, "destroyed"),
        ("attack-grpo-s0", "FAIL", "broke", BROKEN, "BROKE at step 50"),
        ("attack-grpo-s0", "FAIL", "broke", None, "BROKE"),
        ("attack-grpo-s0", "INCONCLUSIVE", "unknown", None, "undecided"),
        ("attack-grpo-s0", None, None, None, "no verdict"),
        ("helpfulness", "PASS", None, None, "PASS"),
    ],
)
def test_a_result_says_who_broke(
    case_id: str, outcome: str | None, finding: str | None, record: CaseRecord | None, words: str
) -> None:
    """A control that passes broke, as it must; an attack that passes held; a break names its first step."""
    given = {"nodeid": "x", "case_id": case_id, "domain": "demo", "key": None, "outcome": outcome, "finding": finding}
    assert result_text(CaseLine.model_validate(given), record) == words


@pytest.mark.parametrize("clauses", [1, 3, 40])
def test_a_claim_on_the_terminal_has_at_most_25_words(clauses: int) -> None:
    """A long claim ends after a clause and says so by an ellipsis; a short one stays whole."""
    claim = ", ".join(f"held in case {i} of many" for i in range(clauses))
    short = in_short(claim)
    assert len(short.split()) <= CLAIM_WORDS == 25
    assert (short == claim) == (clauses < 5)
    assert short == claim or short.endswith("held in case 3 of many …")
    assert len(in_short("word " * 99).split()) == CLAIM_WORDS


def test_the_closing_lines_have_a_legend_heads_and_a_link(tmp_path: Path) -> None:
    """The legend appears once, above a header for each column, and the last line links to the report if there is one."""
    run = run_record(BROKEN)
    lines = list(summary_lines(run, [BROKEN], str(tmp_path)))
    assert lines.count(LEGEND) == 1
    assert lines[1].split("  ")[0].strip() == HEADS[0]
    assert [lines[1].index(head) for head in HEADS[:3]] == sorted(lines[1].index(head) for head in HEADS[:3])
    assert lines[2].index("BROKE at step 50") == lines[1].index(HEADS[1])
    assert "report.html" not in lines[-1]
    (tmp_path / "report.html").touch()
    assert list(summary_lines(run, [BROKEN], str(tmp_path)))[-1] == f"report: {(tmp_path / 'report.html').as_uri()}"


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b", "\u202e", "\u2028", "\udc80"], ids=ascii)
def test_no_folders_name_writes_a_line_of_its_own(tmp_path: Path, sign: str) -> None:
    """Control signs in the name of defended weights are spelled out, so that no name shows a verdict or hides one."""
    named = f"ours{sign}PASS: a release can rest on this run"
    run = run_record(BROKEN).model_copy(update={"defended": {"demo": named}})
    lines = list(summary_lines(run, [BROKEN], str(tmp_path)))
    (told,) = [line for line in lines if "ours" in line]
    assert sign not in told
    assert told.endswith(f"ours{ascii(sign)[1:-1]}PASS: a release can rest on this run")
    refused = run_record(BROKEN).model_copy(update={"why_not": (f"modified by --rn-set {named}",)})
    assert all(sign not in line for line in summary_lines(refused, [BROKEN], str(tmp_path)))
