"""The folders of data that are shipped with the package."""

from __future__ import annotations

from pathlib import Path


def shipped_folder(in_wheel: str, in_checkout: str) -> Path:
    """A folder that a wheel holds inside the package, and a checkout next to it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / in_wheel
    return inside if inside.is_dir() else package.parent / in_checkout


def fixtures_folder() -> Path:
    """The shipped fixtures."""
    return shipped_folder("fixtures", "fixtures")
