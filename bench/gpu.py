"""What measurements of kernels share: the time of a call, the device's own rate, tables that grow line by line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

import torch

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16


def seconds(call: Callable[[], object], *, repeats: int = 8) -> float:
    """Median time of one call, from replays of a graph of it, so that launches from Python are not in it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(1 + repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 1e3)
    return statistics.median(times[1:])


def copy_rate() -> float:
    """GB/s of a large copy on the device, read plus written."""
    source = torch.randn(1 << 28, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9


def show(title: str, columns: Sequence[str], lines: Iterable[tuple[object, Iterable[str]]]) -> None:
    """A table whose lines, each a name and its cells, are printed as they are measured."""
    print(f"\n{title:36}", *(f"{column:>12}" for column in columns))
    for name, cells in lines:
        print(f"{name!s:36}", *(f"{cell:>12}" for cell in cells), flush=True)
