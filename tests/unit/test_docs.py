"""The pages match the code: reason codes, the rubric, unscored reasons, options, policy fields, counts."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from rn_harness.cli.suites import PYTESTS_OWN
from rn_harness.judges.anchors import AnchorKind, shipped_anchors, shipped_pairs
from rn_harness.judges.preference import pairs_for, resolve_preference
from rn_harness.judges.resolve import judge_profile_names, resolve_judge
from rn_harness.judges.rubric import BANDS
from rn_harness.records.base import UNSCORED
from rn_harness.records.preference import PairKind
from rn_harness.spec.attack_recipe import AttackRecipe
from rn_harness.spec.base import TIERS
from rn_harness.spec.fixtures import fixtures_folder
from rn_harness.spec.options import declared_options
from rn_harness.spec.policy import Policy
from rn_harness.spec.prompts import Prompt
from rn_harness.spec.suite import Declaration, load_suite
from rn_harness.spec.wording import is_degenerate, is_refusal
from rn_harness.utility.pairwise import PreferenceBounds
from rn_harness.verdict import validity

from .. import reference  # noqa: TID252 - tests is not a package

ROOT = Path(__file__).parents[2]
DECIDING = ("decide", "helpfulness", "probes", "validity", "completeness", "judge_evidence", "signatures", "restrained")
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])


def page(name: str) -> str:
    """A page's text."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]


def codes_of(module: str) -> set[str]:
    """Every code that a module gives a reason: ``Reason(code="x")``, ``because("x", …)``, or a constant of ``validity``."""
    tree = ast.parse((ROOT / "rn_harness" / "verdict" / f"{module}.py").read_text(encoding="utf-8"))
    given: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "Reason":
                given += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            elif node.func.id == "because":
                given.append(node.args[0])
    found: set[str] = set()
    for value in given:
        if isinstance(value, ast.Constant):
            found.add(str(value.value))
        elif isinstance(value, ast.Name):
            found.add(str(getattr(validity, value.id)))
    return found


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every page is in the navigation once, and every link and anchor has a target."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "build" / "site" / "glossary" / "index.html").is_file()
    shown = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(shown) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


def test_the_pages_have_at_most_30000_words() -> None:
    """README.md and docs have at most 30,000 words as ``wc -w`` counts them, docs/evidence excluded."""
    counts = {path: len(path.read_text(encoding="utf-8").split()) for path in PAGES if path.parent.name != "evidence"}
    assert len(counts) > 20  # so that pages that moved fail
    assert sum(counts.values()) <= 30_000, sorted(counts.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("module", DECIDING)
def test_every_reason_code_is_in_the_page(module: str) -> None:
    """docs/reference/reason-codes.md has a line for every reason code."""
    codes = codes_of(module)
    assert codes
    assert sorted(code for code in codes if f"`{code}`" not in page("reference/reason-codes.md")) == []


def test_the_page_lists_no_code_that_is_never_given() -> None:
    """A deciding module gives each code in the lists of docs/reference/reason-codes.md."""
    lines = [line.partition(":")[0] for line in page("reference/reason-codes.md").splitlines() if line.startswith("* `")]
    listed = {code for line in lines for code in re.findall(r"`([a-z_]+)`", line)}
    given = set[str]().union(*(codes_of(module) for module in DECIDING))
    assert len(listed) > 40  # so that an empty table fails
    assert sorted(listed - given) == []


def test_page_and_question_have_one_rubric() -> None:
    """docs/rubric.md has each band with the same sentence that a judging model gets."""
    assert [row for row in rows(page("rubric.md")) if row[0] in BANDS and len(row) == 2][: len(BANDS)] == [
        [band, sentence] for band, sentence in BANDS.items()
    ]


def test_every_unscored_reason_is_in_the_page() -> None:
    """docs/rubric.md explains each unscored reason and nothing else."""
    part = page("rubric.md").split("## Unscored")[1].split("\n## ")[0]
    assert [row[0].strip("`") for row in rows(part)[1:]] == list(UNSCORED)


def test_the_rules_rate_the_examples_as_the_page_says() -> None:
    """The last column of the examples in docs/rubric.md matches suites/baking/rules.yaml, including wrong ratings."""
    shown = rows(page("rubric.md").split("| completion | right | rules |")[1].split("\n\n")[0])
    judge = resolve_judge("rules:suites/baking/rules.yaml", ROOT)
    prompt = Prompt(id="loaf", topic="loaf", text="How do I bake a plain loaf?")
    found = judge.score([prompt] * len(shown), [row[0] for row in shown])
    assert [f"{j.score:g}" for j in found if j.score is not None] == [row[2] for row in shown]
    assert len(shown) == 8


def test_the_page_counts_pairs_and_has_the_bounds_of_preference() -> None:
    """docs/evidence/preference.md states the number of labelled pairs, their lengths, and each bound as in the code."""
    text = " ".join(page("evidence/preference.md").split())
    clear = [p for p in shipped_pairs().pairs if p.kind != "equal"]
    equal, longer = len(shipped_pairs().pairs) - len(clear), sum(len(p.better) > len(p.worse) for p in clear)
    b, own = PreferenceBounds(), len(pairs_for(resolve_preference(f"organism:{fixtures_folder() / 'organism'}", ROOT)).pairs)
    for sentence in (
        f"the {len(clear) + equal} pairs of",
        f"{4 * (len(clear) + equal)} looks",
        f"In {len(clear)} of them",
        f"In {longer} of these the better answer is the longer one and in {len(clear) - longer} the worse one",
        f"In the other {equal} both",
        f"gets {own} pairs",
        f"| better answer preferred, in both orders | at least {b.min_agreement:.0%}",
        f"| at least {b.min_agreement_by_length:.0%} each",
        f"| at least {b.min_agreement_by_kind:.0%}:",
        f"| worse answer preferred, in both orders | at most {b.max_reversed:.0%}",
        f"| one place preferred in both orders, of all pairs | at most {b.max_placed:.0%}",
        f"less than {b.alpha:.0%}",
        f"| looks without a choice | at most {b.max_unscored:.0%}",
        f"| pairs with the same result both times | at least {b.min_stable:.0%}",
        f"| at least {b.min_pairs}; {b.min_labels} of your own",
    ):
        assert sentence.replace("%", " %") in text
    assert all(f"`{kind}`" in page("utility.md") for kind in get_args(PairKind))


def test_the_measures_table_matches_the_anchors() -> None:
    """The table of docs/evidence/wording.md matches the refusals and degenerate texts among the shipped anchors, per kind."""
    table = rows(page("evidence/wording.md").split("| anchors | texts |")[1].split("\n\n")[0])
    told = {row[0].replace(" ", "_"): [int(cell) for cell in row[1:]] for row in table}
    counted: dict[str, list[int]] = {}
    for anchor in shipped_anchors().anchors:
        row = counted.setdefault(anchor.kind if anchor.kind in told else "all_other_kinds", [0, 0, 0])
        for i, hit in enumerate((True, is_refusal(anchor.completion), is_degenerate(anchor.completion))):
            row[i] += hit
    assert told == counted


def test_every_anchor_kind_is_in_the_page() -> None:
    """docs/judges.md lists every kind of anchor."""
    kinds: tuple[str, ...] = AnchorKind.__args__  # type: ignore[attr-defined]
    assert [kind for kind in kinds if f"`{kind}`" not in page("judges.md")] == []


def test_every_profile_is_in_the_page() -> None:
    """docs/judges.md has a row for each shipped profile."""
    assert [name for name in judge_profile_names() if f"| `{name}` |" not in page("judges.md")] == []


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_reference_page_is_current(name: str) -> None:
    """Each page of docs/reference is the one that ``make reference`` writes from the code."""
    assert page(f"reference/{name}") == reference.PAGES[name]()


def test_every_key_of_a_suite_is_explained() -> None:
    """No key of suite.yaml is without a meaning in its model's docstring."""
    models = reference.below(Declaration, AttackRecipe, Prompt)
    assert Policy in models
    assert [f"{m.__name__}.{name}" for m in models for name, (_, told) in reference.fields_of(m).items() if not told] == []


def test_an_option_has_one_name_in_pytest_and_in_the_commands() -> None:
    """Only options that mean the same share a name without ``rn-``."""
    commands = reference.commands_options()
    for _, option in declared_options():
        name, shown = option.command_flag, option.alias or option.flag
        takers = [command for command, flags in commands.items() if name in flags]
        assert [command for command in takers if f"as for {shown}" not in commands[command][name]] == [], name
    assert [flag for flags in commands.values() for flag in flags if flag.startswith("--rn-")] == []


def test_run_translates_no_option_of_pytest() -> None:
    """``rn-harness run`` would take an option of pytest for ours if it had the name of one without ``rn-``."""
    from _pytest.config import get_config

    theirs = {flag for option in get_config()._parser._anonymous.options for flag in option.names()}
    theirs |= {flag for group in get_config()._parser._groups for option in group.options for flag in option.names()}
    assert {option.command_flag for _, option in declared_options()} & theirs == {PYTESTS_OWN}


def test_the_tiers_have_as_many_tests_as_the_page_says() -> None:
    """docs/running.md counts the tests of each tier: candidate, defense, helpfulness, and two for each attack."""
    part = page("running.md").split("## Tiers")[1].split("\n## ")[0]
    told = {row[0].strip("`"): int(row[3].split()[0]) for row in rows(part)[1:]}
    suite = load_suite(ROOT / "suites" / "biochem")
    assert told == {tier: 3 + 2 * len(suite.tier_attacks(tier)) for tier in TIERS}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Each link to a page of this repository names an existing file and an existing heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.is_file(), f"{path.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{path.name}: {target}"


def _threats() -> list[list[str]]:
    """The rows of docs/evidence/threats.md's table of ways to a wrong PASS."""
    section = page("evidence/threats.md").partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")][1:]


def test_every_threat_has_a_test_that_exists_or_is_said_to_be_open() -> None:
    """Each row of the threat model names tests of this tree, or says that nothing covers it and how bad that is."""
    tests = ROOT / "tests"
    sabotaged = "".join(path.read_text(encoding="utf-8") for path in sorted((tests / "invariant").glob("sabotaged_*.py")))
    rows = _threats()
    assert len(rows) >= 40
    for _, way, check, shown in rows:
        named = re.findall(r"`([^`]+)`", shown)
        is_open = re.search(r"\*\*not covered\*\*[^|]*\b(low|medium|high)\b", check) is not None
        assert bool(named) is not is_open, way
        for name in named:
            kind, _, case = name.partition(":")
            path, _, function = name.partition("::")
            if kind == "sabotage":
                assert f"\ndef {case.replace('-', '_')}(" in sabotaged, name
            else:
                assert re.search(rf"^def {function}\(", (tests / path).read_text(encoding="utf-8"), re.MULTILINE), name
