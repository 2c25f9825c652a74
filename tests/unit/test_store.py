"""The store: keys, whole entries, damaged entries, and one maker at a time."""

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

from rn_harness.records.base import content_key
from rn_harness.spec.errors import StoreError
from rn_harness.store.files import write_text
from rn_harness.store.journal import Journal
from rn_harness.store.store import MANIFEST, Store, check_room, default_root, digests_of

KEY = content_key("case", {"model": "x"})
OTHER = content_key("case", {"model": "y"})
given_lines = hypothesis.given(
    lines=st.lists(st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1), min_size=1, max_size=5),
    cut=st.integers(min_value=0),
)


def two_files(folder: Path) -> None:
    """Writes the files of an entry."""
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
    """All names below the store's root except locks."""
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
    """Another kind or value, another order of a list, or an additional part gives another key."""
    assert content_key(kind, PARTS | changes) != content_key("case", PARTS)


def test_key_ignores_the_order_of_names() -> None:
    """The order of names does not change the key, at any depth."""
    turned = {"prompts": ["p1", "p2"], "recipe": {"learning_rate": 5e-4, "steps": 200}, "model": "m"}
    assert content_key("case", turned) == content_key("case", PARTS)
    assert len(KEY) == 64
    assert set(KEY) <= set("0123456789abcdef")


def test_key_refuses_nan() -> None:
    """NaN is refused in a key, because it is not equal to itself."""
    with pytest.raises(ValueError, match="JSON compliant"):
        content_key("case", {"learning_rate": float("nan")})


@pytest.mark.parametrize("part", ["kind", "version", "key"])
def test_key_keeps_kind_and_parts_apart(part: str) -> None:
    """A part cannot replace the kind, whatever its name: two kinds with equal parts have two keys."""
    assert content_key("case", {part: "defense"}) != content_key("defense", {part: "defense"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PART_SETS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


@hypothesis.given(PART_SETS, PART_SETS)
def test_equal_keys_have_equal_parts(a: dict, b: dict) -> None:
    """Two keys are equal if and only if their parts are equal as JSON."""
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (content_key("case", a) == content_key("case", b)) == same
    assert content_key("case", a) == content_key("case", json.loads(json.dumps(a)))


# ------------------------------------------------------------------------------------------------------------- put, get


def test_round_trip(store: Store) -> None:
    """An entry is read with the contents that were written, also by another object."""
    folder = Store(store.root).get("case", KEY)
    assert folder == store.root / "case" / KEY
    assert (folder / "a.json").read_text(encoding="utf-8") == "{}"
    assert (folder / "sub" / "b.bin").read_bytes() == bytes(range(256))
    assert everything(store) == {"case", *(f"case/{KEY}{rest}" for rest in ("", "/a.json", "/sub", "/sub/b.bin", f"/{MANIFEST}"))}


def test_other_addresses_are_empty(store: Store) -> None:
    """Another key, or the same key of another kind, is not found, and the search leaves no files."""
    before = everything(store)
    assert store.get("case", OTHER) is None
    assert store.get("defense", KEY) is None
    assert everything(store) == before


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    """A store without writes has no entries and no folder."""
    assert Store(tmp_path / "none").get("case", KEY) is None
    assert not (tmp_path / "none").exists()


def test_second_put_replaces(store: Store) -> None:
    """A second put leaves only the new files."""
    folder = store.put("case", KEY, lambda into: (into / "c.json").write_text("1", encoding="utf-8"))
    assert {p.name for p in folder.iterdir()} == {"c.json", MANIFEST}
    assert store.get("case", KEY) == folder


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failed_write_leaves_nothing(store: Store, error: type[BaseException]) -> None:
    """An exception during a write is raised, and leaves neither the entry nor a part of it."""
    before = everything(store)

    def write(folder: Path) -> None:
        two_files(folder)
        raise error

    with pytest.raises(error):
        store.put("case", OTHER, write)
    assert store.get("case", OTHER) is None
    assert everything(store) == before


def test_failed_rewrite_keeps_the_old_entry(store: Store) -> None:
    """An exception during a rewrite keeps the old entry."""

    def write(folder: Path) -> None:
        (folder / "a.json").write_text("half", encoding="utf-8")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.put("case", KEY, write)
    assert (store.get("case", KEY) / "a.json").read_text(encoding="utf-8") == "{}"


def test_an_entry_that_cannot_be_replaced_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the new entry cannot be moved into place, the old one is restored and no other files are left."""
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
    """A removed entry is gone, and removing a missing one does nothing."""
    for _ in range(2):
        store.remove("case", KEY)
        assert everything(store) == {"case"}


def test_entry_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    """Other readers do not find an entry before it is whole."""
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
    """Replaces a file by a folder."""
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
    """A damaged entry is renamed with a warning, is not found, and can be made again."""
    damage(store.root / "case" / KEY)
    with pytest.warns(UserWarning, match=r"a stored case was damaged \(.+\); set aside as .+, it is made anew"):
        assert store.get("case", KEY) is None
    assert [p.name for p in (store.root / "case").iterdir()] == [f"{KEY}.damaged"]
    with warnings.catch_warnings(action="error"):
        assert store.get("case", KEY) is None
        store.put("case", KEY, two_files)
        assert store.get("case", KEY) is not None


def test_second_damage_replaces_the_first(store: Store) -> None:
    """If an entry is damaged twice, the last damaged copy is kept."""
    for content in ("first", "second"):
        store.put("case", KEY, two_files)
        (store.root / "case" / KEY / "a.json").write_text(content, encoding="utf-8")
        with pytest.warns(UserWarning, match=r"a\.json changed"):
            store.get("case", KEY)
    aside = store.root / "case" / f"{KEY}.damaged"
    assert (aside / "a.json").read_text(encoding="utf-8") == "second"


def test_entry_under_another_address_is_not_taken(store: Store) -> None:
    """An entry copied to another key is not accepted there."""
    shutil.copytree(store.root / "case" / KEY, store.root / "case" / OTHER)
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get("case", OTHER) is None
    assert store.get("case", KEY) is not None


# --------------------------------------------------------------------------------------------------------------- files


def test_write_text_replaces_whole_files(tmp_path: Path) -> None:
    """A file is written and replaced as a whole, is readable by all, and leaves no temporary file."""
    path = tmp_path / "run.json"
    for text in ("first \u00e9\n", "second"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_text_keeps_the_old_file(tmp_path: Path) -> None:
    """A failed write keeps the old file and leaves no temporary file."""
    path = tmp_path / "run.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_old_or_new(tmp_path: Path) -> None:
    """During repeated replacements a reader always sees a whole file."""
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


def test_one_process_makes_and_the_others_find(tmp_path: Path) -> None:
    """If four processes need an entry at once, one makes it and all get it."""
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
    """While one entry is made, others can be made, also the same key of another kind."""
    store = Store(tmp_path)
    with store.locked("case", KEY), store.locked("case", OTHER), store.locked("defense", KEY):
        entered = True
    assert entered


def test_lock_is_freed_by_an_exception(tmp_path: Path) -> None:
    """A maker that fails releases the lock."""
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
    """An unwritable store raises StoreError with its root and the variable to set."""
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    with pytest.raises(StoreError, match=rf"root={tmp_path}/file: .*; set RN_HARNESS_CACHE"), store.locked("case", KEY):
        pass


def test_default_root_is_what_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """RN_HARNESS_CACHE names the store; without it the store is in the user's cache folder."""
    monkeypatch.setenv("RN_HARNESS_CACHE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("RN_HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "rn-harness"


def _make_ten(root: Path, made: Path, number: int) -> None:
    """Makes the missing ones of ten entries, and checks the digest of each entry that it reads."""
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
    """If eight processes need the same ten entries, each entry is made once and each process reads all of them whole."""
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
    """After SIGKILL between files and rename, the entry is missing, can be made again, and the leftovers can be pruned."""
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
    with store.locked("defense", KEY):  # the lock is free
        store.put("defense", KEY, two_files)
    left = [entry for entry in store.entries() if not entry.whole]
    assert len(left) == 1
    assert left[0].size == 2 + 256


# ------------------------------------------------------------------------------------------------------------- journals


def test_a_journal_keeps_its_lines(tmp_path: Path) -> None:
    """Lines are on disk once added; an attempt that repeats them writes nothing new and continues after them."""
    store = Store(tmp_path)
    cut = store.journal(KEY)
    cut.add("one")
    cut.add("two")
    cut.path.write_text(cut.path.read_text() + "thr", encoding="utf-8")  # a line truncated by a full disk
    again = store.journal(KEY)
    assert again.earlier == ("one", "two")
    for line in ("one", "two", "three"):
        again.add(line)
    assert again.differs_at is None
    assert again.path.read_text(encoding="utf-8") == "one\ntwo\nthree\n"
    again.close()
    assert list((tmp_path / "unfinished").iterdir()) == []


def test_a_journal_is_appended_to(tmp_path: Path) -> None:
    """The first line of an attempt replaces a file with half a line at its end; each further line is appended."""
    path = tmp_path / "journal.jsonl"
    path.write_text("one\ntw")
    journal = Journal.at(path)
    for line in ("one", "two"):
        journal.add(line)
    written = path.stat().st_ino
    journal.add("three")
    assert (path.read_text(), path.stat().st_ino) == ("one\ntwo\nthree\n", written)


def test_a_journal_that_was_removed_is_written_again(tmp_path: Path) -> None:
    """If another process prunes the file of a running case, the next line brings back all lines before it."""
    journal = Journal.at(tmp_path / "unfinished" / "journal.jsonl")
    journal.add("one")
    journal.path.unlink()
    journal.path.parent.rmdir()
    journal.add("two")
    assert journal.path.read_text() == "one\ntwo\n"


def test_a_journal_that_differs_keeps_both(tmp_path: Path) -> None:
    """From the first different line on, the attempt differs, and the earlier lines are kept separately each time."""
    for attempt, lines in enumerate((["one", "two"], ["one", "TWO"], ["one", "2"])):
        journal = Store(tmp_path).journal(KEY)
        for line in lines:
            journal.add(line)
        assert journal.differs_at == (1 if attempt else None)
    kept = {path.name.partition(".jsonl")[2]: path.read_text() for path in (tmp_path / "unfinished").iterdir()}
    assert kept == {"": "one\n2\n", ".1": "one\ntwo\n", ".2": "one\nTWO\n"}


def test_a_journal_that_is_read_is_not_pruned(tmp_path: Path) -> None:
    """A journal is in use as long as attempts under other keys of its case read it; one that nobody reads is removed."""
    store, old = Store(tmp_path), time.time() - 40 * 86_400
    for key, case in ((KEY, "a" * 32), ("e" * 64, "b" * 32)):
        store.journal(key, case=case).add("breach")
    for path in (tmp_path / "unfinished").iterdir():
        os.utime(path, (old, old))
    assert store.journal("f" * 64, case="a" * 32).aside == (("breach",),)
    store.prune(30)
    assert [path.name[0] for path in (tmp_path / "unfinished").iterdir()] == ["a"]


def test_no_line_of_an_attempt_that_was_cut_off_is_lost(tmp_path: Path) -> None:
    """Whatever number of attempts was cut off, the lines of each that the last one does not repeat are known, in order."""
    store = Store(tmp_path)
    for number, lines in enumerate((["one", "breach", "three"], ["one", "two", "3", "4"], ["one", "two"])):
        journal = store.journal(KEY)
        for line in lines:
            journal.add(line)
        assert journal.unrepeated == (["breach", "three"] if number else [])
    (tmp_path / "unfinished" / f"{KEY}.jsonl").rename(tmp_path / "unfinished" / f"{KEY}.jsonl.12")  # 2 to 11 were pruned
    last = store.journal(KEY)
    for line in ("ONE", "two"):
        last.add(line)
    assert last.unrepeated == ["one", "breach", "three", "two", "3", "4"]
    last.close()
    assert store.journal(KEY).unrepeated == []
    again = store.journal(KEY)
    again.add("one")
    assert again.aside == (("one", "breach", "three"), ("one", "two", "3", "4"))


@given_lines
def test_a_cut_anywhere_is_repeated(tmp_path_factory: pytest.TempPathFactory, lines: list[str], cut: int) -> None:
    """Whatever the byte at which a file is cut, repeating the attempt differs nowhere and ends with all lines."""
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


# ------------------------------------------------------------------------------------------------- differences, pruning


def test_changed_parts_are_named(tmp_path: Path) -> None:
    """The most similar stored entry of the same case is compared by parts, of which only digests are stored."""
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


def test_a_miss_reads_the_manifests_of_the_same_case_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding what changed takes no longer if other cases have entries, and reads no pruned entries."""
    store, parts = Store(tmp_path), {"case": "attack", "candidate": "c1"}
    for case in ("attack", *(f"other-{i}" for i in range(5))):
        store.put("case", content_key("case", parts | {"case": case}), two_files, parts | {"case": case})
    read: list[Path] = []
    text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **how: read.append(self) or text(self, **how))
    assert store.changed("case", parts | {"candidate": "c2"}) == ["candidate"]
    assert len(read) == 1
    store.prune(0.0)
    assert store.changed("case", parts) is None
    assert len(read) == 1


def test_an_unreadable_manifest_is_ignored(store: Store) -> None:
    """An entry without parts, or with an unreadable manifest, is ignored."""
    manifest("[1]")(store.root / "case" / KEY)
    assert store.changed("case", PARTS) is None


def test_prune_removes_unused_entries(store: Store) -> None:
    """prune removes entries, journals and leftovers that were not used within the days, and nothing else."""
    store.put("case", OTHER, two_files)
    store.journal(KEY).add("line")
    leftover = store.root / "defense" / f".{KEY[:12]}.abc"
    leftover.mkdir(parents=True)
    damaged = store.root / "case" / f"{KEY}.damaged"
    damaged.mkdir()
    long_ago = time.time() - 40 * 86_400
    for path in (store.root / "case" / KEY / MANIFEST, store.root / "case" / OTHER / MANIFEST, leftover, damaged):
        os.utime(path, (long_ago, long_ago))
    assert store.get("case", OTHER) is not None  # a read counts as use
    names = {(e.kind, e.name, e.whole) for e in store.entries()}
    assert names == {
        ("case", KEY, True), ("case", OTHER, True), ("case", damaged.name, False), ("defense", leftover.name, False),
        ("unfinished", f"{KEY}.jsonl", False),
    }  # fmt: skip
    assert {e.path for e in store.prune(30)} == {store.root / "case" / KEY, leftover, damaged}
    assert {e.name for e in store.entries()} == {OTHER, f"{KEY}.jsonl"}
    assert len(store.prune(0)) == 2
    assert store.entries() == []


# ---------------------------------------------------------------------------------------------------------------- space


def test_disk_space_is_checked_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial write checks a path and leaves no file; a full disk or an unusable path is an error with the setting to change."""
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
def test_a_journal_on_a_gpu_is_repeated_up_to_rounding(tmp_path: Path, line: str, same: bool) -> None:
    """With a tolerance numbers may differ by it, except scores, which could be at a threshold; without one none may differ."""
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
