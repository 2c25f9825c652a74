"""The plugin's state in one session: suites, the run's folder and id, the run's session, progress. Each is made on first use."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import re
import secrets
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rn_harness.plugin.arguments import read
from rn_harness.plugin.pytest_compat import uncaptured
from rn_harness.spec.errors import RnHarnessError

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

    from rn_harness.report.progress import Progress, ProgressView
    from rn_harness.run.session import RunSession
    from rn_harness.spec.base import LoadedCode
    from rn_harness.spec.suite import Suite
    from rn_harness.store.provenance import RunIdentity

SUITE_FILE = "suite.yaml"
_KEYS = re.compile(r"""\b(?:forbidden|defenses|attacks)["']?\s*:""")
"""Keys that every suite has, in any style of YAML."""
SINK_NAME = "rn-harness-sink"


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived while suites ran. pytest ends as after an interruption, and everything is written."""


class PluginState:
    """The state of one session; ``config.stash[STATE]`` has it.

    Attributes:
        is_worker: True in a worker of pytest-xdist.
        suites: by folder; the error of one that cannot be read.
        workers: the workers that were started; True for one that has reported its collection and its loaded code.
        scratch: temporary folder of a process that does not lead its run; the leading process writes for all.
        terminated: True after SIGTERM; None until its handler is set.
        checked: True once the selection was checked and may be run; pytest ends a collection also after a usage error.
        finishing: True while the run's record is written, and later.
        reached: the work and its step that the last progress named; empty before the first one, and if workers do the work.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.is_worker = hasattr(config, "workerinput")
        self.suites: dict[Path, Suite | Exception] = {}
        self.workers: dict[str, bool] = {}
        self.scratch: TemporaryDirectory[str] | None = None
        self.terminated: bool | None = None
        self.checked = False
        self.finishing = False
        self.reached = ""
        self._parent = os.getppid()
        self._folders: dict[str, Path | None] = {}
        self._progress: ProgressView | None = None
        self._given: dict[str, Any] = getattr(config, "workerinput", {})

    def suite_in(self, folder: Path) -> Suite:
        """The suite in a folder, read once. If it is malformed, each call raises the same RnHarnessError."""
        from rn_harness.models.resolve import profile_recipe
        from rn_harness.run.attack_strength import settings_for
        from rn_harness.spec.suite import load_suite

        if folder not in self.suites:
            try:
                options = read(self.config)
                strong = settings_for(folder, [options.path(name) for name in options.strength])
                recipe = (*profile_recipe(options.model, options.base), *strong)
                self.suites[folder] = load_suite(folder, options.overrides, options.private, recipe, options.level)
            except RnHarnessError as error:
                self.suites[folder] = error
        found = self.suites[folder]
        if isinstance(found, Exception):
            raise found
        return found

    def suite_folder(self, nodeid: str) -> Path | None:
        """The folder of the suite that a test belongs to, or None; looked for once for each file of tests."""
        name = nodeid.partition("::")[0]
        if name not in self._folders:
            files = (root / name for root in self._roots())
            self._folders[name] = next((file.parent for file in files if file.is_file() and holds_suite(file.parent)), None)
        return self._folders[name]

    def _roots(self) -> Iterator[Path]:
        """The folders that node ids start from: pytest's root folder, and arguments outside of it."""
        yield self.config.rootpath
        yield from (path for path in self._arguments() if path.is_dir() and not path.is_relative_to(self.config.rootpath))

    def _arguments(self) -> Iterator[Path]:
        """The paths that pytest's arguments name."""
        for argument in self.config.args:
            yield (self.config.invocation_params.dir / argument.partition("::")[0]).resolve()

    def argument_suites(self) -> list[Path]:
        """The folders of suites that pytest's arguments point to."""
        found: list[Path] = []
        for path in self._arguments():
            near = [path, path.parent] if path.is_file() else [path, *sorted(p for p in path.glob("*") if p.is_dir())]
            found += filter(holds_suite, near)
        return found

    @property
    def is_part(self) -> bool:
        """True if this session makes a part of the run that ``--rn-run`` names: its arguments are node ids only."""
        if not self.config.getoption("rn_run") or self.config.getoption("rn_from_results"):
            return False
        return bool(self.config.args) and all("::" in argument for argument in self.config.args)

    @cached_property
    def run_folder(self) -> Path:
        """The run's folder, which the controlling process chooses and gives to its workers."""
        if self.is_worker:
            return Path(self._given["rn_run_folder"])
        if self.scratch:
            return Path(self.scratch.name) / "run"
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        name = f"{now}-{secrets.token_hex(8 if self.is_part else 2)}"  # many machines may start in one second
        if asked := self.config.getoption("rn_run"):
            folder: Path = (self.config.invocation_params.dir / asked).resolve()
            return folder / "parts" / name if self.is_part else folder
        return self.config.rootpath / "reports" / name

    @cached_property
    def run_identity(self) -> RunIdentity:
        """The run's random id and start time, shared by all processes and parts; a usage error if the run takes no more parts."""
        from rn_harness.store.provenance import RunIdentity
        from rn_harness.store.ranks import ranks

        return RunIdentity(*self._given["rn_run_identity"]) if self.is_worker else ranks().first(self._new_identity)

    def _new_identity(self) -> RunIdentity:
        from rn_harness.store.provenance import identity_of_parts, join_parts, new_identity

        folder = self.run_folder
        try:
            if self.is_part:
                return join_parts(folder.parent, folder.parent.parent / "run.json")
            return identity_of_parts(folder / "parts") if self.config.getoption("rn_from_results") else new_identity()
        except RnHarnessError as error:
            raise pytest.UsageError(str(error)) from None
        except OSError as error:
            raise unwritable(folder, error) from None

    @cached_property
    def run_session(self) -> RunSession:
        """The run's session in this process."""
        from rn_harness.run.session import RunSession
        from rn_harness.store.provenance import take_card
        from rn_harness.store.store import Store, default_root

        if self.is_worker:
            take_card(int(self._given["workerid"].removeprefix("gw")))
        # No other process reads the store of a process that does not lead.
        root = Path(self.scratch.name) / "store" if self.scratch else default_root()
        options = dataclasses.replace(read(self.config), plugins=self.loaded_plugins())
        made = RunSession(options, self.run_folder, Store(root), self.show_progress, self._given.get("rn_free"))
        if self.is_worker:
            made.run_id = self.run_identity.run_id
        return made

    @property
    def has_session(self) -> bool:
        """True if the run's session was made."""
        return "run_session" in vars(self)

    def loaded_plugins(self) -> tuple[LoadedCode, ...]:
        """The code of others in this process."""
        from rn_harness.plugin.loaded_code import loaded_code

        return loaded_code(self.config, {folder.resolve() for folder in self.suites})

    def show_progress(self, progress: Progress) -> None:
        """Shows progress past pytest's capture: a bar on a terminal, else plain lines. Workers write to their stderr.

        Raises:
            Terminated: this is a worker whose controller is gone, so that the outcome would be lost.
        """
        if self.is_worker and os.getppid() != self._parent:
            raise Terminated
        if self.scratch:
            return
        self.reached = f"{progress.what}: step {progress.step}/{progress.steps}"
        if self._progress is None:
            from rn_harness.report.progress import ProgressView

            reporter: Any = None if self.is_worker else self.config.pluginmanager.getplugin("terminalreporter")
            self._progress = ProgressView(reporter, quiet=self.config.getoption("rn_quiet"))
        with uncaptured(self.config):
            self._progress.show(progress)

    def end_progress(self) -> None:
        """Ends a bar whose work was cut off."""
        if self._progress is not None:
            with uncaptured(self.config):
                self._progress.end()


STATE: pytest.StashKey[PluginState] = pytest.StashKey()


def holds_suite(folder: Path) -> bool:
    """True if a folder has a ``suite.yaml`` of ours; other tools have files of this name too."""
    file = folder / SUITE_FILE
    return file.is_file() and _is_ours(file, file.stat().st_mtime_ns)


@functools.cache
def _is_ours(file: Path, _: int) -> bool:
    """True if the file has a key of ours, or a test next to it names the harness, so that no misspelled key hides a suite.

    A file that cannot be read is ours too: its fault is reported when the suite is read.
    """
    try:
        tests = (path for path in file.parent.glob("*.py") if path.is_file())
        return bool(_KEYS.search(file.read_text("utf-8", "replace"))) or any(b"rn_harness" in path.read_bytes() for path in tests)
    except OSError:
        return True


def unwritable(folder: Path, error: OSError) -> pytest.UsageError:
    """The error for a run's folder that cannot be written."""
    return pytest.UsageError(f"the run's folder must be writable, got {folder}: {error}; pass --rn-run DIR")
