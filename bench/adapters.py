"""What adapters cost: W1 with 32 of them against none, and 200 over 32 slots, in one run.

    python bench/adapters.py llama-8b --device cuda
    python bench/adapters.py qwen3-0.6b --device cuda --plain
    python bench/adapters.py qwen3-0.6b --requests 4 --scale 0.02 --adapters 6 --slots 3 max_num_seqs=4      two cores

Adapters are random numbers of one rank on every Linear that adapters may change (all seven of a Llama), as PEFT writes them; all are read into the
host's memory first, so that a miss is a copy to a slot. Requests have them by turns, or by Zipf's law: the k-th with a share of 1/k.

    plain              W1, all at once, of an engine without adapters (--plain: in a process of its own, before the others)
    none               W1, all at once, where there may be adapters, but nobody has one
    32                 W1, all at once, over as many adapters as there are slots, by turns
    200, zipf          W1, all at once, over more than there are slots
    32, zipf, short    shorter requests, all at once: what follows come at --load of the rate at which these are done
    32, zipf, arriving   the same, one by one as a Poisson process; no adapter is ever missing
    200, zipf, arriving  the same requests at the same times, over more adapters than there are slots

`share` is the rate of tokens against that of `none`, or for requests that arrive the TTFT's 99th percentile against that without misses. TTFT counts from
when a request came. `loads` are copies to slots.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from sapwood.arch.adapters import adaptable
from sapwood.arch.parts import Decoder, Linear
from sapwood.base.adapter import Adapter
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.bench.offline import Opened, open_engine, shape_options, warm_up
from sapwood.bench.options import engine_options
from sapwood.bench.traffic import Turn, arrivals
from sapwood.bench.workloads import NAMED, Workload, WorkloadSpec
from sapwood.catalogue import joined
from sapwood.cli.terminal import console, print_rows
from sapwood.config.flags import from_options
from sapwood.engine.declared import declared
from sapwood.engine.loop import Engine
from sapwood.hub.adapters import CONFIG, WEIGHTS, adapter_id
from sapwood.hub.files import find_configured

(UNIFORM,) = NAMED["uniform"]
HEADER = ("case", "adapters", "out tok/s", "share", "ttft p50 ms", "ttft p99 ms", "seconds", "loads")


class Case(NamedTuple):
    """`which` adapter each request has, -1 for none; `rate` at which they come, requests a second, all at once without one."""

    name: str
    workload: Workload
    which: Sequence[int]
    rate: float = float("inf")


class Found(NamedTuple):
    """Of a case: seconds from the first request to the last one's end, tokens, seconds of each to its first token, copies to slots."""

    seconds: float
    num_output: int
    first_tokens: Sequence[float]
    loads: int

    @property
    def tokens(self) -> float:
        """A second."""
        return self.num_output / self.seconds

    def ttft(self, share: float) -> float:
        """Milliseconds within which that share of the requests has its first token."""
        return 1e3 * float(np.quantile(self.first_tokens, share))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.only_plain:
        print(json.dumps(plain(args)))
        return 0
    rows: list[tuple[str, ...]] = []
    if args.plain:
        command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--only-plain"]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        rows.append(tuple(json.loads(told.splitlines()[-1])))
    with tempfile.TemporaryDirectory() as folder:
        adapters = written(Path(folder), decoder_of(args.model), args)
        room = {"max_loras": args.slots, "max_lora_rank": args.rank, "max_cpu_loras": args.adapters}
        opened = opened_with(args, {"enable_lora": True, **room})
        read(opened.engine, adapters)
        rows += run(args, opened, adapters)
        opened.engine.shutdown()
    print_rows(console(), rows, header=HEADER)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen3-0.6b", help="a model, or the name of a shape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=UNIFORM.count, help="of each case (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of W1's lengths (default: 1)")
    parser.add_argument("--adapters", type=int, default=200, help="in all (default: 200)")
    parser.add_argument("--slots", type=int, default=32, help="of the device (default: 32)")
    parser.add_argument("--rank", type=int, default=16, help="of all adapters (default: 16)")
    parser.add_argument(
        "--load", type=float, default=0.6, help="share of the possible rate at which requests arrive (default: 0.6)"
    )
    parser.add_argument("--plain", action="store_true", help="measure an engine without adapters too")
    parser.add_argument("--only-plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("option", nargs="*", metavar="OPTION=VALUE", help="of the engine")
    args = parser.parse_intermixed_args(argv)
    if not 0 < args.slots <= args.adapters:
        parser.error(f"--slots must be from 1 to --adapters ({args.adapters}), got {args.slots}")
    return args


# -- adapters ----------------------------------------------------------------------------------------------------------


def decoder_of(model: str) -> Decoder:
    config, catalogue = from_options({"model": model, **shape_options(model)}), joined()
    found = declared(config, find_configured(config.model, families=catalogue.families), catalogue)
    if not isinstance(found, Decoder):
        raise SystemExit(f"adapters: {model} is computed by another library's modules, which take no adapters")
    return found


def written(folder: Path, decoder: Decoder, args: argparse.Namespace) -> list[Adapter]:
    """So many that are different ones by their configurations, while their tensors are one file: each is read and held for itself."""
    random, tensors = torch.Generator().manual_seed(0), {}
    for module, out, inp in modules(decoder):
        for kind, shape in (("A", (args.rank, inp)), ("B", (out, args.rank))):
            name = f"base_model.model.{module}.lora_{kind}.weight"
            tensors[name] = (0.01 * torch.randn(shape, generator=random)).bfloat16()
    save_file(tensors, folder / WEIGHTS)
    for number in range(args.adapters):
        path = folder / str(number)
        path.mkdir()
        (path / WEIGHTS).hardlink_to(folder / WEIGHTS)
        (path / CONFIG).write_text(
            json.dumps({"peft_type": "LORA", "r": args.rank, "lora_alpha": args.rank, "revision": number})
        )
    paths = [folder / str(number) for number in range(args.adapters)]
    with ThreadPoolExecutor() as pool:  # hashing is most of it
        made = [Adapter(id, str(path)) for id, path in zip(pool.map(adapter_id, paths), paths, strict=True)]
    size = (folder / WEIGHTS).stat().st_size
    print(
        f"{len(made)} adapters of rank {args.rank}, {size / 1e6:.1f} MB each, {len(tensors) // 2} modules", flush=True
    )
    return made


def modules(decoder: Decoder) -> Iterator[tuple[str, int, int]]:
    """Each module that an adapter may change, with its outputs and inputs."""
    for place in adaptable(decoder):
        assert isinstance(place.leaf, Linear)
        sizes: dict[str, int] = {}
        for one in place.leaf.parts:
            sizes[one.name] = sizes.get(one.name, 0) + one.size
        yield from ((place.prefix + name, size, place.leaf.inp) for name, size in sizes.items())


def read(engine: Engine, adapters: Sequence[Adapter]) -> None:
    """Have all of them in the host's memory."""
    began = perf_counter()
    for adapter in adapters:
        about = {"id": adapter.id, "path": adapter.path}
        while not (told := engine.control("adapter", about))["loaded"]:
            if "error" in told:
                raise SystemExit(f"adapters: {told['error']}")
            sleep(0.001)
    print(f"read in {perf_counter() - began:.1f} s", flush=True)


# -- cases -------------------------------------------------------------------------------------------------------------


def opened_with(args: argparse.Namespace, more: Mapping[str, Any]) -> Opened:
    options = {"model": args.model, "device": args.device, **more, **engine_options(args.option)}
    opened = open_engine(options, longest=workload(args, UNIFORM).longest)
    warm_up(opened.engine, opened.facts, workload(args, UNIFORM, count=min(args.requests, 8)))
    return opened


def workload(args: argparse.Namespace, spec: WorkloadSpec, *, count: int = 0, shorter: float = 1.0) -> Workload:
    sessions = spec.traffic.sessions(count or args.requests, seed=0)
    cut = [[scaled(turn, args.scale, args.scale * shorter) for turn in session] for session in sessions]
    return Workload(spec.name, cut, spec.temperature)


def scaled(turn: Turn, prompt: float, output: float) -> Turn:
    """With these shares of its lengths."""
    return Turn(turn.tokens[: max(1, round(prompt * len(turn.tokens)))], max(1, round(output * turn.output_len)))


def plain(args: argparse.Namespace) -> tuple[str, ...]:
    """Of an engine without adapters."""
    opened = opened_with(args, {})
    case = uniform(args, opened, "plain", [-1])
    return worded(case, measure(opened, case, []))


def uniform(args: argparse.Namespace, opened: Opened, name: str, which: Sequence[int]) -> Case:
    """W1, with these adapters by turns."""
    made = workload(args, UNIFORM).within(opened.facts.vocab_size)
    return Case(name, made, [which[number % len(which)] for number in range(args.requests)])


def zipf(count: int, num_adapters: int) -> list[int]:
    """Which of so many each of `count` requests has, the k-th with a share of 1/k; shuffled, so that the first is none in particular."""
    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, num_adapters + 1)
    drawn: list[int] = random.permutation(num_adapters)[
        random.choice(num_adapters, count, p=weights / weights.sum())
    ].tolist()
    return drawn


def run(args: argparse.Namespace, opened: Opened, adapters: Sequence[Adapter]) -> Iterator[tuple[str, ...]]:
    few, all_of_them = f"{args.slots}", f"{len(adapters)}, zipf"
    drawn = zipf(args.requests, len(adapters))
    fitting = [number % args.slots for number in drawn]
    measure(opened, short(args, opened, "warm-up", fitting[: args.slots]), adapters)
    none = uniform(args, opened, "none", [-1])
    base = measure(opened, none, adapters)
    yield worded(none, base, 1.0)
    for case in (uniform(args, opened, few, range(args.slots)), uniform(args, opened, all_of_them, [*drawn])):
        found = measure(opened, case, adapters)
        yield worded(case, found, found.tokens / base.tokens)
    at_once = short(args, opened, f"{few}, zipf, short", fitting)
    possible = measure(opened, at_once, adapters)
    yield worded(at_once, possible)
    rate = args.load * args.requests / possible.seconds
    hits: Found | None = None
    for name, which in ((f"{few}, zipf, arriving", fitting), (f"{all_of_them}, arriving", drawn)):
        case = short(args, opened, name, which, rate=rate)
        found = measure(opened, case, adapters)
        hits = hits or found
        yield worded(case, found, found.ttft(0.99) / hits.ttft(0.99))


def short(
    args: argparse.Namespace, opened: Opened, name: str, which: Sequence[int], *, rate: float = float("inf")
) -> Case:
    """Requests with an eighth of W1's outputs."""
    made = workload(args, UNIFORM, count=len(which), shorter=1 / 8).within(opened.facts.vocab_size)
    return Case(name, made, which, rate)


def measure(opened: Opened, case: Case, adapters: Sequence[Adapter]) -> Found:
    """Serve it, from an empty prefix cache."""
    engine, turns = opened.engine, [session[0] for session in case.workload.sessions]
    engine.control("flush_cache")
    gc.collect()
    came, loads = arrivals(len(turns), case.rate), copies(engine)
    first: dict[int, float] = {}
    sent, num_output, began = 0, 0, perf_counter()
    while sent < len(turns) or not engine.idle:
        while sent < len(turns) and perf_counter() - began >= came[sent]:
            submit(engine, case, sent, turns[sent], adapters)
            sent += 1
        news = engine.step()
        now = perf_counter() - began
        for deltas in news:
            num_output += len(deltas.ids)
            for delta in deltas.deltas:
                if delta.finish == "error":
                    raise SystemExit(f"adapters: {case.name}: {delta.error}")
                num_output += len(delta.tokens)
                if delta.cached_tokens >= 0:
                    first[delta.id] = now - came[delta.id]
    return Found(perf_counter() - began, num_output, [*first.values()], copies(engine) - loads)


def submit(engine: Engine, case: Case, number: int, turn: Turn, adapters: Sequence[Adapter]) -> None:
    which, temperature = case.which[number], case.workload.temperature
    params = SamplingParams(max_tokens=turn.output_len, temperature=temperature, ignore_eos=True, seed=number)
    refused = engine.submit(Submit(number, turn.tokens, params, adapter=None if which < 0 else adapters[which]))
    if refused is not None:
        raise SystemExit(f"adapters: {case.name}: {refused.error}")


def copies(engine: Engine) -> int:
    """To slots, since the start."""
    return engine.stats().counters.get("adapter_loads", 0)


def worded(case: Case, found: Found, share: float | None = None) -> tuple[str, ...]:
    held = len({number for number in case.which if number >= 0})
    told = "-" if share is None else f"{share:.2f}"
    ttft = [f"{found.ttft(share):.0f}" for share in (0.5, 0.99)]
    line = (case.name, str(held), f"{found.tokens:.0f}", told, *ttft, f"{found.seconds:.1f}", str(found.loads))
    print(*line, sep=" | ", file=sys.stderr, flush=True)
    return line


if __name__ == "__main__":
    raise SystemExit(main())
