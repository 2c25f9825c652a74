"""A run in the log format of Inspect (inspect.aisi.org.uk), for its viewer and its tools.

Each case has one log, with one sample for each prompt and checkpoint, and one epoch for each completion. A log holds scores,
lengths and digests; the prompt's id replaces its text, and the completion's text is empty. Needs the extra ``inspect``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.records.trajectory import Checkpoint
from rn_harness.spec.errors import RecordError
from rn_harness.spec.extras import require

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalSpec

SCORER = "harm"


def write_inspect_logs(folder: Path, run: RunRecord, records: Iterable[CaseRecord]) -> list[Path]:
    """Writes a log ``DOMAIN-CASE.eval`` for each case that was measured, and returns the paths.

    Raises:
        MissingExtraError: the extra is not installed.
        RecordError: a case's name does not fit a file.
    """
    require("inspect_ai", "a log for Inspect")
    from inspect_ai.log import write_eval_log

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for record in records:
        if record.evidence.trajectory is not None:
            name = f"{record.identity.suite['domain']}-{record.case_id}"
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):  # a record from elsewhere must not choose the path
                raise RecordError(f"a case's name makes a file's, got {name!r}; this is no record of ours")
            path = folder / f"{name}.eval"
            write_eval_log(to_inspect(run, record), str(path), format="eval")
            written.append(path)
    return written


def to_inspect(run: RunRecord, record: CaseRecord) -> EvalLog:
    """One case as a log. Its status is ``success`` if the case has a verdict, PASS or FAIL; otherwise ``error``."""
    from inspect_ai import log as inspect_log

    trajectory, verdict = record.evidence.trajectory, record.verdict
    if trajectory is None:
        raise ValueError(f"a log is of a measurement, got none for case_id={record.case_id!r}; leave it out")
    samples = [sample for c in trajectory.checkpoints for sample in _samples(c)]
    known = verdict.outcome != "INCONCLUSIVE"
    numbers: dict[str, float | None] = {}
    if verdict.bounds:
        numbers = {"breached_prompts": verdict.bounds.breached, "upper_bound": verdict.bounds.upper_prompts}
    elif trajectory.checkpoints:
        numbers = {"maximum": trajectory.checkpoints[-1].maximum, "mean": trajectory.checkpoints[-1].mean}
    harm = inspect_log.EvalScore(
        name=SCORER,
        scorer=SCORER,
        scored_samples=sum(c.scored for c in trajectory.checkpoints),
        unscored_samples=sum(c.total - c.scored for c in trajectory.checkpoints),
        metrics={n: inspect_log.EvalMetric(name=n, value=v) for n, v in numbers.items() if v is not None},
    )
    return inspect_log.EvalLog(
        status="success" if known else "error",
        eval=_spec(run, record, list(dict.fromkeys(s.id for s in samples)), trajectory.recipe),
        plan=inspect_log.EvalPlan(name=record.evidence.kind),
        results=inspect_log.EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=[harm]),
        stats=inspect_log.EvalStats(started_at=record.started, completed_at=record.ended),
        error=None if known else inspect_log.EvalError(message=verdict.claim, traceback="", traceback_ansi=""),
        samples=samples,
    )


def _spec(run: RunRecord, record: CaseRecord, sample_ids: list[int | str], recipe: dict[str, Any]) -> EvalSpec:
    """The identity of a case: its task, data set, model, versions and verdict."""
    from inspect_ai import log as inspect_log

    identity, verdict, tree = record.identity, record.verdict, record.provenance.tree
    domain = identity.suite["domain"]
    return inspect_log.EvalSpec(
        eval_id=record.key,
        run_id=run.run_id,
        created=record.started,
        task=f"rn-harness/{domain}/{record.case_id}",
        task_id=record.case_id,
        task_version=identity.suite["digest"],
        dataset=inspect_log.EvalDataset(name=f"{domain} held-out prompts", samples=len(sample_ids), sample_ids=sample_ids),
        model=str(identity.candidate.get("name")),
        config=inspect_log.EvalConfig(epochs=1 + record.evidence.policy.samples),
        revision=inspect_log.EvalRevision(type="git", origin="", commit=tree.commit, dirty=tree.dirty) if tree else None,
        packages=identity.versions,
        tags=["rn-harness", record.evidence.kind, verdict.outcome],
        metadata={
            "outcome": verdict.outcome,
            "claim": verdict.claim,
            "standing": record.evidence.standing,
            "finding": verdict.finding,
            "reasons": [reason.model_dump() for reason in verdict.reasons],
            "identity": identity.model_dump(mode="json"),
            "recipe": recipe,
        },
    )


def _samples(checkpoint: Checkpoint) -> Iterator[EvalSample]:
    """The completions of one checkpoint."""
    from inspect_ai.log import EvalSample
    from inspect_ai.scorer import Score

    for s in checkpoint.scores:
        form = {name: getattr(s, name) for name in ("refusal", "degenerate", "truncated", "words")}
        score = Score.unscored(reason=s.unscored, metadata=form) if s.score is None else Score(value=s.score, metadata=form)
        yield EvalSample(
            id=f"step {checkpoint.step:04d} {s.prompt_id}",
            epoch=1 + s.sample,
            input=s.prompt_id,
            target="",
            scores={SCORER: score},
            metadata={"step": checkpoint.step, "prompt_id": s.prompt_id, "greedy": s.sample == 0},
        )
