"""A smaller model that reads a prompt ahead, goes on for a few tokens, and tells by what these look at which tokens of it matter.

What a token looks at are the weights of attention, the largest over all heads and layers (Liu, Chen and Zhang, Speculative Prefill, 2025).

Suffix legend: T tokens of a step, L tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sapwood.arch.groups import kv_groups
from sapwood.arch.parts import Decoder
from sapwood.attention.base import Batch, RowLimits
from sapwood.attention.select import Make, Offer, Wanted
from sapwood.attention.watching import Watching
from sapwood.base.kv import Heads
from sapwood.base.plan import Floats, Ints, Longs
from sapwood.config.adapters import AdapterOptions
from sapwood.config.options import Config
from sapwood.hub.files import ModelFiles
from sapwood.hub.pull import Progress, silent
from sapwood.nn.model import Model
from sapwood.quant.methods import METHODS, ReadSection
from sapwood.runner.assemble import Choices, assemble, give_weights

AHEAD = 8
"""Tokens whose attention counts: the prompt's last, and those that the model goes on with."""
_STEP = 2048  # tokens of the prompt at a time


def _watching(wanted: Wanted) -> Make | str:
    return Watching.refuse(wanted.group, wanted.device, wanted.dtype) or Watching


class Scout:
    """Scores prompts, one after another, with memory of its own: keys and values of one sequence. `config` is the resolved one of the
    engine; without `files` weights are random."""

    def __init__(
        self,
        config: Config,
        decoder: Decoder,
        files: ModelFiles | None,
        methods: Mapping[str, ReadSection] = METHODS,
        progress: Progress = silent,
    ) -> None:
        assert config.model.max_model_len is not None, "a resolved configuration"
        alone = replace(
            config,
            model=replace(config.model, quantization=None),
            cache=replace(config.cache, kv_cache_dtype="auto"),
            device=replace(config.device, attention_backend="auto", cpu_kernels="off"),
            adapters=AdapterOptions(),
        )
        choices = Choices((Offer("watching", Heads, None, _watching),), methods)
        rank = assemble(alone, decoder, choices, files)
        assert isinstance(rank.model, Model), "none of its backends is the CPU kernels'"
        self._device, self._model = rank.device, rank.model
        give_weights(rank.model, files, seed=config.device.seed, progress=progress)
        self._backends = [backend for backend in rank.backends if isinstance(backend, Watching)]
        self._longest = config.model.max_model_len
        for backend, group in zip(self._backends, kv_groups(decoder, rank.groups[0].page_size), strict=True):
            backend.allocate(-(-self._longest // group.page_size))

    @torch.inference_mode()
    def __call__(self, tokens: Ints) -> Floats:
        """A score for each of them, float32 [L]."""
        self._device.use()
        length = len(tokens)
        last = (length - 1) // _STEP * _STEP
        for start in range(0, last, _STEP):
            self._pass(tokens[start : start + _STEP], start, watches=False)
        hidden_D = self._pass(tokens[last:], last, watches=True)
        scores_L = self._seen(length)
        for place in range(length, min(length + AHEAD - 1, self._longest)):
            token = self._model.logits(hidden_D[None]).argmax(-1)
            hidden_D = self._pass(token.cpu().numpy(), place, watches=True)
            scores_L += self._seen(length)
        found: Floats = scores_L.cpu().numpy()
        return found

    def _seen(self, length: int) -> Tensor:
        """By the last token that was computed, in whatever layer."""
        return torch.stack([backend.seen_L[:length] for backend in self._backends]).amax(0)

    def _pass(self, tokens: Ints | Longs, start: int, *, watches: bool) -> Tensor:
        """The hidden state of the last of tokens from `start` on."""
        place, end = self._device.place, start + len(tokens)
        batch = Batch(
            ids_T=torch.from_numpy(tokens.astype(np.int64)).to(place),
            positions_T=torch.arange(start, end, device=place),
            slots_R=torch.zeros(1, dtype=torch.int32, device=place),
            starts_R=torch.full((1,), start, dtype=torch.int32, device=place),
            counts_R=torch.full((1,), len(tokens), dtype=torch.int32, device=place),
            offsets_R1=torch.tensor([0, len(tokens)], dtype=torch.int32, device=place),
            tables_GSP=(),
            cells_GT=(),
            limits=RowLimits(0, 1),
        )
        for backend in self._backends:
            backend.watches = watches
            backend.plan(batch)
        hidden_TD: Tensor = self._model(batch)
        return hidden_TD[-1]
