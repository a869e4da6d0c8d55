"""What a stream's client is sent, and when: exact frames, news merged for who is slow, nobody else held up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette

from sapwood.base.wire import Delta
from sapwood.engine.client import Stream
from sapwood.server.openai.chat import AnswerDelta, ChatChunkChoice
from sapwood.server.openai.completions import CompletionChoice
from sapwood.server.openai.replies import Reply
from sapwood.server.sse import cut, frame, quoted
from sapwood.text import TextModel
from tests.server.fakes import FakeEngine
from tests.server.test_disconnects import Caller
from tests.waiting import within

pytestmark = pytest.mark.anyio

STRANGE = ["x", '"quoted" \\ and /', "line\nfeed\r\t", "\x00\x1f\x7f", "é — 日本語 😀", "</script>\u2028", "", "{%s}"]


@pytest.mark.parametrize(
    "entry",
    [lambda text: CompletionChoice(index=3, text=text), lambda text: ChatChunkChoice(index=3, delta=AnswerDelta(text))],
)
@pytest.mark.parametrize("model", ["tiny", 'a "strange" näme'])
def test_a_mould_gives_the_very_frame(entry: Any, model: str) -> None:
    def reply(text: str) -> Reply:
        return Reply(id="i", object="o", created=1, model=model, choices=[entry(text)], system_fingerprint="f")

    before, after = cut(reply("0123456789abcdef"), "0123456789abcdef")
    for text in STRANGE:
        assert before + quoted(text) + after == frame(reply(text))


class Slow(Caller):
    """A client whose connection takes no more while it is `full`."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        super().__init__(path, body)
        self.full = False
        self.room = asyncio.Event()
        self.waiting = 0
        self.most_waiting = 0

    async def send(self, message: Any) -> None:
        while self.full:
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
            await self.room.wait()
            self.waiting -= 1
        await super().send(message)

    def drain(self) -> None:
        self.full = False
        self.room.set()

    def texts(self) -> list[str]:
        """The text of each frame."""
        raw = b"".join(message.get("body", b"") for message in self.sent).decode()
        events = [event.removeprefix("data: ") for event in raw.split("\n\n") if event not in ("", "data: [DONE]")]
        return [choice["text"] for event in events for choice in json.loads(event).get("choices", ())]


class Spoken(FakeEngine):
    """An engine that says what it is told to, when it is told to."""

    def __init__(self, text: TextModel) -> None:
        super().__init__(text)
        self.streams: list[Stream] = []

    async def _speak(self, stream: Stream, tokens: list[int], params: object) -> None:
        self.streams.append(stream)

    def say(self, *streams: Stream, finish: Any = None, tokens: tuple[int, ...] = (70,)) -> None:
        for stream in streams:
            stream.put(Delta(stream.id, list(tokens), finish=finish))
        for follower in dict.fromkeys(stream.follower for stream in streams):
            follower.wake()


@pytest.fixture
def engine(text: TextModel) -> Spoken:
    return Spoken(text)


STREAM = {"prompt": "x", "max_tokens": 400, "stream": True}


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_slow_client_gets_what_has_come_in_one_frame(app: Starlette, engine: Spoken, text: TextModel) -> None:
    slow, quick = Slow("/v1/completions", STREAM), Slow("/v1/completions", STREAM)
    calls = [asyncio.create_task(caller.call(app)) for caller in (slow, quick)]
    await engine.until_running(2)
    await settle()
    engine.say(*engine.streams)
    slow.full = True
    for at in range(1, 300):
        engine.say(*engine.streams)
        assert len(quick.texts()) == at + 1, "the other is served in the very call that brings the token"
        if at % 50 == 0:
            await settle()
    assert slow.most_waiting == 1, "one frame waits, whatever has come since"
    assert len(slow.texts()) == 1
    slow.drain()
    await settle()
    letter = text.token_text(70)
    assert slow.texts() == [letter, letter, letter * 298]
    engine.say(*engine.streams, finish="length")
    await within(asyncio.gather(*calls))
    assert "".join(slow.texts()) == "".join(quick.texts()) == letter * 301
    assert slow.sent[-1]["body"] == b"data: [DONE]\n\n"


async def test_the_end_waits_for_a_slow_client(app: Starlette, engine: Spoken, text: TextModel) -> None:
    slow = Slow("/v1/completions", STREAM)
    call = asyncio.create_task(slow.call(app))
    await engine.until_running(1)
    await settle()
    engine.say(*engine.streams)
    slow.full = True
    engine.say(*engine.streams)
    engine.say(*engine.streams, finish="length")
    await settle()
    assert not call.done()
    slow.drain()
    await within(call)
    assert "".join(slow.texts()) == text.token_text(70) * 3
    assert b'"finish_reason":"length"' in slow.sent[-2]["body"]
    assert (engine.running, engine.broken_off) == (0, 0)


async def test_a_slow_client_that_hangs_up_is_let_go(app: Starlette, engine: Spoken) -> None:
    slow = Slow("/v1/completions", STREAM)
    call = asyncio.create_task(slow.call(app))
    await engine.until_running(1)
    await settle()
    engine.say(*engine.streams)
    slow.full = True
    engine.say(*engine.streams)
    slow.hang_up()
    await within(call)
    assert (engine.running, engine.broken_off) == (0, 1)


async def test_a_connection_that_breaks_ends_its_request_alone(app: Starlette, engine: Spoken) -> None:
    class Broken(Slow):
        async def send(self, message: Any) -> None:
            if self.full:
                raise OSError("broken")
            await super().send(message)

    broken, fine = Broken("/v1/completions", STREAM), Slow("/v1/completions", STREAM)
    calls = [asyncio.create_task(caller.call(app)) for caller in (broken, fine)]
    await engine.until_running(2)
    await settle()
    engine.say(*engine.streams)
    broken.full = True
    engine.say(*engine.streams)
    await engine.until_running(1)
    assert engine.broken_off == 1
    with pytest.raises(OSError, match="broken"):
        await within(calls[0])
    engine.say(engine.streams[1], finish="length")
    await within(calls[1])
    assert len(fine.texts()) == 3


async def test_outputs_of_one_request_that_come_together_are_sent_together(app: Starlette, engine: Spoken) -> None:
    caller = Slow("/v1/completions", STREAM | {"n": 3})
    call = asyncio.create_task(caller.call(app))
    await engine.until_running(3)
    await settle()
    engine.say(*engine.streams)
    engine.say(*engine.streams[:2], tokens=(70, 71))
    bodies = [message["body"] for message in caller.sent if message["type"] == "http.response.body"]
    assert [body.count(b"data: ") for body in bodies] == [3, 2]
    engine.say(engine.streams[0], finish="length")
    engine.say(*engine.streams[1:], finish="length")
    await within(call)
    assert engine.broken_off == 0


async def test_plain_chunks_are_those_that_the_structs_make(app: Starlette, engine: Spoken) -> None:
    """A chunk of text alone has all the fields of one that holds more, in the same order."""
    caller = Slow("/v1/completions", STREAM)
    call = asyncio.create_task(caller.call(app))
    await engine.until_running(1)
    await settle()
    for _ in range(3):
        engine.say(*engine.streams)
    first, second, third = (msgspec.json.decode(m["body"].removeprefix(b"data: ")) for m in caller.sent[1:4])
    assert first == second == third
    assert list(first) == list(second)
    caller.hang_up()
    await within(call)
