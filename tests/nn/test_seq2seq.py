"""Encoder-decoders against transformers: the encoder's states, and logits in chunks, decoded, mixed, several with one input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.arch import declare
from sapwood.arch.groups import fixed_of, kv_groups
from sapwood.attention.cpu import Cpu
from sapwood.attention.fixed import FixedPool
from sapwood.attention.native import Native
from sapwood.attention.native_fixed import NativeEntries
from sapwood.attention.reference import Reference
from sapwood.base.kv import Fixed
from sapwood.base.media import Media
from sapwood.hub.files import open_files
from sapwood.nn.build import Build, build
from sapwood.nn.load import load_weights
from sapwood.nn.native import NativeModel
from sapwood.nn.stack import unlisted
from sapwood.quant.base import everywhere
from sapwood.quant.packed import Packed
from sapwood.runner.inputs import InputReader
from tests import seq2seq
from tests.nn import native, steps

CPU = torch.device("cpu")
FIRST, OTHER = seq2seq.text(0, 40), seq2seq.text(1, 30)
TABLE = steps.table((2, 1, 1))
STEPS: list[list[steps.Row]] = [
    [(1, 0, FIRST[:9])],
    [(1, 9, FIRST[9:33]), (3, 0, OTHER[:7])],
    [(1, 33, FIRST[33:34]), (2, 16, FIRST[16:20]), (3, 7, OTHER[7:8])],  # slot 2 goes on behind a page of slot 1's
    [(1, 34, FIRST[34:]), (2, 20, FIRST[20:36]), (3, 8, OTHER[8:])],
]


def heard(family: str, seed: int, length: int) -> tuple[Any, Media]:
    if family == "whisper":
        features = seq2seq.features(seed)
        return features, Media.of("audio", {"features": features}, 24)
    ids = seq2seq.text(seed, length)
    return ids, Media.of("tokens", {"ids": np.array(ids, np.int32)}, length)


@pytest.fixture(scope="module", params=list(seq2seq.SEQ2SEQ))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, seq2seq.save(request.param, tmp_path_factory.mktemp(request.param))


def model_of(path: Path, backend: Any) -> tuple[Any, list[Any]]:
    files = open_files(path, name=path.name)
    decoder = declare(files.config)
    backends = [backend(group, i, CPU, torch.float32) for i, group in enumerate(kv_groups(decoder, steps.PAGE_SIZE))]
    for one in backends:
        one.allocate(steps.NUM_PAGES)
    kind, layers = fixed_of(decoder) or (Fixed(1, 1), 0)
    pool = FixedPool(kind, num_layers=layers, entries=3, longest=64, num_slots=4, device=CPU, dtype=torch.float32)
    model = build(decoder, Build(device=CPU, dtype=torch.float32, backends=backends, pool=pool))
    load_weights(model, files)
    return model, [*backends, pool]


@torch.inference_mode()
def test_the_most_that_is_read_at_once(saved: tuple[str, Path]) -> None:
    model, (*_, pool) = model_of(saved[1], Cpu)
    lengths: list[int] = []
    model.read = lambda media, entries: lengths.extend(one.length for one in media) or model.encoder(media, model.embed)
    if saved[0] != "whisper":  # whose inputs are all as long
        InputReader(model, pool, most=150).read_most()
        assert lengths == [64, 64]
    else:
        pool.longest = 24
        InputReader(model, pool, most=50).read_most()
        assert lengths == [24, 24]


def stack_of(path: Path) -> tuple[Any, list[Any]]:
    """The same on the CPU's own kernels."""
    files, machine = open_files(path, name=path.name), native.machine()
    decoder = declare(files.config)
    if unlisted(decoder) or any(group.kind.relative for group in kv_groups(decoder, steps.PAGE_SIZE)):
        pytest.skip("scores have learned numbers for distances, which the library knows nothing of")
    groups = kv_groups(decoder, steps.PAGE_SIZE)
    backends = [Native(group, i, CPU, torch.float32, machine) for i, group in enumerate(groups)]
    for one in backends:
        one.allocate(steps.NUM_PAGES)
    kind, layers = fixed_of(decoder) or (Fixed(1, 1), 0)
    sizes = {"num_layers": layers, "entries": 3, "longest": 64, "num_slots": 4}
    pool = NativeEntries(kind, machine, dtype=torch.float32, **sizes)
    model = NativeModel(decoder, backends, machine, everywhere(Packed(machine)), pool=pool)
    load_weights(model, files)
    return model, [*backends, pool]


@pytest.mark.parametrize("backend", [Reference, Cpu, Native])
@torch.inference_mode()
def test_states_and_logits(saved: tuple[str, Path], backend: Any) -> None:
    family, path = saved
    model, planned = stack_of(path) if backend is Native else model_of(path, backend)
    inputs = [heard(family, 5, 37), heard(family, 6, 11)]
    states = model.read([media for _, media in inputs], [2, 3]).split([media.length for _, media in inputs])
    planned[-1].turn(np.array([1, 2, 3]), np.array([2, 2, 3]))
    got = steps.feed(model, planned, STEPS, TABLE)
    for slot, start, tokens, (given, _), state in (
        (1, 0, FIRST, inputs[0], states[0]),
        (3, 0, OTHER, inputs[1], states[1]),
    ):
        want, of_encoder = seq2seq.logits(family, given, tokens)
        assert (state - of_encoder).abs().max() < 1e-4
        assert (got[slot] - want[start:]).abs().max() < 1e-4 * max(1.0, float(want.abs().max()))
    want, _ = seq2seq.logits(family, inputs[0][0], FIRST[:36])
    assert (got[2] - want[16:]).abs().max() < 1e-4 * max(1.0, float(want.abs().max()))
    assert want.std() > 0.1, "the model tells tokens apart"
