"""The folders that are shipped with the package: fixtures and suites.

Every pytest session of the environment loads it, so it imports only the standard library.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
SUITES = "rn_harness.suites"
"""What ``pytest --pyargs`` calls the folder of the shipped suites; with ``.NAME``, one of them."""


def shipped_folder(name: str) -> Path:
    """A folder that a wheel holds inside the package, and a checkout next to it."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def fixtures_folder() -> Path:
    """The shipped fixtures."""
    return shipped_folder("fixtures")


def suites_folder() -> Path:
    """The shipped suites."""
    return shipped_folder("suites")
