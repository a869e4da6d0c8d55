"""The bytes that each token stands for.

Decoding by bytes makes text incremental: bytes of tokens concatenate, whereas text of tokens does not when a character
is spread over several of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from sapwood.base.errors import ModelError


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes every byte as one printable character: itself, or the next free one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


class Pieces(dict[int, bytes]):
    """Token id to bytes, filled as tokens are met. An id outside the vocabulary stands for nothing.

    `strip` is how many spaces a whole text loses at its start, because encoding puts them there.
    Raises ModelError for a tokenizer whose decoder works in another way.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._token = tokenizer.id_to_token
        self._byte_level = self._byte_fallback = False
        self._replace: list[tuple[str, str]] = []
        self._within = ""  # begins the pieces that go on with a word, where all others begin one
        self.strip = 0
        for step in _steps(tokenizer.decoder):
            match step:
                case {"type": "ByteLevel"}:
                    self._byte_level = True
                case {"type": "ByteFallback"}:
                    self._byte_fallback = True
                case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                    self._replace.append((old, new))
                case {"type": "Metaspace", "replacement": old, "prepend_scheme": scheme}:
                    self._replace.append((old, " "))
                    self.strip = int(scheme != "never")
                case {"type": "Strip", "content": " ", "start": start, "stop": 0}:
                    self.strip = start
                case {"type": "WordPiece", "prefix": prefix}:
                    self._within, self.strip = prefix, 1
                case {"type": "Fuse"}:
                    pass
                case _:
                    raise ModelError(f"The tokenizer decodes with {step}, which is not supported: give --tokenizer.")

    def __missing__(self, id: int) -> bytes:
        token = self._token(id) if 0 <= id < 2**32 else None
        if token is None:
            return b""
        self[id] = piece = self._piece(token)
        return piece

    def _piece(self, token: str) -> bytes:
        if self._byte_level:
            try:
                return bytes([BYTE_OF[char] for char in token])
            except KeyError:  # an added token, written as it is
                return token.encode()
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        if self._within:
            token = token.removeprefix(self._within) if token.startswith(self._within) else f" {token}"
        for old, new in self._replace:
            token = token.replace(old, new)
        return token.encode()


def _steps(decoder: Any) -> Iterator[dict[str, Any]]:
    """The decoder's steps as tokenizer.json has them, which is also how it is pickled."""
    if decoder is None:
        raise ModelError("The tokenizer has no decoder, so tokens cannot become text: give --tokenizer.")
    pending = [json.loads(decoder.__getstate__())]
    while pending:
        step = pending.pop(0)
        if step["type"] == "Sequence":
            pending = step["decoders"] + pending
        else:
            yield step
