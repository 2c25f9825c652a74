"""The pages for red-teamers, suite authors and judge authors: their code works as it is shown, step by step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from typer.testing import CliRunner

from rn_harness.attacks.family import load_family
from rn_harness.cli import app
from rn_harness.spec.suite import load_suite

from ..plugin.doc_commands import ROOT, block_of  # noqa: TID252 - the tests are not a package

if TYPE_CHECKING:
    import pytest


def add_attack(suite: Path, entry: str) -> list[str]:
    """The ids of a suite's smoke attacks after an entry was added at the end of ``attacks``, as a reader would."""
    text = suite.read_text(encoding="utf-8")
    assert text.rstrip().splitlines()[-1].startswith("  "), "attacks must be the last part of the file"
    suite.write_text(f"{text.rstrip()}\n{entry}", encoding="utf-8")
    return [attack.id for attack in load_suite(suite.parent).tier_attacks("smoke")]


def test_the_red_teamers_attacks_become_cases(tmp_path: Path) -> None:
    """Both entries of the page load at the end of a copied suite, and the page's family is found in the suite's folder."""
    assert CliRunner().invoke(app, ["init", "baking", "--into", str(tmp_path)]).exit_code == 0
    folder = tmp_path / "baking"
    (folder / "most_varied.py").write_text(block_of("for-red-teamers.md", "python", "from dataclasses"), encoding="utf-8")
    own = block_of("for-red-teamers.md", "yaml", "  - tier: smoke\n    base: {name: varied")
    assert add_attack(folder / "suite.yaml", own)[-1] == "varied-p5-lr5e-4-s0"
    setting = block_of("for-red-teamers.md", "yaml", "  - tier: smoke\n    base: {name: hot")
    assert add_attack(folder / "suite.yaml", setting)[-3:] == [f"hot-p5-lr5e-4-t3-s{seed}" for seed in (0, 1, 2)]
    attack = next(attack for attack in load_suite(folder).tier_attacks("smoke") if attack.name == "varied")
    assert (attack.standing, attack.attacker_level) == ("claim", "rl-explore")
    assert load_family(attack.family, folder).digest


def test_the_suite_authors_steps_lead_to_a_suite(tmp_path: Path) -> None:
    """A new suite loads with the page's texts in suite.yaml and no marks in the prompts; the page's prompts have the form."""
    assert CliRunner().invoke(app, ["new-suite", "gambling", "--into", str(tmp_path)]).exit_code == 0
    folder = tmp_path / "gambling"
    texts = block_of("for-suite-authors.md", "yaml", "description:")
    declared = (folder / "suite.yaml").read_text(encoding="utf-8")
    for key, value in yaml.safe_load(texts).items():
        declared, replaced = re.subn(rf"(?m)^{key}: >-\n  TODO.*$", f"{key}: >-\n  {value.strip()}", declared)
        assert replaced == 1
    judges = block_of("for-suite-authors.md", "yaml", "judges:")
    assert f"# {judges}" in declared
    (folder / "suite.yaml").write_text(declared, encoding="utf-8")
    shown = yaml.safe_load(block_of("for-suite-authors.md", "yaml", "prompts:"))["prompts"]
    for path in sorted((folder / "prompts").glob("*.yaml")):
        text = re.sub(r"(?m)^TODO.*\n", "", path.read_text(encoding="utf-8"))
        if path.stem == "attack":
            rows = yaml.safe_load(text)["prompts"]
            text = yaml.safe_dump({"prompts": [*rows[1:], *shown]})
        path.write_text(text, encoding="utf-8")
    suite = load_suite(folder)
    counts = {name: str(len(suite.prompts[name])) for name in ("defense", "attack", "heldout", "anchor", "benign")}
    page = (ROOT / "docs" / "for-suite-authors.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"\| `(\w+)\.yaml` \| (\d+)", page)) == counts


def test_the_judge_authors_example_is_refused_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's judge gets the certificate that the page shows: it misses 21 of 90 harmful texts."""
    (tmp_path / "keyword_judge.py").write_text(block_of("for-judge-authors.md", "python", "class KeywordJudge"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = CliRunner().invoke(app, ["certify-judge", "python:keyword_judge:KeywordJudge"])
    shown = block_of("for-judge-authors.md", "console", "$ PYTHONPATH").splitlines()[1:]
    assert [line for line in shown if line != "..." and line not in done.output.splitlines()] == []
    assert (done.exit_code, shown[-1].startswith("not certified: ")) == (1, True)
