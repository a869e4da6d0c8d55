"""A recording on its way to a transcript, a window of 30 s at a time: openai-whisper's `transcribe`, without a model.

What it wants to know of the model it yields as an `Ask`, and is sent what was `Heard`. So whoever has an engine drives any number of
recordings, and of clips of one, at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sapwood.base.media import Media
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Align, Task
from sapwood.speech.activity import Clip, clips_of, is_silent, levels_of
from sapwood.speech.audio import Audio
from sapwood.speech.features import FRAMES_PER_SECOND, WINDOW_FRAMES, LogMel
from sapwood.speech.transcript import Options, Segment, Transcript
from sapwood.speech.vocabulary import PRECISION, SpeechVocabulary
from sapwood.speech.words import Word, joined, moments, split

ENCODED = WINDOW_FRAMES // 2
"""Positions of what an encoder makes of a window."""

_TOLD_UP_TO = 0.5  # the highest temperature of a window that the next one is told of
_FRAMES_PER_MARK = round(PRECISION * FRAMES_PER_SECOND)


class Window:
    """Some frames of a recording, as an encoder takes them."""

    def __init__(self, mel: LogMel, clip: Clip) -> None:
        self._mel, self.clip = mel, clip
        self._media: Media | None = None

    def media(self) -> Media:
        """Computed when it is first asked for, which takes a while."""
        if self._media is None:
            features = self._mel.window(self.clip.start, self.clip.end - self.clip.start)
            self._media = Media.of("audio", {"features": features}, ENCODED)
        return self._media


class Ask(NamedTuple):
    """What is to be generated of a window, behind these tokens, or how they look at it."""

    window: Window
    tokens: list[int]
    params: SamplingParams
    task: Task = GENERATE


class Heard(NamedTuple):
    """What was generated, and the log probabilities of that, or the vector of another task, as float32."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    vector: bytes = b""


Heads = tuple[tuple[int, int], ...]
Asking = Generator[Ask, Heard, None]
Tell = Callable[[list[Segment]], None]


@dataclass(eq=False)
class _Try:
    """What a model says of a window, at a temperature."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    temperature: float
    avg_logprob: float
    compression: float
    silence: float | None = None


class Transcription:
    """One recording. `context` is the most tokens that the model has, prompt and output together; `aligns` are the heads of its decoder, each
    a layer and a head, that look at what is being said.

    First drive `prepare`, then each of `parts`, in any order or at once; `transcript` has what came of it.
    """

    def __init__(
        self,
        audio: Audio,
        vocabulary: SpeechVocabulary,
        options: Options,
        *,
        num_mels: int,
        context: int,
        aligns: Heads,
    ) -> None:
        """Raises RequestError for options that the model cannot do."""
        self._options = options.check(vocabulary)
        self._vocabulary = vocabulary
        self._audio = audio
        self._mel = LogMel(audio.samples, num_mels)
        self._context, self._aligns = context, aligns
        self._clips: list[Clip] = []
        self._found: list[list[Segment]] = []
        self._done: set[int] = set()
        self._next = 0  # the first clip that is not done: what it says may be told
        self._language = options.language or ("" if vocabulary.multilingual else "en")
        self.transcript = Transcript(options.task, self._language, audio.seconds)

    def survey(self) -> None:
        """Look at the whole recording once: takes a while, and has to be first."""
        self._levels_F = levels_of(self._audio.samples)
        whole = Clip(0, self._mel.num_frames)
        self._clips = clips_of(self._levels_F) if self._options.clips else [whole]
        self._clips = [clip for clip in self._clips if clip.end > clip.start and not is_silent(self._levels_F, clip)]
        self._found = [[] for _ in self._clips]

    def prepare(self) -> Asking:
        """Find out what is spoken, if nobody has said: in the first window that has sound."""
        if self._language or not self._clips:
            return
        first = self._clips[0]
        start = next(self._sounding(first), first.start)
        window = Window(self._mel, Clip(start, min(start + WINDOW_FRAMES, self._mel.num_frames)))
        languages = self._vocabulary.languages
        params = SamplingParams(
            max_tokens=1, temperature=0.0, allowed_token_ids=tuple(languages.values()), ignore_eos=True
        )
        heard = yield Ask(window, [self._vocabulary.start], params)
        codes = {id: code for code, id in languages.items()}
        self._language = self.transcript.language = codes.get(heard.tokens[0], "en")

    def parts(self, tell: Tell | None = None) -> list[Asking]:
        """What is left to be done. `tell` gets segments in the order of the recording, as soon as all before them are known."""
        return [self._listen(index, tell) for index in range(len(self._clips))]

    def _sounding(self, clip: Clip) -> Generator[int]:
        """Where windows of a clip begin in which there is sound."""
        for start in range(clip.start, clip.end, WINDOW_FRAMES):
            if not is_silent(self._levels_F, Clip(start, min(start + WINDOW_FRAMES, clip.end))):
                yield start

    # -- a clip, window by window -------------------------------------------------------------------------------------

    def _listen(self, index: int, tell: Tell | None) -> Asking:
        clip, options, vocabulary = self._clips[index], self._options, self._vocabulary
        said = vocabulary.words(options.prompt)
        reset = 0  # what was said before is not told any more
        seek = clip.start
        while seek < clip.end:
            window = Window(self._mel, Clip(seek, min(seek + WINDOW_FRAMES, clip.end)))
            size = window.clip.end - seek
            if is_silent(self._levels_F, window.clip):
                seek += size
                continue
            self.transcript.num_windows += 1
            found = yield from self._decide(window, said[reset:])
            if self._is_silence(found):
                seek += size
                continue
            segments, step = self._cut(found, seek, size)
            if options.words and segments:
                yield from self._time(window, segments)
            seek += step
            for segment in segments:
                said += segment.tokens
            if not options.by_previous or found.temperature > _TOLD_UP_TO:
                reset = len(said)
            self._add(index, segments, tell)
        self._close(index, tell)

    def _add(self, index: int, segments: list[Segment], tell: Tell | None) -> None:
        self._found[index] += segments
        if tell is not None and index == self._next and segments:
            tell(segments)

    def _close(self, index: int, tell: Tell | None) -> None:
        """A clip is done, and those behind it that waited for it are told."""
        self._done.add(index)
        while self._next in self._done:
            self._next += 1
            if tell is not None and self._next < len(self._found) and self._found[self._next]:
                tell(self._found[self._next])
        if len(self._done) == len(self._found):
            self.transcript.segments = [segment for found in self._found for segment in found]

    def _is_silence(self, found: _Try) -> bool:
        options = self._options
        return found.silence is not None and found.silence > options.silent and found.avg_logprob <= options.likely

    # -- a window -----------------------------------------------------------------------------------------------------

    def _decide(self, window: Window, said: Sequence[int]) -> Generator[Ask, Heard, _Try]:
        """The first try that is believed, or the last one."""
        options, vocabulary = self._options, self._vocabulary
        beginning = vocabulary.beginning(self._language, options.task)
        most = self._context // 2
        told = [vocabulary.before, *said[-(most - 1) :]] if said else []
        prompt = told + beginning
        silence: float | None = None
        for temperature in options.temperatures:
            found = yield from self._try(window, prompt, temperature)
            unlikely = found.avg_logprob < options.likely
            if silence is None and (unlikely or options.probe or found.avg_logprob <= options.likely):
                silence = yield from self._silence(window, prompt[: len(told) + 1])
            found.silence = silence
            if silence is not None and silence > options.silent and unlikely:
                break
            if found.compression <= options.compression and not unlikely:
                break
        return found

    def _try(self, window: Window, prompt: list[int], temperature: float) -> Generator[Ask, Heard, _Try]:
        vocabulary, options = self._vocabulary, self._options
        room = self._context - len(prompt)
        params = SamplingParams(
            max_tokens=min(self._context // 2, room),
            temperature=temperature,
            seed=options.seed,
            logprobs=0,
            stop_token_ids=(vocabulary.end,),
            forbidden=tuple((id,) for id in vocabulary.silent),
            timestamps=vocabulary.timestamps,
            skip_special_tokens=False,
        )
        tokens, logprobs, _ = yield Ask(window, prompt, params)
        self.transcript.num_tries += 1
        total = sum(one.logprob for one in logprobs)
        if tokens and tokens[-1] == vocabulary.end:
            tokens, logprobs = tokens[:-1], logprobs[:-1]
        mean = total / (len(tokens) + 1)
        return _Try(tokens, logprobs, temperature, mean, compression_ratio(vocabulary.said(tokens).strip()))

    def _silence(self, window: Window, prompt: list[int]) -> Generator[Ask, Heard, float]:
        """How likely it is that nobody speaks: what the model thinks of that token where a transcript begins."""
        silence = self._vocabulary.silence
        params = SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=0, logprob_token_ids=(silence,), ignore_eos=True
        )
        heard = yield Ask(window, prompt, params)
        return exp(heard.logprobs[0].named_logprobs[0])

    def _time(self, window: Window, segments: Sequence[Segment]) -> Generator[Ask, Heard, None]:
        """Give segments of a window their words. What was said is put before the model once more, without marks, behind what transcripts
        begin with: the token before each begins with it."""
        vocabulary = self._vocabulary
        beginning = vocabulary.beginning(self._language, self._options.task)
        texts = [[token for token in segment.tokens if token < vocabulary.end] for segment in segments]
        tokens = [*beginning, vocabulary.unmarked, *(token for text in texts for token in text)]
        frames = (window.clip.end - window.clip.start) // 2
        task = Align(self._aligns, len(beginning), max(frames, 1))
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        heard = yield Ask(window, tokens, params, task)
        matrix_NL = np.frombuffer(heard.vector, np.float32).reshape(-1, task.frames)
        seconds = window.clip.start / FRAMES_PER_SECOND + PRECISION * moments(matrix_NL)
        done = 0
        for segment, text in zip(segments, texts, strict=True):
            segment.words = self._words(segment, text, seconds[done:])
            done += len(text)

    def _words(self, segment: Segment, text: Sequence[int], seconds: NDArray[np.floating]) -> list[Word]:
        """Of a segment whose tokens begin at these seconds, and end where the next does."""
        likely = [exp(one.logprob) for one in segment.logprobs if one.token < self._vocabulary.end]
        words, first = list[Word](), 0
        for word, count in split(text, self._vocabulary.text, self._language):
            end = first + count
            start, stop = (round(float(seconds[at]), 3) for at in (first, end))
            words.append(Word(word, start, stop, sum(likely[first:end]) / count))
            first = end
        return joined(words)

    # -- what was said, and when --------------------------------------------------------------------------------------

    def _cut(self, found: _Try, seek: int, size: int) -> tuple[list[Segment], int]:
        """The segments of a window's transcript, and how many frames the next window begins behind this one's beginning.

        Where two marks stand together a segment ends and the next one begins. What follows the last such pair is heard again, whole, in
        the next window; a mark alone at the end says that nothing follows it.
        """
        marks = [self._vocabulary.is_mark(token) for token in found.tokens]
        places = [place for place in range(1, len(marks)) if marks[place] and marks[place - 1]]
        ends_alone = marks[-2:] == [False, True]
        if places and ends_alone:
            places.append(len(marks))
        if not places:
            return self._whole(found, marks, seek, size), size
        offset, last, segments = seek / FRAMES_PER_SECOND, 0, []
        for place in places:
            begin, end = (self._vocabulary.seconds(found.tokens[at]) for at in (last, place - 1))
            segments += self._segment(found, slice(last, place), seek, offset + begin, offset + end)
            last = place
        mark = round(self._vocabulary.seconds(found.tokens[last - 1]) / PRECISION)
        # At least a mark further, so that every recording ends.
        return segments, size if ends_alone else max(mark * _FRAMES_PER_MARK, _FRAMES_PER_MARK)

    def _whole(self, found: _Try, marks: list[bool], seek: int, size: int) -> list[Segment]:
        """One segment, up to the last mark, if there is one behind the first."""
        seconds = size / FRAMES_PER_SECOND
        last = next((token for token in reversed(found.tokens) if self._vocabulary.is_mark(token)), 0)
        if last > self._vocabulary.first_mark:
            seconds = self._vocabulary.seconds(last)
        offset = seek / FRAMES_PER_SECOND
        return self._segment(found, slice(0, len(marks)), seek, offset, offset + seconds)

    def _segment(self, found: _Try, part: slice, seek: int, start: float, end: float) -> list[Segment]:
        """The segment, or none where nothing is said or it takes no time."""
        tokens = found.tokens[part]
        text = self._vocabulary.said(tokens)
        if start == end or not text.strip():
            return []
        return [
            Segment(
                start=round(start, 3),
                end=round(end, 3),
                text=text,
                tokens=tokens,
                seek=seek,
                temperature=found.temperature,
                avg_logprob=found.avg_logprob,
                compression_ratio=found.compression,
                no_speech_prob=found.silence,
                logprobs=found.logprobs[part],
            )
        ]


def compression_ratio(text: str) -> float:
    """How well a text compresses: what repeats itself does so better."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
