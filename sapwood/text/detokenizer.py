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
