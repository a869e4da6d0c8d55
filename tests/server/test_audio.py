"""/v1/audio: forms, formats and streams, with an engine that says what it is told to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI

from sapwood.base.sampling import SamplingParams
from sapwood.config import Config
from sapwood.config.options import ServerConfig
from sapwood.server import create_app
from sapwood.speech.audio import Audio
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine
from tests.speech import voices
from tests.speech.voices import VOCABULARY as V
from tests.speech.voices import ids, mark, noise, wav

pytestmark = pytest.mark.anyio
SOUND = wav(noise(12.0))
SAID = [mark(0), *ids(" Hello."), mark(2), mark(2.5), *ids(" How are — you?"), mark(12), V.end]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return voices.make_text(tmp_path_factory.mktemp("whisper"))


def says(tokens: list[int], params: SamplingParams) -> list[int]:
    if params.allowed_token_ids is not None:
        return [V.languages["de"]]
    return [V.start] if params.max_tokens == 1 else SAID


@pytest.fixture
def engine(text: TextModel) -> FakeEngine:
    engine = FakeEngine(text)
    engine.facts = msgspec.structs.replace(
        engine.facts, vocab_size=voices.SIZE, max_model_len=448, media=("audio",), eos_ids=[V.end]
    )
    engine.answer = says
    engine._logprobs = lambda tokens, count, named: _logprobs(tokens, count, named)  # type: ignore[method-assign]
    return engine


def _logprobs(tokens: list[int], count: int | None, named: Any) -> Any:
    """As likely as what is believed."""
    if count is None:
        return None
    return [msgspec.structs.replace(one, logprob=-0.25, named_logprobs=[-3.0] * len(named))
            for one in FakeEngine._logprobs(tokens, count, named) or ()]  # fmt: skip


def form(**fields: Any) -> dict[str, Any]:
    return {"files": {"file": ("a.wav", SOUND)}, "data": {"model": "tiny", **fields}}


PATH = "/v1/audio/transcriptions"


async def test_the_official_client(client: AsyncOpenAI, engine: FakeEngine) -> None:
    found = await client.audio.transcriptions.create(file=("a.wav", SOUND), model="tiny", prompt="Ada", language="en")
    assert found.text == "Hello. How are — you?" and found.usage and found.usage.seconds == 12
    (asked,), ((media, spans),) = engine.asked, engine.given
    assert asked.tokens == [V.before, *ids(" Ada"), V.start, V.languages["en"], V.transcribe] and not spans
    assert [one.kind for one in media] == ["audio"] and media[0].arrays["features"].shape == (80, 3000)
    whole = await client.audio.transcriptions.create(
        file=SOUND, model="tiny", response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert (whole.language, whole.duration, whole.text) == ("german", 12.0, found.text) and whole.segments
    first, second = whole.segments
    assert (first.start, first.end, first.text, second.start, second.end) == (0, 2, " Hello.", 2.5, 12)
    assert first.tokens == SAID[:9] and first.temperature == 0 and first.seek == 0
    assert first.no_speech_prob == pytest.approx(np.exp(-3)) and first.avg_logprob == pytest.approx(-0.25)
    english = await client.audio.translations.create(file=SOUND, model="tiny")
    assert english.text == found.text
    assert engine.asked[-1].tokens == [V.start, V.languages["de"], V.translate]
    assert engine.asked[-2].params.allowed_token_ids == tuple(V.languages.values()), "found out first"


async def test_files_of_text(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    srt = await client.audio.transcriptions.create(file=SOUND, model="tiny", response_format="srt", language="en")
    assert str(srt) == (
        "1\n00:00:00,000 --> 00:00:02,000\nHello.\n\n2\n00:00:02,500 --> 00:00:12,000\nHow are — you?\n"
    )
    vtt = await http.post(PATH, **form(response_format="vtt", language="English"))
    assert vtt.headers["content-type"].startswith("text/vtt")
    assert vtt.text == ("WEBVTT\n\n00:00.000 --> 00:02.000\nHello.\n\n00:02.500 --> 00:12.000\nHow are — you?\n\n")
    text = await http.post(PATH, **form(response_format="text", language="en"))
    assert text.text == "Hello. How are — you?\n" and text.headers["content-type"].startswith("text/plain")
    metrics = (await http.get("/metrics")).text
    assert (
        'sapwood_audio_seconds_total{task="transcribe"} 36.0' in metrics
        and "sapwood_audio_windows_total 3.0" in metrics
    )


async def test_streams_and_logprobs(client: AsyncOpenAI, engine: FakeEngine) -> None:
    stream = await client.audio.transcriptions.create(
        file=wav(noise(40.0)), model="tiny", language="en", stream=True, include=["logprobs"]
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == ["transcript.text.delta"] * 2 + ["transcript.text.done"]
    done = events[-1]
    assert done.type == "transcript.text.done" and done.text == " ".join(["Hello. How are — you?"] * 2)
    assert "".join(event.delta for event in events[:-1] if event.type == "transcript.text.delta") == done.text
    assert (
        done.logprobs and bytes(byte for one in done.logprobs for byte in one.bytes or ()).decode().strip() == done.text
    )
    engine.fail_after, engine.failure = 0, RuntimeError("lost")
    with pytest.raises(openai.InternalServerError):
        await client.audio.transcriptions.create(file=SOUND, model="tiny", language="en", stream=True)


async def test_pauses_cut_a_recording(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    voice, pause = noise(20.0).samples, np.zeros(16000 * 3, np.int16)
    sound = wav(Audio(np.concatenate([voice, pause, voice, pause, voice])))
    for strategy in ("auto", '{"type": "server_vad"}'):
        engine.asked.clear()
        found = await http.post(
            PATH, files={"file": ("a.wav", sound)}, data={"language": "en", "chunking_strategy": strategy}
        )
        assert (
            found.json()["text"] == " ".join(["Hello. How are — you?"] * len(engine.asked)) and len(engine.asked) >= 3
        )
        assert all(V.before not in asked.tokens for asked in engine.asked)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "xml"}, "response_format", "json, text, verbose_json"),
        ({"response_format": "diarized_json"}, "response_format", "speakers"),
        ({"language": "klingon"}, "language", "ISO 639-1"),
        ({"language": ["en", "de"]}, "language", "more than once"),
        ({"temperature": "hot"}, "temperature", "a number"),
        ({"temperature": "1.5"}, "temperature", "[0, 1]"),
        ({"temperature": "nan"}, "temperature", "[0, 1]"),
        ({"timestamp_granularities[]": ["segment", "word"]}, "timestamp_granularities", "verbose_json only"),
        ({"timestamp_granularities[]": "line"}, "timestamp_granularities", "must be segment or word"),
        ({"include[]": "speakers"}, "include", "logprobs"),
        ({"include[]": "logprobs", "response_format": "text"}, "include", "json only"),
        ({"stream": "true", "response_format": "srt"}, "response_format", "events of text"),
        ({"chunking_strategy": "words"}, "chunking_strategy", "auto"),
        ({"chunking_strategy": '{"type": "server_vad", "threshold": 0.5}'}, "chunking_strategy", "own numbers"),
        ({"known_speaker_names[]": "ada"}, "known_speaker_names", "told apart"),
        ({"seed": "x"}, "seed", "whole number"),
        ({"prompt": "x" * 40_000}, "prompt", "longer"),
    ],
)
async def test_what_is_refused(http: httpx.AsyncClient, fields: dict[str, Any], param: str, message: str) -> None:
    answer = await http.post(PATH, **form(**fields))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and message in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_files_that_are_none(http: httpx.AsyncClient) -> None:
    for file, message in ((b"GIF89a", "no audio that is known"), (b"", "is empty")):
        answer = await http.post(PATH, files={"file": ("a.mp3", file)}, data={"model": "tiny"})
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    assert (await http.post(PATH, files={"other": ("a", b"x")})).json()["error"]["param"] == "file"
    assert (await http.post(PATH, json={})).status_code == 415
    assert (await http.post(PATH, **form(model="other"))).status_code == 404


@pytest.mark.parametrize("config", [Config(server=ServerConfig(max_audio_seconds=5.0, max_body_bytes=500_000))])
async def test_bounds(http: httpx.AsyncClient) -> None:
    answer = await http.post(PATH, **form())
    assert answer.status_code == 400 and "longer than 5 s" in answer.json()["error"]["message"]
    answer = await http.post(PATH, files={"file": ("a.wav", bytes(600_000))})
    assert answer.status_code == 413


async def test_a_client_that_hangs_up(engine: FakeEngine, text: TextModel, config: Config) -> None:
    engine.hold = asyncio.Event()
    app = create_app(engine, text, config, "tiny")
    request = httpx.Request("POST", f"http://test{PATH}", **form(language="en"))
    body, gone = request.read(), asyncio.Event()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (message := next(messages, None)) is not None:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
    scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "headers": headers,
             "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("c", 1)}  # fmt: skip
    task = asyncio.ensure_future(app(scope, receive, send))
    await engine.until_running(1)
    gone.set()
    await engine.until_running(0)
    await task
    assert engine.broken_off == 1
    await app.state.front.close()


async def test_models_that_transcribe_nothing(tmp_path: Path) -> None:
    from tests.server.fakes import make_text

    plain = make_text(tmp_path)
    app = create_app(FakeEngine(plain), plain, Config(), "tiny")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        answer = await http.post(PATH, **form())
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unsupported_task"
    await app.state.front.close()
