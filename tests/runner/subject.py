"""A tiny random model twice: in a worker, and in transformers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.arch.families import declare
from sapwood.base.grammar import Grammar
from sapwood.config.options import CacheConfig, Config, DeviceConfig, ModelConfig, SchedulerConfig
from sapwood.hub.files import open_files
from sapwood.runner.graphs import Graphs
from sapwood.runner.worker import Worker
from tests import models
from tests.runner.desk import Desk

NUM_PAGES = 120
PAGE = 4
MAX_LEN = 64


class Subject:
    """A tiny random model twice: in a worker, and in transformers."""

    def __init__(self, family: str, path: Path, device: str) -> None:
        self.family = family
        files = open_files(models.save(family, path), name=family)
        config = Config(
            model=ModelConfig(dtype="float32", max_model_len=MAX_LEN),
            cache=CacheConfig(page_size=PAGE, kv_cache_memory=1 << 20),
            scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=128, depth=0),
            device=DeviceConfig(device=device, threads=1),
        )
        self.worker = Worker(config, declare(files.config), files)
        self.worker.load()
        self.vocab_size = self.worker.decoder.vocab_size

    def desk(self, seed: int = 0) -> Desk:
        """A fresh start: empty pages, whose numbers are handed out in another order for another seed."""
        self.worker.allocate([NUM_PAGES] * len(self.worker.groups))
        return Desk(self.worker, num_pages=NUM_PAGES, seed=seed)

    def tokens(self, length: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(0, self.vocab_size, length).tolist()

    def logits(self, tokens: list[int]) -> Tensor:
        return models.logits(self.family, tokens)

    def greedy(self, tokens: list[int], num_tokens: int) -> list[int]:
        known = list(tokens)
        for _ in range(num_tokens):
            known.append(int(self.logits(known)[-1].argmax()))
        return known[len(tokens) :]


class Padded(Subject):
    """Whose steps are padded as those of graphs, and on a GPU are graphs."""

    def __init__(self, family: str, path: Path, device: str) -> None:
        super().__init__(family, path, device)
        self.worker.allocate([NUM_PAGES] * len(self.worker.groups))  # once: graphs know where keys and values lie
        step = self.worker._step
        step._logits_NV = torch.empty(64, self.vocab_size, device=self.worker.table.device)
        step.graphs = Graphs(
            partial(step.compute_for_graph, None),
            self.worker.table,
            max_rows=8,
            max_tokens=64,
            tile=step.tile,
            drafts=True,
            capture=device != "cpu",
        )

    def desk(self, seed: int = 0) -> Desk:
        return Desk(self.worker, num_pages=NUM_PAGES, seed=seed)


def near(found: Tensor, wanted: Tensor) -> None:
    """Of the last rows, those that there are."""
    assert len(found) in (1, len(wanted))
    torch.testing.assert_close(found, wanted[-len(found) :], atol=1e-4, rtol=0)


two_families = pytest.mark.parametrize("family", ["llama", "gemma3"])  # one KV group; two, one with a window
ANY = Grammar.regex(".*")  # the worker only has to know that there is one; which tokens it allows, the host says
