"""Tokens to text, a few at a time."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Mapping


class Detokenizer:
    """Text of a growing list of tokens: whatever the steps, the pieces join to the text of all tokens.

    The bytes of a character that is not complete yet are held back; bytes that cannot become one turn into U+FFFD,
    once per maximal invalid run as the Unicode standard recommends. Tokens in `skip` have no text.
    """

    def __init__(self, pieces: Mapping[int, bytes], *, skip: Collection[int] = ()) -> None:
        self._pieces = pieces
        self._skip = skip
        self._tail = b""  # the beginning of a character

    def push(self, tokens: Iterable[int]) -> str:
        pieces, skip = self._pieces, self._skip
        data = self._tail + b"".join([pieces[token] for token in tokens if token not in skip])
        # What codecs' incremental decoder does, without its layers: this runs for every token of every stream.
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._tail = data[used:]
        return text

    def finish(self) -> str:
        """The text of an incomplete tail, usually empty. Nothing may be pushed afterwards."""
        return self._tail.decode("utf-8", "replace")

    def cut_off_by(self, piece: bytes) -> bool:
        """Whether the character that is not complete yet never will be if `piece` comes next."""
        try:
            codecs.utf_8_decode(self._tail + piece[:1], "strict", False)
        except UnicodeDecodeError:
            return bool(self._tail)
        return False


class Places:
    """Where each token of a growing list begins in its text, in characters. A character has one place, however many
    tokens it is of; a token without text stands where the next one does.

    Tokens in `skip` have no text. `text` is that of a prompt, if it is known: special tokens that are not written in it
    are skipped, and so is a space that encoding has put in front. `begin` is the place of the first token.
    """

    def __init__(
        self, pieces: Mapping[int, bytes], *, skip: Collection[int] = (), text: str | None = None, begin: int = 0
    ) -> None:
        self._pieces = pieces
        self._skip = skip
        self._text = text
        self._at = begin
        self._detokenizer = Detokenizer(pieces)

    def push(self, token: int) -> int:
        piece = self._pieces[token]
        if token in self._skip and (self._text is None or not self._text.startswith(piece.decode(), self._at)):
            return self._at
        place = self._at + self._detokenizer.cut_off_by(piece)
        fresh = self._detokenizer.push((token,))
        if self._text is not None and fresh.startswith(" ") and not self._text.startswith(" ", self._at):
            fresh = fresh[1:]
        self._at += len(fresh)
        if self._text is not None:
            self._at = min(self._at, len(self._text))
        return place
