"""The store: addresses, whole entries, damaged entries, one maker at a time."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from rn_harness.records.keys import content_key
from rn_harness.spec.errors import StoreError
from rn_harness.store.store import MANIFEST, Journal, Store, check_room, default_root, digests_of, write_text

KEY = content_key("case", {"model": "x"})
OTHER = content_key("case", {"model": "y"})
given_lines = hypothesis.given(
    lines=st.lists(st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1), min_size=1, max_size=5),
    cut=st.integers(min_value=0),
)


def two_files(folder: Path) -> None:
    """What an entry holds in these tests."""
    (folder / "a.json").write_text("{}", encoding="utf-8")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.bin").write_bytes(bytes(range(256)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one entry."""
    store = Store(tmp_path / "store")
    store.put("case", KEY, two_files)
    return store


def everything(store: Store) -> set[str]:
    """All names below the store's root, locks left out."""
    names = {p.relative_to(store.root).as_posix() for p in store.root.rglob("*")}
    return {name for name in names if not name.startswith("locks")}


# ---------------------------------------------------------------------------------------------------------------- keys

PARTS = {"model": "m", "recipe": {"steps": 200, "learning_rate": 5e-4}, "prompts": ["p1", "p2"]}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("defense", {}),
        ("case", {"model": "n"}),
        ("case", {"recipe": {"steps": 201, "learning_rate": 5e-4}}),
        ("case", {"recipe": {"steps": 200, "learning_rate": 5.000001e-4}}),
        ("case", {"recipe": {"steps": 200}}),
        ("case", {"prompts": ["p2", "p1"]}),
        ("case", {"prompts": ["p1", "p2", "p3"]}),
        ("case", {"prompts": []}),
        ("case", {"more": None}),
        ("case", {"model": None}),
        ("case", {"model": ["m"]}),
    ],
)
def test_key_changes_with_any_part(kind: str, changes: dict) -> None:
    """Another kind, another value, another order of a list, or one more part is another address."""
    assert content_key(kind, PARTS | changes) != content_key("case", PARTS)


def test_key_ignores_the_order_of_names() -> None:
    """The order in which parts are named does not matter, at any depth."""
    turned = {"prompts": ["p1", "p2"], "recipe": {"learning_rate": 5e-4, "steps": 200}, "model": "m"}
    assert content_key("case", turned) == content_key("case", PARTS)
    assert len(KEY) == 64
    assert set(KEY) <= set("0123456789abcdef")


def test_key_cannot_be_a_number_that_is_none() -> None:
    """NaN has no address: it would equal nothing, itself included."""
    with pytest.raises(ValueError, match="JSON compliant"):
        content_key("case", {"learning_rate": float("nan")})


@pytest.mark.parametrize("part", ["kind", "version", "key"])
def test_key_keeps_kind_and_parts_apart(part: str) -> None:
    """A part of whatever name does not replace the kind: two kinds with equal parts have two addresses."""
    assert content_key("case", {part: "defense"}) != content_key("defense", {part: "defense"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PART_SETS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


@hypothesis.given(PART_SETS, PART_SETS)
def test_equal_keys_have_equal_parts(a: dict, b: dict) -> None:
    """Two addresses are equal exactly if their parts are, written as JSON."""
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (content_key("case", a) == content_key("case", b)) == same
    assert content_key("case", a) == content_key("case", json.loads(json.dumps(a)))


# ------------------------------------------------------------------------------------------------------------- put, get


def test_round_trip(store: Store) -> None:
    """An entry comes back with the contents that it was given, from another object too."""
    folder = Store(store.root).get("case", KEY)
    assert folder == store.root / "case" / KEY
    assert (folder / "a.json").read_text(encoding="utf-8") == "{}"
    assert (folder / "sub" / "b.bin").read_bytes() == bytes(range(256))
    assert everything(store) == {"case", *(f"case/{KEY}{rest}" for rest in ("", "/a.json", "/sub", "/sub/b.bin", f"/{MANIFEST}"))}


def test_other_addresses_are_empty(store: Store) -> None:
    """Another key, and the same key of another kind, are not there, and asking leaves no trace."""
    before = everything(store)
    assert store.get("case", OTHER) is None
    assert store.get("defense", KEY) is None
    assert everything(store) == before


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    """A store that was never written to has no entry, and no folder."""
    assert Store(tmp_path / "none").get("case", KEY) is None
    assert not (tmp_path / "none").exists()


def test_second_put_replaces(store: Store) -> None:
    """An entry that is put again holds the new files alone."""
    folder = store.put("case", KEY, lambda into: (into / "c.json").write_text("1", encoding="utf-8"))
    assert {p.name for p in folder.iterdir()} == {"c.json", MANIFEST}
    assert store.get("case", KEY) == folder


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failed_write_leaves_nothing(store: Store, error: type[BaseException]) -> None:
    """An exception while an entry is written passes through, and leaves neither the entry nor a part of it."""
    before = everything(store)

    def write(folder: Path) -> None:
        two_files(folder)
        raise error

    with pytest.raises(error):
        store.put("case", OTHER, write)
    assert store.get("case", OTHER) is None
    assert everything(store) == before


def test_failed_rewrite_keeps_the_old_entry(store: Store) -> None:
    """An exception while an entry is written again keeps the one that was there."""

    def write(folder: Path) -> None:
        (folder / "a.json").write_text("half", encoding="utf-8")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.put("case", KEY, write)
    assert (store.get("case", KEY) / "a.json").read_text(encoding="utf-8") == "{}"


def test_an_entry_that_cannot_be_replaced_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the new entry cannot take its place, the old one is put back, and nothing else is left."""
    before, sound = everything(store), Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == store.root / "case" / KEY and (self / "c.json").exists():
            raise OSError(errno.EIO, "no")
        return sound(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        store.put("case", KEY, lambda into: (into / "c.json").write_text("1", encoding="utf-8"))
    assert store.get("case", KEY) is not None
    assert everything(store) == before


def test_removal_leaves_nothing(store: Store) -> None:
    """A removed entry is gone; what is not there is removed without a word."""
    for _ in range(2):
        store.remove("case", KEY)
        assert everything(store) == {"case"}


def test_entry_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    """While an entry is written, others do not find it."""
    store = Store(tmp_path)
    seen = []

    def write(folder: Path) -> None:
        two_files(folder)
        seen.append(store.get("case", KEY))

    store.put("case", KEY, write)
    assert seen == [None]
    assert store.get("case", KEY) is not None


# -------------------------------------------------------------------------------------------------------------- damage


def manifest(text: str | bytes) -> Callable[[Path], object]:
    """Replaces the manifest."""
    return lambda folder: (folder / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())


def manifest_with(**changes: object) -> Callable[[Path], object]:
    """Changes fields of the manifest."""
    return lambda folder: (folder / MANIFEST).write_text(
        json.dumps(json.loads((folder / MANIFEST).read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )


def file_becomes_folder(folder: Path) -> None:
    """A folder in place of a file."""
    (folder / "a.json").unlink()
    (folder / "a.json").mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "byte-changed": lambda folder: (folder / "sub" / "b.bin").write_bytes(bytes(255) + b"\x01"),
    "file-cut": lambda folder: (folder / "sub" / "b.bin").write_bytes(bytes(range(100))),
    "file-emptied": lambda folder: (folder / "a.json").write_bytes(b""),
    "file-missing": lambda folder: (folder / "a.json").unlink(),
    "file-added": lambda folder: (folder / "more").touch(),
    "file-moved": lambda folder: (folder / "a.json").rename(folder / "sub" / "a.json"),
    "file-becomes-folder": file_becomes_folder,
    "manifest-missing": lambda folder: (folder / MANIFEST).unlink(),
    "manifest-empty": manifest(""),
    "manifest-cut": manifest('{"version": 1, "files": {"a.js'),
    "manifest-not-utf-8": manifest(b"\xff\xfe"),
    "manifest-a-list": manifest("[]"),
    "manifest-a-number": manifest("1"),
    "manifest-without-files": manifest("{}"),
    "manifest-files-null": manifest_with(files=None),
    "manifest-files-a-list": manifest_with(files=["a.json", "sub/b.bin"]),
    "manifest-digest-null": manifest_with(files={"a.json": None, "sub/b.bin": None}),
    "manifest-of-another-key": manifest_with(key=OTHER),
    "manifest-of-another-kind": manifest_with(kind="defense"),
    "manifest-of-another-version": manifest_with(version=2),
    "all-files-missing": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_entry_is_set_aside(store: Store, damage: Callable[[Path], object]) -> None:
    """A damaged entry is renamed with a warning, is not found, and can be made anew."""
    damage(store.root / "case" / KEY)
    with pytest.warns(UserWarning, match=r"a stored case was damaged \(.+\); set aside as .+, it is made anew"):
        assert store.get("case", KEY) is None
    assert [p.name for p in (store.root / "case").iterdir()] == [f"{KEY}.damaged"]
    with warnings.catch_warnings(action="error"):
        assert store.get("case", KEY) is None
        store.put("case", KEY, two_files)
        assert store.get("case", KEY) is not None


def test_second_damage_replaces_the_first(store: Store) -> None:
    """Of an entry that is damaged twice, the last one is kept aside."""
    for content in ("first", "second"):
        store.put("case", KEY, two_files)
        (store.root / "case" / KEY / "a.json").write_text(content, encoding="utf-8")
        with pytest.warns(UserWarning, match=r"a\.json changed"):
            store.get("case", KEY)
    aside = store.root / "case" / f"{KEY}.damaged"
    assert (aside / "a.json").read_text(encoding="utf-8") == "second"


def test_entry_under_another_address_is_not_taken(store: Store) -> None:
    """A whole entry that was copied to another address is another result there, and is not taken."""
    shutil.copytree(store.root / "case" / KEY, store.root / "case" / OTHER)
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get("case", OTHER) is None
    assert store.get("case", KEY) is not None


# --------------------------------------------------------------------------------------------------------------- files


def test_write_text_replaces_whole_files(tmp_path: Path) -> None:
    """A file is written and replaced whole, readable by all, with nothing left beside it."""
    path = tmp_path / "run.json"
    for text in ("first \u00e9\n", "second"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_text_keeps_the_old_file(tmp_path: Path) -> None:
    """A text that cannot be written leaves the old file as it was, and nothing beside it."""
    path = tmp_path / "run.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_old_or_new(tmp_path: Path) -> None:
    """While a file is replaced again and again, a reader never sees a part or no file."""
    path = tmp_path / "junit.xml"
    texts = {"a" * 50_000, "b" * 90_000}
    write_text(path, min(texts))
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text(encoding="utf-8"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for text in texts:
            write_text(path, text)
    done.set()
    reader.join()
    assert seen
    assert seen <= texts


# --------------------------------------------------------------------------------------------------------------- locks


def test_one_makes_and_the_others_find(tmp_path: Path) -> None:
    """Of four that need an entry at once, one makes it, and all get it."""
    made: list[int] = []
    got: list[Path | None] = []
    start = threading.Barrier(4)

    def need(number: int) -> None:
        store = Store(tmp_path)
        start.wait()
        with store.locked("defense", KEY):
            if store.get("defense", KEY) is None:
                made.append(number)
                store.put("defense", KEY, two_files)
        got.append(store.get("defense", KEY))

    threads = [threading.Thread(target=need, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert got == [tmp_path / "defense" / KEY] * 4


def test_locks_of_other_entries_do_not_wait(tmp_path: Path) -> None:
    """While one entry is made, another can be, and the same key of another kind."""
    store = Store(tmp_path)
    with store.locked("case", KEY), store.locked("case", OTHER), store.locked("defense", KEY):
        entered = True
    assert entered


def test_lock_is_freed_by_an_exception(tmp_path: Path) -> None:
    """A maker that fails does not leave the others waiting."""
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="x001"), store.locked("case", KEY):
        raise RuntimeError("x001")
    freed = threading.Event()

    def enter() -> None:
        with Store(tmp_path).locked("case", KEY):
            freed.set()

    threading.Thread(target=enter, daemon=True).start()
    assert freed.wait(timeout=5)


def test_unwritable_store_says_what_to_set(tmp_path: Path) -> None:
    """A store that cannot be written to raises StoreError with its root and the variable to set."""
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    with pytest.raises(StoreError, match=rf"root={tmp_path}/file: .*; set RN_HARNESS_CACHE"), store.locked("case", KEY):
        pass


def test_default_root_is_what_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RN_HARNESS_CACHE names the store; without it, it lies in the user's cache folder."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("RN_HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "rn-harness"


def _make_ten(root: Path, made: Path, number: int) -> None:
    """Needs ten entries, makes those that are not there, and checks the digest of what it reads."""
    store = Store(root)
    for index in range(10):
        key = content_key("defense", {"index": index})
        with store.locked("defense", key):
            if store.get("defense", key) is None:

                def write(folder: Path, index: int = index) -> None:
                    (folder / "adapter.bin").write_bytes(bytes([index]) * 100_000)

                store.put("defense", key, write)
                (made / f"{index}-{number}").touch()
        entry = store.get("defense", key)
        assert entry is not None
        assert (entry / "adapter.bin").read_bytes() == bytes([index]) * 100_000


def test_eight_processes_share_entries_without_a_race(tmp_path: Path) -> None:
    """Eight processes that need the same ten entries at once: each is made once, and each process reads all of them whole."""
    made = tmp_path / "made"
    made.mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make_ten, args=(tmp_path / "store", made, n)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert sorted(int(path.name.partition("-")[0]) for path in made.iterdir()) == list(range(10))
    assert all(entry.whole for entry in Store(tmp_path / "store").entries())


def test_a_maker_that_is_killed_leaves_no_entry_and_no_lock(tmp_path: Path) -> None:
    """SIGKILL between the files and the rename: the entry is not there, the next one makes it, and what is left can be pruned."""
    store = Store(tmp_path)

    def die() -> None:
        def write(folder: Path) -> None:
            two_files(folder)
            os.kill(os.getpid(), signal.SIGKILL)

        with store.locked("defense", KEY):
            store.put("defense", KEY, write)

    killed = multiprocessing.get_context("fork").Process(target=die)
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert store.get("defense", KEY) is None
    with store.locked("defense", KEY):  # nobody holds it
        store.put("defense", KEY, two_files)
    left = [entry for entry in store.entries() if not entry.whole]
    assert len(left) == 1
    assert left[0].size == 2 + 256


# ------------------------------------------------------------------------------------------------------------- journals


def test_a_journal_leaves_what_was_measured(tmp_path: Path) -> None:
    """Lines stand on disk as soon as they are added; an attempt that repeats them writes nothing and goes on after them."""
    store = Store(tmp_path)
    cut = store.journal(KEY)
    cut.add("one")
    cut.add("two")
    cut.path.write_text(cut.path.read_text() + "thr", encoding="utf-8")  # a line that was cut by a full disk
    again = store.journal(KEY)
    assert again.earlier == ("one", "two")
    for line in ("one", "two", "three"):
        again.add(line)
    assert again.differs_at is None
    assert again.path.read_text(encoding="utf-8") == "one\ntwo\nthree\n"
    again.close()
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_a_journal_that_is_not_repeated_keeps_both(tmp_path: Path) -> None:
    """From the first other line on the attempt differs; the earlier lines stay beside its own, also the second time."""
    for attempt, lines in enumerate((["one", "two"], ["one", "TWO"], ["one", "2"])):
        journal = Store(tmp_path).journal(KEY)
        for line in lines:
            journal.add(line)
        assert journal.differs_at == (1 if attempt else None)
    kept = {path.name.partition(".jsonl")[2]: path.read_text() for path in (tmp_path / "unfinished").iterdir()}
    assert kept == {"": "one\n2\n", ".1": "one\ntwo\n", ".2": "one\nTWO\n"}


@given_lines
def test_a_cut_anywhere_is_repeated(tmp_path_factory: pytest.TempPathFactory, lines: list[str], cut: int) -> None:
    """For every attempt and every byte at which its file is cut, repeating it differs nowhere and ends with all lines."""
    store = Store(tmp_path_factory.mktemp("journal"))
    first = store.journal(KEY)
    for line in lines:
        first.add(line)
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[: cut % (len(whole) + 1)])
    again = store.journal(KEY)
    for line in lines:
        again.add(line)
    assert again.differs_at is None
    assert Journal.at(again.path).earlier == tuple(lines)


# ------------------------------------------------------------------------------------------------- what changed, pruning


def test_what_changed_is_named(tmp_path: Path) -> None:
    """Of the stored entries of the same case the most alike is compared, part by part; no text of a part is kept."""
    store = Store(tmp_path)
    parts = {"case": "attack", "policy": {"samples": 3, "votes": 4}, "prompts": {"attack": ["a text"]}, "candidate": "c1"}
    assert store.changed("case", parts) is None
    store.put("case", content_key("case", parts), two_files, parts)
    assert store.changed("case", parts | {"policy": {"samples": 7, "votes": 4}}) == ["policy.samples"]
    assert store.changed("case", parts | {"candidate": "c2", "prompts": {"attack": ["b"]}}) == ["candidate", "prompts.attack"]
    other = parts | {"candidate": "c2"}
    store.put("case", content_key("case", other), two_files, other)
    assert store.changed("case", other | {"policy": {"votes": 4}}) == ["policy.samples"]
    assert store.changed("case", parts | {"case": "control"}) is None
    assert store.changed("defense", parts) is None
    assert "a text" not in "".join(p.read_text() for p in tmp_path.rglob(MANIFEST))
    assert all(len(digest) == 64 for digest in digests_of(parts).values())


def test_a_foreign_manifest_does_not_disturb(store: Store) -> None:
    """An entry without parts, or with a manifest that cannot be read, is passed over."""
    manifest("[1]")(store.root / "case" / KEY)
    assert store.changed("case", PARTS) is None


def test_prune_removes_what_was_not_used(store: Store) -> None:
    """What was read or written within the days stays; entries, journals and leftovers that are older go, and nothing else."""
    store.put("case", OTHER, two_files)
    store.journal(KEY).add("line")
    leftover = store.root / "defense" / f".{KEY[:12]}.abc"
    leftover.mkdir(parents=True)
    damaged = store.root / "case" / f"{KEY}.damaged"
    damaged.mkdir()
    long_ago = time.time() - 40 * 86_400
    for path in (store.root / "case" / KEY / MANIFEST, store.root / "case" / OTHER / MANIFEST, leftover, damaged):
        os.utime(path, (long_ago, long_ago))
    assert store.get("case", OTHER) is not None  # read, hence used
    names = {(e.kind, e.name, e.whole) for e in store.entries()}
    assert names == {
        ("case", KEY, True), ("case", OTHER, True), ("case", damaged.name, False), ("defense", leftover.name, False),
        ("unfinished", f"{KEY}.jsonl", False),
    }  # fmt: skip
    assert {e.path for e in store.prune(30)} == {store.root / "case" / KEY, leftover, damaged}
    assert {e.name for e in store.entries()} == {OTHER, f"{KEY}.jsonl"}
    assert len(store.prune(0)) == 2
    assert store.entries() == []


# ----------------------------------------------------------------------------------------------------------------- room


def test_room_is_asked_for_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is of a path is tried by writing, and nothing is left; too little space, or no folder, says what to set."""
    check_room(tmp_path / "new" / "folder", 1)
    assert list(tmp_path.iterdir()) == []
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(StoreError, match=r"MiB free for \d+ in .*make room"):
        check_room(tmp_path, 2 * free)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"RN_HARNESS_CACHE, --rn-run or TMPDIR"):
        check_room(tmp_path / "file", 1)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        check_room(tmp_path, 1)


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ('{"step": 2, "leak": 1.5, "scores": [{"score": 2.0}]}', True),
        ('{"step": 2, "leak": 1.50001, "scores": [{"score": 2.0}]}', True),
        ('{"step": 2, "leak": 1.6, "scores": [{"score": 2.0}]}', False),
        ('{"step": 2, "leak": 1.5, "scores": [{"score": 2.00001}]}', False),
        ('{"step": 3, "leak": 1.5, "scores": [{"score": 2.0}]}', False),
        ('{"step": 2, "leak": null, "scores": [{"score": 2.0}]}', False),
        ('{"step": 2, "leak": 1.5, "scores": [{"score": 2.0}, {"score": 2.0}]}', False),
        ('{"step": 2, "leak": 1.5}', False),
        ('{"step": 2, "le', False),
    ],
)
def test_where_sums_come_in_another_order_a_journal_is_repeated_up_to_rounding(tmp_path: Path, line: str, same: bool) -> None:
    """With a tolerance numbers may differ by it, but no score, which may lie on a threshold; without one no digit may."""
    first = '{"step": 2, "leak": 1.5, "scores": [{"score": 2.0}]}'
    Store(tmp_path).journal(KEY).add(line)
    again = Store(tmp_path).journal(KEY, 1e-4)
    again.add(first)
    assert (again.differs_at is None) == same
    exactly = Store(tmp_path / "exact").journal(KEY)
    exactly.add(first)
    repeated = Store(tmp_path / "exact").journal(KEY)
    repeated.add(line)
    assert (repeated.differs_at is None) == (line == first)
