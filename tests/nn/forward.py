"""One prompt through a model with the reference attention, without a runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sapwood.arch import Decoder, declare
from sapwood.arch.groups import kv_groups
from sapwood.attention.base import Backend, Batch, RowLimits
from sapwood.attention.latent import LatentReference
from sapwood.attention.reference import Reference
from sapwood.attention.states import States
from sapwood.base.kv import Heads, Latent, State
from sapwood.hub.files import ModelFiles, open_files
from sapwood.kernels import PLAIN, Kernels
from sapwood.nn.build import Build, build
from sapwood.nn.load import load_weights
from sapwood.nn.model import Model
from sapwood.parallel import ALONE, NO_PIPE, Mesh, Pipe
from sapwood.quant.base import Choice, everywhere
from sapwood.quant.plain import Plain

PAGE_SIZE = 8
MAX_TOKENS = 128
CPU = torch.device("cpu")
KEEPS: Mapping[type, type[Backend]] = MappingProxyType({Heads: Reference, Latent: LatentReference, State: States})


def empty(
    decoder: Decoder,
    *,
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = PLAIN,
    method: Choice = everywhere(Plain()),  # noqa: B008 (immutable)
    mesh: Mesh = ALONE,
    pipe: Pipe = NO_PIPE,
    **more: Any,
) -> Model:
    """The model without its weights; `more` is what else it is built with."""
    groups = kv_groups(decoder, PAGE_SIZE)
    backends = [KEEPS[type(group.kind)](group, i, CPU, dtype) for i, group in enumerate(groups)]
    for backend in backends:
        backend.allocate(MAX_TOKENS // PAGE_SIZE + 1)
    how = Build(device=CPU, dtype=dtype, backends=backends, kernels=kernels, method=method, mesh=mesh, pipe=pipe)
    how = replace(how, **more)
    return build(decoder, how)


def load(files: ModelFiles | Path, *, dtype: torch.dtype = torch.float32, kernels: Kernels = PLAIN) -> Model:
    """The model of a directory or GGUF file."""
    if isinstance(files, Path):
        files = open_files(files, name=files.name)
    model = empty(declare(files.config), dtype=dtype, kernels=kernels)
    load_weights(model, files)
    return model


@torch.inference_mode()
def logits(model: Model, tokens: list[int], plan: Callable[[Batch], None] = lambda batch: None) -> Tensor:
    """Float32 logits [len(tokens), vocabulary] of one row from position 0, of which `plan` hears too; of a stage that does not end, its hidden states."""
    count = len(tokens)
    positions = torch.arange(count)
    keeping = [module for module in model.modules() if hasattr(module, "_backend")]
    backends = {id(module._backend): module._backend for module in keeping}
    table_SP = torch.arange(1, MAX_TOKENS // PAGE_SIZE + 1, dtype=torch.int32)[None]
    zero, counts = np.zeros(1, np.int32), np.full(1, count, np.int32)
    batch = Batch(
        ids_T=torch.tensor(tokens),
        positions_T=positions,
        slots_R=torch.from_numpy(zero),
        starts_R=torch.from_numpy(zero),
        counts_R=torch.from_numpy(counts),
        offsets_R1=torch.tensor([0, count], dtype=torch.int32),
        tables_GSP=[table_SP] * len(backends),
        cells_GT=[positions + PAGE_SIZE] * len(backends),
        limits=RowLimits(decodes=1, spans=1),
    )
    for backend in backends.values():
        backend.plan(batch)
    plan(batch)
    return model.logits(model(batch)) if model.decoder.stage.ends else model(batch)
