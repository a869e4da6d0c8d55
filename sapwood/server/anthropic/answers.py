"""What a message answers: its blocks, why it ended and what it used, whole or as events."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.grammar.schema import Finding
from sapwood.server.conversation import CallIds, Turn
from sapwood.server.front import Front
from sapwood.server.functions import arguments_of
from sapwood.server.generation import Choice, News
from sapwood.server.prediction import PredictionDetails
from sapwood.server.sse import Script, cut, frame, quoted
from sapwood.text.parsers import Event


class TextBlock(msgspec.Struct, tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    """The signature says which thoughts these are; nobody asks for it when they come back."""

    thinking: str
    signature: str


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class TokenDetails(PredictionDetails, kw_only=True):
    thinking_tokens: int | UnsetType = UNSET


class MessageUsage(msgspec.Struct):
    """The prompt's tokens are the sum of the first three: those that were in the cache, those of new pages that are in it
    now, and the others; `left_out_input_tokens` of these were not computed, where the server leaves some out."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: TokenDetails | UnsetType = UNSET
    left_out_input_tokens: int | UnsetType = UNSET


class Ending(msgspec.Struct):
    stop_reason: str | None = None
    stop_sequence: str | None = None


class AnsweredMessage(msgspec.Struct, tag="message", kw_only=True):
    """`schema_check` says whether an output matches that a grammar could not hold to its whole schema."""

    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    schema_check: Finding | UnsetType = UNSET


class TextDelta(msgspec.Struct, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, tag="signature_delta"):
    signature: str


class InputDelta(msgspec.Struct, tag="input_json_delta"):
    partial_json: str


Delta = TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class MessageStart(msgspec.Struct, tag="message_start"):
    message: AnsweredMessage


class Ping(msgspec.Struct, tag="ping"):
    pass


class BlockStart(msgspec.Struct, tag="content_block_start"):
    index: int
    content_block: Block


class BlockDelta(msgspec.Struct, tag="content_block_delta"):
    index: int
    delta: Delta


class BlockStop(msgspec.Struct, tag="content_block_stop"):
    index: int


class MessageDelta(msgspec.Struct, tag="message_delta"):
    delta: Ending
    usage: MessageUsage
    schema_check: Finding | UnsetType = UNSET


class MessageStop(msgspec.Struct, tag="message_stop"):
    pass


StreamEvent = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class Speaker:
    """Words the choice of a turn as a message.

    `most` is how many tokens were asked for, `hides` whether thoughts are not to be told.
    """

    def __init__(self, front: Front, turn: Turn, *, most: int, hides: bool) -> None:
        self._front, self._turn, self._most = front, turn, most
        self.hides, self.plain = hides, turn.plain
        self.id = CallIds(front, turn, "toolu_")

    def events(self, news: News) -> list[Event]:
        return self._turn.events(news)

    def begun(self, choice: Choice) -> AnsweredMessage:
        """The message before it says anything."""
        usage = self.usage(choice)
        usage.output_tokens = 0
        return AnsweredMessage(id=f"msg_{uuid.uuid4().hex}", model=self._front.answering, content=[], usage=usage)

    def whole(self, choice: Choice) -> AnsweredMessage:
        """The message of a choice that has ended."""
        message = self.begun(choice)
        message.content = self._blocks(choice)
        message.usage = self.usage(choice)
        ending = self.ending(choice)
        message.stop_reason, message.stop_sequence = ending.stop_reason, ending.stop_sequence
        message.schema_check = self.finding(choice)
        return message

    def ending(self, choice: Choice) -> Ending:
        if self._turn.to_call(choice):
            return Ending("tool_use")
        if choice.finish == "length":
            return Ending(
                "max_tokens"
                if len(choice.tokens) >= self._most or not choice.tokens
                else "model_context_window_exceeded"
            )
        if choice.finish == "abort":  # by an operator; sent back as it is, it goes on
            return Ending("pause_turn")
        if isinstance(choice.stop, str):
            return Ending("stop_sequence", choice.stop)
        return Ending("end_turn")

    def finding(self, choice: Choice) -> Finding | UnsetType:
        return self._turn.finding(choice) or UNSET

    def usage(self, choice: Choice) -> MessageUsage:
        """What has been used so far. A page of the prompt that was not in the cache is there now."""
        kept = self._front.config.cache.prefix_caching and not choice.num_left_out
        page = self._front.facts.page_size if kept else None
        prompt, read = len(choice.prompt.tokens), choice.num_cached_tokens
        new = 0 if page is None else max(prompt // page * page - read, 0)
        usage = MessageUsage(prompt - read - new, new, read, len(choice.tokens))
        usage.left_out_input_tokens = choice.num_left_out or UNSET
        details = TokenDetails()
        details.count([choice])
        if choice.num_thought_tokens is not None:
            details.thinking_tokens = choice.num_thought_tokens
        if details != TokenDetails():
            usage.output_tokens_details = details
        return usage

    def _blocks(self, choice: Choice) -> list[Block]:
        blocks: list[Block] = []
        whole = News(choice, choice.text, choice.tokens, choice.logprobs, first=True)
        for event in _joined(self.events(whole)):
            match event.kind:
                case "text":
                    blocks.append(TextBlock(event.text))
                case "thought":
                    blocks.append(ThinkingBlock("" if self.hides else event.text, signed(event.text)))
                case "call":
                    blocks.append(ToolUseBlock(self.id(event.text, event.call), event.text, {}))
                case "arguments":
                    blocks[-1] = msgspec.structs.replace(blocks[-1], input=arguments_of(event.text))
        return blocks


def _joined(events: Sequence[Event]) -> Iterator[Event]:
    """Events of one kind that follow each other as one."""
    last: Event | None = None
    for event in events:
        if last is not None and event.kind == last.kind != "call":
            last = event._replace(text=last.text + event.text)
            continue
        if last is not None:
            yield last
        last = event
    if last is not None:
        yield last


def signed(thoughts: str) -> str:
    return hashlib.sha256(thoughts.encode()).hexdigest()


class Events(Script):
    """A message as events. Deltas of a block differ in their text only, so the rest of them is encoded once per block."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker, self._plain = speaker, speaker.plain
        self._index = -1
        self._open = ""  # the kind of the block that is
        self._mould = b"", b""
        self._thoughts: list[str] = []

    def frames(self, news: list[News]) -> bytes:
        parts: list[bytes] = []
        for one in news:
            if one.choice.finish is not None or not (self._plain and self._open):
                parts += self._parts(one)
            elif one.text:  # nearly all news of a plain answer
                before, after = self._mould
                parts += before, quoted(one.text), after
        return b"".join(parts)

    def last(self) -> bytes:
        return _frame(MessageStop())

    def failed(self, error: bytes) -> bytes:
        return b"event: error\ndata: " + error + b"\n\n"

    def _parts(self, news: News) -> Iterator[bytes]:
        choice, speaker = news.choice, self._speaker
        if news.first:
            yield _frame(MessageStart(speaker.begun(choice))) + _frame(Ping())
        for event in speaker.events(news):
            yield from self._told(event)
        if choice.finish is not None:
            yield from self._close()
            yield _frame(MessageDelta(speaker.ending(choice), speaker.usage(choice), speaker.finding(choice)))

    def _told(self, event: Event) -> Iterator[bytes]:
        kind, text, number = event
        if kind == "call" or kind not in (self._open, "arguments"):
            yield from self._close()
            yield self._begin(kind, text, number)
        if kind == "call":
            return
        if kind == "thought":
            self._thoughts.append(text)
            if self._speaker.hides:
                return
        before, after = self._mould
        yield before + quoted(text) + after

    def _begin(self, kind: str, text: str, number: int) -> bytes:
        """The beginning of a block, in which the next deltas are."""
        self._index, self._open = self._index + 1, kind
        mark = uuid.uuid4().hex
        block, delta = self._empty(kind, text, number, mark)
        self._mould = cut(BlockDelta(self._index, delta), mark, name="content_block_delta")
        return _frame(BlockStart(self._index, block))

    def _empty(self, kind: str, text: str, number: int, mark: str) -> tuple[Block, Delta]:
        match kind:
            case "text":
                return TextBlock(""), TextDelta(mark)
            case "thought":
                return ThinkingBlock("", ""), ThinkingDelta(mark)
        return ToolUseBlock(self._speaker.id(text, number), text, {}), InputDelta(mark)

    def _close(self) -> Iterator[bytes]:
        """The end of the block that is open, if one is."""
        if self._open == "thought":
            yield _frame(BlockDelta(self._index, SignatureDelta(signed("".join(self._thoughts)))))
            self._thoughts.clear()
        if self._open:
            yield _frame(BlockStop(self._index))
        self._open = ""


def _frame(event: StreamEvent) -> bytes:
    return frame(event, name=str(event.__struct_config__.tag))
