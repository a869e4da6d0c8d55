"""`sapwood transcribe`: write down what is said in recordings."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sapwood.base.errors import UserError
from sapwood.cli.terminal import bring
from sapwood.config.flags import add_flags, from_options, given

if TYPE_CHECKING:
    from sapwood.speech.transcript import Segment, Transcript

HELP = "write down what is said in recordings"

_MODEL = "whisper-base"
_ENDS = {"text": "txt", "json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="recordings: WAV, FLAC, OGG, MP3, M4A, WebM"
    )
    parser.add_argument("--format", choices=tuple(_ENDS), default="text", help="what is written (default: text)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="write a file there for each recording, instead of stdout"
    )
    parser.add_argument("--language", metavar="CODE", help="what is spoken; found out without it")
    parser.add_argument("--translate", action="store_true", help="write it in English")
    parser.add_argument("--prompt", metavar="TEXT", default="", help="what was said before, or how names are written")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="of the first try, in [0, 1]")
    parser.add_argument(
        "--clips", action="store_true", help="cut recordings at pauses and listen to the clips side by side"
    )
    parser.add_argument("--word-timestamps", action="store_true", help="tell when each word was said (--format json)")
    add_flags(parser, ("model", "cache", "scheduler", "device"), positional=False)


def run(args: argparse.Namespace) -> int:
    from sapwood.hearing import audio_of
    from sapwood.llm import LLM
    from sapwood.speech.transcript import Options, checked_language
    from sapwood.speech.vocabulary import speech_vocabulary

    if len(args.files) > 1 and args.output is None and args.format != "text":
        raise UserError(f"several recordings are written as {args.format} into files: give --output DIR.")
    if args.word_timestamps and args.format != "json":
        raise UserError("--word-timestamps: words stand in --format json.")
    recordings = [audio_of(file) for file in args.files]  # before a model is loaded for what is none
    options = {"model": _MODEL} | given(args)
    bring(from_options(options))
    llm = LLM(**options)
    vocabulary = None
    if llm.text.speech is not None:
        vocabulary = speech_vocabulary(llm.text, vocab_size=llm.facts.vocab_size, silent=llm.text.speech.silent)
    asked = Options(
        task="translate" if args.translate else "transcribe",
        language=None if vocabulary is None else checked_language(args.language, vocabulary),
        prompt=args.prompt,
        temperature=args.temperature,
        clips=args.clips,
        probe=args.format == "json",
        words=args.word_timestamps,
    )
    told = _tell if args.format == "text" and args.output is None else None
    for name, recording in zip(_names(args.files), recordings, strict=True):
        (found,) = llm.transcribe(recording, asked, tell=told)
        if told is not None:
            continue
        if args.output is None:
            sys.stdout.write(_written(found, args.format))
        else:
            _keep(args.output / f"{name}.{_ENDS[args.format]}", _written(found, args.format))
    return 0


def _names(files: Sequence[Path]) -> list[str]:
    """What each file's transcript is called, no two alike: as the file without its end, with it where others differ in that only, and with a
    number where that is not enough."""
    stems, names = Counter(file.stem for file in files), Counter(file.name for file in files)
    made: list[str] = []
    for file in files:
        name = file.stem if stems[file.stem] == 1 or names[file.name] == stems[file.stem] else file.name
        number, first = 1, name
        while name in made:
            number += 1
            name = f"{first}-{number}"
        made.append(name)
    return made


def _tell(segments: list[Segment]) -> None:
    """A line for each segment, as soon as it is known."""
    for segment in segments:
        print(segment.text.strip(), flush=True)


def _written(found: Transcript, format: str) -> str:
    if format != "json":
        from sapwood.speech.formats import FILES

        return FILES[format](found)
    import msgspec

    fields: dict[str, Any] = {
        "task": found.task,
        "language": found.language_name,
        "duration": round(found.duration, 3),
        "text": found.text,
        "segments": [
            {"id": number}
            | {
                name: getattr(segment, name)
                for name in (
                    "seek",
                    "start",
                    "end",
                    "text",
                    "tokens",
                    "temperature",
                    "avg_logprob",
                    "compression_ratio",
                    "no_speech_prob",
                )
            }
            | ({} if segment.words is None else {"words": [vars(word) for word in segment.words]})
            for number, segment in enumerate(found.segments)
        ],
    }
    return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode() + "\n"


def _keep(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    print(path)
