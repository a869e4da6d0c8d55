"""What measurements of kernels share: the time of a call, the device's own rate, tables that grow line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from triton.testing import do_bench_cudagraph

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16


def seconds(call: Callable[[], object]) -> float:
    """Median time of one call, from replays of a graph of many, so that launches from Python are not in it."""
    milliseconds: float = do_bench_cudagraph(call, return_mode="median")
    return milliseconds / 1e3


def copy_rate() -> float:
    """GB/s of a large copy on the device, read plus written."""
    source = torch.randn(1 << 28, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9


def rate(nbytes: float, time: float, copied: float) -> list[str]:
    """Cells of a call that is bound by memory: us, GB/s, and the share of the copy's that is."""
    return [f"{time * 1e6:.1f}", f"{nbytes / time / 1e9:.0f}", f"{nbytes / time / 1e9 / copied:.0%}"]


def show(title: str, columns: Sequence[str], lines: Iterable[tuple[object, Iterable[str]]]) -> None:
    """A table whose lines, each a name and its cells, are printed as they are measured."""
    print(f"\n{title:36}", *(f"{column:>12}" for column in columns))
    for name, cells in lines:
        print(f"{name!s:36}", *(f"{cell:>12}" for cell in cells), flush=True)
