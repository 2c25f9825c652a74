"""The counter of awkward prose: numbers counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..prose import SIGNS, count_signs  # noqa: TID252 - tests is not a package

EXAMPLES = {
    "what as a pronoun": "It prints what it found.",
    "told, tells": "The user is told.",
    "stands": "The field stands here.",
    "alone, nobody, somebody": "The judge decides alone.",
    "comes to, hangs on": "The sum comes to ten.",
    "anew, beside, in place of": "The file lies beside it.",
    "of its own": "It has a name of its own.",
    "sentence that starts with Of": "Of a model the digest is kept.",
    "is no, are no": "This is no proof.",
}


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_is_found_once(sign: str, tmp_path: Path) -> None:
    """One example per sign gives one hit, and no other sign finds anything in it."""
    page = tmp_path / "page.md"
    page.write_text(f"{EXAMPLES[sign]}\n", encoding="utf-8")
    assert len(count_signs(page).hits) == 1
    assert SIGNS[sign].search(EXAMPLES[sign])


def test_only_prose_counts(tmp_path: Path) -> None:
    """Docstrings and comments count, strings and code do not; the rate is per 1,000 words."""
    (tmp_path / "module.py").write_text('"""Said alone."""\nnobody = "what stands"  # written anew\n', encoding="utf-8")
    (tmp_path / "page.md").write_text(
        "`what` is code.\n```\nnobody\n```\nPlain words, and a question: what is it?\n", encoding="utf-8"
    )
    count = count_signs(tmp_path)
    # "Said alone", "written anew", "is code", "Plain words and a question what is it" have 2 + 2 + 2 + 8 = 14 words.
    assert (count.words, len(count.hits)) == (14, 2)
    assert count.per_thousand == pytest.approx(1000 * 2 / 14)
    assert count_signs(tmp_path, [tmp_path / "module.py"]).hits == []
