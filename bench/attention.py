"""How close paged attention comes to the device: `python bench/attention.py` on a CUDA device, about a minute.

Decode is bound by memory: bytes of the keys and values it must read, per second, beside a measured device-to-device
copy (read plus written). Prefill is bound by arithmetic: operations of the causal half, per second, beside a measured
matrix product. Times are medians over graph replays, so that launches from Python are not in them, and include turning
queries and keys and writing the step's keys and values.

`--sweep` instead tries other shapes of the kernels, page sizes and, for prompts, PyTorch's own kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.attention.base import Batch, Limits, Shared, tile_members
from sapwood.attention.triton import Shape as Tile
from sapwood.attention.triton import Shapes, Triton
from sapwood.base.kv import KVGroup
from sapwood.base.plan import RUN_LEVELS
from sapwood.kernels import Turn

DEVICE, DTYPE, PAGE = torch.device("cuda"), torch.bfloat16, 16
CELLS, NUM_LAYERS = 1 << 21, 2
"""The pool. A call goes through all layers; steps of which the L2 cache holds both are faster than in a real model."""


class Shape(NamedTuple):
    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


class Decode(NamedTuple):
    """Rows of one token; `groups` of them share their first `common` positions."""

    rows: int
    length: int
    groups: int = 0
    common: int = 0


class Prefill(NamedTuple):
    rows: int
    tokens: int
    start: int = 0


Work = TypeVar("Work", Decode, Prefill)
SHAPES = (Shape("llama-8b", 32, 8, 128), Shape("qwen3-0.6b", 16, 8, 128))
DECODES = (
    *(Decode(1, length) for length in (512, 2048, 8192)),
    *(Decode(8, length) for length in (2048, 8192)),
    *(Decode(32, length) for length in (256, 2048)),
    *(Decode(256, length) for length in (256, 512, 2048, 4096)),
)
SHARED = (Decode(256, 2240, 16, 2048), Decode(256, 700, 1, 512), Decode(8, 8192, 4, 8000))
PREFILLS = (
    Prefill(1, 512),
    Prefill(1, 2048),
    Prefill(1, 8192),
    Prefill(32, 512),
    Prefill(1, 2048, 8192),
    Prefill(4, 5, 8192),
)


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


def batch(num_rows: int, start: int, count: int, page: int) -> Batch:
    """Rows of equal size on pages in random order."""
    pages_per_row = -(-(start + count) // page)
    table_SP = (torch.randperm(num_rows * pages_per_row, device=DEVICE) + 1).int().view(num_rows, pages_per_row)
    positions_RN = torch.arange(start, start + count, device=DEVICE).expand(num_rows, -1)
    cells_RN = table_SP.gather(1, positions_RN // page).long() * page + positions_RN % page
    slots, starts, counts = np.arange(num_rows), np.full(num_rows, start), np.full(num_rows, count)
    columns = (slots, starts, counts, np.arange(num_rows + 1) * count)
    slots_R, starts_R, counts_R, offsets_R1 = (
        torch.from_numpy(column.astype(np.int32)).to(DEVICE) for column in columns
    )
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


def sharing(step: Batch, work: Decode, page: int, tile: int) -> Batch:
    """The batch with the runs that its groups of rows share, said or not."""
    size = work.rows // work.groups
    table_SP = step.tables_GSP[0]
    firsts_R = torch.arange(work.rows, device=DEVICE) // size * size
    table_SP[:, : work.common // page] = table_SP[firsts_R, : work.common // page]
    tiles = [
        (0, work.common, first, min(tile, group + size - first))
        for group in range(0, work.rows, size)
        for first in range(group, group + size, tile)
    ]
    rows_M = torch.arange(work.rows, dtype=torch.int32, device=DEVICE)
    members_RL = torch.full((work.rows, RUN_LEVELS), -1, dtype=torch.int32, device=DEVICE)
    members_RL[:, 0] = rows_M
    columns = (torch.tensor(column, dtype=torch.int32, device=DEVICE) for column in zip(*tiles, strict=True))
    return replace(step, shared=Shared(*columns, rows_M, torch.full_like(rows_M, work.common), members_RL, tile))


def measure(backend: Triton, shape: Shape, step: Batch) -> float:
    """Seconds of one layer."""
    heads_TXD, turn = inputs(shape, len(step.ids_T))
    backend.plan(step)

    def layers() -> None:
        for layer in range(NUM_LAYERS):
            backend.run(layer, heads_TXD, turn, shape.head_dim**-0.5)

    return seconds(layers) / NUM_LAYERS


def inputs(shape: Shape, num_tokens: int) -> tuple[Tensor, Turn]:
    num_heads, half = shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim // 2
    heads_TXD = torch.randn(num_tokens, num_heads, shape.head_dim, device=DEVICE, dtype=DTYPE)
    ones_TF = torch.ones(num_tokens, half, device=DEVICE)
    return heads_TXD, Turn(ones_TF, torch.zeros_like(ones_TF))


def start(shape: Shape, page: int = PAGE, stored: torch.dtype = DTYPE) -> Triton:
    group = KVGroup(NUM_LAYERS, shape.num_heads, shape.num_kv_heads, shape.head_dim, None, page)
    backend = Triton(group, 0, DEVICE, stored)
    backend.allocate(CELLS // page + 1)
    for pages in (backend._keys, backend._values):  # zeros would flatter
        for layer in range(NUM_LAYERS):
            pages[layer] = torch.randn(pages[layer].shape, device=DEVICE, dtype=torch.bfloat16).to(stored)
    return backend


def decode_rate(backend: Triton, shape: Shape, work: Decode) -> tuple[float, float]:
    """(seconds, GB/s of the keys and values that must be read, shared ones once)."""
    page = backend._group.page_size
    step = batch(work.rows, work.length - 1, 1, page)
    positions = work.rows * (work.length - work.common) + work.groups * work.common
    if work.groups:
        step = sharing(step, work, page, tile_members([backend._group]))
    time = measure(backend, shape, step)
    itemsize = backend._dtype.itemsize
    return time, 2 * positions * shape.num_kv_heads * shape.head_dim * itemsize / time / 1e9


def operations(shape: Shape, work: Prefill) -> float:
    seen = work.tokens * work.start + work.tokens * (work.tokens + 1) / 2
    return 4 * work.rows * seen * shape.num_heads * shape.head_dim


def prefill_rate(backend: Triton, shape: Shape, work: Prefill) -> tuple[float, float]:
    """(seconds, TFLOP/s)."""
    time = measure(backend, shape, batch(work.rows, work.start, work.tokens, backend._group.page_size))
    return time, operations(shape, work) / time / 1e12


def ceilings() -> tuple[float, float]:
    """GB/s of a large copy and TFLOP/s of a large matrix product."""
    source = torch.randn(1 << 28, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source)
    square = source[: 1 << 26].view(1 << 13, 1 << 13)
    copy_seconds = seconds(lambda: target.copy_(source))
    product_seconds = seconds(lambda: torch.mm(square, square))
    return 2 * source.nbytes / copy_seconds / 1e9, 2 * (1 << 39) / product_seconds / 1e12


def tables(copied: float, product: float) -> None:
    for shape in SHAPES:
        backend = start(shape)
        print(f"\n{shape.name}: decode      rows  length        us      GB/s  of copy")
        for work in DECODES:
            time, rate = decode_rate(backend, shape, work)
            print(f"{'':20} {work.rows:6} {work.length:7} {time * 1e6:9.1f} {rate:9.0f} {rate / copied:8.0%}")
        print(f"{shape.name}: shared      rows  length  groups  common        us      GB/s  us not shared")
        for work in SHARED:
            time, rate = decode_rate(backend, shape, work)
            apart, _ = decode_rate(backend, shape, Decode(work.rows, work.length))
            figures = f"{work.groups:7} {work.common:7} {time * 1e6:9.1f} {rate:9.0f} {apart * 1e6:14.1f}"
            print(f"{'':20} {work.rows:6} {work.length:7} {figures}")
        print(f"{shape.name}: prefill     rows  tokens  history        us   TFLOP/s  of product")
        for span in PREFILLS:
            time, rate = prefill_rate(backend, shape, span)
            figures = f"{span.start:8} {time * 1e6:9.1f} {rate:9.0f} {rate / product:8.0%}"
            print(f"{'':20} {span.rows:6} {span.tokens:7} {figures}")
        del backend


# ---- sweep


@dataclass(frozen=True)
class Candidate:
    name: str
    change: Callable[[Shapes], Shapes]


def _rows(*tile: int, **changes: int) -> Candidate:
    return Candidate(_name(tile, changes), lambda shapes: replace(shapes, rows=replace(Tile(*tile), **changes)))


def _runs(*tile: int, **changes: int) -> Candidate:
    return Candidate(_name(tile, changes), lambda shapes: replace(shapes, runs=replace(Tile(*tile), **changes)))


def _spans(*tile: int, dense: bool = True, tma: bool = True) -> Candidate:
    reads = "tma" if tma else "dense" if dense else "pages"
    changed = Tile(*tile)
    return Candidate(f"{_name(tile, {})} {reads}", lambda shapes: replace(shapes, spans=changed, dense=dense, tma=tma))


def _name(tile: Sequence[int], changes: dict[str, int]) -> str:
    return "/".join(map(str, tile)) + "".join(f" {key} {value}" for key, value in changes.items())


AS_IT_IS = Candidate("as it is", lambda shapes: shapes)
ROWS = (  # rows of the tile / positions of a block / warps / stages / programs of a processor
    AS_IT_IS,
    _rows(16, 64, 4, 4, 2),
    _rows(16, 64, 4, 2, 4),
    _rows(16, 64, 2, 3, 3),
    _rows(16, 32, 4, 4, 4),
    _rows(16, 32, 2, 4, 4),
    _rows(16, 32, 4, 6, 2),
    _rows(16, 128, 4, 2, 3),
    _rows(16, 128, 8, 3, 1),
)
PARTS = (  # the same kernel, other numbers of parts
    _rows(16, 64, 4, 3, 2),
    _rows(16, 64, 4, 3, 4),
    _rows(16, 64, 4, 3, 3, least=64),
    _rows(16, 64, 4, 3, 3, least=256),
)
RUNS = (
    AS_IT_IS,
    _runs(64, 64, 4, 2, 2),
    _runs(64, 64, 4, 3, 1),
    _runs(64, 32, 4, 3, 3),
    _runs(64, 128, 8, 2, 1),
    _runs(64, 32, 4, 4, 4),
)
SPANS = (
    AS_IT_IS,
    _spans(128, 64, 4, 2, 2),
    _spans(128, 64, 4, 3, 1),
    _spans(128, 128, 8, 2, 1),
    _spans(128, 128, 8, 3, 1),
    _spans(128, 64, 8, 4, 1),
    _spans(64, 64, 4, 2, 2),
    _spans(128, 64, 8, 3, 1, tma=False),
    _spans(128, 128, 8, 2, 1, tma=False),
    _spans(128, 64, 8, 3, 1, dense=False, tma=False),
    _spans(128, 128, 8, 2, 1, dense=False, tma=False),
)


def sweep() -> None:
    shape = SHAPES[0]
    decodes = (Decode(1, 2048), Decode(1, 8192), Decode(8, 2048), Decode(32, 2048), Decode(256, 256), Decode(256, 2048))
    spans = (Prefill(1, 2048), Prefill(1, 8192), Prefill(16, 512), Prefill(1, 2048, 8192), Prefill(4, 5, 8192))
    backend = start(shape)
    _table("decode, GB/s", backend, ROWS + PARTS, decodes, decode_rate)
    _table("shared, us", backend, RUNS, SHARED, decode_rate, in_us=True)
    _table("prefill, TFLOP/s", backend, SPANS, spans, prefill_rate)
    for name, call in _library():
        print(f"{name:34}", *(f"{_library_rate(shape, work, call):>10}" for work in spans))
    del backend
    for page in (32, 64):
        backend = start(shape, page)
        _table(f"decode, pages of {page}, GB/s", backend, ROWS, decodes, decode_rate)
        _table(f"prefill, pages of {page}, TFLOP/s", backend, SPANS[:1], spans, prefill_rate)
        del backend
    backend = start(shape, PAGE, torch.float8_e4m3fn)
    _table("decode, float8, GB/s", backend, (*ROWS[:2], _rows(16, 128, 4, 3, 3)), decodes, decode_rate)
    _table("prefill, float8, TFLOP/s", backend, SPANS[:1], spans, prefill_rate)


def _table(
    title: str,
    backend: Triton,
    candidates: Sequence[Candidate],
    works: Sequence[Work],
    rate: Callable[[Triton, Shape, Work], tuple[float, float]],
    *,
    in_us: bool = False,
) -> None:
    """Of llama-8b's heads: a line for each candidate, a column for each work."""
    print(f"\n{title:34}", *(f"{'x'.join(map(str, work)):>10}" for work in works))
    before = backend.shapes
    for candidate in candidates:
        backend.shapes = candidate.change(before)
        figures = []
        for work in works:
            try:
                taken, figure = rate(backend, SHAPES[0], work)
                figures.append(f"{taken * 1e6 if in_us else figure:10.0f}")
            except Exception as error:  # a shape that does not fit the device is a result too
                figures.append(f"{type(error).__name__[:9]:>10}")
        print(f"{candidate.name:34}", *figures, flush=True)
    backend.shapes = before


Call = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _library() -> list[tuple[str, Call]]:
    def cudnn(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float) -> Tensor:
        attend = torch.ops.aten._scaled_dot_product_cudnn_attention
        out_BHTD: Tensor = attend(q_BHTD, k_BKTD, v_BKTD, None, True, 0.0, True, False, scale=scale)[0]
        return out_BHTD

    def repeated(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float) -> Tensor:
        repeat = q_BHTD.shape[1] // k_BKTD.shape[1]
        k_BHTD, v_BHTD = (x.repeat_interleave(repeat, dim=1) for x in (k_BKTD, v_BKTD))
        return cudnn(q_BHTD, k_BHTD, v_BHTD, scale)

    def flash(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, scale=scale, enable_gqa=True)

    return [("cuDNN", cudnn), ("cuDNN, keys and values repeated", repeated), ("PyTorch's flash attention", flash)]


def _library_rate(shape: Shape, work: Prefill, call: Call) -> str:
    """TFLOP/s of the causal part alone, and after it the first call with a length not seen before, in ms."""
    if work.start:
        return "-"
    try:
        heads_TXD, _ = inputs(shape, work.rows * work.tokens)
        heads_BXTD = heads_TXD.view(work.rows, work.tokens, -1, shape.head_dim).transpose(1, 2)
        q, k, v = heads_BXTD.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
        scale = shape.head_dim**-0.5
        rate = operations(shape, work) / seconds(lambda: call(q, k, v, scale)) / 1e12
        torch.cuda.synchronize()
        before = time.perf_counter()
        call(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], scale)
        torch.cuda.synchronize()
        return f"{rate:.0f} {(time.perf_counter() - before) * 1e3:.1f}"
    except Exception as error:
        return type(error).__name__[:9]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="try other shapes of the kernels")
    asked = parser.parse_args()
    copied, product = ceilings()
    print(f"{torch.cuda.get_device_name()}: copy {copied:.0f} GB/s, matrix product {product:.0f} TFLOP/s")
    sweep() if asked.sweep else tables(copied, product)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
