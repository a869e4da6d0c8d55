"""`LLM` with images: in conversations and prompts, however they are given."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image

from sapwood import LLM, AsyncLLM, RequestError, SamplingParams
from sapwood.base.media import Media
from sapwood.images.gallery import Gallery
from sapwood.showing import Shot, prompt_of, shown_in, source_of
from tests import seeing
from tests.http.test_sight import inline, write_tokenizer
from tests.seeing import picture

FAMILY = "qwen2.5-vl"
GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
SMALL: dict[str, Any] = {"device": "cpu", "dtype": "float32", "kv_cache_memory": "8M", "max_model_len": 400}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = seeing.save(FAMILY, tmp_path_factory.mktemp("shown"))
    write_tokenizer(path)
    picture(60, 45).save(path / "one.png")
    return path


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    made = LLM(str(model), allowed_local_media_path=str(model), **SMALL)
    yield made
    made._engine.shutdown()


def said(llm: LLM, *parts: dict[str, Any]) -> list[int]:
    (found,) = llm.chat([{"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]}], GREEDY)
    return found.token_ids


def test_all_ways_show_the_same(llm: LLM, model: Path) -> None:
    image, file = picture(60, 45), model / "one.png"
    (found,) = llm.chat(
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]}],
        GREEDY,
    )
    theirs = seeing.logprobs(FAMILY, found.prompt_token_ids + found.token_ids, [image])
    assert found.token_ids == theirs[len(found.prompt_token_ids) - 1 : -1].argmax(-1).tolist()
    ways: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": inline(image)}},
        {"type": "image_url", "image_url": file.as_uri()},
        {"type": "image_pil", "image_pil": image.convert("RGBA")},
        {"type": "image", "path": str(file)},
        {"type": "image", "image": file},
        {"type": "image", "url": inline(image)},
        {"type": "image", "image": file.read_bytes()},
    ]
    for way in ways:
        assert said(llm, way) == found.token_ids, way


def test_prompts_with_images(llm: LLM) -> None:
    image = picture(60, 45)
    text = "look <|image_pad|> and"
    prompt: dict[str, Any] = {"prompt": text, "multi_modal_data": {"image": image}}
    prompts: list[Any] = [prompt, "look and"]
    first, plain = llm.generate(prompts, GREEDY)
    theirs = seeing.logprobs(FAMILY, first.prompt_token_ids + first.token_ids, [image])
    assert first.token_ids == theirs[len(first.prompt_token_ids) - 1 : -1].argmax(-1).tolist()
    assert len(plain.prompt_token_ids) == len("look and")
    tokens = llm.text.encode(text)
    (again,) = llm.generate({"prompt_token_ids": tokens, "multi_modal_data": {"image": [image]}}, GREEDY)
    assert again.token_ids == first.token_ids and again.cached_tokens > 0


def test_callers_of_many_threads(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As calls of an `AsyncLLM` are: those for whom there is no room at first wait, and are woken."""
    cabinet, found = llm._showing._open(), list[int]()
    assert isinstance(cabinet, Gallery)
    came, go, prepare = threading.Semaphore(0), threading.Event(), cabinet._preparer.prepare

    def waits(image: Image) -> Media:
        came.release()
        assert go.wait(60)
        return prepare(image)

    def show(size: int) -> None:
        found.append(llm._showing.prepared([Shot("image", picture(size, 30), "here")]).media[0].length)

    monkeypatch.setattr(cabinet._preparer, "prepare", waits)
    threads = [threading.Thread(target=show, args=(30 + number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    assert came.acquire(timeout=60) and came.acquire(timeout=60)
    assert not came.acquire(timeout=0.2), "two at a time"
    go.set()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6


@pytest.mark.slow
def test_beside_this_process(model: Path, llm: LLM) -> None:
    """And within a loop."""
    part = {"type": "image", "image": picture(60, 45)}
    content = [part, {"type": "text", "text": "what is it?"}]
    prompt = {"prompt": "look <|image_pad|>", "multi_modal_data": {"image": picture(30, 30)}}

    async def both() -> None:
        wanted = said(llm, part)
        async with AsyncLLM(str(model), **SMALL) as beside:
            assert (await beside.generate([{"role": "user", "content": content}], GREEDY)).token_ids == wanted
            assert len((await beside.generate(prompt, GREEDY)).token_ids) == 4

    asyncio.run(both())


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "image", "image": "/etc/hostname"}, "no such file below"),
        ({"type": "image", "image": 7}, "int is no medium"),
        ({"type": "image"}, r"content\[0\]: a part of type 'image' needs image"),
        ({"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}, "--allowed-media-domains"),
        ({"type": "image", "image": b"nothing"}, "none of PNG"),
        ({"type": "audio", "audio": b"RIFF"}, "takes no audio"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA"}}, "takes no audio"),
    ],
)
def test_what_cannot_be_shown(llm: LLM, part: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        said(llm, part)


def test_prompts_that_do_not_fit(llm: LLM) -> None:
    image = picture(30, 30)
    prompts: list[Any] = ["look", {"prompt": "look", "multi_modal_data": {"image": image}}]
    with pytest.raises(RequestError, match="0 places for 1 images"):
        llm.generate({"prompt": "look", "multi_modal_data": {"image": image}}, GREEDY)
    with pytest.raises(RequestError, match=r"request 1: .*0 places"):
        llm.generate(prompts, GREEDY)
    for wrong, told in (
        ({"prompt": "a", "video": 1}, "no 'video'"),
        ({}, "needs prompt"),
        ({"prompt": "a", "multi_modal_data": {"x": 1}}, "'x'"),
        ({"prompt": "a", "multi_modal_data": [image]}, "must be an object"),
    ):
        with pytest.raises(RequestError, match=told):
            prompt_of(wrong)


def test_a_model_of_text_says_so(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), device="cpu", kv_cache_memory="8M")
    with pytest.raises(RequestError, match="takes text"):
        said(llm, {"type": "image", "image": picture(30, 30)})
    llm._engine.shutdown()


def test_messages_keep_what_is_no_medium() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "image", "image": "x.png"}]},
    ]
    told, shots = shown_in(messages)
    assert told[0] is messages[0] and told[1]["content"] == [{"type": "text", "text": "b"}, {"type": "image"}]
    assert [(shot.kind, shot.medium, shot.at) for shot in shots] == [("image", "x.png", "messages[1].content[1]")]
    assert "path" not in messages[1]["content"][1]


def test_recordings_in_base64_are_given_as_the_server_takes_them() -> None:
    url = "data:audio/flac;base64,AAAA"
    for data, wanted in (("AAAA", "data:audio/wav;base64,AAAA"), (url, url)):
        part = {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}
        _, (shot,) = shown_in([{"role": "user", "content": [part]}])
        assert shot.medium == wanted


def test_images_of_pillow_lose_nothing() -> None:
    from PIL import Image as pillow

    for mode in ("RGB", "L", "RGBA", "P", "CMYK"):
        found = source_of(picture(9, 7).convert(mode), "here")
        assert isinstance(found, bytes)
        again = pillow.open(io.BytesIO(found))
        assert (
            again.size == (9, 7)
            and again.convert("RGB").tobytes() == picture(9, 7).convert(mode).convert("RGB").tobytes()
        )
