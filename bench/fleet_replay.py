"""A trace against real servers, as streamed completions of token ids over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import aiohttp
import msgspec
from traces import Talk


async def replay(url: str, talks: Sequence[Talk]) -> list[dict[str, Any]]:
    """What became of each request, as `fleet.Done` has it; times count from the start of the trace."""
    url, done = url.rstrip("/").removesuffix("/v1"), list[dict[str, Any]]()
    began = perf_counter()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout()
    ) as client:
        async with client.get(url + "/v1/models") as answer:
            model = (await answer.json())["data"][0]["id"]
        await asyncio.gather(*(_talk(client, url, model, talk, began, done) for talk in talks))
    return done


async def _talk(
    client: aiohttp.ClientSession, url: str, model: str, talk: Talk, began: float, done: list[dict[str, Any]]
) -> None:
    await asyncio.sleep(talk.at - (perf_counter() - began))
    history: list[int] = []
    for turn in talk.turns:
        history += turn.tokens.tolist()
        body = {"model": model, "prompt": history, "max_tokens": turn.output_len, "ignore_eos": True, "stream": True}
        body |= {"stream_options": {"include_usage": True}, "return_token_ids": True}
        one: dict[str, Any] = {"at": perf_counter() - began, "prompt_len": len(history), "output_len": turn.output_len}
        async with client.post(url + "/v1/completions", json=body, headers={"x-session-id": talk.name}) as answer:
            if answer.status != 200:
                raise SystemExit(f"{url} says {answer.status}: {await answer.text()}")
            one["server"] = answer.headers.get("x-sapwood-server", url)
            said: list[int] = []
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    event = msgspec.json.decode(line[6:])
                    if "error" in event:
                        raise SystemExit(f"{url} ends an answer with {event['error']}")
                    one.setdefault("first", perf_counter() - began)
                    said += [id for choice in event["choices"] for id in choice.get("token_ids") or ()]
                    if usage := event.get("usage"):
                        one["cached"] = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        done.append(one | {"end": perf_counter() - began})
        history += said
        await asyncio.sleep(turn.pause)
