"""Whether a signal of the table is there in a question, how strongly, and why; or that nobody can say now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sapwood.route.inner import Inner, Unanswered
from sapwood.route.semantic import sieves
from sapwood.route.semantic.languages import spoken
from sapwood.route.semantic.meanings import Meanings
from sapwood.route.semantic.question import Question
from sapwood.route.semantic.table import (
    Examples,
    Has,
    Jailbreak,
    Label,
    Language,
    Pattern,
    Personal,
    Reasoning,
    Signal,
    Size,
    Words,
)
from sapwood.route.sizes import estimated

_LONGEST_LABELLED = 4000  # characters that a classifier is given


class Found(NamedTuple):
    """`holds` is None where it is not known; `score` is from 0 to 1."""

    holds: bool | None
    score: float
    why: str


def is_slow(signal: Signal) -> bool:
    """Whether a model has to be asked."""
    return isinstance(signal, Examples | Label)


def seen(signal: Signal, question: Question) -> Found:
    """A signal that no model has to be asked about."""
    if isinstance(signal, Has):
        there = sorted(question.has.intersection(signal.any))
        return Found(bool(there), float(bool(there)), ", ".join(there) or "none of these")
    if isinstance(signal, Size):
        return _size(signal, question)
    text = question.part(signal.of)
    match signal:
        case Words() | Pattern():
            hits = [match[0] for match in _pattern(signal).finditer(text)]
            score = min(1.0, len(hits) / signal.at_least)
            shown = ", ".join(repr(hit[:40]) for hit in dict.fromkeys(hits[:5])) or "nothing"
            return Found(len(hits) >= signal.at_least, score, shown)
        case Language():
            language, score = spoken(text)
            return Found(
                language in signal.any, score if language in signal.any else 0.0, language or "no language known"
            )
        case Reasoning():
            score = 1.0 if question.wants_thought else sieves.thought(text)
            return Found(score >= signal.at_least, score, "asked for" if question.wants_thought else "by its words")
        case Personal():
            kinds = [kind for kind in sieves.personal(text) if kind in signal.any]
            return Found(bool(kinds), float(bool(kinds)), ", ".join(kinds) or "nothing")
        case Jailbreak():
            score = sieves.jailbreak(text)
            return Found(score >= signal.at_least, score, "by its words")
    raise AssertionError(signal)


async def asked(signal: Signal, question: Question, meanings: Meanings | None, inner: Inner) -> Found:
    """A signal that a model is asked about; not known where it does not answer."""
    try:
        if isinstance(signal, Label):
            return await _label(signal, question, inner)
        assert isinstance(signal, Examples) and meanings is not None
        return await _examples(signal, question, meanings)
    except Unanswered as error:
        return Found(None, 0.0, str(error))


def _size(signal: Size, question: Question) -> Found:
    match signal.unit, signal.of:
        case "messages", _:
            size = question.messages
        case "characters", part:
            size = len(getattr(question, part))
        case _, "all":
            size = question.tokens
        case _, part:
            size = estimated(getattr(question, part))
    holds = size >= signal.at_least and (signal.at_most is None or size <= signal.at_most)
    return Found(holds, float(holds), f"{size} {signal.unit}")


async def _examples(signal: Examples, question: Question, meanings: Meanings) -> Found:
    wanted = [texts for texts in (signal.like, signal.unlike) if texts]
    for texts in wanted:
        meanings.examples(texts)  # without them the text's own vector is of no use
    text = question.part(signal.of)
    if not text.strip():
        return Found(False, 0.0, "no text")
    vector = await meanings.of(text)
    like, unlike = meanings.examples(signal.like), meanings.examples(signal.unlike) if signal.unlike else None
    near = like @ vector
    best = int(np.argmax(near))
    score = round(float(np.clip(near[best], 0, 1)), 4)
    why = f"nearest to {signal.like[best][:60]!r}"
    if unlike is not None and float((unlike @ vector).max()) > near[best]:
        return Found(False, score, f"{why}, but nearer to {signal.unlike[int(np.argmax(unlike @ vector))][:60]!r}")
    return Found(score >= signal.at_least, score, why)


async def _label(signal: Label, question: Question, inner: Inner) -> Found:
    text = question.part(signal.of)[:_LONGEST_LABELLED]
    if not text.strip():
        return Found(False, 0.0, "no text")
    said = await inner.ask(signal.model, "/classify", {"input": [text]}, timeout=signal.timeout)
    try:
        one = said["data"][0]
        label, shares = str(one["label"]), [float(share) for share in one["probs"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unanswered(f"{signal.model} answers with no labels: {error}") from error
    # Only the likeliest label is told by name; of two labels that says the other one's share too.
    share = max(shares)
    score = share if label in signal.any else 1 - share if len(shares) == 2 else 0.0
    return Found(0 < score >= signal.at_least, round(score, 4), f"{label} {share:.2f}")


@lru_cache(maxsize=256)
def _pattern(signal: Words | Pattern) -> re.Pattern[str]:
    if isinstance(signal, Pattern):
        return re.compile("|".join(f"(?:{pattern})" for pattern in signal.any), re.MULTILINE)
    words = "|".join(re.escape(word) for word in sorted(signal.any, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


def shown(found: Mapping[str, Found]) -> str:
    """Signals that hold, with their scores, for a header."""
    return ", ".join(f"{name} {one.score:.2f}" for name, one in found.items() if one.holds)
