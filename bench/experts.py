"""How close mixtures of experts come to the device: `python bench/experts.py` on a CUDA device, under a minute.

A step of few tokens is bound by the bytes of the experts that any of its tokens chooses: they are counted, and the time in
which a measured device-to-device copy would read them stands beside that of the whole feed-forward, from the router's
products to the sum. `choice` is what choosing and sorting take of it; `library` the same with torch's grouped products. Each
layer of a call has weights of its own, so that the L2 cache does not hold them.

`--sweep` tries other cuts of the products instead and prints the best as rows of their table.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from gpu import DEVICE, DTYPE, introduce, rate, seconds, show
from torch import Tensor

from sapwood.base.selection import Selection
from sapwood.config.env import kernel_dir
from sapwood.kernels import Routed
from sapwood.kernels.triton import choice, experts
from sapwood.kernels.triton.experts_cut import FEW, Cut
from sapwood.kernels.triton.fused import KERNELS
from sapwood.runner.ahead import Ahead, keep_kernels

NUM_LAYERS = 3
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 8192)
SWEPT_TOKENS = (1, 32, 256, 1024, 8192)
SINGLE = [
    Cut(0, *map(int, one.split("/")))
    for one in "4/512/4/2 4/1024/4/1 8/256/4/3 8/512/4/1 8/512/4/3 8/1024/8/1 16/256/4/3".split()
]
TURNED = [
    Cut(*map(int, one.split("/")), turned=True)
    for one in """16/32/128/4/4 16/32/256/4/3 16/64/64/4/6 16/64/128/4/4 16/64/256/4/3 16/128/64/4/5 16/128/128/8/3
        32/32/128/4/4 32/64/128/4/4 32/64/64/4/5 32/128/64/4/4 64/64/64/4/4""".split()
]
WIDE = [
    Cut(*map(int, one.split("/")))
    for one in """64/64/64/4/4 64/128/64/4/4 64/128/64/8/4 128/64/64/4/4 128/64/64/8/4 128/128/64/8/3 128/128/64/8/4
        128/256/64/8/3""".split()
]


class Shape(NamedTuple):
    name: str
    count: int
    top: int
    size: int
    inner: int

    @property
    def expert_bytes(self) -> int:
        return 3 * self.size * self.inner * DTYPE.itemsize


SHAPES = (Shape("qwen3-30b-a3b", 128, 8, 2048, 768),)


class Case:
    """So many tokens, which choose at random, and the experts of some layers."""

    def __init__(self, shape: Shape, layers: Sequence[Routed], num_tokens: int) -> None:
        self.shape, self.layers = shape, layers
        self.x_TE = torch.randn(num_tokens, shape.size, device=DEVICE, dtype=DTYPE)
        self.logits_TX = torch.randn(num_tokens, shape.count, device=DEVICE, dtype=DTYPE)
        self.chosen, self.weights = choice.choose(self.logits_TX, layers[0])

    @property
    def distinct(self) -> int:
        return int(self.chosen.unique().numel())

    def all_layers(self, compute: Callable[[Routed], object]) -> Callable[[], None]:
        def call() -> None:
            for layer in self.layers:
                compute(layer)

        return call

    def time(self, compute: Callable[[Routed], object]) -> float:
        """Seconds of a layer."""
        return seconds(self.all_layers(compute)) / len(self.layers)

    def ours(self, how: Routed) -> Tensor:
        return KERNELS.experts(self.x_TE, None, self.logits_TX, how)

    def chooses(self, how: Routed) -> None:
        chosen, _ = choice.choose(self.logits_TX, how)
        if len(self.x_TE) > FEW:
            choice.deal(chosen, self.shape.count)

    def cut(self, how: Routed, up: Cut | None = None, down: Cut | None = None) -> Tensor:
        few = len(self.x_TE) <= FEW
        compute = experts.of_few if few else experts.of_many
        norm = (None,) if few else ()
        return compute(self.x_TE, *norm, self.chosen, self.weights, how, up, down)

    def library(self, how: Routed) -> Tensor:
        chosen, weights = choice.choose(self.logits_TX, how)
        order, starts = choice.deal(chosen, self.shape.count)
        rows = self.x_TE[order // self.shape.top]
        inner = KERNELS.gated(torch._grouped_mm(rows, how.gate_up_XOI.mT, offs=starts[1:]), "silu")
        parts = torch.empty(len(order), self.shape.size, device=DEVICE, dtype=DTYPE)
        parts[order] = torch._grouped_mm(inner, how.down_XOI.mT, offs=starts[1:])
        return (parts.view(len(self.x_TE), self.shape.top, -1) * weights[..., None]).sum(1)


def layers(shape: Shape) -> list[Routed]:
    def weights(outputs: int, inputs: int) -> Tensor:
        return torch.randn(shape.count, outputs, inputs, device=DEVICE, dtype=DTYPE) * inputs**-0.5

    selection = Selection(shape.top, renormalised=True)
    return [
        Routed(selection, "silu", weights(2 * shape.inner, shape.size), weights(shape.size, shape.inner))
        for _ in range(NUM_LAYERS)
    ]


def compile_all(calls: Iterable[Callable[[], object]]) -> None:
    """All kernels that the calls launch, by many processes; what does not compile fails when it is called."""
    ahead = Ahead("bench-experts")
    with ahead.rehearsal():
        for call in calls:
            call()
    ahead.wait()


def measure(shape: Shape, held: Sequence[Routed], copied: float) -> Iterator[tuple[str, list[str]]]:
    cases = [Case(shape, held, num_tokens) for num_tokens in TOKENS]
    compile_all([partial(case.ours, held[0]) for case in cases])
    for case in cases:
        time, nbytes = case.time(case.ours), case.distinct * shape.expert_bytes
        flops = 2 * case.chosen.numel() * shape.expert_bytes / DTYPE.itemsize
        yield (
            f"{shape.name}, {len(case.x_TE)} tokens",
            [
                f"{case.distinct}",
                *rate(nbytes, time, copied),
                f"{nbytes / copied / 1e3:.1f}",
                f"{flops / time / 1e12:.0f}",
                f"{case.time(case.chooses) * 1e6:.1f}",
                f"{case.time(case.library) * 1e6:.1f}",
            ],
        )


def sweep(shape: Shape, held: Sequence[Routed]) -> Iterator[str]:
    """The best cuts of both products for each number of tokens, as rows of their table."""
    tables: dict[str, dict[int, Cut]] = {"up": {}, "down": {}}
    calls = {}
    for num_tokens in SWEPT_TOKENS:
        case = Case(shape, held, num_tokens)
        cuts = SINGLE if num_tokens <= FEW else TURNED if num_tokens <= 256 else WIDE
        for which, cut in itertools.product(tables, cuts):
            calls[num_tokens, which, cut] = case, partial(case.cut, **{which: cut})
    compile_all([partial(compute, held[0]) for _, compute in calls.values()])
    for num_tokens, (which, table) in itertools.product(SWEPT_TOKENS, tables.items()):
        found = []
        for (n, product, cut), (case, compute) in calls.items():
            if (n, product) == (num_tokens, which):
                try:
                    found.append((case.time(compute), cut))
                except Exception as error:
                    print("not possible:", cut, repr(error)[:160])
        found.sort()
        print(
            f"{which:5}{num_tokens:5} tokens:",
            *(f"{t * 1e6:.1f} {tuple(cut)}" for t, cut in found),
            sep="  ",
            flush=True,
        )
        table[num_tokens] = found[0][1]
    for which, weight in (("up", held[0].gate_up_XOI), ("down", held[0].down_XOI)):
        rows = ", ".join(f"{n}: Cut{tuple(cut)}" for n, cut in tables[which].items())
        yield f"    {tuple(weight.shape)}: {{{rows}}},"


def main() -> None:
    keep_kernels(kernel_dir())
    asked, copied = introduce(argparse.ArgumentParser(description=__doc__.split(":")[0]))
    for shape in SHAPES:
        held = layers(shape)
        if asked.sweep:
            print("\n".join(sweep(shape, held)))
            continue
        columns = ("experts", "us", "GB/s", "of copy", "floor us", "TFLOP/s", "choice us", "library us")
        show("a layer's experts", columns, measure(shape, held, copied))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
