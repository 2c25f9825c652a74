"""The start of a run in the controlling process: its controller, its header, and the gate's early refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rn_harness.plugin.pytest_compat import owns_option
from rn_harness.plugin.reporting import SINK, SINK_NAME, Sink
from rn_harness.plugin.selection import case_tasks, checked_suites
from rn_harness.plugin.stash import (
    COLLECTED,
    SCRATCH,
    SESSION,
    is_part,
    is_worker,
    loaded_plugins,
    reread_suites,
    run_folder,
    run_identity,
    run_session,
    suite_folder,
    unwritable,
)

if TYPE_CHECKING:
    from rn_harness.run.controller import Controller
    from rn_harness.run.session import RunSession
    from rn_harness.spec.suite import Suite


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begins the run, whose selection is now known; a worker reports the tests that were left out instead."""
    config = session.config
    collected = config.stash[COLLECTED]
    if is_worker(config) and collected.items:
        output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
        output["rn_left_out"] = collected.left_out(config, session.items)
        output["rn_loaded"] = [code.model_dump(mode="json") for code in loaded_plugins(config)]
    if not is_worker(config) and not config.option.collectonly:
        begin_run(config, [item.nodeid for item in session.items], session.items)
        if SESSION in config.stash and config.getoption("rn_fleet") > 1:
            run_session(config).upcoming = list(case_tasks(config, session.items))


def begin_run(config: pytest.Config, nodeids: list[str], items: Sequence[pytest.Item] = ()) -> None:
    """Begins the run of the selected tests, once; ``items`` are the tests themselves, unless workers collect them.

    Raises:
        pytest.UsageError: the run cannot be valid.
    """
    if SINK in config.stash:
        return
    uncollected = [nodeid for nodeid in config.stash[COLLECTED].failed if suite_folder(config, nodeid)]
    selected = [*(nodeid for nodeid in nodeids if suite_folder(config, nodeid)), *uncollected]
    suites = checked_suites(config, selected)
    if not suites:
        return
    session = run_session(config)
    session.run_id = run_identity(config).run_id  # not earlier, since the first part of a run writes a file
    if SCRATCH in config.stash:
        return
    if session.options.on_ray:
        _connect_to_ray(config, items)
    controller = _new_controller(config, session, suites, items)
    try:
        controller.begin(selected, uncollected)
        config.stash[SINK] = Sink(config, controller)
    except OSError as error:
        raise unwritable(Path(error.filename or run_folder(config)), error) from None
    config.pluginmanager.register(config.stash[SINK], SINK_NAME)
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.ensure_newline()
        for line in _header(config, session, controller, suites):
            reporter.write_line(line)
    hindrances = controller.hindrances()
    if config.getoption("rn_gate") and hindrances:
        from rn_harness.verdict.release_rules import NOT_RELEASABLE

        listed = "".join(f"\n  {why}" for why in hindrances)
        pytest.exit(f"--rn-gate: no release can rest on such a run, so that none is made:{listed}", returncode=NOT_RELEASABLE)
    session.executor.start()


def _new_controller(
    config: pytest.Config, session: RunSession, suites: Sequence[Suite], items: Sequence[pytest.Item]
) -> Controller:
    from rn_harness.run.controller import Controller
    from rn_harness.store.provenance import uncommitted

    controller = Controller(
        folder=run_folder(config),
        options=session.options,
        suites=reread_suites(config, suites),
        candidate=session.candidate.identity,
        judges={suite.domain: session.judges(suite).names for suite in suites},
        narrowed=_narrowed(config),
        left_out=config.stash[COLLECTED].left_out(config, items),
        plugins=session.options.plugins,
        dirty={suite.domain: files for suite in suites if (files := uncommitted(suite.folder))},
        run_id=session.run_id,
        started=run_identity(config).began,
        is_part=is_part(config),
    )
    if session.options.from_results:
        from rn_harness.run.executors.results import Results

        session.executor = results = Results(session, controller.recorded_options())
        controller.joined = results.taken
    return controller


def _header(config: pytest.Config, session: RunSession, controller: Controller, suites: Sequence[Suite]) -> Iterator[str]:
    """The lines that the terminal shows before the first test."""
    from rn_harness.report.terminal import header_lines
    from rn_harness.run.attack_strength import strength_lines

    candidate, options = session.candidate, session.options
    memory = session.executor.memory_line(suites)
    yield from header_lines(candidate, suites, options, controller.judges, str(run_folder(config)), memory)
    yield from strength_lines(session, suites)
    if harmful := session.harmful(suites):
        kept = f"are kept encrypted in {options.transcripts}" if options.transcripts else "are kept nowhere"
        yield (
            f"rn-harness: this run makes {candidate.name} do harm in {', '.join(harmful)}, in memory alone: attacked weights "
            f"are kept nowhere, completions {kept}; see docs/security.md"
        )
    if not owns_option(config, "--model", "rn_model"):
        yield "rn-harness: --model is another plugin's option here; name the candidate by --rn-model"


def _connect_to_ray(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Connects to the cluster, and checks there that the tests' cases can be made.

    Raises:
        pytest.UsageError: the run cannot be made there.
    """
    from rn_harness.run.executors.on_ray import OnRay
    from rn_harness.spec.errors import RnHarnessError

    session = run_session(config)
    try:
        session.executor = OnRay.begin(session, case_tasks(config, items))
    except RnHarnessError as error:
        raise pytest.UsageError(str(error)) from None


def _narrowed(config: pytest.Config) -> list[str]:
    """How the user narrowed the selection."""
    found = [f"-{flag} {value}" for flag, value in (("k", config.option.keyword), ("m", config.option.markexpr)) if value]
    found += [f"--deselect {value}" for value in config.option.deselect or []]
    return found + [f"the node id {arg}" for arg in config.invocation_params.args if "::" in str(arg)]
