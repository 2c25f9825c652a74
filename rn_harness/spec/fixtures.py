"""The folder of the shipped fixtures."""

from __future__ import annotations

from pathlib import Path


def fixtures_folder() -> Path:
    """The shipped fixtures: inside the package in a wheel, next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "fixtures"
    return inside if inside.is_dir() else package.parent / "fixtures"
