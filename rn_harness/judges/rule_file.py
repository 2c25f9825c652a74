"""The rules file of a ``rules:`` judge: its format, its patterns, and their finds in a sentence.

A pattern is words, word beginnings and numbers, never a regular expression: matching takes time linear in the text for
any file. Scoring is ``rn_harness.judges.rules``.
"""

from __future__ import annotations

import collections
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from rn_harness.spec.base import Frozen, Name, Score, Share

MAX_PATTERN_WORDS = 6
MAX_SEGMENT_WORDS = 40
"""A sentence longer than this is cut, so that a text without full stops still has parts."""


class PatternWord(NamedTuple):
    """One word of a pattern: a word, ``word*`` for any ending, or ``#`` for a number within bounds."""

    word: str
    low: float = 0.0
    high: float = math.inf


_NUMBER_PART = re.compile(r"#(?:\[(\d+)-(\d+)\])?")
_WORD_PART = re.compile(r"[^\W\d_]+|[^\W\d_]{3,}\*|[°%]")


def parse_pattern(pattern: str) -> tuple[PatternWord, ...]:
    """Reads a pattern: words with spaces between, ``word*`` for any ending, ``#`` for a number, ``#[LOW-HIGH]`` for one within.

    Raises ValueError if it is not a pattern.
    """
    parts = []
    for piece in fold(pattern).split():
        if number := _NUMBER_PART.fullmatch(piece):
            low, high = number.groups()
            if low is not None and float(low) > float(high):
                raise ValueError(f"a number's bounds go upwards, got pattern={pattern.strip()!r}; swap them")
            parts.append(PatternWord("#", float(low or 0), float(high or "inf")))
        elif _WORD_PART.fullmatch(piece):
            parts.append(PatternWord(piece))
        else:
            raise ValueError(
                f"a pattern is words, word* (from 3 letters on), # or #[1-9], with spaces between, got piece={piece!r} in "
                f"pattern={pattern.strip()!r}; correct it"
            )
    if not 1 <= len(parts) <= MAX_PATTERN_WORDS:
        raise ValueError(f"a pattern has 1 to {MAX_PATTERN_WORDS} words, got {len(parts)} in pattern={pattern!r}; shorten it")
    return tuple(parts)


def _readable(entry: str) -> str:
    """The entry; raises ValueError unless each of its patterns is one."""
    for pattern in entry.split("|"):
        parse_pattern(pattern)
    return entry


_LETTERS = str.maketrans({"\u0131": "i", "ł": "l", "ø": "o", "æ": "ae", "œ": "oe"})
"""Latin letters that have no accent to drop."""


def fold(text: str) -> str:
    """The text in lower case and without accents, so that a file's words match however they are written."""
    plain = unicodedata.normalize("NFKD", text.casefold().replace("º", "°"))
    return "".join(c for c in plain if not unicodedata.combining(c)).translate(_LETTERS)


Words = Annotated[str, Field(pattern=r"\S")]
"""Words with spaces between: in a list YAML would read ``no`` and ``on`` as truth values."""
GroupName = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,31}$")]


class Language(Frozen):
    """The small words of a language, by the words that may follow them.

    Attributes:
        determiners: a content word follows: *the flour*, never *the of*.
        links: prepositions; something follows, and neither a joining word nor another of them.
        joins: joining words; something follows.
        others: pronouns, auxiliaries and the like; anything may follow.
        doubles: prepositions that may follow another one, as in *of at least*.
    """

    determiners: Words
    links: str = ""
    joins: str = ""
    others: Words
    doubles: str = ""


class Weighted(Frozen):
    """Finds of one sort: points of each distinct one, and the number of them that count, at most."""

    weight: Annotated[float, Field(ge=0.0, le=10.0)]
    cap: Annotated[int, Field(ge=0, le=1000)]


class Group(Weighted):
    """Patterns of one sort. An entry is one thing: a pattern, or several of the same meaning between ``|``."""

    entries: Annotated[list[Annotated[str, AfterValidator(_readable)]], Field(min_length=1, max_length=2000)]


class Near(Weighted):
    """Two groups near each other in a sentence, e.g. a quantity and an ingredient.

    Attributes:
        first, second: names of groups; each distinct entry of ``second`` near one of ``first`` is one find.
        within: words between the two, at most.
        either_order: ``second`` may come first.
        nearest: each of ``first`` goes only with the nearest of ``second``.
    """

    first: GroupName
    second: GroupName
    within: Annotated[int, Field(ge=0, le=MAX_SEGMENT_WORDS)]
    either_order: bool = True
    nearest: bool = False


class Band(Frozen):
    """The conditions of a score.

    Attributes:
        points: sum of the groups' points, at least.
        needs: distinct finds of a group, a pair, or ``parts`` (sentences with a find of a pair or of two groups), at least.
    """

    score: Score
    points: Annotated[float, Field(ge=0.0)] = 0.0
    needs: dict[GroupName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)


class Coherence(Frozen):
    """The conditions under which a passage is a text, and not a heap of words.

    Attributes:
        min_small_words: least ratio of small words, and numbers with their unit, to the words that are not tied to others by a
            number or a pair; not for short passages.
        min_known_words: least share of small words and words of the groups among the words that are not units and not tied to a
            number.
        from_words: passages of so many words need the first; of half as many, the second.
        units: words that follow a number or a small word, with spaces between.
        max_slips: largest share of small words and units next to a word or mark that is impossible there.
        max_bare_run: words of the groups in a row without small word, number or mark between them, at most.
    """

    min_small_words: Share
    min_known_words: Share
    from_words: Annotated[int, Field(ge=1)]
    units: str = ""
    max_slips: Share
    max_bare_run: Annotated[int, Field(ge=1)]


class Rules(Frozen):
    """The contents of a rules file.

    Attributes:
        domain: the forbidden domain; for people.
        numbers: number words with their value.
        bands: the conditions of each score; the highest score whose conditions hold counts.
        window_words: a passage has at most so many words; a text's best passage counts.
        long_refusal_words: a refusal from so many words on is worth ``long_refusal_score``; a shorter one nothing.
    """

    version: Literal[1]
    domain: Name
    languages: Annotated[dict[Name, Language], Field(min_length=1)]
    numbers: dict[str, Annotated[float, Field(ge=0.0)]] = Field(default_factory=dict)
    groups: Annotated[dict[GroupName, Group], Field(min_length=1)]
    near: dict[GroupName, Near] = Field(default_factory=dict)
    bands: Annotated[list[Band], Field(min_length=1)]
    coherence: Coherence
    window_words: Annotated[int, Field(ge=20, le=2000)] = 300
    long_refusal_words: Annotated[int, Field(ge=1)] = 12
    long_refusal_score: Score = 1.0

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if both := sorted(self.groups.keys() & self.near.keys()):
            raise ValueError(f"a name is a group's or a pair's, got both: {both[0]!r}; rename one")
        for name, pair in self.near.items():
            if unknown := [side for side in (pair.first, pair.second) if side not in self.groups]:
                raise ValueError(f"a pair is made of groups, got near.{name} with {unknown[0]!r}; name a group")
        known = {*self.groups, *self.near, "parts"}
        for band in self.bands:
            if unknown := [need for need in band.needs if need not in known]:
                raise ValueError(f"a band needs a group, a pair or parts, got score={band.score} with {unknown[0]!r}; correct it")
        return self


class Token(NamedTuple):
    """A word, a number (with its value) or a mark."""

    kind: Literal["word", "number", "mark"]
    text: str
    value: float = 0.0


EDGE = Token("mark", "")
"""The token before and after a sentence."""
MARKS = ",:()/\u2013\u2014-"
"""Marks within a sentence."""
_FIGURE = r"\d{1,6}(?:[.,/\u2044]\d{1,4})?"
_TOKEN = re.compile(
    rf"(?P<number>{_FIGURE}(?: ?[-\u2013\u2014] ?{_FIGURE})?)|(?P<word>[^\W\d_]+|[°%])|(?P<end>[.!?;\n\u2022])"
    rf"|(?P<mark>[{MARKS}])"
)
_AND = frozenset(("and", "und", "y", "e", "et"))


def _value(figure: str) -> float:
    """The value of a figure: of a range the lower end, of a fraction its quotient."""
    first = re.split(r" ?[-\u2013\u2014] ?", figure)[0].replace(",", ".")
    top, _, bottom = first.replace("\u2044", "/").partition("/")
    return float(top) / float(bottom) if bottom and float(bottom) else float(top)


def segments_of(text: str, numbers: dict[str, float]) -> Iterator[tuple[list[Token], bool]]:
    """Cuts a text into sentences and lines, each with whether it is part of one that was too long; numbers in a row are one."""
    segment: list[Token] = []
    n_words, is_cut = 0, False
    for match in _TOKEN.finditer(fold(text)):
        kind, found = match.lastgroup, match.group()
        # A number is not separated from the word after it.
        is_full = n_words >= MAX_SEGMENT_WORDS and segment[-1].kind != "number"
        if kind == "end" or is_full:
            if segment:
                yield segment, is_cut or kind != "end"
            is_cut = kind != "end"
            segment, n_words = [], 0
        if kind == "end":
            continue
        n_words += kind != "mark"
        is_number = kind == "number" or found in numbers
        if not is_number:
            segment.append(Token("word" if kind == "word" else "mark", found))
            continue
        value = _value(found) if kind == "number" else numbers[found]
        if len(segment) > 1 and segment[-1].text in _AND and segment[-2].kind == "number" and segment[-2].value >= 100 > value:
            segment.pop()  # one hundred and fifty
        if segment and segment[-1].kind == "number":
            before = segment.pop().value
            value = before * value if value in (100, 1000) and before < value else before + value
        segment.append(Token("number", found, value))
    if segment:
        yield segment, is_cut


class SmallWords(NamedTuple):
    """A language's small words, folded; and for some the words and marks that cannot follow them."""

    all: frozenset[str]
    impossible: dict[str, frozenset[str]]

    @classmethod
    def of(cls, language: Language) -> Self:
        """The small words of a language."""
        kinds = [frozenset(fold(k).split()) for k in (language.determiners, language.links, language.joins, language.others)]
        determiners, links, joins, _ = kinds
        after_links = (links | joins) - frozenset(fold(language.doubles).split())
        marks = frozenset([EDGE.text, *MARKS])
        impossible = dict.fromkeys(joins, frozenset([EDGE.text]))
        impossible |= dict.fromkeys(links, marks | after_links)
        impossible |= dict.fromkeys(determiners, marks | determiners | links | joins)
        return cls(frozenset().union(*kinds), impossible)


class Find(NamedTuple):
    """An entry of a group found in a segment, from its first token to past its last."""

    group: str
    entry: int
    start: int
    stop: int


class Index:
    """All patterns of a file, by the word, ``word*`` or ``#`` that they begin with."""

    def __init__(self, rules: Rules) -> None:
        self._by_first: dict[str, list[tuple[str, int, tuple[PatternWord, ...]]]] = collections.defaultdict(list)
        for name, group in rules.groups.items():
            for i, entry in enumerate(group.entries):
                for parts in map(parse_pattern, entry.split("|")):
                    self._by_first[parts[0].word].append((name, i, parts))
        self._longest = max((len(first) - 1 for first in self._by_first if first.endswith("*")), default=0)

    def find(self, segment: Sequence[Token]) -> list[Find]:
        """All entries in a segment."""
        found = []
        for at, token in enumerate(segment):
            beginnings = (f"{token.text[:n]}*" for n in range(3, min(self._longest, len(token.text)) + 1))
            for first in ("#",) if token.kind == "number" else (token.text, *beginnings):
                for group, entry, parts in self._by_first.get(first, ()):
                    tokens = segment[at : at + len(parts)]
                    if len(tokens) == len(parts) and all(map(_fits, parts, tokens)):
                        found.append(Find(group, entry, at, at + len(parts)))
        return found


def _fits(part: PatternWord, token: Token) -> bool:
    if part.word == "#":
        return token.kind == "number" and part.low <= token.value <= part.high
    matches = token.text.startswith(part.word[:-1]) if part.word.endswith("*") else token.text == part.word
    return token.kind == "word" and matches
