"""/generate, SGLang's native API: one prompt or a batch, as text or token ids, with the logprobs of both sides."""

from __future__ import annotations

from time import perf_counter

from starlette.requests import Request
from starlette.responses import Response

from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.generation import choices_of, complete
from sapwood.server.routes import Described, Streamed, post
from sapwood.server.sglang.answers import Answers, Telling
from sapwood.server.sglang.asking import batch_of
from sapwood.server.sglang.protocol import REFUSED, Generated, GenerateRequest
from sapwood.server.sse import EventStream


def routes(front: Front) -> list[Described]:
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Go on with one prompt or several, as text or token ids, with the logprobs of both sides if asked for."""
        begin = perf_counter()
        batch = await batch_of(front, body)
        choices = choices_of(batch.pairs)
        answers = Answers(front, batch.wishes, with_text=bool(body.return_text_in_logprobs), begin=begin)
        alone = batch.single and len(choices) == 1
        if body.stream:
            telling = Telling(answers, alone=alone, increments=front.config.server.incremental_stream)
            return EventStream(front, choices, telling)
        await front.attended(request.receive, complete(front, choices))
        whole = [answers(choice) for choice in choices]
        return json_response(whole[0] if alone else whole)

    return [
        post(
            front,
            "/generate",
            GenerateRequest,
            generate,
            refused=REFUSED,
            gives=Generated | list[Generated],
            streams=Streamed(Generated),
            methods=("POST", "PUT"),
        )
    ]
