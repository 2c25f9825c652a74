"""Optional extras: which module each one brings, and the one error for a missing one."""

from __future__ import annotations

import importlib.util

from rn_harness.spec.errors import MissingExtraError

RUN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "sacrebleu", "huggingface_hub")
"""Modules that a run imports."""
EXTRAS: dict[str, str] = {
    **dict.fromkeys(RUN, "run"),
    "xdist": "run",
    "optuna": "search",
    "openai": "openai",
    "pyrage": "transcripts",
    "gguf": "gguf",
    "bitsandbytes": "quantised",
    "inspect_ai": "inspect",
    "lm_eval": "utility",
    "ray": "ray",
    "vllm": "vllm",
}
"""The extra that brings a module."""


def require(module: str, purpose: str) -> None:
    """Raises MissingExtraError if a module of ``EXTRAS`` is not installed; ``purpose`` is the thing that needs it."""
    if importlib.util.find_spec(module) is None:
        raise missing(module, purpose)


def require_run() -> None:
    """Raises MissingExtraError if a module of the extra ``run`` is not installed."""
    for module in RUN:
        require(module, "running a suite")


def missing(module: str, purpose: str) -> MissingExtraError:
    """The error for an optional module that is not installed."""
    extra = EXTRAS[module]
    return MissingExtraError(
        f"{purpose} needs the extra {extra}, got no module {module}; pip install -c constraints.txt 'rn-harness[{extra}]'"
    )
