"""In which language a text is: by its script where that says it, and else by the words that no sentence of a language does without."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

_LONGEST = 4000  # characters that are looked at

_SCRIPTS = (
    ("ja", "\u3040", "\u30ff"),
    ("ko", "\uac00", "\ud7af"),
    ("zh", "\u4e00", "\u9fff"),
    ("el", "\u0370", "\u03ff"),
    ("ru", "\u0400", "\u04ff"),
    ("he", "\u0590", "\u05ff"),
    ("ar", "\u0600", "\u06ff"),
    ("hi", "\u0900", "\u097f"),
    ("th", "\u0e00", "\u0e7f"),
)
_UKRAINIAN = frozenset("іїєґІЇЄҐ")
_STOPS = {
    "en": "the of and to in is that it for with as on are this be at by from what how why who can you my do does not or have which",
    "de": "der die das und ist ein eine zu den von mit für auf nicht dem des wie was ich wir warum kann bitte im es sind oder auch mir",
    "fr": "le la les de des et un une est que qui dans pour pas sur avec il je vous quel quelle comment pourquoi ce du au en mon sont",
    "es": "el la los las de que y en un una es por con para no se del al como cómo qué cuál mi lo su más está son",
    "it": "il lo la gli di che e un una è per con non del della come cosa qual perché mi sono si al nel i le più",
    "pt": "o a os as de que e um uma é por com para não do da em no na como qual meu se mais são ao",
    "nl": "de het een en van is dat in op te met voor niet wat hoe waarom ik je kan zijn er aan door mijn bij",
    "sv": "och att det en ett är som på för med av inte den jag vad hur varför kan till om har min",
    "pl": "i w na z się nie to jest że do jak co o dla czy mi jaki jaka po od są",
    "tr": "ve bir bu için ile ne nasıl neden mi da de en çok var olarak ben bana gibi",
}
_WORDS = {code: frozenset(words.split()) for code, words in _STOPS.items()}
_WORD = re.compile(r"[^\W\d_]+")


class Spoken(NamedTuple):
    """A language (ISO 639-1), "" for none that is known, and how sure that is, from 0 to 1."""

    language: str
    score: float


def spoken(text: str) -> Spoken:
    """The language of a text's first few thousand characters."""
    text = text[:_LONGEST]
    letters = [letter for letter in text if letter.isalpha()]
    if not letters:
        return Spoken("", 0.0)
    counts = Counter(code for letter in letters for code, first, last in _SCRIPTS if first <= letter <= last)
    if counts["ja"] and counts["ja"] >= 0.1 * counts["zh"]:
        counts["ja"] += counts.pop("zh", 0)  # Japanese is written in both
    for code, count in counts.most_common(1):
        if count >= 0.3 * len(letters):
            language = "uk" if code == "ru" and _UKRAINIAN.intersection(text) else code
            return Spoken(language, round(count / len(letters), 3))
    return _by_words(text)


def _by_words(text: str) -> Spoken:
    words = _WORD.findall(text.lower())
    hits = {code: sum(word in stops for word in words) for code, stops in _WORDS.items()}
    best, second = sorted(hits, key=lambda code: -hits[code])[:2]
    if not hits[best]:
        return Spoken("", 0.0)
    return Spoken(best, round((hits[best] - hits[second] + 1) / (hits[best] + 1), 3))
