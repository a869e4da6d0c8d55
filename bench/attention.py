"""How close paged attention comes to the device: `python bench/attention.py` on a CUDA device, about a minute.

Decode is bound by memory: bytes of the keys and values it must read, per second, beside a measured device-to-device
copy (read plus written). Prefill is bound by arithmetic: operations of the causal half, per second, beside a measured
matrix product. Times are medians over graph replays, so that launches from Python are not in them, and include turning
queries and keys and writing the step's keys and values.

`--sweep` instead tries other shapes of the kernels, page sizes and, for prompts, PyTorch's own kernels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gpu import DEVICE, DTYPE, copy_rate, seconds, show
from torch import Tensor

from sapwood.attention.base import Batch, Limits, Shared, tile_members
from sapwood.attention.triton import Shape as Tile
from sapwood.attention.triton import Triton
from sapwood.base.kv import Heads, KVGroup
from sapwood.base.plan import RUN_LEVELS
from sapwood.kernels import Turn

PAGE, CELLS, NUM_LAYERS = 16, 1 << 21, 2
"""The pool. A call goes through all layers; steps of which the L2 cache holds both are faster than in a real model."""


class Shape(NamedTuple):
    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


class Work(NamedTuple):
    """Rows of `tokens` tokens behind `start` positions; `groups` of rows share their first `common` positions."""

    rows: int
    tokens: int
    start: int = 0
    groups: int = 0
    common: int = 0

    def __str__(self) -> str:
        shared = f", {self.groups} x {self.common} shared" if self.groups else ""
        return f"{self.rows} x {self.tokens}{f' at {self.start}' if self.start else ''}{shared}"


def decode(rows: int, length: int, groups: int = 0, common: int = 0) -> Work:
    """Rows of one token, the last of `length`."""
    return Work(rows, 1, length - 1, groups, common)


SHAPES = (Shape("llama-8b", 32, 8, 128), Shape("qwen3-0.6b", 16, 8, 128))
LENGTHS = {1: (512, 2048, 8192), 8: (2048, 8192), 32: (256, 2048), 256: (256, 512, 2048, 4096)}  # by rows
DECODES = [decode(rows, length) for rows, lengths in LENGTHS.items() for length in lengths]
SHARED = [decode(256, 2240, 16, 2048), decode(256, 700, 1, 512), decode(8, 8192, 4, 8000)]
PREFILLS = [Work(1, 512), Work(1, 2048), Work(1, 8192), Work(32, 512), Work(1, 2048, 8192), Work(4, 5, 8192)]


# -- a step of attention -----------------------------------------------------------------------------------------------


def batch(num_rows: int, start: int, count: int, page: int) -> Batch:
    """Rows of equal size on pages in random order."""
    pages_per_row = -(-(start + count) // page)
    table_SP = (torch.randperm(num_rows * pages_per_row, device=DEVICE) + 1).int().view(num_rows, pages_per_row)
    positions_RN = torch.arange(start, start + count, device=DEVICE).expand(num_rows, -1)
    cells_RN = table_SP.gather(1, positions_RN // page).long() * page + positions_RN % page
    rows = np.arange(num_rows)
    columns = (rows, np.full(num_rows, start), np.full(num_rows, count), np.arange(num_rows + 1) * count)
    slots_R, starts_R, counts_R, offsets_R1 = (torch.from_numpy(c.astype(np.int32)).to(DEVICE) for c in columns)
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


def sharing(step: Batch, work: Work, page: int, tile: int) -> Batch:
    """The batch with the runs that its groups of rows share."""
    size = work.rows // work.groups
    table_SP = step.tables_GSP[0]
    firsts_R = torch.arange(work.rows, device=DEVICE) // size * size
    table_SP[:, : work.common // page] = table_SP[firsts_R, : work.common // page]
    tiles = [
        (0, work.common, first, min(tile, group + size - first), group)
        for group in range(0, work.rows, size)
        for first in range(group, group + size, tile)
    ]
    rows_M = torch.arange(work.rows, dtype=torch.int32, device=DEVICE)
    members_RL = torch.full((work.rows, RUN_LEVELS), -1, dtype=torch.int32, device=DEVICE)
    members_RL[:, 0] = rows_M
    columns = (torch.tensor(column, dtype=torch.int32, device=DEVICE) for column in zip(*tiles, strict=True))
    return replace(step, shared=Shared(*columns, rows_M, torch.full_like(rows_M, work.common), members_RL, tile))


def inputs(shape: Shape, num_tokens: int) -> tuple[Tensor, Turn]:
    num_heads, half = shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim // 2
    heads_TXD = torch.randn(num_tokens, num_heads, shape.head_dim, device=DEVICE, dtype=DTYPE)
    ones_TF = torch.ones(num_tokens, half, device=DEVICE)
    return heads_TXD, Turn(ones_TF, torch.zeros_like(ones_TF))


def start(shape: Shape, page: int = PAGE, stored: torch.dtype = DTYPE) -> Triton:
    group = KVGroup(Heads(shape.num_heads, shape.num_kv_heads, shape.head_dim), NUM_LAYERS, page)
    backend = Triton(group, 0, DEVICE, stored)
    backend.allocate(CELLS // page + 1)
    for pages in (backend._keys, backend._values):  # zeros would flatter
        for layer in range(NUM_LAYERS):
            pages[layer] = torch.randn(pages[layer].shape, device=DEVICE, dtype=torch.bfloat16).to(stored)
    return backend


def measure(backend: Triton, shape: Shape, work: Work) -> tuple[float, float]:
    """Seconds of one layer; GB/s of keys and values that must be read, shared ones once, or TFLOP/s of a prefill."""
    page = backend._group.page_size
    step = batch(work.rows, work.start, work.tokens, page)
    if work.groups:
        step = sharing(step, work, page, tile_members([backend._group]))
    amount = operations(shape, work) / 1e12
    if work.tokens == 1:
        positions = work.rows * (work.start + 1 - work.common) + work.groups * work.common
        amount = 2 * positions * shape.num_kv_heads * shape.head_dim * backend._dtype.itemsize / 1e9
    heads_TXD, turn = inputs(shape, len(step.ids_T))
    backend.plan(step)

    def layers() -> None:
        for layer in range(NUM_LAYERS):
            backend.run(layer, heads_TXD, turn, shape.head_dim**-0.5)

    time = seconds(layers) / NUM_LAYERS
    return time, amount / time


def operations(shape: Shape, work: Work) -> float:
    seen = work.tokens * work.start + work.tokens * (work.tokens + 1) / 2
    return 4 * work.rows * seen * shape.num_heads * shape.head_dim


def product_rate() -> float:
    """TFLOP/s of a large matrix product."""
    square = torch.randn(1 << 13, 1 << 13, device=DEVICE, dtype=DTYPE)
    return 2 * (1 << 39) / seconds(lambda: torch.mm(square, square)) / 1e12


def tables(copied: float, product: float) -> None:
    for shape in SHAPES:
        backend = start(shape)
        show(f"{shape.name}: decode", ("us", "GB/s", "of copy"), lines(backend, shape, DECODES, copied))
        show(f"{shape.name}: shared", ("us", "GB/s", "us unshared"), lines(backend, shape, SHARED, copied))
        show(f"{shape.name}: prefill", ("us", "TFLOP/s", "of product"), lines(backend, shape, PREFILLS, product))
        del backend


def lines(backend: Triton, shape: Shape, works: Sequence[Work], best: float) -> Iterator[tuple[Work, list[str]]]:
    for work in works:
        time, rate = measure(backend, shape, work)
        beside = f"{rate / best:.0%}"
        if work.groups:
            beside = f"{measure(backend, shape, work._replace(groups=0, common=0))[0] * 1e6:.1f}"
        yield work, [f"{time * 1e6:.1f}", f"{rate:.0f}", beside]


# -- sweep -------------------------------------------------------------------------------------------------------------

Candidate = tuple[str, dict[str, Any]]
"""A name, and what it changes of the backend's shapes."""


def tile(kind: str, *sizes: int, least: int = 128) -> Candidate:
    """Rows of the tile / positions of a block / warps / stages / programs of a processor."""
    return "/".join(map(str, sizes)) + (f" least {least}" if least != 128 else ""), {kind: Tile(*sizes, least=least)}


def spans(*sizes: int, dense: bool = True, tma: bool = True) -> Candidate:
    name, change = tile("spans", *sizes)
    return f"{name} {'tma' if tma else 'dense' if dense else 'pages'}", change | {"dense": dense, "tma": tma}


AS_IT_IS: Candidate = ("as it is", {})
ROWS = [
    AS_IT_IS,
    *(tile("rows", 16, 64, *rest) for rest in ((4, 4, 2), (4, 2, 4), (2, 3, 3))),
    *(tile("rows", 16, 32, *rest) for rest in ((4, 4, 4), (2, 4, 4), (4, 6, 2))),
    *(tile("rows", 16, 128, *rest) for rest in ((4, 2, 3), (8, 3, 1))),
]
PARTS = [  # the same kernel, other numbers of parts
    *(tile("rows", 16, 64, 4, 3, programs) for programs in (2, 4)),
    *(tile("rows", 16, 64, 4, 3, 3, least=least) for least in (64, 256)),
]
RUNS = [
    AS_IT_IS,
    *(tile("runs", 64, *rest) for rest in ((64, 4, 2, 2), (64, 4, 3, 1), (32, 4, 3, 3), (128, 8, 2, 1), (32, 4, 4, 4))),
]
SPANS = [
    AS_IT_IS,
    *(spans(128, *rest) for rest in ((64, 4, 2, 2), (64, 4, 3, 1), (128, 8, 2, 1), (128, 8, 3, 1), (64, 8, 4, 1))),
    spans(64, 64, 4, 2, 2),
    *(spans(128, *rest, tma=False) for rest in ((64, 8, 3, 1), (128, 8, 2, 1))),
    *(spans(128, *rest, dense=False, tma=False) for rest in ((64, 8, 3, 1), (128, 8, 2, 1))),
]


def sweep() -> None:
    shape = SHAPES[0]
    decodes = [decode(*size) for size in ((1, 2048), (1, 8192), (8, 2048), (32, 2048), (256, 256), (256, 2048))]
    prefills = [Work(1, 2048), Work(1, 8192), Work(16, 512), Work(1, 2048, 8192), Work(4, 5, 8192)]
    backend = start(shape)
    compare("decode, GB/s", backend, decodes, ROWS + PARTS)
    compare("shared, us", backend, SHARED, RUNS, in_us=True)
    compare("prefill, TFLOP/s", backend, prefills, SPANS)
    for name, call in library():
        print(f"{name:36}", *(f"{library_rate(shape, work, call):>12}" for work in prefills), flush=True)
    del backend
    for page in (32, 64):
        backend = start(shape, page)
        compare(f"decode, pages of {page}, GB/s", backend, decodes, ROWS)
        compare(f"prefill, pages of {page}, TFLOP/s", backend, prefills, SPANS[:1])
        del backend
    backend = start(shape, PAGE, torch.float8_e4m3fn)
    compare("decode, float8, GB/s", backend, decodes, [*ROWS[:2], tile("rows", 16, 128, 4, 3, 3)])
    compare("prefill, float8, TFLOP/s", backend, prefills, SPANS[:1])


def compare(
    title: str, backend: Triton, works: Sequence[Work], candidates: Sequence[Candidate], *, in_us: bool = False
) -> None:
    """Of llama-8b's heads: a line for each candidate, a column for each work."""
    before = backend.shapes

    def tried(change: dict[str, Any]) -> Iterator[str]:
        backend.shapes = replace(before, **change)
        for work in works:
            try:
                time, rate = measure(backend, SHAPES[0], work)
                yield f"{time * 1e6 if in_us else rate:.0f}"
            except Exception as error:  # a shape that does not fit the device is a result too
                yield type(error).__name__[:9]

    show(title, [str(work).partition(",")[0] for work in works], ((name, tried(change)) for name, change in candidates))
    backend.shapes = before


Call = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def library() -> list[tuple[str, Call]]:
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


def library_rate(shape: Shape, work: Work, call: Call) -> str:
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
    copied, product = copy_rate(), product_rate()
    print(f"{torch.cuda.get_device_name()}: copy {copied:.0f} GB/s, matrix product {product:.0f} TFLOP/s")
    sweep() if asked.sweep else tables(copied, product)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
