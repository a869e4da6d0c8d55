"""A server that transcribes: OpenAI's own client, many recordings at once, and files that nobody vouches for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile

from tests.http.conftest import Server
from tests.speech import whisper
from tests.speech.voices import noise, wav
from tests.waiting import SECONDS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("whisper")
    whisper.write(path)
    server = Server(
        path, "--threads", "1", "--max-num-seqs", "4", "--max-audio-seconds", "120", "--served-model-name", "w"
    )
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=0, timeout=SECONDS)


def test_recordings_at_once_and_streams(server: Server, client: openai.OpenAI) -> None:
    assert "/v1/audio/transcriptions -F file=@" in server.output
    sounds = [wav(noise(seconds)) for seconds in (1.0, 3.0)]

    def text(sound: bytes) -> str:
        return client.audio.transcriptions.create(file=sound, model="w", language="en", extra_body={"seed": 1}).text

    alone = [text(sound) for sound in sounds]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(text, sounds * 2)) == alone * 2
    stream = client.audio.transcriptions.create(
        file=sounds[1], model="w", language="en", stream=True, extra_body={"seed": 1}
    )
    events = list(stream)
    assert events[-1].type == "transcript.text.done" and events[-1].text == alone[1]
    metrics = server.get("/metrics").text
    assert f'sapwood_audio_seconds_total{{task="transcribe"}} {3 * 4.0 + 3.0}' in metrics


def test_words_have_times(server: Server, client: openai.OpenAI) -> None:
    asked = {
        "file": wav(noise(3.0)),
        "model": "w",
        "language": "en",
        "response_format": "verbose_json",
        "extra_body": {"seed": 1},
    }
    both = client.audio.transcriptions.create(**asked, timestamp_granularities=["word", "segment"])  # type: ignore[call-overload]
    assert both.words and both.segments
    assert all(0 <= word.start <= word.end <= 3.0 and word.word.strip() == word.word for word in both.words)
    assert "".join("".join(word.word for word in both.words).split()) == "".join(both.text.split())
    alone = client.audio.transcriptions.create(**asked, timestamp_granularities=["word"])  # type: ignore[call-overload]
    assert alone.words == both.words and alone.segments is None


def test_hostile_files_leave_the_server_as_it_was(server: Server, client: openai.OpenAI) -> None:
    def resident() -> int:
        return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096

    out = io.BytesIO()
    soundfile.write(out, np.zeros(8000 * 600, np.int16), 8000, format="FLAC")  # ten minutes in a few kilobytes
    bombs = [out.getvalue(), b"RIFF" + bytes(5_000_000), b"\x1a\x45\xdf\xa3" * 1_000_000, b"OggS" * 1_000_000]
    before = resident()
    for bomb in bombs:
        with pytest.raises(openai.BadRequestError) as told:
            client.audio.transcriptions.create(file=bomb, model="w")
        assert told.value.code == "invalid_audio" and told.value.param == "file"
    assert resident() - before < 48 << 20
    assert server.health().status_code == 200
