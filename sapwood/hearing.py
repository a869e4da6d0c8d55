"""Transcripts of recordings by an engine in this process: what `LLM.transcribe` does."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sapwood.base.errors import GenerationFailed, RequestError, SapwoodError, UserError
from sapwood.engine.client import Stream, check_request
from sapwood.engine.inprocess import InProcess
from sapwood.speech.audio import Audio, AudioLimits, decoded
from sapwood.speech.transcript import Options, Transcript
from sapwood.speech.transcription import Ask, Asking, Heard, Tell, Transcription
from sapwood.speech.vocabulary import SpeechVocabulary, speech_vocabulary
from sapwood.text import TextModel

Recording = str | Path | bytes | NDArray[np.generic] | Audio
"""A file, the bytes of one, or samples at 16 kHz of one channel: float32 in [-1, 1] or int16 [N]."""

LIMITS = AudioLimits(seconds=86_400.0, cpu_seconds=600)
"""Of recordings that are our own."""


class Recordings:
    """Listens with an engine that its caller drives, to many at once."""

    def __init__(self, engine: InProcess, text: TextModel) -> None:
        """Raises RequestError for a model that transcribes nothing."""
        self._engine = engine
        found, speech = None, text.speech
        if speech is not None and "audio" in engine.facts.media:
            found = speech_vocabulary(text, vocab_size=engine.facts.vocab_size, silent=speech.silent)
        if found is None or speech is None:
            raise RequestError(
                "this model transcribes nothing: it is done by one of the Whisper family.",
                param="model",
                code="unsupported_task",
            )
        self.vocabulary: SpeechVocabulary = found
        self._speech = speech

    def transcribe(
        self, recordings: Iterable[Recording], options: Options, tell: Tell | None = None
    ) -> list[Transcript]:
        """Raises RequestError before anything runs for what is no recording, GenerationFailed for what fails then."""
        context = self._engine.facts.max_model_len
        ones = [
            Transcription(
                audio,
                self.vocabulary,
                options,
                num_mels=self._speech.num_mels,
                context=context,
                aligns=self._speech.aligns,
            )
            for audio in map(audio_of, recordings)
        ]
        for one in ones:
            one.survey()
        self._drive([one.prepare() for one in ones])
        self._drive([part for one in ones for part in one.parts(tell)])
        return [one.transcript for one in ones]

    def _drive(self, parts: Sequence[Asking]) -> None:
        """Have the engine answer what they ask, a step's worth of them side by side."""
        waiting, live = deque(parts), set[_Run]()
        most = max(self._engine.facts.max_num_seqs, 1)
        try:
            while waiting or live:
                while waiting and len(live) < most:
                    self._go_on(_Run(waiting.popleft()), live)
                if live:
                    self._engine.step()
                for run in [run for run in live if run.stream.finished]:
                    self._go_on(run, live)
        finally:
            for run in live:
                run.stream.close()
            self._engine.drain()

    def _go_on(self, run: _Run, live: set[_Run]) -> None:
        """Take what was heard, if something was asked, and ask what is asked next."""
        asked = run in live
        live.discard(run)
        heard = run.heard() if asked else None
        try:
            ask = next(run.part) if heard is None else run.part.send(heard)
        except StopIteration:
            return
        run.stream = self._asked(ask, run)
        live.add(run)

    def _asked(self, ask: Ask, run: _Run) -> Stream:
        check_request(ask.tokens, ask.params, self._engine.facts, task=ask.task)
        media = [ask.window.media()]
        return self._engine.submit(ask.tokens, ask.params, run, checked=True, task=ask.task, media=media)


class _Run:
    """A part on its way; its stream is looked at after each step."""

    stream: Stream

    def __init__(self, part: Asking) -> None:
        self.part = part

    def wake(self) -> None:
        """Nothing: all news are taken at the end."""

    def heard(self) -> Heard:
        """All that was generated. Raises GenerationFailed."""
        try:
            delta = self.stream.take()
        except SapwoodError as error:
            raise GenerationFailed(str(error)) from error
        finally:
            self.stream.close()
        assert delta is not None and delta.finish is not None, "it has ended"
        return Heard(delta.tokens, list(delta.logprobs or ()), delta.vector)


def audio_of(recording: Recording) -> Audio:
    """A recording as models hear it. Raises RequestError for what is none, UserError for a file that cannot be read."""
    if isinstance(recording, Audio):
        return recording
    if isinstance(recording, np.ndarray):
        return _sampled(recording)
    if isinstance(recording, bytes):
        return decoded(recording, LIMITS)
    try:
        data = Path(recording).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{recording} cannot be read: {error.strerror or error}.") from error
    return decoded(data, LIMITS)


def _sampled(samples: NDArray[np.generic]) -> Audio:
    if samples.ndim != 1 or samples.dtype not in (np.float32, np.int16):
        raise RequestError(
            f"samples must be float32 or int16 [N], at 16 kHz, got {samples.dtype} {list(samples.shape)}.", param="file"
        )
    if samples.dtype == np.int16:
        return Audio(samples.astype(np.int16, copy=False))
    whole = np.nan_to_num(samples.astype(np.float32)) * 32768.0
    return Audio(np.clip(np.rint(whole), -32768, 32767).astype(np.int16))
