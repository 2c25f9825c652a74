"""A canary's work: it tries each private name of a foreign library, and says in a sentence which one an upgrade has moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Probe = Callable[[], bool]


def moved(library: str, compat: Any, probes: Mapping[str, Probe]) -> list[str]:
    """A sentence for each name in a compat module's ``PRIVATE_NAMES`` whose probe fails; each name has a probe."""
    assert probes.keys() == compat.PRIVATE_NAMES.keys()
    module = compat.__name__.rpartition(".")[2]
    return [
        f"{library} moved {name}, used to {compat.PRIVATE_NAMES[name]}; correct {module}.py"
        for name, probe in probes.items()
        if not _works(probe)
    ]


def _works(probe: Probe) -> bool:
    try:
        return probe()
    except Exception:  # noqa: BLE001  (a name that moved may end in any error)
        return False
