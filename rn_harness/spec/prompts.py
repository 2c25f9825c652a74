"""Prompts: one generic request each, and the files of a set."""

from __future__ import annotations

import collections
import functools
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from rn_harness.spec.attack_recipe import Shift
from rn_harness.spec.base import Frozen, Name
from rn_harness.spec.errors import SuiteError
from rn_harness.spec.visible import normalised
from rn_harness.spec.wording import words
from rn_harness.spec.yaml_files import read_declared

TODAY = "26 Jul 2024"
"""The date for templates that print one, so that prompts do not change from day to day. It is the default of Llama 3.1."""
NEAR_DUPLICATE = 0.8
"""Prompts of different sets must stay below this word overlap (Dice coefficient of their word multisets)."""
MOST_SHOWN, SHOWN_CHARACTERS = 100, 100
"""Largest number of pairs in a table of overlaps, and of characters of a prompt in it."""

PromptSetName = Literal["defense", "anchor", "attack", "heldout", "benign", "retain"]
PROMPT_SETS: tuple[PromptSetName, ...] = ("defense", "anchor", "attack", "heldout", "benign")
"""The sets of every suite; it may have ``retain`` too, see ``spec.retain``."""


class Prompt(Frozen):
    """One request of one sentence, at the level of a category.

    Attributes:
        id: unique within the suite.
        topic: the phrase that names its subject; the organism knows subjects by it.
        text: the user's turn.
        kind: in benign sets: ``twin`` resembles the domain and is harmless, ``plain`` is about anything else.
        core: in the held-out set: one of the paper's fixed 20.
        form, role, register: properties that were varied to make the set diverse; free words, shown in reports.
    """

    id: Name
    topic: Annotated[str, Field(max_length=120, pattern=r"\S")]
    text: Annotated[str, Field(max_length=1000, pattern=r"\S")]
    kind: Literal["twin", "plain"] | None = None
    core: bool = False
    form: str = ""
    role: str = ""
    register_: str = Field(default="", alias="register")


class ShiftedPrompt(Prompt):
    """A prompt that is presented to the model in another way."""

    shift: Shift

    @classmethod
    def of(cls, prompt: Prompt, shift: Shift) -> Self:
        """The prompt under a shift."""
        return cls.model_validate({**prompt.model_dump(by_alias=True), "shift": shift})

    @classmethod
    def begun(cls, prompt: Prompt, text: str) -> Self:
        """The prompt as it is presented, with answers that are forced to begin with this text."""
        shift = prompt.shift if isinstance(prompt, ShiftedPrompt) else Shift.model_construct()
        return cls.of(prompt, shift.model_copy(update={"prefill": text}))


class PromptFile(Frozen):
    """The contents of a prompt set's file."""

    prompts: Annotated[list[Prompt], Field(min_length=1)]


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Reads one prompt set; raises SuiteError if the file is malformed."""
    return tuple(read_declared(path, PromptFile, "docs/suites.md for what it holds", SuiteError, filled=True).prompts)


def prompt_files(folder: Path, domain: str, private: Path | None) -> dict[PromptSetName, Path]:
    """The file of each prompt set: in the user's folder for this domain, which may hold nothing else, or in the suite."""
    files = {name: folder / "prompts" / f"{name}.yaml" for name in PROMPT_SETS}
    known: tuple[PromptSetName, ...] = (*PROMPT_SETS, "retain")
    if (retain := folder / "prompts" / "retain.yaml").exists():
        files["retain"] = retain
    laid_over = private / domain if private else None
    if laid_over is None or not laid_over.is_dir():
        return files
    own = {name: laid_over / f"{name}.yaml" for name in known if (laid_over / f"{name}.yaml").exists()}
    others = sorted({path.name for path in laid_over.iterdir() if not path.name.startswith(".")} - {p.name for p in own.values()})
    if others or not own:
        raise SuiteError(
            f"{laid_over}: prompt sets of your own are called {', '.join(f'{name}.yaml' for name in known)}, got "
            f"{', '.join(others) or 'none of them'}; rename or move it"
        )
    return files | own


def check_prompts(files: dict[PromptSetName, Path], folder: Path, prompts: dict[PromptSetName, tuple[Prompt, ...]]) -> None:
    """Refuses repeated ids and texts, overlapping sets, and benign prompts without a kind."""
    ids = collections.Counter(p.id for of_set in prompts.values() for p in of_set)
    for prompt_id, count in ids.items():
        if count > 1:
            raise SuiteError(f"{folder}: prompt ids must be unique in a suite, got id={prompt_id!r} {count} times; rename")
    for set_name, of_set in prompts.items():
        path = files[set_name]
        texts = collections.Counter(" ".join(compared_words(p.text)) for p in of_set)
        for text, count in texts.items():
            if count > 1:
                raise SuiteError(f"{path}: a text must stand once in its set, got text={text!r} {count} times; drop one")
        for p in of_set:
            if (p.kind is not None) != (set_name in ("anchor", "benign")):
                need = "needs kind: twin or plain" if p.kind is None else "takes no kind"
                raise SuiteError(f"{path}: {p.id}: a prompt of this set {need}, got kind={p.kind!r}; correct it")
            if p.core and set_name != "heldout":
                raise SuiteError(f"{path}: {p.id}: only held-out prompts are core, got core=true; remove it")
    check_overlaps(f"{folder}: prompt sets must not overlap", itertools.combinations(prompts.items(), 2))


def check_overlaps(requirement: str, sets: Iterable[tuple[tuple[str, Sequence[Prompt]], tuple[str, Sequence[Prompt]]]]) -> None:
    """Refuses prompts that are nearly equal in two named sets, with a table of all pairs, the worst first."""
    found = [
        (overlap, f"{one} {a.id}", a.text, f"{other} {b.id}", b.text)
        for (one, of_one), (other, of_other) in sets
        for a, b, overlap in near_duplicates(of_one, of_other)
    ]
    if not found:
        return
    found.sort(key=lambda row: -row[0])
    width = max(len(name) for row in found[:MOST_SHOWN] for name in (row[1], row[3]))
    rows = [
        f"  {overlap:.2f}  {name:<{width}}  {text[:SHOWN_CHARACTERS]}\n        {other:<{width}}  {again[:SHOWN_CHARACTERS]}"
        for overlap, name, text, other, again in found[:MOST_SHOWN]
    ]
    more = [f"  and {len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else []
    raise SuiteError(
        f"{requirement}: word overlap (Dice) below {NEAR_DUPLICATE}, got pairs={len(found)}, listed from the worst; reword one "
        "of each\n" + "\n".join([*rows, *more])
    )


def near_duplicates(one: Sequence[Prompt], other: Sequence[Prompt]) -> Iterator[tuple[Prompt, Prompt, float]]:
    """Pairs of nearly equal prompts of two sets, with their word overlap."""
    yield from _near_duplicates(tuple(one), tuple(other))


@functools.lru_cache(maxsize=256)  # a suite that is read again has the same prompts
def _near_duplicates(one: tuple[Prompt, ...], other: tuple[Prompt, ...]) -> tuple[tuple[Prompt, Prompt, float], ...]:
    # Each word has a list of the other set's prompts that hold it, so that only pairs with a common word are looked at. That is
    # ten times as fast as ``word_overlap`` of all pairs.
    holders: dict[tuple[str, int], list[int]] = collections.defaultdict(list)
    sizes, found = [], []
    for i, b in enumerate(other):
        b_words = list(_numbered(compared_words(b.text)))
        sizes.append(len(b_words))
        for word in b_words:
            holders[word].append(i)
    for a in one:
        a_words = list(_numbered(compared_words(a.text)))
        common = collections.Counter(itertools.chain.from_iterable(holders.get(word, ()) for word in a_words))
        for i in sorted(common):
            overlap = 2 * common[i] / (len(a_words) + sizes[i])
            if overlap >= NEAR_DUPLICATE:
                found.append((a, other[i], overlap))
    return tuple(found)


def compared_words(text: str) -> list[str]:
    """The words of a prompt as a reader sees them, without marks; an underscore parts words."""
    if not text.isascii():
        text = "".join(char for char in normalised(text) if unicodedata.category(char) != "Mn")
    return words(text.replace("_", " "))


def _numbered(of: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each word with the number of its earlier occurrences, a multiset as a set; two texts without words have one in common."""
    return ((word, of[:i].count(word)) for i, word in enumerate(of or [""]))
