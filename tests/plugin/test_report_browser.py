"""Reports of real runs in a real browser: they render, fetch nothing, need no script, and are accessible.

Skipped if Chromium is not installed (Debian: ``apt-get install chromium``); no browser is downloaded.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import jsonschema
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from rn_harness.cli import app
from rn_harness.cli.shared import read_run
from rn_harness.records.schemas import schema_of
from rn_harness.report import pages
from rn_harness.report.pages import SECTIONS

from .conftest import copy_suite

SHORT = ("--rn-tier=smoke", "--rn-set=attack.steps=20", "--rn-set=attack.control_steps=20")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
VIEWS = [("light", WIDE), ("dark", WIDE), ("light", NARROW)]
NAMES = ["light", "dark", "narrow"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shared_store):
    """The folders of two runs by outcome: a defense that passed, and an undefended model that failed."""
    folder = tmp_path_factory.mktemp("reports")
    copy_suite(folder / "mine" / "biochem")
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ['--import-mode=importlib']\n")
    own = "--rn-set=attack.seed=7"  # no other test's run shares these attacks in the store
    for name, options in (("PASS", (own,)), ("FAIL", (own, "--rn-defense=none"))):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "mine/biochem", *SHORT, *options, f"--rn-run={name}"],
            cwd=folder,
            env={**os.environ, "RN_HARNESS_CACHE": str(shared_store)},
            capture_output=True,
            text=True,
            check=False,  # a FAIL exits with 1
        )
        assert json.loads((folder / name / "run.json").read_text())["outcome"] == name, done.stdout
        assert "NO REPORT" not in done.stdout
    return {name: folder / name for name in ("PASS", "FAIL")}


@pytest.fixture(scope="module")
def browser():
    """Chromium with a new profile."""
    if CHROMIUM is None:
        pytest.skip("THE REPORT IS NOT LOOKED AT: no Chromium here; apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(QUIET))
        yield opened
        opened.close()


@contextmanager
def page_of(browser, folder, scheme="light", viewport=None, name="report.html", **options):
    """The report, opened from disk; ``requested`` lists its requests, ``said`` the console messages."""
    context = browser.new_context(color_scheme=scheme, viewport=viewport or WIDE, **options)
    page = context.new_page()
    page.requested, page.said = [], []
    page.on("request", lambda request: page.requested.append(request.url))
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto((folder / name).as_uri())
    yield page
    context.close()


def unfold(page):
    """Opens everything that is folded."""
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")


@pytest.fixture(scope="module")
def standard(runs, tmp_path_factory):
    """The folder of a page like a standard run's: 21 attacks of two families, each third of which broke. Figures are empty."""
    (held, line), (broke, _) = (
        next((record, li) for li in of.run.cases for record in of.records.values() if record.case_id == li.case_id and li.level)
        for of in (read_run(runs[name], complete=True) for name in ("PASS", "FAIL"))
    )
    run = read_run(runs["PASS"], complete=True).run
    cases = []
    for i in range(21):
        record = broke if i % 3 == 0 else held
        changed = {"case_id": f"attack-{'grpo' if i < 14 else 'rloo'}-p5-lr5e-4-s{i}", "outcome": record.verdict.outcome}
        cases.append((line.model_copy(update=changed | {"finding": record.verdict.finding}), record))
    ids = [li.case_id for li, _ in cases]
    (covered,) = run.coverage
    families = [
        covered.families[0].model_copy(update={"family": f, "cases": [i for i in ids if f in i]}) for f in ("grpo", "rloo")
    ]
    coverage = (covered.model_copy(update={"families": tuple(families)}),)
    long = (*run.why_not, f"code of others was loaded: conftest conftest.py with sha256 {'a' * 64}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "stored_svg", lambda *_: '<svg viewBox="0 0 9 3"></svg>')
        page = pages.render_html(run.model_copy(update={"coverage": coverage, "why_not": long}), cases)
    folder = tmp_path_factory.mktemp("standard")
    (folder / "report.html").write_text(page)
    return folder


@pytest.mark.parametrize("name", ["run", "record", "checkpoint"])
def test_what_a_real_run_leaves_meets_the_shipped_schemas(runs, name):
    """run.json, each record.json and each line of checkpoints.jsonl conform to the shipped schemas, for both outcomes."""
    files = {"run": "run.json", "record": "cases/*/record.json", "checkpoint": "cases/*/checkpoints.jsonl"}
    validator = jsonschema.Draft202012Validator(schema_of(name))
    texts = [path.read_text() for folder in runs.values() for path in folder.glob(files[name])]
    found = [json.loads(line) for text in texts for line in (text.splitlines() if name == "checkpoint" else [text])]
    assert len(found) >= 2
    for each in found:
        validator.validate(each)


@pytest.mark.parametrize("outcome", ["PASS", "FAIL"])
def test_a_report_renders_and_fetches_nothing(browser, runs, outcome):
    """All sections and figures are visible, the file is the only request, and the console stays empty."""
    with page_of(browser, runs[outcome], offline=True) as page:
        assert outcome in page.locator("h1").inner_text()
        for identifier, title in SECTIONS:
            assert page.locator(f"h2#{identifier}").inner_text() == title
            assert page.locator(f"h2#{identifier}").is_visible()
        unfold(page)
        boxes = [figure.bounding_box() for figure in page.get_by_role("img").all()]
        # Harm by budget, trajectories, heat map, and the defense's convergence.
        assert len(boxes) == (4 if outcome == "PASS" else 3)
        assert all(box["width"] > 500 and box["height"] > 100 for box in boxes)
        assert page.locator('[id$="-trajectory-breaches"]').count() == (outcome == "FAIL")
        assert {url for url in page.requested if not url.startswith("data:")} == {(runs[outcome] / "report.html").as_uri()}
        assert page.said == []
    assert (runs[outcome] / "report.html").stat().st_size < 3_000_000


def test_no_script_is_needed(browser, runs):
    """With scripts disabled, the page's screenshot is the same."""
    pictures = []
    for enabled in (True, False):
        with page_of(browser, runs["FAIL"], java_script_enabled=enabled) as page:
            pictures.append(page.screenshot(full_page=True))
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(("scheme", "viewport"), VIEWS, ids=NAMES)
@pytest.mark.parametrize("outcome", ["PASS", "FAIL"])
def test_axe_finds_nothing(browser, runs, outcome, scheme, viewport):
    """axe finds no violation of any severity, contrast included, with all tables open."""
    with page_of(browser, runs[outcome], scheme, viewport) as page:
        unfold(page)
        found = Axe().run(page)
        assert [(v["id"], v["impact"], [n["target"] for n in v["nodes"]][:3]) for v in found.response["violations"]] == []


@pytest.mark.parametrize(("scheme", "viewport"), VIEWS, ids=NAMES)
def test_nothing_is_cut_off_at_the_side(browser, runs, scheme, viewport):
    """The page is as wide as the window; wider elements scroll in their box."""
    with page_of(browser, runs["FAIL"], scheme, viewport) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_figures_are_readable_on_light_and_on_dark(browser, runs):
    """Text and lines of figures follow the colour scheme, with a contrast of at least 4.5 (WCAG 2.2, 1.4.3)."""

    def luminance(colour):
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    seen = {}
    for scheme in ("light", "dark"):
        with page_of(browser, runs["FAIL"], scheme) as page:
            paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            text = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
            lines = [
                page.evaluate(f"getComputedStyle(document.querySelector('svg [style*=\"stroke: var({name})\"]')).stroke")
                for name in ("--defended", "--control")
            ]
            seen[scheme] = [text, *lines]
            for colour in seen[scheme]:
                high, low = sorted((luminance(colour), paper), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, colour)
    assert all(light != dark for light, dark in zip(seen["light"], seen["dark"], strict=True))


def test_a_report_can_be_used_by_keyboard(browser, runs):
    """Without scripts, the first Tab stop skips the contents, and Enter opens an attack's details."""
    with page_of(browser, runs["PASS"], java_script_enabled=False) as page:
        page.keyboard.press("Tab")
        assert page.locator(":focus").inner_text() == "Skip to the report"
        page.keyboard.press("Enter")
        assert page.locator(":focus").get_attribute("id") == "main"
        assert not page.locator(".row figure").first.is_visible()
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator(".row figure").first.is_visible()


def test_attacks_are_filtered_without_a_script(browser, standard):
    """A choice of outcome and family leaves the plots and rows of the attacks that are both; a plot's link opens its row."""
    with page_of(browser, standard, java_script_enabled=False) as page:

        def shown():
            return [sum(each.is_visible() for each in page.locator(of).all()) for of in (".panel li", ".row")]

        assert shown() == [21, 21]
        page.get_by_role("radio", name="broke").check()
        assert shown() == [7, 7]
        page.get_by_role("radio", name="rloo").check()
        assert shown() == [2, 2]
        page.locator('.panel a[href="#attack-18"]').click()
        assert [heading.get_attribute("id") for heading in page.locator(".row h3").all() if heading.is_visible()] == ["attack-18"]


def test_a_standard_run_fits_six_thousand_pixels_and_a_phone(browser, standard):
    """Unfolded by nobody, the page has at most 6,000 pixels; on a phone each row shows name, result, plot, highest and bound.

    A digest in a reason against a release makes the page no wider.
    """
    for viewport in (WIDE, NARROW):
        with page_of(browser, standard, viewport=viewport) as page:
            assert page.evaluate("document.documentElement.scrollHeight") <= 6000
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            for part in ("name", "result", "spark", "highest", "bound"):
                boxes = [each.bounding_box() for each in page.locator(f".row .{part}").all()]
                assert len(boxes) == 21
                assert all(box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"] for box in boxes), part
                assert all(box["height"] > 5 for box in boxes), part


def test_figures_are_accessible_to_screen_readers(browser, runs):
    """Each figure is an image with a name, followed by tables of its numbers in the same figure element."""
    with page_of(browser, runs["PASS"]) as page:
        unfold(page)
        figures = page.get_by_role("img").all()
        assert len(figures) == 4
        for figure in figures:
            name = figure.get_attribute("aria-labelledby").split()[0]
            assert page.locator(f"#{name}").text_content()
            assert figure.locator("xpath=ancestor::figure[1]//details//table").count() >= 1


def test_a_report_prints_on_white(browser, runs):
    """A report printed from a dark screen is black on white, without contents and filters, and shows the folded parts."""
    with page_of(browser, runs["PASS"], "dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible()
        assert page.locator("#digests").is_visible()
        assert not page.locator(".row h3").first.is_visible()
        assert page.pdf().startswith(b"%PDF")


@pytest.fixture(scope="module")
def many(runs):
    """The folder of both runs, with the page over them and the page that compares them."""
    folder = runs["PASS"].parent
    assert CliRunner().invoke(app, ["report", "--index", str(folder)]).exit_code == 0
    compared = CliRunner().invoke(app, ["compare", str(runs["PASS"]), str(runs["FAIL"]), "--html", str(folder / "compare.html")])
    assert compared.exit_code == 1
    return folder


@pytest.mark.parametrize(("scheme", "viewport"), VIEWS, ids=NAMES)
@pytest.mark.parametrize("name", ["index.html", "compare.html"])
def test_pages_over_runs_are_accessible_and_fit(browser, many, name, scheme, viewport):
    """axe finds nothing on the pages over runs, nothing is cut off at the side, and the console stays empty."""
    with page_of(browser, many, scheme, viewport, name) as page:
        unfold(page)
        assert Axe().run(page).response["violations"] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.said == []


def test_runs_are_sorted_by_a_script_and_listed_without(browser, many):
    """A click on a heading sorts the runs by it, a second one the other way; without scripts there is no button."""
    with page_of(browser, many, name="index.html") as page:
        outcomes = page.locator("tbody .badge")
        page.get_by_role("button", name="Verdict").click()
        assert outcomes.all_inner_texts() == ["FAIL", "PASS"]
        assert page.locator("th").first.get_attribute("aria-sort") == "ascending"
        page.get_by_role("button", name="Verdict").click()
        assert outcomes.all_inner_texts() == ["PASS", "FAIL"]
    with page_of(browser, many, name="index.html", java_script_enabled=False) as page:
        assert page.get_by_role("button").count() == 0
        assert sorted(page.locator("tbody .badge").all_inner_texts()) == ["FAIL", "PASS"]
