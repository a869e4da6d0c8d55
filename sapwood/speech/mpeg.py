"""MP3 files by their frames (ISO 11172-3 and 13818-3): how long one is, and where it is broken, whatever its header says or leaves out.

A decoder goes by a count in the first frame (Xing's, by its finder), and guesses without one: from one file that was made of two it takes half,
and of one whose bit rate varies what its first frame would mean for all. So the count is made here, and written where it is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KILOBITS = {  # by version 1 or a later one, and layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_ANY = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]")
_COUNTS = (b"Xing", b"Info")
_HEAD = 4
_LAYER_III = 0x02
_TAGS = 64  # of one kind in a row that are passed over


class _Frame(NamedTuple):
    rate: int
    samples: int
    length: int


@dataclass
class Mpeg:
    """What a file has.

    Attributes:
        first: Where its first frame begins that is one.
        rate: Samples a second.
        samples: Of all frames that are there, but for one that only counts the others.
        told: Of as many frames as the file says it has; None where it says nothing.
        broken: The second at which there first is something else between frames, None if that is nowhere so.
    """

    first: int
    rate: int
    samples: int
    told: int | None
    broken: float | None


def frames_of(data: bytes) -> Mpeg | None:
    """None for a file of another kind, which begins in another way, or of frames that do not say how long they are. Costs time as the file is long, whatever is in it."""
    begin = _behind_tags(data, 0)
    if not (begin or data[:1] == b"\xff") or data[begin : begin + 4] in (b"fLaC", b"RIFF", b"OggS"):
        return None
    first = _next(data, begin, _ANY)
    if first is None:
        return None
    frame = _frame(data, first)
    assert frame is not None, "what `_next` has found"
    # The same version, layer and rate as the first, protected or not.
    same = re.compile(rb"\xff[" + re.escape(bytes((data[first + 1] | 1, data[first + 1] & 0xFE))) + rb"][\x10-\xef]")
    told = _told(data, first, frame)
    at = first if told is None else first + frame.length
    samples, broken = 0, None
    while at < len(data):
        if same.match(data, at) and (now := _frame(data, at)) is not None and now.rate == frame.rate:
            if at + now.length > len(data):
                break  # the last one is not whole
            at, samples = at + now.length, samples + now.samples
        elif (behind := _behind_tags(data, at)) > at:
            at = behind
        else:
            found = _next(data, at + 1, same)
            if found is None:
                break  # what is behind the last frame is no sound
            broken = samples / frame.rate if broken is None else broken
            at = found
    return Mpeg(first, frame.rate, samples, None if told is None else told * frame.samples, broken)


def counted(data: bytes, found: Mpeg) -> bytes:
    """The file with a frame before all others that says how many there are, and without one that said something else."""
    frame = _frame(data, found.first)
    assert frame is not None, "it was one before"
    if data[found.first + 1] & 0x06 != _LAYER_III:
        return data  # where there is no place for one
    rest = found.first if found.told is None else found.first + frame.length
    place = _place_of_count(data, found.first)
    body = _COUNTS[0] + (1).to_bytes(4, "big") + (found.samples // frame.samples).to_bytes(4, "big")
    # Bits enough for the count, and unprotected: there is nothing else in it.
    head = bytes((0xFF, data[found.first + 1] | 1, 0x90 | (data[found.first + 2] & 0x0C), data[found.first + 3]))
    made = _frame(head, 0)
    assert made is not None, "a head of ours"
    return (head + bytes(place - _HEAD) + body).ljust(made.length, b"\0") + data[rest:]


def _frame(data: bytes, at: int) -> _Frame | None:
    if at + _HEAD > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    bits, rate = data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or layer == 4 or not 0 < bits < 15 or rate == 3:
        return None
    hertz, padded = _RATES[version][rate], data[at + 2] >> 1 & 1
    bit_rate = _KILOBITS[version == 3, layer][bits - 1] * 1000
    if layer == 1:
        return _Frame(hertz, 384, (12 * bit_rate // hertz + padded) * 4)
    samples = 576 if layer == 3 and version != 3 else 1152
    return _Frame(hertz, samples, samples // 8 * bit_rate // hertz + padded)


def _next(data: bytes, at: int, pattern: re.Pattern[bytes]) -> int | None:
    """Where the next frame begins behind which there is another one, or the end."""
    for place in pattern.finditer(data, at):
        frame = _frame(data, place.start())
        if frame is not None:
            behind = place.start() + frame.length
            if behind == len(data) or pattern.match(data, behind) or _behind_tags(data, behind) > behind:
                return place.start()
    return None


def _behind_tags(data: bytes, at: int) -> int:
    """Where there is no tag (ID3, APE, Lyrics3) any more."""
    for _ in range(_TAGS):
        if data[at : at + 3] == b"ID3" and at + 10 <= len(data):
            size = sum(
                (byte & 0x7F) << shift for byte, shift in zip(data[at + 6 : at + 10], (21, 14, 7, 0), strict=True)
            )
            at += 10 + size + (10 if data[at + 5] & 0x10 else 0)
        elif data[at : at + 3] == b"TAG":
            at += 128
        elif data[at : at + 8] == b"APETAGEX":
            at += 32 + int.from_bytes(data[at + 12 : at + 16], "little")
        elif data[at : at + 11] == b"LYRICSBEGIN" and (end := data.find(b"LYRICS200", at)) >= 0:
            at = end + 9
        else:
            break
    return at


def _place_of_count(data: bytes, first: int) -> int:
    """Behind what a frame of layer III has for each channel."""
    one, mono = data[first + 1] >> 3 & 3 == 3, data[first + 3] >> 6 == 3
    return _HEAD + ((17 if mono else 32) if one else (9 if mono else 17))


def _told(data: bytes, first: int, frame: _Frame) -> int | None:
    """Frames that the first one says there are, if that is what it is for."""
    place = first + _place_of_count(data, first)
    if data[place : place + 4] in _COUNTS:
        has_count = data[place + 7] & 1 if place + 12 <= len(data) else 0
        return int.from_bytes(data[place + 8 : place + 12], "big") if has_count else 0
    place = first + 36
    if data[place : place + 4] == b"VBRI":
        return int.from_bytes(data[place + 14 : place + 18], "big")
    return None
