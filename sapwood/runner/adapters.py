"""Adapters in the host's memory: read by a thread, cut to this rank's part, copied to the device when a plan says so.

Suffix legend: R ranks of an adapter, I inputs, O outputs, G groups of outputs.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from threading import Event, Lock
from time import perf_counter

import torch
from torch import Tensor

from sapwood.arch.adapters import Fit, Located, adaptable, fit, groups_of
from sapwood.arch.parts import Linear
from sapwood.base.adapter import Adapter
from sapwood.base.errors import ModelError
from sapwood.base.plan import Adapters
from sapwood.base.stake import LATER, NOW, Ready, Refusal
from sapwood.hub.adapters import WEIGHTS, AdapterConfig, adapter_id, open_adapter
from sapwood.nn.adapted import Bank
from sapwood.nn.adapted_rows import Change
from sapwood.nn.checkpoint import Safetensors

log = logging.getLogger(__name__)

Changes = Mapping[str, Change]


class Shelf:
    """Keeps the protocol `AdapterHost` for the adapters of a bank: `most` of them, in `dtype`, in memory that is `pinned` if the device
    can copy from it behind the host's back."""

    def __init__(self, bank: Bank, *, most: int, dtype: torch.dtype, pinned: bool = False) -> None:
        self.bank, self._most, self._dtype, self._pinned = bank, most, dtype, pinned
        self._here: OrderedDict[str, Future[Changes]] = OrderedDict()  # the one used last at the end
        self._lent: dict[int, tuple[str, Future[Changes]]] = {}  # what slots wait for, and its id
        self._lock = Lock()  # of the counters, which the thread writes
        self._news = Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="adapters")
        self._reads, self._loads, self._evictions, self._seconds = 0, 0, 0, 0.0

    @property
    def num_slots(self) -> int:
        return self.bank.num_slots

    # -- the host's side ------------------------------------------------------------------------------------------

    def fetch(self, adapter: Adapter) -> None:
        self._fetch(adapter, within=self._most)

    def _fetch(self, adapter: Adapter, *, within: float) -> None:
        """Nothing is begun while there are so many that none of them may go."""
        known = self._here.get(adapter.id)
        if known is not None and not (known.done() and known.exception() is not None):
            self._here.move_to_end(adapter.id)
            return
        for id, future in [*self._here.items()]:
            if len(self._here) < self._most:
                break
            if future.done():
                del self._here[id]
                self._evictions += 1
        if len(self._here) >= within:
            return  # all of them are being read: it is asked for again when one has been
        self._here[adapter.id] = future = self._pool.submit(self._read, adapter)
        future.add_done_callback(lambda _: self._news.set())

    def knows(self, adapter: Adapter) -> bool:
        return adapter.id in self._here

    def fetched(self, adapter: Adapter) -> Ready:
        future = self._here.get(adapter.id)
        if future is None:
            self.fetch(adapter)
            return LATER
        if not future.done():
            return LATER
        if (error := future.exception()) is not None:
            del self._here[adapter.id]
            if not isinstance(error, ModelError):
                log.error("an adapter could not be read", exc_info=error)
            return Refusal(f"the adapter cannot be used: {error}")
        return NOW

    def lend(self, slot: int, adapter: Adapter) -> None:
        self._fetch(adapter, within=math.inf)  # the plan cannot do without
        self._lent[slot] = adapter.id, self._here[adapter.id]

    def forget(self, adapter: Adapter) -> None:
        self._here.pop(adapter.id, None)

    def wait(self, seconds: float) -> None:
        self._news.wait(seconds)
        self._news.clear()

    def gauges(self) -> tuple[Mapping[str, int], Mapping[str, float]]:
        with self._lock:
            counts = {
                "adapter_reads": self._reads,
                "adapter_loads": self._loads,
                "adapter_host_evictions": self._evictions,
            }
            return counts, {"adapter_read_seconds": self._seconds}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- the device's side ----------------------------------------------------------------------------------------

    def apply(self, part: Adapters) -> None:
        """Before a step: copy adapters to their slots."""
        for slot, adapter in part.loads:
            if self._lent.get(slot, ("",))[0] != adapter.id:
                self.lend(slot, adapter)
            self.bank.put(slot, self._lent.pop(slot)[1].result())
            with self._lock:
                self._loads += 1
        if len(part.slots_A):
            self.bank.give(part.slots_A, part.adapters_A)

    # -- reading --------------------------------------------------------------------------------------------------

    def _read(self, adapter: Adapter) -> Changes:
        began, path = perf_counter(), Path(adapter.path)
        files = open_adapter(path)
        if adapter_id(path) != adapter.id:
            raise ModelError(f"the files in {path} have changed since it was loaded: load it again")
        shapes = {name: one.shape for name, one in files.tensors.items()}
        try:
            found = fit(self.bank.decoder, shapes, most=self.bank.rank, ends=self.bank.ends)
        except ValueError as error:
            raise ModelError(f"{path} does not fit the model: {error}") from None
        changes = self._changes(path, files.config, found)
        with self._lock:
            self._reads += 1
            self._seconds += perf_counter() - began
        return changes

    @torch.inference_mode()
    def _changes(self, path: Path, config: AdapterConfig, found: Fit) -> Changes:
        parts = {place.path: place.leaf for place in adaptable(self.bank.decoder, self.bank.ends)}
        with ExitStack() as stack:
            source = Safetensors([path / WEIGHTS], stack)
            made = {}
            for leaf, some in groupby(found.pieces, key=lambda one: one.path):
                part = parts[leaf]
                assert isinstance(part, Linear)
                made[leaf] = self._change(source, part, list(some), config, found)
            return made

    def _change(
        self, source: Safetensors, part: Linear, some: list[Located], config: AdapterConfig, found: Fit
    ) -> Change:
        rank = max(found.modules[one.module] for one in some)
        bounds = groups_of(part)
        firsts = [sum(one.size for one in part.parts[:index]) for index in range(len(part.parts))]
        a_GRI = torch.zeros(len(bounds), rank, part.inp)
        b_OR = torch.zeros(part.out, rank)
        lengths_O = torch.full((part.out,), torch.nan)
        for one in some:
            data = source.read(one.piece.name, one.piece.source).float()
            own = found.modules[one.module]
            if one.kind == "A":
                a_GRI[one.number][one.piece.target] = data
                continue
            rows = one.piece.target[0]
            rows = slice(firsts[one.number] + rows.start, firsts[one.number] + rows.stop)
            if one.kind == "B":
                b_OR[rows, :own] = data * config.scale(one.module, own)
            else:
                lengths_O[rows] = data
        scaled = config.dora and not bool(lengths_O.isnan().all())
        return Change(self._kept(a_GRI), self._kept(b_OR), lengths_O if scaled else None)

    def _kept(self, tensor: Tensor) -> Tensor:
        made = tensor.to(self._dtype)
        return made.pin_memory() if self._pinned else made
