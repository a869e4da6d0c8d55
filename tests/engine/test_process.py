"""The engine process from the front's side: how it starts and goes away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq.asyncio

from sapwood.base.errors import EngineDead
from sapwood.engine import process


async def send_for_ever(outbox: zmq.asyncio.Socket) -> None:
    while True:
        await process._send(outbox, b"more")
        await asyncio.sleep(0.01)


def test_sending_to_an_engine_that_is_gone_does_not_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        context = zmq.asyncio.Context()
        outbox, engine = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        outbox.set_hwm(0)
        outbox.bind(f"ipc://{tmp_path}/down")
        engine.connect(f"ipc://{tmp_path}/down")
        await outbox.send(b"first")
        assert await engine.recv() == b"first"
        await process._send(outbox, b"second")
        engine.close(linger=0)
        with pytest.raises(EngineDead):
            await asyncio.wait_for(send_for_ever(outbox), 10)
        context.destroy(linger=0)

    asyncio.run(scenario())
