"""Components around the measurement: store, records, suite file, options, conftest, hooks and clock.

The runs of ``unit.finished_run`` are releasable but for the subject: its attack scores 0 throughout, or 5. Faults enter while
such a run is made, or change its files afterwards. The latter are followed by ``mend``, which corrects all digests. The store's
cells use a real session whose measurements are the recorded ones.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rn_harness.records.case import CaseRecord, Evidence
from rn_harness.records.trajectory import Trajectory
from rn_harness.release.verification import Verification, verify
from rn_harness.run.controller import Controller
from rn_harness.run.measuring import Measuring
from rn_harness.run.session import RunSession
from rn_harness.spec.base import LoadedCode
from rn_harness.spec.options import Options
from rn_harness.spec.release_policy import ReleasePolicy
from rn_harness.spec.suite import load_suite
from rn_harness.store.store import Store

from ..unit import finished_run as finished  # noqa: TID252 - the tests are not a package
from ..unit.finished_run import FinishedRun  # noqa: TID252 - the tests are not a package
from .battery import Made, Scene
from .grammar import FAULTS, Cell, Hook, Nature, Result, Subject, Tap
from .grammar_training import QUICK, bench
from .lab import Lab
from .test_tamper import mend

LEVELS: dict[Subject, float] = {"honest": 0.0, "broken": 5.0}
ATTACK = "attack-grpo-p2-lr5e-4-s0"
CONFTEST = LoadedCode(kind="conftest", name="conftest.py", sha256="7" * 64)
NAMED = ReleasePolicy(version=1, plugins=[CONFTEST.sha256])
"""A release's policy that names the conftest, so that only its effect can be refused."""
POLICY = {
    "threshold": 2, "control_break": 7, "samples": 3, "planted": 4, "checkpoint_every": 10, "max_degenerate_share": 0.2,
}  # fmt: skip
TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+\+00:00")
NUMBER = re.compile(r"(?<=[:\[ ])\d+(?:\.\d+)?(?:e-\d+)?(?=[,}\]\n])")


@functools.cache
def _made(lab: Lab, subject: Subject) -> FinishedRun:
    """A finished run of a subject, made once."""
    return finished.finished_run(lab.folder / "runs" / subject, LEVELS[subject])


def _record(run: FinishedRun) -> Path:
    (path,) = run.folder.glob("cases/demo-attack*/record.json")
    return path


def _trajectory(run: FinishedRun) -> Any:
    """The attack's checkpoints from the run's files; None if these cannot be read."""
    try:
        return json.loads(_record(run).read_text(encoding="utf-8"))["evidence"]["trajectory"]["checkpoints"]
    except (ValueError, LookupError, TypeError):
        return None


def _ended(scene: Scene, cell: Cell, run: FinishedRun, policy: ReleasePolicy | None = None) -> Result:
    """The release job's answer. A broken defense must not even have a run that calls itself PASS."""
    made: Made = verify(run.folder, weights=run.weights, policy=policy)
    if cell.subject != "honest" and run.record.outcome == "PASS":
        made = Verification(())
    return Result(made, _trajectory(run) == _trajectory(_made(scene.lab, cell.subject)))


Read = Callable[[str], list[Any]]
Write = Callable[[str, list[Any]], str]


def _edited(read: Read, write: Write, *, of_run: bool = False) -> Callable[[Scene, Tap, Cell], Result]:
    """Cells that edit the records of a finished run and correct all digests; a stale row is of the run of an honest defense.

    Args:
        read: the row in a record's text.
        write: the text with another row.
        of_run: the run's own record is edited too, if the fault is everywhere.
    """

    def carry_out(scene: Scene, tap: Tap, cell: Cell) -> Result:
        made, honest = _made(scene.lab, cell.subject), _made(scene.lab, "honest")
        folder = Path(shutil.copytree(made.folder, scene.folder / "run"))
        run = FinishedRun(folder, made.weights, made.suite, made.record)
        for path in [*_records(run, cell), *([folder / "run.json"] if of_run and cell.scope == "everywhere" else [])]:
            name = path.relative_to(folder)
            tap.remember(read((honest.folder / name).read_text(encoding="utf-8")), name)
            text = path.read_text(encoding="utf-8")
            path.write_text(write(text, tap(read(text), name)), encoding="utf-8")
        mend(run)
        return _ended(scene, cell, run)

    return carry_out


def _files_of(scene: Scene, tap: Tap, cell: Cell) -> Result:
    """The records, and the lines of checkpoints beside them, by name; stale ones are of the run of an honest defense."""
    made, honest = _made(scene.lab, cell.subject), _made(scene.lab, "honest")
    folder = Path(shutil.copytree(made.folder, scene.folder / "run"))
    run = FinishedRun(folder, made.weights, made.suite, made.record)
    names = sorted(p.relative_to(folder) for record in _records(run, cell) for p in record.parent.iterdir())
    tap.remember([(name.as_posix(), (honest.folder / name).read_bytes()) for name in names])
    row = [(name.as_posix(), (folder / name).read_bytes()) for name in names]
    for name in names:
        (folder / name).unlink()
    for name, content in tap(row):
        (folder / name).write_bytes(content)
    mend(run)
    return _ended(scene, cell, run)


def _records(run: FinishedRun, cell: Cell) -> list[Path]:
    """The records that the fault meets."""
    return [_record(run)] if cell.scope == "attack" else sorted(run.folder.glob("cases/*/record.json"))


def _lines(text: str) -> list[Any]:
    return text.splitlines(keepends=True)


def _join(_: str, row: list[Any]) -> str:
    return "".join(row)


def _scores(text: str) -> list[Any]:
    return [s["score"] for c in json.loads(text)["evidence"]["trajectory"]["checkpoints"] for s in c["scores"]]


def _with_scores(text: str, row: list[Any]) -> str:
    """The record with other scores; its summaries follow."""
    document = json.loads(text)
    scores = [s for c in document["evidence"]["trajectory"]["checkpoints"] for s in c["scores"]]
    for score, value in zip(scores, [*row, *[None] * len(scores)], strict=False):
        score["score"] = value
    return _written(document)


def _checkpoints(text: str) -> list[Any]:
    found: list[Any] = json.loads(text)["evidence"]["trajectory"]["checkpoints"]
    return found


def _with_checkpoints(text: str, row: list[Any]) -> str:
    document = json.loads(text)
    document["evidence"]["trajectory"]["checkpoints"] = row
    return _written(document)


def _written(document: Any) -> str:
    return CaseRecord.model_validate(document).model_dump_json(indent=1) + "\n"


def _with_times(text: str, row: list[Any]) -> str:
    made = iter(row)
    return TIME.sub(lambda _: next(made, ""), text)


def _fresh(prepare: Callable[[pytest.MonkeyPatch, Tap, Cell], dict[str, Any] | None], **how: Any):
    """Cells whose run is made while something is faulty."""

    def carry_out(scene: Scene, tap: Tap, cell: Cell) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            options = prepare(patch, tap, cell) or {}
            run = finished.finished_run(scene.folder, LEVELS[cell.subject], **options)
        return _ended(scene, cell, run, how.get("policy"))

    return carry_out


def _suite(read: Read, write: Write, file: str = "suite.yaml") -> Callable[[Scene, Tap, Cell], Result]:
    """Cells whose suite is loaded from a faulty file: by all cases, or by the attack's only."""

    def prepare(patch: pytest.MonkeyPatch, tap: Tap, cell: Cell) -> dict[str, Any]:
        def faulty(folder: Path) -> Any:
            path = folder / file
            text = path.read_text(encoding="utf-8")
            path.write_text(write(text, tap(read(text))), encoding="utf-8")
            return load_suite(folder)

        news = finished._news

        def of_attack(controller: Any, suite: Any, attack: Any, kind: Any, *more: Any) -> Any:
            if kind == "attack":
                suite = faulty(suite.folder)
                (attack,) = suite.tier_attacks("standard")
            return news(controller, suite, attack, kind, *more)

        if cell.scope == "everywhere":
            patch.setattr(finished, "load_suite", faulty)
        else:
            patch.setattr(finished, "_news", of_attack)
        return {"more": "policy:\n" + "".join(f"  {name}: {value}\n" for name, value in POLICY.items())}

    return _fresh(prepare)


def _numbers(text: str) -> list[Any]:
    return [float(n) for n in NUMBER.findall(text.partition("domain:")[2])]


def _with_numbers(text: str, row: list[Any]) -> str:
    made, (version, domain, rest) = iter(row), text.partition("domain:")
    return version + domain + NUMBER.sub(lambda found: _number(next(made, None), found[0]), rest)


def _number(value: float | None, written: str) -> str:
    if value is None:
        return ""
    return written if value == float(written) else str(int(value)) if value == int(value) else repr(value)


def _overrides(patch: pytest.MonkeyPatch, tap: Tap, cell: Cell) -> dict[str, Any]:
    """The numbers that ``--rn-set`` gives: all of them, or those of the attack."""
    names = {**{f"policy.{name}": value for name, value in POLICY.items()}, "attack.steps": 200, "attack.learning_rate": 5e-4}
    chosen = {name: v for name, v in names.items() if cell.scope == "everywhere" or name.startswith("attack.")}
    made = tap([float(v) for v in chosen.values()])
    pairs = [f"{name}={_number(v, str(names[name]))}" for name, v in zip([*chosen] * 2, made, strict=False)]
    patch.setattr(finished, "load_suite", lambda folder: load_suite(folder, overrides=pairs))
    return {"overrides": tuple(pairs)}


def _conftest(patch: pytest.MonkeyPatch, tap: Tap, cell: Cell) -> dict[str, Any]:
    """The numbers of the policy by which cases are decided, which a conftest changes in memory."""
    of = finished._evidence

    def changed(kind: Any, *more: Any) -> Any:
        found = of(kind, *more)
        if cell.scope == "attack" and kind != "attack":
            return found
        names = list(POLICY)
        made = tap([float(getattr(found.policy, name)) for name in names])
        values = {n: int(v) if isinstance(getattr(found.policy, n), int) else v for n, v in zip(names, made, strict=False)}
        return found.model_copy(update={"policy": found.policy.model_copy(update=values)})

    patch.setattr(finished, "_evidence", changed)
    return {"plugins": (CONFTEST,), "allowed_plugins": (CONFTEST.name,)}


def _held_back(patch: pytest.MonkeyPatch, cell: Cell, change: Callable[[list[tuple[Any, ...]]], list[tuple[Any, ...]]]) -> None:
    """Passes the reports of the tests on to the controller at the end, as a hook of a plugin leaves them."""
    add, finish, reports = Controller.add, Controller.finish, list[tuple[Any, ...]]()

    def at_end(self: Controller) -> Any:
        met = [r for r in reports if cell.scope == "everywhere" or f"[{ATTACK}]" in r[0]]
        for report in [*(r for r in reports if r not in met), *change(met)]:
            add(self, *report)
        return finish(self)

    patch.setattr(Controller, "add", lambda self, *report: reports.append(report))
    patch.setattr(Controller, "finish", at_end)


def _reports(patch: pytest.MonkeyPatch, tap: Tap, cell: Cell) -> None:
    """Whole reports."""
    _held_back(patch, cell, tap)


def _outcomes(patch: pytest.MonkeyPatch, tap: Tap, cell: Cell) -> None:
    """The outcomes of reports."""
    _held_back(
        patch, cell, lambda met: [(*r[:2], outcome, *r[3:]) for r, outcome in zip(met, tap([r[2] for r in met]), strict=False)]
    )


def _news(patch: pytest.MonkeyPatch, tap: Tap, cell: Cell) -> None:
    """The news of cases that reports carry."""
    _held_back(patch, cell, lambda met: [(*r[:5], news) for r, news in zip(met, _filled(tap, [r[5] for r in met]), strict=True)])


def _filled(tap: Tap, row: list[Any]) -> list[Any]:
    return [*tap(row), *[None] * len(row)][: len(row)]


# ------------------------------------------------------------------------------------------------------------------------ store


def _stored(scene: Scene, cell: Cell, folder: Path) -> tuple[RunSession, Callable[[], Evidence]]:
    """A session with a store in this folder whose attack is the recorded one, and a function that asks for its case."""
    on = bench(scene.lab)
    lab = scene.lab
    declaration = lab.suite.declaration.model_copy(update={"policy": on.policy})
    prompts = {**lab.suite.prompts, "heldout": lab.heldout, "benign": on.panel.benign}
    suite = lab.suite.model_copy(update={"declaration": declaration, "prompts": prompts})
    defense = str(on.adapter(cell.subject))
    options = Options(model="organism", defense=defense, tier="smoke", base=scene.folder)
    session = RunSession(options, folder / "run", Store(scene.folder / "store"), lambda _: None)
    attack = lab.recipe.model_copy(update=QUICK)
    return session, lambda: session.case("attack", suite, attack).record.evidence


@contextmanager
def _measured_as_recorded(scene: Scene, cell: Cell) -> Iterator[None]:
    on = bench(scene.lab)

    def measure(self: Measuring) -> Any:
        return on.control.trajectory if self.task.kind == "control" else on.of(cell.subject).trajectory

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(Measuring, "measure", measure)
        yield


def _store(change: Callable[[Path, Tap, Trajectory], None]) -> Callable[[Scene, Tap, Cell], Result]:
    """Cells that read an attack, or its control too, from a store with faulty entries; a stale one is of an honest defense."""

    def carry_out(scene: Scene, tap: Tap, cell: Cell) -> Result:
        on = bench(scene.lab)
        with _measured_as_recorded(scene, cell):
            _stored(scene, cell, scene.folder / "first")[1]()
            entries = [p for p in (scene.folder / "store" / "case").iterdir() if p.is_dir()]
            attacked = [p for p in entries if '"defended_digest":null' not in (p / "trajectory.json").read_text(encoding="utf-8")]
            for entry in attacked if cell.scope == "attack" else entries:
                change(entry, tap, on.honest.trajectory)
            found = _stored(scene, cell, scene.folder / "second")[1]()
        return Result(found, found.trajectory == on.of(cell.subject).trajectory)

    return carry_out


def _files(entry: Path) -> list[Path]:
    return sorted(p for p in entry.iterdir() if p.is_file())


def _entry_files(entry: Path, tap: Tap, harmless: Trajectory) -> None:
    files = _files(entry)
    row = [(p.name, p.read_bytes()) for p in files]
    tap.remember([(n, harmless.model_dump_json().encode() if n == "trajectory.json" else content) for n, content in row], entry)
    for p in files:
        p.unlink()
    for name, content in tap(row, entry):
        (entry / name).write_bytes(content)


def _entry_scores(entry: Path, tap: Tap, harmless: Trajectory) -> None:
    """The scores in an entry's trajectory."""
    path = entry / "trajectory.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    scores = [s for c in document["checkpoints"] for s in c["scores"]]
    tap.remember([s.score for c in harmless.checkpoints for s in c.scores])
    for score, value in zip(scores, _filled(tap, [s["score"] for s in scores]), strict=True):
        score["score"] = value
    path.write_text(json.dumps(document), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------------------ pieces


def _moved(text: str, by: datetime.timedelta) -> str:
    return (datetime.datetime.fromisoformat(text) + by).isoformat()


NUMBERS = Nature("numbers", constant=lambda first: first, shift=lambda n: n + 3, scale=lambda n: n * 10)
MISSPELT = functools.partial(re.sub, r"(\w)(\"?:)", r"\1x\2", count=1)
LINES = Nature(
    "lines", constant=lambda first: first, shift=lambda line: f" {line}", rename=MISSPELT,
)  # fmt: skip
FILES = Nature(
    "files",
    constant=lambda first: first,
    shift=lambda of: (of[0], of[1][1:] + of[1][:1]),
    rename=lambda of: (f"{of[0]}x", of[1]),
)  # fmt: skip
RECORDED = Nature("scores", constant=lambda _: 0.0, shift=lambda s: max(0.0, s - 4.0), scale=lambda s: s / 10.0)
DOCUMENTS = Nature("checkpoints", constant=lambda first: first, shift=lambda c: c | {"step": c["step"] + 1})
TIMES = Nature(
    "times", constant=lambda first: first, shift=lambda t: _moved(t, datetime.timedelta(days=-400)),
    scale=lambda t: datetime.datetime.fromtimestamp(datetime.datetime.fromisoformat(t).timestamp() / 2, datetime.UTC).isoformat(),
    rename=lambda t: t.removesuffix("+00:00"),
)  # fmt: skip
PHASES = {"setup": "call", "call": "teardown", "teardown": "setup"}
REPORTS = Nature(
    "reports", constant=lambda first: first, shift=lambda r: (r[0], PHASES[r[1]], *r[2:]), rename=lambda r: (f"{r[0]}x", *r[1:])
)
OUTCOMES = Nature("outcomes", constant=lambda _: "passed", rename=lambda of: f"x{of}")
NEWS = Nature("news", constant=lambda first: first, rename=lambda news: news and {**news, "case_id": f"{news['case_id']}x"})

ONCE = {"stale": "it passes once, so that there is no older one"}

HOOKS: tuple[Hook, ...] = (
    Hook("record", "lines", LINES, _edited(_lines, _join)),
    Hook("record", "scores", RECORDED, _edited(_scores, _with_scores)),
    Hook("record", "checkpoints", DOCUMENTS, _edited(_checkpoints, _with_checkpoints)),
    Hook("record", "files", FILES, _files_of),
    Hook("clock", "times", TIMES, _edited(TIME.findall, _with_times, of_run=True)),
    Hook("suite file", "numbers", NUMBERS, _suite(_numbers, _with_numbers), senseless=ONCE),
    Hook("suite file", "lines", LINES, _suite(_lines, _join), senseless=ONCE),
    Hook("suite file", "prompts", LINES, _suite(_lines, _join, "prompts/heldout.yaml"), senseless=ONCE),
    Hook("option", "numbers", NUMBERS, _fresh(_overrides), senseless=ONCE),
    Hook("conftest", "numbers", NUMBERS, _fresh(_conftest, policy=NAMED), senseless=ONCE),
    Hook("hook", "reports", REPORTS, _fresh(_reports), senseless=ONCE),
    Hook("hook", "outcomes", OUTCOMES, _fresh(_outcomes), senseless=ONCE),
    Hook("hook", "news", NEWS, _fresh(_news), senseless=ONCE),
    Hook("store", "files", FILES, _store(_entry_files)),
    Hook("store", "scores", RECORDED, _store(_entry_scores)),
)


def baseline(scene: Scene, hook: Hook, subject: Subject) -> Made:
    """The result of a hook without any fault."""
    cell = Cell(hook, FAULTS[0], "everywhere", subject)
    folder = scene.folder / f"{hook.component}-{hook.name}-{subject}"
    folder.mkdir()
    return hook.carry_out(dataclasses.replace(scene, folder=folder), Tap(FAULTS[0], hook.nature, armed=False), cell).made
