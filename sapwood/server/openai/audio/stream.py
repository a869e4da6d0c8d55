"""A transcript as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sapwood.server.errors import ClientGone, problem
from sapwood.server.front import Front
from sapwood.server.openai.audio.answers import Answers
from sapwood.server.passage import passage
from sapwood.server.sse import DONE, EVENTS, frame
from sapwood.speech.transcript import Segment, Transcript
from sapwood.speech.transcription import Tell


class TextStream(Response):
    """Events of a transcription: text as it is known, and the whole in the end.

    The response begins with the first text, so an error before it has its own status; a later one is an event of its own.
    """

    def __init__(
        self, front: Front, answers: Answers, transcribe: Callable[[Tell], Coroutine[Any, Any, Transcript]]
    ) -> None:
        self.status_code = 200
        self.background = None
        self._front, self._answers, self._transcribe = front, answers, transcribe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def write(body: bytes, *, more: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                headers = [(b"content-type", EVENTS.encode()), (b"cache-control", b"no-cache")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            found = await self._front.attended(receive, self._sent(write))
            tail = frame(self._answers.done(found)) + DONE
        except Exception as error:
            if not started:
                raise
            if isinstance(error, ClientGone):
                return
            tail = b"data: " + passage(scope, send).error(problem(error)) + b"\n\n" + DONE
        await write(tail, more=False)

    async def _sent(self, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> Transcript:
        """Transcribe, and send what is told meanwhile. What the client does not take waits here, merged."""
        waiting: list[Segment] = []
        news = asyncio.Event()
        first = True

        def tell(segments: list[Segment]) -> None:
            waiting.extend(segments)
            news.set()

        work = asyncio.ensure_future(self._transcribe(tell))
        work.add_done_callback(lambda _: news.set())
        try:
            while not work.done() or waiting:
                await news.wait()
                news.clear()
                if waiting:
                    segments = waiting.copy()
                    waiting.clear()
                    await write(frame(self._answers.delta(segments, first=first)))
                    first = False
            return work.result()
        finally:
            work.cancel()
            await asyncio.wait([work])
