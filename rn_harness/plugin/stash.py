"""The state that the plugin keeps on pytest's config: suites, the run's folder and id, the run's session, progress.

Every module of the plugin reads it here. Each object is made on first use.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rn_harness.plugin.collection import SUITE_FILE
from rn_harness.plugin.pytest_compat import uncaptured

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

    from rn_harness.plugin.collection import Collected
    from rn_harness.report.progress import Progress, ProgressView
    from rn_harness.run.case import Case
    from rn_harness.run.session import RunSession
    from rn_harness.spec.loaded_code import LoadedCode
    from rn_harness.spec.suite import Suite
    from rn_harness.store.run_ids import RunIdentity

CASE: pytest.StashKey[Case] = pytest.StashKey()
SUITES: pytest.StashKey[dict[Path, Suite | Exception]] = pytest.StashKey()
PROGRESS: pytest.StashKey[ProgressView] = pytest.StashKey()
SESSION: pytest.StashKey[RunSession] = pytest.StashKey()
RUN_FOLDER: pytest.StashKey[Path] = pytest.StashKey()
RUN_IDENTITY: pytest.StashKey[RunIdentity] = pytest.StashKey()
COLLECTED: pytest.StashKey[Collected] = pytest.StashKey()
WORKERS: pytest.StashKey[dict[str, bool]] = pytest.StashKey()
"""The workers that were started; True for a worker that has reported its collection and its loaded code."""
TERMINATED: pytest.StashKey[bool] = pytest.StashKey()
PARENT: pytest.StashKey[int] = pytest.StashKey()
SCRATCH: pytest.StashKey[TemporaryDirectory[str]] = pytest.StashKey()
"""Temporary folder of a process that does not lead its run; the leading process writes for all."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived while suites ran. pytest ends as after an interruption, and everything is written."""


def is_worker(config: pytest.Config) -> bool:
    """True in a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def suite_in(config: pytest.Config, folder: Path) -> Suite:
    """The suite in a folder, read once.

    Raises:
        RnHarnessError: it is malformed; each call raises the same error.
    """
    from rn_harness.models.resolve import profile_recipe
    from rn_harness.plugin.arguments import read
    from rn_harness.run.attack_strength import settings_for
    from rn_harness.spec.errors import RnHarnessError
    from rn_harness.spec.suite import load_suite

    known = config.stash[SUITES]
    if folder not in known:
        try:
            options = read(config)
            strong = settings_for(folder, [options.path(name) for name in options.strength])
            recipe = (*profile_recipe(options.model, options.base), *strong)
            known[folder] = load_suite(folder, options.overrides, options.private, recipe)
        except RnHarnessError as error:
            known[folder] = error
    found = known[folder]
    if isinstance(found, Exception):
        raise found
    return found


def reread_suites(config: pytest.Config, suites: Sequence[Suite]) -> list[Suite]:
    """The suites, read from their files again: fixtures and other plugins could have changed the objects that they were given."""
    from rn_harness.plugin.arguments import read
    from rn_harness.spec.errors import RnHarnessError
    from rn_harness.spec.suite import load_suite

    options = read(config)
    try:
        return [load_suite(s.folder, s.overrides, options.private, s.recipe) for s in suites]
    except RnHarnessError as error:
        raise pytest.UsageError(str(error)) from None


def suite_folder(config: pytest.Config, nodeid: str) -> Path | None:
    """The folder of the suite that a test belongs to, or None."""
    folder = (config.rootpath / nodeid.partition("::")[0]).parent
    return folder if (folder / SUITE_FILE).is_file() else None


def argument_suites(config: pytest.Config) -> list[Path]:
    """The folders of suites that pytest's arguments point to."""
    found: list[Path] = []
    for argument in config.args:
        path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
        near = [path, path.parent] if path.is_file() else [path, *sorted(p for p in path.glob("*") if p.is_dir())]
        found += [folder for folder in near if (folder / SUITE_FILE).is_file()]
    return found


def run_folder(config: pytest.Config) -> Path:
    """The run's folder, which the controlling process chooses and gives to its workers."""
    if RUN_FOLDER not in config.stash:
        if is_worker(config):
            folder = Path(config.workerinput["rn_run_folder"])  # type: ignore[attr-defined]
        elif SCRATCH in config.stash:
            folder = Path(config.stash[SCRATCH].name) / "run"
        elif config.getoption("rn_run"):
            folder = (config.invocation_params.dir / config.getoption("rn_run")).resolve()
            if is_part(config):
                folder = folder / "parts" / _folder_name(8)
        else:
            folder = config.rootpath / "reports" / _folder_name(2)
        config.stash[RUN_FOLDER] = folder
    return config.stash[RUN_FOLDER]


def run_identity(config: pytest.Config) -> RunIdentity:
    """The run's random id and its start time, shared by all of its processes and parts.

    Raises:
        pytest.UsageError: this is to be a part of a run that takes no more parts.
    """
    if RUN_IDENTITY not in config.stash:
        from rn_harness.store.ranks import ranks
        from rn_harness.store.run_ids import RunIdentity

        if is_worker(config):
            config.stash[RUN_IDENTITY] = RunIdentity(*config.workerinput["rn_run_identity"])  # type: ignore[attr-defined]
        else:
            config.stash[RUN_IDENTITY] = ranks().first(lambda: _new_identity(config))
    return config.stash[RUN_IDENTITY]


def _new_identity(config: pytest.Config) -> RunIdentity:
    from rn_harness.spec.errors import RnHarnessError
    from rn_harness.store.run_ids import identity_of_parts, join_parts, new_identity

    folder = run_folder(config)
    try:
        if is_part(config):
            return join_parts(folder.parent, folder.parent.parent / "run.json")
        return identity_of_parts(folder / "parts") if config.getoption("rn_from_results") else new_identity()
    except RnHarnessError as error:
        raise pytest.UsageError(str(error)) from None
    except OSError as error:
        raise unwritable(folder, error) from None


def unwritable(folder: Path, error: OSError) -> pytest.UsageError:
    """The error for a run's folder that cannot be written."""
    return pytest.UsageError(f"the run's folder must be writable, got {folder}: {error}; pass --rn-run DIR")


def _folder_name(random_bytes: int) -> str:
    """A name that no other run has. It has random digits next to the time, since many machines may start in one second."""
    import secrets

    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{now}-{secrets.token_hex(random_bytes)}"


def is_part(config: pytest.Config) -> bool:
    """True if this session makes a part of the run that ``--rn-run`` names: its arguments are node ids only."""
    if not config.getoption("rn_run") or config.getoption("rn_from_results"):
        return False
    return bool(config.args) and all("::" in argument for argument in config.args)


def run_session(config: pytest.Config) -> RunSession:
    """The run's session in this process."""
    if SESSION not in config.stash:
        from rn_harness.plugin.arguments import read
        from rn_harness.run.session import RunSession
        from rn_harness.store.provenance import take_card
        from rn_harness.store.store import Store, default_root

        if is_worker(config):
            take_card(int(config.workerinput["workerid"].removeprefix("gw")))  # type: ignore[attr-defined]
        # No other process reads the store of a process that does not lead.
        root = Path(config.stash[SCRATCH].name) / "store" if SCRATCH in config.stash else default_root()
        free = getattr(config, "workerinput", {}).get("rn_free")
        options = dataclasses.replace(read(config), plugins=loaded_plugins(config))
        config.stash[SESSION] = RunSession(
            options, run_folder(config), Store(root), lambda progress: show_progress(config, progress), free
        )
        if is_worker(config):
            config.stash[SESSION].run_id = run_identity(config).run_id
    return config.stash[SESSION]


def loaded_plugins(config: pytest.Config) -> tuple[LoadedCode, ...]:
    """The code of others in this process."""
    from rn_harness.plugin.loaded_code import loaded_code

    return loaded_code(config, {folder.resolve() for folder in config.stash[SUITES]})


def show_progress(config: pytest.Config, progress: Progress) -> None:
    """Shows progress past pytest's capture: a bar on a terminal, else plain lines. Workers write to their stderr.

    Raises:
        Terminated: this is a worker whose controller is gone, so that the outcome would be lost.
    """
    if is_worker(config) and os.getppid() != config.stash.get(PARENT, os.getppid()):
        raise Terminated
    if SCRATCH in config.stash:
        return
    with uncaptured(config):
        _progress_view(config).show(progress)


def _progress_view(config: pytest.Config) -> ProgressView:
    if PROGRESS not in config.stash:
        from rn_harness.report.progress import ProgressView

        reporter: Any = None if is_worker(config) else config.pluginmanager.getplugin("terminalreporter")
        config.stash[PROGRESS] = ProgressView(reporter, quiet=config.getoption("rn_quiet"))
    return config.stash[PROGRESS]


def end_progress(config: pytest.Config) -> None:
    """Ends a bar whose work was cut off."""
    if PROGRESS in config.stash:
        with uncaptured(config):
            config.stash[PROGRESS].end()
