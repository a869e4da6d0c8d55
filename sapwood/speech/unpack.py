"""The process that decodes one file: from standard input to 16 kHz mono int16 on standard output, a piece at a time.

It restrains itself before it reads a byte, so what a hostile file can do ends here: processor time, memory and the size of what
is written are bounded by the system. The last line on standard error is JSON that says what is wrong, if anything is.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sapwood.speech.mpeg import Mpeg, counted, frames_of

RATE = 16_000
_BLOCK = 1 << 18  # numbers that are decoded at once, all channels together
_RATES = (1000, 384_000)
_MOST_CHANNELS = 64
_PEAK = 32767
_MISSED = 0.5  # seconds of a recording that may be missing: encoders add some, and one broken frame is heard by nobody

Floats = NDArray[np.float32]


class Bad(Exception):
    """What is wrong with a file."""


def main(limits: str) -> None:
    """Decode within limits (JSON of `AudioLimits`), and exit."""
    asked = json.loads(limits)
    try:
        data = sys.stdin.buffer.read()
        kind = _kind(data)
        import soxr

        reader = _sndfile() if kind == "sound" else _ffmpeg(kind)
        _restrain(asked)
        _write(reader(data, asked["seconds"]), asked["seconds"], soxr)
    except Bad as error:
        _end(str(error))
    except MemoryError:
        _end(f"it cannot be decoded within {asked['memory'] >> 20} MiB of memory")
    except Exception as error:  # whatever a decoder says of it
        _end(f"it cannot be decoded: {_said(error)}")
    os._exit(0)


def _said(error: Exception) -> str:
    return re.sub(r"<_io\.[^>]*>: |'<none>'", "", " ".join(str(error).split()))[:200].rstrip(" :")


def _end(why: str) -> NoReturn:
    os.write(2, b"\n" + json.dumps({"error": why.rstrip(".")}).encode() + b"\n")
    os._exit(1)


def _restrain(asked: dict[str, Any]) -> None:
    mapped = 0
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    size = int(asked["seconds"] * RATE + _BLOCK) * 2
    for what, most in (
        (resource.RLIMIT_AS, mapped + asked["memory"] if mapped else resource.RLIM_INFINITY),
        (resource.RLIMIT_CPU, asked["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


_SIGNS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"RIFF", "sound"),
    (0, b"RF64", "sound"),
    (0, b"FORM", "sound"),
    (0, b".snd", "sound"),
    (0, b"fLaC", "sound"),
    (0, b"OggS", "sound"),
    (0, b"ID3", "sound"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
)


def _kind(data: bytes) -> str:
    """Who reads it: libsndfile ("sound"), or FFmpeg by the name of a format. By its first bytes alone, and never a list of other files to be
    opened."""
    if not data:
        raise Bad("it is empty")
    for at, sign, kind in _SIGNS:
        if data[at : at + len(sign)] == sign:
            return kind
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "aac" if data[1] & 0x06 == 0 else "sound"
    raise Bad("it is no audio that is known here: WAV, FLAC, OGG, MP3, M4A, MP4, AAC or WebM")


Stream = tuple[int, Iterator[Floats]]
"""Samples a second, and pieces of one channel."""

Reader = Callable[[bytes, float], Stream]


def _sndfile() -> Reader:
    import soundfile

    return lambda data, most: _by_sndfile(soundfile, data, most)


def _ffmpeg(kind: str) -> Reader:
    try:
        import av
    except ImportError:
        raise Bad(f"{kind} is read by a library that is not installed: pip install 'sapwood[audio]'") from None
    av.logging.set_level(None)
    return lambda data, most: _by_ffmpeg(av, kind, data, most)


def _by_sndfile(soundfile: Any, data: bytes, most: float) -> Stream:
    mpeg = frames_of(data)
    if mpeg is not None:
        data = _with_its_length(data, mpeg)
    file = soundfile.SoundFile(io.BytesIO(data))
    rate = file.samplerate
    _check(rate, file.channels)
    if file.frames > 0 and file.frames / rate > most:
        raise _too_long(most)
    whole = file.frames / rate if mpeg is None else min(file.frames, mpeg.samples) / rate

    def pieces() -> Iterator[Floats]:
        count, done = max(_BLOCK // file.channels, 1), 0
        begins = None if mpeg is None else mpeg.broken
        try:
            while len(piece := file.read(count, dtype="float32", always_2d=True)):
                done += len(piece)
                yield piece.mean(1, dtype=np.float32) if file.channels > 1 else piece[:, 0]
        except soundfile.LibsndfileError as error:
            raise Bad(f"it cannot be decoded from second {_shown(done / rate, begins)} on: {_said(error)}") from None
        if done / rate < whole - _MISSED:
            raise _damaged(_shown(done / rate, begins), whole - done / rate)

    return rate, pieces()


def _with_its_length(data: bytes, mpeg: Mpeg) -> bytes:
    """An MP3 from which all is read. Raises Bad for one of which the end is missing."""
    if mpeg.told and (missing := (mpeg.told - mpeg.samples) / mpeg.rate) > _MISSED and mpeg.broken is None:
        raise Bad(f"it is cut off at second {mpeg.samples / mpeg.rate:.1f}: {missing:.1f} s are missing")
    return data if mpeg.told and mpeg.told >= mpeg.samples else counted(data, mpeg)


def _shown(done: float, broken: float | None) -> str:
    return f"{done if broken is None else broken:.1f}"


def _damaged(at: str, missing: float) -> Bad:
    return Bad(f"it is damaged at second {at}: {missing:.1f} s of it cannot be decoded")


def _by_ffmpeg(av: Any, kind: str, data: bytes, most: float) -> Stream:
    container = av.open(io.BytesIO(data), format=kind, metadata_errors="ignore", options={"protocol_whitelist": ""})
    if not container.streams.audio:
        raise Bad("it holds no sound")
    stream = container.streams.audio[0]
    stream.thread_type = "NONE"
    if container.duration is not None and container.duration / 1e6 > most:
        raise _too_long(most)
    rate = stream.rate
    _check(rate, stream.channels)
    mixer = av.AudioResampler(format="flt", layout="mono", rate=rate)

    whole = _told_by(container, stream)

    def pieces() -> Iterator[Floats]:
        done = 0
        try:
            for frame in itertools.chain(container.decode(stream), (None,)):
                for mixed in mixer.resample(frame):
                    done += mixed.samples
                    yield mixed.to_ndarray()[0]
        except av.FFmpegError as error:
            raise Bad(f"it cannot be decoded from second {done / rate:.1f} on: {_said(error)}") from None
        if done / rate < whole - _MISSED:
            raise _damaged(f"{done / rate:.1f}", whole - done / rate)

    return rate, pieces()


def _told_by(container: Any, stream: Any) -> float:
    """Seconds of sound that a file says it has; 0 where it says nothing of its sound."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if container.duration is not None and len(container.streams) == 1 else 0.0


def _check(rate: int, channels: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise Bad(f"it has {rate} samples a second; {_RATES[0]} to {_RATES[1]} are read")
    if not 1 <= channels <= _MOST_CHANNELS:
        raise Bad(f"it has {channels} channels; at most {_MOST_CHANNELS} are read")


def _too_long(most: float) -> Bad:
    return Bad(f"it is longer than {most:g} s, which is the most that is transcribed at once: cut it")


def _write(stream: Stream, most: float, soxr: Any) -> None:
    rate, pieces = stream
    turn = soxr.ResampleStream(rate, RATE, 1, dtype="float32") if rate != RATE else None
    left = int(most * RATE)
    for piece in pieces:
        left = _put(piece if turn is None else turn.resample_chunk(_finite(piece)), left, most)
    if turn is not None:
        _put(turn.resample_chunk(np.zeros(0, np.float32), last=True), left, most)


def _put(piece: Floats, left: int, most: float) -> int:
    if len(piece) > left:
        raise _too_long(most)
    whole = np.clip(np.rint(_finite(piece) * (_PEAK + 1)), -_PEAK - 1, _PEAK).astype(np.int16)
    data = memoryview(whole.tobytes())
    while data:
        data = data[os.write(1, data) :]
    return left - len(piece)


def _finite(piece: Floats) -> Floats:
    return np.nan_to_num(piece, nan=0.0, posinf=1.0, neginf=-1.0)
