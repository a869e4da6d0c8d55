"""How many tokens an answer has used, by what is seen of it as it passes."""

from __future__ import annotations

import re
import zlib
from collections import deque
from collections.abc import Iterable

from sapwood.route.ask import Ask

_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d+)')
_PARTS = re.compile(
    rb'"((?:cache_read_input|cache_creation_input|input|output|prompt|completion)_tokens|prompt_eval_count|eval_count)"\s*:\s*(\d+)'
)
_HEAD = 2  # first pieces, in which Anthropic's streams say what their prompts are
_TAIL = 16 << 10  # last bytes, in which all others say all
_GZIP_OR_DEFLATE = 47  # whichever it is, as zlib has it
_TOKEN = 4  # bytes


class Meter:
    """Sees the answer to a request. Where that is not seen to its end, or does not say what it has used, its pieces count, and about as many
    tokens as the prompt has."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._head: list[bytes] = []
        self._tail: deque[bytes] = deque()
        self._kept = self._pieces = self._num_bytes = 0
        self._begun = self._whole = False
        self._good, self._streams = True, False
        self._unpacker: zlib._Decompress | None = None
        self._opaque = False

    def sent(self) -> None:
        """A server works on it."""
        self._begun = True

    def begins(self, status: int, encoding: str, *, streams: bool) -> None:
        """An answer comes, of that status, in `encoding` if it is compressed."""
        self._good, self._streams = status == 200, streams
        packed = encoding.strip().lower()
        self._unpacker = zlib.decompressobj(_GZIP_OR_DEFLATE) if packed in ("gzip", "deflate") else None
        self._opaque = packed not in ("", "identity", "gzip", "deflate")

    def sees(self, piece: bytes) -> None:
        """The next piece of it."""
        if self._unpacker is not None:
            try:
                piece = self._unpacker.decompress(piece)
            except zlib.error:
                self._unpacker, self._opaque = None, True
        self._num_bytes += len(piece)
        if self._streams:
            self._pieces += piece.count(b"\n\n") + piece.count(b"\r\n\r\n") or piece.count(b"\n")
        if len(self._head) < _HEAD:
            self._head.append(piece)
            return
        self._tail.append(piece)
        self._kept += len(piece)
        while self._kept - len(self._tail[0]) >= _TAIL:
            self._kept -= len(self._tail.popleft())

    def ends(self) -> None:
        """It was whole."""
        self._whole = True

    def refused(self) -> None:
        """Nobody worked on it after all."""
        self._begun = False

    @property
    def tokens(self) -> int:
        """Tokens used so far: as the answer says itself; else its pieces, and those of the prompt."""
        if not self._begun or not self._good:
            return 0
        if self._opaque:
            return self._ask.prompt_tokens + self._num_bytes // _TOKEN
        if said := tokens_in([*self._head, *self._tail]):
            return said if self._whole else max(said, self._ask.prompt_tokens + self._pieces)
        return self._ask.prompt_tokens + self._pieces if self._streams or not self._whole else 0


def tokens_in(pieces: Iterable[bytes]) -> int:
    """Tokens that an answer says it has used, 0 if it does not. What it says last counts: streams say it again and again."""
    seen = b"".join(pieces)
    if totals := _TOTAL.findall(seen):
        return int(totals[-1])
    return sum({name: int(number) for name, number in _PARTS.findall(seen)}.values())
