"""Models that read whole texts, on the CPU's own kernels: states against transformers', alone and together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sapwood.attention.select import choose
from sapwood.attention.whole import WholeTexts
from sapwood.base.kv import KVGroup, Whole
from sapwood.kernels import NormRope
from sapwood.nn.native import NativeModel
from sapwood.nn.stack import listing
from tests import models, readers
from tests.nn import native

FAMILIES = ("bert", "roberta", "distilbert", "modernbert", "nomic")
BUILDS = ("base", "avx2", "avx512", "neon")
CPU = torch.device("cpu")
RANDOM = np.random.default_rng(4)
TEXTS = [RANDOM.integers(3, 190, size=size).tolist() for size in (150, 1, 67, 16)]
"""Of several blocks of positions, of one and a half, of one position."""


@torch.inference_mode()
def together(model: NativeModel, texts: list[list[int]], seconds: tuple[int, ...] = ()) -> list[Tensor]:
    batch = native.batch(model, [(slot, 0, tokens) for slot, tokens in enumerate(texts)])
    if seconds:
        batch = replace(batch, seconds_S=torch.tensor(seconds, dtype=torch.int32))
    return list(model(batch).split([len(tokens) for tokens in texts]))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_transformers(family: str, build: str, tmp_path: Path) -> None:
    """Of texts of all lengths in one step, each with the bits that it has alone."""
    machine = native.machine(build)
    model = native.load(models.save(family, tmp_path), machine)
    found = together(model, TEXTS)
    for tokens, ours in zip(TEXTS, found, strict=True):
        theirs = readers.states(family, tokens)
        assert theirs.std() > 0.1, "states this flat would hide differences"
        assert (ours - theirs).abs().max() < 1e-4
        assert torch.equal(ours, together(model, [tokens])[0])


def test_second_texts_have_vectors_of_their_own(tmp_path: Path) -> None:
    model = native.load(models.save("bert", tmp_path), native.machine())
    seconds = (40, 0, 66, 0)
    found = together(model, TEXTS, seconds)
    for tokens, second, ours in zip(TEXTS, seconds, found, strict=True):
        types = [int(second > 0 and place >= second) for place in range(len(tokens))]
        assert (ours - readers.states("bert", tokens, types)).abs().max() < 1e-4
    assert (found[0] - together(model, TEXTS)[0]).abs().max() > 0.01


@pytest.mark.parametrize(("rounded", "tolerance"), [("int8", 0.03), ("int4", 0.3)])
def test_weights_are_rounded_where_somebody_asks(rounded: str, tolerance: float, tmp_path: Path) -> None:
    model = native.load(models.save("bert", tmp_path), native.machine(), rounded=rounded)  # type: ignore[arg-type]
    theirs = readers.states("bert", TEXTS[0])
    assert 1e-3 < (together(model, TEXTS)[0] - theirs).norm() / theirs.norm() < tolerance


def test_a_block_of_sums_is_seven_operations(tmp_path: Path) -> None:
    model = native.load(models.save("bert", tmp_path), native.machine())
    block = ["project", "attend", "project", "settle", "gate", "project", "settle"]
    names = [name for name, _ in listing(model.decoder, model.weights)]
    assert names[:5] == ["embed", "positions", "segments", "norm_columns", "norm"]
    assert names[5:] == [*block * len(model.decoder.blocks), "finish"]


@pytest.mark.parametrize("window", [None, 5, 70])
@torch.inference_mode()
def test_attention_alone_is_its_twins(window: int | None) -> None:
    """As modules call it: of grouped heads of an odd size, queries and keys turned."""
    machine, dim = native.machine(), 20
    group = KVGroup(Whole(4, 2, dim, window), num_layers=3, page_size=native.PAGE_SIZE)
    backend, twin = choose(group, CPU, torch.float32, machine=machine)(group, 0, CPU, torch.float32), None
    assert backend.name == "native-whole"
    twin = WholeTexts(group, 0, CPU, torch.float32)
    backend.allocate(native.NUM_SLOTS * native.SLOT_PAGES + 1)
    batch = native.batch_of([(slot, 0, tokens) for slot, tokens in enumerate(TEXTS)], groups=1)
    number, random = len(batch.ids_T), torch.Generator().manual_seed(0)
    heads_TXD = torch.randn(number, 8, dim, generator=random)
    angles_TF = torch.randn(number, dim // 2, generator=random)
    rope = NormRope(angles_TF.cos(), angles_TF.sin())
    for one in (backend, twin):
        one.plan(batch)
    for layer in (0, 2):
        ours, theirs = (one.run(layer, heads_TXD.clone(), rope, 0.3) for one in (backend, twin))  # type: ignore[attr-defined]
        assert (ours - theirs).abs().max() < 1e-5
    assert not backend.pools()
