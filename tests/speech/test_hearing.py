"""Recordings by an engine in this process, which says what it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sapwood.base.errors import GenerationFailed, RequestError, UserError
from sapwood.base.media import Media
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Task
from sapwood.base.wire import Delta
from sapwood.engine.client import Follower, Stream
from sapwood.hearing import Recordings
from sapwood.speech.transcript import Options, Segment
from sapwood.text import TextModel
from tests.facts import make_facts
from tests.speech import voices
from tests.speech.voices import VOCABULARY as V
from tests.speech.voices import ids, mark, noise, wav


class Engine:
    """Each generation ends with the step after the one in which it was asked for. `most` have run at once."""

    def __init__(self) -> None:
        facts = make_facts(max_model_len=448, vocab_size=voices.SIZE, eos_ids=[V.end])
        self.facts = msgspec.structs.replace(facts, media=("audio",), max_num_seqs=2)
        self.live: list[tuple[Stream, list[int]]] = []
        self.most = self.left = 0
        self.failure = ""

    def submit(
        self,
        tokens: list[int],
        params: SamplingParams,
        follower: Follower,
        *,
        checked: bool,
        task: Task,
        media: Sequence[Media],
    ) -> Stream:
        assert task == GENERATE
        (one,) = media
        loud = float(one.arrays["features"].numpy().max())
        said = [mark(0), *ids(f" {loud:.1f}"), mark(3), V.end]
        stream = Stream(len(self.live), follower, self.leave)
        self.live.append((stream, [V.languages["pt"]] if params.allowed_token_ids else said))
        self.most = max(self.most, len(self.live))
        return stream

    def leave(self, stream: Stream) -> None:
        self.left += 1

    def step(self) -> None:
        now, self.live = self.live, []
        for stream, tokens in now:
            logprobs = [TokenLogprobs(token, -0.1, 1, [], []) for token in tokens]
            error = self.failure or None
            stream.put(Delta(stream.id, tokens, finish="error" if error else "stop", error=error, logprobs=logprobs))

    def drain(self) -> None: ...


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return voices.make_text(tmp_path_factory.mktemp("whisper"))


def test_many_at_once(text: TextModel, tmp_path: Path) -> None:
    file, engine, told = tmp_path / "a.wav", Engine(), list[Segment]()
    file.write_bytes(wav(noise(4.0)))
    samples = noise(4.0).samples
    many: list[Any] = [file, str(file), file.read_bytes(), samples, samples.astype(np.float32) / 32768, noise(4.0)]
    found = Recordings(engine, text).transcribe(many, Options(), told.extend)  # type: ignore[arg-type]
    assert [one.text for one in found] == [found[0].text] * 6 and found[0].text
    assert {one.language for one in found} == {"pt"} and len(told) == 6
    assert engine.most == 2 and engine.left == 12
    engine.failure = "lost"
    with pytest.raises(GenerationFailed, match="lost"):
        Recordings(engine, text).transcribe(many, Options(language="en"))  # type: ignore[arg-type]
    assert engine.left == 14


def test_what_is_refused(text: TextModel, tmp_path: Path) -> None:
    recordings = Recordings(Engine(), text)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be read"):
        recordings.transcribe([tmp_path / "none.wav"], Options())
    for samples in (np.zeros((2, 5), np.int16), np.zeros(5)):
        with pytest.raises(RequestError, match="at 16 kHz"):
            recordings.transcribe([samples], Options())
    engine = Engine()
    engine.facts = msgspec.structs.replace(engine.facts, media=())
    with pytest.raises(RequestError, match="transcribes nothing"):
        Recordings(engine, text)  # type: ignore[arg-type]
