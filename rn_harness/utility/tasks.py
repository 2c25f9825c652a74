"""Tasks of lm-evaluation-harness before and after a defense. Only this module imports ``lm_eval``, from the extra ``utility``.

The result informs and does not enter a verdict. It keeps numbers but not samples, which hold completions.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess  # nosec B404 # one call, of this module
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rn_harness.models.candidate import Candidate
from rn_harness.models.identity import digest_folder
from rn_harness.models.language_model import LanguageModel
from rn_harness.models.resolve import ADAPTER_CONFIG, check_adapter, resolve_candidate
from rn_harness.spec.errors import RecipeError
from rn_harness.spec.extras import require

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


@dataclass(frozen=True, slots=True)
class Settings:
    """The tasks or groups and their settings.

    Attributes:
        include_path: folder with the user's own tasks, YAML files of lm_eval's format; Python that they name is run.
        chat_template: use the model's chat template, as a suite does.
        limit: number of samples of each task, from the first; None: all.
        batch: requests at once.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    chat_template: bool = True
    limit: int | None = None
    batch: int = 8


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric, such as ``acc,none``, of a task or a group of tasks; ``after`` is None without a defense.

    The errors are standard errors, None if lm_eval gives none.
    """

    task: str
    metric: str
    samples: int
    before: float
    before_error: float | None
    after: float | None = None
    after_error: float | None = None

    @property
    def difference(self) -> float | None:
        """After minus before."""
        return None if self.after is None else self.after - self.before

    @property
    def difference_error(self) -> float | None:
        """Its standard error, ``sqrt(a^2 + b^2)``, as if the two were independent.

        Both models answer the same samples, so it is more likely too large than too small.
        """
        if self.before_error is None or self.after_error is None:
            return None
        return math.hypot(self.before_error, self.after_error)


@dataclass(frozen=True, slots=True)
class DefendedFolder:
    """A defended model in a folder: an adapter that is merged into the candidate ``base``, or a whole model, ``base`` itself."""

    base: Candidate
    adapter: Path | None

    @classmethod
    def find(cls, candidate: Candidate, folder: Path) -> Self:
        """Finds the defended model of a candidate, without loading it.

        Raises:
            CandidateError: the folder holds no defense of this candidate.
        """
        if (folder / ADAPTER_CONFIG).is_file():
            check_adapter(folder, candidate)
            return cls(candidate, folder)
        return cls(resolve_candidate(str(folder), Path.cwd()), None)

    def load(self) -> LanguageModel:
        """Loads the defended model."""
        model = self.base.load()
        if self.adapter:
            model.merge_from(self.adapter)
        return model


def fetch(settings: Settings) -> None:
    """Downloads the tasks' data from the hub in a child process, so that this one stays offline; RecipeError if that fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")}
    child = subprocess.run(  # nosec B603 # names are data on standard input, never arguments
        [sys.executable, "-m", "rn_harness.utility.tasks"],
        input=json.dumps(asdict(settings), default=str),
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        check=False,
    )
    if child.returncode:
        names = ", ".join(settings.tasks)
        raise RecipeError(f"the hub must have the tasks' data, got exit code {child.returncode} for {names}; its words are above")


def measure_utility(candidate: Candidate, defended: Path | None, settings: Settings) -> list[Measure]:
    """Runs the tasks on the undefended candidate, and on the adapter or whole model in ``defended`` if there is one.

    Raises:
        RecipeError: lm_eval is not installed, or does not know a task, or cannot read its data.
        CandidateError: the folder holds no defense of this candidate.
    """
    after_defense = DefendedFolder.find(candidate, defended) if defended else None  # before anything is measured
    first = candidate.load()  # it also switches the network off, before lm_eval is imported
    manager = _task_manager(settings)
    before = _evaluate(first, manager, settings)
    del first
    after = _evaluate(after_defense.load(), manager, settings) if after_defense else None
    return [
        Measure(*key, samples, value, error, *(after[key][1:] if after else ()))
        for key, (samples, value, error) in before.items()
    ]


def _task_manager(settings: Settings) -> TaskManager:
    """Lists the tasks of the folder, and lm_eval's own tasks only if one is named, since that takes seconds."""
    require("lm_eval", "running tasks")
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=settings.include_path, include_defaults=False) if settings.include_path else None
    if manager is None or not set(settings.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=settings.include_path)
    if unknown := sorted(set(settings.tasks) - set(manager.all_tasks)):
        where = f" and {settings.include_path}" if settings.include_path else ""
        raise RecipeError(f"tasks must be known to lm_eval{where}, got {', '.join(unknown)}; see `lm-eval ls tasks`")
    return manager


def _evaluate(
    model: LanguageModel, manager: TaskManager, settings: Settings
) -> dict[tuple[str, str], tuple[int, float, float | None]]:
    """Samples, value and standard error of each task's metrics, by lm_eval's ``simple_evaluate``."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        found = simple_evaluate(
            HFLM(pretrained=model.network, tokenizer=model.tokenizer, batch_size=settings.batch),
            tasks=list(settings.tasks),
            task_manager=manager,
            apply_chat_template=settings.chat_template,
            limit=settings.limit,
            log_samples=False,
        )
    except (ConnectionError, FileNotFoundError) as error:
        raise RecipeError(
            f"the tasks' data must lie on this machine, got {type(error).__name__} for {', '.join(settings.tasks)}; fetch them "
            "with --online, or pass a folder of your own by --include-path"
        ) from None
    counts = found["n-samples"]
    return {
        (task, metric): (_samples(counts, found["group_subtasks"], task), float(value), _error(row, metric))
        for task, row in {**found["results"], **found.get("groups", {})}.items()
        for metric, value in row.items()
        if "," in metric and not metric.partition(",")[0].endswith("_stderr") and isinstance(value, float | int)
    }


def _samples(counts: Mapping[str, Mapping[str, int]], groups: Mapping[str, Sequence[str]], task: str) -> int:
    """Number of samples of a task, or of all tasks of a group."""
    if task in counts:
        return counts[task]["effective"]
    return sum(_samples(counts, groups, name) for name in groups[task])


def _error(row: Mapping[str, Any], metric: str) -> float | None:
    name, _, filtered = metric.partition(",")
    error = row.get(f"{name}_stderr,{filtered}")
    return float(error) if isinstance(error, float | int) and math.isfinite(error) else None  # lm_eval writes "N/A" for none


def utility_lines(measures: Iterable[Measure]) -> Iterable[str]:
    """The measures as lines for people."""

    def shown(value: float | None, error: float | None, form: str = ".3f") -> str:
        return "" if value is None else f"{value:{form}}" + ("" if error is None else f" ± {error:.3f}")

    yield f"{'task':24} {'metric':24} {'samples':>7}  {'before':16} {'after':16} difference (± standard errors)"
    for m in measures:
        before, after = shown(m.before, m.before_error), shown(m.after, m.after_error)
        yield (
            f"{m.task:24} {m.metric:24} {m.samples:7}  {before:16} {after:16} {shown(m.difference, m.difference_error, '+.3f')}"
        ).rstrip()


def utility_document(
    candidate: Candidate, defended: Path | None, settings: Settings, measures: Iterable[Measure]
) -> dict[str, Any]:
    """The measures for machines, with identities, settings and versions, without the samples' text."""
    import importlib.metadata

    return {
        "version": 1,
        "candidate": candidate.identity,
        "defended": digest_folder(defended) if defended else None,
        "settings": {**asdict(settings), "include_path": str(settings.include_path) if settings.include_path else None},
        "lm_eval": importlib.metadata.version("lm_eval") if settings.tasks else None,
        "measures": [{**asdict(m), "difference": m.difference, "difference_error": m.difference_error} for m in measures],
    }


if __name__ == "__main__":
    wanted = Settings(**json.loads(sys.stdin.read()))
    _task_manager(wanted).load(list(wanted.tasks))
