"""Retain corpora: benign prompts, possibly with answers, whose answers a defense keeps; read where they lie, never copied."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rn_harness.spec.errors import SuiteError
from rn_harness.spec.prompts import NEAR_DUPLICATE, Prompt, near_duplicates

FORMATS = "JSON lines, parquet or a folder of `datasets`, with a column prompt (and perhaps completion) or messages"


@dataclass(frozen=True, slots=True)
class Retained:
    """A benign prompt and its answer; without one the candidate answers itself."""

    prompt: Prompt
    answer: str | None = None


def read_retained(path: Path) -> tuple[Retained, ...]:
    """Reads a corpus: texts, or chats, whose first request and its answer count; texts that occur again are left out.

    Raises SuiteError if the file is of no known format, or a row has no prompt.
    """
    found: dict[str, Retained] = {}
    for number, row in enumerate(_rows(path), 1):
        try:
            text, answer = _request(row)
            prompt = Prompt(id=f"retain-{number}", topic="retained", text=text)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SuiteError(
                f"{path}: row {number}: a retain corpus is {FORMATS}, got {type(error).__name__}; correct the row"
            ) from None
        found.setdefault(text, Retained(prompt, answer))
    if not found:
        raise SuiteError(f"{path}: a retain corpus needs a prompt, got none; add some")
    return tuple(found.values())


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    try:
        if path.is_dir():
            import datasets

            rows: Iterable[Mapping[str, Any]] = datasets.load_from_disk(str(path))
            return rows
        if path.suffix == ".parquet":
            import pyarrow.parquet

            listed: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
            return listed
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise SuiteError(
            f"{path}: a retain corpus is {FORMATS}, got {type(error).__name__}; correct the path or the file"
        ) from None


def _request(row: Mapping[str, Any]) -> tuple[str, str | None]:
    """The request of a row and its answer, if there is one."""
    asked = row["messages"] if "messages" in row else _turns(row["prompt"], "user")
    turns = [turn for turn in (*asked, *_turns(row.get("completion"), "assistant")) if turn["role"] != "system"]
    roles = [turn["role"] for turn in turns[:2]]
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError(f"got roles {roles}")
    return turns[0]["content"], turns[1]["content"] if len(turns) > 1 else None


def _turns(said: Any, role: str) -> Sequence[Mapping[str, str]]:
    """A text as one turn, a chat as its turns."""
    return [] if said is None else [{"role": role, "content": said}] if isinstance(said, str) else said


def check_retained(path: Path, retained: Sequence[Retained], measured: Sequence[Prompt]) -> None:
    """Refuses a corpus that overlaps with prompts that are measured, attacked or defended."""
    if found := sorted(near_duplicates([of.prompt for of in retained], measured), key=lambda pair: -pair[2]):
        listed = "".join(f"\n  {overlap:.2f}  {a.id}  {b.id}" for a, b, overlap in found)
        raise SuiteError(
            f"{path}: a retain corpus must not hold a suite's prompts: word overlap (Dice) below {NEAR_DUPLICATE}, got "
            f"pairs={len(found)}, listed from the worst; remove the first of each{listed}"
        )
