"""Recordings in all formats, and files that are none or want too much."""

from __future__ import annotations

import asyncio
import io
import math
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable

import av
import numpy as np
import pytest
import soundfile

from sapwood.base.errors import RequestError
from sapwood.speech.audio import AudioLimits, Decoding, decoded, decoded_beside
from sapwood.speech.mpeg import frames_of
from tests.speech.voices import noise, wav

RATE = 44100


def tone(rate: int = RATE, seconds: float = 1.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def by_sndfile(format: str, subtype: str | None = None, *, rate: int = RATE, channels: int = 1) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.stack([tone(rate)] * channels, 1), rate, format=format, subtype=subtype)
    return out.getvalue()


def by_ffmpeg(format: str, codec: str, rate: int = 48000) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        for at in range(0, len(tone(rate)), 960):
            frame = av.AudioFrame.from_ndarray(tone(rate)[None, at : at + 960], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "wav": lambda: by_sndfile("WAV"),
    "stereo wav of floats": lambda: by_sndfile("WAV", "FLOAT", channels=2),
    "flac": lambda: by_sndfile("FLAC", rate=8000),
    "ogg": lambda: by_sndfile("OGG"),
    "mp3": lambda: by_sndfile("MP3"),
    "m4a": lambda: by_ffmpeg("mp4", "aac"),
    "webm": lambda: by_ffmpeg("webm", "libopus"),
}


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format: str) -> None:
    found = decoded(FORMATS[format]())
    assert found.samples.dtype == np.int16 and abs(found.seconds - 1.5) < 0.1
    middle = found.samples[8000:16000] / 32768
    assert abs(np.sqrt(np.mean(middle**2)) - 0.3 / math.sqrt(2)) < 0.01
    assert abs(np.abs(np.fft.rfft(middle)).argmax() * 2 - 440) <= 2


def test_what_needs_no_turning_stays_as_it_is() -> None:
    samples = noise(1.0).samples
    np.testing.assert_array_equal(decoded(wav(noise(1.0))).samples, samples)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "is empty": lambda: b"",
    "no audio that is known": lambda: b"#EXTM3U\nhttp://127.0.0.1/other\n",
    "cannot be decoded": lambda: by_sndfile("FLAC")[:3000],
    "cannot be decode": lambda: by_ffmpeg("mp4", "aac")[:400],
    "cannot be decod": lambda: b"OggS" + bytes(range(256)) * 40,
    "holds no sound": lambda: by_sndfile("WAV")[:44],
    "samples a second": lambda: by_sndfile("WAV", rate=100),
    "longer than 20 s": lambda: wav(noise(21.0)),
    "longer than 20": lambda: _lying(),
}


def changing(seconds: float = 12.0) -> bytes:
    """An MP3 that says nothing of how long it is and has frames of other lengths in its beginning than behind it: noise after silence."""
    count = int(RATE * seconds)
    sound = np.zeros(count, np.float32)
    sound[count // 4 :] = 0.2 * np.random.default_rng(1).standard_normal(count - count // 4)
    out = io.BytesIO()
    soundfile.write(out, sound, RATE, format="MP3", compression_level=0.5, bitrate_mode="VARIABLE")
    found = frames_of(data := out.getvalue())
    assert found is not None and found.told
    second = data.index(data[found.first : found.first + 2], found.first + 4)
    return data[second:]


@pytest.mark.parametrize("of", ["one", "two"])
def test_an_mp3_is_heard_to_its_end_whatever_it_says_of_its_length(of: str) -> None:
    if of == "one":
        assert abs(decoded(changing()).seconds - 12) < 0.1
    else:
        assert abs(decoded(by_sndfile("MP3") * 3).seconds - 4.5) < 0.3  # each with a count of its own


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (slice(15_000, None), r"cut off at second \d+\.\d: \d"),
        (slice(15_000, 25_000), r"(damaged at|from) second \d+\.\d"),
    ],
)
def test_an_mp3_of_which_something_is_missing_is_refused_and_the_second_named(lost: slice, said: str) -> None:
    out = io.BytesIO()
    soundfile.write(out, np.resize(tone(), RATE * 12), RATE, format="MP3", bitrate_mode="CONSTANT")
    whole = out.getvalue()
    data = bytearray(whole)
    if lost.stop is None:
        del data[lost]
    else:
        data[lost] = bytes(lost.stop - lost.start)
    with pytest.raises(RequestError, match=said) as told:
        decoded(bytes(data))
    second = re.search(r"second (\d+\.\d)", str(told.value))
    assert second is not None and abs(float(second[1]) - 12 * 15_000 / len(whole)) < 0.5
    data = bytearray(whole)
    data[-10_000:-9_900] = bytes(100)  # one frame, which nobody hears
    assert abs(decoded(bytes(data)).seconds - 12) < 0.5


def test_frames_are_those_that_a_decoder_finds() -> None:
    for rate in (8000, 16000, 22050, 44100, 48000):
        for channels in (1, 2):
            data = by_sndfile("MP3", rate=rate, channels=channels)
            found = frames_of(b"ID3\x04\0\0\0\0\0\x05later" + data + b"TAG" + bytes(125))
            assert found is not None and found.rate == rate and found.broken is None
            assert found.told == found.samples and 0 <= found.samples / rate - 1.5 < 0.4
    for other in (by_sndfile("FLAC"), by_sndfile("WAV"), by_sndfile("OGG"), b"\xff" * 100_000, b"ID3" + bytes(50)):
        assert frames_of(other) is None


def _lying() -> bytes:
    """A header that says nothing of its length, before an hour of silence in little room."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska", options={"live": "1"}) as container:
        stream = container.add_stream("flac", rate=8000)
        stream.layout = "mono"
        silence = np.zeros((1, 8000 * 60), np.int16)
        for at in range(60):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, at * silence.shape[1]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("why", HOSTILE)
def test_hostile_files_are_refused(why: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = HOSTILE[why]()
    with pytest.raises(RequestError, match=why) as told:
        decoded(data, AudioLimits(seconds=20.0))
    assert told.value.status == 400 and told.value.param == "file" and "<_io" not in str(told.value)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << 10, "kilobytes of this process"


def test_a_process_that_decodes_stays_small() -> None:
    """Asked of a process that is small itself, since a child has the size of its parent before it becomes something else."""
    script = (
        "import resource, sys; from sapwood.base.errors import RequestError; from sapwood.speech.audio import AudioLimits, decoded\n"
        "try: decoded(sys.stdin.buffer.read(), AudioLimits(seconds=20.0))\n"
        "except RequestError as error: print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, error)"
    )
    run = subprocess.run([sys.executable, "-c", script], input=_lying(), capture_output=True, check=True)
    kilobytes, _, said = run.stdout.decode().partition(" ")
    assert "longer than 20 s" in said and int(kilobytes) < 256 << 10


def test_bounds_that_the_system_holds() -> None:
    data = wav(noise(60.0))
    with pytest.raises(RequestError, match=r"within 0 MiB of memory"):
        decoded(data, AudioLimits(memory=1 << 16))
    with pytest.raises(RequestError, match="more than 0 s to decode"):
        decoded(data, AudioLimits(cpu_seconds=0))


@pytest.mark.anyio
async def test_beside_a_loop() -> None:
    one, other = await asyncio.gather(*(decoded_beside(wav(noise(count)), AudioLimits()) for count in (1.0, 2.0)))
    assert (one.seconds, other.seconds) == (1.0, 2.0)
    with pytest.raises(RequestError, match="no audio that is known"):
        await decoded_beside(b"GIF89a", AudioLimits())
    task = asyncio.ensure_future(decoded_beside(wav(noise(2.0)), AudioLimits()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
async def test_the_loop_writes_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    writers, give = list[int](), Decoding.give

    def noted(self: Decoding, data: bytes) -> None:
        writers.append(threading.get_ident())
        give(self, data)

    monkeypatch.setattr(Decoding, "give", noted)
    await decoded_beside(wav(noise(1.0)), AudioLimits())
    assert writers and threading.get_ident() not in writers


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
