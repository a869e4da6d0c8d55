"""The items of a response while they grow, and the events that tell of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import msgspec
from msgspec import UNSET

from sapwood.server.openai.logprobs import TokenLogprob
from sapwood.server.openai.responses.items import new_id, sealed
from sapwood.server.openai.responses.objects import (
    CustomCall,
    FunctionCall,
    Message,
    OutputItem,
    OutputText,
    ReasoningText,
    Thought,
)
from sapwood.server.openai.responses.tools import Name
from sapwood.server.sse import quoted

_encode = msgspec.json.Encoder().encode


class Pen:
    """Writes events, numbered through."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self._number = 0

    def __call__(self, type: str, **fields: Any) -> None:
        event = {"type": type, "sequence_number": self._number, **fields}
        self._put(b"event: %b\ndata: %b\n\n" % (type.encode(), _encode(event)))

    def mould(self, type: str, **fields: Any) -> bytes:
        """How the events of one kind and place begin, which differ in their text only."""
        return b'event: %b\ndata: %b,"delta":' % (type.encode(), _encode({"type": type, **fields})[:-1])

    def cast(self, mould: bytes, text: str) -> None:
        """An event of a mould."""
        self._put(b'%b%b,"sequence_number":%d}\n\n' % (mould, quoted(text), self._number))

    def taken(self) -> list[bytes]:
        """What was written since the last time, an event each."""
        written, self.written = self.written, []
        return written

    def _put(self, frame: bytes) -> None:
        self.written.append(frame)
        self._number += 1


class Entry(ABC):
    """An item while it grows. It is begun with its first piece, and has no more pieces once it is closed."""

    kind: str

    def __init__(self, pen: Pen, item: OutputItem, index: int) -> None:
        self.item = item
        self._pen = pen
        self._index = index
        self._pieces: list[str] = []
        self._place = {"item_id": item.id, "output_index": index}
        pen("response.output_item.added", output_index=index, item=item)

    def more(self, text: str, logprobs: list[TokenLogprob]) -> None:
        self._pieces.append(text)
        self._tell(text, logprobs)

    def close(self, status: str) -> None:
        """`status`: completed, or incomplete where the output was cut off."""
        self.item.status = status
        self._end("".join(self._pieces))
        self._pen("response.output_item.done", output_index=self._index, item=self.item)

    @abstractmethod
    def _tell(self, text: str, logprobs: list[TokenLogprob]) -> None: ...

    @abstractmethod
    def _end(self, whole: str) -> None:
        """Complete the item, and say so."""


class SaidEntry(Entry):
    """A message of one text."""

    kind = "text"
    item: Message

    def __init__(self, pen: Pen, index: int) -> None:
        super().__init__(pen, Message(id=new_id("message")), index)
        self._place["content_index"] = 0
        self._part = OutputText()
        pen("response.content_part.added", **self._place, part=self._part)
        self._mould = pen.mould("response.output_text.delta", **self._place, logprobs=[])

    def _tell(self, text: str, logprobs: list[TokenLogprob]) -> None:
        if logprobs:
            self._part.logprobs += logprobs
            self._pen("response.output_text.delta", **self._place, delta=text, logprobs=logprobs)
        else:
            self._pen.cast(self._mould, text)

    def _end(self, whole: str) -> None:
        self._part.text, self.item.content = whole, [self._part]
        self._pen("response.output_text.done", **self._place, text=whole, logprobs=self._part.logprobs)
        self._pen("response.content_part.done", **self._place, part=self._part)


class ThoughtEntry(Entry):
    kind = "thought"
    item: Thought

    def __init__(self, pen: Pen, index: int, *, seal: bool) -> None:
        super().__init__(pen, Thought(id=new_id("reasoning")), index)
        self._place["content_index"] = 0
        self._seal = seal
        pen("response.content_part.added", **self._place, part=ReasoningText())
        self._mould = pen.mould("response.reasoning_text.delta", **self._place)

    def _tell(self, text: str, logprobs: list[TokenLogprob]) -> None:
        self._pen.cast(self._mould, text)

    def _end(self, whole: str) -> None:
        self.item.content = [ReasoningText(text=whole)]
        if self._seal:
            self.item.encrypted_content = sealed(whole)
        self._pen("response.reasoning_text.done", **self._place, text=whole)
        self._pen("response.content_part.done", **self._place, part=self.item.content[0])


class CallEntry(Entry):
    kind = "call"
    item: FunctionCall

    def __init__(self, pen: Pen, index: int, name: Name, call_id: str) -> None:
        item = FunctionCall(
            id=new_id("function_call"), call_id=call_id, name=name.name, namespace=name.namespace or UNSET
        )
        super().__init__(pen, item, index)
        self._mould = pen.mould("response.function_call_arguments.delta", **self._place)

    def _tell(self, text: str, logprobs: list[TokenLogprob]) -> None:
        self._pen.cast(self._mould, text)

    def _end(self, whole: str) -> None:
        self.item.arguments = whole
        self._pen("response.function_call_arguments.done", **self._place, name=self.item.name, arguments=whole)


class CustomEntry(Entry):
    """A call of a custom tool. Its text is told in one piece: what comes is JSON around it."""

    kind = "call"
    item: CustomCall

    def __init__(self, pen: Pen, index: int, name: Name, call_id: str) -> None:
        item = CustomCall(
            id=new_id("custom_tool_call"), call_id=call_id, name=name.name, namespace=name.namespace or UNSET
        )
        super().__init__(pen, item, index)

    def _tell(self, text: str, logprobs: list[TokenLogprob]) -> None:
        pass

    def _end(self, whole: str) -> None:
        self.item.input = _input_of(whole)
        self._pen("response.custom_tool_call_input.delta", **self._place, delta=self.item.input)
        self._pen("response.custom_tool_call_input.done", **self._place, input=self.item.input)


def _input_of(arguments: str) -> str:
    """The text in a custom tool's arguments; all of it where the model wrote something else."""
    try:
        given = msgspec.json.decode(arguments, type=dict[str, Any]).get("input")
    except msgspec.DecodeError:
        given = None
    return given if isinstance(given, str) else arguments
