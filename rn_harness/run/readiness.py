"""Checks that a machine is ready for a run. Nothing is loaded, but files of models and judges that a run needs are fetched."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rn_harness.models.memory import GIB, available_memory
from rn_harness.run.preflight import check_judges
from rn_harness.run.session import RunSession
from rn_harness.spec.errors import RnHarnessError
from rn_harness.spec.extras import missing
from rn_harness.spec.suite import Suite
from rn_harness.store.provenance import DECIDING_PACKAGES, device
from rn_harness.store.store import check_room

MIN_DISK_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True)
class Check:
    """One requirement of a run.

    Attributes:
        name: the requirement.
        state: ``ready``, ``missing``, or ``told`` for plain information.
        sentence: the finding, or how to mend it.
    """

    name: str
    state: Literal["ready", "missing", "told"]
    sentence: str


def readiness(session: RunSession, suite: Suite | None, reports: Path) -> Iterator[Check]:
    """Checks one requirement after another.

    Args:
        session: with model, judges and store of the planned run.
        suite: the planned suite; None: judges are not checked.
        reports: folder that runs are written to.
    """
    yield Check("python", "told", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    where = device()
    yield Check("device", "ready", where)
    free = available_memory("cpu" if where == "cpu" else "cuda")
    yield Check("memory", "ready", f"{free / GIB:.1f} GiB are free now")
    yield _folder("store", session.store.root)
    yield _folder("reports", reports)
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    yield Check(
        "hub", "told", "offline by HF_HUB_OFFLINE=1: only its cache is used" if offline else "asked for what is named by it"
    )
    model = _asked("model", lambda: f"{session.candidate.name} (sha256 {session.candidate.digest[:12]})")
    yield model
    if suite is not None and model.state == "ready":
        yield _asked("judges", lambda: _judges(session, suite))
        yield _asked(
            "run's memory",
            lambda: planned.sentence if (planned := session.limits.largest(suite)) else "not known for this model",
        )


def _packages() -> Iterator[Check]:
    pinned = {}
    constraints = Path("constraints.txt")
    if constraints.is_file():
        rows = (line.partition("==") for line in constraints.read_text(encoding="utf-8").splitlines())
        pinned = {name.strip(): version.strip() for name, equals, version in rows if equals}
    for name in DECIDING_PACKAGES:
        due = pinned.get(name)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "missing", str(missing(name, "a run")))
            continue
        if due is not None and version.partition("+")[0] != due.partition("+")[0]:
            yield Check(name, "missing", f"{version}, constraints.txt has {due}; pip install -c constraints.txt {name}")
        else:
            yield Check(name, "ready", f"{version}{', as pinned' if due else ''}")


def _folder(name: str, folder: Path) -> Check:
    """Checks that a folder is writable and has space."""
    return _asked(name, lambda: f"{folder}, {check_room(folder, MIN_DISK_BYTES) / GIB:.1f} GiB free")


def _asked(name: str, ask: Callable[[], str]) -> Check:
    try:
        return Check(name, "ready", ask())
    except RnHarnessError as error:
        return Check(name, "missing", str(error))


def _judges(session: RunSession, suite: Suite) -> str:
    check_judges(session, suite)
    return session.judges(suite).names
