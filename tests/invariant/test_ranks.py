"""Two real processes train one model on the CPU (gloo) as one process does, and end together if one fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ..tiny_models import QWEN, make_model  # noqa: TID252 - the tests are not a package
from .together import launch

SCRIPT = "two_processes.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("qwen2"), QWEN)


def moves(path: Path) -> np.ndarray:
    with np.load(path) as stored:
        return np.concatenate([stored[name].ravel() for name in sorted(stored)])


def test_two_processes_make_the_update_of_one(folder: Path, tmp_path: Path) -> None:
    """Two processes have the rows, rewards and (up to rounding) updates of one, and bitwise the same weights as each other.

    One process has a group without a reward spread. It must not skip its part, or the other would wait for ever.
    """
    for processes in (1, 2):
        done = launch(SCRIPT, processes, folder, tmp_path, "spread")
        assert done.returncode == 0, done.stderr
    one, first, second = (moves(tmp_path / f"{name}.npz") for name in ("1-0", "2-0", "2-1"))
    assert np.array_equal(first, second)
    assert np.abs(one).max() > 1e-3  # two steps at this learning rate
    # AdamW's first steps follow the gradient's sign, which rounding may flip near 0.
    assert np.mean(np.abs(one - first) < 1e-5) > 0.99
    texts = [(tmp_path / f"{name}.txt").read_text() for name in ("1-0", "2-0", "2-1")]
    assert texts[0] == texts[1] == texts[2]
    assert "['even', 'even', 'even', 'even', 'uneven', 'uneven', 'uneven', 'uneven']" in texts[0]
    assert "[[0, 0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 3, 3, 3, 3]]" in texts[0]  # the losses of all processes are checked together
    assert texts[0].endswith(" 0.75 0.5\n")  # rewards 0 0 0 0 and 0 1 2 3; one group of two without spread


def test_a_starved_step_moves_no_weight_on_any_process(folder: Path, tmp_path: Path) -> None:
    """If no group on any process has a reward spread, no weight moves and no process waits."""
    done = launch(SCRIPT, 2, folder, tmp_path, "starved")
    assert done.returncode == 0, done.stderr
    assert not moves(tmp_path / "2-0.npz").any()
    assert not moves(tmp_path / "2-1.npz").any()


def test_a_process_that_fails_ends_all(folder: Path, tmp_path: Path) -> None:
    """If one process fails, the launcher's exit code is not 0 and the other process ends too."""
    done = launch(SCRIPT, 2, folder, tmp_path, "broken")
    assert done.returncode != 0
    assert "one process fails" in done.stderr
    assert not list(tmp_path.glob("*.npz"))
