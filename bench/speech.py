"""Seconds of speech that are transcribed each second on a CPU, beside faster-whisper, and how many words are wrong.

    python bench/speech.py MODEL                              speech that espeak-ng makes of known sentences, a minute of it
    python bench/speech.py MODEL --with faster-whisper --types float32,int8 --minutes 2 --batch 8 --rounds 3
    python bench/speech.py MODEL --file talk.wav --text talk.txt

MODEL is a directory in CTranslate2's layout (`sapwood pull whisper-tiny.en` prints one), which both read. Everybody has the same samples,
threads and settings (greedy, no pauses cut, a window told of the one before), and all of them in turns; medians, with --processor of the
seconds that a processor has worked, on a machine that others use too. With --batch the recording is transcribed so many times at once: by
Sapwood in one engine, by faster-whisper one after the other, since it does one at a time. faster-whisper wants `vocabulary.json` in MODEL too,
a list of the tokens by id.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from sapwood.speech.audio import AudioLimits, decoded
from sapwood.speech.transcript import Options

Samples = NDArray[np.int16]
Listen = Callable[[Sequence[Samples]], list[str]]

SENTENCES = (
    "In the beginning the river was only a small stream between the stones.",
    "Children crossed it on their way to school, and nobody thought about it very much.",
    "After the first heavy rain the water rose by half a metre.",
    "The farmers moved their sheep to the hill, and the baker closed his shop early.",
    "On the third day the mayor called a meeting in the church.",
    "She spoke for a long time about bridges, pumps and money.",
    "An old woman asked who would pay for the new road.",
    "Nobody had an answer, so they drank tea and waited for the weather to change.",
    "When the sun came back the valley looked different.",
    "There were branches in the gardens, and a blue boat was hanging in an apple tree.",
    "Engineers arrived from the city with maps and measuring poles.",
    "They walked along the bank, wrote down numbers, and took many photographs.",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a directory in CTranslate2's layout")
    parser.add_argument("--file", type=Path, help="a recording; made by espeak-ng without it")
    parser.add_argument("--text", type=Path, help="what is said in it")
    parser.add_argument("--minutes", type=float, default=1.0, help="of speech that is made")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--processor", action="store_true", help="count processor time instead of the clock's; wants --threads 1"
    )
    parser.add_argument("--with", dest="others", default="", help="faster-whisper")
    parser.add_argument("--types", default="float32", help="faster-whisper's, by commas")
    args = parser.parse_args(argv)
    if args.processor and args.threads != 1:
        parser.error("--processor: threads that wait for each other count too; add --threads 1")
    clock = process_time if args.processor else perf_counter
    data, wanted = recorded(args.file, args.text, args.minutes)
    audio = decoded(data, AudioLimits(seconds=24 * 3600.0))
    listeners = {"sapwood": sapwood(args.model, args.threads)}
    if args.others:
        listeners |= {
            f"{args.others} {one}": faster_whisper(args.model, args.threads, one) for one in args.types.split(",")
        }
    batch = [np.array(audio.samples[200 * copy :]) for copy in range(args.batch)]  # no two are one input
    said = {name: listen(batch)[0] for name, listen in listeners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in listeners}
    for _ in range(args.rounds):
        for name, listen in listeners.items():
            began = clock()
            listen(batch)
            seconds[name].append(clock() - began)
    for name, took in seconds.items():
        median = statistics.median(took)
        wrong = f"{100 * word_errors(said[name], wanted):.1f} % of words wrong, " if wanted else ""
        same = "the same text" if said[name] == said["sapwood"] else "another text"
        print(
            f"{name:24} {args.batch * audio.seconds / median:7.1f} s of speech a second  {wrong}{same} ({median:.2f} s)"
        )
    return 0


def recorded(file: Path | None, text: Path | None, minutes: float) -> tuple[bytes, str]:
    """A recording and what is said in it, "" where nobody knows."""
    if file is not None:
        return file.read_bytes(), text.read_text() if text is not None else ""
    if (voice := shutil.which("espeak-ng")) is None:
        raise SystemExit("espeak-ng makes the speech: install it, or give --file")
    count = max(round(minutes * 60 / 4.2), 1)  # a sentence takes so many seconds
    wanted = " ".join(SENTENCES[at % len(SENTENCES)] for at in range(count))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run([voice, "-v", "en-us", "-s", "150", "-w", str(path), wanted], check=True)
        return path.read_bytes(), wanted


def sapwood(model: Path, threads: int) -> Listen:
    from sapwood import LLM

    llm = LLM(str(model), threads=threads)
    options = Options(language="en")
    return lambda batch: [one.text for one in llm.transcribe(list(batch), options)]


def faster_whisper(model: Path, threads: int, kind: str) -> Listen:
    from faster_whisper import WhisperModel

    there = WhisperModel(str(model), device="cpu", compute_type=kind, cpu_threads=threads)

    def listen(batch: Sequence[Samples]) -> list[str]:
        found = []
        for samples in batch:
            segments, _ = there.transcribe(samples.astype(np.float32) / 32768, beam_size=1, best_of=1, language="en")
            found.append("".join(segment.text for segment in segments).strip())
        return found

    return listen


def word_errors(said: str, wanted: str) -> float:
    """Words that are wrong, missing or too many, for each word that is wanted."""
    one, other = (
        "".join(sign for sign in text.lower() if sign.isalnum() or sign.isspace()).split() for text in (said, wanted)
    )
    costs = list(range(len(other) + 1))
    for row, word in enumerate(one, 1):
        before, costs[0] = costs[0], row
        for column, right in enumerate(other, 1):
            before, costs[column] = (
                costs[column],
                min(costs[column] + 1, costs[column - 1] + 1, before + (word != right)),
            )
    return costs[-1] / max(len(other), 1)


if __name__ == "__main__":
    raise SystemExit(main())
