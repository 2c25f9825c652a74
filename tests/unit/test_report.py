"""The report and the summary: views that compute nothing, load nothing from outside, and escape foreign names."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import typer
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from rn_harness.cli import app
from rn_harness.cli.shared import read_run
from rn_harness.records.base import CaseKind, Outcome
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import CaseLine, RunRecord
from rn_harness.report.figures import VARIABLES, heat_svg, plot_svg, stored_svg, trajectory_svg
from rn_harness.report.pages import SECTIONS, plain, render_card, render_html, render_summary, write_views
from rn_harness.report.terminal import checkpoint_lines
from rn_harness.report.tiles import tiles_of
from rn_harness.run import controller as controlling
from rn_harness.spec.suite import Suite, load_suite

from .builders import (
    breaking_control,
    case_record,
    checkpoint,
    completion,
    defense_report,
    evidence,
    restrained_attack,
    run_record,
    trajectory,
    under_aid,
    with_checkpoint,
    with_score,
    write_suite,
)
from .test_controller import ATTACK, Run

Cases = list[tuple[CaseLine, CaseRecord | None]]
EVIL = '<script>alert("1")</script>@someone https://x.example/ [a](javascript:b) | `c`'


@pytest.fixture
def suite(suite_folder: Path) -> Suite:
    return load_suite(suite_folder)


def ended(folder: Path, suite: Suite, outcome: Outcome = "PASS") -> tuple[RunRecord, Cases]:
    """A finished run of the small suite with this outcome, and its cases in order."""
    run = Run(folder, [suite])
    run.end_all(but=() if outcome == "PASS" else (ATTACK,))
    if outcome == "FAIL":
        run.end(run.nodeid(suite, ATTACK), run.news(suite, "attack", ATTACK, "FAIL"), "failed")
    record = run.controller.finish()
    assert record.outcome == outcome
    by_id = {r.case_id: r for r in run.controller.records()}
    return record, [(line, by_id.get(line.case_id)) for line in record.cases]


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Cases]:
    """A run of one attack: each has three figures."""
    folder = tmp_path_factory.mktemp("passed")
    declared = write_suite(folder / "demo") / "suite.yaml"
    text = re.sub(r"  - tier: standard\n.*\n    vary.*\n", "", declared.read_text(encoding="utf-8"))
    declared.write_text(text, encoding="utf-8")
    return ended(folder / "run", load_suite(declared.parent))


@pytest.fixture(scope="module")
def text(passed: tuple[RunRecord, Cases]) -> str:
    """The report of a run that passed."""
    return render_html(*passed)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def attributes(self, name: str) -> list[str]:
        return [found for _, attrs in self.tags if (found := attrs.get(name)) is not None]

    @property
    def visible(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.mark.parametrize("outcome", ["PASS", "FAIL", "INCONCLUSIVE"])
def test_a_report_leads_with_verdict_level_and_cheapest_break(
    undrawn: None, tmp_path: Path, suite: Suite, outcome: Outcome
) -> None:
    """The headline and every reason against a release come first; the full claim comes after the plots and before the rows."""
    run, cases = ended(tmp_path / "run", suite, outcome)
    body = render_html(run, cases).partition("<body>")[2]
    header = Page(body.partition("<main")[0]).visible
    assert outcome in header
    assert run.headline
    assert all(line in header for line in run.headline)
    assert run.why_not
    assert all(" ".join(why.split()) in header for why in run.why_not)
    after_plots = body.partition('class="panel"')[2].partition('class="rows"')[0]
    assert run.claim[1:] in Page(after_plots).visible


def test_a_report_has_its_parts_in_order(text: str) -> None:
    """Verdict, tiles, small plots, a row for each attack, the curves of harm by budget; all the rest is folded."""
    places = [text.index(part) for part in ("<h1", 'class="tiles"', 'class="panel"', '<details class="row', 'id="budgets"')]
    assert places == sorted(places)
    folded = re.findall(r'<details class="fold"><summary><h2 id="(\w+)"', text)
    assert folded == [name for name, _ in SECTIONS[2:]]
    assert text.index('class="fold"') > places[-1]


def test_the_tiles_show_the_worst_attack() -> None:
    """Highest score and bound are those of the worst attack; helpfulness names margin and refusals beside the difference."""
    records = [case_record(evidence()), breached_at(50), case_record(evidence("helpfulness"))]
    records[0], records[1] = (r.model_copy(update={"case_id": f"attack-{i}"}) for i, r in enumerate(records[:2]))
    run = run_record(*records)
    found = {title: (value, told) for title, value, told in tiles_of(list(zip(run.cases, records, strict=True)))}
    assert found["Highest score"] == ("9.00 of 10", "threshold 2; any checkpoint of 2 attacks, counted or not")
    assert found["Share of prompts that break"][0] == "below 98 %"  # 1 of 2 prompts: below 0.95^(1/2) = 0.975
    assert found["Helpfulness"][0] == "+0.000"
    assert "may lose 0.0" in found["Helpfulness"][1]
    assert found["Helpfulness"][1].endswith("refused: 0 of 100 benign prompts, 0 of 50 twins")
    assert found["Judge"][1].startswith("inert anchors: ")
    cut = [(run.cases[0], records[0]), (run.cases[1], None)]
    lost = {title: (value, told) for title, value, told in tiles_of(cut)}
    assert lost["Share of prompts that break"][0] == "unknown"  # a claimed attack that was not measured is never safe
    assert lost["Highest score"][0] == "at least 0.00 of 10"
    assert all(lost[tile][1].endswith("; 1 more were not measured") for tile in ("Highest score", "Share of prompts that break"))


def test_a_break_where_bounds_do_not_look_is_not_bounded(undrawn: None) -> None:
    """A break under an aid or by a restrained attack, or no verdict, leaves no bound below 1 in tile and row."""
    plain = trajectory(200)
    restrained = restrained_attack(1, plain, breaking_control(), lambda run: with_score(run, 5, 1, 9.0))
    under_an_aid = evidence(trajectory=under_aid(plain, lambda _: 9.0))
    for of in (under_an_aid, evidence(restrained=(restrained,)), evidence(control=trajectory(50))):
        record = case_record(of)
        assert record.verdict.bounds is not None
        assert record.verdict.bounds.upper_prompts < 1
        run, cases = stand_in(record)
        tiles = {title: value for title, value, _ in tiles_of(cases)}
        assert tiles["Share of prompts that break"] == "not bounded"
        (row,) = re.findall(r'<span class="bound">.*?</summary>', render_html(run, cases), flags=re.DOTALL)
        assert Page(row).visible.endswith("not bounded")


def test_the_highest_score_of_an_undecided_attack_is_a_least_one() -> None:
    """If an attack is undecided, for example by a blind judge, the tile says "at least" before its score, and why."""
    record = case_record(evidence(control=trajectory(50)))
    assert record.verdict.outcome == "INCONCLUSIVE"
    _, cases = stand_in(record)
    tiles = {title: (value, told) for title, value, told in tiles_of(cases)}
    assert tiles["Highest score"] == (
        "at least 0.00 of 10", "threshold 2; any checkpoint of 1 attack, counted or not; 1 undecided"
    )  # fmt: skip


def test_attacks_after_an_interruption_are_missing_and_not_safe(passed: tuple[RunRecord, Cases], undrawn: None) -> None:
    """Claimed attacks that the run did not reach make the bound unknown, and the page counts them, also if none was reached."""
    run, cases = passed
    (of,) = run.coverage
    more = of.model_copy(update={"resistance": of.resistance.model_copy(update={"claimed": of.resistance.claimed + 18})})
    tiles = {title: (value, told) for title, value, told in tiles_of(cases, 18)}
    assert tiles["Share of prompts that break"][0] == "unknown"
    assert tiles["Highest score"][0].startswith("at least ")
    assert all(
        tiles[title][1].endswith("; 18 more were not measured") for title in ("Highest score", "Share of prompts that break")
    )
    cut = run.model_copy(update={"coverage": (more,)})
    assert "18 claimed attacks of demo have no record." in Page(render_html(cut, cases)).visible
    early = Page(render_html(cut, [(line, record) for line, record in cases if not line.case_id.startswith("attack-")])).visible
    assert f"{more.resistance.claimed} claimed attacks of demo have no record." in early
    assert "No attack was selected." not in early


def test_a_report_shows_an_attack_without_a_record(passed: tuple[RunRecord, Cases]) -> None:
    """An attack that left no record has a row, which says so."""
    run, cases = passed
    line = next(line for line, _ in cases if line.case_id.startswith("attack-"))
    lost = line.model_copy(update={"outcome": None, "finding": None, "record": None, "key": None, "note": "it was cut"})
    page = render_html(run, [(lost, None)])
    (row,) = re.findall(r'<details class="row.*?</details>', page, flags=re.DOTALL)
    assert "no verdict" in Page(row).visible
    assert "it was cut" in Page(row).visible


def test_a_report_has_all_required_sentences(passed: tuple[RunRecord, Cases], text: str) -> None:
    """The page has coverage claims, cases not run, signatures, bounds, certificates, digests, seeds and attempts."""
    run, cases = passed
    told = Page(text).visible
    due = [run.coverage[0].claim, *(n.why for n in run.coverage[0].not_run), *run.provenance.digests.values()]
    for _, record in cases:
        assert record is not None
        due.append(record.verdict.claim)
        if record.verdict.signatures and record.verdict.bounds:
            due += [*record.verdict.signatures.sentences, record.verdict.bounds.sentence]
        due += [c.digest for c in record.evidence.certificates]
    for sentence in due:
        assert " ".join(sentence.split()) in told
    assert "attempts at that work" in told.lower()


def test_a_report_needs_no_script_and_fetches_nothing(text: str) -> None:
    """The page has no script, style sheet, frame or form; each reference is internal or data; its policy forbids all else."""
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "audio",
        "video",
    } == set()
    for name in ("href", "src", "xlink:href", "srcset", "data", "action", "poster"):
        assert [value for value in page.attributes(name) if not value.startswith(("#", "data:image/png"))] == []
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "url(http" not in text
    assert "default-src 'none'" in page.attributes("content")[-1]


def test_each_reference_has_exactly_one_target(text: str) -> None:
    """Ids are unique, although each figure brings its own, and every link and label names an existing id."""
    page = Page(text)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    named = [
        *(name[1:] for name in page.attributes("href") + page.attributes("xlink:href") if name.startswith("#")),
        *(name for value in page.attributes("aria-labelledby") for name in value.split()),
        *re.findall(r"url\(#([^)]+)\)", text),
    ]
    assert named
    assert sorted(set(named) - set(ids)) == []


def test_headings_step_down_one_by_one(text: str) -> None:
    """There is one first-level heading and no level is skipped, so that a screen reader can follow the page."""
    levels = [int(tag[1]) for tag, _ in Page(text).tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_probes_are_shown_of_each_model_that_was_probed(passed: tuple[RunRecord, Cases]) -> None:
    """A defense from a folder shows its probes without a training's report, and the candidate's if its case has a record."""
    run, cases = passed
    by_id = {line.case_id: (line, record) for line, record in cases}
    line, record = by_id["defense"]
    assert record is not None
    folder = line, record.model_copy(update={"evidence": record.evidence.model_copy(update={"report": None})})
    for shown, models in (([by_id["candidate"], folder], ["undefended", "defended"]), ([folder], ["defended"])):
        page = render_html(run, shown)
        rows = [f"{who}{ban}" for who in models for ban in ("", ", refusals&#39; first tokens banned")]
        table = page.partition("Reward probe:")[2].partition("</table>")[0]
        assert re.findall(r"<t[hd][^>]*>((?:un)?defended[^<]*)<", table) == rows
        assert "Convergence by training step" not in page


def test_the_same_records_give_the_same_bytes(
    passed: tuple[RunRecord, Cases], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view made a second time has the same bytes: no date, no random id."""
    assert render_html(*passed) == text
    assert render_summary(*passed) == render_summary(*passed)
    run, cases = passed
    some = [next(case for case in cases if case[0].case_id.startswith(kind)) for kind in ("defense", "attack")]
    page = render_html(run, some)
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path))  # no figure is stored there yet
    assert render_html(run, some) == page
    assert all(f'{figure}-title"' in page for figure in ("trajectory", "heat", "convergence", "harm-demo-rl"))


def test_foreign_names_are_text(passed: tuple[RunRecord, Cases]) -> None:
    """A name that is markup creates no element, link, cell or mention in any view."""
    run, cases = passed
    run = run.model_copy(update={"options": {**run.options, "model": EVIL}, "claim": EVIL, "why_not": (EVIL,)})
    line, record = cases[-2]
    assert record is not None
    assert record.evidence.trajectory is not None
    strange = record.evidence.trajectory.model_copy(update={"heldout_ids": (EVIL, "h2$x$")})
    of = record.evidence.model_copy(update={"trajectory": strange, "kind": "attack"})
    cases = [
        *cases,
        (
            line.model_copy(update={"note": EVIL, "case_id": f"attack-{EVIL}"}),
            record.model_copy(update={"evidence": of, "case_id": EVIL}),
        ),
    ]
    page = Page(render_html(run, cases))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [value for value in page.attributes("href") if not value.startswith(("#", "data:"))]
    assert EVIL in page.visible
    summary = MarkdownIt("gfm-like", {"linkify": False}).render(render_summary(run, cases))
    shown = Page(summary)
    assert {"script", "a", "code", "img"} & {tag for tag, _ in shown.tags} == set()
    assert "@someone" not in summary
    assert "https://" not in summary


@hypothesis.given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), max_size=40))
def test_plain_text_stays_plain(text: str) -> None:
    """Markdown renders any text unchanged as one run of text, except for the mark that breaks up an address."""
    inline = MarkdownIt("commonmark").parseInline(f"x {plain(text)}")[0]
    assert {token.type for token in inline.children or ()} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children or ()).replace("\u200b", "") == f"x {text}".replace("\u200b", "")


def test_a_view_shows_what_the_scores_give(undrawn: None) -> None:
    """The page shows the maximum of a checkpoint's scores, even where the record's JSON says otherwise."""
    document = case_record(evidence(trajectory=with_score(trajectory(200), 1, 0, 7.77))).model_dump(mode="json")
    document["evidence"]["trajectory"]["checkpoints"][1]["maximum"] = 0.0
    record = CaseRecord.model_validate(document)
    run, _ = stand_in(record)
    assert "<td>7.77</td>" in render_html(run, [(run.cases[0], record)])


@pytest.mark.parametrize("resumed", [(), (20, 40)])
def test_a_defense_names_the_steps_where_it_was_interrupted(undrawn: None, resumed: tuple[int, ...]) -> None:
    """Report and terminal name the steps where the training was interrupted, and only then."""
    record = case_record(evidence("defense", report=defense_report(resumed=resumed)))
    told = "rained on from step 20, 40, where it had been cut off"
    assert (told in render_html(*stand_in(record))) == bool(resumed)
    assert any(told in line for line in checkpoint_lines(record)) == bool(resumed)


def stand_in(record: CaseRecord) -> tuple[RunRecord, Cases]:
    """A run that consists of this case."""
    record = record.model_copy(update={"case_id": "attack-x"}) if record.case_id == "attack" else record
    run = run_record(record)
    return run, [(run.cases[0], record)]


def breached_at(*steps: int) -> CaseRecord:
    """An attack with one score of 9 at each of these steps."""
    run = trajectory(200)
    for step in steps:
        run = with_score(run, step // 10, 1, 9.0)
    return case_record(evidence(trajectory=run))


@functools.cache
def drawn(*steps: int) -> str:
    """The figure of an attack with a breach at each of these steps."""
    return trajectory_svg("x", breached_at(*steps))


def test_breaches_are_marked_where_the_verdict_found_them() -> None:
    """The figure has one cross for each breached checkpoint."""

    def crosses(svg: str) -> int:
        found = re.search(r'<g id="x-breaches">(.*?)</g>\s*</g>', svg, flags=re.DOTALL)
        return found.group(1).count("<use ") if found else 0

    assert crosses(drawn(50, 120)) == 2
    assert crosses(drawn()) == 0


def test_small_plots_have_one_scale_and_a_cross_for_each_breach() -> None:
    """Plots differ only in their lines: each breach has a cross at its step and score, and an unscored checkpoint a gap."""
    held, broke = (plot_svg(record, 400, 60, control=True) for record in (breached_at(), breached_at(50, 120)))
    assert held.partition(">")[0] == broke.partition(">")[0]
    assert [svg.count('class="control"') for svg in (held, broke)] == [1, 1]
    crosses = re.findall(r'class="breach" d="M([\d.]+) ([\d.]+)m', broke)
    assert crosses == [("15.0", "6.0"), ("36.0", "6.0")]  # steps 50 and 120 of 400, 120 wide; score 9 of 10, 60 high
    assert 'class="breach"' not in held
    run = trajectory(200)
    holed = with_checkpoint(run, 2, checkpoint(20, [completion("h1", 0, None)]))
    gap = plot_svg(case_record(evidence(trajectory=holed)), 400, 60, control=False)
    assert re.search(r'class="defended" d="M0.0 60.0h0L3.0 60.0M9.0 60.0h0L', gap)
    assert "control" not in gap


def test_a_break_under_an_aid_is_in_the_small_plot() -> None:
    """A score under an attack's aid raises the line, since it may be the only breach."""
    plain = trajectory(200)
    aided = case_record(evidence(trajectory=under_aid(plain, lambda _: 9.0)))
    assert "L120.0 6.0" not in plot_svg(case_record(evidence(trajectory=plain)), 200, 60, control=False)
    assert "L120.0 6.0" in plot_svg(aided, 200, 60, control=False)
    assert aided.evidence.highest == 9.0


def test_a_report_draws_harm_by_budget_next_to_the_control(text: str) -> None:
    """Each axis with attacks has one figure and its numbers: completions up to 20 x 16, the control's up to 10 x 16."""
    assert 'id="harm-demo-rl-title"' in text
    assert "harm-demo-sft" not in text  # no attack of this suite has supervised steps
    table = text.split('id="harm-demo-rl-numbers"')[1].split("</table>", maxsplit=1)[0]
    cells = {row[0]: row[1:] for row in re.findall(r'scope="row">(\d+)</th>' + r"<td>([\d.]*)</td>" * 4, table)}
    assert cells == {
        "0": ("0.00", "0.00", "0.00", "0.00"),
        "160": ("0.00", "0.00", "8.00", "8.00"),  # the control broke at its last step, the tenth
        "320": ("0.00", "0.00", "", ""),
    }


def test_a_figure_keeps_its_text_and_takes_the_pages_colours() -> None:
    """Text stays text, colours are variables of the page, and the figure refers to a title and a description."""
    svg = drawn(50, 120)
    assert "threshold 2" in svg
    assert not [colour for colour in VARIABLES if colour in svg]
    assert {f"var({name})" for name in VARIABLES.values()} <= set(re.findall(r"var\(--\w+\)", svg))
    assert 'aria-labelledby="x-title x-desc"' in svg
    assert "<metadata" not in svg
    assert "<style" not in svg


def test_a_figure_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record's figure is drawn once and then read from the store; another record or name gives another figure."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path))
    drawn: list[str] = []

    def draw(name: str, record: CaseRecord) -> str:
        drawn.append(name)
        return f"<svg>{name}: {record.verdict.outcome}</svg>"

    held, broken = breached_at(), breached_at(50)
    later = held.model_copy(update={"started": "2031-01-01T00:00:00+00:00", "wall_s": 7.0})  # the same case in a second run
    figures = [stored_svg(draw, name, record) for name, record in (("x", held), ("x", later), ("y", held), ("x", broken))]
    assert drawn == ["x", "y", "x"]
    assert figures == [f"<svg>{told}</svg>" for told in ("x: PASS", "x: PASS", "y: PASS", "x: FAIL")]


def test_a_report_needs_no_writable_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If figures cannot be stored, they are still drawn."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path / "file" / "store"))
    assert stored_svg(lambda name, record: f"{name}: {record.case_id}", "x", breached_at()) == "x: attack"


def test_a_leak_that_was_not_measured_is_named() -> None:
    """If no leak was measured, its panel says ``not measured`` and has no line."""
    assert drawn().count("not measured") == 1


@pytest.mark.parametrize("draw", [trajectory_svg, heat_svg])
def test_a_case_without_trajectory_has_no_figure(draw: Callable[[str, CaseRecord], str]) -> None:
    """A case without a trajectory has no figure."""
    with pytest.raises(ValueError, match="got none"):
        draw("x", case_record(evidence(trajectory=None, control=None)))


def test_an_unscored_completion_is_grey_and_a_dash(undrawn: None) -> None:
    """An unscored completion is grey in the heat map and a dash in its table, never 0."""
    run = trajectory(200)
    holed = with_checkpoint(run, 2, checkpoint(20, [completion("h1", 0, None), *run.checkpoints[2].scores[1:]]))
    record = case_record(evidence(trajectory=holed))
    whole, part = (heat_svg("x", case_record(evidence(trajectory=of))) for of in (run, holed))
    assert whole != part
    made, cases = stand_in(record)
    assert "<td>\u2013 0</td>" in render_html(made, cases)


def card(outcome: Outcome, kinds: Sequence[CaseKind] = ("attack", "helpfulness")) -> ModelCard:
    """The card of weights whose attack held, broke, or has no verdict, as the hub's library reads it."""
    run = trajectory(200)
    if outcome == "FAIL":
        run = with_score(run, 5, 1, 9.0)
    elif outcome == "INCONCLUSIVE":
        run = with_score(run, 5, 1, None)
    attack, benign = case_record(evidence(trajectory=run)), case_record(evidence("helpfulness"))
    assert attack.verdict.outcome == outcome
    records = [
        r.model_copy(update={"identity": r.identity.model_copy(update={"defended_digest": "d" * 64})}) for r in (attack, benign)
    ]
    records = [
        r.model_copy(update={"identity": r.identity.model_copy(update={"candidate": {"name": EVIL, "digest": "c" * 64}})})
        for r in records
        if r.evidence.kind in kinds
    ]
    return ModelCard(render_card(run_record(*records), records, "d" * 64, is_adapter=True))


@pytest.mark.parametrize(("outcome", "breached"), [("PASS", 0), ("FAIL", 1)])
def test_a_card_has_the_records_numbers_as_the_hub_reads_them(outcome: Outcome, breached: int) -> None:
    """Each metric of attack and helpfulness is a result; the bound is Clopper and Pearson's for this many of 2 prompts."""
    found = {(r.dataset_config, r.metric_type): r.metric_value for r in card(outcome).data.eval_results or ()}
    # One-sided: 0 of 2 below 1 - 0.05^(1/2), 1 of 2 below 0.95^(1/2).
    assert found == {
        ("attack", "breached_prompts"): breached,
        ("attack", "upper_bound"): pytest.approx((1 - 0.05**0.5, 0.95**0.5)[breached], abs=1e-3),
        ("helpfulness", "similarity_difference"): 0.0,
    }


def test_an_unknown_outcome_is_not_a_result_on_a_card() -> None:
    """An attack without a verdict gives no result for the hub to list; the text says INCONCLUSIVE."""
    made = card("INCONCLUSIVE")
    assert {r.dataset_config for r in made.data.eval_results or ()} == {"helpfulness"}
    assert "`attack`: INCONCLUSIVE" in made.text


def test_a_card_names_weights_without_an_attack() -> None:
    """If a run had no attack case and its weights are exported anyway, the card says that nothing attacked them."""
    made = card("PASS").text
    assert "folded into its base before each attack" in made
    assert "nothing attacked" not in made
    told = card("PASS", kinds=("helpfulness",)).text
    assert "A LoRA adapter, which nothing attacked in this run." in told
    assert "before each attack" not in told


def test_a_bases_strange_name_is_text_on_the_card() -> None:
    """A candidate's strange name is one string of the card's metadata and no markup in its text."""
    assert card("PASS").data.base_model == EVIL
    assert "script" not in {tag for tag, _ in Page(MarkdownIt("gfm-like", {"linkify": False}).render(card("PASS").text)).tags}


# --- folders and the command line --------------------------------------------------------------------------------------


def lay_out(folder: Path, run: RunRecord, cases: Cases) -> Path:
    """A run's folder as a session leaves it: each case's folder ends with the first digits of its key."""
    folder.mkdir(parents=True)
    lines, files = [], {}
    for line, record in cases:
        name = f"cases/{line.domain}-{line.case_id}-{record.key[:12]}/record.json" if record else None
        if name and record:
            text = record.model_dump_json()
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text(text, encoding="utf-8")
            files[name] = hashlib.sha256(text.encode()).hexdigest()
        lines.append(line.model_copy(update={"record": name}))
    whole = run.model_copy(update={"cases": tuple(lines), "files": files})
    (folder / "run.json").write_text(whole.model_dump_json(), encoding="utf-8")
    return folder


def views_of(folder: Path) -> list[Path]:
    """The views of a folder's run, written into it."""
    evidence = read_run(folder, complete=True)
    return write_views(folder, evidence.run, evidence.records.values())


@pytest.fixture
def folder(tmp_path: Path, passed: tuple[RunRecord, Cases]) -> Path:
    """A finished run whose cases have keys of their own."""
    run, cases = passed
    records = [r and r.model_copy(update={"inputs": {"case": r.case_id}}) for _, r in cases]
    lines = [line.model_copy(update={"key": r and r.key}) for (line, _), r in zip(cases, records, strict=True)]
    return lay_out(tmp_path / "run", run.model_copy(update={"cases": tuple(lines)}), list(zip(lines, records, strict=True)))


def test_a_folder_is_read_as_it_was_written(folder: Path) -> None:
    """All cases are read in the run's order, and an earlier run's record of another version is ignored."""
    stale = folder / "cases" / "demo-attack-old-ffffffffffff"
    stale.mkdir()
    (stale / "record.json").write_text('{"version": 1}', encoding="utf-8")
    evidence = read_run(folder, complete=True)
    assert [r.case_id for r in evidence.records.values()] == [line.case_id for line in evidence.run.cases]


def test_the_command_makes_the_views_again(folder: Path, tmp_path: Path) -> None:
    """``rn-harness report RUN`` writes the same bytes as the run, next to the records or to ``--out``."""
    first = {path.name: path.read_bytes() for path in views_of(folder)}
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert {name: (folder / name).read_bytes() for name in first} == first
    (tmp_path / "out").mkdir()
    assert CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "out")]).exit_code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first


@pytest.mark.parametrize("spoil", ["no run", "no case", "another version", "not json", "not text"])
def test_a_folder_without_a_whole_run_is_refused_by_name(folder: Path, spoil: str) -> None:
    """A folder that is not a whole run ends with the file's name and exit code 2, and without a view."""
    some = next(folder.glob("cases/*/record.json"))
    if spoil == "no run":
        (folder / "run.json").unlink()
    elif spoil == "no case":
        shutil.rmtree(some.parent)
    elif spoil == "another version":
        some.write_text(json.dumps(json.loads(some.read_text()) | {"version": 99}))
    elif spoil == "not json":
        (folder / "run.json").write_text("{")
    else:
        (folder / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(typer.BadParameter, match=re.escape(str(folder))):
        read_run(folder, complete=True)
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 2
    assert not (folder / "report.html").exists()


def test_a_failed_view_keeps_the_verdict(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.json has its outcome before the report is made; if that fails, the closing lines say so with the remedy."""

    def broken(*_: Any) -> None:
        assert (tmp_path / "run" / "run.json").is_file()
        raise OSError("no space left")

    monkeypatch.setattr(controlling, "write_views", broken)
    run = Run(tmp_path / "run", [suite])
    run.end_all()
    record = run.controller.finish()
    run.controller.show(record)
    assert RunRecord.model_validate_json((tmp_path / "run" / "run.json").read_text()).outcome == "PASS"
    lines = list(run.controller.summary(record))
    assert any(line.startswith("NO REPORT") and "no space left" in line for line in lines)
    assert lines[-1].endswith(f"rn-harness report {tmp_path / 'run'}")
