"""Products that are cut along their inputs, so that small ones fill the device, and how a tile of outputs is written.

Each program of a tile leaves its part in memory; whoever leaves the last adds all of them up, in the same order each time.

Suffix legend: T tokens, O outputs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from sapwood.kernels.planes import MOST_TILES
from sapwood.kernels.triton.jit import jit


@jit
def joined(acc_OT, parts, arrived, PARTS: tl.constexpr):
    """(the whole tile, whether this program has it). Grid (.., .., PARTS); `arrived` is 0 for each tile, before and after."""
    if PARTS == 1:
        return acc_OT, True
    else:
        SIZE: tl.constexpr = acc_OT.shape[0] * acc_OT.shape[1]
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        place_OT = tl.arange(0, acc_OT.shape[0])[:, None] * acc_OT.shape[1] + tl.arange(0, acc_OT.shape[1])[None, :]
        first = parts + tile.to(tl.int64) * (PARTS * SIZE)
        tl.store(first + tl.program_id(2) * SIZE + place_OT, acc_OT)
        tl.debug_barrier()  # the whole part is there before it is counted
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == PARTS - 1
        if last:
            tl.store(arrived + tile, 0)
            # Past the first level of caches: other processors wrote them.
            acc_OT = tl.load(first + place_OT, cache_modifier=".cg")
            for part in tl.static_range(1, PARTS):
                acc_OT += tl.load(first + part * SIZE + place_OT, cache_modifier=".cg")
        return acc_OT, last


@jit
def write(out_TO, acc_OT, row_scale_O, factor_T, bias_O, row_O, o_O, t_T, T, OUT: tl.constexpr):
    """Times the scales of outputs and tokens, and the bias."""
    acc_OT = acc_OT * factor_T
    if row_scale_O is not None:
        acc_OT = acc_OT * tl.load(row_scale_O + row_O)[:, None]
    if bias_O is not None:
        acc_OT += tl.load(bias_O + row_O).to(tl.float32)[:, None]
    place = out_TO + t_T.to(tl.int64)[:, None] * OUT + o_O[None, :]
    tl.store(place, tl.trans(acc_OT).to(out_TO.dtype.element_ty), mask=(t_T < T)[:, None] & (o_O < OUT)[None, :])


def room(device: torch.device, grid: tuple[int, int, int], size: int) -> Tensor | None:
    """Where the parts of all tiles are left, None where there is one."""
    if grid[2] == 1:
        return None
    assert grid[0] * grid[1] <= MOST_TILES
    return torch.empty(grid[0] * grid[1] * grid[2] * size, dtype=torch.float32, device=device)
