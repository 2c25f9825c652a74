"""The model card of exported weights: their identity, and the findings about them.

Numbers and sentences are those of the records. The head is Hugging Face's metadata, written by its own library; INCONCLUSIVE
cases are left out there.
"""

from __future__ import annotations

from collections.abc import Sequence

from rn_harness.records.case import CaseRecord
from rn_harness.records.run import RunRecord
from rn_harness.report.markdown import plain
from rn_harness.report.terminal import broken_lines, standing_suffix

OTHERS = "A merge, a quantised copy or another format are other weights, of which nothing is known here."


def render_card(run: RunRecord, records: Sequence[CaseRecord], digest: str, *, is_adapter: bool) -> str:
    """The card of one domain's defended weights.

    Args:
        run: the run.
        records: of the cases with this defense.
        digest: of the weights; at least one record has it.
        is_adapter: True for an adapter, False for a whole model.
    """
    case = next(r for r in records if r.identity.defended_digest == digest)
    base, domain = case.identity.candidate, case.identity.suite["domain"]
    numbers = f" in {base['dtype']}" if base.get("dtype") else ""
    computed = numbers.replace(" in ", ", computed in ") + ("," if numbers else "")
    beside = f"a LoRA adapter, which stood unfolded on its base in {base.get('quantised')}{computed} in each attack"
    folded = f"a LoRA adapter, which was folded into its base{numbers} before each attack"
    form = "a whole model" if not is_adapter else beside if base.get("quantised") else folded
    if not any(r.evidence.kind == "attack" and r.evidence.trajectory for r in records):
        form = f"{'a LoRA adapter' if is_adapter else 'a whole model'}, which nothing attacked in this run"
    coverage = next((c for c in run.coverage if c.domain == domain), None)
    lines = [
        "---",
        _metadata(records, str(base["name"]), domain, is_adapter=is_adapter),
        "---",
        "",
        f"# Defended in the domain {domain}",
        "",
        f"{form[0].upper()}{form[1:]}. {OTHERS}",
        "",
        "| | |",
        "|---|---|",
        f"| outcome | {run.outcome} |",
        f"| a release can rest on it | {'yes' if run.releasable else 'no: ' + plain('; '.join(run.why_not))} |",
        *(f"| {plain(line.partition(':')[0])} | {plain(line.partition(': ')[2])} |" for line in broken_lines(run)),
        f"| weights, sha256 | `{digest}` |",
        f"| undefended base, sha256 | `{base['digest']}` |",
        f"| defense | {plain(case.identity.defense)} |",
        f"| suite, sha256 | `{case.identity.suite['digest']}` |",
        f"| judge | {plain(case.identity.judge['name'])} |",
        f"| harness sources, sha256 | `{case.identity.versions.get('rn-harness-sources', 'unknown')}` |",
        "",
        "## Found",
        "",
        *(
            f"* `{r.case_id}`{standing_suffix(r.evidence.standing)}: {r.verdict.outcome}. {plain(r.verdict.claim)}"
            for r in records
            if r.evidence.kind != "control"
        ),
        "",
    ]
    if coverage:
        left_out = ", ".join(n.name for n in coverage.not_run if n.kind == "family")
        lines += ["## Limits", "", plain(coverage.claim), "", f"Families of attacks that were not run: {plain(left_out)}.", ""]
    return "\n".join(lines)


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
