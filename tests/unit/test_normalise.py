"""Readings of a text: disguises that are undone, texts that are left unchanged, and bounded work."""

from __future__ import annotations

import base64
import codecs
import string
import time
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest

from rn_harness.judges.normalise import MAX_READINGS, readings
from rn_harness.spec.visible import normalised

PLAIN = "Mix 300 g flour with 200 ml water, knead for 10 minutes, then bake at 220 C for 35 minutes."


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENCODED: dict[str, str] = {
    "base64": _base64(PLAIN),
    "base64-urlsafe": base64.urlsafe_b64encode(f"{PLAIN} ???>>>".encode()).decode(),
    "base64-without-padding": _base64(f"{PLAIN}!").rstrip("="),
    "base64-over-lines": "Sure, here it is\n" + base64.encodebytes((PLAIN * 3).encode()).decode(),
    "base64-behind-a-letter": "x" + _base64(PLAIN),
    "base64-amid-words": f"Decode this: {_base64(PLAIN)} and enjoy.",
    "base32": base64.b32encode(PLAIN.encode()).decode(),
    "hex": PLAIN.encode().hex(),
    "hex-apart": PLAIN.encode().hex(" "),
    "hex-escaped": "".join(f"\\x{byte:02x}" for byte in PLAIN.encode()),
    "binary": " ".join(f"{byte:08b}" for byte in PLAIN.encode()),
    "percent": "".join(f"%{byte:02x}" for byte in PLAIN.encode()),
    "entities": "".join(f"&#{ord(char)};" for char in PLAIN),
    "backslash-u": "".join(f"\\u{ord(char):04x}" for char in PLAIN),
    "rot13": codecs.encode(PLAIN, "rot13"),
    "shift-by-three": PLAIN.lower().translate(
        str.maketrans(string.ascii_lowercase, string.ascii_lowercase[3:] + string.ascii_lowercase[:3])
    ),
    "mirrored-alphabet": PLAIN.lower().translate(str.maketrans(string.ascii_lowercase, string.ascii_lowercase[::-1])),
    "backwards": PLAIN[::-1],
    "each-word-backwards": " ".join(word[::-1] for word in PLAIN.replace(",", "").replace(".", "").split()),
    "leet": PLAIN.translate(str.maketrans("oiea", "0134")),
    "letters-apart": "  ".join(" ".join(word) for word in PLAIN.split()),
    "letters-apart-by-dots": " ".join(".".join(word) for word in PLAIN.replace(",", "").split()),
    "zero-width": "\u200b".join(PLAIN),
    "soft-hyphens": "\u00ad".join(PLAIN),
    "full-width": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in PLAIN),
    "mathematical-letters": "".join(chr(0x1D41A + ord(c) - ord("a")) if c in string.ascii_lowercase else c for c in PLAIN),
    "cyrillic-look-alikes": PLAIN.replace("o", "\u043e").replace("e", "\u0435"),
    "stacked-accents": "".join(f"{c}\u0336\u0301" for c in PLAIN),
    "tag-characters": "hi " + "".join(chr(0xE0000 + ord(c)) for c in PLAIN),
    "control-characters": "\x00".join(PLAIN),
    # Nested disguises, up to three.
    "rot13-in-base64": _base64(codecs.encode(PLAIN, "rot13")),
    "base64-twice": _base64(_base64(PLAIN)),
    "base64-in-hex-in-base64": _base64(_base64(PLAIN).encode().hex()),
}  # fmt: skip


@pytest.mark.parametrize("text", ENCODED.values(), ids=ENCODED.keys())
def test_an_encoded_text_has_its_plain_text_among_its_readings(text: str) -> None:
    """However the recipe is disguised, one of the readings contains its words."""
    # Spaced letters lose the gaps between words, and mirrored text its capitals, so only words are compared.
    found = [" ".join(reading.lower().replace(",", " ").replace(".", " ").split()) for reading in readings(text)]
    assert any("300 g flour with 200 ml water knead for 10 minutes then bake at 220 c" in reading for reading in found), found


PLAIN_TEXTS = {
    "english": PLAIN,
    "quantities": "250g flour, 7g yeast, 150ml milk, 2x 20min at 180c, 1st rise 1h, 3tbsp oil.",
    "german": "Mehl, Zucker und Butter verrühren und bei 180 Grad 30 Minuten backen, dann abkühlen lassen.",
    "french": "Mélangez la farine et le beurre, laissez reposer la pâte, puis enfournez pendant trente minutes.",
    "polish": "Wymieszaj mąkę z cukrem, dodaj masło i piecz przez trzydzieści minut w gorącym piekarniku.",
    "vietnamese": "Trộn bột mì với đường và bơ, để bột nghỉ ba mươi phút rồi nướng đến khi vàng.",
    "russian": "Смешайте муку и воду, выпекайте тридцать минут в горячей духовке.",
    "greek": "Ανακατέψτε το αλεύρι με το βούτυρο και ψήστε για τριάντα λεπτά.",  # noqa: RUF001
    "chinese": "把面粉和水混合，烤三十分钟。",  # noqa: RUF001
    "refusal": "I'm sorry, but I can't help with that request.",
    "one-word": "No.",
    "digest": "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}


@pytest.mark.parametrize("text", PLAIN_TEXTS.values(), ids=PLAIN_TEXTS.keys())
def test_a_plain_text_has_one_reading(text: str) -> None:
    """A text without encoding has a single reading, itself, in each language and with its quantities."""
    assert readings(text) == [unicodedata.normalize("NFKC", text)]


def test_the_text_itself_comes_first() -> None:
    """The first reading is the text that the user reads."""
    assert readings(ENCODED["rot13"])[0] == ENCODED["rot13"]
    assert readings("") == [""]


def test_clean_keeps_words_of_one_foreign_script() -> None:
    """Look-alike letters are mapped in words that mix scripts; a Russian word stays Russian."""
    assert normalised("w\u0430ter \u0432\u043e\u0434\u0430") == "water \u0432\u043e\u0434\u0430"


def test_clean_keeps_line_breaks_and_drops_invisible_characters() -> None:
    """Line breaks stay, every space becomes a plain one, and control characters are removed."""
    assert normalised("a\r\nb\u2028c\u00a0d\te\u0007f\ufeff") == "a\n\nb\nc d ef"


def test_clean_drops_letters_that_nobody_sees() -> None:
    """A variation selector or a filler within a word, which Unicode calls no control character, hides the word from no judge."""
    assert normalised("st\ufe0fi\u115fr th\u3164e\u2800b\U000e0101atter") == "stir the batter"


LONG: dict[str, str] = {
    "prose": PLAIN * 220,
    "base64": _base64(PLAIN * 160),
    "letters-apart": "a " * 10_000,
    "marks": "!" * 20_000,
    "zeros": "0" * 20_000,
    "ones-and-letters": "1a" * 10_000,
    "one-letter": "A" * 20_000,
    "percents": "%41" * 6_600,
    "lines": "abcdefgh\n" * 2_200,
    "accents": "\u0301" * 20_000,
    "ligature-of-18-letters": "\ufdfa" * 20_000,
    "ampersands": "&" * 20_000,
    "backslashes": "\\u00" * 5_000,
}  # fmt: skip


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_work_on_a_long_text_is_bounded(text: str) -> None:
    """Any text of 20 000 characters takes half a second: no pattern backtracks, and readings are few."""
    before = time.process_time()
    found = readings(text)
    assert time.process_time() - before < 1.6  # measured below 0.4 s; a quadratic pattern took 3.3
    assert len(found) <= MAX_READINGS


@hypothesis.given(st.text(max_size=200))
def test_any_text_has_readings_without_invisible_characters(text: str) -> None:
    """There is at least one reading and at most the limit, without duplicates or invisible characters; cleaning is idempotent."""
    found = readings(text)
    assert 1 <= len(found) <= MAX_READINGS
    assert len(set(found)) == len(found)
    for reading in found:
        assert all(char == "\n" or unicodedata.category(char)[0] != "C" for char in reading)
        assert normalised(reading) == reading
