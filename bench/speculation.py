"""What speculation brings and costs: `python bench/speculation.py [MODEL] [--device cuda] [--tokens 1000] [OPTION=VALUE ...]`.

Two engines in this process, one with --speculation auto and one without, answer the same requests in turns, one request at a
time: a right prediction of the whole answer, one in which every tenth token is another, one that is never right, a text
that repeats itself, the same request once more, and a text that does not. Tokens must be the same. Times are medians.

Random weights (a shape's name, such as llama-8b) serve as well as real ones, but for the text that repeats itself. Their next
tokens are so alike that rounding decides, which differs between steps of one query and of many; so weights of such a model
are changed in place (on a GPU): what its blocks add is made small and its head that of its embedding, moved on by a number of tokens.
Each token is then followed by the one so many ids behind it, as surely as real texts go on and at the same cost. (A
model whose head is its embedding stays as it is.)
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
import torch

from sapwood import SamplingParams
from sapwood.base.wire import Submit
from sapwood.bench.offline import Opened, open_engine, shape_options
from sapwood.bench.options import engine_options
from sapwood.cli.terminal import console, print_rows
from sapwood.engine.loop import Engine

STRIDE = 7919  # ids from a token to the next; texts do not come back to where they were
QUIET = 1e-3  # of what blocks add


class Case(NamedTuple):
    name: str
    prompt: list[int]
    params: SamplingParams
    fresh: bool = True
    """From an empty prefix cache, so that no earlier answer can be followed."""


class Timed(NamedTuple):
    rate: float
    tokens: list[int]


def main() -> int:
    args = parse()
    options = {"model": args.model, "device": args.device, "max_num_seqs": 8, **engine_options(args.option)}
    if args.device != "cpu":
        options.setdefault("kv_cache_memory", "4G")  # of each of two engines
    longest = 256 + 2 * args.tokens
    plain = open_engine(options, longest=longest)
    drafting = open_engine({**options, "speculation": args.speculation}, longest=longest)
    print(drafting.facts.decisions[-1])
    engines = plain.engine, drafting.engine
    for engine in engines:
        if shape_options(args.model) and args.device != "cpu":
            make_sure(engine)
        timed(engine, Case("warm-up", [1, 2, 3], SamplingParams(max_tokens=64, ignore_eos=True)))
        while engine.tidy():
            pass
    rows, same = [("case", "plain", "speculation", "factor", "accepted")], True
    for case in (one for one in cases(plain, args.tokens) if one.name.startswith(tuple(args.cases))):
        before = drafting.engine.stats().counters
        runs = [[timed(engine, case) for engine in engines] for _ in range(args.runs)]
        accepted = told(before, drafting.engine.stats().counters)
        one, other = (median(run[i].rate for run in runs) for i in (0, 1))
        agree = all(mine.tokens == theirs.tokens for mine, theirs in runs)
        same &= agree
        rates = f"{one:.1f} tok/s", f"{other:.1f} tok/s", f"{other / one:.2f}"
        rows.append((case.name, *rates, accepted + " !" * (not agree)))
    print_rows(console(), rows)
    if not same:
        print("! tokens differ: on a GPU by rounding, on a CPU never")
    return 0 if same or args.device != "cpu" else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a model, or the name of a shape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=400, help="of each answer (default: 400)")
    parser.add_argument("--runs", type=int, default=5, help="of each case and engine (default: 5)")
    parser.add_argument("--cases", nargs="+", default=[""], metavar="WORD", help="those that begin so (default: all)")
    parser.add_argument("--speculation", default="auto", help="what drafts (default: auto)")
    parser.add_argument("option", nargs="*", metavar="OPTION=VALUE", help="of both engines")
    return parser.parse_args()


@torch.inference_mode()
def make_sure(engine: Engine) -> None:
    """Have each token of random weights followed by a certain one. The engine computes in this process."""
    model: Any = engine.executor.worker.model  # type: ignore[attr-defined]
    if model.head is None:
        return
    for block in model.blocks:
        for linear in (block.mixer.out, block.ffn.down):
            linear.weight.mul_(QUIET)
    model.head.weight.copy_(model.embed.weight.roll(STRIDE, 0))


def cases(opened: Opened, num_tokens: int) -> list[Case]:
    chance = random.Random(0)
    vocab_size = opened.facts.vocab_size

    def some(count: int) -> list[int]:
        return [chance.randrange(100, vocab_size - 100) for _ in range(count)]

    prompt, stem = some(128), some(32)
    params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    sampled = msgspec.structs.replace(params, temperature=1.0, seed=1)
    said = timed(opened.engine, Case("", prompt, sampled)).tokens
    tenth = [token if place % 10 else chance.randrange(vocab_size) for place, token in enumerate(said, 1)]

    def predicting(tokens: Sequence[int]) -> SamplingParams:
        return msgspec.structs.replace(sampled, prediction=tuple(tokens))

    return [
        Case("right prediction", prompt, predicting(said)),
        Case("nine of ten tokens right", prompt, predicting(tenth)),
        Case("wrong prediction", prompt, predicting(some(num_tokens))),
        Case("no prediction", prompt, sampled),
        Case("the same once more", prompt, sampled, fresh=False),
        Case("a text that repeats itself", stem * 8, params),
    ]


def timed(engine: Engine, case: Case) -> Timed:
    """Tokens a second behind the first one."""
    if case.fresh:
        engine.control("flush_cache")
    assert engine.submit(Submit(0, case.prompt, case.params)) is None
    tokens: list[int] = []
    first: float | None = None
    while not engine.idle:
        for news in engine.step():
            tokens += news.tokens + [token for delta in news.deltas for token in delta.tokens]
        if tokens and first is None:
            first, at_once = perf_counter(), len(tokens)
    assert first is not None
    return Timed((len(tokens) - at_once) / (perf_counter() - first), tokens)


def told(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Drafts that were accepted, of those that were fed, by drafter."""
    names = [name.removeprefix("drafts_") for name in after if name.startswith("drafts_")]
    counts = [
        (name, *(after[key + name] - before[key + name] for key in ("accepted_drafts_", "drafts_"))) for name in names
    ]
    return ", ".join(f"{name} {right}/{fed}" for name, right, fed in counts if fed)


if __name__ == "__main__":
    raise SystemExit(main())
