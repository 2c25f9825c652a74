"""rn-harness decides whether an open-weight model withstands malicious fine-tuning.

A suite's author writes ``from rn_harness import RobustnessChecks``. Importing this package loads neither torch nor pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rn_harness.spec.version import __version__

if TYPE_CHECKING:
    from rn_harness.plugin.checks import RobustnessChecks

__all__ = ["RobustnessChecks", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the checks on first use, since they bring pytest."""
    if name == "RobustnessChecks":
        from rn_harness.plugin.checks import RobustnessChecks

        return RobustnessChecks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
