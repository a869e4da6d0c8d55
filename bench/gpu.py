"""What measurements of kernels share: the time of a call, the device's own rate, tables that grow line by line."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from triton.testing import do_bench_cudagraph

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16


class Shape(NamedTuple):
    """Of a model. Weights of `num_layers` are held, which are more than the L2 cache holds."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    vocabulary: int
    num_layers: int

    @property
    def heads(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def qkv(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


SHAPES = (
    Shape("llama-8b", 32, 8, 128, 4096, 14336, 128256, 8),
    Shape("qwen3-0.6b", 16, 8, 128, 1024, 3072, 151936, 28),
)


def introduce(parser: ArgumentParser) -> tuple[Namespace, float]:
    """What was asked, and GB/s of a copy, which is told with the device's name."""
    parser.add_argument("--sweep", action="store_true", help="try other settings of the kernels")
    asked, copied = parser.parse_args(), copy_rate()
    print(f"{torch.cuda.get_device_name()}: copy {copied:.0f} GB/s")
    return asked, copied


def seconds(call: Callable[[], object]) -> float:
    """Median time of one call, from replays of a graph of many, so that launches from Python are not in it."""
    torch.cuda.synchronize()  # graphs are captured on a stream that waits for nothing
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
