"""/api/chat and /api/generate."""

from __future__ import annotations

from time import perf_counter

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response
from sapwood.server.calling import Toolbox
from sapwood.server.conversation import Ask, CallIds, begin
from sapwood.server.front import Front, Talk
from sapwood.server.functions import Choice, declared, toolbox_of
from sapwood.server.generation import Choice as Output
from sapwood.server.generation import Prompt, choices_of, clipped, generate
from sapwood.server.ollama.answers import ChatLine, GenerateLine, Lines, Speaker, Wording
from sapwood.server.ollama.history import talk_of
from sapwood.server.ollama.protocol import CHAT, GENERATE, Asking, ChatBody, GenerateBody, GivenMessage, check_model
from sapwood.server.prediction import predicted, predicted_text
from sapwood.server.routes import Described, Streamed, post
from sapwood.server.sse import EventStream
from sapwood.text.parsers import Event


def routes(front: Front) -> list[Described]:
    async def chat(request: Request, body: ChatBody) -> Response:
        """The next message of a chat, as Ollama has it: as lines, or with `stream: false` as a whole."""
        begun = perf_counter()
        check_model(front, body.model)
        wording = Wording(front, chats=True)
        if not body.messages:
            return json_response(wording.load())
        ask = _ask(front, body, talk_of(body.messages, body.template()), _toolbox(front, body))
        return await _answer(front, request, body, *await _turn(front, ask, wording, begun))

    async def generate_(request: Request, body: GenerateBody) -> Response:
        """What follows a prompt, which the chat template frames: as lines, or with `stream: false` as a whole."""
        begun = perf_counter()
        check_model(front, body.model)
        wording = Wording(front, chats=False)
        if not body.prompt:
            return json_response(wording.load())
        if body.raw or not front.text.has_template:
            return await _answer(front, request, body, *await _raw(front, body, wording, begun))
        ask = _ask(front, body, _talk(body), None)
        return await _answer(front, request, body, *await _turn(front, ask, wording, begun))

    return [
        post(
            front, "/api/chat", ChatBody, chat, refused=CHAT, gives=ChatLine, streams=Streamed(ChatLine, Lines.media)
        ),
        post(
            front, "/api/generate", GenerateBody, generate_, refused=GENERATE, gives=GenerateLine,
            streams=Streamed(GenerateLine, Lines.media),
        ),
    ]  # fmt: skip


def _talk(body: GenerateBody) -> Talk:
    messages = [GivenMessage(role="user", content=body.prompt, images=body.images)]
    if body.system:
        messages.insert(0, GivenMessage(role="system", content=body.system))
    return talk_of(messages, body.template(), param="prompt")


def _toolbox(front: Front, body: ChatBody) -> Toolbox | None:
    tools = body.tools or []
    functions = [declared(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    return toolbox_of(tools, functions, Choice(), many=True, reads=front.text.dialect.tools is not None)


def _ask(front: Front, body: Asking, talk: Talk, toolbox: Toolbox | None) -> Ask:
    return Ask(
        talk=talk,
        toolbox=toolbox,
        budget=body.budget(front),
        format=body.asked(),
        params=body.params(front),
        limit_param="options.num_predict",
        clipped=True,
        prediction=predicted_text(body.prediction),
    )


async def _turn(front: Front, ask: Ask, wording: Wording, begun: float) -> tuple[Output, Speaker]:
    turn = await begin(front, ask)
    ids = CallIds(front, turn)
    speaker = Speaker(front, wording, events=turn.events, finding=turn.finding, id=ids, begun=begun, plain=turn.plain)
    return turn.choices[0], speaker


async def _raw(front: Front, body: GenerateBody, wording: Wording, begun: float) -> tuple[Output, Speaker]:
    """A prompt as it stands, and what follows as it is."""
    for name in ("system", "think", "images"):
        if getattr(body, name):
            raise RequestError(f"{name}: a prompt without a template has no place for it; leave it out.", param=name)
    prediction = await predicted(front, predicted_text(body.prediction))
    params = msgspec.structs.replace(body.params(front), prediction=prediction)
    params, end_check = await front.restrict(params, body.asked())
    tokens = await front.encode(body.prompt or "", param="prompt")
    front.check_tokens(tokens, "prompt")
    prompt = Prompt(tokens, "prompt", limit_param="options.num_predict")
    (choice,) = choices_of([(prompt, clipped(params, front.facts.max_model_len - front.facts.begun(len(tokens))))])
    speaker = Speaker(
        front,
        wording,
        events=lambda news: [Event("text", news.text)] if news.text else [],
        finding=lambda choice: None if end_check is None else front.checked(end_check(choice.text)),
        id=lambda name, number: "",
        begun=begun,
        plain=True,
    )
    return choice, speaker


async def _answer(front: Front, request: Request, body: Asking, choice: Output, speaker: Speaker) -> Response:
    if body.stream is not False:
        return EventStream(front, [choice], Lines(speaker, logprobs=bool(body.logprobs)))
    await front.attended(request.receive, generate(front, [choice], speaker.note))
    return json_response(speaker.whole(choice))
