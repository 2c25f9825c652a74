"""Counts words in docstrings, comments and pages that make English read like a literal translation.

The list comes from this repository's own early prose: each entry is a phrase that readers had to read twice. Established packages
have 0.5 to 1.4 such words per 1,000 (pytest 0.6, pydantic 0.5, TRL 0.7, typer 1.2, inspect_ai 1.4). A high count is a sign and
no proof: read the listed lines aloud, and rewrite them as subject, verb, object.

    python tests/prose.py --limit 2 rn_harness tests benchmarks
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SIGNS = {
    "what as a pronoun": re.compile(r"(?<![.?!] )\bwhat\b(?![^.]*\?)", re.IGNORECASE),
    "told, tells": re.compile(r"\b(?:is|are|was|were|be)? ?told\b|\btells? (?:it|them|this|apart)\b", re.IGNORECASE),
    "stands": re.compile(r"\bstands?\b|\bstood\b", re.IGNORECASE),
    "alone, nobody, somebody": re.compile(r"\balone\b|\bnobody\b|\bsomebody\b", re.IGNORECASE),
    "comes to, hangs on": re.compile(r"\bcomes? to\b|\bcame to\b|\bhangs? on\b", re.IGNORECASE),
    "anew, beside, in place of": re.compile(r"\banew\b|\bbeside\b|\bwhereof\b|\bin place of\b", re.IGNORECASE),
    "of its own": re.compile(r"\bof (?:one's|its|their|your) own\b", re.IGNORECASE),
    "sentence that starts with Of": re.compile(r"(?:^|[.:;] )Of (?:a|an|the|what|all|those|several)\b"),
    "is no, are no": re.compile(r"\b(?:is|are|was) no (?!longer)\w+", re.IGNORECASE),
}


@dataclass(frozen=True, slots=True)
class Count:
    """The words of some prose, and the lines with signs.

    Attributes:
        words: number of words.
        hits: a line for each sign: file, line number and text.
    """

    words: int
    hits: list[str]

    @property
    def per_thousand(self) -> float:
        """Signs per 1,000 words."""
        return 1000 * len(self.hits) / max(1, self.words)


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of prose in a file, numbered: docstrings and comments, or a page without its code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        is_code = False
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith("```"):
                is_code = not is_code
            elif not is_code and not line.startswith("    "):
                yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", " ", line)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            for offset, line in enumerate(docstring.splitlines()):
                yield node.body[0].lineno + offset, re.sub(r"`[^`]*`", " ", line)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def count_signs(root: Path, excluded: Sequence[Path] = ()) -> Count:
    """Counts the signs in a file, or in all Python files and pages of a folder.

    Args:
        root: file or folder.
        excluded: files and folders to leave out.
    """
    files: Iterable[Path] = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in (".py", ".md"))
    words, hits = 0, []
    for path in files:
        if any(path.is_relative_to(other) for other in excluded):
            continue
        for number, line in prose_of(path):
            words += len(re.findall(r"[A-Za-z']+", line))
            hits += [f"{path}:{number}: {line.strip()}" for sign in SIGNS.values() for _ in sign.findall(line)]
    return Count(words, hits)


def main() -> int:
    """Prints the count of each path, and the lines of each path above the limit."""
    parser = argparse.ArgumentParser(description="count words that make prose read like a literal translation")
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders")
    parser.add_argument("--exclude", action="append", default=[], type=Path, help="file or folder to leave out")
    parser.add_argument("--limit", type=float, required=True, help="exit with 1 if a path has more signs per 1,000 words")
    arguments = parser.parse_args()
    code = 0
    for root in arguments.paths:
        count = count_signs(root, arguments.exclude)
        sys.stdout.write(f"{count.per_thousand:6.2f} per 1,000 of {count.words} words in {root}\n")
        if count.per_thousand > arguments.limit:
            sys.stdout.write("".join(f"{hit}\n" for hit in count.hits))
            code = 1
    return code


if __name__ == "__main__":
    raise SystemExit(main())
