"""Transcriptions on the server's engine: decoding, features and windows of many requests side by side."""

from __future__ import annotations

import asyncio

import anyio
import anyio.to_thread

from sapwood.base.errors import ConfigError, RequestError
from sapwood.base.task import Generate
from sapwood.engine.tasks import end
from sapwood.server.front import Front
from sapwood.server.generation import Prompt, choices_of, complete
from sapwood.server.openai.audio.form import Form
from sapwood.speech.audio import Audio, AudioLimits, decoded_beside
from sapwood.speech.transcript import Transcript
from sapwood.speech.transcription import Asking, Heard, Tell, Transcription
from sapwood.speech.vocabulary import SpeechVocabulary, speech_vocabulary

_DECODED_AT_ONCE = 2
_THREADS = 2  # that compute features
_CLIPS_AT_ONCE = 16  # of one recording


class Listener:
    """Transcribes for all requests of a server, whose model has to be one that does."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._limits = AudioLimits(seconds=front.config.server.max_audio_seconds)
        self._decoding = anyio.CapacityLimiter(_DECODED_AT_ONCE)
        self._threads = anyio.CapacityLimiter(_THREADS)
        self._vocabulary: SpeechVocabulary | None = None

    @property
    def vocabulary(self) -> SpeechVocabulary:
        """Raises RequestError where the model transcribes nothing."""
        if self._vocabulary is None:
            text, facts = self._front.text, self._front.facts
            if text.speech is not None and "audio" in facts.media:
                self._vocabulary = speech_vocabulary(text, vocab_size=facts.vocab_size, silent=text.speech.silent)
            if self._vocabulary is None:
                raise RequestError(
                    "this model transcribes nothing: it is served by one of the Whisper family.",
                    param="model",
                    code="unsupported_task",
                )
        return self._vocabulary

    async def decode(self, data: bytes) -> Audio:
        """Raises RequestError for what is no recording, is too long, or takes too much."""
        try:
            async with self._decoding:
                return await decoded_beside(data, self._limits)
        except ConfigError as error:
            raise RequestError(f"file: {error}", param="file", status=501, code="audio_unavailable") from None

    async def transcribe(self, audio: Audio, form: Form, tell: Tell | None = None) -> Transcript:
        """Listen to all of it; `tell` gets segments as they come."""
        front, metrics = self._front, self._front.metrics
        assert front.text.speech is not None, "there is a vocabulary"
        one = Transcription(
            audio,
            self.vocabulary,
            form.options,
            num_mels=front.text.speech.num_mels,
            context=front.facts.max_model_len,
            aligns=front.text.speech.aligns,
        )
        await anyio.to_thread.run_sync(one.survey, limiter=self._threads)
        await self._drive(one.prepare())
        some = asyncio.Semaphore(_CLIPS_AT_ONCE)

        async def listened(part: Asking) -> None:
            async with some:
                await self._drive(part)

        tasks = [asyncio.ensure_future(listened(part)) for part in one.parts(tell)]
        if tasks:
            try:
                await asyncio.gather(*tasks)
            finally:
                await end(*tasks)
        found = one.transcript
        metrics.audio_seconds.labels(found.task).inc(found.duration)
        metrics.audio_windows.inc(found.num_windows)
        metrics.audio_tries.inc(found.num_tries)
        return found

    async def _drive(self, part: Asking) -> None:
        """Have the engine answer what it asks, until it asks no more."""
        front = self._front
        try:
            ask = next(part)
            while True:
                media = await anyio.to_thread.run_sync(ask.window.media, limiter=self._threads)
                scoring = not isinstance(ask.task, Generate)
                prompt = Prompt(ask.tokens, "prompt", media=(media,), scoring=scoring, task=ask.task)
                (choice,) = choices_of([(prompt, front.check(ask.params, {}))])
                await complete(front, [choice])
                ask = part.send(Heard(choice.tokens, choice.logprobs, choice.vector))
        except StopIteration:
            pass
