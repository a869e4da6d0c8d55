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
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, tokens: Iterable[int]) -> str:
        return self._decode(b"".join([self._pieces[token] for token in tokens if token not in self._skip]))

    def finish(self) -> str:
        """The text of an incomplete tail, usually empty. Nothing may be pushed afterwards."""
        return self._decode(b"", True)
