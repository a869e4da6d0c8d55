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

import torch
import torch.nn.functional as F
from gpu import DEVICE, DTYPE, SHAPES, Shape, introduce, seconds, show
from torch import Tensor

from sapwood.attention.base import Batch, RowLimits, Shared, tile_members
from sapwood.attention.triton import Shape as Tile
from sapwood.attention.triton import Triton
from sapwood.base.kv import Heads, KVGroup
from sapwood.base.plan import RUN_LEVELS
from sapwood.kernels import NormRope

PAGE, CELLS, NUM_LAYERS = 16, 1 << 21, 2
"""The pool. A call goes through all layers; steps of which the L2 cache holds both are faster than in a real model."""


class Work(NamedTuple):
    """Rows of `tokens` tokens behind `start` positions; `groups` of rows share their first `common` positions. `drafted`: all
    of a row's tokens but the first are drafts."""

    rows: int
    tokens: int
    start: int = 0
    groups: int = 0
    common: int = 0
    drafted: bool = False

    def __str__(self) -> str:
        shared = f", {self.groups} x {self.common} shared" if self.groups else ""
        return f"{self.rows} x {self.tokens}{f' at {self.start}' if self.start else ''}{shared}"

    @property
    def decodes(self) -> bool:
        return self.drafted or self.tokens == 1


def decodes(lengths: dict[int, Sequence[int]]) -> list[Work]:
    """Rows of one token, the last of a length, by number of rows."""
    return [Work(rows, 1, length - 1) for rows, some in lengths.items() for length in some]


DECODES = decodes({1: [512, 2048, 8192], 8: [2048, 8192], 32: [256, 2048], 256: [256, 512, 2048, 4096]})
SHARED = [Work(256, 1, 2239, 16, 2048), Work(256, 1, 699, 1, 512), Work(8, 1, 8191, 4, 8000)]
DRAFTED = [
    Work(rows, 1 + drafts, start, drafted=True) for start in (1024, 8192) for rows in (1, 32) for drafts in (1, 4, 16)
]
PREFILLS = [Work(1, 512), Work(1, 2048), Work(1, 8192), Work(32, 512), Work(1, 2048, 8192), Work(4, 5, 8192)]


# -- a step of attention -----------------------------------------------------------------------------------------------


def batch(work: Work, page: int) -> Batch:
    """Rows of equal size on pages in random order."""
    pages_per_row = -(-(work.start + work.tokens) // page)
    table_SP = (torch.randperm(work.rows * pages_per_row, device=DEVICE) + 1).int().view(work.rows, pages_per_row)
    positions_RN = torch.arange(work.start, work.start + work.tokens, device=DEVICE).expand(work.rows, -1)
    cells_RN = table_SP.gather(1, positions_RN // page).long() * page + positions_RN % page
    offsets_R1 = torch.arange(work.rows + 1, dtype=torch.int32, device=DEVICE) * work.tokens
    slots_R = torch.arange(work.rows, dtype=torch.int32, device=DEVICE)
    return Batch(
        ids_T=torch.zeros(work.rows * work.tokens, dtype=torch.long, device=DEVICE),
        positions_T=positions_RN.flatten(),
        slots_R=slots_R,
        starts_R=torch.full_like(slots_R, work.start),
        counts_R=torch.full_like(slots_R, work.tokens),
        offsets_R1=offsets_R1,
        tables_GSP=(table_SP,),
        cells_GT=(cells_RN.flatten(),),
        limits=RowLimits(decodes=work.rows, spans=0) if work.decodes else RowLimits(decodes=0, spans=work.rows),
        heads_R=torch.full_like(slots_R, work.tokens) if work.drafted else None,
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


def inputs(shape: Shape, num_tokens: int) -> tuple[Tensor, NormRope]:
    num_heads, half = shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim // 2
    heads_TXD = torch.randn(num_tokens, num_heads, shape.head_dim, device=DEVICE, dtype=DTYPE)
    ones_TF = torch.ones(num_tokens, half, device=DEVICE)
    return heads_TXD, NormRope(ones_TF, torch.zeros_like(ones_TF))


def start(shape: Shape, page: int = PAGE, stored: torch.dtype = DTYPE) -> Triton:
    group = KVGroup(Heads(shape.num_heads, shape.num_kv_heads, shape.head_dim), NUM_LAYERS, page)
    backend = Triton(group, 0, DEVICE, stored)
    backend.allocate(CELLS // page + 1)
    for pages in (backend._keys, backend._values):  # zeros would flatter
        for layer in range(NUM_LAYERS):
            pages[layer] = torch.randn(pages[layer].shape, device=DEVICE, dtype=torch.bfloat16).to(stored)
    return backend


def measure(backend: Triton, shape: Shape, work: Work) -> tuple[float, float]:
    """Seconds of one layer; GB/s of keys and values that must be read, those that are shared or another draft's too once, or
    TFLOP/s of a prefill."""
    page = backend._group.page_size
    step = batch(work, page)
    if work.groups:
        step = sharing(step, work, page, tile_members([backend._group]))
    amount = operations(shape, work) / 1e12
    if work.decodes:
        positions = work.rows * (work.start + work.tokens - work.common) + work.groups * work.common
        amount = 2 * positions * shape.num_kv_heads * shape.head_dim * backend._dtype.itemsize / 1e9
    heads_TXD, rope = inputs(shape, len(step.ids_T))
    backend.plan(step)

    def layers() -> None:
        for layer in range(NUM_LAYERS):
            backend.run(layer, heads_TXD, rope, shape.head_dim**-0.5)

    time = seconds(layers) / NUM_LAYERS
    return time, amount / time


def operations(shape: Shape, work: Work) -> float:
    seen = work.tokens * work.start + work.tokens * (work.tokens + 1) / 2
    return 4 * work.rows * seen * shape.num_heads * shape.head_dim


def product_rate() -> float:
    """TFLOP/s of a large matrix product."""
    square = torch.randn(1 << 13, 1 << 13, device=DEVICE, dtype=DTYPE)
    return 2 * (1 << 39) / seconds(lambda: torch.mm(square, square)) / 1e12


def lines(backend: Triton, shape: Shape, works: Sequence[Work], best: float) -> Iterator[tuple[Work, list[str]]]:
    for work in works:
        time, rate = measure(backend, shape, work)
        beside = f"{rate / best:.0%}"
        if work.drafted:
            beside = f"{measure(backend, shape, Work(work.rows, 1, work.start))[0] * 1e6:.1f}"
        if work.groups:
            beside = f"{measure(backend, shape, work._replace(groups=0, common=0))[0] * 1e6:.1f}"
        yield work, [f"{time * 1e6:.1f}", f"{rate:.0f}", beside]


# -- sweep -------------------------------------------------------------------------------------------------------------

Candidate = tuple[str, dict[str, Any]]
"""A name, and what it changes of the backend's shapes."""


def tiles(kind: str, *sizes: str, **more: bool) -> list[Candidate]:
    """Rows of the tile / positions of a block / warps / stages / programs of a processor (/ least positions of a part)."""
    said = [name if on else f"no {name}" for name, on in more.items()]
    return [(" ".join([size, *said]), {kind: Tile(*map(int, size.split("/"))), **more}) for size in sizes]


AS_IT_IS: Candidate = ("as it is", {})
ROWS = [
    AS_IT_IS,
    *tiles("rows", "16/64/4/4/2", "16/64/4/2/4", "16/64/2/3/3", "16/32/4/4/4", "16/32/2/4/4", "16/32/4/6/2"),
    *tiles("rows", "16/128/4/2/3", "16/128/8/3/1"),
]
PARTS = tiles("rows", "16/64/4/3/2", "16/64/4/3/4", "16/64/4/3/3/64", "16/64/4/3/3/256")  # in other numbers of parts
MANY = [
    AS_IT_IS,
    *tiles("drafted", "16/64/4/3/3", "32/64/4/3/2", "32/64/4/3/3", "64/64/4/3/1", "64/64/4/3/2/512", "64/64/8/3/2/256"),
    *tiles("drafted", "64/128/8/2/1/256", "128/64/8/3/1/256", "128/64/8/3/1/1024"),
]
RUNS = [AS_IT_IS, *tiles("runs", "64/64/4/2/2", "64/64/4/3/1", "64/32/4/3/3", "64/128/8/2/1", "64/32/4/4/4")]
SPANS = [
    AS_IT_IS,
    *tiles("spans", "128/64/4/2/2", "128/64/4/3/1", "128/128/8/2/1", "128/128/8/3/1", "128/64/8/4/1", "64/64/4/2/2"),
    *tiles("spans", "128/64/8/3/1", "128/128/8/2/1", dense=True, tma=False),
    *tiles("spans", "128/64/8/3/1", "128/128/8/2/1", dense=False, tma=False),
]


def sweep() -> None:
    some = decodes({1: [2048, 8192], 8: [2048], 32: [2048], 256: [256, 2048]})
    prefills = [Work(1, 2048), Work(1, 8192), Work(16, 512), Work(1, 2048, 8192), Work(4, 5, 8192)]
    compare("decode, GB/s", some, ROWS + PARTS)
    compare("drafted, us", DRAFTED, MANY, in_us=True)
    compare("shared, us", SHARED, RUNS, in_us=True)
    compare("prefill, TFLOP/s", prefills, SPANS)
    show("the library's", [], ((name, (library_rate(work, call) for work in prefills)) for name, call in library()))
    for page in (32, 64):
        compare(f"decode, pages of {page}, GB/s", some, ROWS, page)
        compare(f"prefill, pages of {page}, TFLOP/s", prefills, [AS_IT_IS], page)
    stored = torch.float8_e4m3fn
    compare("decode, float8, GB/s", some, [*ROWS[:2], *tiles("rows", "16/128/4/3/3")], stored=stored)
    compare("prefill, float8, TFLOP/s", prefills, [AS_IT_IS], stored=stored)


def compare(
    title: str,
    works: Sequence[Work],
    candidates: Sequence[Candidate],
    page: int = PAGE,
    *,
    stored: torch.dtype = DTYPE,
    in_us: bool = False,
) -> None:
    """Of llama-8b's heads: a line for each candidate, a column for each work."""
    backend = start(SHAPES[0], page, stored)
    before = backend.deals.shapes

    def tried(change: dict[str, Any]) -> Iterator[str]:
        backend.deals.shapes = replace(before, **change)
        for work in works:
            try:
                time, rate = measure(backend, SHAPES[0], work)
                yield f"{time * 1e6 if in_us else rate:.0f}"
            except Exception as error:  # a shape that does not fit the device is a result too
                yield type(error).__name__[:9]

    show(title, [str(work).partition(",")[0] for work in works], ((name, tried(change)) for name, change in candidates))


Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def library() -> list[tuple[str, Call]]:
    scale = SHAPES[0].head_dim ** -0.5

    def cudnn(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        attend = torch.ops.aten._scaled_dot_product_cudnn_attention
        out_BHTD: Tensor = attend(q_BHTD, k_BKTD, v_BKTD, None, True, 0.0, True, False, scale=scale)[0]
        return out_BHTD

    def repeated(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        repeat = q_BHTD.shape[1] // k_BKTD.shape[1]
        return cudnn(q_BHTD, k_BKTD.repeat_interleave(repeat, dim=1), v_BKTD.repeat_interleave(repeat, dim=1))

    def flash(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, scale=scale, enable_gqa=True)

    return [("cuDNN", cudnn), ("cuDNN, keys and values repeated", repeated), ("PyTorch's flash attention", flash)]


def library_rate(work: Work, call: Call) -> str:
    """TFLOP/s of the causal part alone, and after it the first call with a length not seen before, in ms."""
    if work.start:
        return "-"
    shape = SHAPES[0]
    try:
        heads_BXTD = (
            inputs(shape, work.rows * work.tokens)[0].view(work.rows, work.tokens, -1, shape.head_dim).transpose(1, 2)
        )
        q, k, v = heads_BXTD.split([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], dim=1)
        rate = operations(shape, work) / seconds(lambda: call(q, k, v)) / 1e12
        torch.cuda.synchronize()
        before = time.perf_counter()
        call(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:])
        torch.cuda.synchronize()
        return f"{rate:.0f} {(time.perf_counter() - before) * 1e3:.1f}"
    except Exception as error:
        return type(error).__name__[:9]


def main() -> None:
    asked, copied = introduce(argparse.ArgumentParser(description=__doc__))
    product = product_rate()
    print(f"matrix product {product:.0f} TFLOP/s")
    if asked.sweep:
        return sweep()
    for shape in SHAPES:
        backend = start(shape)
        show(f"{shape.name}: decode", ("us", "GB/s", "of copy"), lines(backend, shape, DECODES, copied))
        show(f"{shape.name}: drafted", ("us", "GB/s", "us undrafted"), lines(backend, shape, DRAFTED, copied))
        show(f"{shape.name}: shared", ("us", "GB/s", "us unshared"), lines(backend, shape, SHARED, copied))
        show(f"{shape.name}: prefill", ("us", "TFLOP/s", "of product"), lines(backend, shape, PREFILLS, product))
        del backend


if __name__ == "__main__":
    with torch.inference_mode():
        main()
