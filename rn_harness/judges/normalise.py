"""Readings of a text: normalised, and decoded if an encoding is plausible.

An answer in base64, or with a zero-width space in each word, passes a judge that reads only the visible text. Judges of words
score every reading and count the highest. This does not refuse encoded text, and says nothing about harm.

Known: compatibility letters, look-alikes from Greek and Cyrillic inside Latin words, zero-width, control and tag characters,
stacked accents, base64, base32, hex, binary, percent, backslash and entity escapes, Caesar shifts (rot13 is one), text read
backwards as a whole or word by word, leetspeak and letters set apart; three of these in a row. Not known: Morse, ciphers with
a key, homophones, words split over lines, text in pictures.
"""

from __future__ import annotations

import base64
import binascii
import collections
import html
import itertools
import re
import string
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator

from rn_harness.spec.visible import MARKS, letter_table, normalised

MAX_READINGS = 12
"""A text has at most so many readings. Few texts come near it."""
_DEPTH = 3
"""So many encodings, one in the other, are undone."""
_MIN_BYTES = 6
"""A decoded part is at least so long: shorter ones turn up in plain text by chance."""
_MIN_LETTERS = 12
"""Shifts and directions are recognised by their letter pairs, in texts of at least so many letters."""


_LATIN = re.compile(r"[A-Za-z]")
_TAGS = {0xE0000 + code: code for code in range(0x20, 0x7F)}
"""Tag characters, which no font shows, and the ASCII that they carry."""


# --- Encodings of parts -------------------------------------------------------------------------------------------------


def _as_words(raw: bytes) -> str | None:
    """The bytes as text, if they are UTF-8 and hardly anything but letters, digits, marks and spaces."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    odd = any(unicodedata.category(c)[0] == "C" and c not in "\n\r\t" for c in text)
    letters = sum(c.isalnum() for c in text)
    # Bytes that happen to be UTF-8 are mostly marks; a text is mostly letters, and another encoding letters and digits.
    is_text = not odd and 2 * letters >= len(text) and 10 * sum(ord(c) > 0x24F for c in text) < 9 * len(text)
    return text if is_text and len(raw) >= _MIN_BYTES else None


def _from_base64(part: str) -> str | None:
    joined = part.replace("\n", "").rstrip("=").replace("-", "+").replace("_", "/")
    # A letter or a word before it shifts the groups of four.
    for skip in range(4):
        body = joined[skip:]
        body = body[: len(body) - 1] if len(body) % 4 == 1 else body
        text = _as_words(base64.b64decode(body + "=" * (-len(body) % 4)))
        if text is not None:
            return joined[:skip] + text
    return None


def _from_base32(part: str) -> str | None:
    body = part.replace("\n", "").rstrip("=")
    try:
        return _as_words(base64.b32decode(body + "=" * (-len(body) % 8)))
    except binascii.Error:
        return None


_ENCODINGS: tuple[tuple[re.Pattern[str], Callable[[str], str | None]], ...] = (
    (
        re.compile(r"(?:[01]{8}[\s,]{0,2}){6,}"),
        lambda part: _as_words(bytes(int(digits, 2) for digits in re.findall("[01]{8}", part))),
    ),
    (
        re.compile(r"(?:(?:0x|\\x)?[0-9A-Fa-f]{2}[\s:,]{0,2}){6,}"),
        lambda part: _as_words(bytes.fromhex(re.sub(r"0x|\\x|[\s:,]", "", part))),
    ),
    (re.compile(r"(?:[A-Z2-7]{8}\n?){2,}[A-Z2-7]{0,7}={0,6}"), _from_base32),
    (re.compile(r"[A-Za-z0-9+/_-]{8,}(?:\n[A-Za-z0-9+/_-]{4,})*={0,2}"), _from_base64),
)
"""Patterns of encoded parts, and the function that decodes one: binary, hex, base32, base64."""


def _part_by_part(pattern: re.Pattern[str], decode: Callable[[str], str | None], text: str) -> str:
    """The text with all decodable parts replaced in place; a part over several lines is tried whole, then by line."""

    def replace(found: re.Match[str]) -> str:
        part = found.group()
        whole = decode(part)
        if whole is not None:
            return f" {whole} "
        if "\n" not in part.strip():
            return part
        return "\n".join(decode(line) or line if pattern.fullmatch(line) else line for line in part.split("\n"))

    return pattern.sub(replace, text)


def _unescaped(text: str) -> str:
    """Percent, entity and backslash-u escapes undone."""
    text = urllib.parse.unquote(html.unescape(text), errors="replace")
    return re.sub(r"\\u([0-9A-Fa-f]{4})", lambda found: chr(int(found.group(1), 16)), text)


# --- Encodings of letters -----------------------------------------------------------------------------------------------

# The commonest letter pairs of English, German, French, Spanish and Italian: an unordered set does to tell a direction.
_COMMON = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi ri ro ic ne ea "
    "ra ce li ch ll be ma si om ur ei un ie ge el la qu ue os do da et ai ns us pe ec di tr il ad wi ow ho mi ut fo su ca po "
    "ee oo ck wa sh fl bu gg sp gr br cr pr pl"
)
_PAIRS = frozenset(_COMMON.split())
_LEET_TOKEN = re.compile(r"([\w@$!|]+)")
_LEET_SIGNS = re.compile(r"[0134578@$|]|!(?=\w)")
_QUANTITY = re.compile(
    r"\d+(?:g|gr|kg|mg|mcg|ml|l|cl|dl|oz|lb|lbs|c|f|k|cm|mm|m|min|mins|h|hr|hrs|s|sec|secs|x|st|nd|rd|th|tsp|tbsp|cups?|"
    r"el|tl|cs|cc|am|pm|in|inch|w|kcal|kj|pc|pcs)",
    re.IGNORECASE,
)
_LONGEST_WORD = 24
_APART = [re.compile(rf"(?<![^\W_])[^\W_](?:{re.escape(sign)}[^\W_])+(?![^\W_])") for sign in " .-_*|/"]
_LOWER, _UPPER = string.ascii_lowercase, string.ascii_uppercase
_ALPHABETS = [
    *(letter_table(string.ascii_letters, _LOWER[n:] + _LOWER[:n] + _UPPER[n:] + _UPPER[:n]) for n in range(1, 26)),
    letter_table(string.ascii_letters, _LOWER[::-1] + _UPPER[::-1]),
]
"""Shifts of the alphabet, and its mirror."""


def _respelled(text: str) -> Iterator[str]:
    """The text with shifted or mirrored letters, from its end, or with each word from its end, where that is more natural.

    The naturalness of a reading is the share of its letter pairs that are common in Western European languages.
    """
    pairs: collections.Counter[str] = collections.Counter()
    for word in re.findall(r"[a-z]{2,}", text.lower()):
        pairs.update(map("".join, itertools.pairwise(word)))
    total = pairs.total()
    if total < _MIN_LETTERS:
        return

    def naturalness(change: Callable[[str], str]) -> float:
        return sum(n for pair, n in pairs.items() if change(pair) in _PAIRS) / total

    plain = naturalness(str)
    best = max(_ALPHABETS, key=lambda table: naturalness(lambda pair: pair.translate(table)))
    if naturalness(lambda pair: pair.translate(best)) > 1.25 * plain + 0.05:
        yield text.translate(best)
    if naturalness(lambda pair: pair[::-1]) > plain:
        yield text[::-1]
        yield re.sub(r"\w+", lambda found: found.group()[::-1], text)


def _is_leet(token: str) -> bool:
    """True for a word with digits or signs in it that is no quantity such as ``250g``, and not so long that it is a code."""
    return (
        len(token) <= _LONGEST_WORD
        and _LEET_SIGNS.search(token) is not None
        and _LATIN.search(token) is not None
        and _QUANTITY.fullmatch(token) is None
    )


def _unleeted(text: str) -> Iterator[str]:
    """Digits and signs inside words as the letters that they resemble."""
    changed = sum(map(_is_leet, _LEET_TOKEN.findall(text)))
    if changed >= 3 or 2 * changed > len(text.split()):
        for ones in ("oieastbasil", "oleastbasll"):
            table = letter_table("0134578@$!|", ones)
            pieces = (token.translate(table) if _is_leet(token) else token for token in _LEET_TOKEN.split(text))
            yield "".join(pieces)


def _joined(text: str) -> Iterator[str]:
    """Separated letters joined to words. Two or more separators end a word; with single ones all letters run together."""
    lengths = {pattern: [len(run.group()) for run in pattern.finditer(text)] for pattern in _APART}
    pattern = max(_APART, key=lambda p: sum(lengths[p]))
    # A few single letters are a list or an initial; a text set apart is made of them.
    if sum(lengths[pattern]) >= max(9, len(text) // 3) or any(length >= 9 for length in lengths[pattern]):
        yield pattern.sub(lambda found: found.group()[::2], text)


def _unaccented(text: str) -> Iterator[str]:
    """The text without accents where most letters carry one: no language does."""
    apart = unicodedata.normalize("NFD", text)
    bare = MARKS.sub("", apart)
    if 2 * (len(apart) - len(bare)) > sum(char.isalpha() for char in bare):
        yield bare


def _once(text: str) -> Iterator[str]:
    for pattern, decode in _ENCODINGS:
        decoded = _part_by_part(pattern, decode, text)
        if decoded != text:
            # The rest of the text stays in this reading, and encodings of letters are recognised better without the part.
            yield decoded
            return
    yield _unescaped(text)
    yield from _unaccented(text)
    yield from _joined(text)
    yield from _respelled(text)
    yield from _unleeted(text)


def readings(text: str) -> list[str]:
    """All plausible readings of a text, each normalised, without doubles.

    The normalised text comes first, then its decodings, which are decoded again, up to three in a row. Takes time linear in the
    text: each transformation passes over it once, and there are at most ``MAX_READINGS``.
    """
    found = dict.fromkeys((normalised(text), normalised(text.translate(_TAGS))))
    latest = list(found)
    for _ in range(_DEPTH):
        decoded = dict.fromkeys(normalised(other) for known in latest for other in _once(known))
        latest = [reading for reading in decoded if reading not in found][: MAX_READINGS - len(found)]
        found |= dict.fromkeys(latest)
    return list(found)
