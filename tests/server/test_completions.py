from __future__ import annotations

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI

from sapwood.base.wire import Reading
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

ANSWER = "The cat sat on the mat — naïvely."


async def test_defaults_are_openais(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    reply = await client.completions.create(model=MODEL, prompt="the cat")
    params = engine.asked[0].params
    assert (params.max_tokens, params.temperature, params.n) == (16, 1.0, 1)
    assert engine.asked[0].tokens == text.encode("the cat")
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    assert reply.model == MODEL
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].text == text.decode(text.encode(ANSWER)[:16])


async def test_usage_counts_prompt_output_and_cache(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    engine.cached = 2
    reply = await client.completions.create(model=MODEL, prompt="the cat", max_tokens=100, n=3)
    assert reply.usage is not None
    num_prompt, num_output = len(text.encode("the cat")), 3 * (len(text.encode(ANSWER)) + 1)
    assert reply.usage.prompt_tokens == num_prompt
    assert reply.usage.completion_tokens == num_output
    assert reply.usage.total_tokens == num_prompt + num_output
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 2


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("stop", [None, "mat", ["xyz", "the m"], "naïve"])
async def test_stream_equals_whole(
    client: AsyncOpenAI, engine: FakeEngine, chunk: int, stop: str | list[str] | None
) -> None:
    engine.chunk = chunk
    whole = await client.completions.create(model=MODEL, prompt="x", max_tokens=100, stop=stop, logprobs=1)
    stream = await client.completions.create(
        model=MODEL,
        prompt="x",
        max_tokens=100,
        stop=stop,
        logprobs=1,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    told = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.text for choice in told) == whole.choices[0].text
    assert [choice.finish_reason for choice in told if choice.finish_reason] == [whole.choices[0].finish_reason]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [part for choice in told for part in getattr(choice.logprobs, name)]
        assert parts == getattr(whole.choices[0].logprobs, name)
    wanted = ANSWER if stop is None else ANSWER[: ANSWER.index(stop if isinstance(stop, str) else stop[1])]
    assert whole.choices[0].text == wanted


async def test_logprobs_of_named_tokens(http: httpx.AsyncClient, text: TextModel) -> None:
    body = {
        "prompt": [20, 30],
        "max_tokens": 1,
        "logprobs": 1,
        "echo": True,
        "prompt_logprobs": 1,
        "logprob_token_ids": [40, 40],
    }
    (choice,) = (await http.post("/v1/completions", json=body)).json()["choices"]
    first, *others = choice["logprobs"]["top_logprobs"]
    assert first is None and len(others) == 2
    assert all(-10.0 in one.values() and list(one.values()).count(-40.0) == 1 for one in others)
    assert choice["prompt_logprobs"][1]["40"] == {"logprob": -40.0, "rank": None, "decoded_token": text.token_text(40)}


async def test_stop_string_ends_the_generation(client: AsyncOpenAI, engine: FakeEngine) -> None:
    reply = await client.completions.create(
        model=MODEL, prompt="x", max_tokens=100, stop="sat", extra_body={"include_stop_str_in_output": True}
    )
    assert reply.choices[0].text == "The cat sat"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].model_extra == {"stop_reason": "sat", "matched_stop": "sat"}
    assert (engine.broken_off, engine.running) == (1, 0)


async def test_stop_string_at_the_very_end(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    engine.answer = lambda tokens, params: text.encode("abc")
    reply = await client.completions.create(model=MODEL, prompt="x", max_tokens=3, stop=["cx", "c"])
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("ab", "stop")


async def test_stop_token_is_no_text(client: AsyncOpenAI, text: TextModel) -> None:
    (space_cat,) = [id for id in text.encode(ANSWER) if text.token_text(id) == " the"][:1]
    for include, shown in ((False, "The cat sat on"), (True, "The cat sat on the")):
        reply = await client.completions.create(
            model=MODEL,
            prompt="x",
            max_tokens=99,
            extra_body={"stop_token_ids": [space_cat], "include_stop_str_in_output": include},
        )
        assert (reply.choices[0].text, reply.choices[0].finish_reason) == (shown, "stop")
        assert reply.choices[0].model_extra == {"stop_reason": space_cat, "matched_stop": space_cat}


@pytest.mark.parametrize("stream", [False, True])
async def test_many_prompts_and_outputs(
    http: httpx.AsyncClient, client: AsyncOpenAI, engine: FakeEngine, text: TextModel, stream: bool
) -> None:
    engine.answer = lambda tokens, params: text.encode(f"{text.decode(tokens)}{params.seed}")
    prompts = ["a", "b", "c"]
    texts = [""] * 6
    if stream:
        async for chunk in await client.completions.create(
            model=MODEL, prompt=prompts, n=2, seed=7, max_tokens=2, stream=True
        ):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    else:
        reply = await client.completions.create(model=MODEL, prompt=prompts, n=2, seed=7, max_tokens=2)
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3, 4, 5]
        texts = [choice.text for choice in reply.choices]
    assert texts == ["a7", "a8", "b7", "b8", "c7", "c8"]


async def test_outputs_are_interleaved(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=8, stream=True)
    order = [chunk.choices[0].index async for chunk in stream]
    assert order[:4].count(0) == 2


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6, 7]]])
async def test_token_prompts(client: AsyncOpenAI, engine: FakeEngine, prompt: list[int] | list[list[int]]) -> None:
    await client.completions.create(model=MODEL, prompt=prompt)
    assert engine.asked[0].tokens == [5, 6, 7]


async def test_echo_of_text_and_tokens(client: AsyncOpenAI, text: TextModel) -> None:
    tokens = text.encode("the cat")
    for prompt in ("the cat", tokens):
        reply = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=3, echo=True)
        assert reply.choices[0].text == "the cat" + text.decode(text.encode(ANSWER)[:3])


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
async def test_scoring(client: AsyncOpenAI, text: TextModel, max_tokens: int, stream: bool) -> None:
    reply = await client.completions.create(
        model=MODEL, prompt="the cat", max_tokens=max_tokens, echo=True, logprobs=2, stream=stream
    )
    (choice,) = (await anext(reply)).choices if stream else reply.choices
    scores = choice.logprobs
    tokens = text.encode("the cat") + text.encode(ANSWER)[:max_tokens]
    assert choice.text == text.decode(tokens)
    assert choice.finish_reason == "length"
    assert scores.tokens == [text.token_text(token) for token in tokens]
    assert scores.token_logprobs == [None] + [-token / 100 for token in tokens[1:]]
    assert scores.top_logprobs[0] is None
    assert set(scores.top_logprobs[1]) == {text.token_text(id) for id in (10, 11, tokens[1])}
    assert scores.text_offset == [len(text.decode(tokens[:at])) for at in range(len(tokens))]


async def test_prompt_logprobs_and_token_ids(client: AsyncOpenAI, text: TextModel) -> None:
    reply = await client.completions.create(
        model=MODEL, prompt=[20, 30], max_tokens=2, extra_body={"prompt_logprobs": 1, "return_token_ids": True}
    )
    extra = reply.choices[0].model_extra
    assert extra is not None
    assert extra["prompt_token_ids"] == [20, 30]
    assert extra["token_ids"] == text.encode(ANSWER)[:2]
    nothing, scores = extra["prompt_logprobs"]
    assert nothing is None
    assert scores["30"] == {"logprob": -0.3, "rank": 2, "decoded_token": text.token_text(30)}
    assert scores["10"]["rank"] == 1


async def test_every_parameter_reaches_the_engine(client: AsyncOpenAI, engine: FakeEngine) -> None:
    await client.completions.create(
        model=MODEL,
        prompt="x",
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"7": -100},
        stop=["a", "b"],
        user="someone",
        extra_body={
            "top_k": 40,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "stop_token_ids": [9],
            "min_tokens": 2,
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
            "priority": 4,
            "cache_salt": "mine",
            "some_new_field": {"anything": [1]},
        },
    )
    asked = engine.asked[0]
    params = asked.params
    assert (asked.salt, asked.priority) == ("mine", 4)
    assert (params.temperature, params.top_p, params.seed, params.top_k, params.min_p) == (0.5, 0.9, 3, 40, 0.1)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.1, 0.2, 1.1)
    assert (params.stop, params.stop_token_ids, params.logit_bias) == (("a", "b"), (9,), {7: -100.0})
    assert (params.min_tokens, params.max_tokens, params.ignore_eos) == (2, 5, True)
    assert (params.include_stop, params.skip_special_tokens) == (True, False)


async def test_null_means_not_given(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"model": None, "prompt": "x", "temperature": None, "stop": None, "logit_bias": None, "stream": None}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert engine.asked[0].params.temperature == 1.0


async def test_the_default_of_max_tokens_gives_way_to_the_context(client: AsyncOpenAI, engine: FakeEngine) -> None:
    await client.completions.create(model=MODEL, prompt=[5] * 505)
    assert engine.asked[0].params.max_tokens == 7


async def test_usage_with_every_chunk(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model=MODEL,
        prompt="x",
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
    )
    counts = [chunk.usage.completion_tokens async for chunk in stream if chunk.usage]
    assert counts == sorted(counts)
    assert counts[-1] == 4


async def test_long_prompts_are_tokenised_elsewhere(client: AsyncOpenAI, engine: FakeEngine, text: TextModel) -> None:
    engine.facts = type(engine.facts)(**{**vars_of(engine.facts), "max_model_len": 20_000})
    prompt = "the cat " * 1000
    await client.completions.create(model=MODEL, prompt=prompt)
    assert engine.asked[0].tokens == text.encode(prompt)


def vars_of(facts: object) -> dict[str, object]:
    return {name: getattr(facts, name) for name in type(facts).__struct_fields__}  # type: ignore[attr-defined]


async def test_beams(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    body = {"prompt": ["the cat", "a"], "use_beam_search": True, "beam_width": 2, "n": 2, "max_tokens": 2}
    reply = (await http.post("/v1/completions", json=body)).json()
    wanted = [text.decode(ids) for ids in ([10, 10], [10, 11])]
    assert [choice["text"] for choice in reply["choices"]] == wanted * 2
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"length"}
    assert reply["usage"]["completion_tokens"] == 8 and engine.running == 0
    assert len(engine.asked) == 6, "one request for each prompt, then one for each beam"
    assert all(one.params.max_tokens == 1 for one in engine.asked)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"beam_width": 4}, "beam_width"),
        ({"use_beam_search": True, "n": 3, "beam_width": 2}, "n"),
        ({"use_beam_search": True, "beam_width": 33}, "beam_width"),
        ({"use_beam_search": True, "beam_width": 32, "prompt": [[1]] * 33}, "beam_width"),
        ({"use_beam_search": True, "stream": True}, "stream"),
        ({"use_beam_search": True, "stop": "x"}, "stop"),
        ({"use_beam_search": True, "temperature": 0.5}, "temperature"),
        ({"use_beam_search": True, "early_stopping": "soon"}, "early_stopping"),
    ],
)
async def test_beams_that_are_refused(http: httpx.AsyncClient, fields: dict[str, object], param: str) -> None:
    answer = await http.post("/v1/completions", json={"prompt": "x"} | fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


async def test_what_a_translation_begins_with(http: httpx.AsyncClient, engine: FakeEngine, text: TextModel) -> None:
    plain = await http.post("/v1/completions", json={"prompt": "x", "forced_bos_token_id": 5})
    assert plain.status_code == 400 and plain.json()["error"]["param"] == "forced_bos_token_id"
    engine.facts = msgspec.structs.replace(engine.facts, reading=Reading("tokens", 64, [2]), media=("tokens",))
    name, id = next(iter(text.special_tokens.items()))
    for forced in (id, name):
        reply = await http.post("/v1/completions", json={"prompt": "the cat", "forced_bos_token_id": forced})
        assert reply.json()["usage"]["prompt_tokens"] == len(text.encode("the cat"))
        (media,), _ = engine.given[-1]
        assert engine.asked[-1].tokens == [2, id]
        assert media.arrays["ids"].numpy().tolist() == text.encode("the cat")
    echo = await http.post("/v1/completions", json={"prompt": "x", "echo": True, "logprobs": 1})
    assert echo.status_code == 400 and echo.json()["error"]["param"] == "echo"
    assert "prompt_logprobs" not in echo.json()["error"]["message"]
    wrong = await http.post("/v1/completions", json={"prompt": "x", "forced_bos_token_id": "no such token"})
    assert wrong.status_code == 400 and "no such token" in wrong.json()["error"]["message"]
