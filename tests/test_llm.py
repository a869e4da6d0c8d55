"""The Python API on a tiny model: the same words through every door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sapwood import LLM, AsyncLLM, EngineDead, GenerationFailed, Grammar, RequestError, SamplingParams
from sapwood.base.wire import Abort, Delta, Deltas

PROMPT = "The quick brown fox jumps over the lazy dog."
GREEDY = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(str(tiny_model), device="cpu", kv_cache_memory="16M")


def test_texts_and_token_ids_are_the_same_prompt(llm: LLM) -> None:
    by_text, by_ids = llm.generate([PROMPT, [*PROMPT.encode()]], GREEDY)
    assert by_text.prompt_tokens == len(PROMPT)
    assert by_text.prompt_token_ids != by_ids.prompt_token_ids, "byte letters are numbered in their own order"
    again = llm.generate(by_text.prompt_token_ids, GREEDY)[0]
    assert again.text == by_text.text and again.token_ids == by_text.token_ids
    assert again.cached_tokens >= len(PROMPT) - 16
    assert by_text.finish_reason == "length" and len(by_text.token_ids) == 16


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    lengths = [9, 2, 5, 30, 1]
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in lengths]
    found = llm.generate([f"prompt {n}" for n in lengths], params)
    assert [len(generation.token_ids) for generation in found] == lengths
    with pytest.raises(RequestError, match="5 prompts but 2 params"):
        llm.generate(["a"] * 5, params[:2])


def test_n_outputs_differ_and_repeat_with_their_seed(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.5, seed=3, n=3)
    first, second = (llm.generate("Once upon a time", params)[0] for _ in range(2))
    assert len({output.text for output in first.outputs}) == 3
    assert [output.text for output in first.outputs] == [output.text for output in second.outputs]


def test_a_cold_prompt_of_several_outputs_is_cold(llm: LLM) -> None:
    generation = llm.generate("never said before, and rather long at that", SamplingParams(max_tokens=2, n=2))[0]
    assert generation.cached_tokens == 0


def test_stop_strings_and_logprobs(llm: LLM) -> None:
    free = llm.generate(PROMPT, GREEDY)[0]
    stop = free.text[5:7]
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, stop=(stop,), logprobs=2, prompt_logprobs=1)
    stopped = llm.generate(PROMPT, params)[0]
    assert stopped.text == free.text[: free.text.index(stop)]
    assert (stopped.finish_reason, stopped.outputs[0].stop) == ("stop", stop)
    assert len(stopped.outputs[0].logprobs) == len(stopped.token_ids)
    assert len(stopped.prompt_logprobs) == stopped.prompt_tokens - 1


def test_one_bad_request_stops_the_batch_before_it_runs(llm: LLM) -> None:
    with pytest.raises(RequestError, match="max_tokens"):
        llm.generate(["fine", "fine"], [GREEDY, SamplingParams(max_tokens=10**6)])
    with pytest.raises(RequestError, match="request 1: the prompt is empty"):
        llm.generate(["fine", []], GREEDY)
    with pytest.raises(RequestError, match=r"request 2: .*surrogate") as caught:
        llm.chat([[{"role": "user", "content": content}] for content in ("a", "b", "\ud800")], GREEDY)
    assert caught.value.param == "messages"
    with pytest.raises(RequestError, match=r"^the prompt is empty"):
        llm.generate([[]], GREEDY)
    assert llm.generate("fine", GREEDY)[0].text


class Doom:
    """Lets the engine fail the requests with one prompt, behind their first token."""

    def __init__(self, llm: LLM, prompt: str) -> None:
        self._engine = llm._engine
        self._submit, self._step = self._engine.submit, self._engine.step
        self._prompt = llm.text.encode(prompt)
        self._doomed: set[int] = set()

    def submit(self, message: Any) -> Delta | None:
        if message.tokens == self._prompt:
            self._doomed.add(message.id)
        return self._submit(message)

    def step(self) -> list[Deltas]:
        return [self._spoiled(news) for news in self._step()]

    def _spoiled(self, news: Deltas) -> Deltas:
        ids = [id for id in news.ids if id in self._doomed]
        self._doomed.difference_update(ids)
        self._engine.abort(Abort(ids))
        kept = [(id, token) for id, token in zip(news.ids, news.tokens, strict=True) if id not in ids]
        failed = [Delta(id, [], finish="error", error="not finite") for id in ids]
        return Deltas([id for id, _ in kept], [token for _, token in kept], [*news.deltas, *failed])


@pytest.fixture
def doom(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    doom = Doom(llm, "doomed")
    monkeypatch.setattr(llm._engine, "submit", doom.submit)
    monkeypatch.setattr(llm._engine, "step", doom.step)
    yield "doomed"
    assert llm._engine.idle and llm._engine.audit() == 0


@pytest.mark.parametrize("stop", [(), ("never said",)])
def test_a_request_that_fails_costs_no_other(
    llm: LLM, doom: str, stop: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams(max_tokens=16, temperature=0, ignore_eos=True, stop=stop)
    alone = [llm.generate(prompt, params)[0] for prompt in ("one", "three")]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        one, two, three = llm.generate(["one", doom, "three"], params)
    assert [one.token_ids, three.token_ids] == [generation.token_ids for generation in alone]
    assert (two.text, two.token_ids, two.finish_reason, two.error) == ("", [], "error", "not finite")
    assert "1 of 3 requests failed, the first of them: not finite" in caplog.text
    assert one.raise_for_error() is one and one.error is None
    with pytest.raises(GenerationFailed, match="not finite"):
        two.raise_for_error()
    assert llm.generate(doom, params)[0].error == "not finite", "alone it is data as well"


def test_all_outputs_of_a_prompt_tell(llm: LLM, doom: str) -> None:
    found = llm.generate([doom, "fine"], SamplingParams(max_tokens=4, n=2, seed=1, ignore_eos=True))
    assert [output.finish_reason for generation in found for output in generation.outputs] == [
        *("error", "error"), *("length", "length")
    ]  # fmt: skip


def test_what_the_engine_refuses_is_data(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = llm._engine.intake.request

    def request(message: Any) -> Any:
        if len(message.tokens) == 3:
            return Delta(message.id, [], finish="error", error="refused")
        return taken(message)

    monkeypatch.setattr(llm._engine.intake, "request", request)
    refused, fine = llm.generate(["abc", "abcd"], GREEDY)
    assert (refused.error, fine.error, len(fine.token_ids)) == ("refused", None, 16)


def test_an_interrupt_leaves_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, turns = llm._engine.step, iter(range(10**6))

    def interrupted() -> list[Deltas]:
        if next(turns) == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm._engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one", "two"], SamplingParams(max_tokens=1000, ignore_eos=True))
    assert llm._engine.idle and llm._engine.audit() == 0
    assert len(llm.generate("one", GREEDY)[0].token_ids) == 16


def test_chat_and_the_asynchronous_api_agree(llm: LLM, tiny_model: Path) -> None:
    messages = [{"role": "user", "content": "Hello!"}]
    here = llm.chat(messages, GREEDY)[0]
    several = llm.chat([messages, messages], GREEDY)
    assert [generation.text for generation in several] == [here.text, here.text]

    async def there() -> tuple[str, str, str]:
        async with AsyncLLM(str(tiny_model), device="cpu", kv_cache_memory="16M") as other:
            streamed = "".join([chunk.text async for chunk in other.stream(messages, GREEDY)])
            whole = await other.generate(messages, GREEDY)
            async for chunk in other.stream(messages, GREEDY):
                return streamed, whole.text, chunk.text  # leaves early: the request is aborted
        raise AssertionError("nothing was streamed")

    streamed, whole, first = asyncio.run(there())
    assert streamed == whole == here.text
    assert here.text.startswith(first)


def test_chats_are_taken_apart(llm: LLM) -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    params = SamplingParams(max_tokens=100, grammar=Grammar.choice([f"So. {call}"]))
    generation = llm.chat([{"role": "user", "content": "Hello!"}], params, tools=tools)[0]
    assert "You can call functions" in llm.text.decode(generation.prompt_token_ids)
    assert generation.outputs[0].said == ("So.", "", [("now", "{}")])
    assert llm.chat([{"role": "user", "content": "Hello!"}], params)[0].outputs[0].said == (f"So. {call}", "", [])


def test_a_lost_device_keeps_what_was_finished(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(tiny_model), device="cpu", kv_cache_memory="16M")
    forward, steps = llm._engine.executor.forward, iter(range(10**6))

    def lost(plan: Any) -> Any:
        if next(steps) > 6:
            raise RuntimeError("gone")
        return forward(plan)

    monkeypatch.setattr(llm._engine.executor, "forward", lost)
    lengths = [2, *[300] * 3]
    params = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in lengths]
    for index, generation in enumerate(llm.generate(["a"] * 4, params)):
        assert (generation.error is None) == (index == 0)
    for _ in range(2):
        llm.generate("a", GREEDY)
    with pytest.raises(EngineDead, match="3 steps in a row"):
        llm.generate("a", GREEDY)
