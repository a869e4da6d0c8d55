"""Streams that were asked for their usage by the router and not by the client, who is not to see it."""

from __future__ import annotations

import re

_END = b"\n\n"
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_USAGE = re.compile(rb'"usage"\s*:\s*\{')


class Unasked:
    """Takes the event of a stream of server-sent events that has nothing but usage out of it. Other events pass when they are whole."""

    def __init__(self) -> None:
        self._open = b""

    def passes(self, piece: bytes) -> bytes:
        """What may go on, given what has come; b"" if nothing may yet."""
        piece = self._open + piece
        end = piece.rfind(_END) + len(_END)
        if end < len(_END):
            self._open = piece
            return b""
        self._open = piece[end:]
        piece = piece[:end]
        if _NO_CHOICES.search(piece) is None:
            return piece
        events = piece.split(_END)
        return _END.join(event for event in events if not (_NO_CHOICES.search(event) and _USAGE.search(event)))

    def rest(self) -> bytes:
        """What is left at the end of the stream."""
        return self._open
