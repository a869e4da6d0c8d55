"""Streams that were asked for their usage by the router and not by the client, who is not to see it."""

from __future__ import annotations

import re

_END = re.compile(rb"\r?\n\r?\n")
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_LONGEST = 1 << 20  # bytes of an event that are waited for


class Unasked:
    """Takes the event of a stream of server-sent events that has nothing but usage out of it. Other events pass when they are whole."""

    def __init__(self) -> None:
        self._open = b""

    def passes(self, piece: bytes) -> bytes:
        """What may go on, given what has come; b"" if nothing may yet."""
        piece, passed, begin = self._open + piece, [], 0
        for end in _END.finditer(piece):
            event = piece[begin : end.end()]
            if not (_NO_CHOICES.search(event) and _USAGE.search(event)):
                passed.append(event)
            begin = end.end()
        self._open = piece[begin:]
        if len(self._open) > _LONGEST:
            passed.append(self.rest())
        return b"".join(passed)

    def rest(self) -> bytes:
        """What is left at the end of the stream."""
        left, self._open = self._open, b""
        return left
