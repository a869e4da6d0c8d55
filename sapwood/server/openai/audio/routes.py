"""Routes of recordings."""

from __future__ import annotations

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from sapwood.server.body import read_body
from sapwood.server.front import Front
from sapwood.server.multipart import parts_of
from sapwood.server.openai.audio.answers import Answers, Event, Transcribed
from sapwood.server.openai.audio.form import Form, form_of
from sapwood.server.openai.audio.listening import Listener
from sapwood.server.openai.audio.stream import TextStream
from sapwood.server.routes import Described, Media, Streamed, plain
from sapwood.speech.transcript import Task
from sapwood.speech.vocabulary import SpeechVocabulary


def _form(kind: str, body: bytes, task: Task, vocabulary: SpeechVocabulary) -> Form:
    return form_of(parts_of(kind, body), task, vocabulary)


def routes(front: Front) -> list[Described]:
    listener = Listener(front)

    async def answered(request: Request, task: Task) -> Response:
        body = await read_body(request, front.config.server.max_body_bytes)
        vocabulary = listener.vocabulary
        kind = request.headers.get("content-type", "")
        form = await anyio.to_thread.run_sync(_form, kind, body, task, vocabulary)  # which copies what may be large
        del body
        front.check_model(form.model)
        audio = await front.attended(request.receive, listener.decode(form.file))
        answers = Answers(form, front.text, vocabulary)
        if form.stream:
            return TextStream(front, answers, lambda tell: listener.transcribe(audio, form, tell))
        return answers.whole(await front.attended(request.receive, listener.transcribe(audio, form)))

    async def transcriptions(request: Request) -> Response:
        """Write down what is said in a recording: a form with `file`, and as they are wanted `language`, `prompt`, `response_format`,
        `temperature`, `timestamp_granularities[]`, `chunking_strategy`, `include[]` and `stream`."""
        return await answered(request, "transcribe")

    async def translations(request: Request) -> Response:
        """Write down in English what is said in a recording in any language: a form as for transcriptions."""
        return await answered(request, "translate")

    form = Media("multipart/form-data")
    return [
        plain(
            f"/v1/audio/{handler.__name__}",
            handler,
            methods=["POST"],
            body=form,
            gives=Transcribed,
            streams=Streamed(Event),
        )
        for handler in (transcriptions, translations)
    ]
