"""`sapwood quantize`: a checkpoint in fewer bits, and what they cost."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sapwood.base.errors import UserError

HELP = "store a model's weights in fewer bits, and report what that costs"

_MEASURED = 2048  # tokens of text that perplexity is measured on
_PROMPTS, _ANSWER = 8, 64
_HELD_OUT = 4  # a part in so many of the text is not calibrated with, but measured on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a directory, a .gguf file, a short name or a hub id")
    parser.add_argument(
        "--scheme",
        required=True,
        metavar="NAME",
        help="fp8, fp8-block, w8a8, w4a16, gptq, awq (on a GPU), nvfp4, or gguf:TYPE (as gguf:Q8_0) of a GGUF file",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new directory")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="a text to look at activations with, like what the model will read (default: a small one)",
    )
    parser.add_argument("--samples", type=int, default=128, metavar="NUMBER", help="most pieces of that text (128)")
    parser.add_argument("--no-report", action="store_true", help="measure nothing before and after")


def run(args: argparse.Namespace) -> int:
    from sapwood.cli.terminal import console, print_rows, pull_progress
    from sapwood.config.resolve import gib
    from sapwood.hub.files import find

    text = _text(args.calibration)
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"--output {args.output} is not empty: name a new directory.")
    if args.samples < 1:
        raise UserError("--samples must be at least 1.")
    with pull_progress() as progress:
        source = find(args.model, progress=progress).path
    cut = len(text) - len(text) // _HELD_OUT
    made = _make(args.scheme, source, args.output, text[:cut], args.samples)
    out = console()
    out.print(f"{args.model} in {args.scheme}: {made}")
    rows = [["size", gib(_size(source)), gib(_size(made))]]
    if not args.no_report:
        before, after = (measure(path, text[cut:]) for path in (source, made))
        rows.append(["perplexity", f"{before.perplexity:.3f}", f"{after.perplexity:.3f}"])
        rows.append(["tokens a second", f"{before.speed:.0f}", f"{after.speed:.0f}"])
    print_rows(out, rows, header=("", "before", "after"))
    return 0


def _text(path: Path | None) -> str:
    if path is None:
        return files("sapwood.quant.making").joinpath("calibration.txt").read_text(encoding="utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--calibration {path} cannot be read as text: {error}.") from error


def _make(name: str, source: Path, output: Path, text: str, samples: int) -> Path:
    """The checkpoint that was made."""
    from sapwood.quant.making.schemes import GGUF, scheme_of

    if name.startswith(GGUF):
        return _make_gguf(name.removeprefix(GGUF), source, output)
    scheme = scheme_of(name)

    from sapwood.quant.making import compressor

    compressor.check(name, scheme)
    output.mkdir(parents=True, exist_ok=True)
    compressor.quantise(source, output, scheme, text, samples)
    return output


def _make_gguf(name: str, source: Path, output: Path) -> Path:
    from rich.progress import Progress

    from sapwood.cli.terminal import console
    from sapwood.quant.making import ggufs

    kind = ggufs.type_of(name)
    made = output / f"{source.stem}.{kind.name}.gguf"
    output.mkdir(parents=True, exist_ok=True)
    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("tensors")
        ggufs.quantise(source, made, kind, lambda done, total: bar.update(task, completed=done, total=total))
    return made


def _size(path: Path) -> int:
    """Of the weights."""
    found = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
    return sum(file.stat().st_size for file in found)


@dataclass(frozen=True)
class Measured:
    """On a text, and tokens of all answers a second."""

    perplexity: float
    speed: float


def measure(model: Path, text: str) -> Measured:
    """By an engine on this machine."""
    from sapwood.base.sampling import SamplingParams
    from sapwood.llm import LLM

    llm = LLM(str(model))
    ids = llm.text.encode(text)[: min(_MEASURED, llm.facts.max_model_len - 1)]
    scored = llm.generate([ids], [SamplingParams(max_tokens=1, prompt_logprobs=0)])[0]
    logprobs = [token.logprob for token in scored.prompt_logprobs]
    prompts = [ids[at * 16 :][:32] for at in range(_PROMPTS)]
    started = time.perf_counter()
    answers = llm.generate(prompts, [SamplingParams(max_tokens=_ANSWER, ignore_eos=True)] * len(prompts))
    tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    return Measured(math.exp(-sum(logprobs) / len(logprobs)), tokens / (time.perf_counter() - started))
