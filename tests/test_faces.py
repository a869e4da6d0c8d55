"""The same request through every face of the engine: HTTP whole and streamed, `LLM`, `AsyncLLM`."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from sapwood import LLM, AsyncLLM, Grammar, Output, SamplingParams
from sapwood.server import create_app
from tests.waiting import SECONDS

SPECIAL, END = 256, 257  # <|im_start|>, which ends nothing, and <|im_end|>
OPTIONS: dict[str, Any] = {"device": "cpu", "kv_cache_memory": "16M", "threads": 1}
HELLO = [{"role": "user", "content": "Hello!"}]
WRITTEN = 'start: "The cat" <|im_start|> " sat."'
# each of these once, in this order: <think>bc</think>df
THOUGHT: dict[str, Any] = {
    "logit_bias": {0: 100.0, "b": 90.0, "c": 80.0, 1: 70.0, "d": 60.0, "f": 50.0},
    "repetition_penalty": 100.0,
    "max_tokens": 6,
}

# name: parameters, then text, why it ended and what stopped it (None: whatever the first face says)
Wanted = tuple[str | None, str, str | int | None]
CASES: dict[str, tuple[dict[str, Any], Wanted]] = {
    "length": ({"max_tokens": 6, "ignore_eos": True}, (None, "length", None)),
    "end of sequence": ({"min_tokens": 4, "logit_bias": {END: 100.0}}, (None, "stop", None)),
    "end of sequence included": (
        {"min_tokens": 4, "logit_bias": {END: 100.0}, "include_stop": True, "skip_special_tokens": False},
        (None, "stop", None),
    ),
    "end of a grammar": ({"grammar": WRITTEN}, ("The cat sat.", "stop", None)),
    "special tokens shown": (
        {"grammar": WRITTEN, "skip_special_tokens": False}, ("The cat<|im_start|> sat.", "stop", None)
    ),
    "stop token": ({"grammar": WRITTEN, "stop_token_ids": ["t"]}, ("The ca", "stop", "t")),
    "stop token included": (
        {"grammar": WRITTEN, "stop_token_ids": ["t"], "include_stop": True}, ("The cat", "stop", "t")
    ),
    "special stop token included": (
        {"grammar": WRITTEN, "stop_token_ids": [SPECIAL], "include_stop": True}, ("The cat", "stop", SPECIAL)
    ),
    "special stop token included and shown": (
        {"grammar": WRITTEN, "stop_token_ids": [SPECIAL], "include_stop": True, "skip_special_tokens": False},
        ("The cat<|im_start|>", "stop", SPECIAL),
    ),
    "stop string": ({"grammar": WRITTEN, "stop": ["ca"]}, ("The ", "stop", "ca")),
    "stop string in the last piece": ({"grammar": WRITTEN, "stop": ["cat"], "max_tokens": 7}, ("The ", "stop", "cat")),
    "stop string with a grammar's end": ({"grammar": WRITTEN, "stop": ["sat."]}, ("The cat ", "stop", "sat.")),
    "stop string with a stop token": (
        {"grammar": WRITTEN, "stop": ["cat"], "stop_token_ids": ["t"], "include_stop": True}, ("The cat", "stop", "cat")
    ),
    "held back to the end": ({"grammar": WRITTEN, "stop": ["cats"], "max_tokens": 7}, ("The cat", "length", None)),
    "across a special token": ({"grammar": WRITTEN, "stop": ["t s"]}, ("The ca", "stop", "t s")),
    "special token as stop string": (
        {"grammar": WRITTEN, "stop": ["<|im_start|>"]}, ("The cat", "stop", "<|im_start|>")
    ),
    "special token as stop string, shown": (
        {"grammar": WRITTEN, "stop": ["<|im_start|>"], "skip_special_tokens": False},
        ("The cat", "stop", "<|im_start|>"),
    ),
    "special token as stop string, included": (
        {"grammar": WRITTEN, "stop": ["<|im_start|>"], "include_stop": True},
        ("The cat<|im_start|>", "stop", "<|im_start|>"),
    ),
    "begins with a special token": (
        {"grammar": WRITTEN, "stop": ["<|im_start|>\n", "<|im_start|> s"]}, ("The cat", "stop", "<|im_start|> s")
    ),
    "ends with a special token": ({"grammar": WRITTEN, "stop": ["at<|im_start|>"]}, ("The c", "stop", "at<|im_start|>")),
    "min_tokens": ({"grammar": 'start: "a.b.c.d"', "stop": ["."], "min_tokens": 4}, ("a.b", "stop", ".")),
    "half an emoji": ({"grammar": 'start: "é😀"', "max_tokens": 4}, ("é\ufffd", "length", None)),
    "logprobs": ({"max_tokens": 6, "ignore_eos": True, "logprobs": 2}, (None, "length", None)),
    "logprobs up to a stop": (
        {"grammar": WRITTEN, "stop": ["cat"], "logprobs": 1, "max_tokens": 20}, ("The ", "stop", "cat")
    ),
}  # fmt: skip
CHATS: dict[str, tuple[dict[str, Any], Wanted, str, str]] = {  # text as it is; what is said, what is thought
    "markers": (THOUGHT, ("<think>bc</think>df", "length", None), "df", "bc"),
    "marker as stop string": (THOUGHT | {"stop": ["</think>"]}, ("<think>bc", "stop", "</think>"), "", "bc"),
    "ends with a marker": (THOUGHT | {"stop": ["c</think>"]}, ("<think>b", "stop", "c</think>"), "", "b"),
    "marker in a stop that is included": (
        THOUGHT | {"stop": ["</think>d"], "include_stop": True}, ("<think>bc</think>d", "stop", "</think>d"), "d", "bc"
    ),
}  # fmt: skip


class Result(NamedTuple):
    text: str
    tokens: list[int]
    finish: str | None
    stop: str | int | None
    logprobs: list[float]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose first two letters are marks of thoughts."""
    path = tmp_path_factory.mktemp("faces") / "model"
    shutil.copytree(tiny_model, path)
    state = json.loads((path / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    letters = sorted(vocabulary, key=vocabulary.__getitem__)
    mould = state["added_tokens"][0]
    for id, mark in ((0, "<think>"), (1, "</think>")):
        del vocabulary[letters[id]]
        vocabulary[mark] = id
        state["added_tokens"].insert(id, mould | {"id": id, "content": mark})
    (path / "tokenizer.json").write_text(json.dumps(state))
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] += "{# <think></think> #}"
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def llm(model: Path) -> LLM:
    return LLM(str(model), **OPTIONS)


def params_of(llm: LLM, given: dict[str, Any]) -> SamplingParams:
    fields = {"max_tokens": 32, "temperature": 0} | given
    if "grammar" in fields:
        fields["grammar"] = Grammar.rules(fields["grammar"])

    def id_of(one: str | int) -> int:
        return llm.text.encode(one)[0] if isinstance(one, str) else one

    fields["stop_token_ids"] = tuple(map(id_of, given.get("stop_token_ids", ())))
    fields["logit_bias"] = {id_of(one): bias for one, bias in given.get("logit_bias", {}).items()}
    fields["stop"] = tuple(given.get("stop", ()))
    return SamplingParams(**fields)


def plainly(output: Output) -> Result:
    stop = None if output.stop == END else output.stop
    return Result(output.text, output.token_ids, output.finish_reason, stop, [one.logprob for one in output.logprobs])


def body_of(params: SamplingParams) -> dict[str, Any]:
    fields = msgspec.to_builtins(params, str_keys=True)
    fields["include_stop_str_in_output"] = fields.pop("include_stop", False)
    if params.grammar is not None:
        fields["guided_grammar"] = fields.pop("grammar")["text"]
    return fields | {"return_token_ids": True}


async def events(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> AsyncIterator[Any]:
    async with http.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


def joined(choices: Iterable[Any]) -> Result:
    """Of completions: one whole choice, or the choices of all chunks."""
    text, tokens, finish, stop, logprobs = "", [], None, None, []
    for choice in choices:
        text += choice["text"]
        tokens += choice.get("token_ids", ())
        logprobs += (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"]
        finish, stop = choice["finish_reason"] or finish, choice.get("stop_reason", stop)
    return Result(text, tokens, finish, stop, logprobs)


async def completions(llm: AsyncLLM, http: httpx.AsyncClient, params: SamplingParams) -> dict[str, Result]:
    body = body_of(params) | {"prompt": "Hello!"}
    answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    chunks = [chunk["choices"][0] async for chunk in events(http, "/v1/completions", body)]
    output = Output()
    async for piece in llm.stream("Hello!", params):
        output.text += piece.text
        output.token_ids += piece.token_ids
        output.logprobs += piece.logprobs or []
        output.finish_reason, output.stop = piece.finish_reason, piece.stop
    return {
        "HTTP": joined(answer.json()["choices"]),
        "HTTP, streamed": joined(chunks),
        "AsyncLLM.generate": plainly((await llm.generate("Hello!", params)).outputs[0]),
        "AsyncLLM.stream": plainly(output),
    }


async def chats(llm: AsyncLLM, http: httpx.AsyncClient, params: SamplingParams) -> dict[str, Any]:
    body = body_of(params) | {"messages": HELLO}
    choice = (await http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    said, thought, finish, stop = "", "", None, None
    async for chunk in events(http, "/v1/chat/completions", body):
        (part,) = chunk["choices"]
        said += part["delta"].get("content") or ""
        thought += part["delta"].get("reasoning_content") or ""
        finish, stop = part["finish_reason"] or finish, part.get("stop_reason", stop)
    message = choice["message"]
    return {
        "HTTP": (
            message["content"], message.get("reasoning_content") or "", choice["finish_reason"], choice["stop_reason"]
        ),
        "HTTP, streamed": (said, thought, finish, stop),
        "AsyncLLM": (await llm.generate(HELLO, params)).outputs[0],
    }  # fmt: skip


@pytest.fixture(scope="module")
def elsewhere(model: Path, llm: LLM) -> dict[str, dict[str, Any]]:
    """What the faces of an engine in another process make of all cases."""

    async def collect() -> dict[str, dict[str, Any]]:
        async with AsyncLLM(str(model), **OPTIONS) as other:
            app = create_app(other.engine, other.text, other.config, "tiny")
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=SECONDS) as http:
                found = {
                    name: await completions(other, http, params_of(llm, given)) for name, (given, _) in CASES.items()
                }
                return found | {
                    name: await chats(other, http, params_of(llm, given)) for name, (given, *_) in CHATS.items()
                }

    return asyncio.run(collect())


@pytest.mark.parametrize("name", CASES)
def test_all_faces_say_the_same(name: str, llm: LLM, elsewhere: dict[str, dict[str, Any]]) -> None:
    given, (text, finish, stop) = CASES[name]
    params = params_of(llm, given)
    here = plainly(llm.generate("Hello!", params)[0].outputs[0])
    if stop == "t":
        stop = params.stop_token_ids[0]
    assert (here.finish, here.stop) == (finish, stop)
    assert text is None or here.text == text
    for face, there in elsewhere[name].items():
        assert there[:4] == here[:4], face
        assert there.logprobs == pytest.approx(here.logprobs, abs=1e-4), face
        assert len(there.logprobs) == (len(here.tokens) if params.logprobs is not None else 0)


@pytest.mark.parametrize("name", CHATS)
def test_all_faces_show_the_same_markers(name: str, llm: LLM, elsewhere: dict[str, dict[str, Any]]) -> None:
    given, (text, finish, stop), said, thought = CHATS[name]
    here = llm.chat(HELLO, params_of(llm, given))[0].outputs[0]
    assert (here.text, here.finish_reason, here.stop) == (text, finish, stop)
    assert here.said == (said, thought, [])
    there = elsewhere[name]
    assert plainly(there["AsyncLLM"]) == plainly(here) and there["AsyncLLM"].said == here.said
    assert there["HTTP"] == there["HTTP, streamed"] == (said, thought, finish, stop)
