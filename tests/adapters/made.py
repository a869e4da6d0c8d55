"""Models with adapters, without a runner."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sapwood.arch import Decoder
from sapwood.attention.base import Batch
from sapwood.base.adapter import Adapter
from sapwood.base.plan import Adapters, Rows
from sapwood.hub.adapters import adapter_id
from sapwood.kernels import PLAIN, Kernels
from sapwood.nn.adapted import Bank
from sapwood.nn.model import Model
from sapwood.parallel import ALONE, Mesh
from sapwood.quant.base import Choice, everywhere
from sapwood.quant.plain import Plain
from sapwood.runner.adapters import Shelf
from tests.nn import forward

SLOTS, RANK = 4, 16


class Adapted:
    """A model without its weights, and room for adapters."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        method: Choice = everywhere(Plain()),  # noqa: B008 (immutable)
        kernels: Kernels = PLAIN,
        mesh: Mesh = ALONE,
        ends: Collection[str] = (),
    ) -> None:
        sizes = {"num_slots": SLOTS, "rank": RANK, "num_requests": 1}
        self.bank = Bank(decoder, **sizes, device=forward.CPU, mesh=mesh, ends=ends)
        made = {"method": self.bank.around(method), "tied": self.bank.tied, "looked": self.bank.looked}
        self.model: Model = forward.empty(decoder, kernels=kernels, mesh=mesh, **made)
        self.shelf = Shelf(self.bank, most=SLOTS, dtype=torch.float32)

    def logits(self, path: Path | None, tokens: list[int], *, slot: int = 1) -> Tensor:
        """float32 [len(tokens), vocabulary], with the adapter in a directory or without any."""
        loads = () if path is None else ((slot, Adapter(adapter_id(path), str(path))),)
        with torch.inference_mode():
            self.shelf.apply(Adapters(loads, _ints([0]), _ints([-1 if path is None else slot])))

        def plan(batch: Batch) -> None:
            one = _ints([1])
            self.bank.begin(Rows(0, 0, _ints([0]), _ints([0]), _ints([len(tokens)]), one, one.astype(np.int64)))
            self.bank.plan(batch)
            stack.enter_context(self.bank.heads(slice(None)))

        with ExitStack() as stack:
            return forward.logits(self.model, tokens, plan)


def _ints(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)
