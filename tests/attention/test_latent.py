"""Attention over latents: the reference and the kernels against dense attention, and both against each other when they turn and norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from sapwood.attention.base import Backend
from sapwood.attention.latent import LatentReference, Turn
from sapwood.attention.native_latent import NativeLatent
from sapwood.base.kv import KVGroup, Latent
from sapwood.kernels import RmsNorm
from sapwood.kernels.cpu.library import Machine, find
from tests.attention.conftest import Run, World

Start = Callable[..., tuple[Any, Any]]


def group(*, num_heads: int = 4, rank: int = 32, rope: int = 16, page_size: int = 8, num_layers: int = 1) -> KVGroup:
    return KVGroup(Latent(num_heads, rank, rope), num_layers, page_size)


class LatentWorld(World):
    """Keys are latents, of root mean square 1 so that the norm leaves them as they are, with their turned part; values are latents."""

    def _content(self, random: torch.Generator) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        kind = self.group.kind
        queries = [self._draw(random, length, kind.num_heads, kind.width) for length in self.lengths]
        latents = [self._draw(random, length, 1, kind.width).sign() for length in self.lengths]
        return queries, latents, [one[..., : kind.rank] for one in latents]

    def _run(self, backend: Any, layer: int, flat: list[Tensor]) -> Tensor:
        kind = self.group.kind
        ones, zeros = (torch.full((len(flat[0]), kind.rope // 2), angle, device=self.device) for angle in (1.0, 0.0))
        norm = RmsNorm(torch.ones(kind.rank, device=self.device), 0.0)
        out_THR = backend.run(layer, flat[0].contiguous(), flat[1][:, 0], Turn(norm, ones, zeros, False), self.scale)
        assert out_THR.shape == (len(flat[0]), kind.num_heads, kind.rank)
        return out_THR

    def _sink(self, head: int) -> float:
        return 0.0

    def _bent(self, scores_LL: Tensor, head: int) -> Tensor:
        return scores_LL


def triton() -> Any:
    pytest.importorskip("triton")
    from sapwood.attention.triton_latent import TritonLatent

    return TritonLatent


def native() -> Any:
    library = find()
    return pytest.skip(library) if isinstance(library, str) else partial(NativeLatent, machine=Machine(library, 2))


KINDS: Mapping[str, Callable[[], Any]] = MappingProxyType({"reference": lambda: LatentReference, "native": native})


@pytest.fixture(
    params=[
        "reference",
        "native",
        "triton-interpreted",
        pytest.param("reference-gpu", marks=pytest.mark.gpu),
        pytest.param("triton-gpu", marks=pytest.mark.gpu),
    ]
)
def start(request: pytest.FixtureRequest, interpreter: None) -> Start:
    """start(group, lengths, **world's options) -> (world, the backend under test)"""
    if request.param == "triton-interpreted" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    backend = KINDS.get(request.param.removesuffix("-gpu"), triton)()
    device = torch.device("cuda" if request.param.endswith("-gpu") else "cpu")

    def build(facts: KVGroup, lengths: tuple[int, ...], **options: Any) -> tuple[Any, Backend]:
        if request.param == "native":
            if refused := NativeLatent.refuse(facts, device, options.get("dtype", torch.float32)):
                pytest.skip(refused)
        else:
            assert backend.refuse(facts, torch.device("cuda"), torch.float32) is None
        made = LatentWorld(facts, lengths, device=device, **options)
        return made, made.start(backend)

    return build


def test_prompt_chunks_and_decode_mixed(start: Start) -> None:
    world, backend = start(group(), (40, 21, 9))
    world.step(backend, [(0, 30), (1, 7)])
    world.step(backend, [(2, 8), (0, 1), (1, 12)])
    world.step(backend, [(0, 1), (1, 1), (2, 1)], padding=3, no_rows=2)
    world.check()


@pytest.mark.parametrize(("num_heads", "rank", "rope"), [(1, 16, 8), (6, 24, 12), (20, 32, 16), (128, 16, 8)])
def test_sizes(start: Start, num_heads: int, rank: int, rope: int) -> None:
    world, backend = start(group(num_heads=num_heads, rank=rank, rope=rope), (14, 4))
    world.step(backend, [(0, 12), (1, 3)])
    world.step(backend, [(0, 1), (1, 1)])
    world.check()


def test_layers_and_pages(start: Start) -> None:
    for page_size in (16, 128):
        world, backend = start(group(num_layers=2, page_size=page_size), (35, 5))
        world.step(backend, [(0, 34), (1, 4)])
        world.step(backend, [(0, 1), (1, 1)])
        world.check()


@pytest.mark.parametrize("drafted", [0, 3])
def test_runs_are_read_once_for_all_members(start: Start, drafted: int) -> None:
    world, backend = start(group(), (30, 30, 30), shared=16)
    runs = [Run(0, 16, (0, 1, 2))]
    world.share(runs[0])
    world.step(backend, [(0, 20), (1, 3), (2, 2)])
    counts = [(0, 1), (1, 1), (2, 1)] if not drafted else [(0, 3), (1, 1), (2, 5)]
    world.step(backend, counts, runs=runs, drafted=drafted)
    world.check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(start: Start, dtype: torch.dtype) -> None:
    world, backend = start(group(), (40, 12), dtype=dtype)
    if backend.name == "triton-latent" and world.device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton 3.6's interpreter multiplies the bit patterns of bfloat16")
    world.step(backend, [(0, 35), (1, 11)])
    world.step(backend, [(0, 2), (1, 1)])
    world.check()


@pytest.mark.gpu
@pytest.mark.parametrize("num_heads", [16, 128])
def test_the_size_of_deepseek(start: Start, num_heads: int) -> None:
    facts = group(num_heads=num_heads, rank=512, rope=64, page_size=64)
    world, backend = start(facts, (700, 690, 300), shared=64, dtype=torch.bfloat16)
    runs = [Run(0, 640, (0, 1))]
    world.share(runs[0])
    world.step(backend, [(0, 690), (1, 620), (2, 200)])
    world.step(backend, [(0, 1), (1, 5), (2, 1)], runs=runs, drafted=3)
    world.check_from({0: 0, 1: 64, 2: 64}, tolerance=3e-2)


@pytest.mark.parametrize("interleaved", [False, True])
def test_norms_and_turns(start: Start, interleaved: bool) -> None:
    """Against the formula: a latent is normed, its last part and the query's turned by the token's angle."""
    facts = group(num_heads=3, rank=16, rope=8, page_size=8)
    world, backend = start(facts, (6,))
    random = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    queries, latents, weight, angles = draw(6, 3, 24), draw(6, 30), draw(16), draw(6, 4)
    place = lambda tensor: tensor.to(world.device)  # noqa: E731
    turn = Turn(RmsNorm(place(weight), 1e-3), place(angles.cos()), place(angles.sin()), interleaved)
    backend.plan(world.batch([(0, 6)]))
    got = backend.run(0, place(queries.clone()), place(latents)[:, 3:27], turn, 0.3).cpu()

    def turned(x: Tensor) -> Tensor:
        low, high = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
        cos, sin = (angle.view(6, *[1] * (x.dim() - 2), 4) for angle in (angles.cos(), angles.sin()))
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    kept = latents[:, 3:19] / (latents[:, 3:19].square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    keys = torch.cat([kept, turned(latents[:, 19:27])], dim=-1)
    asked = torch.cat([queries[..., :16], turned(queries[..., 16:])], dim=-1)
    scores = torch.einsum("thw,sw->hts", asked, keys) * 0.3
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
    torch.testing.assert_close(got, torch.einsum("hts,sr->thr", scores.softmax(-1), kept), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("build", ["base", "avx2", "avx2vnni", "avx512", "neon"])
def test_a_row_has_the_same_bits_in_any_company(build: str, dtype: torch.dtype) -> None:
    """Alone and split among threads, in runs that end within blocks, and in chunks: in the library's own order."""
    library = find(build)
    if isinstance(library, str):
        pytest.skip(library)
    lengths, runs = (1100, 1185, 700), [Run(0, 592, (0, 1, 2)), Run(592, 1040, (0, 1))]

    def start() -> tuple[Any, Any]:
        world = LatentWorld(group(num_heads=3, page_size=16), lengths, dtype=dtype)
        for run in runs:
            world.share(run)
        return world, world.start(partial(NativeLatent, machine=Machine(library, 3)))

    def ends(slot: int) -> list[int]:
        return [lengths[slot] - 4, 1, 1, 1, 1]

    alone, backend = start()
    for slot in range(3):
        for count in ends(slot):
            alone.step(backend, [(slot, count)])
    together, backend = start()
    for counts in zip(*map(ends, range(3)), strict=True):
        joined = runs if counts[0] == 1 else []
        together.step(backend, list(enumerate(counts)), runs=joined)
    chunked, backend = start()
    for slot, sizes in enumerate(([700, 400], [77, 1, 512, 595], [64, 3, 250, 383])):
        for count in sizes:
            chunked.step(backend, [(slot, count)])
    alone.check_from({0: 1000, 1: 1100, 2: 690})
    for slot in range(3):
        assert torch.equal(alone.outputs[slot], together.outputs[slot])
        assert torch.equal(alone.outputs[slot], chunked.outputs[slot])


@pytest.mark.parametrize(
    ("device", "dtype", "sizes"),
    [
        ("cpu", torch.float32, (3, 16, 8, 12, 20)),
        pytest.param("cuda", torch.float32, (3, 16, 8, 12, 20), marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, (16, 512, 64, 128, 128), marks=pytest.mark.gpu),
    ],
    ids=str,
)
def test_prompts_whose_latents_are_expanded(
    device: str, dtype: torch.dtype, sizes: tuple[int, ...], interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole prompts and chunks behind others beside rows of one token: the values are those of sums of latents. Some heads at a time."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    made, place = triton(), torch.device(device)
    from sapwood.attention import expanded

    heads, rank, rope, own, value = sizes
    monkeypatch.setattr(expanded, "LEAST", 5)
    facts, random = group(num_heads=heads, rank=rank, rope=rope), torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    up_HXR = (draw(heads, own + value, rank) / rank**0.5).to(dtype).float()
    scale = 0.2 if dtype == torch.float32 else 0.06
    norm, expansions = RmsNorm(torch.ones(rank), 1e-6), 0
    worlds = [LatentWorld(facts, (150, 90, 20), device=one) for one in (torch.device("cpu"), place)]
    backends: list[Any] = [
        worlds[0].start(LatentReference), worlds[1].start(made, dtype)
    ]  # fmt: skip
    for spans in ([(0, 80), (1, 7)], [(2, 1), (0, 65), (1, 40)], [(2, 1), (0, 2), (1, 1)]):
        tokens = sum(count for _, count in spans)
        q_THX, latents_TW, angles = draw(tokens, heads, own + rope), draw(tokens, rank + rope), draw(tokens, rope // 2)
        q_THX, latents_TW = (one.to(dtype).float() for one in (q_THX, latents_TW))
        found = []
        for world, backend, to in zip(
            worlds, backends, ((torch.device("cpu"), torch.float32), (place, dtype)), strict=True
        ):
            kept = [one.to(*to) for one in (q_THX, latents_TW, up_HXR)]
            turn = Turn(RmsNorm(norm.weight_E.to(to[0]), 1e-6), angles.cos().to(to[0]), angles.sin().to(to[0]), False)
            monkeypatch.setattr(expanded, "MOST_BYTES", kept[1].itemsize * 2 * 145 * (own + value))
            backend.plan(world.batch(spans, known=True))
            q_THW = torch.cat(
                [torch.einsum("thk,hkr->thr", kept[0][..., :own], kept[2][:, :own]), kept[0][..., own:]], dim=-1
            )
            sums_THR = backend.run(0, q_THW, kept[1], turn, scale)
            values_HTV = torch.bmm(sums_THR.transpose(0, 1), kept[2][:, own:].mT)
            backend.expand(0, kept[0][..., :own], q_THW, kept[2], values_HTV, scale)
            found.append(values_HTV.float().cpu())
            for slot, count in spans:
                world.fed[slot] += count
        expansions += backends[1]._expansion is not None
        close = 1e-4 if dtype == torch.float32 else 4e-2
        torch.testing.assert_close(found[1], found[0], atol=close, rtol=close)
    assert expansions == 2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_latents_in_float8_are_expanded_as_they_are(
    device: str, interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made of the same rounded latents, absorbed and expanded."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    from sapwood.attention import expanded

    world = LatentWorld(group(), (40,), device=torch.device(device))
    backend: Any = world.start(triton(), torch.float8_e4m3fn)
    random = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=random).to(device)  # noqa: E731
    q_THX, latents_TW, up_HXR, angles = draw(40, 4, 28), draw(40, 48), draw(4, 32, 32) / 6, draw(40, 8)
    turn = Turn(RmsNorm(torch.ones(32, device=device), 1e-6), angles.cos(), angles.sin(), False)
    found = []
    for least in (5, 1000):
        monkeypatch.setattr(expanded, "LEAST", least)
        backend.plan(world.batch([(0, 40)], known=True))
        q_THW = torch.cat([torch.einsum("thk,hkr->thr", q_THX[..., :12], up_HXR[:, :12]), q_THX[..., 12:]], dim=-1)
        values_HTV = torch.bmm(backend.run(0, q_THW, latents_TW, turn, 0.2).transpose(0, 1), up_HXR[:, 12:].mT)
        backend.expand(0, q_THX[..., :12], q_THW, up_HXR, values_HTV, 0.2)
        found.append(values_HTV)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
