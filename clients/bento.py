"""A service of BentoML that asks a server that speaks OpenAI's API, as its gateways do."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import bentoml
from openai import AsyncOpenAI


@bentoml.service(workers=1)
class Asker:
    def __init__(self) -> None:
        self.model = AsyncOpenAI(base_url=os.environ["ASKED"], api_key="none", max_retries=0)

    @bentoml.api
    async def whole(self, prompt: str) -> str:
        """An answer of 12 tokens."""
        reply = await self.model.chat.completions.create(
            model="smol", messages=[{"role": "user", "content": prompt}], max_tokens=12, temperature=0
        )
        return reply.choices[0].message.content or ""

    @bentoml.api
    async def streamed(self, prompt: str) -> AsyncIterator[str]:
        """The same, piece by piece."""
        chunks = await self.model.chat.completions.create(
            model="smol", messages=[{"role": "user", "content": prompt}], max_tokens=12, temperature=0, stream=True
        )
        async for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content
