"""`sapwood transcribe`, with a model that says what it is told to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sapwood.cli import main
from sapwood.speech.transcript import Options, Segment, Transcript
from sapwood.text import TextModel
from tests.facts import make_facts
from tests.speech import voices
from tests.speech.voices import noise, wav


class Llm:
    """Stands for the model."""

    asked: Options

    def __init__(self, **options: Any) -> None:
        Llm.options = options  # type: ignore[attr-defined]
        self.text: TextModel = voices.make_text(Path(options["model"]))
        self.facts = make_facts(max_model_len=448, vocab_size=voices.SIZE)

    def transcribe(self, recording: Any, options: Options, *, tell: Any = None) -> list[Transcript]:
        Llm.asked = options
        segments = [
            Segment(0.0, 2.5, " One.", [1], 0, 0.0, -0.5, 0.8),
            Segment(3661.2, 3662.0, " Two --> 2.", [2], 0, 0.0, -0.5, 0.8),
        ]
        if tell is not None:
            tell(segments)
        return [Transcript("transcribe", "pt", recording.seconds, segments)]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A model's directory and a recording."""
    monkeypatch.setattr("sapwood.llm.LLM", Llm)
    (tmp_path / "model").mkdir()
    (tmp_path / "talk.wav").write_bytes(wav(noise(2.0)))
    return str(tmp_path / "model"), str(tmp_path / "talk.wav")


def test_formats(files: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, file = files
    assert main(["transcribe", file, "--model", model, "--language", "Portuguese", "--translate", "--clips"]) == 0
    assert capsys.readouterr().out == "One.\nTwo --> 2.\n"
    assert (Llm.asked.language, Llm.asked.task, Llm.asked.clips, Llm.asked.probe) == ("pt", "translate", True, False)
    assert main(["transcribe", file, "--model", model, "--format", "srt"]) == 0
    assert capsys.readouterr().out == (
        "1\n00:00:00,000 --> 00:00:02,500\nOne.\n\n2\n01:01:01,200 --> 01:01:02,000\nTwo -> 2.\n"
    )
    assert main(["transcribe", file, "--model", model, "--format", "tsv"]) == 0
    assert capsys.readouterr().out == "start\tend\ttext\n0\t2500\tOne.\n3661200\t3662000\tTwo --> 2.\n"
    assert main(["transcribe", file, file, "--model", model, "--format", "vtt", "--output", str(tmp_path / "out")]) == 0
    assert "01:01:01.200 --> 01:01:02.000" in (tmp_path / "out" / "talk.vtt").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"talk.vtt", "talk-2.vtt"}  # of one file given twice
    capsys.readouterr()
    assert main(["transcribe", file, "--model", model, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["language"] == "portuguese" and told["segments"][1]["start"] == 3661.2 and told["duration"] == 2
    assert Llm.asked.probe


def test_no_transcript_takes_the_place_of_another_one(files: tuple[str, str], tmp_path: Path) -> None:
    model, file = files
    there = [Path(file), tmp_path / "talk.mp3", tmp_path / "more" / "talk.wav", tmp_path / "other.wav"]
    for one in there:
        one.parent.mkdir(exist_ok=True)
        one.write_bytes(wav(noise(1.0)))
    assert main(["transcribe", *map(str, there), "--model", model, "--output", str(tmp_path / "out")]) == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"talk.wav.txt", "talk.mp3.txt", "talk.wav-2.txt", "other.txt"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["missing.wav"], "missing.wav cannot be read"),
        (["{file}", "{file}", "--format", "srt"], "give --output"),
        (["{file}", "--language", "klingon"], "language 'klingon'"),
        (["{model}/tokenizer.txt"], "cannot be read"),
        (["{here}"], "no audio that is known"),
    ],
)
def test_what_is_misused(
    files: tuple[str, str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = files
    words = [word.format(file=file, model=model, here=__file__) for word in more]
    assert main(["transcribe", *words, "--model", model]) == 2
    assert message in capsys.readouterr().err
