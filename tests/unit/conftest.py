"""What all unit tests share: how hypothesis searches, and a small valid suite on disk."""

from pathlib import Path

import hypothesis
import pytest

from .builders import write_suite

# The same examples on every machine and run: a red test is about the code, never about the draw.
hypothesis.settings.register_profile("unit", derandomize=True, deadline=None, max_examples=60, database=None)
hypothesis.settings.load_profile("unit")


@pytest.fixture
def suite_folder(tmp_path: Path) -> Path:
    """A valid suite of a few prompts: six attack recipes, two defenses, two core prompts of three held-out ones."""
    return write_suite(tmp_path / "demo")
