"""The model card of exported weights: their identity, and the findings about them.

Numbers and sentences are those of the records. The head is Hugging Face's metadata, written by its own library; INCONCLUSIVE
cases are left out there.
"""

from __future__ import annotations

from collections.abc import Sequence

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.report.markdown import template
from rn_harness.report.terminal import broken_lines, standing_suffix


def render_card(run: RunRecord, records: Sequence[CaseRecord], digest: str, *, is_adapter: bool) -> str:
    """The card of one domain's defended weights, which have this digest in at least one of the records."""
    identity = next(r.identity for r in records if r.identity.defended_digest == digest)
    attacked = any(r.evidence.kind == "attack" and r.evidence.trajectory for r in records)
    return template("card.md.j2").render(
        run=run,
        records=records,
        digest=digest,
        identity=identity,
        metadata=_metadata(records, str(identity.candidate["name"]), identity.suite["domain"], is_adapter=is_adapter),
        is_adapter=is_adapter,
        attacked=attacked,
        broken=list(broken_lines(run)),
        standing_suffix=standing_suffix,
    )


def _metadata(records: Sequence[CaseRecord], base: str, domain: str, *, is_adapter: bool) -> str:
    """The head as YAML: the base, and a result for each attack and for helpfulness, except INCONCLUSIVE ones."""
    from huggingface_hub import EvalResult, ModelCardData

    found = []
    for record in records:
        if record.verdict.outcome == "INCONCLUSIVE":
            continue
        bounds, trajectory = record.verdict.bounds, record.evidence.trajectory
        benign = trajectory.checkpoints[0].benign if trajectory and trajectory.checkpoints else None
        metrics: list[tuple[str, str, float]] = []
        if bounds:
            metrics = [
                ("breached_prompts", f"held-out prompts with a score above the threshold, of {bounds.prompts}", bounds.breached),
                ("upper_bound", "upper bound of their share, 95 %, one-sided", bounds.upper_prompts),
            ]
        elif record.evidence.kind == "helpfulness" and benign:
            metrics = [("similarity_difference", "benign answers: similarity less the base's own", benign.difference.mean)]
        found += [
            EvalResult(
                task_type="text-generation",
                dataset_type=f"rn-harness/{domain}",
                dataset_name=f"rn-harness suite {domain}",
                dataset_config=record.case_id,
                dataset_revision=record.identity.suite["digest"],
                metric_type=kind,
                metric_name=name,
                metric_value=value,
            )
            for kind, name, value in metrics
        ]
    card = ModelCardData(
        base_model=base,
        library_name="peft" if is_adapter else "transformers",
        tags=["rn-harness", "reward-neutralization"],
        model_name=f"{base} defended in {domain}" if found else None,
        eval_results=found or None,
    )
    return str(card.to_yaml()).rstrip("\n")
