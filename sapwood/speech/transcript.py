"""What is asked of a transcription, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sapwood.base.errors import RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.speech.languages import code_of, name_of
from sapwood.speech.vocabulary import SpeechVocabulary
from sapwood.speech.words import Word

Task = Literal["transcribe", "translate"]

FALLBACKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Temperatures that are tried, one after the other, while what comes of it is not believed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a recording is transcribed.

    Attributes:
        task: "translate" has what is said in any language written in English.
        language: What is spoken, by its code; None finds out.
        prompt: What was said before, or how names in it are written.
        temperature: Of the first try. At 0 as openai-whisper: what is not believed is tried again at higher ones.
        by_previous: A window is told what was said in the one before.
        clips: The recording is cut at pauses, and its clips are listened to side by side; no clip is told of another one.
        probe: How likely each window is silent is wanted even where nothing depends on it.
        compression: Text that compresses better than so repeats itself.
        likely: A mean log probability below is not believed.
        silent: What is not believed, where silence has at least this probability, is left out.
        seed: Of temperatures above 0.
        words: When each word was said is wanted, which takes another look at each window.
    """

    task: Task = "transcribe"
    language: str | None = None
    prompt: str = ""
    temperature: float = 0.0
    by_previous: bool = True
    clips: bool = False
    probe: bool = False
    compression: float = 2.4
    likely: float = -1.0
    silent: float = 0.6
    seed: int | None = None
    words: bool = False

    @property
    def temperatures(self) -> Sequence[float]:
        return (self.temperature, *(one for one in FALLBACKS if one > self.temperature + 1e-6))

    def check(self, vocabulary: SpeechVocabulary) -> Options:
        """Raise RequestError for what the model cannot do."""
        if self.task == "translate" and not vocabulary.multilingual:
            raise RequestError("this model knows English only: it translates nothing.", param="model")
        if not 0.0 <= self.temperature <= 1.0:
            raise RequestError(f"temperature must be in [0, 1], got {self.temperature}.", param="temperature")
        return self


def checked_language(said: str | None, vocabulary: SpeechVocabulary) -> str | None:
    """The code of a language by code or name. Raises RequestError for one that the model does not know."""
    if said is None or not said.strip():
        return None
    code = code_of(said)
    known = vocabulary.languages if vocabulary.multilingual else ("en",)
    if code is None or code not in known:
        some = ", ".join(sorted(known)[:8])
        raise RequestError(
            f"language {said!r} is none that this model knows; give an ISO 639-1 code ({some} ...).", param="language"
        )
    return code


@dataclass(eq=False)
class Segment:
    """What was said from `start` to `end`, in seconds. `seek` is where its window begins, in frames of 10 ms.

    `tokens` have its marks of time; `logprobs` one entry for each of its tokens; `words` are None where nobody asked. `avg_logprob`, `compression_ratio`, `temperature` and
    `no_speech_prob` are the window's; the last is None where nobody asked.
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    seek: int
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    words: list[Word] | None = None


@dataclass(eq=False)
class Transcript:
    """A recording as text. `language` is the code of what is spoken, `duration` in seconds; `num_windows` were listened to, and a model
    was asked `num_tries` times about them."""

    task: Task
    language: str
    duration: float
    segments: list[Segment] = field(default_factory=list)
    num_windows: int = 0
    num_tries: int = 0

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def words(self) -> list[Word]:
        """Of all segments."""
        return [word for segment in self.segments for word in segment.words or ()]

    @property
    def language_name(self) -> str:
        """In English, as OpenAI's API says it."""
        return name_of(self.language)
