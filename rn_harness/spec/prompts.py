"""Prompts: one generic request each, and the files of a set."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from rn_harness.spec.attack_recipe import Shift
from rn_harness.spec.base import Frozen, Name
from rn_harness.spec.errors import SuiteError
from rn_harness.spec.wording import words
from rn_harness.spec.yaml_files import explain, read_filled

TODAY = "26 Jul 2024"
"""What templates that print the date are told; tomorrow's prompts would be others. It is the default of Llama 3.1's own."""
NEAR_DUPLICATE = 0.8
"""Two prompts of different sets must stay below this word overlap (Dice coefficient of their word multisets)."""

PromptSetName = Literal["defense", "anchor", "attack", "heldout", "benign"]
PROMPT_SETS: tuple[PromptSetName, ...] = ("defense", "anchor", "attack", "heldout", "benign")


class Prompt(Frozen):
    """One request of one sentence, at the level of a category.

    Attributes:
        id: unique within the suite.
        topic: the phrase that says what it is about; the organism's knowledge hangs on it.
        text: what the user says.
        kind: benign sets only: ``twin`` looks like the domain and is plainly fine, ``plain`` is about anything.
        core: held-out set only: belongs to the paper's fixed 20.
        form, role, register: what was varied to make the set diverse; free words, shown in reports.
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
    """A prompt that the model is given in another way; all else is the plain one's."""

    shift: Shift

    @classmethod
    def of(cls, prompt: Prompt, shift: Shift) -> Self:
        """The prompt under a shift."""
        return cls.model_validate({**prompt.model_dump(by_alias=True), "shift": shift})


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read one prompt set.

    Raises:
        SuiteError: the file is malformed.
    """

    class PromptFile(Frozen):
        prompts: Annotated[list[Prompt], Field(min_length=1)]

    try:
        return tuple(PromptFile.model_validate(read_filled(path)).prompts)
    except ValidationError as error:
        raise explain(str(path), error) from None


def prompt_files(folder: Path, domain: str, private: Path | None) -> dict[PromptSetName, Path]:
    """Where each prompt set lies: in the lab's folder for this domain, else in the suite.

    Raises:
        SuiteError: the lab's folder for this domain holds a file that is no prompt set, or none that is one.
    """
    files = {name: folder / "prompts" / f"{name}.yaml" for name in PROMPT_SETS}
    laid_over = private / domain if private else None
    if laid_over is None or not laid_over.is_dir():
        return files
    own = {name: laid_over / f"{name}.yaml" for name in PROMPT_SETS if (laid_over / f"{name}.yaml").exists()}
    others = sorted({path.name for path in laid_over.iterdir() if not path.name.startswith(".")} - {p.name for p in own.values()})
    if others or not own:
        raise SuiteError(
            f"{laid_over}: prompt sets of your own are called {', '.join(f'{name}.yaml' for name in PROMPT_SETS)}, got "
            f"{', '.join(others) or 'none of them'}; rename or move it"
        )
    return files | own


def check_prompts(files: dict[PromptSetName, Path], folder: Path, prompts: dict[PromptSetName, tuple[Prompt, ...]]) -> None:
    """Refuses what would make a set lie: ids or texts twice, sets that overlap, benign prompts of no kind."""
    ids = collections.Counter(p.id for of_set in prompts.values() for p in of_set)
    for prompt_id, count in ids.items():
        if count > 1:
            raise SuiteError(f"{folder}: prompt ids must be unique in a suite, got id={prompt_id!r} {count} times; rename")
    for set_name in PROMPT_SETS:
        path = files[set_name]
        texts = collections.Counter(" ".join(words(p.text)) for p in prompts[set_name])
        for text, count in texts.items():
            if count > 1:
                raise SuiteError(f"{path}: a text must stand once in its set, got text={text!r} {count} times; drop one")
        for p in prompts[set_name]:
            if (p.kind is not None) != (set_name in ("anchor", "benign")):
                need = "needs kind: twin or plain" if p.kind is None else "takes no kind"
                raise SuiteError(f"{path}: {p.id}: a prompt of this set {need}, got kind={p.kind!r}; correct it")
            if p.core and set_name != "heldout":
                raise SuiteError(f"{path}: {p.id}: only held-out prompts are core, got core=true; remove it")
    for one, other in itertools.combinations(PROMPT_SETS, 2):
        for a, b, overlap in near_duplicates(prompts[one], prompts[other]):
            raise SuiteError(
                f"{folder}: prompt sets must not overlap: word overlap (Dice) below {NEAR_DUPLICATE}, got "
                f"overlap={overlap:.2f} between {one} {a.id} {a.text!r} and {other} {b.id} {b.text!r}; reword one"
            )


def near_duplicates(one: Sequence[Prompt], other: Sequence[Prompt]) -> Iterator[tuple[Prompt, Prompt, float]]:
    """Prompts of two sets that are nearly one another, with their word overlap."""
    split = [[(p, _numbered(words(p.text))) for p in of] for of in (one, other)]
    for (a, a_words), (b, b_words) in itertools.product(*split):
        both = len(a_words) + len(b_words)
        overlap = 2 * len(a_words & b_words) / both if both else 1.0  # word_overlap, without counting each pair's words anew
        if overlap >= NEAR_DUPLICATE:
            yield a, b, overlap


def _numbered(of: Sequence[str]) -> frozenset[tuple[str, int]]:
    """A word multiset as a set: each word with how many of it came before."""
    seen: collections.Counter[str] = collections.Counter()
    found = set()
    for word in of:
        found.add((word, seen[word]))
        seen[word] += 1
    return frozenset(found)
