"""Tampering: each field of each record and each file of a run is changed, one at a time, and verification must refuse it.

There are three adversaries. A careless one only changes a file, and the file's digest reveals it. A careful one also corrects
every digest and the statement; then the rest of the evidence must contradict the change, unless the field is listed in
``MEANINGLESS`` with a reason. Against a signature a careful adversary can do no more than a careless one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rn_harness.records.base import as_written
from rn_harness.records.case import CaseRecord
from rn_harness.records.run import STATEMENT, RunRecord
from rn_harness.release import integrity
from rn_harness.release.integrity import Refusal
from rn_harness.release.statement import ENVELOPE, sign_with_key, signed_with_key, statement_of, statement_text
from rn_harness.release.verification import Verification, verify
from rn_harness.spec.errors import RnHarnessError

from ..unit.finished_run import FinishedRun, finished_run  # noqa: TID252 - the tests are not a package
from ..unit.test_verification import key_files  # noqa: TID252 - the tests are not a package

HEX = re.compile(r"^[0-9a-f]{64}$")
TIME = re.compile(r"^(\d{4})(-\d\d-\d\dT.*)$")
LABEL = "a label for people; what it names is bound by digests"
CLOCK = "wall time, which no verdict looks at; the run's own end is what its age is taken from"
REPORTED = "reported and never judged; a signature binds it"
MEANINGLESS: dict[str, str] = {
    # record.json
    "wall_s": CLOCK,
    "provenance.tree": REPORTED,
    "provenance.attempts": "when it was tried; how often, and for how long in sum, the run's record says too",
    "provenance.training": "when it was tried; how often, and for how long in sum, the run's record says too",
    "evidence.report.settings": REPORTED,
    "evidence.report.recipe": REPORTED,
    "evidence.report.points.*.mean_words": REPORTED,
    "evidence.report.points.*.reward_mean": REPORTED,
    "evidence.report.points.*.minimal_refusal_share": "before convergence any share is as good as another",
    "evidence.report.points.*.reward_spread": "before convergence any spread is as good as another",
    "evidence.report.points.*.scored": "before convergence what was not scored changes nothing",
    "evidence.report.points.*.total": "before convergence what was not scored changes nothing",
    "evidence.trajectory.probes": "within its bound any reward is as good as another; a signature binds it",
    "evidence.trajectory.lesson": "above its bound any gain is as good as another; a signature binds it, and a suite its rate",
    "evidence.report.prompts": "the suite says which they have to be: `verify --suite` compares",
    "evidence.report.resumed": REPORTED,
    # run.json
    "name": LABEL,
    "options.model": LABEL,
    "options.defense": LABEL,
    "options.second_judge": LABEL,
    "options.base": LABEL,
    "options.strength": LABEL,
    "options.private_prompts": LABEL,
    "options.recipe": LABEL,
    "options.chat_template": LABEL,
    "options.arguments": LABEL,
    "options.acknowledge": LABEL,
    "options.transcripts": LABEL,
    "options.shipped": "how the command named its suites; each suite's digest is bound",
    "options.quantise": "of each case the candidate's identity says it, which is bound",
    "options.shard": "where the weights lay; of each training its settings say it, and they are bound",
    "options.sampler": "of each case its settings say it, which are bound",
    "options.fleet": "of each case its settings say whether it was run in one, and they are bound",
    "options.allowed_plugins": "whom the user answered for; a release's policy names them again, by digest",
    "options.executor": "who made the cases, which are bound",
    "options.joined": "which part each case came from; its record is bound",
    "defended": "where the weights lay; which they are is bound by digests",
    "exported": "where the weights were copied to; which they are is bound by digests",
    "provenance.tool": "the version's name; the sources' digest is what is compared",
    "provenance.trees": REPORTED,
    "coverage.*.not_run": "what was not run follows from the suite, whose digest is bound",
    "cases.*.nodeid": LABEL,
    "cases.*.stored": "where the measurement came from; it is the same one",
    "cases.*.note": LABEL,
    "started of the run": "an earlier beginning makes nothing younger: age is that of the oldest measurement",
    "ended of the run": "a day later is as good a day; one in the future, or too long ago, is refused",
}

EVERY = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["one per field", "every change"]
)


@dataclass(frozen=True)
class Mutation:
    """One change of a document.

    Attributes:
        path: keys and indices of the changed value.
        what: description of the change.
        apply: applies the change to a document.
    """

    path: tuple[str | int, ...]
    what: str
    apply: Callable[[Any], None]

    @property
    def field(self) -> str:
        """The path, with ``*`` for indices."""
        return ".".join("*" if isinstance(part, int) else part for part in self.path)


def _others(value: Any) -> list[Any]:
    """Other plausible values of the same kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value / 2 + 0.0625]
    if value is None:
        return ["x", 0]
    if HEX.match(value):
        return [("1" if value[0] == "0" else "0") + value[1:]]
    if time := TIME.match(value):
        return [f"{int(time[1]) - 1}{time[2]}"]
    swapped = {"PASS": "FAIL", "FAIL": "PASS", "INCONCLUSIVE": "PASS", "smoke": "full", "standard": "full"}
    return [swapped.get(value, value + "x")]


def _at(document: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        document = document[part]
    return document


def _setter(path: tuple[str | int, ...], value: Any) -> Callable[[Any], None]:
    def apply(document: Any) -> None:
        _at(document, path[:-1])[path[-1]] = copy.deepcopy(value)

    return apply


def _dropper(path: tuple[str | int, ...]) -> Callable[[Any], None]:
    def apply(document: Any) -> None:
        del _at(document, path[:-1])[path[-1]]

    return apply


def _doubler(path: tuple[str | int, ...]) -> Callable[[Any], None]:
    def apply(document: Any) -> None:
        row = _at(document, path)
        row.append(copy.deepcopy(row[-1]))

    return apply


def mutations(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[Mutation]:
    """Changes and drops every field, and drops and doubles the last entry of every list; only last entries are descended."""
    node = _at(document, path)
    if path and isinstance(path[-1], str):
        yield Mutation(path, "dropped", _dropper(path))
    if isinstance(node, dict):
        for key in node:
            yield from mutations(document, (*path, key))
    elif isinstance(node, list):
        if node:
            last = len(node) - 1
            yield Mutation((*path, last), "dropped", _dropper((*path, last)))
            yield Mutation((*path, last), "doubled", _doubler(path))
            yield from mutations(document, (*path, last))
        else:
            yield Mutation(path, "filled", _setter(path, ["x"]))
    else:
        for other in _others(node):
            yield Mutation(path, f"{node!r} -> {other!r}", _setter(path, other))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run that is releasable."""
    return finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(made: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A copy of the releasable run that a test may change."""
    shutil.copytree(made.folder, tmp_path / "run")
    return FinishedRun(tmp_path / "run", made.weights, made.suite, made.record)


@pytest.fixture
def swift(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and checks unchanged records once for all mutations, and reads a changed one once for the adversary and the job."""
    read, examine = integrity.read_record, integrity.check_record
    known = {path.read_bytes(): read(path.read_bytes(), CaseRecord) for path in run.folder.glob("cases/*/record.json")}
    unchanged, examined = {id(record) for record in known.values()}, dict[tuple[int, bytes], list[Refusal]]()
    latest = _LATEST
    latest.clear()

    def read_once(raw: bytes, kind: type[Any]) -> Any:
        if raw in known:
            return known[raw]
        if latest.get(kind, (None, None))[0] != raw:
            try:
                latest[kind] = raw, read(raw, kind)
            except (RnHarnessError, ValueError, RecursionError) as error:
                latest[kind] = raw, error
        if isinstance(latest[kind][1], Exception):
            raise latest[kind][1]
        return latest[kind][1]

    monkeypatch.setattr(integrity, "read_record", read_once)

    def check_once(path: Path, record: CaseRecord) -> list[Refusal]:
        journal = path.with_name("checkpoints.jsonl")
        if id(record) not in unchanged or not journal.is_file():
            return examine(path, record)
        key = id(record), journal.read_bytes()
        if key not in examined:
            examined[key] = examine(path, record)
        return examined[key]

    monkeypatch.setattr(integrity, "check_record", check_once)


def check(run: FinishedRun, **more: Any) -> Verification:
    """Verifies a run as a release job does."""
    return verify(run.folder, weights=run.weights, **more)


def mend(run: FinishedRun) -> None:
    """Corrects all digests and the statement after a change, as a careful adversary does."""
    path = run.folder / "run.json"
    document = json.loads(path.read_text())
    for name in document.get("files", ()):
        if (run.folder / name).is_file():
            document["files"][name] = hashlib.sha256((run.folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(document))
    # Keep the old statement if none can be made.
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError, AttributeError, IndexError):
        record = RunRecord.model_validate_json(path.read_text())
        cases = [integrity.read_record((run.folder / str(line.record)).read_bytes(), CaseRecord) for line in record.cases]
        made = statement_of(record, cases, hashlib.sha256(path.read_bytes()).hexdigest())
        (run.folder / STATEMENT).write_text(statement_text(made))


@contextlib.contextmanager
def put_back(folder: Path, *names: str) -> Iterator[None]:
    """Restores these files afterwards."""
    kept = {name: (folder / name).read_bytes() for name in names}
    try:
        yield
    finally:
        for name, raw in kept.items():
            (folder / name).write_bytes(raw)


def _told(field: str, where: str) -> str:
    """A field's name; times that both runs and cases have are qualified."""
    return f"{field} of {'the run' if where == 'run.json' else 'a case'}" if field in ("started", "ended") else field


def means_nothing(field: str, where: str) -> bool:
    """True if a field is listed as meaningless or is a part of a listed field."""
    field = _told(field, where)
    return any(field == known or field.startswith(f"{known}.") for known in MEANINGLESS)


def one_per_field(made: Iterable[Mutation], known: Container[str] = ()) -> list[Mutation]:
    """One of the changes of each field that is not known, chosen by the field's name; a dropped field is refused on reading."""
    of_field: dict[str, list[Mutation]] = {}
    for mutation in made:
        if mutation.field not in known:
            of_field.setdefault(mutation.field, []).append(mutation)
    live = {field: [c for c in changes if c.what != "dropped"] or changes for field, changes in of_field.items()}
    return [changes[zlib.crc32(field.encode()) % len(changes)] for field, changes in live.items()]


def _along(node: Any, path: tuple[str | int, ...]) -> Any:
    """A copy of a document that shares everything that is not on the path or at its end."""
    if not path:
        return copy.deepcopy(node)
    made = copy.copy(node)
    made[path[0]] = _along(node[path[0]], path[1:])
    return made


def _readable(document: Any, kind: type[Any], path: Path) -> bool:
    """Writes a changed record; False if a verification refuses it already when it reads it, whatever its digests are."""
    try:
        record = as_written(document, kind)
    except (RnHarnessError, ValueError, RecursionError):
        return False
    raw = json.dumps(document).encode()
    path.write_bytes(raw)
    _LATEST[kind] = raw, record
    return True


def survivors(run: FinishedRun, name: str, chosen: Iterable[Mutation] | None = None) -> list[str]:
    """Those of the chosen changes of one file, or of all, that verification accepts from a careful adversary."""
    path = run.folder / name
    plain = json.loads(path.read_text())
    found = []
    with put_back(run.folder, name, "run.json", STATEMENT):
        for mutation in mutations(plain) if chosen is None else chosen:
            document = _along(plain, mutation.path)
            mutation.apply(document)
            if not _readable(document, RunRecord if name == "run.json" else CaseRecord, path):
                continue
            mend(run)
            undone = name == "run.json" and json.loads(path.read_text()) == plain  # a corrected digest
            if not undone and not check(run).refusals:
                found.append(f"{mutation.field}: {mutation.what}")
            for kept in (name, "run.json", STATEMENT):
                (run.folder / kept).write_bytes(_kept(run, kept))
    return found


_KEPT: dict[Path, bytes] = {}
_LATEST: dict[type, tuple[bytes, Any]] = {}
"""The last changed record of each kind, as text and as read."""


def _kept(run: FinishedRun, name: str) -> bytes:
    return _KEPT[run.folder / name]


@pytest.fixture(autouse=True)
def _keep(run: FinishedRun) -> Iterator[None]:
    _KEPT.update({path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()})
    yield
    _KEPT.clear()


def test_an_untouched_run_is_verified(run: FinishedRun) -> None:
    """The unchanged run, from which the mutations start, is verified."""
    assert check(run).refusals == ()


@pytest.mark.usefixtures("swift")
def test_every_byte_of_every_file_is_bound(run: FinishedRun) -> None:
    """A flipped bit, a cut-off end or a missing file is refused, for each file of the run and the weights."""
    files = [p for folder in (run.folder, run.weights) for p in sorted(folder.rglob("*")) if p.is_file()]
    assert len(files) == 15
    for path in files:
        raw = path.read_bytes()
        middle = len(raw) // 2
        for what, other in (
            ("flipped", raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]),
            ("first byte", bytes([raw[0] ^ 1]) + raw[1:]),
            ("truncated", raw[:-1] if raw[-1:] != b"\n" else raw[:-2]),
            ("empty", b""),
            ("gone", None),
        ):
            path.unlink()
            if other is not None:
                path.write_bytes(other)
            assert check(run).refusals, (path, what)
            path.write_bytes(raw)
    assert check(run).refusals == ()


@pytest.mark.usefixtures("swift")
@EVERY
@pytest.mark.parametrize("kind", ["run.json", "attack", "candidate", "control", "defense", "helpfulness"])
def test_a_meaningful_change_is_refused_even_if_every_digest_is_corrected(run: FinishedRun, kind: str, *, every: bool) -> None:
    """Every accepted change by a careful adversary without a key is of a field listed as meaningless.

    One change per field takes those fields of the other cases that an attack's record does not have, and a quarter of the fields
    of the control in the attack's record, which has the fields of the attack's trajectory.
    """
    name = kind if kind == "run.json" else _record(run, kind)
    chosen = list(mutations(json.loads(_kept(run, name))))
    if not every and kind != "run.json":
        attack = mutations(json.loads(_kept(run, _record(run, "attack"))))
        chosen = one_per_field(chosen, {m.field for m in attack} if kind != "attack" else ())
        chosen = [m for m in chosen if not m.field.startswith("evidence.control.") or zlib.crc32(m.field.encode()) % 4 == 0]
    found = survivors(run, name, chosen)
    assert [text for text in found if not means_nothing(text.partition(":")[0], kind)] == []


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["one per field", "every change"])
def test_a_restrained_attack_is_bound_like_the_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, every: bool) -> None:
    """A careful adversary can change nothing of the restrained attack that decides a case.

    One change per field is of the fields of the restrained attack itself; a soak test changes their parts and the control's.
    """
    run = finished_run(tmp_path / "restrained", restrained=1)
    assert run.record.releasable, run.record.why_not
    assert check(run).refusals == ()
    _KEPT.update({path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()})
    swift.__wrapped__(run, monkeypatch)  # type: ignore[attr-defined]
    name = _record(run, "attack")
    chosen = [m for m in mutations(json.loads(_kept(run, name))) if m.field.startswith("evidence.restrained")]
    outer = one_per_field(m for m in chosen if m.field.startswith("evidence.restrained.*.attack.") and m.field.count(".") == 4)
    assert survivors(run, name, chosen if every else outer) == []


def test_every_field_that_is_listed_is_there(run: FinishedRun) -> None:
    """Every field listed as meaningless exists in a record."""
    fields = {_told(m.field, name)
              for name in ("run.json", *(_record(run, kind) for kind in ("defense", "attack")))
              for m in mutations(json.loads((run.folder / name).read_text()))}  # fmt: skip
    assert [known for known in MEANINGLESS if not any(f == known or f.startswith(f"{known}.") for f in fields)] == []


@pytest.mark.usefixtures("swift")
def test_every_field_of_the_statement_is_bound(run: FinishedRun) -> None:
    """A change of any field of the statement is refused, because the statement must follow from the records."""
    path = run.folder / STATEMENT
    plain = json.loads(path.read_text())
    for mutation in mutations(plain):
        document = copy.deepcopy(plain)
        mutation.apply(document)
        path.write_text(json.dumps(document))
        assert {r.code for r in check(run).refusals} == {"statement_differs"}, mutation


@pytest.mark.usefixtures("swift")
def test_a_signature_binds_what_the_rest_cannot(run: FinishedRun, tmp_path: Path) -> None:
    """With a signature a careful adversary's change of a meaningless field is refused too."""
    signed = signed_by(run, *key_files(tmp_path))
    assert check(run, signed=signed).refusals == ()
    name = _record(run, "defense")
    for where, field in ((name, "wall_s"), ("run.json", "name")):
        document = json.loads(_kept(run, where))
        document[field] = 1.0 if field == "wall_s" else "x"
        (run.folder / where).write_text(json.dumps(document))
        mend(run)
        assert check(run).refusals == (), field
        assert {r.code for r in check(run, signed=signed).refusals} == {"signature"}, field
        for kept in (where, "run.json", STATEMENT):
            (run.folder / kept).write_bytes(_kept(run, kept))


def test_every_field_of_the_envelope_is_bound(run: FinishedRun, tmp_path: Path) -> None:
    """A changed, truncated or missing envelope is not a signature."""
    signed, path = signed_by(run, *key_files(tmp_path)), run.folder / ENVELOPE
    raw = path.read_bytes()
    plain = json.loads(raw)
    for mutation in mutations(plain):
        document = copy.deepcopy(plain)
        mutation.apply(document)
        path.write_text(json.dumps(document))
        assert {r.code for r in check(run, signed=signed).refusals} == {"signature"}, mutation
    path.write_bytes(raw[: len(raw) // 2])
    assert {r.code for r in check(run, signed=signed).refusals} == {"signature"}
    path.unlink()
    assert {r.code for r in check(run, signed=signed).refusals} == {"signature"}


@EVERY
def test_no_change_turns_a_breach_into_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, every: bool) -> None:
    """No change of a failed run's record, or of the attack's verdict, makes it verified; of all others by default one a field."""
    failed = finished_run(tmp_path / "failed", level=5.0)
    assert failed.record.outcome == "FAIL"
    _KEPT.update({path: path.read_bytes() for path in failed.folder.rglob("*") if path.is_file()})
    swift.__wrapped__(failed, monkeypatch)  # type: ignore[attr-defined]
    outcomes = ("outcome", "releasable", "cases.*.outcome", "verdict.outcome")
    of_run = list(mutations(json.loads(_kept(failed, "run.json"))))
    central = [of for of in of_run if of.field in outcomes]
    assert survivors(failed, "run.json", None if every else [*central, *one_per_field(of_run)]) == []
    name = _record(failed, "attack")
    deciding = ("verdict.", "evidence.policy.", "evidence.standing", "evidence.exact_judge")
    chosen = [of for of in mutations(json.loads(_kept(failed, name))) if of.field.startswith(deciding)]
    central = [of for of in chosen if of.field in outcomes]
    assert {of.what for of in central} - {"dropped"}
    assert survivors(failed, name, chosen if every else [*central, *one_per_field(chosen)]) == []


def _record(run: FinishedRun, kind: str) -> str:
    (path,) = run.folder.glob(f"cases/demo-{kind}*/record.json")
    return path.relative_to(run.folder).as_posix()


def signed_by(run: FinishedRun, private: Path, public: Path) -> Callable[[], bytes]:
    """Signs the statement and returns the function that checks the signature."""
    sign_with_key((run.folder / STATEMENT).read_bytes(), private, None, run.folder / ENVELOPE)
    return lambda: signed_with_key(run.folder / ENVELOPE, public)
