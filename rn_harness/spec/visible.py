"""A text as its reader sees it, whatever signs it is written in. Judges read it so, and prompts are compared so."""

from __future__ import annotations

import re
import unicodedata


def letter_table(letters: str, targets: str) -> dict[int, str]:
    """A table for ``str.translate`` from each letter to the target at its place; ValueError if there are more of one."""
    return {ord(a): b for a, b in zip(letters, targets, strict=True)}


# Letters that look Latin and that NFKC leaves as they are: Cyrillic, Greek, and a few Latin ones without decomposition.
_ALIKE = letter_table(
    "авекмнорстухіјѕһԁԛԝґАВЕКМНОРСТУХІЈЅԌҮαεικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɡɑℓ",
    "abekmhopctyxijshdqwrABEKMHOPCTYXIJSGYaeikvoptuxwABEZHIKMNOPTYXigal",
)
_MIXED_WORD = re.compile(
    r"(?<![^\W\d_])(?=[^\W\d_]*[A-Za-z])(?=[^\W\d_]*[\u0370-\u03ff\u0400-\u052f\u0131\u0251\u0261])[^\W\d_]+"
)
_UNSEEN = re.compile("[\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U0001d159\U000e0100-\U000e01ef]")
"""Letters and marks that Unicode says to ignore, as it does control characters: fillers and variation selectors."""
_BLANK = "\u2800"
"""A Braille cell without dots, which looks like a space."""
MARKS = re.compile(r"[\u0300-\u036f\u0483-\u0489\u20d0-\u20ff]+")
"""Accents and other marks that are no part of the letter before them."""


def normalised(text: str) -> str:
    """The text in NFKC, without characters that cannot be seen, and with Latin letters in Latin words.

    Line breaks stay, and every other space becomes a plain one. A word in Cyrillic or Greek letters only stays as it is.
    """
    composed = unicodedata.normalize("NFKC", text)
    composed = composed.translate({ord(char): _visible(char) for char in set(composed)})
    # Once more, since characters between a letter and its accent are gone; the remaining separate marks are decoration.
    plain = MARKS.sub("", unicodedata.normalize("NFKC", composed))
    return _MIXED_WORD.sub(lambda found: found.group().translate(_ALIKE), plain)


def _visible(char: str) -> str:
    kind = unicodedata.category(char)
    if kind in ("Zl", "Zp") or char in "\n\r":
        return "\n"
    if kind == "Zs" or char in ("\t", _BLANK):
        return " "
    return "" if kind[0] == "C" or _UNSEEN.match(char) else char
