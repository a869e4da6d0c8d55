"""Response bodies of completions and chat, and what both do to make them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from sapwood.base.plan import TokenLogprobs
from sapwood.base.weights import FIRST
from sapwood.server.front import Front
from sapwood.server.generation import Choice, News
from sapwood.server.logprobs import alternatives, finite
from sapwood.server.openai.protocol import UsageOptions
from sapwood.server.prediction import PredictionDetails
from sapwood.server.sse import DONE, EventStream, Script, cut, frame, quoted
from sapwood.text import TextModel

C = TypeVar("C")


class PromptDetails(msgspec.Struct):
    """`left_out_tokens`: those that were not computed, where the server leaves some out."""

    cached_tokens: int
    left_out_tokens: int | UnsetType = UNSET


class CompletionDetails(PredictionDetails, kw_only=True):
    reasoning_tokens: int | UnsetType = UNSET


class DraftDetails(msgspec.Struct):
    """How many drafts were fed and accepted at each place behind a token, the first place first."""

    fed: list[int]
    accepted: list[int]


class Usage(msgspec.Struct):
    """`reasoning_tokens` stands where OpenAI has it, and where SGLang does."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | UnsetType = UNSET
    reasoning_tokens: int | UnsetType = UNSET
    speculation: dict[str, DraftDetails] | UnsetType = UNSET


class RankedToken(msgspec.Struct):
    """An entry of vLLM's prompt_logprobs, under the token's id; the rank of a token that the request names is not known."""

    logprob: float
    rank: int | None
    decoded_token: str


class Reply(msgspec.Struct, Generic[C], kw_only=True):
    """A completion, a chat completion, or a chunk of either, by `object`. `weight_version` is there once an output has ended that was
    computed by other weights than those of the start, and `kv_transfer_params` where the prompt was read for another server."""

    id: str
    object: str
    created: int
    model: str
    choices: list[C]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: str
    weight_version: str | UnsetType = UNSET
    prompt_logprobs: list[dict[str, RankedToken] | None] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    kv_transfer_params: dict[str, Any] | UnsetType = UNSET


def new_reply(front: Front, object: str, prefix: str) -> Reply[Any]:
    handed = None if front.passage is None else front.passage.handed
    return Reply(
        id=f"{prefix}-{uuid.uuid4().hex}",
        object=object,
        created=int(time.time()),
        model=front.answering,
        choices=[],
        system_fingerprint=front.fingerprint,
        kv_transfer_params=UNSET if handed is None else handed,
    )


def version_of(choices: Sequence[Choice]) -> str | UnsetType:
    """Of the weights that computed the choices' ends: that of the last, which is the newest, if it is not the first of all."""
    ended = [choice.weight_version for choice in choices if choice.finish is not None]
    return ended[-1] if ended and ended[-1] != FIRST else UNSET


def usage_of(choices: Sequence[Choice], *, drafts: bool | None = False) -> Usage:
    """What has been used so far, `drafts` by drafter too if asked for. A prompt counts once, however many outputs share it."""
    firsts = {choice.prompt: choice for choice in reversed(choices)}.values()
    prompt = sum(len(choice.prompt.tokens) for choice in firsts)
    output = sum(len(choice.tokens) for choice in choices)
    cached = sum(choice.num_cached_tokens for choice in firsts)
    thoughts = [count for choice in choices if (count := choice.num_thought_tokens) is not None]
    left_out = sum(choice.num_left_out for choice in firsts)
    usage = Usage(prompt, output, prompt + output, PromptDetails(cached, left_out or UNSET))
    details = CompletionDetails()
    if thoughts:
        usage.reasoning_tokens = details.reasoning_tokens = sum(thoughts)
    details.count(choices)
    if details != CompletionDetails():
        usage.completion_tokens_details = details
    if drafts:
        usage.speculation = drafts_of(choices)
    return usage


def drafts_of(choices: Sequence[Choice]) -> dict[str, DraftDetails]:
    """Of all choices together."""
    names = dict.fromkeys(name for choice in choices for name in choice.drafted)
    found = {}
    for name in names:
        mine = [choice.drafted[name] for choice in choices if name in choice.drafted]
        fed, accepted = (
            [sum(column) for column in zip_longest(*rows, fillvalue=0)]
            for rows in ([one.fed for one in mine], [one.accepted for one in mine])
        )
        found[name] = DraftDetails(fed, accepted)
    return found


def stop_reason(front: Front, choice: Choice) -> int | str | None:
    """vLLM's: the stop string or stop token that ended it, None for an end of sequence. SGLang's `matched_stop` is all of
    `Choice.stop`."""
    return None if choice.stop in front.facts.eos_ids else choice.stop


def event_stream(
    front: Front,
    choices: Sequence[Choice],
    reply: Reply[Any],
    options: UsageOptions,
    *,
    shape: Callable[[News], Iterable[msgspec.Struct]],
    plain: Callable[[int, str], msgspec.Struct] | None,
) -> EventStream:
    """Stream the choices. `shape` makes the `choices` entries of some news; each becomes a chunk like `reply`.

    `plain` makes the entry of text alone, given a choice's index and the text; None where entries hold more than that.
    """
    return EventStream(front, choices, _Chunks(choices, reply, options, shape, plain))


def whole_stream(
    choices: Sequence[Choice],
    reply: Reply[Any],
    options: UsageOptions,
    *,
    shape: Callable[[News], Iterable[msgspec.Struct]],
) -> Response:
    """The stream of choices that are whole before it begins."""
    script = _Chunks(choices, reply, options, shape, None)
    news = [News(choice, choice.text, choice.tokens, choice.logprobs, first=True) for choice in choices]
    return Response(script.frames(news) + script.last(), media_type=script.media)


class _Chunks(Script):
    """Nearly all chunks are plain and differ in their text only, so the rest of them is encoded once per choice."""

    def __init__(
        self,
        choices: Sequence[Choice],
        reply: Reply[Any],
        options: UsageOptions,
        shape: Callable[[News], Iterable[msgspec.Struct]],
        plain: Callable[[int, str], msgspec.Struct] | None,
    ) -> None:
        self._choices = choices
        self._reply = reply
        self._shape = shape
        self._options = options
        if options.told:
            reply.usage = None
        self._moulds: list[tuple[bytes, bytes]] = []
        if plain is not None and not options.running:
            mark = uuid.uuid4().hex
            for choice in choices:
                reply.choices = [plain(choice.index, mark)]
                self._moulds.append(cut(reply, mark))

    def frames(self, news: list[News]) -> bytes:
        parts: list[bytes] = []
        if self._options.running:
            self._reply.usage = self._usage()
        for one in news:
            if self._moulds and not one.first and one.choice.finish is None:
                if one.text:
                    before, after = self._moulds[one.choice.index]
                    parts += before, quoted(one.text), after
                continue
            self._reply.weight_version = version_of([one.choice])
            for entry in self._shape(one):
                self._reply.choices = [entry]
                parts.append(frame(self._reply))
        return b"".join(parts)

    def last(self) -> bytes:
        """The usage, if it was asked for, and [DONE]."""
        if not self._options.told:
            return DONE
        self._reply.choices, self._reply.usage, self._reply.weight_version = [], self._usage(), UNSET
        return frame(self._reply) + DONE

    def _usage(self) -> Usage:
        return usage_of(self._choices, drafts=self._options.drafts)


def prompt_logprobs(
    text: TextModel, entries: Sequence[TokenLogprobs], named: Sequence[int]
) -> list[dict[str, RankedToken] | None]:
    """In vLLM's shape: per prompt token its alternatives and itself by id; None for the first."""
    shaped: list[dict[str, RankedToken] | None] = [None]
    for entry in entries:
        ranks: list[int | None] = [*range(1, len(entry.top_ids) + 1)]
        found = alternatives(entry, named)
        ranked = [(id, value, rank) for (id, value), rank in zip_longest(found, ranks)]
        ranked.append((entry.token, entry.logprob, entry.rank))
        shaped.append({str(id): RankedToken(finite(value), rank, text.token_text(id)) for id, value, rank in ranked})
    return shaped
