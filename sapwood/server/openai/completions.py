"""/v1/completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Reading
from sapwood.grammar.end_check import EndCheck
from sapwood.grammar.schema import Finding
from sapwood.server.body import json_response
from sapwood.server.fields import texts_or_ids
from sapwood.server.front import MAX_CHOICES, Front
from sapwood.server.generation import Choice, News, Prompt, choices_of, complete, params_for
from sapwood.server.logprobs import alternatives, finite
from sapwood.server.openai.beams import beams_of, check_beams
from sapwood.server.openai.protocol import CompletionRequest
from sapwood.server.openai.replies import (
    RankedToken,
    Reply,
    event_stream,
    new_reply,
    prompt_logprobs,
    stop_reason,
    usage_of,
    version_of,
)
from sapwood.server.prediction import predicted, predicted_text
from sapwood.server.refusals import COMPLETIONS
from sapwood.server.routes import Described, Streamed, post
from sapwood.text import TextModel
from sapwood.text.detokenizer import Places

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


class Logprobs(msgspec.Struct):
    """Parallel lists over tokens; `text_offset` is where one begins in the choice's text, in characters.

    In `tokens` bytes that are no whole characters are U+FFFD; as keys of `top_logprobs`, which must differ, such tokens
    are spelled `bytes:\\xf0\\x9f`.
    """

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    matched_stop: int | str | None = None
    prompt_logprobs: list[dict[str, RankedToken] | None] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    schema_check: Finding | UnsetType = UNSET


def routes(front: Front) -> list[Described]:
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Go on with one prompt or several, as text or token ids."""
        body.check(front)
        check_beams(body)
        params, end_check = await front.restrict(await _params(front, body), body.asked())
        prompts = await _prompts(front, body)
        if body.use_beam_search:
            reply = new_reply(front, "text_completion", "cmpl")
            found: list[Choice] = []
            await front.attended(request.receive, beams_of(front, body, prompts, params, found))
            shape = _shaper(front, body, {}, end_check)
            reply.choices = [entry for choice in found for entry in shape(_whole(choice))]
            reply.usage = usage_of(found, drafts=body.speculation_details)
            return json_response(reply)
        echoes = await _echoes(front, body, prompts) if body.echo else {}
        choices = choices_of(
            [(prompt, params_for(prompt, params, front.facts, default=_DEFAULT_MAX_TOKENS)) for prompt in prompts]
        )
        reply = new_reply(front, "text_completion", "cmpl")
        shape = _shaper(front, body, echoes, end_check)
        if body.stream:
            plain = None if body.logprobs is not None or body.return_token_ids else _plain
            return event_stream(front, choices, reply, body.usage_options, shape=shape, plain=plain)
        await front.attended(request.receive, complete(front, choices))
        reply.choices = [entry for choice in choices for entry in shape(_whole(choice))]
        reply.usage = usage_of(choices, drafts=body.speculation_details)
        reply.weight_version = version_of(choices)
        return json_response(reply)

    return [
        post(
            front,
            "/v1/completions",
            CompletionRequest,
            completions,
            refused=COMPLETIONS,
            gives=Reply[CompletionChoice],
            streams=Streamed(Reply[CompletionChoice]),
        )
    ]


async def _params(front: Front, body: CompletionRequest) -> SamplingParams:
    max_tokens = body.max_tokens
    if max_tokens == 0 and body.echo:
        max_tokens = 1  # only the prompt's logprobs are wanted
    prediction = await predicted(front, predicted_text(body.prediction))
    more: dict[str, Any] = {"prediction": prediction}
    names = {}
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        if _reading(front) is not None:
            raise RequestError(
                "echo with logprobs: an encoder reads the prompt, which is not predicted. Leave one of them out.",
                param="echo",
            )
        more["prompt_logprobs"] = body.logprobs
        names["prompt_logprobs"] = "logprobs"
    return await body.sampling(front, max_tokens=max_tokens, logprobs=body.logprobs, names=names, **more)


async def _prompts(front: Front, body: CompletionRequest) -> list[Prompt]:
    """Token ids of each prompt. Nothing is tokenised before the number of prompts is known to be allowed."""
    texts, given = texts_or_ids(body.prompt, "prompt")
    if len(texts or given) * (body.n or 1) > MAX_CHOICES:
        raise RequestError(f"At most {MAX_CHOICES} outputs (prompts times n) in one request.", param="prompt")
    if texts:
        given = await front.encode_all(texts, param="prompt", add_special=body.add_special_tokens is not False)
    for tokens in given:
        front.check_tokens(tokens, "prompt")
    begins, scoring = _begins(front, body), body.max_tokens == 0
    return [Prompt(ids, "prompt", body.salt, body.priority or 0, scoring=scoring, begins=begins) for ids in given]


def _reading(front: Front) -> Reading | None:
    """How the model's encoder reads prompts, if it has one that does."""
    reading = front.facts.reading
    return reading if reading is not None and reading.kind == "tokens" else None


def _begins(front: Front, body: CompletionRequest) -> tuple[int, ...]:
    """What the decoder of an encoder-decoder begins with, if the body says how."""
    name, forced, reading = "forced_bos_token_id", body.forced_bos_token_id, _reading(front)
    if forced is None:
        return ()
    if reading is None:
        raise RequestError(f"{name} is for models that translate, and this one reads no texts.", param=name)
    id = front.text.special_tokens.get(forced) if isinstance(forced, str) else forced
    if id is None or not 0 <= id < front.facts.vocab_size:
        raise RequestError(f"{name}: the model has no token {forced!r}.", param=name)
    return reading.starts[0], id


async def _echoes(front: Front, body: CompletionRequest, prompts: Sequence[Prompt]) -> dict[Prompt, str]:
    """The text of each prompt, as it was sent where it was sent as text."""
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt or []
    if isinstance(texts[0], str):
        return dict(zip(prompts, cast(list[str], texts), strict=True))
    skip = body.skip_special_tokens is not False
    decoded = await front.decode_all([prompt.tokens for prompt in prompts], skip_special=skip)
    return dict(zip(prompts, decoded, strict=True))


def _plain(index: int, text: str) -> CompletionChoice:
    """The entry of text alone."""
    return CompletionChoice(index=index, text=text)


def _whole(choice: Choice) -> News:
    """A finished choice as one piece of news."""
    return News(choice, choice.text, choice.tokens, choice.logprobs, first=True)


def _shaper(
    front: Front, body: CompletionRequest, echoes: dict[Prompt, str], end_check: EndCheck | None
) -> Callable[[News], Iterator[CompletionChoice]]:
    """How news become entries of `choices`. The prompt, if it is echoed, comes with the first of each choice."""
    places: dict[int, Places] = {}

    def logprobs_of(news: News) -> Logprobs:
        choice, logprobs = news.choice, Logprobs()
        echo, named = echoes.get(choice.prompt, ""), choice.params.logprob_token_ids
        if news.first:
            places[choice.index] = front.text.output_places(choice.params, begin=len(echo))
            if body.echo:
                first, within = choice.prompt.tokens[0], front.text.prompt_places(echo)
                _add_first(logprobs, front.text.token_text(first), within.push(first))
                _add(logprobs, front.text, choice.prompt_logprobs, named, within)
        _add(logprobs, front.text, news.logprobs, named, places[choice.index])
        return logprobs

    def shape(news: News) -> Iterator[CompletionChoice]:
        choice, text = news.choice, news.text
        logprobs = None if body.logprobs is None else logprobs_of(news)
        if news.first:
            text = echoes.get(choice.prompt, "") + text
        if not (text or choice.finish or logprobs or body.return_token_ids):
            return
        entry = CompletionChoice(index=choice.index, text=text, logprobs=logprobs, finish_reason=choice.finish)
        if choice.finish:
            entry.stop_reason, entry.matched_stop = stop_reason(front, choice), choice.stop
            entry.schema_check = UNSET if end_check is None else front.checked(end_check(choice.text))
        if body.return_token_ids:
            entry.token_ids = news.tokens
            entry.prompt_token_ids = choice.prompt.tokens if news.first else UNSET
        if body.prompt_logprobs is not None:
            entry.prompt_logprobs = prompt_logprobs(front.text, choice.prompt_logprobs, choice.params.logprob_token_ids)
        yield entry

    return shape


def _spelled(text: TextModel, token: int) -> str:
    """A token as OpenAI writes it: its text, or its bytes if they are only part of a character."""
    piece = text.token_bytes(token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in piece)


def _add_first(logprobs: Logprobs, token: str, place: int) -> None:
    """Begin with the prompt's first token, which nothing predicts."""
    logprobs.tokens.append(token)
    logprobs.token_logprobs.append(None)
    logprobs.top_logprobs.append(None)
    logprobs.text_offset.append(place)


def _add(
    logprobs: Logprobs, text: TextModel, entries: Sequence[TokenLogprobs], named: Sequence[int], places: Places
) -> None:
    for entry in entries:
        token = _spelled(text, entry.token)
        top: dict[str, float] = {}
        for id, value in alternatives(entry, named):
            name = token if id == entry.token else _spelled(text, id)
            if name in top or (name == token and id != entry.token):
                name = f"token_id:{id}"  # its text is that of another token
            top[name] = finite(value)
        logprobs.tokens.append(text.token_text(entry.token))
        logprobs.token_logprobs.append(finite(entry.logprob))
        logprobs.top_logprobs.append(top | {token: finite(entry.logprob)})
        logprobs.text_offset.append(places.push(entry.token))
