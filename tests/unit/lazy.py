"""Modules that are imported at their first use: only a worker that needs torch loads it, which takes five seconds."""

from __future__ import annotations

import importlib
from typing import Any


class LazyModule:
    """A module by its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_") and attribute != "__version__":  # pytest asks every name of a file if it is a test or a mock
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)
