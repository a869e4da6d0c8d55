"""A GGUF file as a checkpoint with Hugging Face names and layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sapwood.arch.family import Gguf
from sapwood.arch.gguf import INNER, OUTER
from sapwood.arch.shard import Piece
from sapwood.hub.gguf import GgufFile, GgufTensor
from sapwood.nn.ahead import Ahead, Span, Wanted
from sapwood.quant.source import Form, Stored

_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>[\w.]+)\.(?P<param>weight|bias)")
_IN_CONFIG = frozenset({"rope_freqs.weight"})  # read by config_of


class GgufSource:
    """A `Checkpoint`; tensors that it has no name for keep their own. One of a name with a {} is many, one behind the other,
    which have their numbers there."""

    def __init__(self, gguf: GgufFile, config: Mapping[str, Any], layout: Gguf, stack: ExitStack) -> None:
        self._gguf, self._layout = gguf, layout
        self._stack, self._ahead = stack, Ahead(())
        self._tensors: dict[str, GgufTensor] = {}
        for name, tensor in gguf.tensors.items():
            if "{}" in (hf_name := _hf_name(name, layout)):
                self._tensors |= {hf_name.format(i): entry for i, entry in enumerate(tensor.entries())}
            elif name not in _IN_CONFIG:
                self._tensors[hf_name] = tensor
        self._heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def forms(self) -> Mapping[str, int]:
        """GGUF's number of how each tensor is stored, by name."""
        return {name: int(tensor.type) for name, tensor in self._tensors.items()}

    def expect(self, pieces: Sequence[Piece], *, pinned: bool) -> int:
        """Tensors are read whole: their blocks are small."""
        runs = [(name, len(list(some))) for name, some in groupby(pieces, lambda piece: piece.name)]
        wanted = [Wanted(name, self._span(name), times=times) for name, times in runs]
        self._ahead = self._stack.enter_context(Ahead(wanted, pinned=pinned))
        return sum(one.span.size for one in wanted)

    def read(self, name: str, where: tuple[slice, ...]) -> Tensor:
        tensor, order = self._at_hand(name), self._order(name)
        rows: slice | NDArray[np.int64] = where[0] if order is None else order[where[0]]
        values = torch.from_numpy(tensor.dequantize(rows))
        *_, stem, param = name.split(".")
        if self._layout.norm_offset and stem.endswith("norm") and param == "weight":
            values = values - self._layout.norm_offset
        return values[:, *where[1:]] if where[1:] else values

    def stored(self, name: str, rows: slice) -> Stored | None:
        tensor, order = self._at_hand(name), self._order(name)
        if tensor.type not in set(Form):
            return None
        if order is not None:
            return Stored(Form(tensor.type), tensor.data, order[rows])
        return Stored(Form(tensor.type), tensor.data[rows])

    def release(self, name: str) -> int:
        return self._ahead.release() if self._is_now(name) else 0

    def _span(self, name: str) -> Span:
        return Span(self._gguf.path, *self._gguf.span(self._tensors[name]))

    def _is_now(self, name: str) -> bool:
        return self._ahead.now is not None and self._ahead.now.name == name

    def _at_hand(self, name: str) -> GgufTensor:
        """With the bytes that were read ahead, or else as the file is mapped."""
        tensor = self._tensors[name]
        return (
            replace(tensor, data=self._ahead.take().numpy().reshape(tensor.data.shape))
            if self._is_now(name)
            else tensor
        )

    def _order(self, name: str) -> NDArray[np.int64] | None:
        """Which row of the file is the i-th, where that is not i."""
        stem = name.split(".")[-2]
        if not self._layout.paired or stem not in self._heads:
            return None
        return _halves_first(self._tensors[name].shape[0], self._heads[stem])


def _halves_first(num_rows: int, num_heads: int) -> NDArray[np.int64]:
    """Where the rows of a head are in the file, which has the two dimensions that rotate together side by side."""
    pairs = np.arange(num_rows, dtype=np.int64).reshape(num_heads, -1, 2)
    return pairs.swapaxes(1, 2).ravel()


def _hf_name(name: str, layout: Gguf) -> str:
    inner, outer = {**INNER, **layout.names}, {**OUTER, **layout.outer}
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    layer, stem, param = match["layer"], match["stem"], match["param"]
    if layer is not None and (whole := inner.get(f"{stem}.{param}")):
        return layout.block.format(layer) + whole
    if layer is None:
        return f"{outer[stem]}.{param}" if stem in outer else name
    return f"{layout.block.format(layer)}{inner[stem]}.{param}" if stem in inner else name
