"""What a request brings besides its text: images, sound, the tokens of another text, prepared for an encoder.

The front decodes and prepares; what crosses to the engine are arrays, and what names them is their content:

    prompt     t t t [ image 0 .......... ] t t [ image 1 .. ] t
    spans            start, length, media 0     start, length, media 1
    keys       t t t  n n n n n n n n n n  t t   n n n n n n   t      n < 0, made of digest and offset

Where a span lies, the prompt's tokens are places only. The tree's *keys* have numbers there that follow from the content, so that
the same image behind the same text is a prefix that was seen before, and another one is not. What has no span, and is seen by
every token, as a text that is to be translated, joins the request's namespace instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b, shake_128
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from sapwood.base.errors import RequestError

Kind = Literal["image", "video", "audio", "tokens"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DIGEST_BYTES = 16
_DTYPES = {
    np.dtype(kind).name: np.dtype(kind) for kind in (np.float32, np.float16, np.int32, np.int64, np.uint8, np.bool_)
}
_PLACE = np.int32(-(2**31))  # the sign: no token has it


class Array(msgspec.Struct, frozen=True, array_like=True):
    """An array as it travels: the name of its dtype, its shape, its bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @staticmethod
    def of(array: NDArray[np.generic]) -> Array:
        """Raises ValueError for a dtype that does not travel."""
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"arrays of {array.dtype.name} do not travel")
        return Array(array.dtype.name, array.shape, array.tobytes())

    def numpy(self) -> NDArray[np.generic]:
        """A view that cannot be written to. Raises ValueError for what is no array."""
        if self.dtype not in _DTYPES or min(self.shape, default=0) < 0:
            raise ValueError(f"no array: {self.dtype} {self.shape}")
        return np.frombuffer(self.data, _DTYPES[self.dtype]).reshape(self.shape)


class Media(msgspec.Struct, frozen=True, array_like=True):
    """One image, say, as its encoder takes it.

    `digest` names the content: media with the same one are encoded once. `arrays` are what the model's encoder is fed with, by the
    names that it gives them. `length` is how many positions its result has.
    """

    kind: Kind
    digest: bytes
    arrays: dict[str, Array]
    length: int

    @staticmethod
    def of(kind: Kind, arrays: Mapping[str, NDArray[np.generic]], length: int) -> Media:
        """With the digest of what it is made of."""
        packed = {name: Array.of(array) for name, array in arrays.items()}
        return Media(kind, digest_of(kind, packed), packed, length)


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Positions [start, start + length) of a prompt stand for positions [offset, offset + length) of what the encoder makes of
    the request's media number `index`."""

    start: int
    length: int
    index: int
    offset: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length


def digest_of(kind: Kind, arrays: Mapping[str, Array]) -> bytes:
    """A name of the content, by which nothing else is called."""
    made = blake2b(kind.encode(), digest_size=DIGEST_BYTES)
    for name in sorted(arrays):
        array = arrays[name]
        made.update(f"\0{name}\0{array.dtype}{array.shape}{len(array.data)}\0".encode())
        made.update(array.data)
    return made.digest()


def check_kinds(media: Sequence[Media], kinds: Collection[Kind]) -> None:
    """Raise RequestError unless the model has an encoder for all of them."""
    for one in media:
        if one.kind not in kinds:
            can = f"its encoder takes {', '.join(kinds)}" if kinds else "it has no encoder"
            raise RequestError(f"this model takes no {one.kind}: {can}.", param="media", code="unsupported_media")


def check_spans(media: Sequence[Media], spans: Sequence[Span], *, prompt_len: int) -> None:
    """Raise ValueError, saying why, unless spans lie within the prompt in order, apart from each other, and within their media."""
    end = 0
    for span in spans:
        if not 0 <= span.index < len(media):
            raise ValueError(f"a span is of media {span.index}, of which there are {len(media)}")
        if span.start < end or span.length < 1 or span.end > prompt_len:
            raise ValueError(f"span [{span.start}, {span.end}) overlaps another one or leaves the prompt")
        if not 0 <= span.offset <= media[span.index].length - span.length:
            raise ValueError(f"media {span.index} has {media[span.index].length} positions, a span wants more")
        end = span.end
    for one in media:
        if len(one.digest) != DIGEST_BYTES:
            raise ValueError(f"a digest has {DIGEST_BYTES} bytes")


def keyed(tokens: NDArray[np.int32], media: Sequence[Media], spans: Sequence[Span]) -> NDArray[np.int32]:
    """The tokens as keys of the tree: where spans lie, negative numbers that follow from content and offset."""
    keys = tokens.copy()
    for span in spans:
        stream = shake_128(media[span.index].digest).digest(4 * (span.offset + span.length))
        keys[span.start : span.end] = np.frombuffer(stream, np.int32)[span.offset :] | _PLACE
    return keys


def seen_by_all(media: Sequence[Media], spans: Sequence[Span]) -> str:
    """What media without spans add to a namespace."""
    placed = {span.index for span in spans}
    return "".join(f"{one.digest.hex()}\0" for index, one in enumerate(media) if index not in placed)
