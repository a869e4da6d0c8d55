"""A small HTTP server that streams completions of known length and pace, and can misbehave in each way that a client meets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

CHUNK = b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":" word","finish_reason":null}]}\n\n'


class CompletionServer:
    """Serves on a free port inside a running loop. Each request's body is kept in `bodies`.

    `pause` seconds pass before each token. `ids` gives tokens as ids where asked for. `usage` False leaves it out.
    `chunked` False streams until the connection closes. `split` sends every byte on its own. `trouble` maps the number
    of a request to what happens to it: 'status', 'event', 'drop', 'garbage', 'empty', 'silence'.
    """

    def __init__(
        self,
        *,
        pause: float = 0.0,
        ids: bool = False,
        usage: bool = True,
        chunked: bool = True,
        split: bool = False,
        keep_alive: bool = True,
        trouble: dict[int, str] | None = None,
    ) -> None:
        self.pause, self.ids, self.usage, self.chunked, self.split = pause, ids, usage, chunked, split
        self.keep_alive = keep_alive
        self.trouble = trouble or {}
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.num_connections = 0
        self.url = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> CompletionServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                length = next(
                    int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")
                )
                number = len(self.bodies)
                self.headers.append(head)
                self.bodies.append(json.loads(await reader.readexactly(length)))
                await self._answer(self.bodies[number], self.trouble.get(number, ""), writer)
                if not self.chunked or not self.keep_alive:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, body: dict[str, Any], trouble: str, writer: asyncio.StreamWriter) -> None:
        if trouble == "silence":
            await asyncio.sleep(60)
        if trouble == "garbage":
            writer.write(b"what?\r\n\r\n")
            return
        if trouble == "status":
            error = json.dumps({"error": {"message": "too much is waiting"}}).encode()
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\n\r\n%b" % (len(error), error))
            return
        framing = b"transfer-encoding: chunked" if self.chunked else b"connection: close"
        await self._write(writer, b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%b\r\n\r\n" % framing)
        count = 0 if trouble == "empty" else body["max_tokens"]
        for index in range(count):
            if self.pause:
                await asyncio.sleep(self.pause)
            if trouble and index == count // 2:
                if trouble == "drop":
                    writer.close()
                    raise ConnectionResetError
                await self._chunk(writer, b'data: {"error": {"message": "it broke"}}\n\n')
                break
            if self.ids and body.get("return_token_ids"):
                choice = {"index": 0, "text": "", "token_ids": [100 + index]}
                await self._chunk(writer, b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())
            else:
                await self._chunk(writer, CHUNK)
        if self.usage:
            cached = {"cached_tokens": 3}
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count, "prompt_tokens_details": cached}
            await self._chunk(writer, b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
        await self._chunk(writer, b"data: [DONE]\n\n")
        if self.chunked:
            await self._write(writer, b"0\r\n\r\n")

    async def _chunk(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        await self._write(writer, b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        for piece in [data[i : i + 1] for i in range(len(data))] if self.split else [data]:
            writer.write(piece)
            if self.split:
                await asyncio.sleep(0)
        await writer.drain()
