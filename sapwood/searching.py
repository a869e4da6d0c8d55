"""Beam search over an engine in this process, many prompts at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sapwood.base.media import Media
from sapwood.base.sampling import SamplingParams
from sapwood.engine.beams import Beam, BeamParams, BeamSearch, likely
from sapwood.engine.checks import check_request, fed
from sapwood.engine.client import Stream
from sapwood.engine.inprocess import InProcess


class _Unheard:
    """Follows what will be asked for when all is over."""

    def wake(self) -> None: ...


def searched(
    engine: InProcess, prompts: Sequence[list[int]], params: BeamParams, ends: Collection[int]
) -> list[list[Beam]]:
    """The beams found behind each prompt, the best first. Raises RequestError, GenerationFailed."""
    searches = [BeamSearch(params, ends) for _ in prompts]
    for tokens in prompts:
        check_request(tokens, SamplingParams(max_tokens=params.max_tokens), engine.facts)
    begun = [fed(tokens, SamplingParams(), (), engine.facts) for tokens in prompts]
    while any(search.running for search in searches):
        rounds = [
            [_submit(engine, tokens, beam, search, media) for beam in search.running]
            for search, (tokens, media) in zip(searches, begun, strict=True)
        ]
        streams = [stream for one in rounds for stream in one]
        try:
            while not all(stream.finished for stream in streams):
                engine.step()
            for search, one in zip(searches, rounds, strict=True):
                if one:
                    search.take([likely(stream.take()) for stream in one])
        finally:
            for stream in streams:
                stream.close()
            engine.drain()
    return [search.found for search in searches]


def _submit(engine: InProcess, tokens: list[int], beam: Beam, search: BeamSearch, media: Sequence[Media]) -> Stream:
    return engine.submit([*tokens, *beam.tokens], search.step, _Unheard(), checked=True, media=media)
