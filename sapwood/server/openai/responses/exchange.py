"""One request for a response: from its body to a turn that can run, and what becomes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sapwood.base.errors import RequestError
from sapwood.server.calling import Toolbox
from sapwood.server.conversation import Ask, Turn, begin, prompt_of
from sapwood.server.front import Front, Talk
from sapwood.server.generation import News
from sapwood.server.openai.responses.items import Conversation, Item, items_of
from sapwood.server.openai.responses.objects import Response, response_of
from sapwood.server.openai.responses.protocol import ResponseRequest
from sapwood.server.openai.responses.records import context, keep
from sapwood.server.openai.responses.tools import Tools, tools_of
from sapwood.server.openai.responses.writer import Writer
from sapwood.server.prediction import predicted_text


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A response on its way: its `turn` is to be run, `writer` to be given what comes of it."""

    front: Front
    owner: str
    body: ResponseRequest
    items: list[Item]
    turn: Turn
    writer: Writer

    def push(self, news: Sequence[News]) -> list[bytes]:
        """The events of some news."""
        for one in news:
            self.writer.push(one)
        return self.writer.taken()

    def whole(self) -> Response:
        """The response of a choice that has run to its end."""
        choice = self.turn.choices[0]
        self.writer.push(News(choice, choice.text, choice.tokens, choice.logprobs, first=True))
        self.keep()
        return self.writer.response

    def keep(self, events: Sequence[bytes] | None = None) -> None:
        """Store the response as it is, if it is to be stored, and its events if they may be asked for."""
        if self.body.kept:
            keep(self.front.store, self.owner, self.writer.response, self.items, events)


async def exchange_of(front: Front, owner: str, body: ResponseRequest) -> Exchange:
    """Raises RequestError, naming the field."""
    params, (items, talk, tools) = await body.params(front), await _read(front, owner, body)
    if body.truncation == "auto":
        talk = await _fitted(front, talk, tools.box, params.max_tokens or 1)
    ask = Ask(
        talk=talk,
        toolbox=tools.box,
        budget=body.budget,
        format=body.format(),
        params=params,
        salt=body.salt,
        priority=body.priority or 0,
        limit_param="max_output_tokens",
        prediction=predicted_text(body.prediction),
    )
    turn = await begin(front, ask)
    writer = Writer(
        front, response_of(front, body, params), turn, tools, seal=body.encrypts, drafts=bool(body.speculation_details)
    )
    return Exchange(front=front, owner=owner, body=body, items=items, turn=turn, writer=writer)


async def count(front: Front, owner: str, body: ResponseRequest) -> int:
    """How many tokens a request's prompt has."""
    _, talk, tools = await _read(front, owner, body)
    return len((await prompt_of(front, talk, tools.box)).tokens)


async def _read(front: Front, owner: str, body: ResponseRequest) -> tuple[list[Item], Talk, Tools]:
    """The items that the request adds, the whole conversation, and the tools."""
    tools = tools_of(body, reads=front.text.dialect.tools is not None)
    items = items_of(body.input)
    conversation = Conversation(body.instructions)
    conversation.add(await context(front.store, owner, body.previous_response_id), "previous_response_id")
    conversation.add(items, "input")
    return items, Talk(messages=conversation.messages, template=body.template(), param="input"), tools


async def _fitted(front: Front, talk: Talk, toolbox: Toolbox | None, num_new: int) -> Talk:
    """The conversation without its oldest messages, as few as leave room for `num_new` tokens; the last one stays.

    What tools answered goes with the calls.
    """
    system = talk.messages[:1] if talk.messages[0]["role"] == "system" else []
    others = talk.messages[len(system) :]
    begins = [index for index, message in enumerate(others) if message["role"] != "tool"]

    def without(count: int) -> Talk:
        return replace(talk, messages=[*system, *others[begins[count] :]])

    async def fits(count: int) -> bool:
        try:
            rendered = await prompt_of(front, without(count), toolbox)
        except RequestError as error:
            if error.code != "context_length_exceeded":
                raise
            return False
        return len(rendered.tokens) + num_new <= front.facts.max_model_len

    low, high = 0, max(len(begins) - 1, 0)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if await fits(middle) else (middle + 1, high)
    return without(low) if begins else talk
