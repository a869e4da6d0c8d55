"""Attention on CPUs: each step's rows are sorted once into a few buckets, each of which is one batched call per layer.

A bucket is a rectangle of rows by queries by keys. Rows are aligned at their first query: column c of a bucket with H
columns of history is the position `first query + c - H`. Then causality (and the window) looks the same for every
row and needs one mask, made once for all steps; only rows with less history than the bucket mask the columns on their
left. Columns and queries on the right of a shorter row are seen by nothing that is kept. Padded columns repeat a cell
of their own row, so nothing that another request wrote, NaN included, is ever multiplied.

Keys and values lie as [layer, KV head * cell, D]: gathering whole cells by one flat index yields the contiguous
[K * R, L, D] operands of a batched product, and a row whose pages are consecutive is a view.

Suffix legend: T tokens of the step, B blocks (a row's queries, cut), R rows of a bucket, N queries per row, L key
columns, G query heads per KV head, H query heads, K KV heads, D head size, C cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.attention.base import Batch, bend, heads_of, rotated, slopes_of, weights_of
from sapwood.attention.rows import Row, RowsOf
from sapwood.base.kv import KVGroup
from sapwood.base.plan import Longs
from sapwood.base.ragged import spread
from sapwood.kernels import NormRope

BLOCK = 128
"""Most queries of a bucket's row: a block reads no key that none of its queries sees."""

FEW = 32
"""Up to so many queries plain products with a softmax between them beat the fused kernel."""

SLACK = 128
"""Columns that a row may be padded by for free: a call of its own costs more."""

BUCKET_BYTES = 4 << 20
"""Keys that a bucket of several rows may gather: about what stays in a core's cache until it is multiplied."""


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Runs of at most BLOCK queries: first token and its position, how many, of which slot, after how much history."""

    tokens_B: Longs
    positions_B: Longs
    counts_B: Longs
    slots_B: Longs
    histories_B: Longs

    def __getitem__(self, index: Longs) -> _Blocks:
        columns = (self.tokens_B, self.positions_B, self.counts_B, self.slots_B, self.histories_B)
        return _Blocks(*(column[index] for column in columns))


@dataclass(frozen=True, eq=False)
class _Bucket:
    """`tokens` are the step's R * N queries, `cells` the flat K * R * L cells or a row's run of them.

    `kept` are the queries that are not padding and `targets` their tokens; None where nothing is padded. `mask` is
    added to the scores, [N, L] or [R, 1, N, L].
    """

    num_rows: int
    num_queries: int
    tokens: Tensor | slice
    cells: Tensor | slice
    mask: Tensor | None
    kept: Tensor | None
    targets: Tensor | slice


class Cpu:
    """PyTorch operators only. Gathers take at most one layer's share of one long row, or BUCKET_BYTES."""

    name = "cpu"

    @staticmethod
    def refuse(group: KVGroup, device: torch.device, dtype: torch.dtype) -> str | None:
        if dtype.itemsize == 1:
            return f"it stores keys and values in the dtypes that are computed in, not {dtype}"
        heads = heads_of(group)
        if heads.ahead and (heads.bent or heads.chunked):
            return "where positions see ahead its scores are plain ones, of a window or of all"
        return None

    def __init__(self, group: KVGroup, index: int, device: torch.device, dtype: torch.dtype) -> None:
        self._group, self._index, self._dtype = group, index, dtype
        self._kind = heads = heads_of(group)
        self._repeat = heads.num_heads // heads.num_kv_heads
        self._slopes_K1G11 = slopes_of(heads, device, heads.num_kv_heads, 1, self._repeat, 1, 1)
        self.relative_HP: Tensor | None = None  # what scores have more, by distance, the farthest first
        self._most_history = 0
        self._causal_NL = self._relative_mask(0)
        self._buckets: list[_Bucket] = []
        self._rows_of = RowsOf(group, index, device)
        self._apart: list[Row] = []  # of this step, those that see ahead

    def allocate(self, num_pages: int) -> None:
        group, heads = self._group, self._kind
        self._num_cells = num_pages * group.page_size
        shape = (group.num_layers, heads.num_kv_heads * self._num_cells, heads.head_dim)
        self._keys, self._values = _lazy_zeros(shape, self._dtype), _lazy_zeros(shape, self._dtype)
        self._bases_K1 = torch.arange(heads.num_kv_heads)[:, None] * self._num_cells

    def pools(self) -> Sequence[Tensor]:
        rows = self._group.num_layers * self._kind.num_kv_heads
        return [cells.view(rows, -1, self._group.page_size, cells.shape[-1]) for cells in (self._keys, self._values)]

    # ---- once per step

    def plan(self, batch: Batch) -> None:
        # On a CPU the device's tensors are the host's: the true lengths cost nothing to read.
        table_SP = batch.tables_GSP[self._index].numpy()
        self._apart = self._rows_of.ahead(batch)
        self._written = (self._bases_K1 + batch.cells_GT[self._index]).flatten()
        blocks = self._cut(batch)
        self._buckets = [self._bucket(blocks[chosen], table_SP) for chosen in self._sort(blocks)]

    def _cut(self, batch: Batch) -> _Blocks:
        rows = self._rows(batch)
        rows_B, pieces_B = spread(-(-rows.counts_B // BLOCK))
        skipped_B, of_rows = BLOCK * pieces_B, rows[rows_B]
        positions_B, window = of_rows.positions_B + skipped_B, self._kind.window
        if window is None:
            histories_B = positions_B
        else:
            histories_B = positions_B % window if self._kind.chunked else np.minimum(positions_B, window - 1)
        return _Blocks(
            tokens_B=of_rows.tokens_B + skipped_B,
            positions_B=positions_B,
            counts_B=np.minimum(BLOCK, of_rows.counts_B - skipped_B),
            slots_B=of_rows.slots_B,
            histories_B=histories_B,
        )

    def _rows(self, batch: Batch) -> _Blocks:
        """Whole rows, or their parts in each chunk, where no query sees what is before."""
        positions_R, counts_R = (column.numpy().astype(np.int64) for column in (batch.starts_R, batch.counts_R))
        tokens_R, slots_R = batch.offsets_R1.numpy()[:-1].astype(np.int64), batch.slots_R.numpy().astype(np.int64)
        if self._apart:
            counts_R = np.where(np.isin(tokens_R, [row.first for row in self._apart]), 0, counts_R)
        rows = _Blocks(tokens_R, positions_R, counts_R, slots_R, np.zeros_like(positions_R))
        if not self._kind.chunked or self._kind.window is None:
            return rows
        size, ends_R = self._kind.window, positions_R + counts_R
        rows_C, numbers_C = spread(np.where(counts_R > 0, -(-ends_R // size) - positions_R // size, 0))
        of_rows, chunks_C = rows[rows_C], positions_R[rows_C] // size + numbers_C
        begins_C = np.maximum(of_rows.positions_B, chunks_C * size)
        counts_C = np.minimum(ends_R[rows_C], (chunks_C + 1) * size) - begins_C
        tokens_C = of_rows.tokens_B + begins_C - of_rows.positions_B
        return _Blocks(tokens_C, begins_C, counts_C, of_rows.slots_B, of_rows.histories_B)

    def _sort(self, blocks: _Blocks) -> Iterator[Longs]:
        """Blocks that share a bucket: of similar shape, within the memory bound, long ones first.

        Many queries take the fused kernel, where a mask per row would be large, so those share only equal histories.
        """
        counts_B, histories_B = blocks.counts_B, blocks.histories_B
        lengths_B = histories_B + counts_B
        classes_B = np.searchsorted([1, 8, FEW], counts_B)  # 1 query, up to 8, up to FEW, more
        order_B = np.lexsort((-lengths_B, np.where(counts_B > FEW, histories_B, 0), classes_B))
        most_columns = BUCKET_BYTES // (self._kind.num_kv_heads * self._kind.head_dim * self._dtype.itemsize)
        chosen: list[int] = []
        longest = history = kind = 0
        for b in order_B.tolist():
            length = int(lengths_B[b])
            joins = (
                chosen
                and classes_B[b] == kind
                and (len(chosen) + 1) * longest <= most_columns
                and (histories_B[b] == history and 4 * counts_B[b] >= 3 * (longest - history) if kind == 3 else True)
                and (2 * length >= longest or longest - length <= SLACK)
            )
            if chosen and not joins:
                yield np.array(chosen)
                chosen = []
            if not chosen:
                longest, history, kind = length, int(histories_B[b]), int(classes_B[b])
            chosen.append(b)
        if chosen:
            yield np.array(chosen)

    def _bucket(self, rows: _Blocks, table_SP: np.ndarray) -> _Bucket:
        num_rows = len(rows.counts_B)
        num_queries, history = int(rows.counts_B.max()), int(rows.histories_B.max())
        mask = self._mask(rows.histories_B, num_queries, history)
        if num_rows == 1:
            token = int(rows.tokens_B[0])
            tokens = slice(token, token + num_queries)
            return _Bucket(
                1, num_queries, tokens, self._cells(rows, history, num_queries, table_SP), mask, None, tokens
            )
        queries_N = np.arange(num_queries)
        tokens_RN = torch.from_numpy(rows.tokens_B[:, None] + np.minimum(queries_N, rows.counts_B[:, None] - 1))
        kept, targets = None, tokens_RN.flatten()
        if (rows.counts_B < num_queries).any():
            kept = torch.from_numpy(np.flatnonzero(queries_N < rows.counts_B[:, None]))
            targets = targets[kept]
        cells = self._cells(rows, history, num_queries, table_SP)
        return _Bucket(num_rows, num_queries, tokens_RN.flatten(), cells, mask, kept, targets)

    def _cells(self, rows: _Blocks, history: int, num_queries: int, table_SP: np.ndarray) -> Tensor | slice:
        page_size = self._group.page_size
        oldest_R = rows.positions_B - rows.histories_B
        newest_R = rows.positions_B + rows.counts_B - 1
        if len(oldest_R) == 1:
            oldest, newest = int(oldest_R[0]), int(newest_R[0])
            pages = table_SP[rows.slots_B[0], oldest // page_size : newest // page_size + 1]
            if (np.diff(pages) == 1).all():
                first = int(pages[0]) * page_size + oldest % page_size
                return slice(first, first + newest - oldest + 1)
        columns_L = np.arange(-history, num_queries)
        positions_RL = np.clip(rows.positions_B[:, None] + columns_L, oldest_R[:, None], newest_R[:, None])
        pages_RL = table_SP[rows.slots_B[:, None], positions_RL // page_size].astype(np.int64)
        cells_RL = torch.from_numpy(pages_RL * page_size + positions_RL % page_size)
        return (self._bases_K1 + cells_RL.flatten()).flatten()

    def _mask(self, histories_R: Longs, num_queries: int, history: int) -> Tensor | None:
        if history > self._most_history:
            self._most_history = max(history, 2 * self._most_history)
            self._causal_NL = self._relative_mask(self._most_history)
        skipped = self._most_history - history
        causal_NL = self._causal_NL[:num_queries, skipped : skipped + history + num_queries]
        missing_R = torch.from_numpy(history - histories_R)
        if not missing_R.any():
            return causal_NL if num_queries > 1 else None  # a single query sees its whole history
        absent_RL = torch.arange(history + num_queries) < missing_R[:, None]
        return causal_NL.masked_fill(absent_RL[:, None, None, :], float("-inf"))

    def _relative_mask(self, history: int) -> Tensor:
        """[BLOCK, history + BLOCK]: query i sees columns up to history + i, and no more than the window of them."""
        queries_N1 = torch.arange(BLOCK)[:, None]
        columns_L = torch.arange(-history, BLOCK)
        hidden_NL = columns_L > queries_N1
        if self._kind.window is not None:
            hidden_NL |= columns_L <= queries_N1 - self._kind.window
        return torch.zeros(hidden_NL.shape).masked_fill_(hidden_NL, float("-inf"))

    # ---- once per layer

    def run(self, layer: int, heads_TXD: Tensor, rope: NormRope, scale: float, sinks_H: Tensor | None = None) -> Tensor:
        q_THD, k_TKD, v_TKD = rotated(heads_TXD, rope, self._kind)
        keys_CD, values_CD = self._keys[layer], self._values[layer]
        for cells_CD, x_TKD in ((keys_CD, k_TKD), (values_CD, v_TKD)):
            x_KTD = x_TKD.transpose(0, 1).to(self._dtype)
            cells_CD.index_copy_(0, self._written, x_KTD.reshape(-1, cells_CD.shape[-1]))
        out_THD = q_THD.new_empty(q_THD.shape)
        for bucket in self._buckets:
            q_XHD = q_THD[bucket.tokens]
            k_XLD, v_XLD = self._gather(keys_CD, bucket), self._gather(values_CD, bucket)
            if bucket.num_queries <= FEW or self._kind.bent:
                out_XHD = self._few(bucket, q_XHD, k_XLD, v_XLD, scale, sinks_H)
            else:
                out_XHD = self._many(bucket, q_XHD, k_XLD, v_XLD, scale)
            out_THD[bucket.targets] = (out_XHD if bucket.kept is None else out_XHD[bucket.kept]).to(q_THD.dtype)
        for row in self._apart:
            out_THD[row.first : row.last] = self._ahead(row, q_THD[row.first : row.last], keys_CD, values_CD, scale)
        return out_THD

    def _ahead(self, row: Row, q_NHD: Tensor, keys_CD: Tensor, values_CD: Tensor, scale: float) -> Tensor:
        """With a mask of the row's own."""
        k_HLD, v_HLD = (
            cells_CD.view(self._kind.num_kv_heads, self._num_cells, -1)[:, row.cells_L]
            .to(q_NHD.dtype)
            .repeat_interleave(self._repeat, dim=0)
            for cells_CD in (keys_CD, values_CD)
        )
        out_HND = F.scaled_dot_product_attention(
            q_NHD.transpose(0, 1), k_HLD, v_HLD, attn_mask=row.seen_NL, scale=scale
        )
        return out_HND.transpose(0, 1)

    def _gather(self, cells_CD: Tensor, bucket: _Bucket) -> Tensor:
        """[K * R, L, D]"""
        num_kv_heads, head_dim = self._kind.num_kv_heads, self._kind.head_dim
        if isinstance(bucket.cells, slice):
            return cells_CD.view(num_kv_heads, self._num_cells, head_dim)[:, bucket.cells]
        return cells_CD.index_select(0, bucket.cells).view(num_kv_heads * bucket.num_rows, -1, head_dim)

    def _heads(self, bucket: _Bucket, q_XHD: Tensor) -> Tensor:
        """[R * N, H, D] -> [K, R, G, N, D]"""
        shape = (bucket.num_rows, bucket.num_queries, self._kind.num_kv_heads, self._repeat, q_XHD.shape[-1])
        return q_XHD.reshape(shape).permute(2, 0, 3, 1, 4)

    def _few(
        self, bucket: _Bucket, q_XHD: Tensor, k_XLD: Tensor, v_XLD: Tensor, scale: float, sinks_H: Tensor | None
    ) -> Tensor:
        """Products in float32; the query heads of a KV head are more rows of its product."""
        q_KRGND = self._heads(bucket, q_XHD.float() * scale)
        q_XND = q_KRGND.reshape(k_XLD.shape[0], -1, q_XHD.shape[-1])
        scores_XNL = torch.bmm(q_XND, k_XLD.float().transpose(1, 2))
        scores_KRGNL = scores_XNL.view(*q_KRGND.shape[:4], -1)
        if self._kind.bent:
            # Query n is the column behind n others and the history, for every row.
            columns_L = torch.arange(k_XLD.shape[1])
            distance_NL = columns_L[-bucket.num_queries :, None] - columns_L
            relative = self.relative_HP
            if relative is not None:
                relative = relative.view(self._kind.num_kv_heads, 1, self._repeat, -1)
            bend(scores_KRGNL, self._kind.cap, self._slopes_K1G11, distance_NL, relative)
        if bucket.mask is not None:
            scores_KRGNL.add_(bucket.mask)
        sinks_K1G11 = None if sinks_H is None else sinks_H.view(self._kind.num_kv_heads, 1, self._repeat, 1, 1)
        weights_XNL = weights_of(scores_KRGNL, sinks_K1G11).reshape(scores_XNL.shape)
        out_XND = torch.bmm(weights_XNL, v_XLD.float())
        return out_XND.view(q_KRGND.shape).permute(1, 3, 0, 2, 4).reshape(q_XHD.shape)

    def _many(self, bucket: _Bucket, q_XHD: Tensor, k_XLD: Tensor, v_XLD: Tensor, scale: float) -> Tensor:
        """The fused kernel, which never holds the scores; K * R are its batch, G its heads, which share their keys."""
        q_KRGND = self._heads(bucket, q_XHD)
        q_XGND = q_KRGND.reshape(-1, *q_KRGND.shape[2:])
        k_XGLD = k_XLD.to(q_XHD.dtype).unsqueeze(1).expand(-1, self._repeat, -1, -1)
        v_XGLD = v_XLD.to(q_XHD.dtype).unsqueeze(1).expand(-1, self._repeat, -1, -1)
        out_XGND = F.scaled_dot_product_attention(q_XGND, k_XGLD, v_XGLD, attn_mask=bucket.mask, scale=scale)
        return out_XGND.view(q_KRGND.shape).permute(1, 3, 0, 2, 4).reshape(q_XHD.shape)


def _lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they have been written: torch.zeros would touch every page at once."""
    data = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(data).view(dtype).view(*shape)
