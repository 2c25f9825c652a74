"""``rn-harness doctor``: checks this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from rn_harness.cli.shared import AsJson, CandidateName, JudgeSpec, RewardJudgeSpec, SecondJudgeSpec, tell, usage_errors

commands = typer.Typer()


@commands.command("doctor")
def doctor_command(
    model: CandidateName = "organism",
    suite: Annotated[Path | None, typer.Option(help="a suite whose judges and memory are looked at too")] = None,
    judge: JudgeSpec = None,
    reward_judge: RewardJudgeSpec = None,
    second_judge: SecondJudgeSpec = None,
    reports: Annotated[Path, typer.Option(help="folder that runs are written to")] = Path("reports"),
    as_json: AsJson = False,
) -> None:
    """Looks at packages, device, memory, disk, model, judges and hub. Exits with 1 if something is missing."""
    from rn_harness.models.resolve import profile_recipe
    from rn_harness.run.preflight import readiness
    from rn_harness.run.session import RunSession
    from rn_harness.spec.options import Options
    from rn_harness.spec.suite import load_suite
    from rn_harness.store.store import Store, default_root

    options = Options(model, "none", judge, reward_judge, second_judge, base=Path.cwd())
    with usage_errors():
        loaded = load_suite(suite, recipe=profile_recipe(model, Path.cwd())) if suite else None
        session = RunSession(options, Path.cwd(), Store(default_root()), lambda _: None)
        checks = list(readiness(session, loaded, reports))
    marks = {"ready": "ok   ", "missing": "no   ", "told": "     "}
    missing = [c for c in checks if c.state == "missing"]
    lines = [f"{marks[c.state]} {c.name}: {c.sentence}" for c in checks]
    lines.append("ready" if not missing else f"not ready: {', '.join(c.name for c in missing)}")
    tell(lines, {"ready": not missing, "checks": [dataclasses.asdict(c) for c in checks]}, as_json)
    raise typer.Exit(1 if missing else 0)
