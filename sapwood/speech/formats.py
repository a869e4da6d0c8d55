"""Transcripts as files: plain text, and subtitles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sapwood.speech.transcript import Segment, Transcript


def text(transcript: Transcript) -> str:
    """What is said, and a line break."""
    return f"{transcript.text}\n"


def srt(transcript: Transcript) -> str:
    """SubRip: numbered, with commas before milliseconds."""
    blocks = [
        f"{number}\n{_time(segment.start, ',', hours=True)} --> {_time(segment.end, ',', hours=True)}\n{_line(segment)}\n"
        for number, segment in enumerate(transcript.segments, 1)
    ]
    return "\n".join(blocks)


def vtt(transcript: Transcript) -> str:
    """WebVTT."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(segment.start, '.')} --> {_time(segment.end, '.')}\n{_line(segment)}\n\n"
        for segment in transcript.segments
    )


def tsv(transcript: Transcript) -> str:
    """Begin and end in milliseconds, and the text, between tabs."""
    rows = [
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{segment.text.strip().replace(chr(9), ' ')}"
        for segment in transcript.segments
    ]
    return "\n".join(["start\tend\ttext", *rows]) + "\n"


FILES: dict[str, Callable[[Transcript], str]] = {"text": text, "srt": srt, "vtt": vtt, "tsv": tsv}
"""How a transcript is written, by the names of formats."""


def joined(segments: Sequence[Segment]) -> str:
    """What is said in some segments, as it stands in the whole text."""
    return "".join(segment.text for segment in segments)


def _line(segment: Segment) -> str:
    return segment.text.strip().replace("-->", "->")


def _time(seconds: float, point: str, *, hours: bool = False) -> str:
    """[HH:]MM:SS.mmm; hours where there are some, or in any case."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    hour, minute = divmod(minutes, 60)
    begin = f"{hour:02d}:" if hours or hour else ""
    return f"{begin}{minute:02d}:{second:02d}{point}{thousandths:03d}"
