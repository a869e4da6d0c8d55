"""Completions by beam search: fields, and the rounds of requests that the beams are followed by."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.media import Media
from sapwood.base.sampling import SamplingParams
from sapwood.engine.beams import Beam, BeamParams, BeamSearch, likely
from sapwood.engine.checks import check_request, fed
from sapwood.engine.client import Stream
from sapwood.engine.following import Bell
from sapwood.server.front import MAX_CHOICES, Front
from sapwood.server.generation import Choice, Prompt, charged, params_for
from sapwood.server.openai.protocol import CompletionRequest

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_DEFAULT_WIDTH = 4
_EXCLUDED = (
    "stream", "echo", "logprobs", "prompt_logprobs", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "allowed_token_ids", "bad_words", "min_tokens", "min_new_tokens", "stop", "stop_regex", "prediction",
    "logprob_token_ids", "token_ids_logprob",
)  # fmt: skip
"""Fields that say what is drawn, or how it is told while it is: nothing is drawn of beams."""
_ALIKE: Mapping[str, Any] = MappingProxyType({"top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1})


def check_beams(body: CompletionRequest) -> None:
    """Raise RequestError for fields that need beams and have none, or that do not go with them."""
    if not body.use_beam_search:
        for name in ("beam_width", "length_penalty", "early_stopping"):
            if getattr(body, name) not in (None, False, 1):
                raise RequestError(f"{name} needs use_beam_search: true.", param=name)
        return
    for name in _EXCLUDED:
        value = getattr(body, name)
        if value and value != _ALIKE.get(name):
            raise RequestError(f"{name} does not go with use_beam_search; leave it out.", param=name)
    if body.asked() is not None:
        raise RequestError(
            "Structured outputs do not go with use_beam_search; leave them out.", param="use_beam_search"
        )
    if body.temperature not in (None, 0, 1):
        raise RequestError(
            "temperature does not go with use_beam_search, which draws nothing; leave it out.", param="temperature"
        )


async def beams_of(
    front: Front, body: CompletionRequest, prompts: Sequence[Prompt], params: SamplingParams, found: list[Choice]
) -> None:
    """Add to `found` the best `n` beams of each prompt as finished choices, by default one, of `beam_width` that are followed."""
    count = body.n or 1
    width = body.beam_width or max(count, _DEFAULT_WIDTH)
    if count > width:
        raise RequestError(f"n ({count}) must not exceed beam_width ({width}).", param="n")
    if len(prompts) * width > MAX_CHOICES:
        raise RequestError(
            f"At most {MAX_CHOICES} beams (prompts times beam_width) in one request.", param="beam_width"
        )
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else front.facts.eos_ids)}
    several = []
    for number, prompt in enumerate(prompts):
        one = params_for(prompt, msgspec.structs.replace(params, n=1), front.facts, default=_DEFAULT_MAX_TOKENS)
        check_request(prompt.tokens, one, front.facts, checked=True)
        beams = BeamParams(
            width=width,
            max_tokens=one.max_tokens or _DEFAULT_MAX_TOKENS,
            length_penalty=1.0 if body.length_penalty is None else body.length_penalty,
            early_stopping=body.early_stopping or False,  # type: ignore[arg-type]  # checked
        ).check()
        choices = [Choice(number * count + index, prompt, one) for index in range(count)]
        several.append((prompt, BeamSearch(beams, ends), choices))
    with charged(front, [choice for *_, choices in several for choice in choices]):
        searches = [asyncio.create_task(_search(front, prompt, search)) for prompt, search, _ in several]
        try:
            await asyncio.gather(*searches)
        finally:
            for task in searches:
                task.cancel()
        for _, search, choices in several:
            for choice, beam in zip(choices, search.found, strict=False):
                _fill(front, choice, beam)
                found.append(choice)


def _fill(front: Front, choice: Choice, beam: Beam) -> None:
    choice.tokens, choice.finish = list(beam.tokens), beam.finish
    choice.texts = [front.text.decode(beam.tokens, skip_special=choice.params.skip_special_tokens)]
    choice.stop = beam.tokens[-1] if beam.finish == "stop" else None


def _fed(front: Front, prompt: Prompt) -> tuple[list[int], Sequence[Media]]:
    tokens, media = prompt.given()
    return fed(tokens, SamplingParams(), media, front.facts)


async def _search(front: Front, prompt: Prompt, search: BeamSearch) -> None:
    """Follow the beams of one prompt to their ends; leaving earlier aborts what runs."""
    tenant, bell = front.account.tenant, Bell()
    tokens, media = _fed(front, prompt)
    while search.running:
        streams: list[Stream] = []
        try:
            for beam in search.running:
                stream = front.engine.submit(
                    [*tokens, *beam.tokens],
                    search.step,
                    bell,
                    salt=tenant.salted(prompt.salt),
                    adapter=None if front.adapter is None else front.adapter.adapter,
                    priority=tenant.ranked(prompt.priority),
                    tenant=tenant.name,
                    weight=tenant.weight,
                    checked=True,
                    media=media,
                )
                streams.append(stream)
            while not all(stream.finished for stream in streams):
                await bell.wait()
            search.take([likely(stream.take()) for stream in streams])
        finally:
            for stream in streams:
                stream.close()
