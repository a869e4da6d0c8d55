"""How close paged attention comes to the device: `python bench/attention.py` on a CUDA device, well under a minute.

Decode is bound by memory: bytes of the keys and values it must read, per second, beside a measured device-to-device
copy (read plus written). Prefill is bound by arithmetic: operations of the causal half, per second, beside a measured
matrix product. Times are medians over graph replays, so that launches from Python are not in them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sapwood.attention.base import Batch, Limits
from sapwood.attention.triton import Triton
from sapwood.base.kv import KVGroup
from sapwood.kernels import Turn

DEVICE, DTYPE, PAGE = torch.device("cuda"), torch.bfloat16, 16
CELLS, NUM_LAYERS = 1 << 21, 2
"""The pool. A call goes through all layers; steps of which the L2 cache holds both are faster than in a real model."""


@dataclass(frozen=True)
class Shape:
    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


SHAPES = (Shape("llama-8b", 32, 8, 128), Shape("qwen3-0.6b", 16, 8, 128))


def seconds(call: Callable[[], object], *, repeats: int = 7) -> float:
    """Median time of one call, from replays of a graph of it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 1e3)
    return statistics.median(times)


def batch(num_rows: int, start: int, count: int) -> Batch:
    """Rows of equal size on pages in random order."""
    pages_per_row = -(-(start + count) // PAGE)
    table_SP = (torch.randperm(num_rows * pages_per_row, device=DEVICE) + 1).int().view(num_rows, pages_per_row)
    positions_RN = torch.arange(start, start + count, device=DEVICE).expand(num_rows, -1)
    cells_RN = table_SP.gather(1, positions_RN // PAGE).long() * PAGE + positions_RN % PAGE
    slots, starts, counts = np.arange(num_rows), np.full(num_rows, start), np.full(num_rows, count)
    offsets = np.arange(num_rows + 1) * count
    host = [column.astype(np.int32) for column in (slots, starts, counts, offsets)]
    slots_R, starts_R, counts_R, offsets_R1 = (torch.from_numpy(column).to(DEVICE) for column in host)
    return Batch(
        ids_T=torch.zeros(num_rows * count, dtype=torch.long, device=DEVICE),
        positions_T=positions_RN.flatten(),
        slots_R=slots_R,
        starts_R=starts_R,
        counts_R=counts_R,
        offsets_R1=offsets_R1,
        tables_GSP=(table_SP,),
        cells_GT=(cells_RN.flatten(),),
        limits=Limits(decodes=num_rows, spans=0) if count == 1 else Limits(decodes=0, spans=num_rows),
    )


def measure(backend: Triton, shape: Shape, step: Batch) -> float:
    """Seconds of one layer: the write of the step's keys and values, and attention."""
    num_tokens = len(step.ids_T)
    num_heads, half = shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim // 2
    heads_TXD = torch.randn(num_tokens, num_heads, shape.head_dim, device=DEVICE, dtype=DTYPE)
    turn = Turn(torch.ones(num_tokens, half, device=DEVICE), torch.zeros(num_tokens, half, device=DEVICE))
    backend.plan(step)

    def layers() -> None:
        for layer in range(NUM_LAYERS):
            backend.run(layer, heads_TXD, turn, shape.head_dim**-0.5)

    return seconds(layers) / NUM_LAYERS


def ceilings() -> tuple[float, float]:
    """GB/s of a large copy and TFLOP/s of a large matrix product."""
    source = torch.randn(1 << 28, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source)
    square = source[: 1 << 26].view(1 << 13, 1 << 13)
    copy_seconds = seconds(lambda: target.copy_(source))
    product_seconds = seconds(lambda: torch.mm(square, square))
    return 2 * source.nbytes / copy_seconds / 1e9, 2 * (1 << 39) / product_seconds / 1e12


def main() -> None:
    copied, product = ceilings()
    print(f"{torch.cuda.get_device_name()}: copy {copied:.0f} GB/s, matrix product {product:.0f} TFLOP/s")
    for shape in SHAPES:
        group = KVGroup(NUM_LAYERS, shape.num_heads, shape.num_kv_heads, shape.head_dim, None, PAGE)
        backend = Triton(group, 0, DEVICE, DTYPE)
        backend.allocate(CELLS // PAGE + 1)
        backend._keys.normal_()  # zeros would flatter
        backend._values.normal_()
        print(f"\n{shape.name}: decode      rows  length        us      GB/s  of copy")
        for num_rows in (1, 32, 256):
            for length in (512, 2048, 8192):
                time = measure(backend, shape, batch(num_rows, length - 1, 1))
                rate = 2 * num_rows * length * shape.num_kv_heads * shape.head_dim * DTYPE.itemsize / time / 1e9
                print(f"{'':20} {num_rows:6} {length:7} {time * 1e6:9.1f} {rate:9.0f} {rate / copied:8.0%}")
        print(f"{shape.name}: prefill     rows  tokens  history        us   TFLOP/s  of product")
        for num_rows, count, start in ((1, 512, 0), (1, 2048, 0), (1, 8192, 0), (32, 512, 0), (1, 2048, 8192)):
            time = measure(backend, shape, batch(num_rows, start, count))
            seen = count * start + count * (count + 1) / 2
            rate = 4 * num_rows * seen * shape.num_heads * shape.head_dim / time / 1e12
            print(f"{'':20} {num_rows:6} {count:7} {start:8} {time * 1e6:9.1f} {rate:9.0f} {rate / product:8.0%}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
