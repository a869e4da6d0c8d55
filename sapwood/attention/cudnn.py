"""Attention of prompt chunks by cuDNN, straight from the pages.

One call a layer for all spans of a step, whatever their lengths and starts: cuDNN's fused attention takes ragged
queries, page tables and lengths that lie on the device. It runs what it calls a graph, which takes a tenth of a second
to make (the first of a process more than one) and serves every step that is no larger.

Suffix legend: N spans, padded; P pages of a slot, T tokens of the step, H query heads, K KV heads, X = H + 2K heads side
by side, D head size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sapwood.attention.base import Batch, heads_of
from sapwood.base.abilities import Ability
from sapwood.base.kv import KVGroup
from sapwood.device import abilities_of

log = logging.getLogger(__name__)

LEAST_TOKENS = 512
"""Fewer tokens in spans are computed sooner than this is launched."""

_SPANS = (32, 512)
_LONGEST = 8192
"""What graphs are made for. Room for more spans than there are costs little, and room for longer ones nothing."""

_BLOCK = 128
"""Positions that cuDNN reads at once, at most."""


# Names of a graph's tensors.
_QUERIES, _KEYS, _VALUES, _OUT, _QUERIES_AT, _OUT_AT, _COUNTS, _ENDS, _KEY_TABLE, _VALUE_TABLE = range(1, 11)


class _Size(NamedTuple):
    """What a graph is made for: so many spans of so many tokens, and pages of a slot."""

    spans: int
    longest: int
    max_pages: int
    scale: float


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: Any
    workspace: Tensor


@dataclass(frozen=True, eq=False)
class _Step:
    """`pointers` are those that all layers share, to `tensors`."""

    spans: int
    longest: int
    max_pages: int
    pointers: dict[int, int]
    tensors: tuple[Tensor, ...]


def load(device: torch.device) -> ModuleType | None:
    """cuDNN's Python module (package nvidia-cudnn-frontend), where it is installed and this device gains by it."""
    if Ability.CUDNN not in abilities_of(device):
        return None
    try:
        import cudnn  # type: ignore[import-not-found, unused-ignore]
    except (ImportError, OSError, RuntimeError):  # it is not there, or finds no libcudnn
        return None
    return cudnn if hasattr(cudnn, "pygraph") else None


class Cudnn:
    """Keys and values lie as [page, KV head, cell of the page, D], in the queries' dtype of 16 bits."""

    @staticmethod
    def make(group: KVGroup, device: torch.device, dtype: torch.dtype) -> Cudnn | None:
        """None where it cannot serve the group."""
        heads = heads_of(group)
        if heads.window is not None or heads.bent or heads.head_dim > 128 or heads.head_dim % 8:
            return None
        if dtype not in (torch.float16, torch.bfloat16) or (library := load(device)) is None:
            return None
        return Cudnn(library, group, device, dtype)

    def __init__(self, library: ModuleType, group: KVGroup, device: torch.device, dtype: torch.dtype) -> None:
        self._library, self._group, self._device, self._dtype = library, group, device, dtype
        self._kind = heads_of(group)
        self._handle = library.create_handle()
        self._graphs: dict[_Size, _Graph] = {}
        self._num_pages = 0
        self._step: _Step | None = None
        self._refused = False

    def allocate(self, num_pages: int) -> None:
        """Keys and values of a layer have so many pages from now on."""
        self._num_pages = num_pages
        self._graphs = {size: self._make(size) for size in self._graphs}

    def plan(self, batch: Batch, table_SP: Tensor, values: Tensor) -> bool:
        """Whether the spans of this step are computed here; `run` follows once per layer if they are. `values` are those
        of all layers."""
        spans, self._step = batch.spans, None
        if spans is None or spans.tokens < LEAST_TOKENS or self._refused:
            return False
        heads = self._kind
        number = next((size for size in _SPANS if size >= spans.number), 1 << (spans.number - 1).bit_length())
        real_N1 = torch.arange(number + 1, device=self._device).clamp_(max=spans.number)
        tokens_N1 = batch.offsets_R1[spans.first :].index_select(0, real_N1).long()
        queries_at = tokens_N1 * ((heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim)
        out_at = tokens_N1 * (heads.num_heads * heads.head_dim)
        told = torch.zeros(2, number, dtype=torch.int32, device=self._device)
        counts_N, ends_N = told.unbind(0)
        rows = slice(spans.first, spans.first + spans.number)
        # Rows of one token are attended to with those that decode.
        counts_N[: spans.number] = batch.counts_R[rows] * (batch.counts_R[rows] > 1)
        ends_N[: spans.number] = batch.starts_R[rows] + batch.counts_R[rows]
        rows_N = real_N1[:-1].clamp_(max=spans.number - 1)
        table_NP = table_SP.index_select(0, batch.slots_R[spans.first :].index_select(0, rows_N))
        self._clean(values, table_NP[: spans.number], ends_N[: spans.number])
        table_NP = self._whole(table_NP, ends_N)
        tensors = queries_at, out_at, counts_N, ends_N, table_NP
        names = _QUERIES_AT, _OUT_AT, _COUNTS, _ENDS, _KEY_TABLE
        pointers = {name: tensor.data_ptr() for name, tensor in zip(names, tensors, strict=True)}
        pointers[_VALUE_TABLE] = table_NP.data_ptr()
        longest = max(_LONGEST, 1 << (spans.longest - 1).bit_length())
        self._library.set_stream(handle=self._handle, stream=torch.cuda.current_stream(self._device).cuda_stream)
        self._step = _Step(number, longest, table_NP.shape[1], pointers, tensors)
        return True

    def _clean(self, values: Tensor, table_NP: Tensor, ends_N: Tensor) -> None:
        """Zero the values behind the ends of spans, up to the ends of their pages.

        cuDNN reads whole blocks and multiplies what it should not see by zero: NaN that a broken request has left there
        would become the span's.
        """
        page, num_pages = self._group.page_size, table_NP.shape[1]
        behind_N1, cells_C = (ends_N % page)[:, None], torch.arange(page, device=values.device)
        last_N1 = (ends_N // page).clamp(max=num_pages - 1).long()[:, None]
        behind_NC = (behind_N1 > 0) & (cells_C >= behind_N1)
        pages_NC = torch.where(behind_NC, table_NP.gather(1, last_N1), 0).long()  # page 0 is nobody's
        values[:, pages_NC, :, cells_C.expand_as(pages_NC)] = 0.0

    def _whole(self, table_NP: Tensor, ends_N: Tensor) -> Tensor:
        """Page tables of whole blocks, with the slot's first page wherever it has none."""
        page, num_pages = self._group.page_size, table_NP.shape[1]
        blocks = _BLOCK // min(page, _BLOCK)
        whole_NP = table_NP[:, :1].repeat(1, -(-num_pages // blocks) * blocks)
        used_NP = torch.arange(num_pages, device=table_NP.device) * page < ends_N[:, None]
        whole_NP[:, :num_pages] = torch.where(used_NP, table_NP, table_NP[:, :1])
        return whole_NP

    def run(self, heads_TXD: Tensor, keys: Tensor, values: Tensor, out_THD: Tensor, scale: float) -> bool:
        """Write the outputs of the planned spans. False if cuDNN refuses; it is not asked again."""
        step = self._step
        assert step is not None, "plan said no"
        if heads_TXD.dtype != self._dtype or not heads_TXD.is_contiguous():
            return False
        size = _Size(step.spans, step.longest, step.max_pages, scale)
        if size not in self._graphs:
            try:
                for spans in sorted({*_SPANS, size.spans}):  # all at once, at the start: the engine tries a large step
                    self._graphs[size._replace(spans=spans)] = self._make(size._replace(spans=spans))
            except (RuntimeError, self._library.cudnnGraphNotSupportedError) as error:
                log.warning("cuDNN does not attend to prompts here, Triton does: %s", error)
                self._refused = True
                return False
        graph = self._graphs[size]
        pointers = step.pointers | {
            _QUERIES: heads_TXD.data_ptr(),
            _KEYS: keys.data_ptr(),
            _VALUES: values.data_ptr(),
            _OUT: out_THD.data_ptr(),
        }
        graph.graph.execute(pointers, graph.workspace.data_ptr(), handle=self._handle)
        return True

    def _make(self, size: _Size) -> _Graph:
        library, group, heads = self._library, self._group, self._kind
        head, page = heads.head_dim, group.page_size
        width = (heads.num_heads + 2 * heads.num_kv_heads) * head
        types = library.data_type
        cells = types.HALF if self._dtype == torch.float16 else types.BFLOAT16
        inner = types.FLOAT
        graph = library.pygraph(
            io_data_type=cells, intermediate_data_type=inner, compute_data_type=inner, handle=self._handle
        )

        def tensor(uid: int, dim: tuple[int, ...], stride: tuple[int, ...], dtype: Any = cells) -> Any:
            return graph.tensor(dim=dim, stride=stride, data_type=dtype).set_uid(uid)

        def vector(uid: int, length: int, dtype: Any) -> Any:
            return tensor(uid, (length, 1, 1, 1), (1, 1, 1, 1), dtype)

        queries = tensor(
            _QUERIES, (size.spans, heads.num_heads, size.longest, head), (size.longest * width, head, width, 1)
        )
        queries.set_ragged_offset(vector(_QUERIES_AT, size.spans + 1, types.INT64))
        pages, strides = (
            (self._num_pages, heads.num_kv_heads, page, head),
            (heads.num_kv_heads * page * head, page * head, head, 1),
        )
        tables = [
            tensor(uid, (size.spans, 1, size.max_pages, 1), (size.max_pages, size.max_pages, 1, 1), types.INT32)
            for uid in (_KEY_TABLE, _VALUE_TABLE)
        ]
        out, _ = graph.sdpa(
            name="attention",
            q=queries,
            k=tensor(_KEYS, pages, strides),
            v=tensor(_VALUES, pages, strides),
            attn_scale=size.scale,
            generate_stats=False,
            use_padding_mask=True,
            seq_len_q=vector(_COUNTS, size.spans, types.INT32),
            seq_len_kv=vector(_ENDS, size.spans, types.INT32),
            use_causal_mask_bottom_right=True,
            paged_attention_k_table=tables[0],
            paged_attention_v_table=tables[1],
            paged_attention_max_seq_len_kv=size.max_pages * page,
        )
        row = heads.num_heads * head
        out.set_output(True).set_uid(_OUT).set_data_type(cells)
        out.set_dim((size.spans, heads.num_heads, size.longest, head)).set_stride((size.longest * row, head, row, 1))
        out.set_ragged_offset(vector(_OUT_AT, size.spans + 1, types.INT64))
        return self._built(graph)

    def _built(self, graph: Any) -> _Graph:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._library.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        room = max(1, graph.get_workspace_size())
        return _Graph(graph, torch.empty(room, dtype=torch.uint8, device=self._device))
