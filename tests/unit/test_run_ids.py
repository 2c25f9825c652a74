"""Run ids: random, shared by the parts of one run, and independent of the folder's name."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from rn_harness.spec.errors import RecipeError
from rn_harness.store.provenance import ID_FILE, identity_of_parts, join_parts, new_run_id


def test_two_runs_never_share_an_id() -> None:
    """An id is random and contains nothing of folder, time or machine."""
    assert len({new_run_id() for _ in range(100)}) == 100


def test_all_parts_and_their_join_have_one_id(tmp_path: Path) -> None:
    """The first part creates the id; the other parts and the join read it."""
    first = join_parts(tmp_path / "parts", tmp_path / "run.json")
    assert join_parts(tmp_path / "parts", tmp_path / "run.json") == first
    assert identity_of_parts(tmp_path / "parts") == first
    assert identity_of_parts(tmp_path / "none") != identity_of_parts(tmp_path / "none")


def test_a_run_that_has_ended_takes_no_more_parts(tmp_path: Path) -> None:
    """A run that has been joined takes no further parts, since a judge's answers may have changed."""
    join_parts(tmp_path / "parts", tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError, match="must belong to a run that has not ended"):
        join_parts(tmp_path / "parts", tmp_path / "run.json")


def test_an_old_id_is_not_given_to_a_new_part(tmp_path: Path) -> None:
    """A new part must begin within a week of the first one."""
    first = join_parts(tmp_path / "parts", tmp_path / "run.json")
    began = datetime.datetime.fromisoformat(first.began) - datetime.timedelta(days=8)
    told = {"run_id": first.run_id, "began": began.isoformat(timespec="seconds")}
    (tmp_path / "parts" / ID_FILE).write_text(json.dumps(told) + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="within 7 days of the first"):
        join_parts(tmp_path / "parts", tmp_path / "run.json")


@pytest.mark.parametrize("text", ["\n", "{}\n", '{"run_id": "run", "began": "2026-11-29T12:00:00+00:00"}\n', "[]\n"])
def test_an_unreadable_id_is_an_error(tmp_path: Path, text: str) -> None:
    """A damaged id file is an error for parts and join."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / ID_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match="must be readable"):
        join_parts(tmp_path / "parts", tmp_path / "run.json")
    with pytest.raises(RecipeError, match="must be readable"):
        identity_of_parts(tmp_path / "parts")
