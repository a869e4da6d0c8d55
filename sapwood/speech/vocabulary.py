"""The tokens by which a model of the Whisper family is told what to do, and says when something was said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sapwood.base.sampling import Timestamps
from sapwood.speech.languages import LANGUAGES

PRECISION = 0.02
"""Seconds from one mark of time to the next."""

_START, _TRANSCRIBE, _TRANSLATE = "<|startoftranscript|>", "<|transcribe|>", "<|translate|>"
_BEFORE, _ALONE, _UNMARKED, _END = "<|startofprev|>", "<|startoflm|>", "<|notimestamps|>", "<|endoftext|>"
_SILENCE = ("<|nospeech|>", "<|nocaptions|>")

# What subtitles have and nobody says, as openai-whisper lists it (`Tokenizer.non_speech_tokens`).
_SIGNS = list('"#()*+/:;<=>@[\\]^_`{|}~「」『』') + (
    "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()
)
_NOTES = set("♩♪♫♬♭♮♯")


class TextSide(Protocol):
    """What is needed of a model's text side."""

    @property
    def special_tokens(self) -> Mapping[str, int]: ...

    def encode(self, text: str, *, add_special: bool = True) -> list[int]: ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str: ...


@dataclass(frozen=True, eq=False)
class SpeechVocabulary:
    """Ids of a model's tokens.

    Attributes:
        start: Begins a transcript; `before` the text that was said before it.
        end: Ends it; tokens below are text.
        languages: By code; none of a model that knows English only, which has no tasks either.
        silence: Stands for a window in which nobody speaks.
        first_mark: The mark of 0.00 s.
        silent: Tokens that no transcript has.
    """

    text: TextSide
    start: int
    before: int
    end: int
    languages: Mapping[str, int]
    transcribe: int
    translate: int
    silence: int
    first_mark: int
    silent: tuple[int, ...]

    @property
    def unmarked(self) -> int:
        """Says that no marks follow."""
        return self.first_mark - 1

    @property
    def multilingual(self) -> bool:
        return bool(self.languages)

    @property
    def timestamps(self) -> Timestamps:
        return Timestamps(first=self.first_mark, text_end=self.end)

    def beginning(self, language: str | None, task: str) -> list[int]:
        """What a transcript begins with."""
        if not self.multilingual or language is None:
            return [self.start]
        return [self.start, self.languages[language], self.translate if task == "translate" else self.transcribe]

    def words(self, text: str) -> list[int]:
        """The tokens of what was said before, or is to be known: text alone, whatever names of tokens it has."""
        said = text.strip()
        return [id for id in self.text.encode(f" {said}", add_special=False) if id < self.end] if said else []

    def said(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, without marks, and with the space in front that it has."""
        return self.text.decode([id for id in tokens if id < self.end])

    def is_mark(self, token: int) -> bool:
        return token >= self.first_mark

    def seconds(self, mark: int) -> float:
        return (mark - self.first_mark) * PRECISION


def speech_vocabulary(
    text: TextSide, *, vocab_size: int, silent: Sequence[int] | None = None
) -> SpeechVocabulary | None:
    """Those of a model that transcribes, None of one that does not. `silent` are what its files say that transcripts do not have."""
    special = text.special_tokens
    names = (_START, _TRANSCRIBE, _TRANSLATE, _BEFORE, _ALONE, _UNMARKED, _END)
    silence = next((special[name] for name in _SILENCE if name in special), None)
    if silence is None or any(name not in special for name in names):
        return None
    start, transcribe, translate, before, alone, unmarked, end = (special[name] for name in names)
    # A model for English has the tokens of languages, but was not trained with them: its vocabulary is one smaller.
    multilingual = vocab_size >= 51865 or vocab_size < 50000
    languages = {code: special[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in special} if multilingual else {}
    never = (start, before, alone, transcribe, translate, silence, unmarked)
    return SpeechVocabulary(
        text=text,
        start=start,
        before=before,
        end=end,
        languages=languages,
        transcribe=transcribe,
        translate=translate,
        silence=silence,
        first_mark=unmarked + 1,
        silent=tuple(sorted({*never, *(_unspoken(text) if silent is None else (id for id in silent if id >= 0))})),
    )


def _unspoken(text: TextSide) -> set[int]:
    """Tokens of signs that nobody says; of notes the first token of each, which they share."""
    found = {text.encode(word, add_special=False)[0] for word in (" -", " '")}
    for sign in (*_SIGNS, *_NOTES):
        for tokens in (text.encode(sign, add_special=False), text.encode(f" {sign}", add_special=False)):
            if len(tokens) == 1 or sign in _NOTES:
                found.add(tokens[0])
    return found
