"""The sampler of a fine-tune's completions: transformers, or vLLM."""

from __future__ import annotations

import importlib.metadata
import urllib.parse
from dataclasses import dataclass
from typing import Any

from rn_harness.spec.errors import RecipeError
from rn_harness.spec.extras import require

VLLM = ("0.22", "0.32")
"""Versions of vLLM that TRL 1.16 supports: from the first, below the second."""
VLLM_SHARE = 0.3
"""Share of a card that vLLM takes in addition to the model, its copy of the weights included."""
SAMPLERS = ("transformers", "vllm", "vllm:URL")


@dataclass(frozen=True, slots=True)
class Sampler:
    """The sampler of a fine-tune's completions; transformers always samples checkpoints.

    Attributes:
        vllm: vLLM samples, and gets the weights before each step; else transformers.
        url: of a vLLM server on this machine; None: it runs in this process.
    """

    vllm: bool = False
    url: str | None = None

    @classmethod
    def of(cls, spec: str) -> Sampler:
        """The sampler that a user names; raises RecipeError if it is unknown, or attacked weights would leave the machine."""
        kind, _, url = spec.partition(":")
        if spec not in SAMPLERS[:2] and not (kind == "vllm" and url):
            raise RecipeError(f"--rn-sampler must be one of {', '.join(SAMPLERS)}, got {spec!r}; correct it")
        if url and urllib.parse.urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise RecipeError(
                f"attacked weights stay on this machine, and vLLM is sent them at every step, got --rn-sampler {spec}; name a "
                "server on 127.0.0.1"
            )
        return cls(kind == "vllm", url or None)

    def check(self, *, cpu: bool, quantised: bool, gguf: bool) -> None:
        """Raises RecipeError, before any training, if it cannot sample on this machine and from these weights."""
        if not self.vllm:
            return
        if quantised or gguf:
            raise RecipeError(
                "vLLM is sent weights in plain numbers, adapters folded in, and reads the first of them from a folder of "
                f"safetensors, got {'--rn-quantise' if quantised else 'a GGUF file'}; leave out --rn-sampler"
            )
        require("vllm", "--rn-sampler vllm")
        found = importlib.metadata.version("vllm")
        if not _number(VLLM[0]) <= _number(found) < _number(VLLM[1]):
            raise RecipeError(f"TRL 1.16 knows vLLM from {VLLM[0]} to below {VLLM[1]}, got vllm={found}; install one of those")
        if cpu:
            raise RecipeError("vLLM samples on cards, got a CPU; leave out --rn-sampler")

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of TRL's ``GRPOConfig`` for it; none for transformers."""
        if not self.vllm:
            return {}
        mode = {"vllm_mode": "server", "vllm_server_base_url": self.url} if self.url else {
            "vllm_mode": "colocate", "vllm_gpu_memory_utilization": VLLM_SHARE, "vllm_tensor_parallel_size": 1,
        }  # fmt: skip
        # Other kernels, and adapters folded in low precision, make its probabilities differ from the trained network's.
        weighed = {
            "vllm_importance_sampling_correction": True,
            "vllm_importance_sampling_mode": "sequence_mask",
            "vllm_importance_sampling_clip_max": 3.0,
        }
        return {"use_vllm": True, **mode, **weighed}

    @property
    def name(self) -> str | None:
        """For keys and records; None for transformers."""
        return f"vllm {importlib.metadata.version('vllm')} {'server' if self.url else 'colocate'}" if self.vllm else None


TRANSFORMERS = Sampler()


def _number(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in version.split(".")[:2])
