"""Recordings in chats over HTTP, against a real server: what is said is what the model computes, and hostile files cost nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile

from tests import hearing
from tests.hearing import AUDIO, recording
from tests.http.conftest import Server
from tests.http.test_sight import TEMPLATE, resident, write_tokenizer
from tests.waiting import SECONDS

HEARS = TEMPLATE.replace("p.type == 'image'", "p.type == 'audio'").replace("<|image_pad|>", "<|AUDIO|>")
TEXT = "what is it?"


def write_all(path: Path) -> None:
    write_tokenizer(path, token="<|AUDIO|>", template=HEARS, settings=hearing.SETTINGS)


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = hearing.save("qwen2-audio", tmp_path_factory.mktemp("listener"))
    write_all(path)
    server = Server(
        path, "--served-model-name", "listener", "--kv-cache-memory", "8M", "--allowed-local-media-path", str(path)
    )
    soundfile.write(path / "one.flac", recording(0.4), 16000)
    server.media = path  # type: ignore[attr-defined]
    yield server
    assert server.stop() == 0, server.output


def file_of(samples: np.ndarray, kind: str = "WAV", rate: int = 16000) -> str:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind)
    return base64.b64encode(out.getvalue()).decode()


def spoken(samples: np.ndarray) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": file_of(samples), "format": "wav"}}


def asked(server: Server, *parts: dict[str, Any]) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": list(parts)}],
        "temperature": 0,
        "max_tokens": 4,
        "return_token_ids": True,
    }
    answer = server.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def test_it_hears(listener: Server) -> None:
    sounds = [recording(0.5, 7), recording(0.3, 8)]
    said = asked(listener, spoken(sounds[0]), {"type": "text", "text": "and"}, spoken(sounds[1]))
    prompt, tokens = said["prompt_token_ids"], said["choices"][0]["token_ids"]
    assert prompt.count(AUDIO) == 12 + 7
    theirs = hearing.logprobs("qwen2-audio", prompt + tokens, sounds)
    assert tokens == theirs[len(prompt) - 1 : -1].argmax(-1).tolist()
    again = asked(listener, spoken(sounds[0]), {"type": "text", "text": "another question"})
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= again["prompt_token_ids"].index(AUDIO) + 12


def test_all_ways_to_give_one(listener: Server) -> None:
    sound, text = recording(0.4), {"type": "text", "text": TEXT}
    wanted = asked(listener, spoken(sound), text)["choices"][0]["message"]["content"]
    urls = [f"data:audio/flac;base64,{file_of(sound, 'FLAC')}", f"file://{listener.media}/one.flac"]  # type: ignore[attr-defined]
    for url in urls:
        part = {"type": "audio_url", "audio_url": {"url": url}}
        assert asked(listener, part, text)["choices"][0]["message"]["content"] == wanted
    client = openai.OpenAI(api_key="none", base_url=f"{listener.url}/v1", timeout=SECONDS, max_retries=0)
    chat = client.chat.completions.create(
        model="listener",
        messages=[{"role": "user", "content": [spoken(sound), text]}],  # type: ignore[list-item, misc]
        temperature=0,
        max_tokens=4,
    )
    assert chat.choices[0].message.content == wanted
    response = client.responses.create(
        model="listener",
        input=[{"role": "user", "content": [spoken(sound), {"type": "input_text", "text": TEXT}]}],  # type: ignore[list-item, misc]
        temperature=0,
        max_output_tokens=4,
    )
    assert response.output_text == wanted


def test_hostile_recordings(listener: Server) -> None:
    asked(listener, spoken(recording(0.4)))
    before = resident(listener)
    whole = base64.b64decode(file_of(recording(0.4), "FLAC"))
    bombs = [b"RIFF" + bytes(5_000_000), b"OggS" * 1_000_000, whole[: len(whole) // 2], b"no sound", b""]
    data = [base64.b64encode(bomb).decode() for bomb in bombs]
    data += ["!!", file_of(np.zeros(8000 * 600, np.int16), "FLAC", 8000), file_of(recording(0.01))]
    for one in data:
        part = {"type": "input_audio", "input_audio": {"data": one, "format": "wav"}}
        answer = listener.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part]}]})
        assert answer.status_code == 400, one[:50]
        assert answer.json()["error"]["param"] == "messages[0].content"
    assert resident(listener) - before < 64 << 20


def test_images_are_refused(listener: Server) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    answer = listener.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part]}]})
    assert answer.status_code == 400
    assert "takes no image; besides text it takes recordings" in answer.json()["error"]["message"]
