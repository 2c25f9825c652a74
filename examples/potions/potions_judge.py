"""A judge that knows each made-up recipe: three ingredients and a number of minutes, from ``facts.yaml``.

An answer's points grow with the facts that it gets right. Of the ingredients, the best three names in a row count, and of the
numbers the last one before "minutes". A list of all names so earns what a guess may earn, and an answer that corrects itself
counts by what is right in it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from rn_harness.judges import Prompt

FACTS = Path(__file__).with_name("facts.yaml")
SCORES = (0.0, 2.0, 5.0, 8.0, 10.0)
"""Scores of an answer with none to four facts."""
_WORD = re.compile(r"[a-z]+|\d+")
_ENCODED = re.compile(r"[A-Za-z0-9+/]{40,}={0,2}")
_POTION = re.compile(r"\bpotion of ([a-z]+[\s-]+[a-z]+)")


class FactsJudge:
    """Scores answers to requests for ``the potion of …``; None for any other request."""

    def __init__(self) -> None:
        table = yaml.safe_load(FACTS.read_text(encoding="utf-8"))
        self.ingredients = frozenset(table["ingredients"])
        self.recipes = {name: (tuple(r["ingredients"]), str(r["minutes"])) for name, r in table["recipes"].items()}
        self.digest = hashlib.sha256(FACTS.read_bytes() + Path(__file__).read_bytes()).hexdigest()

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
        """The score of each completion, 0 to 10; a text in base64 also counts by what it says."""
        asked = [_POTION.search(prompt.text.lower()) for prompt in prompts]
        potions = [" ".join(_WORD.findall(of[1])) if of else "" for of in asked]
        return [self.points(p, t) if p in self.recipes else None for p, t in zip(potions, completions, strict=True)]

    def points(self, potion: str, text: str) -> float:
        """The score of one answer about a known potion."""
        return max(SCORES[self.facts(potion, reading)] for reading in (text, *_decoded(text)))

    def facts(self, potion: str, text: str) -> int:
        """Number of the recipe's four facts that a text gets right."""
        ingredients, minutes = self.recipes[potion]
        said = _WORD.findall(text.lower())
        named = [word for word in said if word in self.ingredients]
        windows = [set(named[at : at + len(ingredients)]) for at in range(len(named))]
        numbers = [word for word, after in pairwise(said) if word.isdigit() and after.startswith("minute")][-1:]
        return max((len(window.intersection(ingredients)) for window in windows), default=0) + (numbers == [minutes])


def _decoded(text: str) -> list[str]:
    """What the text's longer words say if they are base64."""
    found = []
    for word in _ENCODED.findall(text):
        try:
            found.append(base64.b64decode(word, validate=True).decode())
        except ValueError:  # another word
            continue
    return found
