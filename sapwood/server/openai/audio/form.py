"""What a form asks for: a recording, and how it is to be transcribed."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sapwood.base.errors import RequestError
from sapwood.server.errors import unsupported
from sapwood.server.multipart import Part
from sapwood.speech.transcript import Options, Task, checked_language
from sapwood.speech.vocabulary import SpeechVocabulary

Format = Literal["json", "text", "verbose_json", "srt", "vtt"]
FORMATS: tuple[Format, ...] = get_args(Format)

_MOST_CHARS = 32_768  # of a field that is no file
_REFUSED = {
    "known_speaker_names": "speakers are not told apart",
    "known_speaker_references": "speakers are not told apart",
    "max_completion_tokens": "a window has at most half the model's context",
    "use_beam_search": "the likeliest token is taken, and others are tried where that is not believed",
    "beam_size": "the likeliest token is taken, and others are tried where that is not believed",
}


@dataclass(frozen=True, eq=False)
class Form:
    """`logprobs`: those of tokens are wanted. `granularities` are whose times are."""

    file: bytes
    model: str | None
    format: Format
    stream: bool
    logprobs: bool
    granularities: Collection[str]
    options: Options


def form_of(parts: Sequence[Part], task: Task, vocabulary: SpeechVocabulary) -> Form:
    """Raises RequestError, naming the field, for what is missing, wrong or not supported."""
    files = [part.content for part in parts if part.filename is not None and part.name == "file"]
    if len(files) != 1:
        raise RequestError("file is missing, or given more than once; it is a file of the form.", param="file")
    fields = _fields(parts)
    for name, instead in _REFUSED.items():
        if name in fields:
            raise unsupported(name, instead)
    _choice(fields, "timestamp_granularities", ("segment", "word"))
    granularities = frozenset(one.lower() for one in fields.get("timestamp_granularities", ("segment",)))
    format = _format(fields)
    if "word" in granularities and format != "verbose_json":
        raise RequestError(
            "timestamp_granularities: words stand in response_format verbose_json only.",
            param="timestamp_granularities",
        )
    stream = _choice(fields, "stream", ("true", "false", "1", "0")) in ("true", "1")
    if stream and format not in ("json", "text"):
        raise RequestError(
            f"stream has events of text, which response_format {format} is not.", param="response_format"
        )
    logprobs = _choice(fields, "include", ("logprobs",)) is not None
    if logprobs and format != "json":
        raise RequestError("include: logprobs stand in response_format json only.", param="include")
    options = Options(
        task=task,
        language=checked_language(_one(fields, "language"), vocabulary),
        prompt=_one(fields, "prompt") or "",
        temperature=_number(fields, "temperature"),
        clips=_clips(fields),
        probe=format == "verbose_json",
        seed=_seed(fields),
        words="word" in granularities,
    )
    return Form(files[0], _one(fields, "model"), format, stream, logprobs, granularities, options.check(vocabulary))


def _fields(parts: Sequence[Part]) -> dict[str, list[str]]:
    """Values by name; that a field may be a list, which its name says by brackets, is seen to where it is read."""
    found: dict[str, list[str]] = {}
    for part in parts:
        if part.filename is None:
            name = part.name.removesuffix("[]")
            if len(part.content) > _MOST_CHARS:
                raise RequestError(f"{name} is longer than {_MOST_CHARS} bytes.", param=name)
            try:
                found.setdefault(name, []).append(part.content.decode())
            except UnicodeDecodeError:
                raise RequestError(f"{name} is not UTF-8.", param=name) from None
    return {name: kept for name, values in found.items() if (kept := [value for value in values if value])}


def _one(fields: dict[str, list[str]], name: str) -> str | None:
    values = fields.get(name, [])
    if len(values) > 1:
        raise RequestError(f"{name} is given more than once.", param=name)
    return values[0] if values else None


def _choice(fields: dict[str, list[str]], name: str, allowed: Sequence[str]) -> str | None:
    for value in fields.get(name, ()):
        if value.lower() not in allowed:
            raise RequestError(f"{name} must be {' or '.join(allowed)}, got {value[:80]!r}.", param=name)
    return fields[name][0].lower() if name in fields else None


def _format(fields: dict[str, list[str]]) -> Format:
    asked = _one(fields, "response_format") or "json"
    if asked == "diarized_json":
        raise unsupported("response_format", "diarized_json: speakers are not told apart")
    for format in FORMATS:
        if format == asked:
            return format
    raise RequestError(f"response_format must be {', '.join(FORMATS)}, got {asked[:80]!r}.", param="response_format")


def _number(fields: dict[str, list[str]], name: str) -> float:
    given = _one(fields, name)
    if given is None:
        return 0.0
    try:
        return float(given)
    except ValueError:
        raise RequestError(f"{name} must be a number, got {given[:80]!r}.", param=name) from None


def _seed(fields: dict[str, list[str]]) -> int | None:
    given = _one(fields, "seed")
    if given is None:
        return None
    if not given.removeprefix("-").isdecimal() or len(given) > 19:
        raise RequestError(f"seed must be a whole number of 18 digits or fewer, got {given[:80]!r}.", param="seed")
    return int(given)


def _clips(fields: dict[str, list[str]]) -> bool:
    """Whether the recording is cut at pauses: OpenAI's `chunking_strategy`, of which the cut by energy is the one there is."""
    given = _one(fields, "chunking_strategy")
    if given is None or given == "auto":
        return given is not None
    try:
        asked = json.loads(given)
    except (ValueError, RecursionError):
        asked = None
    if asked == {"type": "server_vad"}:
        return True
    if isinstance(asked, dict) and asked.get("type") == "server_vad":
        raise unsupported("chunking_strategy", 'its own numbers are not used: give "auto"')
    raise RequestError(f'chunking_strategy must be "auto", got {given[:80]!r}.', param="chunking_strategy")
