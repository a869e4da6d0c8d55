"""What is answered until there is a server: that it starts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sapwood.server.door import Door

_HEAD_BYTES = 64 << 10
_SECONDS = 10.0  # for a client to say what it wants
_BODY = b'{"status":"starting","reason":"the model is being loaded"}'
_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\nretry-after: 5\r\n"
    b"connection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


@contextlib.asynccontextmanager
async def starting(door: Door) -> AsyncIterator[None]:
    """Answer at a door until the context is left. Who comes between that and the server's own listening waits for it.

    Raises ConfigError if nobody can listen there.
    """
    try:
        # A socket of its own: closing it leaves the other one listening.
        listener = await asyncio.start_server(_tell, sock=door.sock.dup(), ssl=door.tls, limit=_HEAD_BYTES)
    except OSError as error:
        raise door.refused(error) from error
    try:
        yield
    finally:
        listener.close()


async def _tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        async with asyncio.timeout(_SECONDS):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_ANSWER)
            await writer.drain()
    writer.close()
