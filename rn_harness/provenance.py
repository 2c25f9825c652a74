"""What a result depends on beside its inputs: versions, sources, hardware. Floor 2 (adapters)."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

DECIDING_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy", "scipy")


@functools.cache
def source_digest() -> str:
    """The sha256 over the harness's own sources: another line of code is another result."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Versions of all that decides results."""
    found = {name: importlib.metadata.version(name) for name in DECIDING_PACKAGES}
    return {**found, "python": platform.python_version(), "rn-harness-sources": source_digest()}


def hardware(threads: int) -> dict[str, str | int]:
    """Device and threads: sums of floats depend on both."""
    return {"device": device(), "machine": platform.machine(), "processor": _processor(), "threads": threads}


@functools.cache
def device() -> str:
    """The GPU's name; ``cpu`` where there is none. Where no driver is, torch is not asked, hence not loaded."""
    if not any(Path(driver).exists() for driver in ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd")):
        return "cpu"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
