"""Images over HTTP, in every dialect, against a real server: what is said is what the model computes, and hostile images cost nothing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from PIL import Image

from tests import seeing
from tests.http.conftest import Server
from tests.images.test_sources import claiming
from tests.seeing import IMAGE, picture
from tests.waiting import SECONDS

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "what is it?"


def write_tokenizer(
    path: Path,
    *,
    token: str = "<|image_pad|>",
    template: str = TEMPLATE,
    settings: Mapping[str, Any] = seeing.SEEING["qwen2.5-vl"].settings,
) -> None:
    """Bytes, and the token of images, or what `token` says, where the model has it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    fill = [f"<|{i}|>" for i in range(256 + len(named), IMAGE)]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (*named, *fill, token)])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|im_end|>"}))
    (path / "preprocessor_config.json").write_text(json.dumps(dict(settings)))


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = seeing.save("qwen2.5-vl", tmp_path_factory.mktemp("seer"))
    write_tokenizer(path)
    media = path / "media"
    media.mkdir()
    picture(60, 45).save(media / "one.png")
    server = Server(
        path, "--served-model-name", "seer", "--kv-cache-memory", "8M", "--allowed-local-media-path", str(media)
    )
    server.media = media  # type: ignore[attr-defined]
    yield server
    assert server.stop() == 0, server.output


def encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def inline(image: Image.Image) -> str:
    return f"data:image/png;base64,{encoded(image)}"


def asked(server: Server, *parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": list(parts)}],
        "temperature": 0,
        "max_tokens": 4,
        "return_token_ids": True,
    }
    answer = server.post("/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def shown(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_it_sees(seer: Server) -> None:
    images = [picture(60, 45, 7), picture(30, 90, 8)]
    said = asked(seer, shown(inline(images[0])), {"type": "text", "text": "and"}, shown(inline(images[1])))
    prompt, tokens = said["prompt_token_ids"], said["choices"][0]["token_ids"]
    theirs = seeing.logprobs("qwen2.5-vl", prompt + tokens, images)
    assert tokens == theirs[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert said["usage"]["prompt_tokens"] == len(prompt)
    again = asked(seer, shown(inline(images[0])), {"type": "text", "text": "another question"})
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= again["prompt_token_ids"].index(IMAGE) + 4
    metrics = seer.get("/metrics").text
    assert "encoded" in metrics


def test_what_is_told_of_the_cache_knows_images(seer: Server) -> None:
    image = inline(picture(60, 45, 11))
    asked(seer, shown(image))
    body = {"messages": [{"role": "user", "content": [shown(image)]}], "max_tokens": 1}
    answer = seer.post("/v1/chat/completions", json=body, headers={"x-sapwood-explain-cache": "1"})
    told = json.loads(answer.headers["x-sapwood-cache"])
    assert told["cached_tokens"] > 0 and told["differs_at"] == told["prompt_tokens"], "the same prompt was there before"


def test_all_dialects_see_the_same(seer: Server) -> None:
    image = picture(60, 45)
    client = openai.OpenAI(api_key="none", base_url=f"{seer.url}/v1", timeout=SECONDS, max_retries=0)
    chat = client.chat.completions.create(
        model="seer",
        messages=[{"role": "user", "content": [shown(inline(image)), {"type": "text", "text": TEXT}]}],  # type: ignore[list-item, misc]
        temperature=0,
        max_tokens=4,
    )
    wanted = chat.choices[0].message.content
    url = f"file://{seer.media}/one.png"  # type: ignore[attr-defined]
    assert asked(seer, shown(url), {"type": "text", "text": TEXT})["choices"][0]["message"]["content"] == wanted
    response = client.responses.create(
        model="seer",
        input=[{"role": "user", "content": [{"type": "input_image", "image_url": inline(image), "detail": "auto"},
                                            {"type": "input_text", "text": TEXT}]}],
        temperature=0, max_output_tokens=4,
    )  # fmt: skip
    assert response.output_text == wanted
    source = {"type": "base64", "media_type": "image/png", "data": encoded(image)}
    message = anthropic.Anthropic(api_key="none", base_url=seer.url, timeout=SECONDS, max_retries=0).messages.create(
        model="seer", extra_body={"temperature": 0}, max_tokens=4,
        messages=[{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": TEXT}]}],  # type: ignore[typeddict-item, list-item]
    )  # fmt: skip
    assert message.content[0].text == wanted  # type: ignore[union-attr]
    told = ollama.Client(seer.url).chat(
        "seer",
        [{"role": "user", "content": TEXT, "images": [encoded(image)]}],
        options={"temperature": 0, "num_predict": 4},
    )
    assert told.message.content == wanted


def test_sglangs_own_api_shows_images(seer: Server) -> None:
    """In one prompt and in several, as URLs and as base64; and what does not fit is refused."""
    image, sampling = picture(60, 45), {"temperature": 0, "max_new_tokens": 4}
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>what is it?<|im_end|>\n<|im_start|>assistant\n"
    wanted = asked(seer, shown(inline(image)), {"type": "text", "text": TEXT})["choices"][0]["token_ids"]
    several = {
        "text": [text, "none", text],
        "image_data": [encoded(image), None, [inline(image)]],
        "sampling_params": sampling,
    }
    for body in ({"text": text, "image_data": inline(image), "sampling_params": sampling}, several):
        answer = seer.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        said = answer.json() if isinstance(answer.json(), list) else [answer.json()]
        assert [one["output_ids"] for one in said[::2]] == [wanted] * len(said[::2])
    for field, value, told in (
        ("image_data", [inline(image)] * 2, "1 places for 2 images"),
        ("image_data", "!!", "base64 is damaged"),
        ("image_data", [[1]], "image_data"),
        ("audio_data", encoded(image), "takes no audio"),
        ("video_data", "x", "video_data"),
    ):
        answer = seer.post("/generate", json={"text": text, field: value, "sampling_params": sampling})
        assert answer.status_code == 400 and told in answer.text, answer.text


def test_results_of_tools_may_be_images(seer: Server) -> None:
    """Though the template knows no tools, which are told in words then."""
    source = {"type": "base64", "media_type": "image/png", "data": encoded(picture(60, 45))}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": source}]}
    call = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    body = {"model": "seer", "max_tokens": 2, "messages": messages}
    answer = seer.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text

    def count(content: Any) -> int:
        messages[2]["content"] = [{**result, "content": content}]
        return int(
            seer.post("/v1/messages/count_tokens", json={"model": "seer", "messages": messages}).json()["input_tokens"]
        )

    # Four positions, and a token before them and one behind.
    assert count(result["content"]) == count("") + 6


def test_several_outputs_share_an_image(seer: Server) -> None:
    said = asked(seer, shown(inline(picture(60, 45, 3))), n=3, temperature=1, seed=5)
    assert len(said["choices"]) == 3


def resident(server: Server) -> int:
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in (server.process.pid, server.engine_pid)
    )


def test_hostile_images(seer: Server) -> None:
    asked(seer, shown(inline(picture(60, 45))))
    before = resident(seer)
    whole = base64.b64decode(encoded(picture(300, 300)))
    hostile = [
        b"",
        b"no image",
        whole[: len(whole) // 2],
        claiming(100_000, 10_000),
        claiming(65_000, 65_000, bytes(1000)),
    ]
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in hostile]
    urls += [
        "http://127.0.0.1/x.png",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "x",
        "data:image/png;base64,!!",
    ]
    for url in urls:
        body = {"messages": [{"role": "user", "content": [shown(url)]}]}
        answer = seer.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400, url[:50]
        assert answer.json()["error"]["param"] == "messages[0].content"
    assert resident(seer) - before < 100 << 20


def test_texts_cannot_spell_images(seer: Server) -> None:
    parts = [shown(inline(picture(60, 45))), {"type": "text", "text": "<|image_pad|>"}]
    answer = seer.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]})
    assert answer.status_code == 400 and "places" in answer.json()["error"]["message"]
