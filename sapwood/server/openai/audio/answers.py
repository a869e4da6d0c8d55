"""Transcripts as OpenAI words them: bodies of answers, and events of streams."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from sapwood.server.body import json_response
from sapwood.server.logprobs import finite
from sapwood.server.openai.audio.form import Form
from sapwood.speech.formats import FILES
from sapwood.speech.transcript import Segment, Transcript
from sapwood.speech.vocabulary import SpeechVocabulary
from sapwood.text import TextModel


class Duration(msgspec.Struct, kw_only=True):
    """What was used: seconds of sound, whole ones."""

    type: str = "duration"
    seconds: int


class SaidToken(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class SaidSegment(msgspec.Struct, kw_only=True):
    """`start` and `end` in seconds; `seek` is where its window begins, in hundredths of one."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class SaidWord(msgspec.Struct):
    """In seconds."""

    word: str
    start: float
    end: float


class Transcribed(msgspec.Struct, kw_only=True):
    """`response_format` json, and verbose_json, which has all but logprobs: words or segments, as was asked."""

    task: str | UnsetType = UNSET
    language: str | UnsetType = UNSET
    duration: float | UnsetType = UNSET
    text: str
    words: list[SaidWord] | UnsetType = UNSET
    segments: list[SaidSegment] | UnsetType = UNSET
    logprobs: list[SaidToken] | UnsetType = UNSET
    usage: Duration


class TextDelta(msgspec.Struct, kw_only=True, tag_field="type", tag="transcript.text.delta"):
    delta: str
    logprobs: list[SaidToken] | UnsetType = UNSET


class TextDone(msgspec.Struct, kw_only=True, tag_field="type", tag="transcript.text.done"):
    text: str
    logprobs: list[SaidToken] | UnsetType = UNSET
    usage: Duration


Event = TextDelta | TextDone

_TYPES = {"text": "text/plain; charset=utf-8", "srt": "text/plain; charset=utf-8", "vtt": "text/vtt; charset=utf-8"}


class Answers:
    """Words the transcripts of one request."""

    def __init__(self, form: Form, text: TextModel, vocabulary: SpeechVocabulary) -> None:
        self._form, self._text, self._vocabulary = form, text, vocabulary

    def whole(self, found: Transcript) -> Response:
        """The answer to a request that wants no stream."""
        form = self._form
        if form.format == "verbose_json":
            return json_response(
                Transcribed(
                    task=found.task,
                    language=found.language_name,
                    duration=round(found.duration, 3),
                    text=found.text,
                    words=[SaidWord(one.word.strip(), one.start, one.end) for one in found.words]
                    if "word" in form.granularities
                    else UNSET,
                    segments=[_segment(number, one) for number, one in enumerate(found.segments)]
                    if "segment" in form.granularities
                    else UNSET,
                    usage=_usage(found),
                )
            )
        if form.format == "json":
            logprobs = self._logprobs(found.segments) if form.logprobs else UNSET
            return json_response(Transcribed(text=found.text, logprobs=logprobs, usage=_usage(found)))
        return Response(FILES[form.format](found), media_type=_TYPES[form.format])

    def delta(self, segments: Sequence[Segment], *, first: bool) -> TextDelta:
        """More of a stream. Deltas join to the text of the end."""
        said = "".join(segment.text for segment in segments)
        logprobs = self._logprobs(segments) if self._form.logprobs else UNSET
        return TextDelta(delta=said.lstrip() if first else said, logprobs=logprobs)

    def done(self, found: Transcript) -> TextDone:
        logprobs = self._logprobs(found.segments) if self._form.logprobs else UNSET
        return TextDone(text=found.text, logprobs=logprobs, usage=_usage(found))

    def _logprobs(self, segments: Sequence[Segment]) -> list[SaidToken]:
        """Of the tokens that are text."""
        entries = (one for segment in segments for one in segment.logprobs if one.token < self._vocabulary.end)
        return [
            SaidToken(self._text.token_text(one.token), finite(one.logprob), list(self._text.token_bytes(one.token)))
            for one in entries
        ]


def _usage(found: Transcript) -> Duration:
    return Duration(seconds=math.ceil(found.duration))


def _segment(number: int, one: Segment) -> SaidSegment:
    return SaidSegment(
        id=number,
        seek=one.seek,
        start=one.start,
        end=one.end,
        text=one.text,
        tokens=one.tokens,
        temperature=one.temperature,
        avg_logprob=finite(one.avg_logprob),
        compression_ratio=one.compression_ratio,
        no_speech_prob=one.no_speech_prob or 0.0,
    )
