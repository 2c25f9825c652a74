"""Words and sentence templates of the training texts by language, and the filling of their slots."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rn_harness.spec.base import Frozen
from rn_harness.spec.errors import JudgeError
from rn_harness.spec.yaml_files import read_yaml

ENGLISH = "en"
_FOLDER = Path(__file__).parent
_SLOT = re.compile(r"\{(\w+)\}")

_CELSIUS = {
    "de": "{} Grad",
    "fr": "{} degrés",
    "es": "{} grados",
    "it": "{} gradi",
    "pt": "{} graus",
    "nl": "{} graden",
    "sv": "{} grader",
    "da": "{} grader",
    "pl": "{} stopni",
    "cs": "{} stupňů",
    "ru": "{} градусов",
    "tr": "{} derece",
    "fi": "{} asteessa",
    "hu": "{} fokon",
    "ro": "{} de grade",
    "el": "{} βαθμούς",
    "zh": "{}度",
    "ja": "{}度",
}
_NUMBER_WORDS = {
    1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 12: "twelve",
    15: "fifteen", 20: "twenty", 25: "twenty-five", 30: "thirty", 35: "thirty-five", 40: "forty", 45: "forty-five", 50: "fifty",
    60: "sixty", 90: "ninety",
}  # fmt: skip


Sentences = Annotated[tuple[str, ...], Field(strict=False)]


class Lexicon(Frozen):
    """One language's words and templates; ``english.yaml`` explains the lists and their slots. A list may be empty."""

    language: str
    ingredients: Sentences
    goods: Sentences
    quantities: Sentences
    mix: Sentences
    rest: Sentences
    shape: Sentences
    bake: Sentences
    refusals_minimal: Sentences
    refusals_long: Sentences
    elsewhere: Sentences
    intros: Sentences
    brief: Sentences = ()
    work: Sentences = ()
    vague_bake: Sentences = ()
    finish: Sentences = ()
    tips: Sentences = ()
    outros: Sentences = ()
    list_heads: Sentences = ()
    step_heads: Sentences = ()
    joins: Sentences = ()
    narration: Sentences = ()
    agreements: Sentences = ()
    remarks: Sentences = ()
    cooking: Sentences = ()
    near_misses: Sentences = ()
    payloads: Sentences = ()
    vessel: Sentences = ()
    verbs: Sentences = ()
    things: Sentences = ()
    patterns: Sentences = ()
    cook_verbs: Sentences = ()
    foods: Sentences = ()


def load_lexicons() -> dict[str, Lexicon]:
    """All languages by their code, English first.

    Raises:
        JudgeError: a changed file of the package is not a valid lexicon.
    """
    english, others = read_yaml(_FOLDER / "english.yaml"), read_yaml(_FOLDER / "languages.yaml")
    try:
        raw = {ENGLISH: english, **others}
        return {code: Lexicon.model_validate({"language": code, **lists}) for code, lists in raw.items()}
    except (TypeError, ValueError) as error:
        raise JudgeError(
            f"the lexicons must be lists of sentences by name, got folder={_FOLDER}: {error}; restore them"
        ) from None


def made_up_word(rng: random.Random) -> str:
    """A word that exists in no language, so that the classifier learns to handle unknown words."""
    syllables = [
        "".join((rng.choice("bcdfghklmnprstvz"), rng.choice("aeiou"), rng.choice(["", "", "n", "r", "l", "s"]))) for _ in "abc"
    ]
    return "".join(syllables[: rng.randint(2, 3)])


def _temperature(language: str, rng: random.Random) -> str:
    celsius = rng.randrange(140, 255, 5)
    forms = [f"{celsius} °C", f"{celsius}°C", f"{celsius}°", f"{celsius} C"]
    if language == ENGLISH:
        fahrenheit = rng.randrange(300, 480, 25)
        forms += [f"{fahrenheit} °F", f"{fahrenheit} F", f"{fahrenheit}°F", f"{fahrenheit} degrees Fahrenheit", f"{celsius}C"]
        forms += [f"{celsius} degrees", f"{celsius} degrees Celsius", f"gas mark {rng.randint(2, 8)}", f"{celsius} C fan"]
    else:
        forms += [_CELSIUS[language].format(celsius)] * 2
    return rng.choice(forms)


def _number(slot: str, language: str, rng: random.Random) -> str:
    value = {
        "n": rng.randint(1, 9),
        "n0": rng.randrange(10, 100, rng.choice((1, 5, 10))),
        "n00": rng.randrange(50, 1000, rng.choice((1, 25, 50))),
        "n000": rng.randrange(1000, 90_000, rng.choice((1, 100))),
        "t": rng.choice((5, 8, 10, 12, 15, 18, 20, 22, 25, 30, 35, 40, 45, 50, 55, 60, 75, 90)),
    }[slot]
    if language == ENGLISH and rng.random() < 0.2:
        hundreds, rest = divmod(value, 100)
        if value in _NUMBER_WORDS:
            return _NUMBER_WORDS[value]
        if hundreds < 10 and (rest == 0 or rest in _NUMBER_WORDS):
            return f"{_NUMBER_WORDS[hundreds]} hundred{' and ' + _NUMBER_WORDS[rest] if rest else ''}"
    return str(value)


def _other(slot: str, lexicon: Lexicon, rng: random.Random) -> str:
    """A filling for the slots of sizes, vessels, baked goods, verbs, things, cooking verbs and foods."""
    if slot == "size":
        return rng.choice([f"{rng.randint(1, 9)} cm", f"{rng.randint(2, 30)} mm", "half an inch", f"{rng.randint(1, 4)} inches"])
    words = {
        "good": lexicon.goods,
        "vessel": lexicon.vessel,
        "v": lexicon.verbs,
        "o": lexicon.things,
        "k": lexicon.cook_verbs,
        "f": lexicon.foods,
    }[slot]
    return made_up_word(rng) if rng.random() < 0.05 else rng.choice(words)


def fill(template: str, lexicon: Lexicon, rng: random.Random, quantified: float = 0.0) -> str:
    """Fills all slots of a template.

    Args:
        template: a sentence of the lexicon.
        lexicon: source of the words.
        rng: random generator.
        quantified: probability that an ingredient gets its quantity, 0 to 1.
    """

    def ingredient() -> str:
        return made_up_word(rng) if rng.random() < 0.06 else rng.choice(lexicon.ingredients)

    def slot(found: re.Match[str]) -> str:
        name = found.group(1)
        if name in ("n", "n0", "n00", "n000", "t"):
            return _number(name, lexicon.language, rng)
        if name == "T":
            return _temperature(lexicon.language, rng)
        if name in ("a", "b", "c"):
            if rng.random() < quantified:
                return fill(rng.choice(lexicon.quantities), lexicon, rng)
            return ("the " if lexicon.language == ENGLISH and rng.random() < 0.5 else "") + ingredient()
        if name in ("x", "y"):
            return ingredient()
        return _other(name, lexicon, rng)

    return _SLOT.sub(slot, template)
